"""What a training run is asked for: one dataclass that is its command line, its `run.json`, and what its bundle says of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import torch

from ..cohort.manifest import Manifest
from ..command_line import LARGEST_SEED, DeviceName, OneLineParser, PrecisionName
from ..errors import InputError, reason
from ..network import BackboneName, NetworkConfig
from ..preprocessing import PAPER_INPUT_SHAPE, PROFILES, Profile, Shape, check_input_shape
from ..subtyping import choose_device, choose_precision
from ..weights import locate_bundle, read_bundle
from ..whole_files import whole_file
from .recipes import OPTIONS, PAPER_RECIPE, RECIPES, Recipe
from .tiles import PLANE, check_tile_shape

StrategyName = Literal["regression", "classification", "voxels", "slices-lstm"]
RUN_FILE = "run.json"
CHECKPOINT_FOLDER = "checkpoints"
BEST, LAST = "best", "last"
"""Stems of the two checkpoints: the best epoch's, to be exported, and the last one's, to be resumed."""

FORMAT = 2

_EXPECTED = "the folder of a run of train.py"


def _note(
    group: str,
    help_text: str,
    *,
    local: bool = False,
    may_change: bool = False,
    choices: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """What makes a field an option of the command line.

    Args:
        group: of options in `--help`.
        help_text: what it does; the default is added.
        local: whether it concerns this machine alone; a bundle's provenance leaves it out.
        may_change: whether it may be another when a run is resumed.
        choices: what it may be; None: what its type says.
    """
    return {"help": help_text, "group": group, "local": local, "may_change": may_change, "choices": choices}


_DATA, _WHAT, _HOW = "data", "what is trained", "how it is trained"
_MACHINE, _BUNDLE = "machine", "what the bundle says of itself"


@dataclass(frozen=True)
class RunOptions:
    """All that a run's result follows from, besides the files of its manifest, and where those files are.

    Fields with a help text are options of `train.py`. The last ones are found out when the run starts.

    Attributes:
        manifest_sha256: of the manifest.
        init_sha256: of the bundle that the weights start from; None: drawn at random.
        anchor_sha256: of the bundle whose maps are kept; None: there is none.

    Raises:
        ValueError: options that no training can use, or that do not go together.
    """

    manifest: Path | None = field(default=None, metadata=_note(_DATA, "CSV; paths in it are relative to it", local=True))
    cache: Path | None = field(
        default=None,
        metadata=_note(_DATA, "prepared scans; default: a folder cache beside the manifest", local=True, may_change=True),
    )

    only: Literal["centrilobular", "paraseptal"] | None = field(
        default=None,
        metadata=_note(
            _DATA,
            "the one subtype that the training scans say anything of; results of the other mean nothing, and the bundle says "
            "that nothing was known of it",
        ),
    )

    strategy: StrategyName = field(
        default="regression",
        metadata=_note(
            _WHAT,
            "regression of percentages or classification of scores, as in the paper; or voxels: truth maps replace the paper's "
            "three losses, and scans without them are trained with their scores or bounds; or slices-lstm: classification by a "
            "convolutional network over slices and an LSTM, which the paper compares itself with",
        ),
    )
    backbone: BackboneName = field(default="resnet34", metadata=_note(_WHAT, "residual network; slices-lstm has none"))
    base_width: int = field(default=64, metadata=_note(_WHAT, "filters of the first convolution"))
    profile: str = field(default="paper", metadata=_note(_WHAT, "of preprocessing", choices=tuple(sorted(PROFILES))))
    input_shape: Shape = field(default=PAPER_INPUT_SHAPE, metadata=_note(_WHAT, "size of the network's input, z y x voxels"))
    init: Path | None = field(default=None, metadata=_note(_WHAT, "start from the weights of this bundle", local=True))
    anchor: Path | None = field(
        default=None,
        metadata=_note(
            _WHAT,
            "keep the maps of this bundle (see --anchor-weight) in scans without truth maps whose scores and bounds its "
            "percentages agree with; the others are trained as without it",
            local=True,
        ),
    )
    freeze_statistics: bool = field(
        default=False,
        metadata=_note(
            _WHAT,
            "normalise by the statistics of --init, as inference will, instead of each batch's own: for a run's last epochs",
        ),
    )
    head_alone: bool = field(
        default=False,
        metadata=_note(
            _WHAT, "train the last convolution of --init alone: after tiles, a few whole scans set how much the maps respond"
        ),
    )

    recipe: Recipe = field(
        default=PAPER_RECIPE, metadata=_note(_HOW, "losses, learning rate and the rest; each is an option too")
    )
    average: float = field(
        default=0.0,
        metadata=_note(
            _HOW,
            "validate and keep a running average of the weights, of which each step keeps this part, such as 0.998: steps on "
            "small batches are noisy. It begins with the first weights, so it needs many more steps than 1 / (1 - average); 0: "
            "the weights themselves",
        ),
    )
    tile: Shape | None = field(
        default=None,
        metadata=_note(
            _HOW,
            "train on tiles of this size, z y x voxels of the network's input; needs --strategy voxels or --tile-scores",
        ),
    )
    tile_scores: bool = field(
        default=False,
        metadata=_note(
            _HOW,
            "with --strategy regression: a tile has the scores that its part of the truth maps gives it, as if a reader had "
            "scored that part of the lung; without --tiles-anywhere, the maps also say where tiles lie",
        ),
    )
    tiles_anywhere: bool = field(
        default=False,
        metadata=_note(
            _HOW, "draw tiles around any voxel of the lung, instead of around lesions more often than around other voxels"
        ),
    )
    tiles_per_scan: int = field(default=1, metadata=_note(_HOW, "tiles that an epoch draws of each scan"))
    slab: int | None = field(
        default=None,
        metadata=_note(
            _HOW,
            "train on this many neighbouring slices, whole, of scans without truth maps whose slices are all the same (column "
            "uniform_slices of the manifest); 1: on one, as the network sees it inside a volume of such slices",
        ),
    )
    weak_batch: int | None = field(
        default=None,
        metadata=_note(
            _HOW,
            "cases in a batch where samples have another shape than those of the first kind (tiles before whole scans before "
            "slabs); default: --batch",
        ),
    )
    weak_every: int = field(
        default=1,
        metadata=_note(
            _HOW, "after so many batches of the first kind comes one of another; with --accumulate one higher, a step sees both"
        ),
    )
    simulate: int = field(
        default=0,
        metadata=_note(
            _HOW,
            "train on simulated cases too, so many of them new in each epoch, made meanwhile; needs --strategy voxels or "
            "--tile-scores",
        ),
    )
    simulated_pool: int | None = field(
        default=None,
        metadata=_note(
            _HOW, "simulated cases that an epoch is trained on; new ones take the place of the oldest; default: --simulate"
        ),
    )
    simulate_first_look: float = field(
        default=0.0,
        metadata=_note(
            _HOW, "share of the simulated cases with the first simulator's lesions: round, without a mesh (look first); 0 to 1"
        ),
    )
    simulate_panlobular: float = field(
        default=0.0,
        metadata=_note(_HOW, "share of the simulated cases with panlobular emphysema, which counts as centrilobular; 0 to 1"),
    )
    augment: bool = field(default=True, metadata=_note(_HOW, "change training scans at random"))
    seed: int = field(default=0, metadata=_note(_HOW, "of weights, order, augmentation and simulated cases"))

    device: DeviceName = field(default="auto", metadata=_note(_MACHINE, "where it runs"))
    precision: PrecisionName = field(default="auto", metadata=_note(_MACHINE, "of convolutions"))
    devices: int = field(default=1, metadata=_note(_MACHINE, "GPUs on each machine"))
    nodes: int = field(
        default=1,
        metadata=_note(_MACHINE, "machines; start the same command on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK set"),
    )
    accumulate: int = field(default=1, metadata=_note(_MACHINE, "batches whose gradients are summed before a step"))
    workers: int = field(
        default=2,
        metadata=_note(_MACHINE, "processes that prepare scans, and as many that simulate", local=True, may_change=True),
    )

    resident: bool = field(
        default=False,
        metadata=_note(
            _MACHINE,
            "keep prepared scans in the memory of --device, 27 MB each, and augment them there; --workers then only simulate",
            may_change=True,
        ),
    )

    name: str | None = field(
        default=None, metadata=_note(_BUNDLE, "default: the name of --output", local=True, may_change=True)
    )
    trained_on: str | None = field(
        default=None,
        metadata=_note(_BUNDLE, "the data in a few words; default: their number and the manifest's name", may_change=True),
    )
    licence: str = field(
        default="not stated", metadata=_note(_BUNDLE, "terms that the weights are given under", may_change=True)
    )

    manifest_sha256: str | None = None
    init_sha256: str | None = None
    anchor_sha256: str | None = None

    def __post_init__(self) -> None:
        _ = self.network  # checks backbone and width
        check_input_shape(self.input_shape)
        for name in ("devices", "nodes", "accumulate", "tiles_per_scan", "weak_batch", "weak_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_flag(name)} is {value}, expected 1 or more")
        for name in ("workers", "simulate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{_flag(name)} is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"--seed is {self.seed}, expected 0 to {LARGEST_SEED}")
        for name in ("simulate_first_look", "simulate_panlobular"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{_flag(name)} is {getattr(self, name):g}, expected 0 to 1")
        if not 0 <= self.average < 1:
            raise ValueError(f"--average is {self.average:g}, expected 0 to less than 1")
        if self.simulated_pool is not None and self.simulated_pool < max(self.simulate, 1):
            raise ValueError(f"--simulated-pool is {self.simulated_pool}, expected at least --simulate")
        for name, needed in (
            ("freeze_statistics", "init"),
            ("head_alone", "init"),
            ("simulated_pool", "simulate"),
            ("simulate_first_look", "simulate"),
            ("simulate_panlobular", "simulate"),
            ("tiles_anywhere", "tile"),
        ):
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(f"{_flag(name)} goes with {_flag(needed)}")
        for name in ("tile", "simulate"):
            if getattr(self, name) and not self.needs_truth:
                raise ValueError(f"{_flag(name)} goes with --strategy voxels or --tile-scores")
        if self.tile_scores and (self.strategy != "regression" or not self.tile):
            raise ValueError("--tile-scores goes with --strategy regression and --tile")
        if self.recipe.monitor == "separation" and self.network.head == "classification":
            raise ValueError("--monitor separation goes with --strategy regression or voxels: it compares percentages")
        if self.anchor is not None and self.network.head == "classification":
            raise ValueError("--anchor goes with --strategy regression or voxels: it keeps maps")
        if self.simulate and self.recipe.uniform_centrilobular:
            raise ValueError("--simulate does not go with --uniform-centrilobular")
        if self.tiles_per_scan > 1 and not self.tile:
            raise ValueError("--tiles-per-scan goes with --tile")
        if self.slab == PLANE and self.strategy == "slices-lstm":
            raise ValueError(f"--slab {PLANE} does not go with --strategy slices-lstm, whose network is another one along z")
        if self.slab is not None and self.slab != PLANE:
            check_tile_shape((self.slab, *self.input_shape[1:]), self.input_shape)
        if self.tile is not None:
            check_tile_shape(self.tile, self.input_shape)
        if self.device == "cpu" and self.processes > 1:
            raise ValueError("--devices and --nodes: training on several CPUs is not supported, expected GPUs or one process")

    @property
    def network(self) -> NetworkConfig:
        """Backbone, head and base width."""
        if self.strategy == "slices-lstm":
            return NetworkConfig("slices-lstm", "classification", self.base_width)
        return NetworkConfig(
            self.backbone, "classification" if self.strategy == "classification" else "regression", self.base_width
        )

    @property
    def needs_truth(self) -> bool:
        """Whether training reads truth maps."""
        return self.strategy == "voxels" or self.tile_scores

    @property
    def preprocessing(self) -> Profile:
        """The profile with the network's input size."""
        return replace(PROFILES[self.profile], input_shape=self.input_shape)

    @property
    def processes(self) -> int:
        """That train together."""
        return self.devices * self.nodes

    @property
    def total_batch(self) -> int:
        """Cases that a step learns from, of the first kind."""
        return self.recipe.batch * self.processes * self.accumulate

    @property
    def other_batch(self) -> int:
        """Cases in a batch of another kind."""
        return self.weak_batch or self.recipe.batch

    @property
    def pool_size(self) -> int:
        """Simulated cases that an epoch is trained on."""
        return self.simulated_pool or self.simulate

    @property
    def cache_folder(self) -> Path:
        """Where prepared scans are kept."""
        assert self.manifest is not None
        return self.cache or self.manifest.parent / "cache"

    def updated(self, given: Mapping[str, Any]) -> RunOptions:
        """These options with those that were given on a command line.

        Raises:
            ValueError: they do not go together.
        """
        rest = dict(given)
        recipe = RECIPES[rest.pop("recipe")] if "recipe" in rest else self.recipe
        changes = {option.name: rest.pop(option.name) for option in OPTIONS if option.name in rest}
        return replace(self, recipe=replace(recipe, **changes), **rest)

    def settled(self, manifest: Manifest, *, find_init: bool = True) -> RunOptions:
        """These options with everything that was left open: device, precision, what the data are, and digests.

        Args:
            manifest: that of the run.
            find_init: whether the bundle to start from is read; a run that is resumed from a checkpoint has no need of it.

        Raises:
            InputError: a device that cannot be had, or a bundle that cannot be read.
        """
        device, notes = choose_device(self.device)
        for note in notes:
            print(note)
        if device.type == "cuda" and self.devices > torch.cuda.device_count():
            raise InputError("--devices", f"{self.devices} are asked for", f"at most the {torch.cuda.device_count()} GPUs here")
        precision = str(choose_precision(self.precision, device)).removeprefix("torch.")
        if (device.type, precision) == ("cpu", "float16"):
            raise InputError("--precision float16", "it needs a GPU", "bfloat16 or float32 on a CPU")
        if device.type == "cpu" and self.processes > 1:
            raise InputError("--devices and --nodes", "training on several CPUs is not supported", "GPUs, or one process")
        cases = ", ".join(f"{len(manifest.of(split))} {split}" for split in ("train", "validation"))
        if self.simulate:
            cases += f", and {self.simulate} new simulated ones an epoch"
        init_sha256 = self.init_sha256
        if self.init is not None and find_init:
            init_sha256 = read_bundle(locate_bundle(self.init)).sha256
        anchor_sha256 = self.anchor_sha256
        if self.anchor is not None:
            anchor_sha256 = read_bundle(locate_bundle(self.anchor)).sha256
        return replace(
            self,
            manifest=manifest.path.absolute(),  # not resolved: its paths are relative to the link
            init=None if self.init is None else self.init.resolve(),
            anchor=None if self.anchor is None else self.anchor.resolve(),
            cache=None if self.cache is None else self.cache.resolve(),
            device=cast(DeviceName, device.type),
            precision=cast(PrecisionName, precision),
            trained_on=self.trained_on or f"{manifest.path.name} ({cases})",
            manifest_sha256=manifest.sha256,
            init_sha256=init_sha256,
            anchor_sha256=anchor_sha256,
        )

    def as_document(self) -> dict[str, Any]:
        """As `run.json` holds them."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def provenance(self) -> dict[str, Any]:
        """What a bundle says of its run: everything but what concerns one machine alone."""
        local = {option.name for option in fields(self) if option.metadata.get("local")}
        return {name: value for name, value in self.as_document().items() if name not in local}

    def write(self, folder: Path) -> None:
        """Write the options into a run's folder, whole or not at all."""
        with whole_file(folder / RUN_FILE) as partial:
            partial.write_text(json.dumps({"format": FORMAT, **self.as_document()}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunOptions:
        """Read the options of a run.

        Raises:
            InputError: the folder holds no run.
        """
        try:
            document = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            if document.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            if "monitor" in document:  # of runs that were started before it became a part of the recipe
                document["recipe"]["monitor"] = document.pop("monitor")
            types_of = get_type_hints(cls)
            return cls(**{name: _from_json(types_of[name], value) for name, value in document.items()})
        except OSError as error:
            raise InputError(folder, f"{RUN_FILE} cannot be read ({reason(error)})", _EXPECTED) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(folder / RUN_FILE, f"not the options of a run ({error})", _EXPECTED) from error

    def differences(self, other: RunOptions, but: Collection[str]) -> list[str]:
        """What `other` has otherwise, of all but some options, in words."""
        before, now = _flat(self), _flat(other)
        differing = [name for name in before if name not in but and before[name] != now[name]]
        return [f"{name} was {before[name]!r} and is {now[name]!r}" for name in differing]

    def check_resumable(self, other: RunOptions, folder: Path) -> None:
        """Check that `other`, what is asked for now, goes on with the run that was started with these options.

        Epochs and patience may change, and what the bundle is to say of the data.

        Raises:
            InputError: anything else differs; every difference is named.
        """
        if differences := self.differences(other, but=("epochs", "patience")):
            raise InputError(folder, f"it cannot be resumed: {', '.join(differences)}", "the options that it was started with")


def _flat(options: RunOptions) -> dict[str, Any]:
    """All that may not change by name; the manifest is known by its digest."""
    free = {option.name for option in fields(options) if option.metadata.get("may_change")}
    values = options.as_document()
    recipe = values.pop("recipe")
    values |= recipe | {"recipe": recipe["name"]}
    return {name: value for name, value in values.items() if name not in free | {"manifest"}}


def _from_json(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    kind = _plain(kind)
    if dataclasses.is_dataclass(kind):
        return kind(**value)  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(value)
    return Path(value) if kind is Path else value


def _plain(kind: Any) -> Any:
    """A type without its `| None`."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Command:
    """A command line of `train.py`.

    Attributes:
        output: the run's folder.
        resume: whether to go on from the last finished epoch of the run in it.
        export_only: whether only to write the bundle of the run in it.
        options: of the run.
    """

    output: Path
    resume: bool
    export_only: bool
    options: RunOptions

    @property
    def checkpoint(self) -> Path | None:
        """What the run goes on from; None where it starts afresh, also because no epoch was finished."""
        return resumable_checkpoint(self.output) if self.resume else None


def resumable_checkpoint(output: Path) -> Path | None:
    """The checkpoint of the last finished epoch of a run, if there is one."""
    path = output / CHECKPOINT_FOLDER / f"{LAST}.ckpt"
    return path if path.is_file() else None


def build_parser() -> OneLineParser:
    """The command line; every field of `RunOptions` and of its recipe that has a help text is an option."""
    parser = OneLineParser(
        prog="train.py",
        description="Train the emphysema network from a manifest (columns: entity, ct, lung_mask, centrilobular, paraseptal, "
        "split; or COPDGene's own) and write a weight bundle. Research software, not a medical device.",
    )
    parser.add_argument("--output", type=Path, required=True, help="the run's folder: checkpoints, logs, pictures, bundle")
    parser.add_argument(
        "--resume",
        action="store_true",
        help=f"go on from the last finished epoch of the run in --output, with the options in its {RUN_FILE}",
    )
    parser.add_argument("--export-only", action="store_true", help="write the bundle of the run in --output as it stands")
    groups: dict[str, Any] = {}
    kinds = get_type_hints(RunOptions)
    for option in fields(RunOptions):
        if "help" in option.metadata:
            title = option.metadata["group"]
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            _add(groups[title], option, _plain(kinds[option.name]))
    return parser


def _add(group: Any, option: Field[Any], kind: Any) -> None:
    text = option.metadata["help"]
    if kind is Recipe:
        group.add_argument("--recipe", choices=sorted(RECIPES), help=f"{text}; default: paper", default=argparse.SUPPRESS)
        recipe_kinds = get_type_hints(Recipe)
        for part in OPTIONS:
            values = ", ".join(f"{getattr(recipe, part.name)} in {recipe.name}" for recipe in RECIPES.values())
            _add_argument(group, part.name, recipe_kinds[part.name], f"{part.metadata['help']} ({values})")
        return
    if isinstance(option.default, bool):
        text += f"; default: {'yes' if option.default else 'no'}"
    elif option.default is not None:
        shown = " ".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        text += f"; default: {shown}"
    _add_argument(group, option.name, kind, text, option.metadata["choices"])


def _add_argument(group: Any, name: str, kind: Any, text: str, choices: tuple[str, ...] | None = None) -> None:
    """Only what is named on a command line shall be in its result."""
    details: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        details["action"] = argparse.BooleanOptionalAction
    elif choices or get_origin(kind) is Literal:
        details["choices"] = choices or get_args(kind)
    elif get_origin(kind) is tuple:
        details |= {"type": int, "nargs": 3, "metavar": ("Z", "Y", "X")}
    else:
        details |= {"type": kind, "metavar": {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")}
    group.add_argument(_flag(name), **details)


def parse(arguments: Sequence[str]) -> Command:
    """Read a command line. With `--resume`, what it does not name is as the run was started.

    Exits with code 2 and one line for options that cannot be used.

    Raises:
        InputError: there is no run to go on with.
    """
    parser = build_parser()
    given = vars(parser.parse_args(arguments))
    output, resume, export_only = (given.pop(name) for name in ("output", "resume", "export_only"))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if export_only:
        for name in set(given) - {"name"}:
            parser.error(f"{_flag(name)} does not go with --export-only")
    before = RunOptions.read(output) if resume else RunOptions()
    try:
        options = before.updated(given)
    except ValueError as error:
        parser.error(str(error))
    if options.manifest is None and not export_only:
        parser.error("--manifest is needed")
    return Command(output, resume, export_only, options)
