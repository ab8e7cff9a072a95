"""Volumes for the browser: CT, activation maps and lung contour, cropped to the lungs and coarse enough to be sent quickly.

Each is a NIfTI-1 file. The first level is coarse and comes at once; the second replaces it.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..imaging.geometry import Box, box_of
from ..rendering import contour

if TYPE_CHECKING:
    from .case import ViewedCase

MARGIN_MM = 30.0
"""Around the lungs: enough to see whether the mask missed some of them."""

LEVELS = (1_500_000, 24_000_000)
"""Voxels of the CT, at most, on each level: 3 and 48 MB."""
MAP_VOXELS = 1_500_000
"""Of a map, at most: the network's own maps have 64 x 112 x 144."""

_THICK = 3.0
"""Times the pixels' distance, from which on axial slices are thick."""

_START_MM = 5.0
"""Standard deviation of the Gaussian that finds where emphysema lies densely."""

_GZIP_LEVEL = 1
_DATA_TYPES = {np.dtype(np.int16): 4, np.dtype(np.uint8): 2}
"""NIfTI-1's codes."""


@dataclass(frozen=True)
class Grid:
    """Where a volume's voxels lie.

    Attributes:
        spacing: z, y, x; mm.
        first_mm: the first voxel's centre: mm from the scan's base, front and right; z, y, x.
    """

    spacing: tuple[float, float, float]
    first_mm: tuple[float, float, float]


def levels(case: ViewedCase) -> Iterator[dict[str, bytes]]:
    """The NIfTI files of each level, by name: ct, those of the maps, contour; gzipped but for the CT."""
    box = _box(case)
    first = tuple(part.start * distance for part, distance in zip(box, case.spacing, strict=True))
    whole = Grid(case.spacing, (first[0], first[1], first[2]))
    if case.hounsfield is not None:
        limits = np.iinfo(np.int16)
        ct = np.clip(case.hounsfield[box], limits.min, limits.max).astype(np.int16, copy=False)
    else:
        ct = np.full([part.stop - part.start for part in box], -1024, np.int16)
    maps = {}
    for subtype, activation in case.maps.items():
        cut = activation[box]
        levels_of_255 = cut if cut.dtype == np.uint8 else np.rint(255 * cut).astype(np.uint8)
        maps[subtype] = gzip.compress(nifti(*coarser(levels_of_255, whole, MAP_VOXELS), case), _GZIP_LEVEL)
    for most in LEVELS:
        files = {"ct": nifti(*coarser(ct, whole, most), case), **maps}
        if case.lung is not None:
            lung, grid = coarser(case.lung[box].astype(np.uint8), whole, most)
            files["contour"] = gzip.compress(nifti(_border(lung > 0, grid), grid, case), _GZIP_LEVEL)
        yield files
        if ct.size <= most:
            return


def _border(lung: np.ndarray, grid: Grid) -> np.ndarray:
    """The border of the lungs, closed in every plane; of thick slices, that of each axial slice, as the other fills patches."""
    through, *inside = grid.spacing
    if through > _THICK * max(inside):
        return np.stack([contour(level) for level in lung]).astype(np.uint8)
    return contour(lung).astype(np.uint8)


def _box(case: ViewedCase) -> Box:
    """The lungs with a margin; everything without a mask."""
    if case.lung is not None:
        return box_of(case.lung, case.spacing, MARGIN_MM)
    z, y, x = (slice(0, size) for size in case.shape)
    return z, y, x


def coarser(array: np.ndarray, grid: Grid, most: int) -> tuple[np.ndarray, Grid]:
    """An array of at most `most` voxels, with spacings as equal as can be: no axis gets finer. Linear interpolation."""
    if array.size <= most:
        return array, grid
    low, high = min(grid.spacing), 100.0
    for _ in range(60):  # the smallest spacing that suffices
        middle = (low + high) / 2
        low, high = (low, middle) if np.prod(_shape(array, grid, middle), dtype=np.int64) <= most else (middle, high)
    z, y, x = (max(distance, high) for distance in grid.spacing)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing[::-1])
    shape = _shape(array, grid, high)
    resampled = sitk.Resample(
        image, shape[::-1], sitk.Transform(), sitk.sitkLinear, (0.0,) * 3, (x, y, z), image.GetDirection()
    )
    return sitk.GetArrayFromImage(resampled), Grid((z, y, x), grid.first_mm)


def _shape(array: np.ndarray, grid: Grid, spacing: float) -> tuple[int, int, int]:
    z, y, x = (
        max(int((size - 1) * distance / max(distance, spacing)) + 1, 1)
        for size, distance in zip(array.shape, grid.spacing, strict=True)
    )
    return z, y, x


def nifti(array: np.ndarray, grid: Grid, case: ViewedCase) -> bytes:
    """A NIfTI-1 file.

    As NIfTI has them, x grows to the patient's right and y to the front, both from the middle of the scan; z grows to the head
    from its base; mm.
    """
    middle = [(size - 1) * distance / 2 for size, distance in zip(case.shape, case.spacing, strict=True)]
    dz, dy, dx = grid.spacing
    z0, y0, x0 = grid.first_mm
    z, y, x = array.shape
    header = struct.pack("<i36x8h", 348, 3, x, y, z, 1, 1, 1, 1)
    header += struct.pack("<14x2h2x", _DATA_TYPES[array.dtype], 8 * array.dtype.itemsize)
    header += struct.pack("<8f", 1, dx, dy, dz, 1, 1, 1, 1)
    header += struct.pack("<3fh2B", 352, 1, 0, 0, 0, 2)  # offset, slope, intercept; mm
    header += bytes(252 - len(header)) + struct.pack("<2h", 0, 1)  # the affine below holds
    header += bytes(280 - len(header))
    header += struct.pack("<12f", -dx, 0, 0, middle[2] - x0, 0, -dy, 0, middle[1] - y0, 0, 0, dz, z0)
    header += bytes(344 - len(header)) + b"n+1\0" + bytes(4)
    return header + np.ascontiguousarray(array).tobytes()


def start_mm(case: ViewedCase) -> tuple[float, float, float]:
    """Where the cross-hair lies at first, x, y, z as `nifti` has them.

    In the most affected axial slice, a pixel inside the lung with at least half of the slice's highest activation, where the
    surroundings are most affected; without emphysema, the middle of the lungs' largest part; without lungs, of the slice.
    """
    level = case.most_affected_level
    _, rows, columns = case.shape
    lung = np.ones((rows, columns), bool) if case.lung is None else case.lung[level]
    burden = np.zeros((rows, columns))
    for activation in case.maps.values():
        burden += activation[level] / (255 if activation.dtype == np.uint8 else 1)
    burden[~lung] = 0
    if not burden.any():
        burden = ndimage.distance_transform_edt(np.pad(lung, 1), case.spacing[1:])[1:-1, 1:-1]
    y, x = rows // 2, columns // 2
    if burden.any():
        around = ndimage.gaussian_filter(burden, [_START_MM / distance for distance in case.spacing[1:]], mode="constant")
        around[burden < burden.max() / 2] = -1
        y, x = (int(place) for place in np.unravel_index(np.argmax(around), around.shape))
    return ((columns - 1) / 2 - x) * case.spacing[2], ((rows - 1) / 2 - y) * case.spacing[1], level * case.spacing[0]
