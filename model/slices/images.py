"""Slices from a file: a picture (PNG, JPEG), a DICOM file, or a volume to choose one of; to HU, and to grey for a page."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from PIL import ExifTags, Image, ImageOps
from scipy import ndimage

from ..errors import InputError, check_name
from ..imaging import dicom
from ..imaging.geometry import ImageGeometry, Orientation
from ..imaging.memory import available_memory
from ..imaging.native import captured_stderr
from ..imaging.readers import DICOM_READER, FILE_SUFFIXES, is_image_file, read_volume
from ..lungs.anatomy import largest_part
from .calibration import BRIGHTEST_AIR, LOWEST_HU, Hounsfield, calibrate

Picture = npt.NDArray[np.uint8]
"""Rows, columns, 3: red, green and blue, 0 to 255."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = f"{', '.join(PICTURE_SUFFIXES)}, one DICOM file, or a volume ({', '.join(FILE_SUFFIXES)} or a DICOM folder)"

_BYTES_A_PIXEL = 16
"""What a DICOM slice takes at most: as it is read, as floating-point numbers, and as a picture."""

_COLOURED = 30
"""Difference of red, green and blue from which on a pixel has a colour. Compression makes less of grey."""

_MOST_COLOUR = 1e-4
"""Share of coloured pixels in the patient at most. An overlay of little emphysema covers no more than a thousandth."""

_MODALITIES = (*dicom.CT_MODALITIES, "SC")
"""Of a DICOM slice: a screen capture may be one, too."""

_AXIAL = "an axial CT slice of the chest"

_LEAST_ELONGATION = 1.02
"""The ratio of a pixel's sides from which on slices are resampled: masks, crops and networks take pixels for square."""

_MOST_PIXELS = 8192
"""Rows or columns of a picture: a small file may claim pixels that fill the memory."""

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class Window:
    """What of the HU scale a grey picture shows: from black, `centre - width / 2`, to white, `centre + width / 2`."""

    centre: float = -600.0
    width: float = 1500.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"the window's width is {self.width}, expected HU above 0")

    def grey(self, hounsfield: np.ndarray) -> npt.NDArray[np.uint8]:
        """HU to grey, 0 to 255; what is not a number is black."""
        share = (np.nan_to_num(hounsfield.astype(np.float32), nan=-np.inf) - self.centre) / self.width + 0.5
        return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


LUNG_WINDOW = Window()


def read_slice(path: Path | str, number: int | None = None) -> np.ndarray:
    """Read one slice, for `as_hounsfield` and `as_picture`.

    Args:
        path: a picture; one DICOM file; or a volume, of which `number` chooses a slice.
        number: of the axial slice of a volume, from 1 at the base; files that hold one slice need none, and ignore it.

    Returns:
        as one of `read_levels`.

    Raises:
        InputError: the file cannot be read, or holds several slices and `number` names none of them.
    """
    levels = read_levels(path)
    if len(levels) == 1:
        return np.asarray(levels[0])
    if number is None or not 1 <= number <= len(levels):
        found = f"it holds {len(levels)} slices" if number is None else f"there is no slice {number}"
        raise InputError(path, found, f"a slice from 1 (at the base) to {len(levels)} (--slice)")
    return np.array(levels[number - 1])  # a copy: a view would keep the whole volume in memory


def is_dicom(path: Path) -> bool:
    """Whether a file is read as DICOM: by its name, which often is an identifier such as 1.2.840.10008.1, or its beginning."""
    name = path.name.lower()
    if name.endswith((*PICTURE_SUFFIXES, *FILE_SUFFIXES)) or not path.is_file():
        return False
    return name.endswith(".dicom") or dicom.may_be_dicom(name) or _has_preamble(path)


def _has_preamble(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_levels(path: Path | str) -> np.ndarray:
    """Read all slices of a file, for `as_picture`.

    Returns:
        slices x rows x columns in HU, from the base up; uint8 where the file holds grey levels, with a fourth dimension of
        red, green and blue where it holds colours.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(path, "no such file", FORMATS)
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return _read_picture(path)[None]
    if is_dicom(path):
        image = _read_dicom(path)
        if image.GetDepth() == 1:
            return _upright(path, image)
        image = read_volume(path).image  # which checks the order of the frames, and that they come in HU
    elif path.is_dir() or is_image_file(path.name):
        volume = read_volume(path)
        _check_modality(path, volume.modality)
        image = volume.image
    else:
        raise InputError(path, f"files of type {suffix} are not read", FORMATS)
    geometry = ImageGeometry.of(image)
    orientation = Orientation.of(geometry)
    return _with_square_pixels(orientation.to_patient(sitk.GetArrayFromImage(image)), orientation.spacing(geometry)[1:])


def _with_square_pixels(levels: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Slices whose pixels are as large along both axes, by interpolation along the axis where they are larger.

    Args:
        levels: slices x rows x columns, and perhaps colours.
        spacing: between rows and between columns, mm.
    """
    factors = np.array(spacing) / min(spacing)
    if factors.max() < _LEAST_ELONGATION:
        return levels
    every = (1, *factors, 1)[: levels.ndim]
    turned = [ndimage.zoom(np.nan_to_num(level.astype(np.float32), nan=LOWEST_HU), every[1:], order=1) for level in levels]
    rounded = np.stack(turned)
    return (rounded.round() if levels.dtype.kind in "iu" else rounded).astype(levels.dtype)


def as_picture(level: np.ndarray, window: Window) -> Picture:
    """One slice of `read_levels`: HU through the window, grey levels and colours as they are."""
    if level.ndim == 3:
        return level
    grey = level if level.dtype == np.uint8 else window.grey(level)
    return np.repeat(grey[..., None], 3, axis=2)


def as_hounsfield(level: np.ndarray) -> Hounsfield:
    """One slice of `read_levels` in HU: what comes in HU as it is, grey levels calibrated (see `calibrate`).

    Raises:
        InputError: a picture in colours, or one that cannot be calibrated.
    """
    if level.dtype != np.uint8:
        return np.nan_to_num(level.astype(np.float32), nan=LOWEST_HU)
    if level.ndim == 3:
        coloured = level.max(axis=2) - level.min(axis=2) > _COLOURED
        level = np.rint(level.mean(axis=2)).astype(np.uint8)
        if coloured.any() and coloured[_brighter_than_air(level)].mean() > _MOST_COLOUR:
            raise InputError("picture", "it is in colours", "grey levels of a CT slice, without an overlay")
    return calibrate(level)


def _brighter_than_air(level: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """The largest part that is brighter than air, and what it encloses: coloured text beside the patient hides nothing."""
    patient = ndimage.binary_fill_holes(largest_part(level > BRIGHTEST_AIR))
    return patient if patient.any() else np.ones(level.shape, bool)


def _read_picture(path: Path) -> Picture:
    try:
        with warnings.catch_warnings(record=True) as told:  # Pillow warns of damaged EXIF and of large pictures
            warnings.simplefilter("always")
            picture = _upright_picture(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(path, f"not a picture that can be read ({error})", "a whole PNG or JPEG file") from error
    if any(f"tag {ExifTags.Base.Orientation}" in str(warning.message) for warning in told):
        raise InputError(path, "its orientation (EXIF) is damaged", "a whole picture, or one without EXIF")
    return picture


def _upright_picture(path: Path) -> Picture:
    with Image.open(path, formats=("PNG", "JPEG")) as image:  # others run programs, such as Ghostscript
        if max(image.size) > _MOST_PIXELS:
            found = f"a picture of {image.width} x {image.height} pixels"
            raise InputError(path, found, f"at most {_MOST_PIXELS} pixels a side")
        if image.mode not in _EIGHT_BIT_MODES:
            raise InputError(path, f"a picture of mode {image.mode}", "8 bits a channel; save HU as DICOM instead")
        picture = ImageOps.exif_transpose(image)
        if picture.has_transparency_data:  # what is hidden may be white
            picture = picture.convert("RGBA")
            if np.asarray(picture)[..., 3].any():  # else the channel is there, and unused
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
        return np.asarray(picture.convert("RGB"))


def _read_dicom(path: Path) -> sitk.Image:
    """One DICOM file: a slice or several, in HU; or a screen capture, which is 8 bits deep and may be in colours."""
    check_name(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(DICOM_READER)
    reader.SetFileName(str(path))
    try:
        tags = dicom.read_tags(path)
        if tags is None:
            raise InputError(path, "not a DICOM file", FORMATS)
        dicom.check_grey_levels(path, tags)
        _check_kind(path, tags)
        with captured_stderr():  # what it prints may quote the patient's name
            reader.ReadImageInformation()
            needed, free = _BYTES_A_PIXEL * math.prod(reader.GetSize()), available_memory()
            if needed > free:
                found = f"its header asks for {needed / 2**30:.1f} GiB of memory"
                raise InputError(path, found, f"at most the {free / 2**30:.1f} GiB that are free")
            image = reader.Execute()
    except (OSError, RuntimeError) as error:
        raise InputError(path, "not a DICOM file that can be read", FORMATS) from error
    numbers = image.GetNumberOfComponentsPerPixel()
    if numbers != 1 and (image.GetPixelID() != sitk.sitkVectorUInt8 or numbers != 3 or image.GetDepth() != 1):
        raise InputError(path, f"{numbers} numbers a pixel", "HU, or one picture with 8 bits a colour")
    return image


def _check_modality(path: Path, modality: str) -> None:
    if modality not in _MODALITIES:
        raise InputError(path, f"an image of modality {modality}", _AXIAL)


def _check_kind(path: Path, tags: dicom.Tags) -> None:
    _check_modality(path, dicom.modality_of(tags))
    if dicom.is_localiser(tags):
        raise InputError(path, "a localiser", _AXIAL)


def _upright(path: Path, image: sitk.Image) -> np.ndarray:
    """The one slice of a DICOM file, the patient's front up and right side left, however it is stored."""
    if Orientation.of(ImageGeometry.of(image)).axes[0] != 0:
        raise InputError(path, "a coronal or sagittal slice", _AXIAL)
    image = sitk.DICOMOrient(image, "LPS")
    return _with_square_pixels(sitk.GetArrayFromImage(image), image.GetSpacing()[1::-1])
