"""The outer shape of the two lungs: drawn from parameters of the thorax, or taken from a given lung mask.

Shapes are implicit functions in mm, negative inside, so that they can be bent, joined and rendered on any grid. The
frame is that of `grid`: z from the lowest tip of the lungs (0) to the apex, y towards posterior and x towards the left,
both from the middle of the thorax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import InputError
from ..imaging.geometry import Spacing
from ..imaging.readers import read_volume
from ..lungs.anatomy import LEFT, RIGHT, largest_part, tell_sides
from .grid import Bools, Floats, Grid

MASK_LATTICE_MM = 2.0
MIN_LUNG_ML = 300.0
MIN_LUNG_EXTENT_MM = 60.0
SHAPE_MARGIN_MM = 8.0
ROUND_MM, EDGE_MM = 7.0, 3.0
"""Over how much surfaces pass into one another: where the mediastinum curves, and where recesses are sharp."""


@dataclass(frozen=True)
class ThoraxParameters:
    """Size and form of a thorax, in mm; shares are relative to the half width or half depth.

    Attributes:
        half_width, half_depth, height: of the cavity that holds both lungs.
        squareness: exponent of the superellipse that a cross-section is (2 an ellipse).
        apex_height: share of the height that the rounded tops take.
        dome_height: rise of the right diaphragm over its rim; deep inspiration and a barrel chest flatten it.
        dome_drop: how much lower the left dome stands.
        heart: share of the cavity's width that the heart takes (the cardiothoracic ratio).
        heart_shift: how far the heart's centre lies left of the midline, as a share of the half width.
        mediastinum: half width of the mediastinum between the lungs.
        wall: thickness of the chest wall.
        deformation, deformation_length: amplitude and reach of the smooth random bend of everything.
        mask_scale: stretch along z, y, x where the shape comes from a mask.
    """

    half_width: float
    half_depth: float
    height: float
    squareness: float
    apex_height: float
    dome_height: float
    dome_drop: float
    heart: float
    heart_shift: float
    mediastinum: float
    wall: float
    deformation: float
    deformation_length: float
    mask_scale: tuple[float, float, float]


def draw_thorax(rng: np.random.Generator) -> ThoraxParameters:
    """Draw an adult thorax; small and large people differ in all three directions at once."""
    size = rng.normal(1.0, 0.06)
    stretch = rng.normal(1.0, 0.04, 3)
    return ThoraxParameters(
        half_width=float(np.clip(132 * size * stretch[0], 108, 152)),
        half_depth=float(np.clip(92 * size * stretch[1], 74, 112)),
        height=float(np.clip(262 * size * stretch[2], 215, 310)),
        squareness=rng.uniform(2.15, 2.6),
        apex_height=rng.uniform(0.42, 0.52),
        dome_height=rng.uniform(35, 75),
        dome_drop=rng.uniform(4, 18),
        heart=rng.uniform(0.40, 0.52),
        heart_shift=rng.uniform(0.18, 0.30),
        mediastinum=rng.uniform(20, 30),
        wall=rng.uniform(22, 48),
        deformation=rng.uniform(2.5, 6.0),
        deformation_length=rng.uniform(60, 110),
        mask_scale=(rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1)),
    )


@dataclass(frozen=True)
class LungShape:
    """The shape of two given lungs.

    Attributes:
        grid: isotropic grid in the simulator's frame.
        right, left: implicit functions on it: signed distance to the lung's surface in mm, negative inside.
        half_width, half_depth, height: half, half and whole extent of both lungs together, in mm.
    """

    grid: Grid
    right: Floats
    left: Floats
    half_width: float
    half_depth: float
    height: float

    @classmethod
    def read(cls, path: Path | str) -> LungShape:
        """Read a lung mask in any orientation; any label above 0 is lung.

        Raises:
            InputError: the file cannot be read, or does not hold two lungs.
        """
        volume = read_volume(path)
        image = sitk.DICOMOrient(volume.image, "LPS")
        z, y, x = image.GetSpacing()[::-1]
        # Thinned by whole voxels: a mask needs no interpolation, and the distances below smooth its steps.
        steps = [max(1, round(MASK_LATTICE_MM / distance)) for distance in (z, y, x)]
        mask = sitk.GetArrayViewFromImage(image)[tuple(slice(step // 2, None, step) for step in steps)] > 0
        thinned = (z * steps[0], y * steps[1], x * steps[2])
        right, left = _sides(mask, thinned, volume.name)
        return cls._from_sides(right, left, thinned)

    @classmethod
    def _from_sides(cls, right: Bools, left: Bools, spacing: Sequence[float]) -> LungShape:
        both = right | left
        spans = [np.flatnonzero(both.any(tuple(k for k in range(3) if k != axis))) for axis in range(3)]
        lows = np.array([span[0] - 0.5 for span in spans]) * spacing
        highs = np.array([span[-1] + 0.5 for span in spans]) * spacing
        middle = (lows + highs) / 2
        origin = -np.array([lows[0], middle[1], middle[2]])
        raw = Grid(both.shape, (spacing[0], spacing[1], spacing[2]), (origin[0], origin[1], origin[2]))
        low, high = lows + origin - SHAPE_MARGIN_MM, highs + origin + SHAPE_MARGIN_MM
        grid = Grid.covering(low, high, MASK_LATTICE_MM)
        index = [(grid.axis(k) - raw.origin[k]) / raw.spacing[k] for k in range(3)]
        sides = []
        for side in (right, left):
            padded = np.pad(side, 1)
            inside = ndimage.distance_transform_edt(padded, sampling=raw.spacing)
            outside = ndimage.distance_transform_edt(~padded, sampling=raw.spacing)
            distance = np.asarray(outside - inside, np.float32)
            # The steps of the mask's voxels would show as terraces on the pleura.
            smooth = ndimage.gaussian_filter(distance, [1.2 * MASK_LATTICE_MM / s for s in raw.spacing])
            positions = np.meshgrid(*(axis + 1 for axis in index), indexing="ij")
            sides.append(ndimage.map_coordinates(smooth, positions, order=1, mode="nearest").astype(np.float32))
        extent = highs - lows
        return cls(grid, sides[0], sides[1], extent[2] / 2, extent[1] / 2, float(extent[0]))


def _sides(mask: Bools, spacing: Spacing, source: str) -> tuple[Bools, Bools]:
    """The right and the left lung of a mask (z y x, LPS), without loose pieces."""
    expected = "the two lungs of one person"
    voxel_ml = float(np.prod(spacing)) / 1000
    volume = float(mask.sum()) * voxel_ml
    if volume < 2 * MIN_LUNG_ML:
        raise InputError(source, f"holds {volume:.0f} ml of lung", f"{expected}, at least {2 * MIN_LUNG_ML:.0f} ml")
    sides = tell_sides(mask, spacing)
    if sides is None:
        raise InputError(source, "no right and left lung that can be told apart", expected)
    right, left = (largest_part(sides == side) for side in (RIGHT, LEFT))
    for name, lung in (("right", right), ("left", left)):
        extent = [
            np.ptp(np.flatnonzero(lung.any(axes))) * s if lung.any() else 0.0
            for axes, s in zip(((1, 2), (0, 2), (0, 1)), spacing, strict=True)
        ]
        if lung.sum() * voxel_ml < MIN_LUNG_ML or min(extent) < MIN_LUNG_EXTENT_MM:
            found = f"no {name} lung of {MIN_LUNG_ML:.0f} ml and {MIN_LUNG_EXTENT_MM:.0f} mm along each axis"
            raise InputError(source, found, expected)
    return right, left


def soft_maximum(values: Sequence[Floats], reach: float) -> Floats:
    """The largest of `values` (mm), rounded where two are within about `reach` mm: a union of what is outside."""
    result = values[0]
    for value in values[1:]:
        blend = np.clip(0.5 + 0.5 * (value - result) / reach, 0, 1)
        result = result + (value - result) * blend + reach * blend * (1 - blend)
    return result


def ellipsoid(z: Floats, y: Floats, x: Floats, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Floats:
    """Implicit function of an ellipsoid (centre and radii z, y, x in mm): roughly mm near its surface."""
    rz, ry, rx = radii
    radius = np.sqrt(((z - centre[0]) / rz) ** 2 + ((y - centre[1]) / ry) ** 2 + ((x - centre[2]) / rx) ** 2)
    return np.asarray((radius - 1) * min(radii), np.float32)


def cavity(thorax: ThoraxParameters, z: Floats, y: Floats, x: Floats) -> Floats:
    """Implicit function of the space inside the ribs, open below: it widens downwards and then stays as it is."""
    level = z / thorax.height
    width = thorax.half_width * np.interp(level, (0, 0.3, 0.6, 0.85, 1.05), (0.97, 1, 0.92, 0.74, 0.52))
    depth = thorax.half_depth * np.interp(level, (0, 0.3, 0.6, 0.85, 1.05), (0.98, 1, 0.90, 0.70, 0.50))
    middle = thorax.half_depth * np.interp(level, (0, 0.3, 0.6, 1.05), (0.03, 0, 0.04, 0.22))
    n = thorax.squareness
    radius = (np.abs(x / width) ** n + np.abs((y - middle) / depth) ** n) ** (1 / n)
    return np.asarray((radius - 1) * np.minimum(width, depth), np.float32)


def heart(thorax: ThoraxParameters, z: Floats, y: Floats, x: Floats) -> Floats:
    """Implicit function of the heart: an ellipsoid that points to the left, forwards and down."""
    half = thorax.heart * thorax.half_width
    turn = np.deg2rad(35)
    centre = (0.27 * thorax.height, -0.27 * thorax.half_depth, thorax.heart_shift * thorax.half_width)
    dx, dy, dz = x - centre[2], y - centre[1], z - centre[0]
    along = dx * np.cos(turn) - dy * np.sin(turn)
    across = dx * np.sin(turn) + dy * np.cos(turn)
    return ellipsoid(dz + 0.25 * along, across, along, (0, 0, 0), (0.23 * thorax.height, 0.82 * half, 1.12 * half))


def spine(thorax: ThoraxParameters, y: Floats, x: Floats) -> Floats:
    """Implicit function of the vertebral column with the soft tissue on it: a cylinder that the lungs wrap around."""
    return np.asarray(np.hypot(x, y - 0.80 * thorax.half_depth) - 0.18 * thorax.half_width, np.float32)


def aorta(thorax: ThoraxParameters, z: Floats, y: Floats, x: Floats) -> Floats:
    """Implicit function of the descending aorta, left of the spine, and of the arch over the left main bronchus."""
    descending = np.hypot(x - 19, y - 0.42 * thorax.half_depth) - 13
    descending = np.maximum(descending, z - 0.68 * thorax.height)
    arch = ellipsoid(z, y, x, (0.70 * thorax.height, 0.12 * thorax.half_depth, 17), (13, 0.38 * thorax.half_depth, 15))
    return np.asarray(np.minimum(descending, arch), np.float32)


def diaphragm(thorax: ThoraxParameters, side: int, y: Floats, x: Floats) -> Floats:
    """Height (mm) of the diaphragm's dome on one side (-1 right, 1 left) over positions y, x."""
    rise = thorax.dome_height - (thorax.dome_drop if side > 0 else 0.0)
    across = (x - side * 0.46 * thorax.half_width) / (0.66 * thorax.half_width)
    along = (y + 0.10 * thorax.half_depth) / (0.98 * thorax.half_depth)
    return np.asarray(12 + rise - (rise + 22) * (across**2 + along**2), np.float32)


def parametric_lungs(thorax: ThoraxParameters, z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Implicit functions of the right and the left lung at positions z, y, x (mm): negative inside."""
    width, depth, height = thorax.half_width, thorax.half_depth, thorax.height
    column = np.hypot(x, np.maximum(0, np.abs(y + 0.05 * depth) - 0.30 * depth)) - thorax.mediastinum
    between = [-heart(thorax, z, y, x), -np.asarray(column, np.float32), -spine(thorax, y, x)]
    common = soft_maximum([cavity(thorax, z, y, x), *between], ROUND_MM)
    start = (1 - thorax.apex_height) * height
    top = np.maximum(0, z - start)
    lungs = []
    for side in (-1, 1):
        centre = (0, 0.12 * depth, side * 0.40 * width)
        apex = ellipsoid(top, y, x, centre, (height - start, 1.02 * depth, 0.64 * width))
        hilum = ellipsoid(z, y, x, (0.50 * height, 0.06 * depth, side * 0.24 * width), (26, 20, 19))
        outside = [common, apex, -hilum]
        if side > 0:
            outside.append(-aorta(thorax, z, y, x))
        # Both meet the rest in a sharp edge: the costophrenic recess below and the anterior junction in front.
        septum = 2.5 - side * x
        floor = 0.8 * (diaphragm(thorax, side, y, x) - z)
        lungs.append(soft_maximum([soft_maximum(outside, ROUND_MM), septum, floor, -z], EDGE_MM))
    return lungs[0], lungs[1]
