"""Finds anatomy by size, shape and position: body, trachea, right and left lung.

Arrays are z, y, x in the patient's frame (LPS), so that the right lung lies at low x. Lengths are in mm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..imaging.geometry import Spacing

Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]

RIGHT, LEFT = 1, 2
"""Labels of the two lungs."""

LOBES = {
    "left_upper_lobe": 1,
    "left_lower_lobe": 2,
    "right_upper_lobe": 3,
    "right_lower_lobe": 4,
    "right_middle_lobe": 5,
}
"""Labels of a mask of the kind `pulmonary-lobes`."""

TRACHEA_AREA_MM2 = (60.0, 800.0)
TRACHEA_WIDTH_MM = 40.0
"""Of a section through the trachea or a main bronchus."""

_COARSE_MM = (2.5, 2.5, 2.5)
_EROSIONS_MM = (0.0, 1.5, 3.0, 5.0, 8.0)
_SMALLEST_LUNG_FRACTION = 0.1
_LUNGS_APART_MM = 40.0


def coarse_steps(spacing: Spacing, lung: Bools | None = None, distance_mm: Spacing = _COARSE_MM) -> tuple[int, int, int]:
    """Every how many voxels are about `distance_mm` apart, at least 1.

    Args:
        spacing: z, y, x; mm.
        lung: a mask that shall not vanish: where it lies between those voxels, every voxel is taken.
        distance_mm: z, y, x.
    """
    z, y, x = (max(round(wanted / distance), 1) for wanted, distance in zip(distance_mm, spacing, strict=True))
    return (z, y, x) if lung is None or lung[::z, ::y, ::x].any() else (1, 1, 1)


def depth(mask: Bools, spacing: Spacing, beyond: bool = False) -> npt.NDArray[np.float64]:
    """Distance in mm from each voxel of a mask to its surface, 0 outside; `beyond` is the mask's value outside the image."""
    padded = np.pad(mask, 1, constant_values=beyond)
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1])


def within(mask: Bools, distance_mm: float, spacing: Spacing) -> Bools:
    """All voxels at most `distance_mm` from the mask, itself included."""
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing) <= distance_mm)


def largest_part(mask: Bools) -> Bools:
    """The largest connected part of a mask."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray((labels == np.argmax(sizes)) & (labels > 0))


def body_of(tissue: Bools) -> Bools:
    """The largest connected part of the tissue (voxels denser than air), and what it encloses in each axial slice."""
    largest = largest_part(tissue)
    in_slices = np.zeros((3, 3, 3), bool)
    in_slices[1] = ndimage.generate_binary_structure(2, 1)
    around, _ = ndimage.label(~largest, in_slices)
    edge = np.zeros_like(largest)
    edge[:, [0, -1]] = edge[:, :, [0, -1]] = True
    return ~np.isin(around, np.setdiff1d(around[edge], 0))


def trachea_of(air: Bools, spacing: Spacing, is_lumen: Callable[[int, Bools], bool] | None = None) -> Bools:
    """The longest run, from slice to slice, of spots as large and as compact as a section through the trachea.

    The tops of the lungs are such spots too, but soon grow larger; air in the oesophagus forms short runs.

    Args:
        air: the voxels to search.
        spacing: z, y, x; mm.
        is_lumen: a further condition on a spot, given with the index of its axial slice.

    Returns:
        the run, of any length (see `length_mm`); empty if there is no such spot.
    """
    _, row_mm, column_mm = spacing
    smallest, largest = (area / (row_mm * column_mm) for area in TRACHEA_AREA_MM2)
    longest: list[Bools] = []
    bottom = 0
    runs: list[list[Bools]] = []  # from the top down to the slice above
    for level in range(len(air) - 1, -1, -1):
        labels, _ = ndimage.label(air[level])
        continued = []
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            if max((rows.stop - rows.start) * row_mm, (columns.stop - columns.start) * column_mm) > TRACHEA_WIDTH_MM:
                continue
            spot = labels == number
            if not smallest <= np.count_nonzero(spot) <= largest or (is_lumen and not is_lumen(level, spot)):
                continue
            run = max((run for run in runs if _continues(run[-1], spot)), key=len, default=[])
            continued.append([*run, spot])
            if len(continued[-1]) > len(longest):
                longest, bottom = continued[-1], level
        runs = continued
    result = np.zeros_like(air)
    if longest:
        result[bottom : bottom + len(longest)] = longest[::-1]
    return result


def _continues(above: Bools, spot: Bools) -> bool:
    """Whether spots in neighbouring slices belong to one tube: they overlap by half, and neither is over twice as large."""
    small, large = sorted((np.count_nonzero(above), np.count_nonzero(spot)))
    return bool(np.count_nonzero(above & spot) >= small / 2 and large <= 2 * small)


def length_mm(tube: Bools, spacing: Spacing) -> float:
    """Length of a tube along z in mm."""
    return int(np.count_nonzero(tube.any(axis=(1, 2)))) * spacing[0]


def tell_sides(lung: Bools, spacing: Spacing) -> Labels | None:
    """Label the right lung `RIGHT` and the left `LEFT`; None where they cannot be told apart.

    Works on voxels about 2.5 mm apart. Lungs that touch, as they do at the anterior junction, are eroded until they separate;
    each voxel is then assigned to the nearer lung.
    """
    steps = coarse_steps(spacing)
    coarse = lung[:: steps[0], :: steps[1], :: steps[2]]
    z, y, x = (step * distance for step, distance in zip(steps, spacing, strict=True))
    deep = depth(coarse, (z, y, x))
    for erosion in _EROSIONS_MM:
        seeds = _two_lungs(deep > erosion, x, int(np.count_nonzero(coarse)))
        if seeds is not None:
            nearest = ndimage.distance_transform_edt(
                seeds == 0, sampling=(z, y, x), return_distances=False, return_indices=True
            )
            sides = seeds[tuple(nearest)]
            for axis, (step, size) in enumerate(zip(steps, lung.shape, strict=True)):
                sides = np.repeat(sides, step, axis).take(range(size), axis)
            return sides * lung
    return None


def _two_lungs(parts: Bools, column_mm: float, total: int) -> Labels | None:
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
