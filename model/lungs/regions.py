"""The parts of the lungs that results are reported for: right and left lung, and the lobes where the mask names them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..imaging.geometry import Box
from ..imaging.scan import Scan
from .anatomy import LEFT, LOBES, RIGHT, tell_sides


@dataclass(frozen=True)
class Regions:
    """Which voxel of the lung's bounding box belongs to which region.

    Attributes:
        labels: z, y, x of `box`; uint8, 0 outside the lung.
        members: for each region its labels; regions may overlap (a lobe lies in a lung).
        box: where `labels` lies in the scan.
    """

    labels: npt.NDArray[np.uint8]
    members: dict[str, tuple[int, ...]]
    box: Box

    @classmethod
    def of(cls, scan: Scan) -> Regions:
        """Name the lobes where the scan's mask holds them; else tell right from left by connected parts and their side.

        Where neither can be done (one lung, or two that cannot be parted), the only region is `both`.
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
