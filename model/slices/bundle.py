"""A trained network in a folder, and `SliceClassifier`, which reads it and answers.

The folder holds `slices.json` (architecture, classes, what it was trained on, how it did, sha256 of the weights) and the
weights as Keras saves them, which is HDF5: reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..command_line import module_command
from ..errors import InputError
from ..whole_files import recover, whole_folder
from . import ARCHITECTURES, CLASSES, ArchitectureName
from .images import Picture, resized
from .networks import SliceNetwork, attention, build_network, probabilities

METADATA_FILE = "slices.json"
WEIGHTS_FILE = "network.weights.h5"
FORMAT = 1

EXPECTED = f"a folder with {METADATA_FILE} and {WEIGHTS_FILE}, as `{module_command('slices')} train` writes it"


@dataclass(frozen=True)
class SliceMetadata:
    """What a bundle says of itself.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        trained_on: the slices that it was trained on.
        base_weights: where the base's weights came from; None where it was trained from scratch.
        training: split, epochs and the like; free form.
        performance: on the slices set aside, as `model.slices.metrics.Performance` has it; may be empty.
    """

    architecture: ArchitectureName
    trained_on: str
    base_weights: str | None
    training: dict[str, Any] = field(default_factory=dict)
    performance: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Which network it is, what it was trained on, and how far it can be trusted, for whoever reads its answers."""
        text = f"{self.architecture}, trained on {self.trained_on}"
        accuracy = self.performance.get("accuracy")
        if not isinstance(accuracy, dict) or accuracy.get("percent") is None:
            return f"{text}; how often it is right was not measured"
        return f"{text}; right about {accuracy['percent']:.0f} % of the slices that were set aside"

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}, expected one of {', '.join(ARCHITECTURES)}")


@dataclass(frozen=True)
class SliceAnswer:
    """What a network says of one slice.

    Attributes:
        probabilities: of each of `CLASSES`.
        attention: what spoke for the likeliest class, on the picture's grid, 0 to 1 (see `model.slices.networks.attention`).
    """

    probabilities: dict[str, float]
    attention: npt.NDArray[np.float32]

    @property
    def label(self) -> str:
        """The likeliest class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


class SliceClassifier:
    """Classifies single slices with the network of one bundle.

    Example:
        >>> answer = SliceClassifier.from_bundle("weights/slices").predict(read_slice("slice.png"))
        >>> print(answer.label, answer.probabilities)
    """

    def __init__(self, metadata: SliceMetadata, network: SliceNetwork) -> None:
        self.metadata = metadata
        self._network = network

    @classmethod
    def from_bundle(cls, folder: Path | str) -> SliceClassifier:
        """Read and verify a bundle.

        Raises:
            InputError: there is none, or it is damaged or of another kind.
        """
        folder = Path(folder)
        metadata, digest = _read_metadata(folder)
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            raise InputError(weights, "no such file", EXPECTED)
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
        if found != digest:
            raise InputError(weights, f"the file is damaged (sha256 {found})", f"sha256 {digest}")
        network = build_network(metadata.architecture)
        try:
            network.whole.load_weights(str(weights))
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(weights, f"not the weights of a {metadata.architecture} ({reason})", EXPECTED) from error
        return cls(metadata, network)

    def predict(self, picture: Picture) -> SliceAnswer:
        """Classify one picture: rows x columns x 3, uint8, of any size."""
        pixels = torch.from_numpy(resized(picture)[None].astype(np.float32) / 255)
        shares = probabilities(self._network, pixels)[0].tolist()
        coarse = attention(self._network, pixels, int(np.argmax(shares))).numpy()
        rows, columns, _ = picture.shape
        fine = np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BILINEAR)).clip(0, 1)
        return SliceAnswer(dict(zip(CLASSES, shares, strict=True)), fine)


def write_bundle(folder: Path, network: SliceNetwork, metadata: SliceMetadata) -> None:
    """Write a bundle, which appears whole or not at all.

    Raises:
        InputError: the folder already holds something else, or cannot be written.
    """
    check_bundle_place(folder)
    try:
        with whole_folder(folder) as partial:
            plain = build_network(metadata.architecture).whole  # without the optimiser's state, which is twice as large
            plain.set_weights(network.whole.get_weights())
            plain.save_weights(partial / WEIGHTS_FILE)
            digest = hashlib.sha256((partial / WEIGHTS_FILE).read_bytes()).hexdigest()
            document = {"format": FORMAT, "classes": CLASSES, **asdict(metadata), "sha256": digest}
            text = json.dumps(document, indent=2, allow_nan=False) + "\n"
            (partial / METADATA_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(folder, f"cannot be written ({error.strerror})", "a folder that can be written") from error


def check_bundle_place(folder: Path) -> None:
    """Check, before hours of training, that a bundle can be written there: a new or empty folder, or an older bundle.

    Raises:
        InputError: it cannot.
    """
    if folder.exists() and not (folder / METADATA_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "already holds something else", "a new folder, or a bundle to replace")


def _read_metadata(folder: Path) -> tuple[SliceMetadata, str]:
    recover(folder)
    path = folder / METADATA_FILE
    if not path.is_file():
        raise InputError(folder, "no bundle of a slice network", EXPECTED)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document.pop("format"), tuple(document.pop("classes"))) != (FORMAT, CLASSES):
            raise ValueError(f"another format than {FORMAT}, or other classes than {', '.join(CLASSES)}")
        digest = str(document.pop("sha256"))
        return SliceMetadata(**document), digest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(path, f"not such metadata ({type(error).__name__}: {error})", EXPECTED) from error
