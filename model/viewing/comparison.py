"""Two scans side by side, such as a follow-up, or one scan with two kernels: differences, and pictures at the same height."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..container.results import CaseResult, Metrics, Quality, RegionMetrics
from ..container.table import cell
from ..fleischner import SUBTYPES
from ..imaging.geometry import box_of
from ..rendering import AXES, Plane
from ..slices.images import Picture, Window
from .case import ViewedCase
from .planes import labelled, plane_picture

_DECIMALS = 1
_QUALITIES = (
    ("edge_width_mm", "edge width", "mm", 2, 1.25),
    ("noise_hu", "noise", "HU", 0, 1.5),
    ("slice_spacing_mm", "slice spacing", "mm", 1, 1.5),
)
"""Measures of image quality: field, name, unit, decimals, and the ratio from which on two scans differ clearly."""


@dataclass(frozen=True)
class Difference:
    """One measurement of both scans.

    Attributes:
        name: of the measurement, with its unit.
        first, second: its values; None where a scan does not have it.
    """

    name: str
    first: float | None
    second: float | None

    @property
    def change(self) -> float | None:
        """The second minus the first."""
        return None if self.first is None or self.second is None else round(self.second - self.first, 4)

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Name, both values, and the change with its sign."""
        change = self.change
        return self.name, _text(self.first), _text(self.second), "none" if change is None else _signed(change)


COLUMNS = ("measurement", "first", "second", "second minus first")
"""What `Difference.cells` holds."""


def differences(first: Metrics, second: Metrics) -> list[Difference]:
    """Scores, percentages and densitometry of the lungs."""
    rows = []
    for subtype in SUBTYPES:
        one, other = first.of(subtype), second.of(subtype)
        rows.append(Difference(f"{subtype.name} score", one.score, other.score))
        rows.append(Difference(f"{subtype.name}, % of the lung", one.percentage, other.percentage))
    rows.append(Difference("LAA-950, %", first.laa950_percentage, second.laa950_percentage))
    rows.append(Difference("Perc15, HU", first.perc15_hu, second.perc15_hu))
    rows.append(Difference("lung volume, ml", first.lung_volume_ml, second.lung_volume_ml))
    return rows


def region_differences(first: Metrics, second: Metrics) -> list[Difference]:
    """Percentages of the regions that both scans have."""
    names = [name for name in first.regions if name in second.regions and name != "both"]
    return [row for name in names for row in _of_region(name.replace("_", " "), first.regions[name], second.regions[name])]


def _of_region(name: str, first: RegionMetrics, second: RegionMetrics) -> list[Difference]:
    return [
        Difference(f"{name}: centrilobular, %", first.cle_percentage, second.cle_percentage),
        Difference(f"{name}: paraseptal, %", first.pse_percentage, second.pse_percentage),
        Difference(f"{name}: LAA-950, %", first.laa950_percentage, second.laa950_percentage),
    ]


def differences_table(names: tuple[str, str], rows: Sequence[Difference]) -> bytes:
    """The differences as a .csv file for a spreadsheet.

    Args:
        names: of the scans. They become text that no spreadsheet runs.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("measurement", *map(cell, names), COLUMNS[-1]))
    for row in rows:
        writer.writerow((row.name, *map(cell, (row.first, row.second, row.change))))
    return text.getvalue().encode("utf-8-sig")


def reservations(first: CaseResult, second: CaseResult) -> list[str]:
    """What else than the scans differs, one sentence each."""
    found = []
    one, other = first.provenance, second.provenance
    if one is not None and other is not None:
        if (one.bundle, one.sha256, one.profile) != (other.bundle, other.sha256, other.profile):
            found.append(f"They were scored with different weights: {one.bundle} and {other.bundle}.")
        if one.lung_mask_source != other.lung_mask_source:
            found.append("One lung mask was supplied, the other was segmented automatically.")
    if first.metrics is not None and second.metrics is not None and set(first.metrics.regions) != set(second.metrics.regions):
        found.append("Their masks have different regions: only those of both are compared.")
    if first.quality is not None and second.quality is not None:
        unlike = _unlike(first.quality, second.quality)
        if unlike:
            found.append(
                f"Their image quality differs ({', '.join(unlike)}): differences, above all of LAA-950 and Perc15, may come "
                "from the kernel, the dose or the slices and not from the lungs."
            )
    return found


def _unlike(first: Quality, second: Quality) -> list[str]:
    """The measures that differ clearly, with both values."""
    found = []
    for field, term, unit, decimals, ratio in _QUALITIES:
        one, other = getattr(first, field), getattr(second, field)
        if one is not None and other is not None and max(one, other) > max(0, ratio * min(one, other)):
            found.append(f"{term} {one:.{decimals}f} and {other:.{decimals}f} {unit}")
    return found


def level_at(case: ViewedCase, plane: Plane, share: float) -> int:
    """The slice at a share (0 to 1) of the way from the lungs' first slice to the last; of the scan's, without a mask."""
    axis = AXES[plane]
    low, high = 0, case.shape[axis] - 1
    if case.lung is not None:
        along = box_of(case.lung, case.spacing)[axis]
        low, high = along.start, along.stop - 1
    return round(low + share * (high - low))


def side_by_side(
    cases: Sequence[ViewedCase], names: Sequence[str], plane: Plane, share: float, window: Window, subtypes: Sequence[str]
) -> Picture:
    """Labelled slices of both scans at the same share of their lungs."""
    pictures = []
    for case, name in zip(cases, names, strict=True):
        level = level_at(case, plane, share)
        maps = {subtype: case.maps[subtype] for subtype in subtypes}
        opacity = 0.65 if maps else 0.0
        pixels = plane_picture(
            case.hounsfield, maps or case.maps, plane, level, case.spacing, window, opacity, case.lung, bool(maps)
        )
        across = 1 if plane == "sagittal" else 2
        position = f"{plane} slice {level + 1} of {case.shape[AXES[plane]]}, {100 * share:.0f} % of the way through the lungs"
        width_mm = case.shape[across] * case.spacing[across]
        notes = (position, f"window: centre {window.centre:g} HU, width {window.width:g} HU")
        pictures.append(labelled(pixels, plane, width_mm, name, subtypes, case.lung is not None, notes))
    tallest = max(len(picture) for picture in pictures)
    return np.concatenate([np.pad(picture, ((0, tallest - len(picture)), (0, 0), (0, 0))) for picture in pictures], axis=1)


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.{_DECIMALS}f}" if isinstance(value, float) else str(value)


def _signed(value: float) -> str:
    return f"{value:+.{_DECIMALS}f}" if isinstance(value, float) else f"{value:+d}"
