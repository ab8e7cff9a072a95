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

from ..errors import InputError
from ..imaging.dicom import read_series, silent
from ..imaging.geometry import ImageGeometry

if TYPE_CHECKING:
    from pydicom import Dataset

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

        Raises:
            InputError: the series is not made of single slices, or lacks what a derived object must refer to.
        """
        import pydicom

        if not folder.is_dir():
            raise InputError(folder, "a DICOM object that holds several slices", EXPECTED)
        files = read_series(folder).files
        with quiet(folder):
            slices = tuple(pydicom.dcmread(file, stop_before_pixels=True) for file in files)
            for header in slices:
                header.decode()  # names in several character sets, as Japanese ones, which derived objects cannot state
                header.SpecificCharacterSet = "ISO_IR 192"
                for keyword in _MAY_BE_EMPTY:
                    if keyword not in header:
                        setattr(header, keyword, "")
                if not header.get("SliceThickness"):  # may be empty in a CT, and must not be in a segmentation
                    header.SliceThickness = f"{geometry.spacing[2]:.6g}"
        if len(slices) != geometry.size[2]:
            raise InputError(folder, "a DICOM object that holds several slices", EXPECTED)
        for keyword, name in _REQUIRED.items():
            if not all(header.get(keyword) for header in slices):
                raise InputError(folder, f"slices without an identifier of their {name}", EXPECTED)
        with quiet(folder):
            found = np.array([header.ImagePositionPatient for header in slices], float)
        normal = np.reshape(geometry.direction, (3, 3))[:, 2]
        steps = np.arange(len(slices))[:, None] * geometry.spacing[2] * normal
        if np.abs((found - geometry.origin - steps) @ normal).max() > max(_TOLERANCE_MM, 0.1 * geometry.spacing[2]):
            raise InputError(folder, "slices that lie elsewhere than in the volume that was read from them", EXPECTED)
        return cls(folder, slices)


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
