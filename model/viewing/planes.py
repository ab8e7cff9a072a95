"""Pictures of one slice in any of the three planes: CT through a window, the activation maps over it, square pixels.

`labelled` adds what a picture needs where the page is not beside it: sides, scale, legend, position and the disclaimer.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .. import DISCLAIMER
from ..rendering import AXES, COLOURS, CONTOUR_COLOUR, Plane, contour, overlay, plane_slice
from ..slices.images import LUNG_WINDOW, Picture, Window

WINDOWS = {
    "lung": LUNG_WINDOW,
    "emphysema": Window(-875, 350),
    "mediastinum": Window(40, 400),
    "bone": Window(400, 1800),
}

SIDES: dict[Plane, tuple[str, str, str, str]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
"""What lies at the left, right, top and bottom of a picture: right, left, anterior, posterior, superior, inferior."""

OUTLINED_ACTIVATION = 0.5
"""Maps are outlined where their activation reaches this: solid for centrilobular, dashed for paraseptal emphysema."""
HEAT_OPACITY = 0.5
DASH_VOXELS = 3

SCALE_BARS_MM = (100, 50, 20, 10, 5)
_FONT_SIZE = 15
_STRIP = 24
_NARROWEST = 420
_SHORTEST_LONG_SIDE = 540

LARGEST_SIDE = 900
"""Pixels: a larger picture would only take longer to send."""


@dataclass(frozen=True)
class Slab:
    """A maximum or minimum intensity projection through some mm: vessels stand out in the one, emphysema in the other."""

    projection: Literal["maximum", "minimum"]
    thickness_mm: float

    def of(self, hounsfield: np.ndarray, plane: Plane, index: int, spacing: tuple[float, float, float]) -> np.ndarray:
        """The projection of the slices around `index`, as many as come nearest to the thickness, as a volume of one slice."""
        axis = AXES[plane]
        count = max(math.floor(self.thickness_mm / spacing[axis] + 0.5), 1)
        low = max(index - (count - 1) // 2, 0)
        high = min(index + count // 2, hounsfield.shape[axis] - 1)
        part = hounsfield[tuple(slice(low, high + 1) if other == axis else slice(None) for other in range(3))]
        reduced: np.ndarray = (np.max if self.projection == "maximum" else np.min)(part, axis=axis, keepdims=True)
        return reduced


SLABS = {
    "one slice": None,
    "maximum, 10 mm": Slab("maximum", 10.0),
    "minimum, 10 mm": Slab("minimum", 10.0),
    "minimum, 20 mm": Slab("minimum", 20.0),
}


def plane_picture(
    hounsfield: np.ndarray | None,
    maps: Mapping[str, np.ndarray],
    plane: Plane,
    index: int,
    spacing: tuple[float, float, float],
    window: Window = LUNG_WINDOW,
    opacity: float = 0.65,
    lung: npt.NDArray[np.bool_] | None = None,
    outlined: bool = False,
    slab: Slab | None = None,
) -> Picture:
    """Draw one slice.

    Args:
        hounsfield: z, y, x; HU. None where there is no CT: maps are drawn on black.
        maps: of each subtype to draw: z, y, x; uint8, or float 0 to 1.
        index: of the slice, from 0 at the base, front, or right.
        spacing: z, y, x; mm.
        opacity: of the maps where their activation is 1; 0 to 1.
        lung: z, y, x; draw its contour; None for none.
        outlined: whether to outline the maps as well, so that they can be told apart without colours.
        slab: show the extreme HU of the slices around this one; maps and contour stay those of the one slice.
    """
    if hounsfield is not None:
        if slab is not None:
            hounsfield, level = slab.of(hounsfield, plane, index, spacing), 0
        else:
            level = index
        grey = window.grey(plane_slice(hounsfield, plane, level))
    else:
        grey = np.zeros(plane_slice(next(iter(maps.values())), plane, index).shape, np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=2)
    for subtype, activation in maps.items():
        cut = plane_slice(activation, plane, index)
        pixels = overlay(pixels, cut, COLOURS[subtype], opacity)
        if outlined:
            highest = 255 if activation.dtype == np.uint8 else 1
            edge = contour(cut >= OUTLINED_ACTIVATION * highest)
            pixels[edge & _dashes(edge.shape) if subtype == "paraseptal" else edge] = COLOURS[subtype]
    if lung is not None:
        pixels[contour(plane_slice(lung, plane, index))] = CONTOUR_COLOUR
    return _square_pixels(pixels, [distance for axis, distance in enumerate(spacing) if axis != AXES[plane]])


def _dashes(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    rows, columns = np.indices(shape)
    dashes: npt.NDArray[np.bool_] = (rows + columns) // DASH_VOXELS % 2 == 0
    return dashes


def labelled(
    picture: Picture,
    plane: Plane,
    width_mm: float,
    title: str,
    subtypes: Sequence[str],
    contour: bool,
    notes: Sequence[str],
) -> Picture:
    """Put a picture of `plane_picture` into a frame that says what it shows.

    Args:
        width_mm: of the slice; gives the scale bar its length.
        title: the line above it.
        subtypes: whose maps are drawn.
        contour: whether the lungs' contour is drawn.
        notes: lines below it, before the disclaimer.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    picture = _enlarged(picture)
    rows, columns, _ = picture.shape
    lines = (*notes, DISCLAIMER)
    width = max(columns, _NARROWEST)
    frame = Image.new("RGB", (width, rows + 2 * _STRIP + _STRIP * len(lines)), "black")
    left, top = (width - columns) // 2, 2 * _STRIP
    frame.paste(Image.fromarray(picture), (left, top))
    draw = ImageDraw.Draw(frame)
    draw.text((6, 4), title, "white", font)
    entries = [(subtype, COLOURS[subtype]) for subtype in subtypes] + ([("lung contour", CONTOUR_COLOUR)] if contour else [])
    place = 6.0
    for name, colour in entries:
        draw.rectangle((place, _STRIP + 5, place + 14, _STRIP + 18), colour)
        label = f"{name} (dashed)" if name == "paraseptal" else name
        draw.text((place + 20, _STRIP + 3), label, "white", font)
        place += 20 + draw.textlength(label, font) + 18
    if not entries:
        draw.text((6, _STRIP + 3), "CT without maps", "white", font)
    middle = (left + columns / 2, top + rows / 2)
    spots = (
        (left + 4, middle[1], "lm"),
        (left + columns - 4, middle[1], "rm"),
        (middle[0], top + 3, "ma"),
        (middle[0], top + rows - 3, "md"),
    )
    for letter, (x, y, anchor) in zip(SIDES[plane], spots, strict=True):
        draw.text((x, y), letter, "white", font, anchor=anchor, stroke_width=2, stroke_fill="black")
    bar_mm = next((length for length in SCALE_BARS_MM if length <= width_mm / 3), SCALE_BARS_MM[-1])
    bar = bar_mm / width_mm * columns
    x, y = left + 10, top + rows - 12
    draw.rectangle((x - 1, y - 2, x + bar + 1, y + 2), "white", "black")
    draw.text((x, y - 6), f"{bar_mm} mm", "white", font, anchor="ls", stroke_width=2, stroke_fill="black")
    for number, line in enumerate(lines):
        draw.text((6, top + rows + number * _STRIP + 3), line, "white", font)
    return np.asarray(frame)


def _enlarged(picture: Picture) -> Picture:
    """Small pictures are shown larger, so that labels do not cover them."""
    rows, columns, _ = picture.shape
    factor = _SHORTEST_LONG_SIDE / max(rows, columns)
    if factor <= 1:
        return picture
    size = (max(round(columns * factor), 1), max(round(rows * factor), 1))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def _square_pixels(pixels: Picture, spacing: list[float]) -> Picture:
    rows, columns, _ = pixels.shape
    height_mm, width_mm = rows * spacing[0], columns * spacing[1]
    scale = min(1 / min(spacing), LARGEST_SIDE / max(height_mm, width_mm))
    size = (max(round(width_mm * scale), 1), max(round(height_mm * scale), 1))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def heat_over(picture: Picture, attention: npt.NDArray[np.float32]) -> Picture:
    """Lay what a network looked at (rows x columns, 0 to 1) over a picture, in the colour of centrilobular maps."""
    return overlay(picture, attention, COLOURS["centrilobular"], HEAT_OPACITY)


def png(picture: Picture) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
