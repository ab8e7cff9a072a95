"""Where voxels lie: grids in mm of the patient's frame, and smooth fields carried from a coarse grid to a fine one.

A chest is described by smooth fields on a coarse lattice, and rendered on the grid of a scan slab by slab.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]

SLAB_SLICES = 16


@dataclass(frozen=True)
class Grid:
    """A grid of voxels; all three fields in z, y, x order.

    Attributes:
        shape: number of voxels.
        spacing: mm between voxel centres.
        origin: mm, centre of the first voxel; z grows to the head, y to posterior, x to the patient's left.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @classmethod
    def covering(cls, low: npt.ArrayLike, high: npt.ArrayLike, spacing: float) -> Grid:
        """The isotropic grid of `spacing` mm that starts at `low` and reaches `high` (mm, z y x)."""
        start, stop = np.asarray(low, float), np.asarray(high, float)
        z, y, x = (int(n) for n in np.ceil((stop - start) / spacing) + 1)
        return cls((z, y, x), (spacing,) * 3, (float(start[0]), float(start[1]), float(start[2])))

    def axis(self, k: int) -> Floats:
        """Voxel centres along axis `k`, in mm."""
        return (self.origin[k] + self.spacing[k] * np.arange(self.shape[k])).astype(np.float32)

    def coordinates(self) -> tuple[Floats, Floats, Floats]:
        """Voxel centres along z, y, x in mm, shaped to broadcast against an array on this grid."""
        return self.axis(0)[:, None, None], self.axis(1)[None, :, None], self.axis(2)[None, None, :]

    def index(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Fractional voxel indices (N x 3) of `points` (N x 3, mm)."""
        return (np.asarray(points, np.float64) - self.origin) / self.spacing

    def nearest(self, points: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.intp], ...]:
        """Indices of the voxels nearest to `points` (N x 3, mm), clipped to the grid; index an array with them."""
        index = np.clip(np.rint(self.index(points)), 0, np.array(self.shape) - 1).astype(np.intp)
        return index[:, 0], index[:, 1], index[:, 2]

    def points(self, index: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Positions (N x 3, mm) of voxel indices (N x 3)."""
        return np.asarray(index * np.array(self.spacing) + np.array(self.origin), np.float64)

    def every(self, n: int) -> Grid:
        """The middle one of every `n` slices, as thick slices lie among thin ones; `n` is odd."""
        return replace(
            self,
            shape=(self.shape[0] // n, *self.shape[1:]),
            spacing=(self.spacing[0] * n, *self.spacing[1:]),
            origin=(self.origin[0] + self.spacing[0] * (n // 2), *self.origin[1:]),
        )

    def thinned(self, step: int) -> Grid:
        """The grid of `array[:, ::step, ::step]`, for an array on this grid."""
        z, y, x = self.shape
        return Grid(
            (z, -(-y // step), -(-x // step)),
            (self.spacing[0], self.spacing[1] * step, self.spacing[2] * step),
            self.origin,
        )

    def cropped(self, box: tuple[slice, slice, slice]) -> Grid:
        """The grid of `array[box]`, for an array on this grid."""
        starts = [part.indices(n) for part, n in zip(box, self.shape, strict=True)]
        z, y, x = (stop - start for start, stop, _ in starts)
        origin = [o + s * start for o, s, (start, _, _) in zip(self.origin, self.spacing, starts, strict=True)]
        return Grid((z, y, x), self.spacing, (origin[0], origin[1], origin[2]))

    def slabs(self) -> Iterator[slice]:
        """Runs of slices small enough that the arrays of one run stay in the processor's cache."""
        for start in range(0, self.shape[0], SLAB_SLICES):
            yield slice(start, min(start + SLAB_SLICES, self.shape[0]))

    @property
    def voxel_mm3(self) -> float:
        return float(np.prod(self.spacing))


@dataclass(frozen=True)
class Resampler:
    """Carries fields from grid `source` to grid `target`, trilinearly; beyond the source they stay constant."""

    source: Grid
    target: Grid

    @cached_property
    def _taps(self) -> list[tuple[npt.NDArray[np.intp], Floats]]:
        taps = []
        for k in range(3):
            position = (self.target.axis(k).astype(np.float64) - self.source.origin[k]) / self.source.spacing[k]
            position = np.clip(position, 0, self.source.shape[k] - 1)
            lower = np.minimum(position.astype(np.intp), self.source.shape[k] - 2)
            taps.append((lower, (position - lower).astype(np.float32)))
        return taps

    def slab(self, field: Floats, part: slice) -> Floats:
        """Slices `part` of the target (slices x y x x) of `field`, which lies on the source grid."""
        (z, wz), (y, wy), (x, wx) = self._taps
        z, wz = z[part, None, None], wz[part, None, None]
        # The x axis is gathered while the slab is still coarse in y: gathers along x are the slow ones.
        coarse = field[z[:, 0, 0]] * (1 - wz) + field[z[:, 0, 0] + 1] * wz
        rows = coarse.take(x, axis=2) * (1 - wx) + coarse.take(x + 1, axis=2) * wx
        lower: Floats = rows.take(y, axis=1).astype(np.float32, copy=False)
        upper: Floats = rows.take(y + 1, axis=1).astype(np.float32, copy=False)
        upper -= lower
        upper *= wy[:, None]
        upper += lower
        return upper


def smooth_field(grid: Grid, length: float | tuple[float, float, float], rng: np.random.Generator) -> Floats:
    """A random field on `grid` with mean 0 and variance 1, correlated over about `length` mm (one, or z y x).

    White noise on nodes `length` apart, through a cubic B-spline whose weights are scaled to keep the variance.
    """
    lengths = np.broadcast_to(np.asarray(length, float), (3,))
    extent = np.array(grid.spacing) * (np.array(grid.shape) - 1)
    nodes = np.ceil(extent / lengths).astype(int) + 4
    field = rng.standard_normal(nodes, dtype=np.float32)
    for k in range(3):
        position = np.arange(grid.shape[k]) * grid.spacing[k] / lengths[k]
        first = position.astype(np.intp)
        t = position - first
        weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
        weights = (weights / np.sqrt((weights**2).sum(0))).astype(np.float32)
        shape = [1, 1, 1]
        shape[k] = -1
        field = sum(
            (np.take(field, first + tap, axis=k) * weights[tap].reshape(shape) for tap in range(4)),
            start=np.float32(0),
        )
    return np.asarray(field, np.float32)


def smoothstep(value: npt.NDArray[np.floating]) -> Floats:
    """0 below 0, 1 above 1, and a smooth rise between."""
    clipped = np.clip(value, 0, 1)
    return np.asarray(clipped * clipped * (3 - 2 * clipped), np.float32)
