"""The DICOM series that a CT came from: its headers, which the derived objects refer to and take the patient and study from."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, printable
from ..imaging.dicom import read_series, silent
from ..imaging.geometry import ImageGeometry

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset
    from pydicom.tag import BaseTag

logger = logging.getLogger(__name__)

EXPECTED = "a DICOM series of single slices with patient, study and frame of reference; or no --dicom"

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes of patient and study that each object must have, with or without a value."""

_SEXES = ("M", "F", "O")
"""The values of PatientSex (DICOM PS3.3, C.7.1.1)."""

_REQUIRED = {
    "SOPClassUID": "class",
    "SOPInstanceUID": "instance",
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series",
    "FrameOfReferenceUID": "frame of reference",
}

_TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class SourceSeries:
    """The headers of a series, in the order of the slices of the volume that was read from it.

    Attributes:
        folder: where it lies; for messages.
        slices: one header for each slice, without pixels. They name the patient: `repr` leaves them out.
    """

    folder: Path
    slices: tuple[Dataset, ...] = field(repr=False)

    @classmethod
    def read(cls, folder: Path, geometry: ImageGeometry) -> SourceSeries:
        """Read the headers of the one series in a folder.

        Args:
            folder: that the CT was read from.
            geometry: of the CT as it was read; the slices must lie where it has them.

        Values of patient and study that derived objects cannot hold are left empty, which is logged without the value.

        Raises:
            InputError: the series is not made of single slices, lacks what a derived object must refer to, or has slices of the
                same instance UID; or a value in a header cannot be read.
        """
        import pydicom

        if not folder.is_dir():
            raise InputError(folder, "a DICOM object that holds several slices", EXPECTED)
        files = read_series(folder).files
        emptied: set[str] = set()
        with quiet(folder):
            slices = tuple(pydicom.dcmread(file, stop_before_pixels=True) for file in files)
            for file, header in zip(files, slices, strict=True):
                _decode(file, header)
                emptied |= _without_invalid(header)
                if not _is_length(header.get("SliceThickness")):  # may be empty in a CT, and must not be in a segmentation
                    header.SliceThickness = f"{geometry.spacing[2]:.6g}"
        if emptied:
            names = ", ".join(sorted(emptied))
            logger.info("%s: left empty in the DICOM objects, because the value is invalid: %s", printable(str(folder)), names)
        if len(slices) != geometry.size[2]:
            raise InputError(folder, "a DICOM object that holds several slices", EXPECTED)
        for keyword, name in _REQUIRED.items():
            if not all(header.get(keyword) for header in slices):
                raise InputError(folder, f"slices without an identifier of their {name}", EXPECTED)
        first: dict[str, Path] = {}
        for file, header in zip(files, slices, strict=True):
            other = first.setdefault(header.SOPInstanceUID, file)
            if other != file:
                expected = "an instance UID of its own for each slice; or no --dicom"
                raise InputError(file, f"a slice with the instance UID of {other.name}", expected)
        with quiet(folder):
            found = np.array([header.ImagePositionPatient for header in slices], float)
        normal = np.reshape(geometry.direction, (3, 3))[:, 2]
        steps = np.arange(len(slices))[:, None] * geometry.spacing[2] * normal
        if np.abs((found - geometry.origin - steps) @ normal).max() > max(_TOLERANCE_MM, 0.1 * geometry.spacing[2]):
            raise InputError(folder, "slices that lie elsewhere than in the volume that was read from them", EXPECTED)
        return cls(folder, slices)


def _decode(file: Path, header: Dataset) -> None:
    """Convert all values of a header, and its texts to UTF-8.

    Derived objects cannot state several character sets, which Japanese names need.

    Raises:
        InputError: a value cannot be read; its attribute is named.
    """
    for tag in list(header.keys()):
        try:
            element = header[tag]
            for item in (element.value or ()) if element.VR == "SQ" else ():
                item.walk(lambda *_: None)
        except Exception:  # of many kinds; their texts quote the value
            raise InputError(file, f"the value of {_name_of(tag)} cannot be read", EXPECTED) from None
    header.decode()
    header.SpecificCharacterSet = "ISO_IR 192"


def _name_of(tag: BaseTag) -> str:
    """The keyword of an attribute; its tag if it is a private one."""
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"


def _is_length(value: object) -> bool:
    """Whether a value is a positive number."""
    try:
        return float(str(value)) > 0
    except ValueError:
        return False


def _without_invalid(header: Dataset) -> set[str]:
    """Empty those attributes of patient and study that are missing or have an invalid value; return the latter."""
    invalid = {keyword for keyword in _MAY_BE_EMPTY if keyword in header and not _is_valid(header[keyword])}
    for keyword in _MAY_BE_EMPTY:
        if keyword in invalid:
            del header[keyword]
        if keyword not in header:
            setattr(header, keyword, "")
    return invalid


def _is_valid(element: DataElement) -> bool:
    """Whether derived objects can hold the value of an attribute of patient or study.

    The numbers of patient and study always count as valid: a PACS that has the CT knows it by them, however they are written.
    """
    from pydicom.datadict import dictionary_VR
    from pydicom.multival import MultiValue
    from pydicom.valuerep import DA, TM

    kind, value = dictionary_VR(element.tag), element.value or ""
    if element.keyword == "PatientSex":
        return not value or value in _SEXES
    if kind == "PN":
        return not isinstance(value, MultiValue)  # of a backslash
    try:
        {"DA": DA, "TM": TM}.get(kind, str)(value)
    except (ValueError, TypeError):
        return False
    return True


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Run pydicom and highdicom without a word: what they warn of and complain about may quote the patient's name.

    Raises:
        InputError: they failed on this series; only the kind of error is repeated.
    """
    from pydicom.config import disable_value_validation

    try:
        with silent("pydicom", "highdicom"), disable_value_validation():
            yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:
        logger.info("%s", "".join(traceback.format_tb(error.__traceback__)))
        found = f"no DICOM objects can be derived from its headers ({type(error).__name__})"
        raise InputError(folder, found, EXPECTED) from None
