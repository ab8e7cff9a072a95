"""The chest around and inside the lungs: pleura, fissures, lobes, hila, bones and soft tissue, on a coarse lattice.

Nothing here knows of disease: a case with the same seed has the same anatomy whatever its emphysema.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..lungs.anatomy import LOBES
from . import shapes
from .grid import Bools, Floats, Grid, Labels, Resampler, smooth_field
from .shapes import LungShape, ThoraxParameters, draw_thorax

LATTICE_MM = 3.0
LATTICE_MARGIN_MM = 24.0
TOWARDS_RIGHT, TOWARDS_LEFT = -1, 1
"""Signs of x."""

LOBES_AT_HORIZONTAL = (LOBES["right_upper_lobe"], LOBES["right_middle_lobe"])
"""The lobes on the two sides of the horizontal fissure."""

SHOULDER = 1.15
"""Width of the body at the shoulders relative to the chest."""

FAT_HU, MUSCLE_HU, BLOOD_HU, LIVER_HU, BONE_HU = -100.0, 50.0, 42.0, 58.0, 480.0


@dataclass(frozen=True)
class FissureParameters:
    """Where the fissures lie and how much of them shows.

    Attributes:
        height: level of the oblique fissures at mid depth, as a share of the lung's height (right, left).
        slope: rise of the oblique fissures from front to back, mm a mm (right, left).
        horizontal: level of the horizontal fissure, as a share of the height.
        waviness: amplitude of their bends, in mm.
        thickness: of the pleura that lines them, in mm.
        completeness: share of them that is there.
    """

    height: tuple[float, float]
    slope: tuple[float, float]
    horizontal: float
    waviness: float
    thickness: float
    completeness: float


@dataclass(frozen=True)
class ParenchymaParameters:
    """Lung tissue between the vessels.

    Attributes:
        density: mean HU at mid depth; deep inspiration lowers it.
        gradient: HU from the front to the back of the lungs, by gravity (supine).
        mottle, mottle_length: HU and mm of the slow variation between regions.
        grain: HU of the fine texture of lobules and vessels too small to be drawn.
        dependent: HU added in the last centimetre at the back, where the lung is compressed.
        floor: HU below which nothing healthy is drawn; None: `attenuation.HEALTHY_FLOOR_HU`.
    """

    density: float
    gradient: float
    mottle: float
    mottle_length: float
    grain: float
    dependent: float
    floor: float | None = None


@dataclass(frozen=True)
class StrandParameters:
    """Vessels and strands thinner than a voxel, which show as faint specks and lines.

    Attributes:
        spacing: mm between them, roughly.
        radius: mm (standard deviation of their profile).
        contrast: HU of their middle above the lung, at full resolution.
    """

    spacing: float
    radius: float
    contrast: float


@dataclass(frozen=True)
class AnatomyParameters:
    """All that describes a healthy chest.

    Attributes:
        mask_margin: mm by which the lung mask stays inside the pleura (or goes beyond it, if negative).
        vessel_scale: radius of the vessels relative to the usual one.
        vessel_hu: attenuation of blood.
        murray: how slowly vessels narrow (exponent of Murray's law; higher: thinner trunks); None: `trees.MURRAY`.
        strands: vessels too thin to be grown; None in the first look.
    """

    thorax: ThoraxParameters
    fissures: FissureParameters
    parenchyma: ParenchymaParameters
    mask_margin: float
    vessel_scale: float
    vessel_hu: float
    murray: float | None = None
    strands: StrandParameters | None = None


def draw_anatomy(rng: np.random.Generator) -> AnatomyParameters:
    """Draw a chest.

    Healthy lung at full inspiration has a median of -895 HU in COPDGene's patches; one in ten is hyperinflated and darker
    still, so that no threshold parts it from emphysema.
    """
    density = rng.normal(-895, 20)
    hyperinflated = rng.normal(-926, 10)
    return AnatomyParameters(
        thorax=draw_thorax(rng),
        fissures=FissureParameters(
            height=(rng.uniform(0.36, 0.46), rng.uniform(0.38, 0.48)),
            slope=(rng.uniform(0.85, 1.25), rng.uniform(0.9, 1.3)),
            horizontal=rng.uniform(0.48, 0.56),
            waviness=rng.uniform(2, 6),
            thickness=rng.uniform(0.25, 0.6),
            completeness=rng.uniform(0.5, 1.0),
        ),
        parenchyma=ParenchymaParameters(
            density=float(np.clip(hyperinflated if rng.random() < 0.1 else density, -948, -835)),
            gradient=rng.uniform(15, 45),
            mottle=rng.uniform(3, 9),
            mottle_length=rng.uniform(18, 45),
            grain=rng.uniform(3, 9),
            dependent=float(rng.choice([0.0, 1.0]) * rng.uniform(10, 90)),
            floor=-985.0,
        ),
        mask_margin=rng.uniform(-0.4, 0.9),
        vessel_scale=rng.uniform(0.85, 1.15),
        vessel_hu=rng.uniform(30, 70),
        murray=rng.uniform(4.4, 5.4),
        strands=StrandParameters(rng.uniform(3.2, 5.0), rng.uniform(0.4, 0.65), rng.uniform(70, 180)),
    )


@dataclass(frozen=True)
class MaskParameters:
    """A lung mask made by a threshold, as many are, and not by a reader.

    Attributes:
        airways: whether trachea and main bronchi are in it.
        vessels: whether vessels that fill most of a voxel are left out of it.
    """

    airways: bool
    vessels: bool


def draw_mask(rng: np.random.Generator) -> MaskParameters | None:
    """One mask in three is made by a threshold."""
    threshold, airways, vessels = rng.random(3) < (0.35, 0.7, 0.5)
    return MaskParameters(bool(airways), bool(vessels)) if threshold else None


@dataclass(frozen=True)
class Body:
    """What surrounds the lungs, as fields on `lattice` (float32).

    Attributes:
        tissue: HU of soft tissue and fat.
        bone: share of bone, 0 to 1.
        skin: signed distance to the skin in mm, positive inside.
    """

    lattice: Grid
    tissue: Floats
    bone: Floats
    skin: Floats


@dataclass(frozen=True)
class Anatomy:
    """A chest as fields on `lattice` (float32 unless said; mm or HU).

    Attributes:
        right, left: signed distance to the surface of each lung, in mm, positive inside.
        major, minor: signed distance to the oblique and the horizontal fissure, positive above; `minor` counts only
            in the right lung above `major`.
        lobes: uint8, labels of `LOBES`, 0 outside the lungs.
        bone: share of bone, 0 to 1.
        body: what surrounds the lungs, on a lattice of its own that may reach farther.
        clearance: height above the diaphragm.
        fissure_presence: 0 where a fissure is incomplete, 1 where it is there.
        hila: entry point of vessels and bronchi into the right and the left lung (2 x 3, z y x).
        carina: where the trachea divides (z y x).
        low, high: corners of the lungs' bounding box, in mm (z y x).
    """

    lattice: Grid
    thorax: ThoraxParameters
    right: Floats
    left: Floats
    major: Floats
    minor: Floats
    lobes: Labels
    bone: Floats
    body: Body
    clearance: Floats
    fissure_presence: Floats
    hila: npt.NDArray[np.float64]
    carina: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]

    def distance(self) -> Floats:
        """Distance to the pleura on the lattice, in mm: positive inside either lung."""
        return np.maximum(self.right, self.left)

    def fissure_distance(self) -> Floats:
        """Unsigned distance to the nearest fissure on the lattice, in mm."""
        major, minor = np.abs(self.major), np.abs(self.minor)
        return np.where(np.isin(self.lobes, LOBES_AT_HORIZONTAL), np.minimum(major, minor), major)


def label_lobes(right: Bools, left: Bools, above_major: Bools, above_minor: Bools) -> Labels:
    """Lobe labels (uint8) from which lung a voxel is in and on which side of the fissures it lies."""
    lobes = np.zeros(right.shape, np.uint8)
    lobes[right] = LOBES["right_lower_lobe"]
    lobes[right & above_major] = LOBES["right_middle_lobe"]
    lobes[right & above_major & above_minor] = LOBES["right_upper_lobe"]
    lobes[left] = LOBES["left_lower_lobe"]
    lobes[left & above_major] = LOBES["left_upper_lobe"]
    return lobes


def build_anatomy(
    parameters: AnatomyParameters, rng: np.random.Generator, lungs: LungShape | None = None, to_skin: bool = False
) -> Anatomy:
    """Build the chest that `parameters` describe; its random bends come from `rng`.

    Args:
        to_skin: whether the body must reach to the skin; the lungs do not depend on it.
        lungs: the lungs to build the chest around; without them, their shape follows from the parameters.
    """
    thorax = parameters.thorax
    if lungs is not None:
        sz, sy, sx = thorax.mask_scale
        thorax = replace(thorax, half_width=lungs.half_width * sx, half_depth=lungs.half_depth * sy, height=lungs.height * sz)
    margin = LATTICE_MARGIN_MM
    lattice = Grid.covering(
        (-margin, -thorax.half_depth - margin, -thorax.half_width - margin),
        (thorax.height + margin, thorax.half_depth + margin, thorax.half_width + margin),
        LATTICE_MM,
    )
    bends = [thorax.deformation * smooth_field(lattice, thorax.deformation_length, rng) for _ in range(3)]
    z, y, x = (coordinate + bend for coordinate, bend in zip(lattice.coordinates(), bends, strict=True))
    if lungs is None:
        implicit = list(shapes.parametric_lungs(thorax, z, y, x))
    else:
        index = np.stack([z / sz, y / sy, x / sx]) - np.reshape(lungs.grid.origin, (3, 1, 1, 1))
        index /= lungs.grid.spacing[0]
        implicit = [
            ndimage.map_coordinates(field, index, order=1, mode="nearest").astype(np.float32)
            for field in (lungs.right, lungs.left)
        ]
    right, left = (_signed_distance(field, lattice.spacing[0]) for field in implicit)
    major, minor = _fissures(parameters.fissures, thorax, lattice, rng)
    lobes = label_lobes(right > 0, left > 0, major > 0, minor > 0)
    inside = lobes > 0
    spans = [np.flatnonzero(inside.any(tuple(k for k in range(3) if k != axis))) for axis in range(3)]
    low = np.array([lattice.axis(k)[span[0]] for k, span in enumerate(spans)]) - LATTICE_MM / 2
    high = np.array([lattice.axis(k)[span[-1]] for k, span in enumerate(spans)]) + LATTICE_MM / 2
    distance = np.maximum(right, left)
    body = _body(thorax, lattice, distance, z, y, x)
    bone = body.bone
    if to_skin:
        wide = _wide_lattice(thorax)
        carry = Resampler(lattice, wide)
        everywhere = slice(0, wide.shape[0])
        bent = [coordinate + carry.slab(bend, everywhere) for coordinate, bend in zip(wide.coordinates(), bends, strict=True)]
        body = _body(thorax, wide, carry.slab(distance, everywhere), *bent)
    presence = smooth_field(lattice, 22.0, rng)
    gap = np.quantile(presence[::4, ::4, ::4], 1 - parameters.fissures.completeness)
    presence = np.clip((presence - gap) * 3, 0, 1)
    bottom = np.where(inside.any(0), lattice.axis(0)[inside.argmax(0)], np.float32(low[0]))
    clearance = np.broadcast_to(lattice.axis(0)[:, None, None], lattice.shape) - bottom
    return Anatomy(
        lattice=lattice,
        thorax=thorax,
        right=right,
        left=left,
        major=major,
        minor=minor,
        lobes=lobes,
        bone=bone,
        body=body,
        clearance=np.asarray(clearance, np.float32),
        fissure_presence=np.asarray(presence, np.float32),
        hila=np.array([_hilum(field, lattice, thorax, side) for field, side in ((right, TOWARDS_RIGHT), (left, TOWARDS_LEFT))]),
        carina=np.array([0.60 * thorax.height, 0.10 * thorax.half_depth, 0.0]),
        low=low,
        high=high,
    )


def _signed_distance(implicit: Floats, spacing: float) -> Floats:
    """Distance to the surface where `implicit` is 0, in mm, positive inside: exact to a fraction of a voxel.

    Near the surface it is the function over its slope; deeper, the distance to the nearest voxel outside, less how far
    outside that voxel lies.
    """
    slopes = np.gradient(implicit, spacing)
    slope = np.sqrt(sum(part**2 for part in slopes))
    near = np.asarray(-implicit / np.maximum(slope, 0.2), np.float32)
    inside = implicit < 0
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
    distance, index = ndimage.distance_transform_edt(inside[box], sampling=spacing, return_indices=True)
    deep = distance + near[box][tuple(index)]
    near[box] = np.where(inside[box] & (near[box] > spacing), np.maximum(deep, spacing), near[box])
    return near


def _fissures(
    parameters: FissureParameters, thorax: ThoraxParameters, lattice: Grid, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Signed distances (mm) to the oblique and the horizontal fissure, positive above."""
    z, y, x = lattice.coordinates()
    bend = parameters.waviness * smooth_field(lattice, 45.0, rng)
    sides = []
    for k, side in enumerate((TOWARDS_RIGHT, TOWARDS_LEFT)):
        slope = parameters.slope[k]
        # The oblique fissure is a propeller: steeper towards the mediastinum than at the ribs.
        twist = 0.12 * (side * x - 0.5 * thorax.half_width)
        level = parameters.height[k] * thorax.height + slope * y + twist * (y / thorax.half_depth)
        sides.append((z - level) / np.hypot(1, slope))
    major = np.where(x < 0, sides[0], sides[1]) + bend
    sag = 0.0012 * ((x + 0.5 * thorax.half_width) ** 2 + y**2)
    minor = z - parameters.horizontal * thorax.height + sag + 0.8 * bend
    return np.asarray(major, np.float32), np.asarray(minor, np.float32)


def _hilum(distance: Floats, lattice: Grid, thorax: ThoraxParameters, side: int) -> npt.NDArray[np.float64]:
    """The point of the lung's surface at hilar height that lies nearest to the midline."""
    target = np.array([0.52 * thorax.height, 0.08 * thorax.half_depth, side * 0.22 * thorax.half_width])
    surface = np.argwhere((distance > 0) & (distance < 1.5 * LATTICE_MM))
    points = lattice.points(surface)
    return np.asarray(points[np.argmin(((points - target) ** 2).sum(1))], np.float64)


def _wide_lattice(thorax: ThoraxParameters) -> Grid:
    """A coarser lattice that reaches beyond the skin everywhere."""
    margin = LATTICE_MARGIN_MM
    depth = thorax.half_depth + thorax.wall + margin
    width = SHOULDER * (thorax.half_width + thorax.wall) + margin
    return Grid.covering((-margin, -depth, -width), (thorax.height + margin, depth, width), 1.25 * LATTICE_MM)


def _body(thorax: ThoraxParameters, lattice: Grid, lung: Floats, z: Floats, y: Floats, x: Floats) -> Body:
    """The body on `lattice`, whose voxels lie at bent positions z, y, x; `lung` is the distance into the lungs (mm)."""
    cavity = shapes.cavity(thorax, z, y, x)
    # Outside the cavity the shoulders widen again, and the wall goes on below the diaphragm.
    level = z / thorax.height
    width = (thorax.half_width + thorax.wall) * np.interp(level, (0, 0.5, 0.9, 1.1), (0.97, 1, 1.08, SHOULDER))
    depth = (thorax.half_depth + 0.8 * thorax.wall) * np.interp(level, (0, 0.5, 0.9, 1.1), (1, 1, 0.92, 0.8))
    skin = (1 - (np.abs(x / width) ** 2.5 + np.abs(y / depth) ** 2.5) ** 0.4) * np.minimum(width, depth)
    outside = np.maximum(-lung, cavity)
    fat_layer = thorax.wall * np.where(np.abs(x) > 0.8 * np.abs(y), 0.45, 0.35)
    tissue = np.where(skin < fat_layer, FAT_HU, MUSCLE_HU)
    tissue = np.where((outside > 9) & (outside < 11.5), -60.0, tissue)
    inner = cavity < 2
    domes = np.where(x < 0, shapes.diaphragm(thorax, TOWARDS_RIGHT, y, x), shapes.diaphragm(thorax, TOWARDS_LEFT, y, x))
    abdomen = np.where(x < 0.15 * thorax.half_width, LIVER_HU, MUSCLE_HU)
    abdomen = np.where((x > 0.1 * thorax.half_width) & (z < domes - 25) & (np.hypot(y, x - 50) < 45), -85.0, abdomen)
    tissue = np.where(inner, np.where(z < domes + 4, abdomen, FAT_HU + 30), tissue)
    blood = np.minimum(shapes.heart(thorax, z, y, x) + 3, shapes.aorta(thorax, z, y, x) + 2)
    blood = np.minimum(blood, np.hypot(x + 14, y + 0.15 * thorax.half_depth) - 11 + 40 * (level < 0.45))
    tissue = np.where(inner & (blood < 0), BLOOD_HU, tissue)

    # Ribs run round the cavity, from high at the spine to low in front, in the first centimetre outside it.
    shell = np.where(cavity > -12, -lung, 50.0)
    around = np.arctan2(np.abs(x) / thorax.half_width, y / thorax.half_depth) / np.pi
    period = thorax.height / 10.5
    phase = (z + 0.30 * thorax.height * around**1.3) / period
    across = (phase - np.floor(phase) - 0.5) * period
    rib = 1.6 - np.hypot((shell - 6.5) / 4.0, across / 6.0) * 1.1
    rib = np.where((around > 0.06) & (around < 0.86) & (skin > 4), rib, 0)
    body = 1.25 - np.hypot(x / (0.145 * thorax.half_width), (y - 0.80 * thorax.half_depth) / (0.14 * thorax.half_width))
    disc = np.abs((z / period * 1.0) % 1 - 0.5) * 2
    vertebra = np.clip(3.5 * body, 0, 1) * np.where(disc > 0.82, 0.1, 0.75)
    arch = np.hypot(x, y - 1.03 * thorax.half_depth) / (0.10 * thorax.half_width)
    vertebra = np.maximum(vertebra, np.clip(2.5 * (0.35 - np.abs(arch - 1)), 0, 0.9) * (y < 1.2 * thorax.half_depth))
    sternum = 1.4 - np.hypot((shell - 7) / 5, x / 16) if thorax.wall > 0 else np.zeros_like(rib)
    sternum = np.where((y < -0.5 * thorax.half_depth) & (np.abs(level - 0.62) < 0.3), sternum, 0)
    bone = np.clip(np.maximum(np.maximum(rib, vertebra), sternum), 0, 1)
    return Body(lattice, np.asarray(tissue, np.float32), np.asarray(bone, np.float32), np.asarray(skin, np.float32))
