"""A folder that holds one DICOM series: which files it is made of, and whether they are the slices of one scan.

The reader underneath takes what it can: it was seen to leave out a damaged file at the end of a series, to read a slice of
another patient or orientation, and to put 1 for a pixel spacing or a rescale slope that it could not find or read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from model.errors import InputError
from model.native import captured_stderr

SUFFIXES = (".dcm", ".ima")

_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_INTERCEPT, _SLOPE = "0028|1052", "0028|1053"
_ONE_SCAN = {"0010|0020": "patient", "0020|000d": "study", "0020|0052": "frame of reference"}
_TAGS = (_POSITION, _ORIENTATION, _PIXEL_SPACING, _INTERCEPT, _SLOPE, *_ONE_SCAN)

_TILT_DEGREES = 0.5

Slice = Mapping[str, str]
"""The tags of one file that are looked at; those that it does not have are missing."""


def series_files(folder: Path) -> tuple[str, ...]:
    """Return the files of the one series in a folder, in the order of their slices.

    Raises:
        InputError: no series or several, or a DICOM file that is none of its slices.
    """
    with captured_stderr():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if len(series) != 1:
            raise InputError(folder, f"the folder holds {len(series) or 'no'} DICOM series", "one DICOM series")
        files = tuple(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    names = {Path(file).name for file in files}
    for path in sorted(folder.iterdir()):
        if path.name not in names and _is_meant_as_slice(path):
            raise InputError(
                path, "the file is damaged, or no slice of the series beside it", "whole slices of one DICOM series"
            )
    return files


def _is_meant_as_slice(path: Path) -> bool:
    if not path.is_file() or path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def slices_of(reader: sitk.ImageSeriesReader, count: int) -> list[Slice]:
    """Collect the tags that `check_slices` looks at from a reader that has read `count` files."""
    return [
        {tag: reader.GetMetaData(index, tag) for tag in _TAGS if reader.HasMetaDataKey(index, tag)} for index in range(count)
    ]


def check_slices(folder: Path, slices: Sequence[Slice]) -> list[str]:
    """Check that slices, in their order, make one evenly spaced scan in HU; return warnings, one sentence each.

    Raises:
        InputError: a tag is missing or cannot be read, or the slices differ in one that they must share, or their distances
            differ by more than a tenth.
    """
    for tag, name in _ONE_SCAN.items():
        if len({section.get(tag, "").strip() for section in slices}) > 1:
            raise InputError(folder, f"slices of more than one {name}", "the slices of one scan")
    _shared(folder, slices, _PIXEL_SPACING, 2, "pixel spacing")
    if _shared(folder, slices, _SLOPE, 1, "rescale slope", default="1")[0] == 0:
        raise InputError(folder, "a rescale slope of 0", "one that turns stored values into HU")
    _shared(folder, slices, _INTERCEPT, 1, "rescale intercept", default="0")
    row, column = _shared(folder, slices, _ORIENTATION, 6, "orientation").reshape(2, 3)
    normal = np.cross(row, column)
    if abs(np.linalg.norm(normal) - 1) > 0.01:
        raise InputError(folder, "an orientation whose axes are not at right angles", "rows and columns at right angles")
    steps = np.diff(_numbers(folder, slices, _POSITION, 3, "position"), axis=0)
    gaps = steps @ normal
    if np.ptp(gaps) > 0.1 * abs(np.median(gaps)):
        found = f"slice distances from {np.abs(gaps).min():.2f} to {np.abs(gaps).max():.2f} mm"
        raise InputError(folder, found, "evenly spaced slices")
    along = abs(gaps.sum())
    aside = np.linalg.norm(steps.sum(axis=0) - gaps.sum() * normal)
    tilt = np.rad2deg(np.arctan2(aside, along))
    if tilt > _TILT_DEGREES:
        return [
            f"the slices are tilted by {tilt:.1f} degrees (gantry tilt), which is not corrected: volumes and maps are skewed"
        ]
    return []


def _shared(
    folder: Path, slices: Sequence[Slice], tag: str, count: int, name: str, default: str = ""
) -> npt.NDArray[np.float64]:
    """The `count` numbers of a tag that must be the same in every slice."""
    numbers = _numbers(folder, slices, tag, count, name, default)
    if np.ptp(numbers, axis=0).max() > 1e-4 * np.abs(numbers).max():  # they may be rounded
        raise InputError(folder, f"slices that differ in their {name}", f"one {name} for all slices")
    return numbers[0]


def _numbers(
    folder: Path, slices: Sequence[Slice], tag: str, count: int, name: str, default: str = ""
) -> npt.NDArray[np.float64]:
    """The numbers of a tag, one row a slice; `default` stands for a tag that is missing or empty."""
    texts = [section.get(tag, "").strip() or default for section in slices]
    try:
        numbers = np.array([[float(part) for part in text.split("\\")] for text in texts])
    except ValueError:
        numbers = np.empty((0, 0))
    if numbers.shape != (len(slices), count) or not np.isfinite(numbers).all():
        raise InputError(folder, f"slices whose {name} is missing or cannot be read", f"DICOM slices with their {name}")
    return numbers
