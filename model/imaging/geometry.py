"""Where voxels lie: the grid of an image file, and how its axes become the patient's."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

Box = tuple[slice, slice, slice]
"""A box of voxels: one slice per axis, z, y, x."""

Spacing = tuple[float, float, float]
"""Distance between voxel centres along z, y, x, in mm."""


def box_of(mask: npt.NDArray[np.bool_], spacing: Spacing, margin_mm: float = 0.0) -> Box:
    """The bounding box of a mask that is not empty, grown on each side by ceil(margin / spacing) voxels, within the image.

    Args:
        mask: z, y, x.
        spacing: mm.
    """
    bounds = []
    for axis, (size, distance) in enumerate(zip(mask.shape, spacing, strict=True)):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(margin_mm / distance))
        bounds.append(slice(max(int(filled[0]) - margin, 0), min(int(filled[-1]) + 1 + margin, size)))
    z, y, x = bounds
    return z, y, x


@dataclass(frozen=True)
class ImageGeometry:
    """The grid of an image file: size, spacing (mm), origin (mm, LPS) and direction (row-major), each in x, y, z order."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> ImageGeometry:
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(np.prod(self.spacing)) / 1000

    def apply(self, image: sitk.Image) -> sitk.Image:
        """Set this geometry on `image`, which must have the same size; return it."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def same_grid(self, other: ImageGeometry) -> bool:
        """Whether sizes are equal and all eight corners lie within a tenth of a voxel of the other's."""
        if self.size != other.size:
            return False
        tolerance = 0.1 * min(*self.spacing, *other.spacing)
        return bool(np.abs(self._corners() - other._corners()).max() <= tolerance)

    def _corners(self) -> npt.NDArray[np.float64]:
        index = np.array(list(product(*((0, size - 1) for size in self.size))), float)
        matrix = np.reshape(self.direction, (3, 3)) * np.array(self.spacing)
        return np.array(self.origin) + index @ matrix.T


@dataclass(frozen=True)
class Orientation:
    """How a file's axes (z, y, x order) become the patient's (LPS): transpose by `axes`, then reverse where `flips` is true."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, geometry: ImageGeometry) -> Orientation:
        """The permutation and flips of axes that bring a grid closest to LPS; an oblique grid stays oblique."""
        cosines = np.reshape(geometry.direction, (3, 3))[::-1, ::-1]  # [patient axis, file axis], both z, y, x
        axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[i, a]) for i, a in enumerate(order)))
        flips = tuple(bool(cosines[i, a] < 0) for i, a in enumerate(axes))
        return cls(axes, flips)  # type: ignore[arg-type]

    def spacing(self, geometry: ImageGeometry) -> Spacing:
        """The spacing of a file's grid along the patient's axes: z, y, x; mm."""
        z, y, x = (geometry.spacing[2 - axis] for axis in self.axes)
        return z, y, x

    def to_patient(self, array: np.ndarray) -> np.ndarray:
        """View an array on the file's grid in the patient's frame, without a copy."""
        return self._flipped(array.transpose(self.axes))

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """View an array in the patient's frame on the file's grid, without a copy."""
        return self._flipped(array).transpose(np.argsort(self.axes))

    def _flipped(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
