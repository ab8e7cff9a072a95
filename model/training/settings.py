"""What a run was started with: stored beside its checkpoints, so that it can be resumed as it was and exported later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..network import NetworkConfig
from ..preprocessing import PAPER_INPUT_SHAPE
from ..whole_files import whole_file
from .recipes import Recipe

Monitor = Literal["kappa", "loss", "separation"]
MONITORS = {
    "kappa": ("validation/kappa", "max"),
    "loss": ("validation/loss", "min"),
    "separation": ("validation/separation", "max"),
}
"""The logged figure that early stopping and the best checkpoint follow, and which way is better."""

SETTINGS_FILE = "run.json"
CHECKPOINT_FOLDER = "checkpoints"
BEST, LAST = "best", "last"
"""Stems of the two checkpoints: the best epoch's, to be exported, and the last one's, to be resumed."""

FORMAT = 1


@dataclass(frozen=True)
class RunSettings:
    """All that a run's result follows from, besides the files of its manifest.

    Attributes:
        manifest: path as it was given.
        manifest_sha256: of that file.
        network: backbone, head (which is the strategy) and base width.
        recipe: losses, learning rate and the rest, every option in it.
        profile: of preprocessing.
        input_shape: of the network, z y x voxels.
        supervision: `scores`, or `voxels` where truth maps take the place of equations 1 to 3.
        tile: size of the tiles that are trained on, z y x voxels; None: whole scans.
        tiles_per_scan: that an epoch draws.
        slab: slices of what is trained on of scans whose slices are all the same; None: whole scans.
        weak_batch: cases in a batch of those whose samples have another shape than the first kind's.
        weak_every: after so many batches of the first kind comes one of another.
        simulate: simulated cases that are new in each epoch; 0: none are made.
        simulated_pool: simulated cases that an epoch is trained on.
        monitor: what early stopping watches: the mean linear weighted kappa of both subtypes, the loss, or how well percentages
            tell cases that must have a subtype from those that cannot.
        init_sha256: of the bundle that the weights start from; None: drawn at random.
        frozen_statistics: whether normalisation keeps the statistics of that bundle.
        head_alone: whether only the last convolution is trained.
        average: what part of the average of the weights each step keeps; 0: the weights are not averaged.
        seed: of weights, order and augmentation.
        precision: float32, bfloat16 or float16.
        device: cpu or cuda.
        devices: on each machine.
        nodes: machines.
        accumulate: batches whose gradients are summed before a step.
        augmented: whether training scans are augmented.
        trained_on: what the data are, for the bundle.
        licence: of the bundle.
    """

    manifest: str
    manifest_sha256: str
    network: NetworkConfig
    recipe: Recipe
    profile: str
    input_shape: tuple[int, int, int]
    supervision: str
    tile: tuple[int, int, int] | None
    tiles_per_scan: int
    slab: int | None
    weak_batch: int
    weak_every: int
    simulate: int
    simulated_pool: int
    monitor: Monitor
    init_sha256: str | None
    frozen_statistics: bool
    head_alone: bool
    average: float
    seed: int
    precision: str
    device: str
    devices: int
    nodes: int
    accumulate: int
    augmented: bool
    trained_on: str
    licence: str

    def write(self, folder: Path) -> None:
        """Write the settings into a run's folder, whole or not at all."""
        with whole_file(folder / SETTINGS_FILE) as partial:
            partial.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunSettings:
        """Read the settings of a run.

        Raises:
            InputError: the folder holds no run.
        """
        expected = "the folder of a run of train.py"
        try:
            document = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            if document.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            document["network"] = NetworkConfig(**document["network"])
            document["recipe"] = Recipe(**document["recipe"])
            document["input_shape"] = tuple(document.get("input_shape", PAPER_INPUT_SHAPE))  # older runs knew the paper's alone
            document["tile"] = document["tile"] and tuple(document["tile"])
            return cls(**document)
        except OSError as error:
            raise InputError(folder, f"{SETTINGS_FILE} cannot be read ({error})", expected) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(folder / SETTINGS_FILE, f"not the settings of a run ({error})", expected) from error

    def check_resumable(self, other: RunSettings, folder: Path) -> None:
        """Check that `other`, what is asked for now, goes on with the run that was started with these settings.

        Epochs and patience may change, and what the bundle is to say of the data.

        Raises:
            InputError: anything else differs; every difference is named.
        """
        before, now = _flat(self), _flat(other)
        differences = [f"{name} was {before[name]!r} and is {now[name]!r}" for name in before if before[name] != now[name]]
        if differences:
            raise InputError(folder, f"it cannot be resumed: {', '.join(differences)}", "the options that it was started with")


_FREE = {"manifest", "trained_on", "licence", "epochs", "patience"}


def _flat(settings: RunSettings) -> dict[str, Any]:
    values = {option.name: getattr(settings, option.name) for option in fields(RunSettings)}
    values |= asdict(values.pop("network")) | asdict(values.pop("recipe"))
    return {name: value for name, value in values.items() if name not in _FREE}
