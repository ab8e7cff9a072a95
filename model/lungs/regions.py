"""Regions that results are reported for: right and left lung, and the lobes where the mask labels them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ..imaging.geometry import Box, Spacing
from ..imaging.scan import Scan
from .anatomy import LEFT, LOBES, RIGHT, Labels, coarse_steps, tell_sides

_SMALLEST_LOBE_FRACTION = 0.01
"""Less of the mask is taken for stray voxels, which may lie anywhere."""

_SIDES_APART_MM = 40.0
"""Centres of a right and a left lobe are at least this far apart; those of one lung differ by less from right to left."""

_ANOTHER = "255, above or fractional"
"""What labels are in the file that `Scan.lobes` has as 255."""


@dataclass(frozen=True)
class Regions:
    """The regions of a lung, as labels in its bounding box.

    Attributes:
        labels: z, y, x of `box`; uint8, 0 outside the lung.
        members: the labels of each region by name; regions may overlap (a lobe is part of a lung).
        box: the part of the scan that `labels` covers.
        warnings: why the lobes of a mask of lobes are not among the regions, one sentence each.
    """

    labels: npt.NDArray[np.uint8]
    members: dict[str, tuple[int, ...]]
    box: Box
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, scan: Scan) -> Regions:
        """The lobes and lungs of a mask of lobes; else the right and the left lung, as `tell_sides` finds them.

        A mask of lobes with other labels than those of `LOBES`, or whose labels do not lie where those lobes lie, counts as a
        mask of lungs, with a warning. If `tell_sides` finds none (one lung, or lungs that it cannot separate), the only region
        is `both`.
        """
        box = scan.lung_box()
        lung = scan.lung[box]
        warnings: tuple[str, ...] = ()
        if scan.lobes is not None:
            labels = scan.lobes[box]
            present = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()) - {0}
            others = sorted(present - set(LOBES.values()))
            misplaced = "" if others else _misplaced(labels, scan.spacing)
            if others:
                named = [_ANOTHER if label == 255 else str(label) for label in others]
                listed = ", ".join(named[:5]) + (" and more" if len(named) > 5 else "")
                warnings = (f"the mask of lobes has other labels than 1 to 5 ({listed}): lobes are not reported",)
            elif misplaced:
                warnings = (f"the labels do not lie where lobes 1 to 5 lie ({misplaced}): lobes are not reported",)
            else:
                return cls(labels, _lobe_members(present), box)
        sides = tell_sides(lung, scan.spacing)
        if sides is None:
            return cls(lung.astype(np.uint8), {"both": (1,)}, box, warnings)
        return cls(sides, {"right": (RIGHT,), "left": (LEFT,)}, box, warnings)


def _lobe_members(present: set[int]) -> dict[str, tuple[int, ...]]:
    lobes = {name: label for name, label in LOBES.items() if label in present}
    sides = {side: tuple(label for name, label in lobes.items() if name.startswith(side)) for side in ("right", "left")}
    return {name: labels for name, labels in sides.items() if labels} | {name: (label,) for name, label in lobes.items()}


def _misplaced(labels: Labels, spacing: Spacing) -> str:
    """Which labels do not lie as their lobes do; empty if all do. Lobes that are absent are not compared.

    The centres of the lobes are compared, on voxels about 2.5 mm apart: every right lobe lies to the right of every left one,
    the lobes of a lung on one side, its upper lobe above its lower lobe, and the middle lobe anterior to the right lower lobe.
    Labels of one side alone belong to one lung.
    """
    steps = coarse_steps(spacing, labels > 0)
    coarse = labels[:: steps[0], :: steps[1], :: steps[2]]
    voxels = {name: np.argwhere(coarse == label) for name, label in LOBES.items()}
    fewest = max(_SMALLEST_LOBE_FRACTION * np.count_nonzero(coarse), 1)
    centres = {name: places.mean(axis=0) * steps * spacing for name, places in voxels.items() if len(places) >= fewest}
    right, left = ([name for name in LOBES if name.startswith(side)] for side in ("right", "left"))
    compared = [(one, other, 2, "to the right of", _SIDES_APART_MM) for one in right for other in left]
    compared += [(f"{side}_lower_lobe", f"{side}_upper_lobe", 0, "below", 0.0) for side in ("right", "left")]
    compared += [("right_middle_lobe", "right_lower_lobe", 1, "anterior to", 0.0)]
    for one, other, axis, where, apart_mm in compared:
        if one in centres and other in centres and centres[other][axis] - centres[one][axis] <= apart_mm:
            return f"label {LOBES[one]} does not lie {where} label {LOBES[other]}"
    for one, other in (pair for side in (right, left) for pair in combinations(side, 2)):
        if one in centres and other in centres and abs(centres[other][2] - centres[one][2]) >= _SIDES_APART_MM:
            return f"label {LOBES[other]} does not lie on the side of label {LOBES[one]}"
    sides = {name.partition("_")[0] for name in centres}
    if len(sides) == 1 and tell_sides(labels > 0, spacing) is not None:
        return f"all are of lobes of the {sides.pop()} lung, and the mask covers two lungs"
    return ""
