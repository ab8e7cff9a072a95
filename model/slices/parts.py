"""What a comparison consists of: one network for each architecture and split, whose answers are kept in a file of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..errors import InputError, reason
from ..whole_files import try_folder, whole_file
from . import CLASSES, ArchitectureName
from .cross_validation import Fold
from .dataset import Slices, Split, SplitName, folds_by_patient, part_of, split_by_image, validates_by
from .metrics import CurvePoint
from .settings import Settings

PARTS_FOLDER = "parts"


@dataclass(frozen=True)
class Part:
    """One split to train a network on.

    Attributes:
        kind: what it keeps apart.
        number: which one of its kind, from 0.
    """

    kind: SplitName
    number: int
    split: Split

    @property
    def name(self) -> str:
        """One of `PART_NAMES`."""
        return self.kind if self.kind == "image" else f"{self.kind}-{self.number + 1}"


def splits_of(slices: Slices, folds: int, kinds: Collection[SplitName] = get_args(SplitName)) -> dict[SplitName, list[Split]]:
    """The paper's one split by image, and `folds` by patient where the patients are known.

    Args:
        kinds: which of the two.

    Raises:
        InputError: a class has too few slices or patients to be split.
    """
    splits: dict[SplitName, list[Split]] = {}
    try:
        if "image" in kinds:
            splits["image"] = [split_by_image(slices)]
        if "patient" in kinds and slices.patients is not None:
            splits["patient"] = folds_by_patient(slices)[:folds]
    except ValueError as error:
        raise InputError("--data", f"cannot be split ({error})", "at least 5 slices, and 5 patients, of each class") from error
    return splits


def parts_of(slices: Slices, folds: int) -> list[Part]:
    """`splits_of` one by one."""
    return [Part(kind, number, split) for kind, those in splits_of(slices, folds).items() for number, split in enumerate(those)]


def notes_on_validation(slices: Slices, splits: Iterable[Split]) -> list[str]:
    """What to know of the slices that say when training stops (`--patience`), before anything is trained.

    Raises:
        InputError: of one of the splits, no slices can be set aside for that.
    """
    by_image = False
    for split in splits:
        try:
            part_of(slices, split.train)
        except ValueError as error:
            found = f"no slices can be set aside to validate on ({str(error).split('. ')[0]})"
            raise InputError("--patience", found, "more slices of each class, or no --patience") from error
        by_image |= slices.patients is not None and validates_by(slices, split.train) == "image"
    if not by_image:
        return []
    return ["a class has fewer than five patients to train on: --patience stops by slices of patients that are trained on"]


@dataclass(frozen=True)
class KeptParts:
    """A folder that holds, for each network of a comparison, what it said of the slices set aside.

    A comparison that was stopped goes on from there, and several can train different networks for one folder at the same time.

    Attributes:
        folder: of the comparison; the files lie in `parts` in it.
        base_weights: of each architecture, with the sha256 of the file; None, or no entry, where there are none.
    """

    folder: Path
    slices: Slices
    settings: Settings
    base_weights: Mapping[ArchitectureName, str | None] = field(default_factory=dict)

    def make_folder(self) -> None:
        """Make the folder of the parts, and try whether it can be written.

        Raises:
            InputError: it cannot.
        """
        try_folder(self.folder / PARTS_FOLDER)

    @cached_property
    def _digest(self) -> str:
        """Of all slices: the texture network's views of one slice depend on the others."""
        digest = hashlib.sha256()
        for array in (self.slices.hounsfield, self.slices.lungs, self.slices.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _path(self, architecture: ArchitectureName, part: Part) -> Path:
        return self.folder / PARTS_FOLDER / f"{architecture}-{part.name}.json"

    def _origin(self, architecture: ArchitectureName, part: Part) -> dict[str, Any]:
        """What the answers depend on."""
        chosen = self.settings
        return {
            "epochs": chosen.epochs,
            "patience": chosen.patience,
            "batch_size": chosen.batch_size,
            "seed": chosen.seed,
            "base_weights": self.base_weights.get(architecture),
            "fine_tune": chosen.fine_tune,
            "learnt_from": [self.slices.files[index] for index in part.split.train],
            "set_aside": [self.slices.files[index] for index in part.split.test],
            "slices": self._digest,
        }

    def read(self, architecture: ArchitectureName, part: Part) -> Fold | None:
        """What a network said; None if it has not been trained.

        Raises:
            InputError: the file is of another comparison, or damaged.
        """
        path = self._path(architecture, part)
        if not path.exists():
            return None
        expected = "what this comparison has written, with the same slices and settings; else another --output"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if "slices" not in document["origin"]:
                raise InputError(path, "kept by an earlier version, which did not note of which slices", expected)
            differing = [
                name for name, value in self._origin(architecture, part).items() if document["origin"].get(name) != value
            ]
            logits = np.array(document["logits"], np.float64)
            fold = Fold(part.split, logits, document["epochs"], [CurvePoint(**point) for point in document["curve"]])
        except OSError as error:
            raise InputError(path, f"cannot be read ({reason(error)})", expected) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(path, f"cannot be read ({type(error).__name__}: {error})", expected) from error
        if differing or logits.shape != (len(part.split.test), len(CLASSES)):
            raise InputError(path, f"was made otherwise ({', '.join(differing) or 'number of slices'})", expected)
        return fold

    def write(self, architecture: ArchitectureName, part: Part, fold: Fold) -> None:
        """Keep what a network said.

        Raises:
            InputError: it cannot be written.
        """
        path = self._path(architecture, part)
        document = {
            "origin": self._origin(architecture, part),
            "device": self.settings.device,
            "epochs": fold.epochs,
            "logits": fold.logits.tolist(),
            "curve": [asdict(point) for point in fold.curve],
        }
        try:
            with whole_file(path) as partial:
                partial.write_text(json.dumps(document) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(path, f"cannot be written ({reason(error)})", "a folder with room for it") from error
