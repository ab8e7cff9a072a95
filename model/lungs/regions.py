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
    """

    labels: npt.NDArray[np.uint8]
    members: dict[str, tuple[int, ...]]
    box: Box

    @classmethod
    def of(cls, scan: Scan) -> Regions:
        """The lobes and lungs of a mask of lobes; else the right and the left lung, as `tell_sides` finds them.

        If it finds none (one lung, or lungs that it cannot separate), the only region is `both`.
        """
        box = scan.lung_box()
        lung = scan.lung[box]
        if scan.lobes is not None:
            labels = scan.lobes[box]
            present = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()) - {0}
            if present <= set(LOBES.values()):
                return cls(labels, _lobe_members(present), box)
        sides = tell_sides(lung, scan.spacing)
        if sides is None:
            return cls(lung.astype(np.uint8), {"both": (1,)}, box)
        return cls(sides, {"right": (RIGHT,), "left": (LEFT,)}, box)


def _lobe_members(present: set[int]) -> dict[str, tuple[int, ...]]:
    lobes = {name: label for name, label in LOBES.items() if label in present}
    sides = {side: tuple(label for name, label in lobes.items() if name.startswith(side)) for side in ("right", "left")}
    return {name: labels for name, labels in sides.items() if labels} | {name: (label,) for name, label in lobes.items()}
