"""Weight bundles: read, verify and write them, and convert the checkpoints that the paper's authors released.

A bundle is a folder with `bundle.json` (what the network is, how its input is prepared, where it came from, and the sha256
of every tensor file) and one or more `.safetensors` files. The sha256 of `bundle.json` therefore names the whole bundle. It may
hold its network in 8-bit integers as well, for CPUs (`model.training.quantize`).

    python -m model.weights convert CHECKPOINT BUNDLE
    python -m model.weights show BUNDLE
    python -m model.weights verify BUNDLE
    python -m model.weights untrained BUNDLE [--base-width 16] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pickle
import re
import sys
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .command_line import LARGEST_SEED, OneLineParser, exit_code, module_command, whole_number
from .errors import InputError, printable
from .lungs.quality import TERMS, Range
from .network import BackboneName, EmphysemaNetwork, HeadName, NetworkConfig, build_network
from .preprocessing import PAPER_INPUT_SHAPE, PROFILES, MapPlacement, Profile, Shape, check_input_shape
from .whole_files import check_replaceable, recover, whole_folder

METADATA_FILE = "bundle.json"
SLICE_METADATA_FILE = "slices.json"
"""What a bundle of `model.slices` has instead."""
LARGEST_METADATA_FILE = 1 << 20
FORMAT = 1
SHARD_BYTES = 50_000_000
EIGHT_BIT_FILES = ("int8.xml", "int8.bin")

EXPECTED_BUNDLE = f"a weight bundle: a folder with {METADATA_FILE} and the .safetensors files that it lists"
EXPECTED_CHECKPOINT = "a state dict or Lightning checkpoint of a released network"

TEXTS = ("name", "origin", "trained_on", "licence", "source_sha256", "validated_on")
"""The fields of `BundleMetadata` that are one line of text."""

OPTIONAL_TEXTS = ("source_sha256", "validated_on")
"""Those of them that may be None."""

NOT_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode that are none: control characters, surrogates (no UTF-8), separators of lines and of paragraphs."""

QUANTIZE = module_command("training.quantize")

PUBLISHED_CHECKPOINTS = {
    "41a3c1ac746048a525e66aeff5b1d5cbf5c732ab1df0b43d3b71e32a9e783ea7": "paper.ckpt",
    "bdb3c22f8bb66f299208806361fbab624bde796710b1b2e08a5a3c2d778ee4ea": "best.ckpt",
}
"""sha256 of the two files in the authors' repository (github.com/DIAGNijmegen/bodyct-dram-emph-subtype, MIT licence)."""

PUBLISHED_TRAINING = "COPDGene, 2407 subjects (Xie et al., Sci Rep 2023)"
PUBLISHED_VALIDATION = "COPDGene, evaluation set of 7143 subjects (Xie et al., Sci Rep 2023)"
"""What the paper says in Methods, "Data collection and partitioning"."""


@dataclass(frozen=True)
class BundleMetadata:
    """What a bundle says of itself: the only place that tells how its network is built and how its input is prepared.

    Attributes:
        name: short name, shown in results.
        network: backbone, head and base width.
        profile: name of the preprocessing profile (a key of `model.preprocessing.PROFILES`).
        origin: where the weights come from.
        trained_on: the data that they were trained on.
        licence: the terms that they are given under.
        source_sha256: of the file that they were converted from, if any.
        performance: measured figures; free form.
        input_shape: size of the network's input in voxels, z, y, x; `bundle.json` holds it only where it is not the paper's.
        validated_range: for some of the measures of `model.lungs.quality.ImageQuality`, the least and the largest value (None:
            no limit) among the scans that the weights were tested on; scans outside of it are warned of.
        map_placement: where the voxels of its maps lie; `bundle.json` holds it only where it is not `corners`.
        validated_on: the scans with visual scores that the weights were validated on; None where they were not, and
            `bundle.json` lacks it then.
    """

    name: str
    network: NetworkConfig
    profile: str
    origin: str
    trained_on: str
    licence: str
    source_sha256: str | None = None
    performance: dict[str, Any] = field(default_factory=dict)
    input_shape: Shape = PAPER_INPUT_SHAPE
    validated_range: dict[str, Range] = field(default_factory=dict)
    map_placement: MapPlacement = "corners"
    validated_on: str | None = None

    def __post_init__(self) -> None:
        for name in TEXTS:
            value = getattr(self, name)
            if not isinstance(value, str) and not (name in OPTIONAL_TEXTS and value is None):
                raise ValueError(f"{name} is {type(value).__name__}, expected text")
        if not isinstance(self.performance, dict):
            raise ValueError(f"performance is {type(self.performance).__name__}, expected an object")
        if self.profile not in PROFILES:
            raise ValueError(f"profile is {self.profile!r}, expected one of {', '.join(PROFILES)}")
        check_input_shape(self.input_shape)
        _ = self.preprocessing  # checks where maps lie
        for measure, (low, high) in self.validated_range.items():
            if measure not in TERMS:
                raise ValueError(f"validated_range has {measure!r}, expected one of {', '.join(TERMS)}")
            if not all(end is None or (type(end) in (int, float) and math.isfinite(end)) for end in (low, high)):
                raise ValueError(f"validated_range of {measure} is {low!r} to {high!r}, expected two numbers or null")

    @property
    def preprocessing(self) -> Profile:
        """The profile with the network's input size and where its maps lie: how scans are prepared, and maps brought back."""
        return replace(PROFILES[self.profile], input_shape=self.input_shape, map_placement=self.map_placement)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and verified; `sha256` is that of its `bundle.json`."""

    metadata: BundleMetadata
    network: EmphysemaNetwork
    sha256: str


@dataclass(frozen=True)
class EightBitBundle:
    """A bundle with its network in 8-bit integers, for CPUs; those in floating point are not read.

    Attributes:
        metadata: as in `Bundle`.
        sha256: likewise.
        model: the layers, in OpenVINO's intermediate representation (XML).
        weights: their numbers.
        offsets: what is added to the logits of both subtypes, so that percentages agree with float32 on average.
        record: what made it, on which scans it was calibrated, and how near it is to float32; free form.
        folder: that it was read from; None for one that was not.
    """

    metadata: BundleMetadata
    sha256: str
    model: bytes
    weights: bytes
    offsets: tuple[float, float]
    record: dict[str, Any]
    folder: Path | None = None


def locate_bundle(*places: Path | str) -> Path:
    """Return the bundle in the first of `places` that exists and is not empty.

    A place is a bundle, or a folder in which exactly one subfolder is a bundle.

    Raises:
        InputError: that place holds no bundle or several, or there is no such place.
    """
    for place in map(Path, places):
        try:
            recover(place)
            if place.is_file():
                raise InputError(place, "a file", EXPECTED_BUNDLE)
            if not place.is_dir() or not any(place.iterdir()):
                continue
            if (place / METADATA_FILE).is_file():
                return place
            found = sorted(path.parent for path in place.glob(f"[!.]*/{METADATA_FILE}"))
        except OSError as error:
            raise InputError(place, f"it cannot be read ({error.strerror})", EXPECTED_BUNDLE) from error
        if len(found) != 1:
            raise InputError(place, _what_is_there(place, found), EXPECTED_BUNDLE)
        return found[0]
    raise InputError(", ".join(map(str, places)), "no weight bundle", EXPECTED_BUNDLE)


def _what_is_there(place: Path, found: Sequence[Path]) -> str:
    """Why a folder does not hold one bundle; `found` are those in it."""
    if found:
        return f"{len(found)} weight bundles in this folder ({', '.join(path.name for path in found)})"
    of_slices = [place / SLICE_METADATA_FILE, *place.glob(f"[!.]*/{SLICE_METADATA_FILE}")]
    held = next((f", but one of the slice network ({path.relative_to(place)})" for path in of_slices if path.is_file()), "")
    return f"no weight bundle in this folder{held}"


def read_metadata(folder: Path | str) -> BundleMetadata:
    """Read what a bundle says of itself.

    Raises:
        InputError: no bundle, or one of another format.
    """
    return _parsed_metadata(Path(folder), _metadata_document(Path(folder)))


def read_bundle(folder: Path | str) -> Bundle:
    """Read and verify a bundle.

    Raises:
        InputError: no bundle, one of another format, a file that is missing or damaged (sha256), or a tensor that is
            missing, extra, not finite, or of another shape or type than the network's.
    """
    folder = locate_bundle(folder)
    document = _metadata_document(folder)
    metadata = _parsed_metadata(folder, document)
    state: dict[str, Tensor] = {}
    for name, digest in document["files"].items():
        try:
            state.update(load(_verified_content(folder, name, digest)))
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # KeyError: a type that torch lacks
            raise InputError(folder / name, f"not a safetensors file ({error})", EXPECTED_BUNDLE) from error
    with torch.device("meta"):
        network = build_network(metadata.network)
    network.load_state_dict(_checked_tensors(folder, state, network.state_dict()), assign=True)
    return Bundle(metadata, network.eval(), _sha256(folder))


def has_eight_bit(folder: Path | str) -> bool:
    """Whether a bundle says that it has an 8-bit network."""
    return "int8" in _metadata_document(locate_bundle(folder))


def read_eight_bit(folder: Path | str) -> EightBitBundle:
    """Read and verify a bundle with its 8-bit network.

    Raises:
        InputError: no bundle, one without such a network, or a file that is missing or damaged (sha256).
    """
    folder = locate_bundle(folder)
    whole = _metadata_document(folder)
    metadata, document = _parsed_metadata(folder, whole), whole.get("int8")
    if document is None:
        raise InputError(folder, "this bundle has no 8-bit network", f"one that {QUANTIZE} has made")
    try:
        model, weights = (document["files"][name] for name in EIGHT_BIT_FILES)
        centrilobular, paraseptal = map(float, document["offsets"])
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InputError(folder / METADATA_FILE, f"the field int8 is wrong ({error})", EXPECTED_BUNDLE) from error
    return EightBitBundle(
        metadata,
        _sha256(folder),
        _verified_content(folder, EIGHT_BIT_FILES[0], model),
        _verified_content(folder, EIGHT_BIT_FILES[1], weights),
        (centrilobular, paraseptal),
        {name: value for name, value in document.items() if name not in ("files", "offsets")},
        folder,
    )


def write_bundle(
    folder: Path | str, network: EmphysemaNetwork, metadata: BundleMetadata, eight_bit: EightBitBundle | None = None
) -> None:
    """Write a bundle as a new folder, whole or not at all; tensor files stay under 60 MB.

    Line breaks, control characters and what is no UTF-8 are escaped in the texts of the metadata.

    Raises:
        InputError: the folder exists and is no bundle, holds other files than a bundle's, or cannot be replaced as a whole.
    """
    folder = Path(folder)
    if folder.exists():
        if not (folder / METADATA_FILE).is_file():
            raise InputError(folder, "it exists and is no bundle", "a new folder, or a bundle to replace")
        others = sorted(path.name for path in folder.iterdir() if not _is_of_a_bundle(path.name))
        if others:
            raise InputError(
                folder, f"it holds files that are not a bundle's ({', '.join(others[:5])})", "a bundle alone to replace"
            )
    check_replaceable(folder)
    with whole_folder(folder) as partial:
        shards = _shards(network.state_dict())
        files = {}
        for number, shard in enumerate(shards, start=1):
            path = partial / f"weights-{number:05d}-of-{len(shards):05d}.safetensors"
            content = save(shard)
            path.write_bytes(content)  # safetensors' own save_file would make it readable for its owner alone
            files[path.name] = hashlib.sha256(content).hexdigest()
        document = {"format": FORMAT, **asdict(metadata), "files": files}
        document |= {name: _one_line(document[name]) for name in TEXTS if document[name] is not None}
        if metadata.input_shape == PAPER_INPUT_SHAPE:
            del document["input_shape"]
        if not metadata.validated_range:
            del document["validated_range"]
        if metadata.map_placement == "corners":
            del document["map_placement"]
        if metadata.validated_on is None:
            del document["validated_on"]
        if eight_bit is not None:
            digests = {}
            for name, content in zip(EIGHT_BIT_FILES, (eight_bit.model, eight_bit.weights), strict=True):
                (partial / name).write_bytes(content)
                digests[name] = hashlib.sha256(content).hexdigest()
            document["int8"] = {"files": digests, "offsets": eight_bit.offsets, **eight_bit.record}
        (partial / METADATA_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _one_line(text: str) -> str:
    r"""Escape `NOT_TEXT`, which a name given on a command line may hold (a line break as `\n`)."""
    return "".join(repr(character)[1:-1] if unicodedata.category(character) in NOT_TEXT else character for character in text)


def _is_of_a_bundle(name: str) -> bool:
    """Whether a file's name is one of a bundle's, or hidden."""
    return name in (METADATA_FILE, *EIGHT_BIT_FILES) or name.endswith(".safetensors") or name.startswith(".")


def convert_checkpoint(checkpoint: Path | str, *, trained_on: str | None = None) -> tuple[EmphysemaNetwork, BundleMetadata]:
    """Read a checkpoint of the released implementation, either a bare state dict or a Lightning checkpoint.

    No pickled code runs: tensors and `argparse.Namespace` are all that may be unpickled.

    Args:
        checkpoint: the file; its tensors are named as released, with or without a `model.` prefix.
        trained_on: what the weights were trained on, if the file is not one of the two published ones.

    Raises:
        InputError: another type of file, a pickled type that stands in the way (it is named), or a tensor that is missing,
            extra, not finite, or of another shape or type (it is named).
    """
    checkpoint = Path(checkpoint)
    unpickled = _unpickled_state(checkpoint)
    state = {name.removeprefix("model."): value for name, value in unpickled.items()}
    if len(state) < len(unpickled):
        raise InputError(checkpoint, "tensors that are there both with and without the prefix model.", EXPECTED_CHECKPOINT)
    config = _released_config(checkpoint, state)
    with torch.device("meta"):
        network = build_network(config)
    names = {released_name(name): name for name in network.state_dict()}
    expected = {released_name(name): value for name, value in network.state_dict().items()}
    state = _checked_tensors(checkpoint, state, expected)
    network.load_state_dict({names[name]: value for name, value in state.items()}, assign=True)

    with checkpoint.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    published = PUBLISHED_CHECKPOINTS.get(sha256)
    if published:
        origin = f"the authors' published {published}, github.com/DIAGNijmegen/bodyct-dram-emph-subtype"
        trained_on, licence = PUBLISHED_TRAINING, "MIT"
    else:
        origin, licence = f"converted from {checkpoint.name}, which is none of the published files", "unknown"
    metadata = BundleMetadata(
        name=checkpoint.stem,
        network=config,
        profile="released",
        origin=origin,
        trained_on=trained_on or "unknown",
        licence=licence,
        source_sha256=sha256,
        validated_on=PUBLISHED_VALIDATION if published else None,
    )
    return network, metadata


def released_name(name: str) -> str:
    """The name that the released implementation gives to a tensor of ours."""
    for pattern, replacement in _RELEASED_NAMES:
        name, found = re.subn(pattern, replacement, name)
        if found:
            return name
    raise KeyError(name)


_RELEASED_NAMES = (
    (r"^backbone\.conv1\.", "conv1."),
    (r"^backbone\.norm1\.", "bn1."),
    (r"^backbone\.(layer\d\.\d+)\.convolutions\.(\d)\.", lambda m: f"{m[1]}.conv{int(m[2]) + 1}."),
    (r"^backbone\.(layer\d\.\d+)\.normalisations\.(\d)\.", lambda m: f"{m[1]}.bn{int(m[2]) + 1}."),
    (r"^reconstruction\.(us[12])\.block(\d)\.convolution\.", lambda m: f"{m[1]}.conv_blocks.{int(m[2]) - 1}.0."),
    (r"^reconstruction\.(us[12])\.block(\d)\.normalisation\.", lambda m: f"{m[1]}.conv_blocks.{int(m[2]) - 1}.1."),
    (r"^reconstruction\.us3\.convolution\.", "us3.0."),
    (r"^reconstruction\.us3\.normalisation\.", "us3.1."),
    (r"^head\.centrilobular\.", "fcs.0."),
    (r"^head\.paraseptal\.", "fcs.1."),
)


def untrained_bundle(base_width: int, seed: int) -> tuple[EmphysemaNetwork, BundleMetadata]:
    """A ResNet-34 regression network with random weights: it shows that everything runs, and means nothing."""
    config = NetworkConfig(base_width=base_width)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = build_network(config)
    metadata = BundleMetadata(
        name=f"untrained-width{base_width}",
        network=config,
        profile="paper",
        origin=f"random weights, seed {seed}",
        trained_on="untrained: outputs carry no meaning",
        licence="Apache-2.0",
    )
    return network, metadata


def _metadata_document(folder: Path) -> dict[str, Any]:
    path = folder / METADATA_FILE
    try:
        if path.stat().st_size > LARGEST_METADATA_FILE:
            raise InputError(path, "too large to be a bundle's metadata", EXPECTED_BUNDLE)
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(folder, f"no {METADATA_FILE} in this folder", EXPECTED_BUNDLE) from None
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error.strerror})", EXPECTED_BUNDLE) from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not JSON ({error})", EXPECTED_BUNDLE) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise InputError(path, f"bundle format {found!r}", f"format {FORMAT}")
    return document


def _verified_content(folder: Path, name: str, digest: str) -> bytes:
    path = folder / name
    try:
        if Path(name).name != name or not path.is_file():
            raise InputError(path, "a file of the bundle is missing", EXPECTED_BUNDLE)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"the file cannot be read ({error.strerror})", EXPECTED_BUNDLE) from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise InputError(path, f"the file is damaged (sha256 {found})", f"sha256 {digest}")
    return content


def _sha256(folder: Path) -> str:
    return hashlib.sha256((folder / METADATA_FILE).read_bytes()).hexdigest()


def _parsed_metadata(folder: Path, document: dict[str, Any]) -> BundleMetadata:
    try:
        values = {name: value for name, value in document.items() if name not in ("format", "files", "int8")}
        values["network"] = NetworkConfig(**values["network"])
        if "input_shape" in values:
            values["input_shape"] = tuple(values["input_shape"])
        if "validated_range" in values:
            values["validated_range"] = {name: (low, high) for name, (low, high) in values["validated_range"].items()}
        metadata = BundleMetadata(**values)
        for name in TEXTS:
            if name in values and values[name] is not None and _one_line(values[name]) != values[name]:
                raise ValueError(f"{name} is {values[name]!a}, expected one line without control characters, in UTF-8")
        if not all(isinstance(digest, str) for digest in document["files"].values()):
            raise ValueError("files are not listed with their sha256")
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(folder / METADATA_FILE, f"a field is missing or wrong ({error})", EXPECTED_BUNDLE) from error
    return metadata


def _shards(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, value in state.items():
        if shards[-1] and value.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = value.contiguous()
        room -= value.nbytes
    return shards


def _checked_tensors(source: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` in the types that are expected of it (floating-point numbers may come in another precision)."""

    def listed(names: list[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    problems: dict[str, list[str]] = {
        "missing tensors": sorted(expected.keys() - state.keys()),
        "extra tensors": sorted(state.keys() - expected.keys()),
        "misshapen tensors": [],
        "tensors of another type": [],
        "tensors that are not finite": [],
    }
    for name in sorted(expected.keys() & state.keys()):
        found, wanted = state[name], expected[name]
        if found.shape != wanted.shape:
            problems["misshapen tensors"].append(f"{name} {tuple(found.shape)} instead of {tuple(wanted.shape)}")
        elif not _is_like(found, wanted):
            problems["tensors of another type"].append(f"{name} {found.dtype} instead of {wanted.dtype}")
        elif not torch.isfinite(found).all():
            problems["tensors that are not finite"].append(name)
    if any(problems.values()):
        text = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise InputError(source, text, "exactly the tensors of the network")
    return {name: value.to(expected[name].dtype) for name, value in state.items()}


_FLOATING_POINT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_like(found: Tensor, wanted: Tensor) -> bool:
    is_plain = found.layout == torch.strided and found.device.type == "cpu"
    return is_plain and (found.dtype == wanted.dtype or {found.dtype, wanted.dtype} <= set(_FLOATING_POINT))


def _unpickled_state(checkpoint: Path) -> dict[str, Tensor]:
    if not checkpoint.is_file():
        raise InputError(checkpoint, "no such file", EXPECTED_CHECKPOINT)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        found = f"it holds pickled code of type {blocked[1]}, which is not run" if blocked else "not a checkpoint"
        raise InputError(checkpoint, found, EXPECTED_CHECKPOINT) from error
    except Exception as error:  # a file that is no checkpoint may look like anything to the unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(checkpoint, f"not a checkpoint ({reason})", EXPECTED_CHECKPOINT) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise InputError(checkpoint, "no state dict of tensors in the file", EXPECTED_CHECKPOINT)
    return cast(dict[str, Tensor], state)


def _released_config(checkpoint: Path, state: Mapping[str, Tensor]) -> NetworkConfig:
    """Read backbone, head and base width off the tensors; what does not fit is refused by name afterwards."""
    for name in ("conv1.weight", "fcs.0.weight"):
        if name not in state:
            raise InputError(checkpoint, f"missing tensors: {name}", EXPECTED_CHECKPOINT)
        if state[name].ndim != 5:
            raise InputError(checkpoint, f"misshapen tensors: {name} {tuple(state[name].shape)}", EXPECTED_CHECKPOINT)
    backbone: BackboneName = "resnet50" if "layer1.0.conv3.weight" in state else "resnet34"
    if backbone == "resnet34" and "layer1.2.conv1.weight" not in state:
        backbone = "resnet18"
    head: HeadName = "regression" if state["fcs.0.weight"].shape[0] == 1 else "classification"
    try:
        return NetworkConfig(backbone, head, base_width=state["conv1.weight"].shape[0])
    except ValueError as error:
        raise InputError(checkpoint, str(error), EXPECTED_CHECKPOINT) from error


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog=module_command("weights"), description="Weight bundles.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="make a bundle of a released checkpoint")
    convert.add_argument("checkpoint", type=Path)
    convert.add_argument("bundle", type=Path)
    convert.add_argument("--trained-on", help="what the weights were trained on, if the file is not a published one")
    for name, text in (("show", "print what a bundle says of itself"), ("verify", "check every file and tensor")):
        commands.add_parser(name, help=text).add_argument("bundle", type=Path)
    untrained = commands.add_parser("untrained", help="write a bundle of random weights, to try things out")
    untrained.add_argument("bundle", type=Path)
    untrained.add_argument("--base-width", type=int, default=16)
    untrained.add_argument("--seed", type=whole_number(0, LARGEST_SEED), default=0)
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options), options.bundle)


def _run(options: argparse.Namespace) -> None:
    match options.command:
        case "convert":
            if Path(os.path.realpath(options.checkpoint)).is_relative_to(os.path.realpath(options.bundle)):
                found = f"it lies in {options.bundle}, which would be replaced"
                raise InputError(options.checkpoint, found, "a checkpoint outside of the bundle")
            network, metadata = convert_checkpoint(options.checkpoint, trained_on=options.trained_on)
            write_bundle(options.bundle, network, metadata)
            print(printable(f"{options.bundle}: {metadata.origin}"))
        case "untrained":
            try:
                network, metadata = untrained_bundle(options.base_width, options.seed)
            except ValueError as error:
                found, _, expected = str(error).partition(", expected ")
                raise InputError("--base-width", found, expected) from None
            write_bundle(options.bundle, network, metadata)
            print(printable(f"{options.bundle}: untrained, outputs carry no meaning"))
        case "show":
            folder = locate_bundle(options.bundle)
            document = _metadata_document(folder)
            document["validated_on"] = _parsed_metadata(folder, document).validated_on  # shown where it is null, too
            print(json.dumps(document, indent=2))
        case "verify":
            bundle = read_bundle(options.bundle)
            if has_eight_bit(options.bundle):
                read_eight_bit(options.bundle)
            print(printable(f"{options.bundle}: {bundle.metadata.name} is intact, sha256 {bundle.sha256}"))


if __name__ == "__main__":
    sys.exit(main())
