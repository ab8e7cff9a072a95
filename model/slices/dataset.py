"""Labelled slices: a folder a class, the patient of each slice where it is known, and the two ways to split them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from torch import Tensor

from ..errors import InputError, reason
from ..imaging import dicom
from . import CLASSES
from .images import PICTURE_SUFFIXES, as_hounsfield, is_dicom, read_slice
from .inputs import LungCrop, channels

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
    """Labelled slices, as the networks take them (see `model.slices.inputs.LungCrop`).

    Attributes:
        hounsfield: N x 336 x 336, float16, HU.
        lungs: N x 336 x 336, uint8, 0 or 255.
        labels: N indices into `CLASSES`.
        patients: of each slice; None where they are not known.
        files: of each slice, relative to the folder.
        refused: what cannot be used, and why: file, class, one line.
        passed_over: what else lies in the folders of the classes, and is no slice by its name or beginning.
    """

    hounsfield: npt.NDArray[np.float16]
    lungs: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.str_] | None
    files: tuple[str, ...] = ()
    refused: tuple[tuple[str, str, str], ...] = ()
    passed_over: tuple[str, ...] = ()

    def crops(self, indices: npt.NDArray[np.int64], device: str = "cpu") -> tuple[Tensor, Tensor]:
        """HU of some slices and their lungs, 0 to 1: both N x 336 x 336, float32."""
        hounsfield = torch.from_numpy(self.hounsfield[indices]).to(device).float()
        return hounsfield, torch.from_numpy(self.lungs[indices]).to(device).float() / 255

    def pixels(self, indices: npt.NDArray[np.int64], device: str = "cpu") -> Tensor:
        """The networks' input of some slices, N x 3 x 336 x 336, 0 to 1."""
        return channels(*self.crops(indices, device))


@dataclass(frozen=True)
class Split:
    """Indices of the slices to train on and of those set aside."""

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def read_slices(folder: Path, progress: Callable[[list[Path]], Iterable[Path]] = iter) -> Slices:
    """Read every slice below `folder`.

    Patients come from `patients.csv` where it is there, and else from the DICOM files themselves. A slice that cannot be
    read or calibrated, or shows no lungs, is left out, and listed in `refused`; what is no slice by its name or beginning, in
    `passed_over`.

    Args:
        progress: gives the files one by one, such as `tqdm`.

    Raises:
        InputError: the folder is none of this kind, a class has no slice that can be used, or
            `patients.csv` does not name one patient for every slice that is used.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder", _EXPECTED)
    visible = [path for label in CLASSES for path in _visible(folder / label)]
    files = [path for path in visible if path.is_file() and _is_slice(path)]
    _check_classes(folder, files)
    listing = folder / PATIENTS_FILE
    names = {path.relative_to(folder).as_posix() for path in files}
    listed = _listed_patients(listing, names) if listing.is_file() else None  # before the slices, which take minutes
    used, crops, refused = [], [], []
    for path in progress(files):
        try:
            crops.append(LungCrop.find(as_hounsfield(read_slice(path))))
            used.append(path)
        except InputError as error:
            refused.append((path.relative_to(folder).as_posix(), path.parent.name, f"{error.found}; expected {error.expected}"))
    _check_classes(folder, used)
    return Slices(
        np.stack([crop.hounsfield for crop in crops]),
        np.stack([crop.lungs for crop in crops]),
        np.array([CLASSES.index(path.parent.name) for path in used]),
        _patients(folder, used, listed),
        tuple(path.relative_to(folder).as_posix() for path in used),
        tuple(refused),
        tuple(path.relative_to(folder).as_posix() for path in sorted(set(visible) - set(files))),
    )


def _check_classes(folder: Path, files: list[Path]) -> None:
    missing = [label for label in CLASSES if not any(path.parent.name == label for path in files)]
    if missing:
        raise InputError(folder, f"no slices of class {', '.join(missing)}", _EXPECTED)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _is_slice(path: Path) -> bool:
    """A picture by its suffix, or DICOM; what has no suffix, such as LICENSE, is DICOM only if it begins so."""
    if path.suffix:
        return path.suffix.lower() in PICTURE_SUFFIXES or is_dicom(path)
    return dicom.is_slice(path, unreadable=True)  # reading it will say what is wrong


def _patients(folder: Path, files: list[Path], listed: Mapping[str, str] | None) -> npt.NDArray[np.str_] | None:
    """The patient of each file: as `patients.csv` lists them, or of the DICOM files where there is none."""
    if listed is not None:
        names = [path.relative_to(folder).as_posix() for path in files]
        unknown = [name for name in names if name not in listed]
        if unknown:
            found = f"{len(unknown)} slices have no patient, such as {unknown[0]}"
            raise InputError(folder / PATIENTS_FILE, found, "a patient for each")
        return np.array([listed[name] for name in names])
    if any(path.suffix.lower() in PICTURE_SUFFIXES for path in files):
        return None
    patients = [_dicom_patient(path) for path in files]
    return np.array(patients) if all(patients) else None


def _listed_patients(path: Path, files: Collection[str]) -> dict[str, str]:
    """The patient of each of the files that has one."""
    try:
        patients: dict[str, str] = {}
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if not {"file", "patient"} <= set(reader.fieldnames or ()):
                raise InputError(path, f"its columns are {', '.join(reader.fieldnames or ())}", "file and patient")
            for row in reader:
                file, patient = row["file"], (row["patient"] or "").strip()
                if file in files and patient and patients.setdefault(file, patient) != patient:
                    raise InputError(path, f"{file} is of two patients, {patients[file]} and {patient}", "one for each file")
        return patients
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read ({reason(error)})", "a CSV file in UTF-8") from error


def _dicom_patient(path: Path) -> str:
    """A digest of the patient's identifier, which is enough to group by; the identifier itself goes nowhere."""
    identifier = (dicom.read_tags(path) or {}).get(_PATIENT_ID, "").strip()
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
    """80 % and 20 %, each class in about its share, no patient on both sides: the first of `folds_by_patient`.

    Raises:
        ValueError: patients are not known, or a class has fewer than five.
    """
    return folds_by_patient(slices, round(1 / TEST_SHARE), state)[0]


def folds_by_patient(slices: Slices, folds: int = 5, state: int = SPLIT_STATE) -> list[Split]:
    """Each slice is set aside once; no patient is on both sides of a split.

    Raises:
        ValueError: patients are not known, or a class has fewer than there are folds.
    """
    if slices.patients is None:
        raise ValueError("the patients are not known")
    for index, label in enumerate(CLASSES):
        count = len(set(slices.patients[slices.labels == index]))
        if count < folds:
            raise ValueError(f"class {label} has {count} patients, expected at least {folds}")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    return [Split(train, test) for train, test in splitter.split(slices.labels, slices.labels, slices.patients)]


def validates_by(slices: Slices, indices: npt.NDArray[np.int64]) -> SplitName:
    """How `part_of` sets slices aside: by patient where patients are known and each class has five, else by image."""
    if slices.patients is None:
        return "image"
    labels, patients = slices.labels[indices], slices.patients[indices]
    fewest = min(len(set(patients[labels == index])) for index in range(len(CLASSES)))
    return "patient" if fewest >= round(1 / TEST_SHARE) else "image"


def part_of(slices: Slices, indices: npt.NDArray[np.int64]) -> Split:
    """Set a fifth of some slices aside for validation, by patient or by image as `validates_by` says.

    Raises:
        ValueError: a class has fewer than two of the slices, or there are too few in all.
    """
    labels = slices.labels[indices]
    for index, label in enumerate(CLASSES):
        if (count := int((labels == index).sum())) < 2:
            raise ValueError(f"class {label} has {count} slices to train on, expected at least 2")
    if slices.patients is not None and validates_by(slices, indices) == "patient":
        splitter = StratifiedGroupKFold(round(1 / TEST_SHARE), shuffle=True, random_state=SPLIT_STATE)
        train, test = next(splitter.split(labels, labels, slices.patients[indices]))
    else:
        train, test = train_test_split(np.arange(len(indices)), test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_STATE)
    return Split(indices[train], indices[test])
