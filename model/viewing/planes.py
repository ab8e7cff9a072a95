"""Pictures of one slice in any of the three planes: CT through a window, the activation maps over it, square pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..rendering import COLOURS, overlay
from ..slices.images import LUNG_WINDOW, Picture, Window

PlaneName = Literal["axial", "coronal", "sagittal"]
AXES: dict[PlaneName, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
"""Which axis of a z, y, x array each plane's slices are counted along."""

WINDOWS = {
    "lung": LUNG_WINDOW,
    "emphysema": Window(-875, 350),
    "mediastinum": Window(40, 400),
    "bone": Window(400, 1800),
}

LARGEST_SIDE = 900
"""Pixels: a larger picture would only take longer to send."""


def plane_slice(volume: np.ndarray, plane: PlaneName, index: int) -> np.ndarray:
    """Cut a z, y, x volume: axial slices are seen from the feet, coronal ones from the front, sagittal ones from the left.

    The head is up in the last two; the patient's right is on the picture's left in the first two, the front in the last.
    """
    cut = volume.take(index, AXES[plane])
    return cut if plane == "axial" else cut[::-1]


def plane_picture(
    hounsfield: np.ndarray | None,
    maps: Mapping[str, np.ndarray],
    plane: PlaneName,
    index: int,
    spacing: tuple[float, float, float],
    window: Window = LUNG_WINDOW,
    opacity: float = 0.65,
) -> Picture:
    """Draw one slice.

    Args:
        hounsfield: z, y, x; HU. None where there is no CT: maps are drawn on black.
        maps: of each subtype to draw: z, y, x; uint8, or float 0 to 1.
        index: of the slice, from 0 at the base, front, or right.
        spacing: z, y, x; mm.
        opacity: of the maps where their activation is 1; 0 to 1.
    """
    if hounsfield is not None:
        grey = window.grey(plane_slice(hounsfield, plane, index))
    else:
        grey = np.zeros(plane_slice(next(iter(maps.values())), plane, index).shape, np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=2)
    for subtype, activation in maps.items():
        pixels = overlay(pixels, plane_slice(activation, plane, index), COLOURS[subtype], opacity)
    return _square_pixels(pixels, [distance for axis, distance in enumerate(spacing) if axis != AXES[plane]])


def _square_pixels(pixels: Picture, spacing: list[float]) -> Picture:
    rows, columns, _ = pixels.shape
    height_mm, width_mm = rows * spacing[0], columns * spacing[1]
    scale = min(1 / min(spacing), LARGEST_SIDE / max(height_mm, width_mm))
    size = (max(round(width_mm * scale), 1), max(round(height_mm * scale), 1))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def heat_over(picture: Picture, attention: npt.NDArray[np.float32], opacity: float = 0.5) -> Picture:
    """Lay what a network looked at (rows x columns, 0 to 1) over a picture, in the colour of centrilobular maps."""
    return overlay(picture, attention, COLOURS["centrilobular"], opacity)


def png(picture: Picture) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
