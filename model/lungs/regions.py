"""The parts of the lungs that results are reported for: right and left lung, and the lobes where the mask names them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..imaging.geometry import Box
from ..imaging.scan import Scan

RIGHT, LEFT = 1, 2

LOBES = {
    "left_upper_lobe": 1,
    "left_lower_lobe": 2,
    "right_upper_lobe": 3,
    "right_lower_lobe": 4,
    "right_middle_lobe": 5,
}
"""Labels of a mask of the kind `pulmonary-lobes`."""

_COARSE_MM = 2.5
_EROSIONS_MM = (0.0, 1.5, 3.0, 5.0, 8.0)
_SMALLEST_LUNG_FRACTION = 0.1
_LUNGS_APART_MM = 40.0


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


def tell_sides(lung: npt.NDArray[np.bool_], spacing: tuple[float, float, float]) -> npt.NDArray[np.uint8] | None:
    """Label the right lung 1 and the left 2 (z, y, x in the patient's frame, so that right is at low x), or give up (None).

    Works on every few-th voxel. Lungs that touch, as they do at the anterior junction, are eroded until they part; each
    voxel then goes to the nearer of the two.
    """
    steps = [max(round(_COARSE_MM / distance), 1) for distance in spacing]
    coarse = lung[:: steps[0], :: steps[1], :: steps[2]]
    distances = [step * distance for step, distance in zip(steps, spacing, strict=True)]
    depth = ndimage.distance_transform_edt(np.pad(coarse, 1), sampling=distances)[1:-1, 1:-1, 1:-1]
    for erosion in _EROSIONS_MM:
        seeds = _two_lungs(depth > erosion, distances[2], int(np.count_nonzero(coarse)))
        if seeds is not None:
            nearest = ndimage.distance_transform_edt(
                seeds == 0, sampling=distances, return_distances=False, return_indices=True
            )
            sides = seeds[tuple(nearest)]
            for axis, (step, size) in enumerate(zip(steps, lung.shape, strict=True)):
                sides = np.repeat(sides, step, axis).take(range(size), axis)
            return sides * lung
    return None


def _two_lungs(parts: npt.NDArray[np.bool_], column_mm: float, total: int) -> npt.NDArray[np.uint8] | None:
    labels, count = ndimage.label(parts)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    largest = np.argsort(sizes)[-2:]
    if count < 2 or sizes[largest].min() < _SMALLEST_LUNG_FRACTION * total:
        return None
    columns = [ndimage.center_of_mass(labels == label)[2] * column_mm for label in largest]
    if abs(columns[0] - columns[1]) < _LUNGS_APART_MM:
        return None
    right, left = largest[np.argsort(columns)]
    return np.where(labels == right, RIGHT, np.where(labels == left, LEFT, 0)).astype(np.uint8)
