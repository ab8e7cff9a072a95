"""Regions that results are reported for: right and left lung, and the lobes where the mask labels them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..imaging.geometry import Box
from ..imaging.scan import Scan
from .anatomy import LEFT, LOBES, RIGHT, tell_sides


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

        A mask of lobes with other labels than those of `LOBES` counts as a mask of lungs, with a warning. If `tell_sides` finds
        none (one lung, or lungs that it cannot separate), the only region is `both`.
        """
        box = scan.lung_box()
        lung = scan.lung[box]
        warnings: tuple[str, ...] = ()
        if scan.lobes is not None:
            labels = scan.lobes[box]
            present = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()) - {0}
            others = sorted(present - set(LOBES.values()))
            if not others:
                return cls(labels, _lobe_members(present), box)
            listed = ", ".join(map(str, others[:5])) + (" and more" if len(others) > 5 else "")
            warnings = (f"the mask of lobes has other labels than 1 to 5 ({listed}): lobes are not reported",)
        sides = tell_sides(lung, scan.spacing)
        if sides is None:
            return cls(lung.astype(np.uint8), {"both": (1,)}, box, warnings)
        return cls(sides, {"right": (RIGHT,), "left": (LEFT,)}, box, warnings)


def _lobe_members(present: set[int]) -> dict[str, tuple[int, ...]]:
    lobes = {name: label for name, label in LOBES.items() if label in present}
    sides = {side: tuple(label for name, label in lobes.items() if name.startswith(side)) for side in ("right", "left")}
    return {name: labels for name, labels in sides.items() if labels} | {name: (label,) for name, label in lobes.items()}
