"""One slice from a file: a picture (PNG, JPEG), a single DICOM file, or a chosen slice of a volume; HU through a window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from PIL import Image

from model.errors import InputError
from model.scan import FILE_SUFFIXES, ImageGeometry, Orientation, read_image

Picture = npt.NDArray[np.uint8]
"""Rows, columns, 3: red, green and blue, 0 to 255."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
DICOM_SUFFIXES = (".dcm", ".ima", "")
FORMATS = f"{', '.join(PICTURE_SUFFIXES)}, one DICOM file, or a volume ({', '.join(FILE_SUFFIXES)} or a DICOM folder)"

INPUT_SIZE = 224
"""Rows and columns of what the networks see (the paper, section IV B)."""

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


def read_slice(path: Path | str, number: int | None = None, window: Window = LUNG_WINDOW) -> Picture:
    """Read one slice as a picture.

    Args:
        path: a picture, which is taken as it is; one DICOM file; or a volume, of which `number` chooses a slice.
        number: of the axial slice of a volume, from 1 at the base; None where the file holds one slice.
        window: for files that hold HU.

    Raises:
        InputError: the file cannot be read, or holds several slices and `number` names none of them.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(path, "no such file", FORMATS)
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return _read_picture(path)
    if path.is_file() and suffix in DICOM_SUFFIXES:
        image = _read_dicom(path)
        if image.GetSize()[2] == 1:
            return _from_dicom(image, window)
    elif path.is_dir() or path.name.lower().endswith(FILE_SUFFIXES):
        image = read_image(path)
    else:
        raise InputError(path, f"files of type {suffix} are not read", FORMATS)
    return _grey_picture(window.grey(_chosen_slice(image, number, path)))


def resized(picture: Picture) -> Picture:
    """Bring a picture to the networks' 224 x 224, whatever its proportions, as the paper does."""
    return np.asarray(Image.fromarray(picture).resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR))


def _read_picture(path: Path) -> Picture:
    try:
        with Image.open(path) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise InputError(path, f"a picture of mode {image.mode}", "8 bits a channel; save HU as DICOM instead")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(path, f"not a picture that can be read ({error})", "a whole PNG or JPEG file") from error


def _read_dicom(path: Path) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(path, "not a DICOM file that can be read", FORMATS) from error
    return image


def _from_dicom(image: sitk.Image, window: Window) -> Picture:
    """A slice in HU through the window; a screen capture, which is 8 bits deep, as it is."""
    pixels = sitk.GetArrayFromImage(image)[0]
    if image.GetNumberOfComponentsPerPixel() == 3:
        return np.ascontiguousarray(pixels.astype(np.uint8))
    return _grey_picture(pixels if pixels.dtype == np.uint8 else window.grey(pixels))


def _chosen_slice(image: sitk.Image, number: int | None, path: Path) -> np.ndarray:
    volume = Orientation.of(ImageGeometry.of(image)).to_patient(sitk.GetArrayViewFromImage(image))
    if number is None or not 1 <= number <= len(volume):
        found = f"it holds {len(volume)} slices" if number is None else f"there is no slice {number}"
        raise InputError(path, found, f"a slice from 1 (at the base) to {len(volume)} (--slice)")
    return np.array(volume[number - 1])


def _grey_picture(grey: npt.NDArray[np.uint8]) -> Picture:
    return np.repeat(grey[..., None], 3, axis=2)
