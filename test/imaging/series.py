"""DICOM series as a scanner writes them, one file a slice; and Enhanced CT, one file with all slices."""

from __future__ import annotations

import contextlib
import locale
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from test.trust.mutations import set_element

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"

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


def item(**values: object) -> pydicom.Dataset:
    """An item of a sequence, or a data set."""
    made = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def write_enhanced_ct(
    image: sitk.Image,
    path: Path,
    *,
    order: Sequence[int] | None = None,
    sop_class: str = ENHANCED_CT,
    rescale: str = "shared",
    change: Callable[[pydicom.Dataset], None] = lambda _: None,
) -> Path:
    """Write one file with a frame for each slice, stored as unsigned HU + 1024.

    Args:
        image: in HU.
        path: of the file.
        order: of the slices; each may be missing or be there several times.
        sop_class: the file's class.
        rescale: where slope and intercept stand: `shared` or `frame` (functional groups), or `file`.
        change: changes the data set before it is written.
    """
    order = range(image.GetDepth()) if order is None else order
    direction, (x, y, _) = image.GetDirection(), image.GetSpacing()
    frames = [
        item(PlanePositionSequence=[item(ImagePositionPatient=list(image.TransformIndexToPhysicalPoint((0, 0, place))))])
        for place in order
    ]
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[y, x], SliceThickness="2.5")],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[direction[place] for place in (0, 3, 6, 1, 4, 7)])],
    )
    data_set = item(
        SOPClassUID=sop_class,
        SOPInstanceUID="1.2.826.0.1.3680043.2.1125.3",
        Modality="CT",
        PatientID="4711",
        StudyInstanceUID="1.2.826.0.1.3680043.2.1125.2",
        SeriesInstanceUID="1.2.826.0.1.3680043.2.1125.1",
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        NumberOfFrames=len(frames),
        Rows=image.GetHeight(),
        Columns=image.GetWidth(),
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=0,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
        PixelData=(sitk.GetArrayFromImage(image)[list(order)].astype(np.int32) + 1024).astype("<u2").tobytes(),
    )
    if rescale == "file":
        data_set.RescaleSlope, data_set.RescaleIntercept = "1", "-1024"
    for groups in {"shared": [shared], "frame": frames, "file": []}[rescale]:
        groups.PixelValueTransformationSequence = [item(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU")]
    change(data_set)
    data_set.file_meta = pydicom.dataset.FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data_set, enforce_file_format=True)
    return path
