"""Trained networks in a folder, and `SliceClassifier`, which reads them and answers.

The folder holds `slices.json` (architecture, classes, temperature, what it was trained on, how it did, sha256 of the weights)
and the weights: one `.safetensors` file with all members of an ensemble (plain torch), or what Keras saves, which is HDF5.
Reading either runs no code.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..command_line import module_command
from ..errors import InputError, reason
from ..whole_files import check_replaceable, is_free, recover, whole_folder
from . import ARCHITECTURES, CLASSES, LUNG_ARCHITECTURES, ArchitectureName
from .images import as_hounsfield
from .inputs import LungCrop, channels
from .lung_networks import LungEnsemble, LungNetwork, build_lung_network
from .metrics import CurvePoint

if TYPE_CHECKING:  # Keras takes seconds to import, and only the paper's architectures need it
    from .networks import SliceNetwork

METADATA_FILE = "slices.json"
TORCH_FILE = "network.safetensors"
KERAS_FILE = "network.weights.h5"
FORMAT = 2

LARGEST_METADATA_FILE = 1 << 24
"""In bytes. Learning curves take most of it: about 300 bytes for an epoch of a fold."""

EXPECTED = f"a folder with {METADATA_FILE} and {TORCH_FILE} or {KERAS_FILE}, as `{module_command('slices')} train` writes it"


@dataclass(frozen=True)
class SliceMetadata:
    """What a bundle says of itself.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        trained_on: the slices that it was trained on.
        base_weights: where the base's weights came from; None where it was trained from scratch.
        members: networks whose probabilities are averaged.
        temperature: what logits are divided by.
        uncertain_below: the probability that a class must reach, or the answer is "uncertain".
        training: split, epochs, learning curves and the like; free form.
        performance: on the slices set aside, as `model.slices.metrics.Performance` has it; may be empty.
    """

    architecture: ArchitectureName
    trained_on: str
    base_weights: str | None
    members: int = 1
    temperature: float = 1.0
    uncertain_below: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)
    performance: dict[str, Any] = field(default_factory=dict)

    @property
    def weights_file(self) -> str:
        return TORCH_FILE if self.architecture in LUNG_ARCHITECTURES else KERAS_FILE

    @property
    def summary(self) -> str:
        """Which network it is, what it was trained on, and how far it can be trusted, for whoever reads its answers."""
        text = f"{self.architecture}, trained on {self.trained_on}"
        accuracy = self.performance.get("accuracy")
        if not isinstance(accuracy, dict) or accuracy.get("percent") is None:
            return f"{text}; how often it is right was not measured"
        measured = "in cross-validation on these slices" if self.training.get("folds") else "on held-out slices"
        return f"{text}; accuracy {accuracy['percent']:.0f} % {measured}"

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
        if not isinstance(self.trained_on, str) or not isinstance(self.base_weights, str | None):
            raise ValueError("trained_on or base_weights is no text")
        if type(self.members) is not int or not _is_number(self.temperature) or not _is_number(self.uncertain_below):
            raise ValueError("members is no whole number, or temperature or uncertain_below no finite number")
        if not self.members >= 1 or not self.temperature > 0 or not 0 <= self.uncertain_below <= 1:
            raise ValueError("members, temperature or uncertain_below is out of range")
        if self.members > 1 and self.architecture not in LUNG_ARCHITECTURES:
            raise ValueError(f"members is {self.members}, expected 1 for {self.architecture}")
        if not isinstance(self.training, dict) or not isinstance(self.performance, dict):
            raise ValueError("training or performance is no object")
        accuracy = self.performance.get("accuracy")
        if isinstance(accuracy, dict) and accuracy.get("percent") is not None and not _is_number(accuracy["percent"]):
            raise ValueError(f"performance.accuracy.percent is {accuracy['percent']!r}, expected a finite number")
        for fold in self.training.get("folds", []):
            for point in fold["curve"]:
                measured = [number for number in asdict(CurvePoint(**point)).values() if number is not None]
                if not all(map(_is_number, measured)):
                    raise ValueError("a learning curve holds what is no finite number")


def _is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class Classifier(Protocol):
    """What a bundle's network can do."""

    def probabilities(self, pixels: Tensor, temperature: float = 1.0) -> Tensor:
        """N x 4 probabilities for N x 3 x 336 x 336 (see `model.slices.inputs.channels`)."""

    def attention(self, pixels: Tensor, class_index: int) -> Tensor:
        """Grad-CAM for a class: rows x columns, 0 to 1, for 1 x 3 x 336 x 336."""


@dataclass(frozen=True)
class SliceAnswer:
    """What a network says of one slice.

    Attributes:
        probabilities: of each of `CLASSES`.
        attention: what spoke for the likeliest class, on the slice's grid, 0 to 1.
        uncertain: no class reaches the probability that an answer needs.
        crop: the lungs that the network saw.
    """

    probabilities: dict[str, float]
    attention: npt.NDArray[np.float32]
    uncertain: bool
    crop: LungCrop

    @property
    def likeliest(self) -> str:
        """The likeliest class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def label(self) -> str:
        """The likeliest class, or "uncertain"."""
        return "uncertain" if self.uncertain else self.likeliest


class SliceClassifier:
    """Classifies single slices with the networks of one bundle.

    Example:
        >>> answer = SliceClassifier.from_bundle("weights/slices").predict(read_slice("slice.png"))
        >>> print(answer.label, answer.probabilities)
    """

    def __init__(self, metadata: SliceMetadata, network: Classifier) -> None:
        self.metadata = metadata
        self.network = network

    @classmethod
    def from_bundle(cls, folder: Path | str) -> SliceClassifier:
        """Read and verify a bundle.

        Raises:
            InputError: there is none, or it is damaged or of another kind.
        """
        folder = Path(folder)
        metadata, digest = _read_metadata(folder)
        weights = folder / metadata.weights_file
        try:
            if not weights.is_file():
                raise InputError(weights, "no such file", EXPECTED)
            content = weights.read_bytes()
        except OSError as error:
            raise InputError(weights, f"it cannot be read ({reason(error)})", EXPECTED) from error
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise InputError(weights, f"the file is damaged (sha256 {found})", f"sha256 {digest}")
        network = (
            _read_ensemble(weights, content, metadata)
            if metadata.weights_file == TORCH_FILE
            else _read_keras(weights, metadata)
        )
        return cls(metadata, network)

    def predict(self, level: np.ndarray, spacing_mm: float | None = None) -> SliceAnswer:
        """Classify one slice.

        Args:
            level: rows x columns in HU, or grey levels from 0 to 255 (uint8, also rows x columns x 3), which are calibrated.
            spacing_mm: width of a pixel, where it is known.

        Raises:
            InputError: it cannot be calibrated, or shows no lungs.
        """
        crop = LungCrop.find(as_hounsfield(level), spacing_mm)
        pixels = channels(
            torch.from_numpy(crop.hounsfield.astype(np.float32))[None],
            torch.from_numpy(crop.lungs.astype(np.float32) / 255)[None],
        )
        shares = self.network.probabilities(pixels, self.metadata.temperature)[0].tolist()
        seen = self.network.attention(pixels, int(np.argmax(shares))).numpy().astype(np.float32)
        probabilities = dict(zip(CLASSES, shares, strict=True))
        attention = crop.on_slice(seen, (level.shape[0], level.shape[1])).clip(0, 1)
        return SliceAnswer(probabilities, attention, max(shares) < self.metadata.uncertain_below, crop)


def write_bundle(folder: Path, networks: Sequence[LungNetwork] | SliceNetwork, metadata: SliceMetadata) -> None:
    """Write a bundle, which appears whole or not at all.

    Args:
        networks: the members of an ensemble; or one of Keras.

    Raises:
        InputError: the folder already holds something else, or cannot be written.
    """
    check_bundle_place(folder)
    try:
        with whole_folder(folder.resolve()) as partial:
            weights = partial / metadata.weights_file
            if isinstance(networks, Sequence):
                weights.write_bytes(save(_tensors(networks)))
            else:
                from .networks import build_network

                plain = build_network(networks.architecture).whole  # without the optimiser's state, which is twice as large
                plain.set_weights(networks.whole.get_weights())
                plain.save_weights(weights)
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            document = {"format": FORMAT, "classes": CLASSES, **asdict(metadata), "sha256": digest}
            text = json.dumps(document, indent=2, allow_nan=False) + "\n"
            (partial / METADATA_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(folder, f"cannot be written ({reason(error)})", "a folder that can be written") from error


def _tensors(members: Sequence[LungNetwork]) -> dict[str, Tensor]:
    """Kernels in half precision, which changes no answer; all else as it is."""
    return {
        f"{index}.{name}": (tensor.half() if tensor.ndim > 1 else tensor).contiguous().clone()
        for index, member in enumerate(members)
        for name, tensor in member.state_dict().items()
    }


def _read_ensemble(path: Path, content: bytes, metadata: SliceMetadata) -> LungEnsemble:
    try:
        tensors = load(content)
        found = {name.partition(".")[0] for name in tensors}
        if len(found) != metadata.members or found != set(map(str, range(metadata.members))):
            raise InputError(path, f"it holds {len(found)} members, and {METADATA_FILE} says {metadata.members}", EXPECTED)
        members = []
        for index in range(metadata.members):
            member = build_lung_network(metadata.architecture)  # type: ignore[arg-type]
            mine = {name.removeprefix(f"{index}."): value for name, value in tensors.items() if name.startswith(f"{index}.")}
            member.load_state_dict(
                {name: value.float() if value.is_floating_point() else value for name, value in mine.items()}
            )
            members.append(member.eval())
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(path, f"not the weights of a {metadata.architecture} ({first})", EXPECTED) from error
    return LungEnsemble(members)


def _read_keras(path: Path, metadata: SliceMetadata) -> SliceNetwork:
    from .networks import build_network

    network = build_network(metadata.architecture)  # type: ignore[arg-type]
    try:
        network.whole.load_weights(str(path))
    except (ValueError, OSError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(path, f"not the weights of a {metadata.architecture} ({first})", EXPECTED) from error
    return network


def check_bundle_place(folder: Path) -> None:
    """Check, before hours of training, that a bundle can be written there: a new or empty folder, or an older bundle.

    Raises:
        InputError: it cannot.
    """
    if not (folder / METADATA_FILE).is_file() and not is_free(folder):
        raise InputError(folder, "already holds something else", "a new folder, or a bundle to replace")
    check_replaceable(folder)


def _read_metadata(folder: Path) -> tuple[SliceMetadata, str]:
    path = folder / METADATA_FILE
    try:
        recover(folder)
        if not path.is_file():
            raise InputError(folder, "no bundle of a slice network", EXPECTED)
        if path.stat().st_size > LARGEST_METADATA_FILE:
            raise InputError(path, "too large to be a bundle's metadata", EXPECTED)
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document.pop("format")
        if found == 1:
            raise ValueError("format 1, whose networks saw grey levels through whatever window: train them anew")
        if (found, tuple(document.pop("classes"))) != (FORMAT, CLASSES):
            raise ValueError(f"another format than {FORMAT}, or other classes than {', '.join(CLASSES)}")
        digest = str(document.pop("sha256"))
        return SliceMetadata(**document), digest
    except OSError as error:
        raise InputError(path, f"it cannot be read ({reason(error)})", EXPECTED) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(path, f"not such metadata ({type(error).__name__}: {error})", EXPECTED) from error
