"""`Scan`: a chest CT and its lung mask on one grid, read from files, checked, and turned into the patient's frame.

Arrays are z, y, x in the patient's frame (LPS): slices towards the head, rows towards the posterior, columns towards the
left. `Scan.to_file_grid` brings an array back to the grid that the CT file has.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from ..errors import InputError, printable
from . import dicom
from .integrity import check_header, check_payload, has_checksum, matches_checksum
from .native import captured_stderr

logger = logging.getLogger(__name__)

Box = tuple[slice, slice, slice]
"""A box of voxels: one slice an axis, z, y, x."""

FILE_SUFFIXES = (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")
IMAGE_READERS = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nii": "NiftiImageIO",
    ".gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
}
DICOM_READER = "GDCMImageIO"
"""The one reader that a file is given to: by its suffix, or else that of DICOM."""

FORMATS = f"{', '.join(FILE_SUFFIXES)} or a folder that holds one DICOM series"

AIR_HU = -1024
"""What padding and values that are not a number are read as."""

CONTROL_GROUP = Path("/sys/fs/cgroup")

SPACING_MM = (0.01, 100.0)
LUNG_VOLUME_ML = (100.0, 15000.0)
LUNG_MEAN_HU = (-1000.0, -200.0)
AERATED_HU = -500
MAX_REPLACED_FRACTION = 0.01


@dataclass(frozen=True)
class ImageGeometry:
    """Where a file's voxels lie: size, spacing (mm), origin (mm, LPS) and direction (row-major), each in x, y, z order."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> ImageGeometry:
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing)) / 1000

    def apply(self, image: sitk.Image) -> sitk.Image:
        """Give `image`, which has the same size, this geometry; return it."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def same_grid(self, other: ImageGeometry) -> bool:
        """Whether all eight corners lie within a tenth of a voxel of the other's, and sizes are equal."""
        if self.size != other.size:
            return False
        tolerance = 0.1 * min(*self.spacing, *other.spacing)
        return bool(np.abs(self._corners() - other._corners()).max() <= tolerance)

    def _corners(self) -> npt.NDArray[np.float64]:
        index = np.array(list(product(*((0, size - 1) for size in self.size))), float)
        matrix = np.reshape(self.direction, (3, 3)) * np.array(self.spacing)
        return np.array(self.origin) + index @ matrix.T


@dataclass(frozen=True)
class Orientation:
    """How a file's axes (z, y, x order) become the patient's: first transpose by `axes`, then reverse where `flips` says."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, geometry: ImageGeometry) -> Orientation:
        """The permutation and flips of axes that bring a grid closest to LPS; an oblique grid stays oblique."""
        cosines = np.reshape(geometry.direction, (3, 3))[::-1, ::-1]  # [patient axis, file axis], both z, y, x
        axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[i, a]) for i, a in enumerate(order)))
        flips = tuple(bool(cosines[i, a] < 0) for i, a in enumerate(axes))
        return cls(axes, flips)  # type: ignore[arg-type]

    def to_patient(self, array: np.ndarray) -> np.ndarray:
        """View an array on the file's grid in the patient's frame; nothing is copied."""
        return self._flipped(array.transpose(self.axes))

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """View an array in the patient's frame on the file's grid; nothing is copied."""
        return self._flipped(array).transpose(np.argsort(self.axes))

    def _flipped(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


@dataclass(frozen=True)
class Scan:
    """A CT and its lung mask in the patient's frame; make one with `Scan.read` or `Scan.from_images`.

    Attributes:
        hounsfield: z, y, x; int16, or float32 where the file holds floating-point numbers; HU.
        lung: z, y, x; bool.
        lobes: z, y, x; uint8 labels 1 to 5 (see `model.lungs.regions`) where the mask is one of lobes, else None.
        spacing: z, y, x; mm.
        geometry: the CT file's own.
        orientation: from the CT file's axes to the patient's.
        warnings: what was odd about the input and was mended, one sentence each.
    """

    hounsfield: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    lung: npt.NDArray[np.bool_]
    lobes: npt.NDArray[np.uint8] | None
    spacing: tuple[float, float, float]
    geometry: ImageGeometry
    orientation: Orientation
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, ct: Path | str, lung_mask: Path | str, *, lobes: bool = False) -> Scan:
        """Read a CT and its lung mask, and check that they can be scored.

        Args:
            ct: a .mha, .mhd, .nii, .nii.gz or .nrrd file, or a folder that holds one DICOM series; HU.
            lung_mask: likewise; any label above 0 is lung. It may lie on another grid: it is resampled onto the CT.
            lobes: whether the mask's labels are the five lobes: 1 = left upper, 2 = left lower, 3 = right upper,
                4 = right lower, 5 = right middle.

        Raises:
            InputError: a file cannot be read, or what it holds cannot be a chest CT with its lungs.
        """
        warnings: list[str] = []
        images = [_read(Path(path), warnings) for path in (ct, lung_mask)]
        scan = cls._of(*images, lobes=lobes, names=(str(ct), str(lung_mask)), copied=False)
        return replace(scan, warnings=(*warnings, *scan.warnings))

    @classmethod
    def from_images(
        cls,
        ct: sitk.Image,
        lung_mask: sitk.Image,
        *,
        lobes: bool = False,
        names: tuple[str, str] = ("CT", "lung mask"),
    ) -> Scan:
        """Make a scan of two images in memory; as `read`, with `names` of CT and mask for messages."""
        return cls._of(ct, lung_mask, lobes=lobes, names=names, copied=True)

    @classmethod
    def _of(cls, ct: sitk.Image, lung_mask: sitk.Image, *, lobes: bool, names: tuple[str, str], copied: bool) -> Scan:
        """As `from_images`; unless it is `copied`, the CT is nobody else's and the scan keeps its voxels where they are."""
        ct_name, mask_name = names
        warnings: list[str] = []
        geometry = ImageGeometry.of(ct)
        labels = _labels_on_grid(lung_mask, geometry, mask_name, warnings)
        lung = labels > 0
        _check_volume(np.count_nonzero(lung) * geometry.voxel_ml, mask_name)
        voxels = sitk.GetArrayFromImage(ct) if copied else np.asarray(_Voxels(ct))
        hounsfield = _hounsfield(voxels, lung, ct_name, warnings)
        _check_hounsfield(hounsfield, lung, ct_name)
        orientation = Orientation.of(geometry)
        z, y, x = (geometry.spacing[2 - axis] for axis in orientation.axes)
        return cls(
            hounsfield=orientation.to_patient(hounsfield),
            lung=orientation.to_patient(lung),
            lobes=orientation.to_patient(labels.copy()) if lobes else None,
            spacing=(z, y, x),
            geometry=geometry,
            orientation=orientation,
            warnings=tuple(warnings),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels in the patient's frame: z, y, x."""
        z, y, x = self.lung.shape
        return z, y, x

    def lung_box(self, margin_mm: float = 0.0) -> Box:
        """The lung's bounding box, grown on each side by ceil(margin / spacing) voxels and clipped to the image."""
        bounds = []
        for axis, (size, spacing) in enumerate(zip(self.shape, self.spacing, strict=True)):
            filled = np.flatnonzero(self.lung.any(axis=tuple(other for other in range(3) if other != axis)))
            margin = int(np.ceil(margin_mm / spacing))
            bounds.append(slice(max(int(filled[0]) - margin, 0), min(int(filled[-1]) + 1 + margin, size)))
        z, y, x = bounds
        return z, y, x

    def to_file_grid(self, array: np.ndarray) -> sitk.Image:
        """Make an image with exactly the CT file's size, spacing, origin and direction of an array in the patient's frame."""
        return self.geometry.apply(sitk.GetImageFromArray(np.ascontiguousarray(self.orientation.to_file(array))))


class _Voxels:
    """An image's voxels for `numpy.asarray`: the array, and every view of it, keeps the image alive; nothing is copied."""

    def __init__(self, image: sitk.Image) -> None:
        self._image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


def read_header(path: Path | str) -> tuple[int, int, int]:
    """Read and check what a file or DICOM folder says of itself, without its voxels; return its size in x, y, z.

    Raises:
        InputError: it is missing, empty, no image, not a 3D image of one number a voxel, or too large for the memory.
    """
    path = Path(path)
    with _readable(path):
        return _checked_header(path, _files_of(path).files)[0]


def _checked_header(path: Path, files: tuple[Path, ...]) -> tuple[tuple[int, int, int], int]:
    """The size in x, y, z, and the bytes that all voxels take."""
    reader = _file_information(path, files[0])
    if reader.GetNumberOfComponents() != 1:
        raise InputError(path, f"{reader.GetNumberOfComponents()} numbers a voxel", "a scalar image")
    size = reader.GetSize()
    if len(files) > 1 and size[2:] in ((), (1,)):
        size = (*size[:2], len(files))
    if len(size) != 3 or min(size) < 2:
        raise InputError(path, f"a {len(size)}D image of {' x '.join(map(str, size))} voxels", "a 3D volume")
    voxel_bytes = _voxel_bytes(reader, path)
    _check_memory(path, math.prod(size), voxel_bytes)
    _check_geometry(path, ImageGeometry.of(reader))
    return size, math.prod(size) * voxel_bytes


def _check_geometry(path: Path, geometry: ImageGeometry) -> None:
    low, high = SPACING_MM
    if not all(low <= distance <= high for distance in geometry.spacing):
        raise InputError(path, f"a voxel spacing of {geometry.spacing}", f"spacings of {low} to {high:.0f} mm")
    if not np.isfinite(geometry.origin).all():
        raise InputError(path, f"an origin of {geometry.origin}", "finite numbers")
    axes = np.reshape(geometry.direction, (3, 3))
    if not np.abs(axes.T @ axes - np.eye(3)).max() < 0.01:
        raise InputError(path, "axes that are not at right angles", "a direction matrix of three unit vectors at right angles")


def read_image(path: Path | str) -> sitk.Image:
    """Read a 3D scalar image from a file, or from a folder that holds one DICOM series.

    Raises:
        InputError: as `read_header` does, or the voxels are truncated or damaged.
    """
    return _read(Path(path), [])


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error.strerror})", "a file or folder that can be read") from error


def _read(path: Path, warnings: list[str]) -> sitk.Image:
    """As `read_image`; what is odd and no reason to stop is added to `warnings`."""
    with _readable(path):
        series = _files_of(path)
        files = series.files
        warnings += series.warnings
        _, needed = _checked_header(path, files)
        with_checksum = has_checksum(path)
    with ThreadPoolExecutor(1) as beside:  # a check that decompresses all of it runs at once, so that it costs little time
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
    return image


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
    return IMAGE_READERS.get(path.suffix.lower(), DICOM_READER)


def _file_information(path: Path, file: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of one file, which is `path` itself or a slice in that folder."""
    if path == file:
        if not path.name.lower().endswith(FILE_SUFFIXES) and path.suffix.lower() not in ("", *dicom.SUFFIXES):
            raise InputError(path, f"files of type {path.suffix} are not read", FORMATS)
        if not path.is_file():
            raise InputError(path, "not a file" if path.exists() else "no such file", FORMATS)
        if path.stat().st_size == 0:
            raise InputError(path, "the file is empty", FORMATS)
        check_header(path)
        if _reader_name(path) == DICOM_READER and dicom.read_tags(path) is None:
            raise InputError(path, "not an image that can be read", FORMATS)
    reader = _file_reader(path, file)
    try:
        with captured_stderr() as messages:
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(path, f"not an image that can be read{_reason(path, error, messages)}", FORMATS) from error
    return reader


def _reason(path: Path, error: RuntimeError | None, messages: list[str]) -> str:
    """What the library printed, which says more, or else the last line that it raised: those before name source files.

    What it quotes from the file is left out, for it may name the patient; and DICOM's reader quotes without quotation marks.
    """
    if path.is_dir() or _reader_name(path) == DICOM_READER:
        return ""
    text = messages[0] if messages else str(error).strip().splitlines()[-1].rpartition("ERROR: ")[2]
    return " ({})".format(re.sub(r'".*"', '"..."', text))


def _voxel_bytes(reader: sitk.ImageFileReader, path: Path) -> int:
    try:
        return int(np.dtype(_NUMPY_TYPES[reader.GetPixelID()]).itemsize)
    except KeyError:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise InputError(path, f"voxels of type {kind}", "integers or floating-point numbers") from None


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


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or what its control group leaves, if less."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):  # only Linux tells what is free
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    for folder, limit, usage, cache in (
        (CONTROL_GROUP, "memory.max", "memory.current", "file"),  # version 2
        (CONTROL_GROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),  # version 1
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" where there is no limit
            parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage).read_text()) - int(parts[cache])  # files that were read give way
            free = min(free, int((folder / limit).read_text()) - used)
    return free


def _check_memory(path: Path, voxels: int, voxel_bytes: int) -> None:
    """Reading takes the file's own type once and a copy of it; mask and network input come on top and are smaller."""
    needed, free = 2 * voxels * voxel_bytes, available_memory()
    if needed > free:
        raise InputError(
            path,
            f"its header asks for {voxels:.3g} voxels, which take {needed / 2**30:.1f} GiB to read",
            f"an image that fits into the {free / 2**30:.1f} GiB of memory that are free",
        )


def _files_of(path: Path) -> dicom.Series:
    """A file itself, or the files of the one DICOM series in a folder, in the order of their slices."""
    series = dicom.read_series(path) if path.is_dir() else dicom.Series((path,), ())
    for file in series.files:
        try:
            str(file).encode()
        except UnicodeEncodeError:  # the library would end the process
            raise InputError(file, "the name is not valid UTF-8", "a name in UTF-8") from None
    return series


def _labels_on_grid(mask: sitk.Image, geometry: ImageGeometry, name: str, warnings: list[str]) -> npt.NDArray[np.uint8]:
    """Bring a mask to the CT's grid (nearest neighbour where it lies on another); labels above 255 count as 1.

    The result may be a view of the mask.
    """
    labels = _as_labels(sitk.GetArrayViewFromImage(mask))
    filled = np.count_nonzero(labels)
    if filled == 0:
        raise InputError(name, "the mask is empty", "labels above 0 inside the lungs")
    own = ImageGeometry.of(mask)
    if own.same_grid(geometry):
        return labels
    moving = own.apply(sitk.GetImageFromArray(labels))
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(geometry.size)
    resampler.SetOutputSpacing(geometry.spacing)
    resampler.SetOutputOrigin(geometry.origin)
    resampler.SetOutputDirection(geometry.direction)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    labels = sitk.GetArrayFromImage(resampler.Execute(moving))
    kept = np.count_nonzero(labels) * geometry.voxel_ml / (filled * own.voxel_ml)
    if kept == 0:
        raise InputError(name, "the mask does not touch the CT", "a mask in the CT's physical space")
    warnings.append(f"the mask lies on another grid than the CT and was resampled onto it, {100 * kept:.1f}% of its volume")
    return labels


def _as_labels(array: np.ndarray) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    with np.errstate(invalid="ignore"):
        whole = (array > 0) & (array <= 255) & (array == np.floor(array))
        return np.where(whole, array, array > 0).astype(np.uint8)


def _check_volume(volume_ml: float, name: str) -> None:
    low, high = LUNG_VOLUME_ML
    if not low <= volume_ml <= high:
        raise InputError(name, f"the mask holds {volume_ml:.0f} ml", f"lungs of {low:.0f} to {high:.0f} ml")


def _hounsfield(
    voxels: np.ndarray, lung: npt.NDArray[np.bool_], name: str, warnings: list[str]
) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
    if voxels.dtype.kind != "f":
        if voxels.dtype != np.int16:
            limits = np.iinfo(np.int16)
            voxels = np.clip(voxels, limits.min, limits.max).astype(np.int16)
        return voxels
    finite = np.isfinite(voxels)
    if not finite.any():
        raise InputError(name, "no voxel is a finite number", "a CT in HU")
    if not finite.all():
        inside = np.count_nonzero(lung & ~finite)
        fraction = inside / np.count_nonzero(lung)
        if fraction > MAX_REPLACED_FRACTION:
            raise InputError(
                name,
                f"{100 * fraction:.1f}% of the voxels in the lung are not finite numbers",
                f"at most {100 * MAX_REPLACED_FRACTION:.0f}%",
            )
        voxels = voxels.copy()
        replaced = _replace_not_finite(voxels, finite, lung)
        warnings.append(f"{replaced} voxels of the CT were not finite numbers and were replaced, {inside} inside the lung")
    largest = np.finfo(np.float32).max
    return np.clip(voxels, -largest, largest).astype(np.float32, copy=False)


def _replace_not_finite(voxels: np.ndarray, finite: npt.NDArray[np.bool_], lung: npt.NDArray[np.bool_]) -> int:
    """In place: inside the lung the median of the finite neighbours (3 x 3 x 3), elsewhere air; return how many."""
    missing = ~finite
    places = np.argwhere(missing & lung)
    medians = []
    for place in places:
        window = tuple(slice(max(p - 1, 0), p + 2) for p in place)
        known = voxels[window][finite[window]]
        medians.append(np.median(known) if known.size else AIR_HU)
    voxels[missing] = AIR_HU
    if len(places):
        voxels[tuple(places.T)] = medians
    return int(np.count_nonzero(missing))


def _check_hounsfield(hounsfield: np.ndarray, lung: npt.NDArray[np.bool_], name: str) -> None:
    if hounsfield.min() == hounsfield.max():
        raise InputError(name, f"every voxel is {hounsfield.flat[0]}", "a CT in HU")
    lowest, total = np.inf, 0.0
    for plane, inside in zip(hounsfield, lung, strict=True):
        if inside.any():
            values = plane[inside]
            lowest = min(lowest, float(values.min()))
            total += float(np.maximum(values, AIR_HU).sum(dtype=np.float64))
    if lowest >= AERATED_HU:
        raise InputError(
            name,
            f"nothing inside the lung mask lies below {AERATED_HU} HU (the lowest is {lowest:.0f})",
            "a CT in HU and a mask of its lungs",
        )
    mean = total / np.count_nonzero(lung)
    low, high = LUNG_MEAN_HU
    if not low <= mean <= high:
        raise InputError(
            name,
            f"the mean inside the lung mask is {mean:.0f} HU",
            f"{low:.0f} to {high:.0f} HU: a CT in HU and a mask of its lungs",
        )
