"""Vessels and airways: branching trees that fill a lobe and taper, and how much of each voxel they take.

A tree is grown from its ends: the points it has to reach are halved again and again, and each half gets a branch. Radii
follow Murray's law (a parent's radius to the power of about 3 is the sum of its children's).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..lungs.anatomy import LOBES
from .anatomy import LATTICE_MM, Anatomy, AnatomyParameters
from .grid import Floats, Grid

Points = npt.NDArray[np.float64]

VESSEL_DEPTH_MM = 4.0
"""How near to the pleura vessels are still seen."""

BRONCHUS_LEVELS = 5
"""Generations of airways in a lobe that are large enough to be seen."""

END_RADIUS_MM = 0.45
MURRAY = 3.1
"""Exponent of Murray's law; 3 in theory."""

POINT_SPACING = 1.0
"""Distance between the points that stand for a tube's volume, in voxels."""

PUSH_REACH_MM = 8.0
"""Over what distance destroyed lung pushes vessels away."""

GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
DIRECTIONS = [
    (z / np.sqrt(z * z + y * y + x * x), y / np.sqrt(z * z + y * y + x * x), x / np.sqrt(z * z + y * y + x * x))
    for z, y, x in product((-1, 0, 1), repeat=3)
    if (z, y, x) > (0, 0, 0)
]
"""The 13 directions along rows, face diagonals and space diagonals: a fixed set, so that no axis has a sign by chance."""

CHUNK_POINTS = 400_000


@dataclass(frozen=True)
class Tubes:
    """Bent, tapering tubes.

    Attributes:
        start, middle, end: N x 3, in mm (z y x): a quadratic Bezier curve, `middle` is its control point.
        radius_start, radius_end: N, in mm.
    """

    start: Points
    middle: Points
    end: Points
    radius_start: npt.NDArray[np.float64]
    radius_end: npt.NDArray[np.float64]

    @classmethod
    def join(cls, parts: list[Tubes]) -> Tubes:
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("start", "middle", "end", "radius_start", "radius_end")
            )
        )

    def resized(self, scale: float, extra: float = 0.0) -> Tubes:
        """The same course with radii times `scale` plus `extra` mm."""
        return Tubes(self.start, self.middle, self.end, self.radius_start * scale + extra, self.radius_end * scale + extra)

    def pushed(self, field: Floats, lattice: Grid, amount: float) -> Tubes:
        """The same tubes, bent by up to about `amount` mm away from where `field` (0 to 1, on `lattice`) is high.

        A tube's end and the start of the next one move alike, so that trees stay whole.
        """
        smooth = ndimage.gaussian_filter(field, PUSH_REACH_MM / lattice.spacing[0])
        slopes = [-2 * PUSH_REACH_MM * amount * slope for slope in np.gradient(smooth, *lattice.spacing)]

        def move(points: Points) -> Points:
            index = lattice.index(points).T
            steps = [ndimage.map_coordinates(slope, index, order=1, mode="nearest") for slope in slopes]
            return points + np.stack(steps, axis=1)

        return Tubes(move(self.start), move(self.middle), move(self.end), self.radius_start, self.radius_end)


@dataclass(frozen=True)
class Trees:
    """The trees of both lungs.

    Attributes:
        vessels: arteries and veins.
        airways: lumen of the bronchi inside the lungs.
        trunk: lumen of the trachea and the main bronchi.
    """

    vessels: Tubes
    airways: Tubes
    trunk: Tubes

    def pushed(self, field: Floats, lattice: Grid, amount: float) -> Trees:
        """Vessels and airways in the lungs bent as by `Tubes.pushed`."""
        return Trees(self.vessels.pushed(field, lattice, amount), self.airways.pushed(field, lattice, amount), self.trunk)


def grow_trees(anatomy: Anatomy, parameters: AnatomyParameters, airway_dilation: float, rng: np.random.Generator) -> Trees:
    """Grow arteries with their bronchi, and veins, into each lobe."""
    vessels, airways = [], []
    murray = MURRAY if parameters.murray is None else parameters.murray
    volume = LATTICE_MM**3
    inner = np.asarray(anatomy.distance() > VESSEL_DEPTH_MM)
    for name, label in LOBES.items():
        places = np.argwhere((anatomy.lobes == label) & inner)
        if len(places) * volume < 20_000:
            continue
        hilum = anatomy.hila[0 if name.startswith("right") else 1]
        # One end for about 0.8 ml: the arteries of the lobules, and what still shows beyond them.
        levels = int(np.clip(np.rint(np.log2(len(places) * volume / 800)), 5, 11))
        trunk_radius = END_RADIUS_MM * 2 ** (levels / murray) * parameters.vessel_scale
        for kind in ("artery", "vein"):
            chosen = rng.choice(len(places), 2**levels, replace=len(places) < 2**levels)
            ends = anatomy.lattice.points(places[chosen]) + rng.uniform(-1.5, 1.5, (2**levels, 3))
            root = hilum + (0.0 if kind == "artery" else np.array([-14.0, -6.0, 0.0])) + rng.normal(0, 2, 3)
            tree = _grow(root, ends, trunk_radius, murray, rng)
            vessels.extend(tree)
            if kind == "artery":
                # The bronchus runs beside its artery; both are of about one width.
                shift = np.array([0.0, 1.0, -1.0 if hilum[2] < 0 else 1.0]) / np.sqrt(2)
                for branch in tree[: min(BRONCHUS_LEVELS, levels - 2)]:
                    offset = 2.1 * branch.radius_start[:, None] * shift
                    lumen = branch.resized(0.72 * airway_dilation)
                    airways.append(
                        Tubes(
                            branch.start + offset,
                            branch.middle + offset,
                            branch.end + 0.8 * offset,
                            lumen.radius_start,
                            lumen.radius_end,
                        )
                    )
    return Trees(Tubes.join(vessels), Tubes.join(airways), _trunk(anatomy, rng))


def _grow(root: Points, ends: Points, radius: float, murray: float, rng: np.random.Generator) -> list[Tubes]:
    """A binary tree from `root` (3) to all of `ends` (2^n x 3): one `Tubes` for each generation."""
    levels = int(np.log2(len(ends)))
    groups = ends[None]
    nodes = np.asarray(root, np.float64)[None]
    radii = np.array([radius])
    generations = []
    for level in range(levels + 1):
        centres = groups.mean(1)
        reach = rng.uniform(0.35, 0.62, (len(nodes), 1)) if level < levels else 1.0
        targets = nodes + (centres - nodes) * reach
        length = np.linalg.norm(targets - nodes, axis=1, keepdims=True)
        bend = rng.normal(0, 0.08, nodes.shape) * length
        # The larger of two sisters carries on with more of the parent's radius; Murray's law still holds.
        share = np.repeat(rng.uniform(0.35, 0.65, (len(nodes) + 1) // 2), 2)[: len(nodes)]
        share[1::2] = 1 - share[1::2]
        if level > 0:
            radii = np.maximum(np.repeat(radii, 2) * share ** (1 / murray), 0.9 * END_RADIUS_MM)
        taper = 0.92 if level < levels else 0.7
        generations.append(Tubes(nodes, (nodes + targets) / 2 + bend, targets, radii, radii * taper))
        nodes = np.repeat(targets, 2, axis=0)
        if level < levels:
            groups = _halve(groups)
    return generations


def _halve(groups: Points) -> Points:
    """Split each of G groups (G x n x 3) across its longest direction: 2G x n/2 x 3, halves of a group side by side."""
    along = np.stack([groups[:, :, 0] * z + groups[:, :, 1] * y + groups[:, :, 2] * x for z, y, x in DIRECTIONS])
    longest = along.std(2).argmax(0)
    order = np.argsort(along[longest, np.arange(len(groups))], axis=1, kind="stable")
    ordered = np.take_along_axis(groups, order[:, :, None], axis=1)
    return ordered.reshape(2 * len(groups), -1, 3)


def _trunk(anatomy: Anatomy, rng: np.random.Generator) -> Tubes:
    """Trachea and main bronchi, from above the apices to the hila."""
    carina = anatomy.carina
    top = np.array([anatomy.high[0] + 30, carina[1] - 12, rng.normal(0, 3)])
    radius = rng.uniform(7.5, 10)
    starts, ends = [top, carina, carina], [carina, anatomy.hila[0], anatomy.hila[1]]
    middles = [(top + carina) / 2 + rng.normal(0, 3, 3)] + [
        (carina + hilum) / 2 + np.array([4.0, 0, 0]) for hilum in anatomy.hila
    ]
    scale = np.array([1.0, 0.72, 0.66])
    return Tubes(np.array(starts), np.array(middles), np.array(ends), radius * scale, radius * scale * [1, 0.9, 0.9])


def coverage(tubes: Tubes, grid: Grid) -> Floats:
    """Share of each voxel of `grid` that `tubes` take: 0 to 1, with partial volume of the thin ones."""
    cover = np.zeros(grid.shape, np.float32)
    flat = cover.reshape(-1)
    shape = np.array(grid.shape)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    for points, volumes in _fill(tubes, POINT_SPACING * min(grid.spacing)):
        index = grid.index(points)
        lower = np.floor(index).astype(np.int64)
        keep = ((lower >= 0) & (lower < shape - 1)).all(1)
        lower, rest = lower[keep], (index[keep] - lower[keep]).astype(np.float32)
        base = lower @ strides
        weight = (volumes[keep] / grid.voxel_mm3).astype(np.float32)
        for corner in np.ndindex(2, 2, 2):
            part = weight.copy()
            for k in range(3):
                part *= rest[:, k] if corner[k] else 1 - rest[:, k]
            np.add.at(flat, base + int(np.dot(corner, strides)), part)
    return np.minimum(cover, 1, out=cover)


def _fill(tubes: Tubes, spacing: float) -> Iterator[tuple[Points, npt.NDArray[np.float64]]]:
    """Points about `spacing` mm apart inside the tubes, and the volume (mm3) that each stands for, in chunks."""
    length = np.linalg.norm(tubes.end - tubes.start, axis=1) + 1e-6
    steps = np.maximum(2, np.ceil(length / spacing)).astype(int)
    widest = np.maximum(tubes.radius_start, tubes.radius_end)
    spots = np.maximum(1, np.ceil(np.pi * widest**2 / spacing**2)).astype(int)
    total = np.cumsum(steps * spots)
    for start in range(0, int(total[-1]), CHUNK_POINTS):
        chosen = np.flatnonzero((total - steps * spots >= start) & (total - steps * spots < start + CHUNK_POINTS))
        if not len(chosen):
            continue
        tube = np.repeat(chosen, (steps * spots)[chosen])
        rank = np.arange(len(tube)) - np.repeat(
            np.cumsum((steps * spots)[chosen]) - (steps * spots)[chosen], (steps * spots)[chosen]
        )
        step, spot = rank // spots[tube], rank % spots[tube]
        t = ((step + 0.5) / steps[tube])[:, None]
        axis = (tubes.end - tubes.start)[tube] / length[tube, None]
        side = np.where(np.abs(axis[:, :1]) < 0.8, np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0]]))
        u = np.cross(axis, side)
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        v = np.cross(axis, u)
        radius = tubes.radius_start[tube] + (tubes.radius_end - tubes.radius_start)[tube] * t[:, 0]
        # A sunflower's spiral fills the disc evenly; it turns from step to step so that no pattern repeats.
        angle = spot * GOLDEN_ANGLE + step * 1.7
        out = (radius * np.sqrt((spot + 0.5) / spots[tube]) * (spots[tube] > 1))[:, None]
        middle = (1 - t) ** 2 * tubes.start[tube] + 2 * t * (1 - t) * tubes.middle[tube] + t**2 * tubes.end[tube]
        points = middle + out * (np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v)
        yield points, np.pi * radius**2 * length[tube] / steps[tube] / spots[tube]
