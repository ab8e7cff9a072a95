"""From a chest and its disease to HU before any scanner: lung, emphysema, fissures, vessels and airways in layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..lungs.anatomy import LOBES
from .anatomy import (
    BONE_HU,
    LOBES_AT_HORIZONTAL,
    Anatomy,
    AnatomyParameters,
    MaskParameters,
    StrandParameters,
    label_lobes,
)
from .confounders import ConfounderFields, ConfounderParameters
from .disease import LESION_HU, NEVER, RIM_MM, DiseaseParameters, Emphysema, MeshParameters, septa
from .grid import Floats, Grid, Labels, Resampler, smooth_field, smoothstep
from .trees import Trees, Tubes, coverage

AIR_HU, BRONCHIAL_WALL_HU, SEPTUM_HU, FISSURE_HU = -1000.0, -250.0, -700.0, -620.0

BRONCHIAL_WALL_MM = 0.4

HEALTHY_FLOOR_HU = -942.0
"""In the first look, before artefacts and noise, nothing but emphysema and airways is darker than this."""

TRACHEAL_WALL_MM, TRACHEAL_WALL_HU = 1.6, 40.0

PLEURA_MM = 1.0
"""Thickness over which lung passes into chest wall."""

SMALL_VESSEL = 0.6
"""A voxel that vessels fill less than this has small vessels, which emphysema destroys."""

LUNG_VALUES_HU = 6.0

COMPRESSION_HU = 25.0
"""How much denser lung is beside a paraseptal cell, which presses on it."""

PANLOBULAR_EDGE_MM, PARASEPTAL_EDGE_MM = 4.0, 0.6


@dataclass(frozen=True)
class LungVoxels:
    """The lungs on a rendered grid.

    Attributes:
        box: the part of the grid that holds the lungs; it begins and ends with a whole slice of the scan.
        grid: the grid of that part; the arrays below are on it.
        lobes: uint8, lobe labels inside the lung mask, 0 outside.
        distance: float32, distance to the pleura in mm, positive inside either lung.
        fissure: float32, distance to the nearest fissure in mm.
    """

    box: tuple[slice, slice, slice]
    grid: Grid
    lobes: Labels
    distance: Floats
    fissure: Floats


@dataclass(frozen=True)
class TreeVoxels:
    """Vessels and airways on the lungs' grid: float32, share of the voxel, 0 to 1; walls include what they enclose."""

    vessels: Floats
    bronchi: Floats
    bronchial_walls: Floats

    @classmethod
    def of(cls, trees: Trees, grid: Grid) -> TreeVoxels:
        walls = trees.airways.resized(1.08, BRONCHIAL_WALL_MM)
        return cls(coverage(trees.vessels, grid), coverage(trees.airways, grid), coverage(walls, grid))


def room_for_emphysema(lungs: LungVoxels, trees: TreeVoxels) -> Labels:
    """Lobe labels where emphysema may grow: 0 in vessels and airways, and where the voxel is partly chest wall."""
    blocked = (trees.vessels > 0.5) | (trees.bronchial_walls > 0.5) | (lungs.distance < PLEURA_MM / 2)
    return np.where(blocked, 0, lungs.lobes).astype(np.uint8)


def threshold_mask(
    lungs: LungVoxels, parameters: MaskParameters | None, anatomy: Anatomy, trees: TreeVoxels, trunk: Tubes
) -> Labels:
    """Lobe labels as the mask has them: without vessels, or with trachea and main bronchi, labelled as upper lobes."""
    if parameters is None:
        return lungs.lobes
    lobes = lungs.lobes.copy()
    if parameters.vessels:
        lobes[trees.vessels > 0.5] = 0
    if parameters.airways:
        z, _, x = lungs.grid.coordinates()
        level = (z >= anatomy.low[0]) & (z <= anatomy.high[0])
        inside = (coverage(trunk, lungs.grid) > 0.5) & level & (lobes == 0)
        upper = np.where(x < 0, LOBES["right_upper_lobe"], LOBES["left_upper_lobe"])
        lobes[inside] = np.broadcast_to(upper, lobes.shape)[inside]
    return lobes


def place_lungs(anatomy: Anatomy, mask_margin: float, rendered: Grid, every: int) -> LungVoxels:
    """Sample the lungs on the grid `rendered`, of which every so many slices make one slice of the scan."""
    box = _box(anatomy, rendered, every)
    grid = rendered.cropped(box)
    resampler = Resampler(anatomy.lattice, grid)
    lobes = np.empty(grid.shape, np.uint8)
    distance, fissure = np.empty(grid.shape, np.float32), np.empty(grid.shape, np.float32)
    for part in grid.slabs():
        right, left, major, minor = (
            resampler.slab(field, part) for field in (anatomy.right, anatomy.left, anatomy.major, anatomy.minor)
        )
        # Where both masks would claim a voxel, the deeper one has it.
        lobes[part] = label_lobes(
            (right > mask_margin) & (right >= left), (left > mask_margin) & (left > right), major > 0, minor > 0
        )
        np.maximum(right, left, out=distance[part])
        upper = np.isin(lobes[part], LOBES_AT_HORIZONTAL)
        major, minor = np.abs(major), np.abs(minor)
        fissure[part] = np.where(upper, np.minimum(major, minor), major)
    return LungVoxels(
        box=box,
        grid=grid,
        lobes=lobes,
        distance=distance,
        fissure=fissure,
    )


def _box(anatomy: Anatomy, grid: Grid, every: int) -> tuple[slice, slice, slice]:
    box = []
    for k in range(3):
        start = int((anatomy.low[k] - 4 - grid.origin[k]) / grid.spacing[k])
        stop = int(np.ceil((anatomy.high[k] + 4 - grid.origin[k]) / grid.spacing[k])) + 1
        step = every if k == 0 else 1
        start, stop = max(0, start) // step * step, min(-(-stop // step) * step, grid.shape[k])
        box.append(slice(start, stop))
    return box[0], box[1], box[2]


def attenuation(
    anatomy: Anatomy,
    anatomy_parameters: AnatomyParameters,
    disease: DiseaseParameters,
    confounders: ConfounderFields,
    confounder_parameters: ConfounderParameters,
    trunk: Tubes,
    trees: TreeVoxels,
    lungs: LungVoxels,
    emphysema: Emphysema,
    rendered: Grid,
    rng: np.random.Generator,
) -> Floats:
    """HU (float32, z y x) of the whole chest on the grid `rendered`, before motion and the scanner.

    Args:
        trunk: trachea and main bronchi.
        trees: vessels and airways inside the lungs.
        rng: its stream gives the texture of the lung.
    """
    lattice = anatomy.lattice
    tissue = anatomy_parameters.parenchyma
    mottle = tissue.density + tissue.mottle * smooth_field(lattice, tissue.mottle_length, rng)
    mottle += tissue.grain * smooth_field(lattice, 3.2, rng)
    y = lattice.coordinates()[1]
    depth = (anatomy.high[1] - anatomy.low[1]) or 1.0
    mottle += tissue.gradient * (y - (anatomy.high[1] + anatomy.low[1]) / 2) / depth
    pleural = np.exp(-np.maximum(anatomy.distance(), 0) / 7)
    mottle += tissue.dependent * pleural * smoothstep((y - anatomy.low[1]) / depth * 3 - 2)
    trapped = confounder_parameters.trapping_hu + 0.35 * (mottle - tissue.density)
    mottle += confounders.trapping * np.minimum(trapped - mottle, 0) - confounders.speckle
    floor = HEALTHY_FLOOR_HU if tissue.floor is None else tissue.floor
    mottle = np.maximum(mottle, floor).astype(np.float32)
    strands = _strands(anatomy_parameters.strands, anatomy, rng)
    mesh = _Mesh.of(disease, anatomy, rng)
    destroyed = disease.attenuation + LUNG_VALUES_HU * smooth_field(lattice, 8.0, rng)
    destroyed = np.clip(destroyed, LESION_HU[0] + 2, LESION_HU[1] - 2).astype(np.float32)

    result = np.empty(rendered.shape, np.float32)
    body = anatomy.body
    whole, inner = Resampler(body.lattice, rendered), Resampler(lattice, lungs.grid)
    layers = _LungLayers(anatomy, anatomy_parameters, disease, lungs, trees, emphysema, mottle, destroyed, strands, mesh, inner)
    for part in rendered.slabs():
        bone = whole.slab(body.bone, part)
        chest = whole.slab(body.tissue, part)
        chest += smoothstep(1.6 * bone - 0.3) * (BONE_HU - chest)
        chest += smoothstep(0.5 - whole.slab(body.skin, part) / 2) * (AIR_HU - chest)
        result[part] = chest
    share = np.empty(lungs.grid.shape, np.float32)
    chest = result[lungs.box]
    for part in lungs.grid.slabs():
        share[part], lung = layers.slab(part)
        chest[part] += share[part] * (lung - chest[part])
    _draw_trunk(result, rendered, trunk, share, lungs.box)
    return result


def _strands(parameters: StrandParameters | None, anatomy: Anatomy, rng: np.random.Generator) -> tuple[Floats, Floats] | None:
    """Two fields on the lattice, in mm, whose common zeros are the middle lines of thin strands."""
    if parameters is None:
        return None
    fields = []
    for _ in range(2):
        field = smooth_field(anatomy.lattice, parameters.spacing, rng)
        slope = np.sqrt(sum(part**2 for part in np.gradient(field, *anatomy.lattice.spacing)))
        fields.append(np.asarray(field / np.maximum(slope, 0.1), np.float32))
    return fields[0], fields[1]


@dataclass(frozen=True)
class _Mesh:
    """Fields on the lattice: two whose zeros are septa (mm), and how far lesions are destroyed (0 to 1)."""

    parameters: MeshParameters
    septa: tuple[Floats, Floats]
    completeness: Floats

    @classmethod
    def of(cls, disease: DiseaseParameters, anatomy: Anatomy, rng: np.random.Generator) -> _Mesh | None:
        # A stream of its own: what is drawn after it is the same with disease and without.
        (own,) = rng.spawn(1)
        if disease.mesh is None or not disease.present:
            return None
        uneven = disease.mesh.completeness + disease.mesh.unevenness * smooth_field(anatomy.lattice, 6.0, own)
        completeness = np.asarray(np.clip(uneven, 0.3, 1), np.float32)
        return cls(disease.mesh, septa(disease.mesh.lobule, anatomy, own), completeness)


@dataclass(frozen=True)
class _LungLayers:
    """What the lungs are made of, from the back layer to the front one."""

    anatomy: Anatomy
    parameters: AnatomyParameters
    disease: DiseaseParameters
    lungs: LungVoxels
    trees: TreeVoxels
    emphysema: Emphysema
    mottle: Floats
    destroyed: Floats
    strands: tuple[Floats, Floats] | None
    mesh: _Mesh | None
    resampler: Resampler

    def slab(self, part: slice) -> tuple[Floats, Floats]:
        """Share of lung (0 to 1) and HU of the lung in slices `part` of the lungs' grid."""
        take = self.resampler.slab
        share = smoothstep(self.lungs.distance[part] / PLEURA_MM + 0.5)
        lung = take(self.mottle, part)

        cle, pse, panlobular = (
            _share(depth[part], edge)
            for depth, edge in (
                (self.emphysema.centrilobular, self.disease.edge),
                (self.emphysema.paraseptal, PARASEPTAL_EDGE_MM),
                (self.emphysema.panlobular, PANLOBULAR_EDGE_MM),
            )
        )
        lesion = np.maximum(np.maximum(panlobular, cle), pse)
        strands = self._faint_strands(part)
        if strands is not None:
            lung += strands * (1 - 0.8 * self.disease.vessel_loss * lesion)
        if self.mesh is not None:
            near = np.clip(1 + self.emphysema.centrilobular[part] / RIM_MM, 0, 1)
            lung -= self.mesh.parameters.darkening * near
            lung += COMPRESSION_HU * np.clip(1 + self.emphysema.paraseptal[part] / RIM_MM, 0, 1)
        if lesion.any():
            destroyed = lesion
            if self.mesh is not None:
                destroyed = np.maximum(np.maximum(pse, panlobular), cle * take(self.mesh.completeness, part))
            lung += destroyed * (take(self.destroyed, part) - lung)
            if self.mesh is not None:
                seen = self._septa(part) * np.maximum(cle, 0.4 * panlobular)
                lung += seen * np.maximum(self.mesh.parameters.septum_hu - lung, 0)
            wall = self._walls(part)
            lung += wall * (SEPTUM_HU - lung)

        fissure = self._fissures(part)
        lung += fissure * (FISSURE_HU - lung)
        vessels = self.trees.vessels[part]
        kept = 1 - self.disease.vessel_loss * lesion * smoothstep((SMALL_VESSEL - vessels) / 0.3)
        lung += vessels * kept * (self.parameters.vessel_hu - lung)
        walls, bronchi = self.trees.bronchial_walls[part], self.trees.bronchi[part]
        lung += walls * (BRONCHIAL_WALL_HU - lung)
        lung += bronchi * (AIR_HU - lung)
        return share, lung

    def _thin(self, distance: Floats, thickness: float) -> Floats:
        """Share of a sheet of `thickness` mm in voxels at `distance` mm; one thinner than a voxel is seen as part of one."""
        width = max(thickness, 0.5 * min(self.lungs.grid.spacing[1:]))
        return np.maximum(1 - np.abs(distance) / width, 0) * np.float32(thickness / width)

    def _faint_strands(self, part: slice) -> Floats | None:
        """HU of strands thinner than a voxel, None where there are none."""
        parameters = self.parameters.strands
        if parameters is None or self.strands is None:
            return None
        first, second = (self.resampler.slab(field, part) for field in self.strands)
        # A voxel sees a strand as wide as itself, and so much fainter.
        pixel = self.lungs.grid.spacing[1] * self.lungs.grid.spacing[2] / 12
        seen = parameters.radius**2 + pixel
        height = np.float32(parameters.contrast * parameters.radius**2 / seen)
        return np.asarray(height * np.exp(-(first**2 + second**2) / np.float32(2 * seen)), np.float32)

    def _septa(self, part: slice) -> Floats:
        """Share of interlobular septa."""
        if self.mesh is None:
            return np.zeros(1, np.float32)
        first, second = (np.abs(self.resampler.slab(field, part)) for field in self.mesh.septa)
        return self._thin(np.minimum(first, second), self.mesh.parameters.septum)

    def _walls(self, part: slice) -> Floats:
        """Share of thin wall: between paraseptal cells, and between them and the lung."""
        thickness = self.disease.paraseptal.wall
        if self.mesh is not None:
            depth = self.emphysema.paraseptal[part]
            between = np.where(depth > 0, self._thin(self.emphysema.septum[part], thickness), 0)
            return np.asarray(np.maximum(between, 0.6 * self._thin(depth, thickness)), np.float32)
        depth, septum = self.emphysema.paraseptal[part], self.emphysema.septum[part]
        inside = depth > -NEVER / 2
        wall = np.where(inside, np.maximum(1 - np.abs(septum) / thickness, 0), 0)
        rim = np.where(inside, np.maximum(1 - np.abs(depth) / thickness, 0), 0)
        return np.asarray(np.where(depth > 0, np.maximum(wall, 0.4 * rim), 0.4 * rim), np.float32)

    def _fissures(self, part: slice) -> Floats:
        """Share of pleura in the fissures; a fissure thinner than a voxel is seen as part of one."""
        seen = self._thin(self.lungs.fissure[part], self.parameters.fissures.thickness)
        presence = self.resampler.slab(self.anatomy.fissure_presence, part)
        return np.asarray(seen * presence * (self.lungs.lobes[part] > 0), np.float32)


def _share(depth: Floats, edge: float) -> Floats:
    """Share of destroyed lung from the depth inside a lesion, which fades over `edge` mm."""
    if depth.max() <= -edge:
        return np.zeros(depth.shape, np.float32)
    return smoothstep(depth / edge + 0.5)


def _draw_trunk(chest: Floats, grid: Grid, trunk: Tubes, lung: Floats, lung_box: tuple[slice, slice, slice]) -> None:
    """Draw trachea and main bronchi into `chest` (HU, on `grid`) but not into the lungs, whose share is `lung`."""
    points = np.concatenate([trunk.start, trunk.middle, trunk.end])
    margin = float(trunk.radius_start.max()) + 4
    low, high = grid.index(np.stack([points.min(0) - margin, points.max(0) + margin]))
    start = np.clip(low.astype(int), 0, grid.shape)
    stop = np.clip(np.ceil(high).astype(int) + 1, 0, grid.shape)
    if (start >= stop).any():
        return
    box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    part = grid.cropped(box)
    first = np.maximum(start, [side.start for side in lung_box])
    last = np.minimum(stop, [side.stop for side in lung_box])
    outside = np.ones(part.shape, np.float32)
    if (first < last).all():
        here = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, start, strict=True))
        there = tuple(slice(a - side.start, b - side.start) for a, b, side in zip(first, last, lung_box, strict=True))
        outside[here] -= lung[there]
    region = chest[box]
    region += coverage(trunk.resized(1.0, TRACHEAL_WALL_MM), part) * outside * (TRACHEAL_WALL_HU - region)
    region += coverage(trunk, part) * outside * (AIR_HU - region)
