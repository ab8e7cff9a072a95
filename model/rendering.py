"""Pictures of a result: axial slices with the activation maps over them, in the manner of the paper's Figure 3."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from . import DISCLAIMER
from .imaging.scan import Scan
from .subtyping import Finding, Subtyping

LUNG_WINDOW_HU = (-1350.0, 150.0)
COLOURS = {"centrilobular": (255, 120, 0), "paraseptal": (0, 170, 255)}
OPACITY = 0.65
COLUMNS = 3

_TILE_WIDTH = 340
_GAP = 6
_LABEL = 26
_CAPTION = 84
_MARGIN_MM = 12.0


def preview(scan: Scan, result: Subtyping, note: str = "") -> bytes:
    """Draw three axial slices through the most affected levels: CT, then each subtype's map over it, scores below.

    Args:
        scan: the scan, in the patient's frame: the patient's right is on the picture's left.
        result: its result; maps of either type.
        note: a further line of the caption, such as what the weights were trained on.

    Returns:
        A PNG file.
    """
    findings = result.findings
    levels = most_affected_levels([finding.activation_map for finding in findings], scan.lung)
    _, rows, columns = scan.lung_box(_MARGIN_MM)
    height_mm = (rows.stop - rows.start) * scan.spacing[1]
    width_mm = (columns.stop - columns.start) * scan.spacing[2]
    tile = (_TILE_WIDTH, max(round(_TILE_WIDTH * height_mm / width_mm), 1))

    picture = Image.new("RGB", (_LABEL + COLUMNS * (tile[0] + _GAP), 3 * (tile[1] + _GAP) + _LABEL + _CAPTION), "black")
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    for column, level in enumerate(levels):
        left = _LABEL + column * (tile[0] + _GAP)
        grey = grey_levels(scan.hounsfield[level, rows, columns])
        draw.text((left + 4, 4), f"slice {level + 1} of {scan.shape[0]} from the base", "white", small)
        for row, finding in enumerate((None, *findings)):
            pixels = np.repeat(grey[..., None], 3, axis=2)
            if finding is not None:
                pixels = overlay(pixels, finding.activation_map[level, rows, columns], COLOURS[finding.subtype.name])
            position = (left, _LABEL + row * (tile[1] + _GAP))
            picture.paste(Image.fromarray(pixels).resize(tile, Image.Resampling.BILINEAR), position)
    for row, label in enumerate(("CT", *(finding.subtype.name for finding in findings))):
        _vertical_text(picture, label, (2, _LABEL + row * (tile[1] + _GAP)), tile[1], small)
    bottom = picture.height - _CAPTION
    for line, finding in enumerate(findings):
        draw.text((_LABEL, bottom + 22 * line), _caption(finding), COLOURS[finding.subtype.name], font)
    draw.text((_LABEL, bottom + 50), f"{note}. {DISCLAIMER}" if note else DISCLAIMER, "white", small)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


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
    pixels: npt.NDArray[np.uint8], activation: np.ndarray, colour: tuple[int, int, int], opacity: float = OPACITY
) -> npt.NDArray[np.uint8]:
    """Blend a colour over an RGB picture (y, x, 3), the more the higher the activation (y, x; uint8, or float 0 to 1)."""
    strength = activation.astype(np.float32) / (255 if activation.dtype == np.uint8 else 1)
    alpha = opacity * strength[..., None]
    blended: npt.NDArray[np.uint8] = np.rint((1 - alpha) * pixels + alpha * np.array(colour, np.float32)).astype(np.uint8)
    return blended


def _caption(finding: Finding) -> str:
    extent = "" if finding.percentage is None else f", {finding.percentage:.1f} % of the lung"
    return f"{finding.subtype.name.capitalize()}: {finding.score} ({finding.severity}){extent}"


def _vertical_text(
    picture: Image.Image, text: str, position: tuple[int, int], height: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> None:
    strip = Image.new("RGB", (height, _LABEL - 4), "black")
    ImageDraw.Draw(strip).text((height / 2, 10), text, "white", font, anchor="mm")
    picture.paste(strip.rotate(90, expand=True), position)
