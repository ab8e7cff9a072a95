"""DICOM series as a scanner writes them, one file a slice."""

from __future__ import annotations

import contextlib
import locale
from collections.abc import Callable, Iterator
from pathlib import Path

import SimpleITK as sitk

from test.trust.mutations import set_element

IDENTIFIERS = {
    "0010|0010": "Zweistein^Ottilie",
    "0010|0020": "4711-0815",
    "0010|0030": "19551105",
    "0010|0040": "F",
    "0008|0050": "A-77",
    "0008|0090": "Sankt^Nirgendwo",
    "0020|0010": "S-12",
}
"""Patient's name, number, date of birth and sex; accession number, physician and study number."""

SCANNER_TAGS = {
    **IDENTIFIERS,
    "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
    "0008|0020": "20250102",
    "0008|0030": "101112",
    "0020|0011": "3",
    "0020|0052": "1.2.826.0.1.3680043.2.1125.9",
    "0018|0050": "2.5",
}
"""With class, date and time of the study, series number, frame of reference and slice thickness: as a scanner has them."""


@contextlib.contextmanager
def locale_kept() -> Iterator[None]:
    """SimpleITK's writer of DICOM switches the process's locale to C, also in fixtures that outlive a test."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@locale_kept()
def write_dicom_series(
    image: sitk.Image,
    folder: Path,
    *,
    without: int | None = None,
    slope: float = 1,
    intercept: float = 0,
    tags: Callable[[int], dict[str, str]] = lambda _: {},
) -> Path:
    """Write one file a slice, as a scanner does: stored values are (HU - intercept) / slope; `tags` adds some to a slice.

    The writer would rescale values by the tags that it is given, and knows whole slopes only: they are set in the files.
    """
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for index in range(image.GetDepth()):
        if index == without:
            continue
        section = sitk.Cast((sitk.Cast(image[:, :, index], sitk.sitkFloat64) - intercept) / slope, sitk.sitkInt16)
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        for tag, value in {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{index}",
            "0020|0013": str(index),
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "\\".join(str(direction[place]) for place in (0, 3, 6, 1, 4, 7)),
            "0028|1053": "1",
            "0028|1052": "0",
            **tags(index),
        }.items():
            section.SetMetaData(tag, value)
        path = folder / f"{index:04d}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(section)
        data = set_element(path.read_bytes(), (0x28, 0x1053), str(slope).encode())
        path.write_bytes(set_element(data, (0x28, 0x1052), str(intercept).encode()))
    return folder
