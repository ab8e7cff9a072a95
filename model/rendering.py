"""Pictures of a result: slices with the activation maps over them, in the manner of the paper's Figure 3.

Every picture has the lung window, the contour of the lungs that were scored, the patient's sides, a scale bar and a legend.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from . import DISCLAIMER
from .imaging.scan import Scan
from .subtyping import Finding, Subtyping

Plane = Literal["axial", "coronal", "sagittal"]
Colour = tuple[int, int, int]

LUNG_WINDOW_HU = (-1350.0, 150.0)
COLOURS = {"centrilobular": (255, 120, 0), "paraseptal": (0, 170, 255)}
CONTOUR_COLOUR = (110, 215, 110)
WARNING_COLOUR = (255, 210, 70)
OPACITY = 0.65
COLUMNS = 3
SCALE_BAR_MM = 50

AXES: dict[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
"""Which axis of a z, y, x array each plane's slices are counted along."""

_SIDES = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
"""Letters at the left and the right edge: the patient's right, left, front and back."""

_TILE_WIDTH = 300
_GAP = 6
_LABEL = 26
_MARGIN = 10
_LINE = 20
_MARGIN_MM = 12.0
_MOST_WARNINGS = 3


@dataclass(frozen=True)
class View:
    """What there is to draw of a case, on the scan's grid in the patient's frame: z, y, x.

    Attributes:
        hounsfield: HU.
        lung: bool; the lungs that were scored.
        maps: activation map of each subtype, by name; uint8, or float 0 to 1.
        spacing: z, y, x; mm.
    """

    hounsfield: np.ndarray
    lung: npt.NDArray[np.bool_]
    maps: dict[str, np.ndarray]
    spacing: tuple[float, float, float]

    @classmethod
    def of(cls, scan: Scan, result: Subtyping) -> View:
        """The lungs of a scan with a margin, and its result."""
        box = scan.lung_box(_MARGIN_MM)
        maps = {finding.subtype.name: finding.activation_map[box] for finding in result.findings}
        return cls(scan.hounsfield[box], scan.lung[box], maps, scan.spacing)

    def size_mm(self, plane: Plane) -> tuple[float, float]:
        """Width and height of a slice."""
        height, width = (
            size * distance
            for axis, (size, distance) in enumerate(zip(self.lung.shape, self.spacing, strict=True))
            if axis != AXES[plane]
        )
        return width, height

    def most_affected(self, plane: Plane) -> int:
        """See `most_affected_slice`."""
        return most_affected_slice(list(self.maps.values()), self.lung, plane)


def plane_slice(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Cut a z, y, x volume: axial slices are seen from the feet, coronal ones from the front, sagittal ones from the left.

    The head is up in the last two; the patient's right is on the picture's left in the first two, the front in the last.
    """
    cut = volume.take(index, AXES[plane])
    return cut if plane == "axial" else cut[::-1]


def preview(scan: Scan, result: Subtyping, name: str, trained_on: str, validation: str = "") -> bytes:
    """Draw three axial slices through the most affected levels and a coronal one: CT, then each subtype's map over it.

    Args:
        scan: the scan, in the patient's frame: the patient's right is on the picture's left.
        result: its result; maps of either type.
        name: of the case.
        trained_on: what the weights were trained on, as their bundle says.
        validation: a sentence of what they were validated on.

    Returns:
        A PNG file.
    """
    view = View.of(scan, result)
    first = scan.lung_box(_MARGIN_MM)[0].start
    levels = most_affected_levels(list(view.maps.values()), view.lung)
    sections: list[tuple[Plane, int, str]] = [
        ("axial", level, f"slice {first + level + 1} of {scan.shape[0]} from the base") for level in levels
    ]
    sections.append(("coronal", view.most_affected("coronal"), "coronal"))
    rows = [("CT", ()), *((subtype, (subtype,)) for subtype in view.maps)]
    tiles = _tiles(view, sections, rows)
    captions = [(_caption(finding), COLOURS[finding.subtype.name]) for finding in result.findings]
    notes = [f"Weights trained on {without_commands(trained_on)}. {validation}".rstrip(), DISCLAIMER]
    warnings = [*scan.warnings, *result.warnings]
    return _png(_framed(tiles, _in_ascii(name), captions, list(map(_in_ascii, notes)), list(map(_in_ascii, warnings))))


def three_planes(view: View) -> bytes:
    """Draw the most affected axial, coronal and sagittal slice: the CT, and below it with both maps; returns a PNG file."""
    planes: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
    sections: list[tuple[Plane, int, str]] = [(plane, view.most_affected(plane), plane) for plane in planes]
    tiles = _tiles(view, sections, [("CT", ()), ("both maps", tuple(view.maps))])
    legend = _legend(tiles.width)
    picture = Image.new("RGB", (tiles.width, tiles.height + legend.height), "black")
    picture.paste(tiles, (0, 0))
    picture.paste(legend, (0, tiles.height))
    return _png(picture)


def without_commands(trained_on: str) -> str:
    """A bundle's description of its training data without commands in brackets, which are for who repeats it."""
    return re.sub(r"\s*\([^()]*\bpython\b[^()]*\)", "", trained_on)


def most_affected_slice(maps: Sequence[np.ndarray], lung: npt.NDArray[np.bool_] | None, plane: Plane) -> int:
    """The slice with the most activation, or in the middle of the lungs where there is none.

    Args:
        maps: activation maps, z, y, x; at least one.
        lung: z, y, x; None where the lungs are not known: then the middle of the maps counts.
        plane: which slices are counted.
    """
    others = tuple(axis for axis in range(3) if axis != AXES[plane])
    burden = np.asarray(sum(activation.sum(axis=others, dtype=np.float64) for activation in maps))
    if burden.any():
        return int(burden.argmax())
    filled = np.arange(len(burden)) if lung is None else np.flatnonzero(lung.any(axis=others))
    return int(filled[len(filled) // 2])


def most_affected_levels(maps: list[np.ndarray], lung: npt.NDArray[np.bool_]) -> list[int]:
    """Pick three slices, head first: those with the most activation, at least an eighth of the lung's height apart.

    Where no map is active, they lie at a quarter, a half and three quarters of the lung's height.
    """
    filled = np.flatnonzero(lung.any(axis=(1, 2)))
    low, high = int(filled[0]), int(filled[-1])
    burden = sum(activation.sum(axis=(1, 2), dtype=np.float64) for activation in maps)
    apart = max((high - low) / 8, 1)
    levels: list[int] = []
    for level in np.argsort(-np.asarray(burden), kind="stable"):
        if len(levels) < COLUMNS and burden[level] > 0 and all(abs(level - other) >= apart for other in levels):
            levels.append(int(level))
    for share in (0.5, 0.25, 0.75, 0.375, 0.625):
        level = round(low + share * (high - low))
        if len(levels) < COLUMNS and all(abs(level - other) >= apart for other in levels):
            levels.append(level)
    return sorted(levels, reverse=True)


def grey_levels(hounsfield: np.ndarray) -> npt.NDArray[np.uint8]:
    """HU to grey, 0 to 255, in the lung window (centre -600, width 1500)."""
    low, high = LUNG_WINDOW_HU
    return np.rint(255 * (np.clip(hounsfield.astype(np.float32), low, high) - low) / (high - low)).astype(np.uint8)


def overlay(
    pixels: npt.NDArray[np.uint8], activation: np.ndarray, colour: Colour, opacity: float = OPACITY
) -> npt.NDArray[np.uint8]:
    """Blend a colour over an RGB picture (y, x, 3), the more the higher the activation (y, x; uint8, or float 0 to 1)."""
    strength = activation.astype(np.float32) / (255 if activation.dtype == np.uint8 else 1)
    alpha = opacity * strength[..., None]
    blended: npt.NDArray[np.uint8] = np.rint((1 - alpha) * pixels + alpha * np.array(colour, np.float32)).astype(np.uint8)
    return blended


def contour(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels or voxels of a mask that touch its outside along an axis; beyond the array lies outside, too."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        neighbours, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        kept[1:] &= neighbours[:-1]
        kept[:-1] &= neighbours[1:]
        kept[0] = kept[-1] = False
    return mask & ~inner


def _tiles(view: View, sections: Sequence[tuple[Plane, int, str]], rows: Sequence[tuple[str, tuple[str, ...]]]) -> Image.Image:
    """One column for each slice, with its title, and one row for each choice of maps, all on one scale."""
    widest = max(view.size_mm(plane)[0] for plane, _, _ in sections)
    highest = max(view.size_mm(plane)[1] for plane, _, _ in sections)
    pixels_per_mm = _TILE_WIDTH / widest
    height = max(round(highest * pixels_per_mm), 1)
    picture = Image.new("RGB", (_LABEL + len(sections) * (_TILE_WIDTH + _GAP), _LABEL + len(rows) * (height + _GAP)), "black")
    draw, small = ImageDraw.Draw(picture), _font(14)
    for column, (plane, index, title) in enumerate(sections):
        left = _LABEL + column * (_TILE_WIDTH + _GAP)
        draw.text((left + 4, 4), title, "white", small)
        for row, (_, subtypes) in enumerate(rows):
            tile = _tile(view, plane, index, subtypes, pixels_per_mm)
            top = _LABEL + row * (height + _GAP)
            x, y = left + (_TILE_WIDTH - tile.width) // 2, top + (height - tile.height) // 2
            picture.paste(tile, (x, y))
            _annotate(draw, plane, (x, y, x + tile.width, y + tile.height), pixels_per_mm)
    for row, (label, _) in enumerate(rows):
        _vertical_text(picture, label, (2, _LABEL + row * (height + _GAP)), height, small)
    return picture


def _tile(view: View, plane: Plane, index: int, subtypes: tuple[str, ...], pixels_per_mm: float) -> Image.Image:
    width_mm, height_mm = view.size_mm(plane)
    size = (max(round(width_mm * pixels_per_mm), 1), max(round(height_mm * pixels_per_mm), 1))
    pixels = np.repeat(grey_levels(plane_slice(view.hounsfield, plane, index))[..., None], 3, axis=2)
    for subtype in subtypes:
        pixels = overlay(pixels, plane_slice(view.maps[subtype], plane, index), COLOURS[subtype])
    tile = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    inside = Image.fromarray(plane_slice(view.lung, plane, index).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    tile[contour(np.asarray(inside) > 0)] = CONTOUR_COLOUR
    return Image.fromarray(tile)


def _annotate(draw: ImageDraw.ImageDraw, plane: Plane, box: tuple[int, int, int, int], pixels_per_mm: float) -> None:
    """The letters of the patient's sides, and the scale bar."""
    left, top, right, bottom = box
    font = _font(16)
    middle = (top + bottom) / 2
    first, second = _SIDES[plane]
    draw.text((left + 4, middle), first, "white", font, anchor="lm", stroke_width=2, stroke_fill="black")
    draw.text((right - 4, middle), second, "white", font, anchor="rm", stroke_width=2, stroke_fill="black")
    length = round(SCALE_BAR_MM * pixels_per_mm)
    draw.rectangle((right - 8 - length, bottom - 8, right - 8, bottom - 6), "white", "black")
    text = f"{SCALE_BAR_MM // 10} cm"
    draw.text((right - 8, bottom - 11), text, "white", _font(12), anchor="rb", stroke_width=2, stroke_fill="black")


def _framed(
    tiles: Image.Image, name: str, captions: Sequence[tuple[str, Colour]], notes: Sequence[str], warnings: Sequence[str]
) -> Image.Image:
    """The tiles below the name of the case, and above scores, legend, notes and warnings."""
    characters = max((tiles.width - 2 * _MARGIN) // 8, 20)
    lines = [(line, WARNING_COLOUR) for line in _warning_lines(warnings, characters)]
    lines += [(line, (255, 255, 255)) for note in notes for line in textwrap.wrap(note, characters)]
    legend = _legend(tiles.width)
    heading = 30
    scores = 24 * len(captions) + 6
    height = heading + tiles.height + scores + legend.height + _LINE * len(lines) + _MARGIN
    picture = Image.new("RGB", (tiles.width, height), "black")
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 15), _shortened(name, tiles.width - 2 * _MARGIN, _font(18)) or "case", "white", _font(18), anchor="lm")
    picture.paste(tiles, (0, heading))
    top = heading + tiles.height
    for caption, colour in captions:
        draw.text((_MARGIN, top), caption, colour, _font(18))
        top += 24
    picture.paste(legend, (0, top + 6))
    top += 6 + legend.height
    for line, colour in lines:
        draw.text((_MARGIN, top), line, colour, _font(14))
        top += _LINE
    return picture


def _in_ascii(text: str) -> str:
    r"""A text in the letters that Pillow's own font has; others are escaped (as `\u60a3`), so that names stay apart."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _shortened(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """A text, or as much of its beginning as `width` pixels hold, with dots behind it."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    if draw.textlength(text, font) <= width:
        return text
    kept = len(text)
    while kept and draw.textlength(f"{text[:kept]}...", font) > width:
        kept -= 1
    return f"{text[:kept]}..."


def _warning_lines(warnings: Sequence[str], characters: int) -> list[str]:
    lines = [line for warning in warnings[:_MOST_WARNINGS] for line in textwrap.wrap(f"Warning: {warning}", characters)]
    left_out = len(warnings) - _MOST_WARNINGS
    return [*lines, *([f"{left_out} more warnings are in results.json"] if left_out > 0 else [])]


def _legend(width: int) -> Image.Image:
    """Colours from no to full activation, the contour, and the window; in as many lines as the width needs."""
    parts = [_colour_key(f"{subtype} activation", colour) for subtype, colour in COLOURS.items()]
    low, high = LUNG_WINDOW_HU
    parts.append(_text_key("lungs that were scored", CONTOUR_COLOUR))
    parts.append(_text_key(f"CT window: centre {(low + high) / 2:.0f} HU, width {high - low:.0f} HU", None))
    places: list[tuple[int, int]] = []
    left, top = _MARGIN, 4
    for part in parts:
        if left + part.width > width - _MARGIN and left > _MARGIN:
            left, top = _MARGIN, top + 24
        places.append((left, top))
        left += part.width + 18
    legend = Image.new("RGB", (width, top + 26), "black")
    for part, place in zip(parts, places, strict=True):
        legend.paste(part, place)
    return legend


def _colour_key(text: str, colour: Colour) -> Image.Image:
    """A ramp from 0 to 1 over the grey of lung, and what it means."""
    grey = int(grey_levels(np.array([-860.0]))[0])
    ramp = np.broadcast_to(np.linspace(0, 1, 90, dtype=np.float32), (12, 90))
    key = _text_key(f"1  {text}", None, left=108)
    key.paste(Image.fromarray(overlay(np.full((12, 90, 3), grey, np.uint8), ramp, colour)), (13, 5))
    ImageDraw.Draw(key).text((0, 11), "0", "white", _font(14), anchor="lm")
    return key


def _text_key(text: str, line: Colour | None, left: int = 0) -> Image.Image:
    """A text, with a line before it where a colour is given."""
    start = 28 if line else left
    width = start + round(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text, _font(14))) + 2
    key = Image.new("RGB", (width, 22), "black")
    draw = ImageDraw.Draw(key)
    if line:
        draw.line((0, 11, 22, 11), line, 2)
    draw.text((start, 11), text, "white", _font(14), anchor="lm")
    return key


def _caption(finding: Finding) -> str:
    extent = "" if finding.percentage is None else f", {finding.subtype.percentage_text(finding.percentage)} % of the lung"
    return f"{finding.subtype.name.capitalize()}: {finding.score} ({finding.severity}){extent}"


def _vertical_text(
    picture: Image.Image, text: str, position: tuple[int, int], height: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> None:
    strip = Image.new("RGB", (height, _LABEL - 4), "black")
    ImageDraw.Draw(strip).text((height / 2, 10), text, "white", font, anchor="mm")
    picture.paste(strip.rotate(90, expand=True), position)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
