"""Image files and DICOM series, checked before and after the library reads them, as volumes with their warnings."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, check_name, printable
from . import dicom
from .geometry import ImageGeometry
from .integrity import check_grid, check_header, check_payload, data_file_of, has_checksum, matches_checksum
from .memory import check_memory
from .native import captured_stderr

logger = logging.getLogger(__name__)

FILE_SUFFIXES = (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")
FORMATS = f"{', '.join(FILE_SUFFIXES)} or a folder that holds one DICOM series"

DICOM_READER = "GDCMImageIO"
_READERS = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nii": "NiftiImageIO",
    ".gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
}
"""SimpleITK's reader for each suffix; a file with any other suffix goes to the reader of DICOM."""

SPACING_MM = (0.01, 100.0)
"""The smallest and the largest voxel spacing that is accepted."""


def is_image_file(name: str) -> bool:
    """Whether a file holds a whole volume, by its name; DICOM files do not count."""
    return name.lower().endswith(FILE_SUFFIXES)


@dataclass(frozen=True)
class Volume:
    """A 3D image as it was read, on its file's grid.

    Attributes:
        image: one number per voxel. It belongs to the volume: a `Scan` keeps a view of its voxels, so nothing may write to it.
        name: file or folder, for messages.
        warnings: what is unusual about the file and does not prevent its use, one sentence each.
        slice_thickness_mm: as a DICOM series has it; else None.
        modality: as `dicom.Series` has it; empty for other formats.
    """

    image: sitk.Image
    name: str
    warnings: tuple[str, ...] = ()
    slice_thickness_mm: float | None = None
    modality: str = ""

    @classmethod
    def copy_of(cls, image: sitk.Image, name: str) -> Volume:
        """A volume of an image in memory, which the caller may change afterwards.

        Raises:
            InputError: not a 3D image with one number per voxel, or a grid that `read_header` refuses.
        """
        image = _three_dimensional(image)
        _check_voxels(name, image.GetSize(), image.GetNumberOfComponentsPerPixel())
        _voxel_bytes(image, name)
        _check_geometry(name, ImageGeometry.of(image))
        return cls(sitk.Image(image), name)

    @property
    def geometry(self) -> ImageGeometry:
        return ImageGeometry.of(self.image)


def files_behind(path: Path) -> list[Path]:
    """The files that hold an image: the file itself, with an .mhd header the voxels that it names and what has its name, or
    those of a series' folder.

    Raises:
        OSError: the folder cannot be listed, or a header not be read.
    """
    if path.is_dir():
        return sorted(inside for inside in path.iterdir() if inside.is_file())
    if path.suffix.lower() == ".mhd":
        files = {beside for beside in path.parent.iterdir() if beside.is_file() and beside.stem == path.stem}
        with contextlib.suppress(InputError):  # which is said when the image is read
            files.add(data_file_of(path))
        return sorted(files)
    return [path]


@dataclass(frozen=True)
class Header:
    """What is known of a 3D image before its voxels are read.

    Attributes:
        size: x, y, z.
        voxel_bytes: of all voxels in memory.
        geometry: None for a series of several files, whose grid follows from all of them.
        warnings: as `Volume` has them.
    """

    size: tuple[int, int, int]
    voxel_bytes: int
    geometry: ImageGeometry | None
    warnings: tuple[str, ...] = ()


def read_header(path: Path | str) -> Header:
    """Read and check the header of a file or of a folder's DICOM series, without its voxels.

    Raises:
        InputError: it is missing, empty, no image, not a 3D image with one number per voxel, or too large for the memory.
    """
    path = Path(path)
    with _readable(path):
        return _checked_header(path, _series_of(path))


def _checked_header(path: Path, series: dicom.Series) -> Header:
    several = len(series.files) > 1
    reader = _file_information(path, series.files[0])
    geometry = _in_three_dimensions(ImageGeometry.of(reader))
    size = geometry.size
    if several and size[2:] in ((), (1,)):
        size = (*size[:2], len(series.files))
    checked_size = _check_voxels(path, size, reader.GetNumberOfComponents())
    voxel_bytes = _voxel_bytes(reader, path)
    check_memory(path, math.prod(size), voxel_bytes)
    # The distance of several files follows from their positions, not from a tag of the first: it is checked after reading.
    geometry = series.geometry or geometry
    _check_geometry(path, geometry, axes=2 if several else 3)
    warnings = series.warnings if path.is_dir() else (*series.warnings, *check_grid(path, geometry))
    return Header(checked_size, math.prod(size) * voxel_bytes, None if several else geometry, warnings)


def _in_three_dimensions(geometry: ImageGeometry) -> ImageGeometry:
    """A grid without the axes beyond the third, if there is one place along each of them."""
    count = len(geometry.size)
    if count <= 3 or geometry.size[3:] != (1,) * (count - 3):
        return geometry
    direction = np.reshape(geometry.direction, (count, count))[:3, :3]
    return ImageGeometry(geometry.size[:3], geometry.spacing[:3], geometry.origin[:3], tuple(direction.ravel().tolist()))


def _three_dimensional(image: sitk.Image) -> sitk.Image:
    """An image without the axes beyond the third, if there is one place along each of them."""
    further = image.GetSize()[3:]
    return image[(slice(None),) * 3 + (0,) * len(further)] if further and set(further) == {1} else image


def _check_voxels(source: Path | str, size: tuple[int, ...], components: int) -> tuple[int, int, int]:
    if components != 1:
        raise InputError(source, f"{components} numbers per voxel", "a scalar image")
    if len(size) == 3 and size[2] == 1 < min(size[:2]):
        expected = "a 3D volume; of a DICOM series, the folder of its slices"
        raise InputError(source, f"one slice of {size[0]} x {size[1]} pixels", expected)
    if len(size) != 3 or min(size) < 2:
        raise InputError(source, f"a {len(size)}D image of {' x '.join(map(str, size))} voxels", "a 3D volume")
    x, y, z = size
    return x, y, z


def _check_geometry(source: Path | str, geometry: ImageGeometry, axes: int = 3) -> None:
    """Check a grid, and its spacing along the first `axes` axes."""
    low, high = SPACING_MM
    if not all(low <= distance <= high for distance in geometry.spacing[:axes]):
        raise InputError(source, f"a voxel spacing of {geometry.spacing}", f"spacings of {low} to {high:.0f} mm")
    if not np.isfinite(geometry.origin).all():
        raise InputError(source, f"an origin of {geometry.origin}", "finite numbers")
    cosines = np.reshape(geometry.direction, (3, 3))
    if not np.abs(cosines.T @ cosines - np.eye(3)).max() < 0.01:
        raise InputError(
            source, "axes that are not at right angles", "a direction matrix of three unit vectors at right angles"
        )


def read_volume(path: Path | str) -> Volume:
    """Read a 3D image with one number per voxel from a file, or from a folder that holds one DICOM series.

    Raises:
        InputError: as `read_header`, or the voxels are cut off or damaged.
    """
    path = Path(path)
    with _readable(path):
        series = _series_of(path)
        files = series.files
        header = _checked_header(path, series)
        needed = header.voxel_bytes
        with_checksum = has_checksum(path)
    with ThreadPoolExecutor(1) as beside:  # a check that decompresses the file runs beside the reader, to save time
        check = partial(check_payload, path, needed) if with_checksum else beside.submit(check_payload, path, needed).result
        try:
            with captured_stderr() as messages:
                image = _series(files) if len(files) > 1 else _file_reader(path, files[0]).Execute()
        except RuntimeError as error:
            check()
            raise InputError(path, f"its voxels cannot be read{_reason(path, error, messages)}", "a whole file") from error
        with _readable(path):
            whole = with_checksum and matches_checksum(path, sitk.GetArrayViewFromImage(image))
        if not whole:
            check()
    complaint = " ".join(messages)
    if "Uncompress failed" in complaint or "not read completely" in complaint:
        raise InputError(path, "its voxels are damaged", "a whole file")
    if complaint:
        logger.info("%s: the reader complained%s", printable(str(path)), _reason(path, None, messages))
    image = _three_dimensional(image)
    if series.geometry:
        series.geometry.apply(image)
    _check_geometry(path, ImageGeometry.of(image))
    return Volume(image, str(path), header.warnings, series.slice_thickness_mm, series.modality)


def check_ct(volume: Volume) -> None:
    """Check that a volume is no image of another modality than CT; only DICOM files say so.

    Raises:
        InputError: it is.
    """
    if volume.modality not in dicom.CT_MODALITIES:
        raise InputError(volume.name, f"images of modality {volume.modality}", "a CT in HU")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into an `InputError` about `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error.strerror})", "a file or folder that can be read") from error


def _file_reader(path: Path, file: Path) -> sitk.ImageFileReader:
    """A reader for one file, which is `path` itself or a slice in that folder."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO(DICOM_READER if path.is_dir() else _reader_name(path))
    return reader


def _series(files: tuple[Path, ...]) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    reader.SetImageIO(DICOM_READER)
    return reader.Execute()


def _reader_name(path: Path) -> str:
    return _READERS.get(path.suffix.lower(), DICOM_READER)


def _file_information(path: Path, file: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of one file, which is `path` itself or a slice in that folder."""
    reader = _file_reader(path, file)
    try:
        with captured_stderr() as messages:
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(path, f"not an image that can be read{_reason(path, error, messages)}", FORMATS) from error
    return reader


def _reason(path: Path, error: RuntimeError | None, messages: list[str]) -> str:
    """What the library printed, or else the last line of its exception: the lines before name source files.

    Quotations from the file are left out, because they may name the patient. The reader of DICOM quotes without quotation
    marks, so nothing of it is repeated.
    """
    if path.is_dir() or _reader_name(path) == DICOM_READER:
        return ""
    said = [line for before, line in pairwise(("", *messages)) if not (_ITK_WARNING.match(before) or _ITK_WARNING.match(line))]
    if not said and error is not None:
        said = [str(error).strip().splitlines()[-1].rpartition("ERROR: ")[2]]
    return " ({})".format(re.sub(r'".*"', '"..."', said[0])) if said else ""


_ITK_WARNING = re.compile(r"WARNING: In .*, line \d+$")
"""The first of two lines: it names a source file of the library."""


def _voxel_bytes(image: sitk.Image | sitk.ImageFileReader, source: Path | str) -> int:
    try:
        return int(np.dtype(_NUMPY_TYPES[image.GetPixelID()]).itemsize)
    except KeyError:
        kind = sitk.GetPixelIDValueAsString(image.GetPixelID())
        raise InputError(source, f"voxels of type {kind}", "integers or floating-point numbers") from None


_NUMPY_TYPES = {
    sitk.sitkInt8: np.int8,
    sitk.sitkUInt8: np.uint8,
    sitk.sitkInt16: np.int16,
    sitk.sitkUInt16: np.uint16,
    sitk.sitkInt32: np.int32,
    sitk.sitkUInt32: np.uint32,
    sitk.sitkInt64: np.int64,
    sitk.sitkUInt64: np.uint64,
    sitk.sitkFloat32: np.float32,
    sitk.sitkFloat64: np.float64,
}


def _series_of(path: Path) -> dicom.Series:
    """The files behind a path, in the order of their slices, which were checked as far as the library's readers do not."""
    if path.is_dir():
        series: dicom.Series | None = dicom.read_series(path)
    else:
        if not is_image_file(path.name) and path.suffix.lower() not in ("", *dicom.SUFFIXES):
            raise InputError(path, f"files of type {path.suffix} are not read", FORMATS)
        if not path.is_file():
            raise InputError(path, "not a file" if path.exists() else "no such file", FORMATS)
        if path.stat().st_size == 0:
            raise InputError(path, "the file is empty", FORMATS)
        check_header(path)
        series = dicom.read_file(path) if _reader_name(path) == DICOM_READER else dicom.Series((path,))
    if series is None:
        raise InputError(path, "not an image that can be read", FORMATS)
    for file in series.files:
        check_name(file)
    return series
