"""What the slice networks see: the lungs of one slice, cropped, as HU in two windows and the lung mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .calibration import LOWEST_HU, Hounsfield, Mask, find_lungs

INPUT_SIZE = 336
"""Rows and columns of a crop: about a millimetre a pixel."""

PAPER_SIZE = 224
"""What the paper's networks see of it (its section IV B), and the residual network."""

ASPECT = 4 / 3
"""Width over height of the crop, which all slices share: both lungs are wider than high."""

MARGIN = 0.06
"""Around the lungs, in shares of the crop: the pleura and some chest wall must be seen, paraseptal emphysema lies there."""

_LEAST_HEIGHT = 80
"""Pixels of a crop from top to bottom: in fewer, emphysema cannot be told from lungs that are blurred."""

HIGHEST_HU = 300.0

WIDE_WINDOW = (-1024.0, 176.0)
NARROW_WINDOW = (-1010.0, -760.0)
"""HU that the first two channels show, from 0 to 1: all tissue, and what tells emphysema from parenchyma."""


@dataclass(frozen=True)
class Crop:
    """Where a crop lies in its slice, in pixels; it may reach beyond the slice.

    Attributes:
        top, left: its first row and column.
        height, width: its size; width / height is `ASPECT`.
    """

    top: float
    left: float
    height: float
    width: float

    @classmethod
    def around(cls, lungs: Mask) -> Crop:
        """The smallest crop that holds the lungs and the margin."""
        rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
        height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
        tall = max(height, width / ASPECT) / (1 - 2 * MARGIN)
        wide = tall * ASPECT
        return cls(rows[0] + height / 2 - tall / 2, columns[0] + width / 2 - wide / 2, tall, wide)


@dataclass(frozen=True)
class LungCrop:
    """The lungs of a slice, as networks and their augmentation take them.

    Attributes:
        hounsfield: 336 x 336, float16, HU from -1024 to 300; air beyond the slice.
        lungs: 336 x 336, uint8, 0 or 255.
        crop: where it lies in the slice.
    """

    hounsfield: npt.NDArray[np.float16]
    lungs: npt.NDArray[np.uint8]
    crop: Crop

    @classmethod
    def of(cls, hounsfield: Hounsfield, lungs: Mask) -> LungCrop:
        """Crop and resize; each pixel is the mean of those that it stands for."""
        crop = Crop.around(lungs)
        levels = _resampled(hounsfield.clip(LOWEST_HU, HIGHEST_HU).astype(np.float32), crop, LOWEST_HU)
        mask = _resampled(255 * lungs.astype(np.float32), crop, 0.0)
        return cls(levels.astype(np.float16), np.where(mask > 127, 255, 0).astype(np.uint8), crop)

    @classmethod
    def find(cls, hounsfield: Hounsfield, spacing_mm: float | None = None) -> LungCrop:
        """Find the lungs of a slice, and crop it.

        Raises:
            InputError: there are none, or they are too small in the picture.
        """
        found = cls.of(hounsfield, find_lungs(hounsfield, spacing_mm))
        if found.crop.height < _LEAST_HEIGHT:
            size = f"its lungs are too small: with their margin {found.crop.width:.0f} x {found.crop.height:.0f} pixels"
            raise InputError("slice", size, f"at least {_LEAST_HEIGHT * ASPECT:.0f} x {_LEAST_HEIGHT} pixels")
        return found

    def on_slice(self, values: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Bring values on the crop's grid, of any resolution, onto the slice's; 0 outside of the crop."""
        crop, result = self.crop, np.zeros(shape, np.float32)
        top, left = max(round(crop.top), 0), max(round(crop.left), 0)
        bottom, right = min(round(crop.top + crop.height), shape[0]), min(round(crop.left + crop.width), shape[1])
        rows, columns = values.shape
        edges = np.array([left - crop.left, top - crop.top, right - crop.left, bottom - crop.top])
        scale = np.array([columns / crop.width, rows / crop.height] * 2)
        box = tuple((edges * scale).clip(0, [columns, rows] * 2).tolist())
        size = (right - left, bottom - top)
        result[top:bottom, left:right] = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR, box=box))
        return result


def channels(hounsfield: Tensor, lungs: Tensor) -> Tensor:
    """What a network takes of N crops.

    Args:
        hounsfield: N x 336 x 336, HU.
        lungs: N x 336 x 336, 0 to 1.

    Returns:
        N x 3 x 336 x 336, 0 to 1: the wide window, the narrow one, the lungs.
    """
    windows = [((hounsfield - low) / (high - low)).clamp(0, 1) for low, high in (WIDE_WINDOW, NARROW_WINDOW)]
    return torch.stack([*windows, lungs], dim=1).contiguous(memory_format=torch.channels_last)


def shrunk(pixels: Tensor) -> Tensor:
    """Crops at the paper's size: N x 3 x 336 x 336 to N x 3 x 224 x 224; each pixel is the mean of those it stands for."""
    if pixels.shape[2] == PAPER_SIZE:
        return pixels
    small = functional.interpolate(pixels, (PAPER_SIZE, PAPER_SIZE), mode="area")
    return small.contiguous(memory_format=torch.channels_last)


def _resampled(picture: npt.NDArray[np.float32], crop: Crop, beyond: float) -> npt.NDArray[np.float32]:
    rows, columns = picture.shape
    before = int(np.ceil(max(-crop.top, -crop.left, 0))) + 1
    after = int(np.ceil(max(crop.top + crop.height - rows, crop.left + crop.width - columns, 0))) + 1
    padded = Image.fromarray(np.pad(picture, (before, after), constant_values=beyond))
    left, top = crop.left + before, crop.top + before
    box = (left, top, left + crop.width, top + crop.height)
    return np.asarray(padded.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR, box=box))
