"""Labelled slices: a folder a class, the patient of each slice where it is known, and the two ways to split them."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from ..errors import InputError
from ..imaging.dicom import read_tags
from . import CLASSES
from .images import DICOM_SUFFIXES, PICTURE_SUFFIXES, Picture, Window, read_slice, resized

PATIENTS_FILE = "patients.csv"
"""Columns `file` (relative to the folder, CLASS/NAME) and `patient`; others are left alone."""

TEST_SHARE = 0.2
SPLIT_STATE = 42
"""Section IV C of the paper: 20 % are set aside, stratified, with a fixed state; which one it does not say."""

SplitName = Literal["image", "patient"]

_PATIENT_ID = "0010|0020"
_EXPECTED = f"a folder with subfolders {', '.join(CLASSES)} that hold PNG, JPEG or DICOM slices"


@dataclass(frozen=True)
class Slices:
    """Labelled slices.

    Attributes:
        pictures: N x 224 x 224 x 3, uint8.
        labels: N indices into `CLASSES`.
        patients: of each slice; None where they are not known.
    """

    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.str_] | None


@dataclass(frozen=True)
class Split:
    """Indices of the slices to train on and of those set aside."""

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def read_slices(folder: Path, window: Window) -> Slices:
    """Read every slice below `folder`.

    Patients come from `patients.csv` where it is there, and else from the DICOM files themselves.

    Raises:
        InputError: the folder is none of this kind, a slice cannot be read, or `patients.csv` does not name every slice.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder", _EXPECTED)
    files = [path for label in CLASSES for path in _slices_in(folder / label)]
    missing = [label for label in CLASSES if not any(path.parent.name == label for path in files)]
    if missing:
        raise InputError(folder, f"no slices of class {', '.join(missing)}", _EXPECTED)
    pictures: list[Picture] = [resized(read_slice(path, window=window)) for path in files]
    labels = np.array([CLASSES.index(path.parent.name) for path in files])
    return Slices(np.stack(pictures), labels, _patients(folder, files))


def _slices_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    visible = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in visible if path.suffix.lower() in (*PICTURE_SUFFIXES, *DICOM_SUFFIXES)]


def _patients(folder: Path, files: list[Path]) -> npt.NDArray[np.str_] | None:
    listed = folder / PATIENTS_FILE
    if listed.is_file():
        patient_of = _listed_patients(listed)
        names = [path.relative_to(folder).as_posix() for path in files]
        unknown = [name for name in names if name not in patient_of]
        if unknown:
            raise InputError(listed, f"{len(unknown)} slices have no patient, such as {unknown[0]}", "a patient for each")
        return np.array([patient_of[name] for name in names])
    if any(path.suffix.lower() in PICTURE_SUFFIXES for path in files):
        return None
    found = [_dicom_patient(path) for path in files]
    return np.array(found) if all(found) else None


def _listed_patients(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if not {"file", "patient"} <= set(reader.fieldnames or ()):
                raise InputError(path, f"its columns are {', '.join(reader.fieldnames or ())}", "file and patient")
            return {row["file"]: row["patient"] for row in reader if row["patient"]}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read ({type(error).__name__})", "a CSV file in UTF-8") from error


def _dicom_patient(path: Path) -> str:
    """A digest of the patient's identifier, which is enough to group by; the identifier itself goes nowhere."""
    identifier = (read_tags(path) or {}).get(_PATIENT_ID, "")
    return hashlib.sha256(identifier.encode()).hexdigest()[:16] if identifier else ""


def split_by_image(slices: Slices, state: int = SPLIT_STATE) -> Split:
    """80 % to train on and 20 % set aside, each class in its share: as the paper does.

    Slices of one patient are on both sides, so that a network may answer by knowing the patient.

    Raises:
        ValueError: a class has fewer than two slices.
    """
    indices = np.arange(len(slices.labels))
    train, test = train_test_split(indices, test_size=TEST_SHARE, stratify=slices.labels, random_state=state)
    return Split(np.sort(train), np.sort(test))


def split_by_patient(slices: Slices, state: int = SPLIT_STATE) -> Split:
    """80 % and 20 %, each class in about its share, no patient on both sides.

    Raises:
        ValueError: patients are not known, or a class has fewer than five.
    """
    if slices.patients is None:
        raise ValueError("the patients are not known")
    folds = round(1 / TEST_SHARE)
    for index, label in enumerate(CLASSES):
        count = len(set(slices.patients[slices.labels == index]))
        if count < folds:
            raise ValueError(f"class {label} has {count} patients, expected at least {folds}")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    train, test = next(splitter.split(slices.labels, slices.labels, slices.patients))
    return Split(train, test)
