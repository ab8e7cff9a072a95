"""Emphysema: which parameters describe it, how it spreads through given lungs, and exactly how much of them it takes.

Every lesion has a centre, an onset, and a rate of growth, so each voxel has a time at which disease reaches it.
Stopping the clock when the wanted share of the lung has been reached gives any extent exactly, and number, size and
confluence of lesions grow with it as they do in people: early disease is a few small lucencies, late disease has
coalesced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from ..fleischner import CENTRILOBULAR
from .anatomy import LOBES_AT_HORIZONTAL, Anatomy
from .grid import Floats, Grid, Labels, Resampler, smooth_field

Points = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.float64]

RIM_MM = 3.0
"""Depths are known this far outside a lesion; its soft edge and its wall lie within."""

NEVER = np.float32(1e6)
"""The time (mm of growth) at which disease reaches a voxel that no lesion reaches."""

LESION_HU = (-1000.0, -950.0)
FORM_LENGTH_MM = 4.5
"""Size of the bumps that make lesions lobular rather than round."""

FORM_LIMIT = 1.6
"""The form's bumps are cut at this many standard deviations, so that a lesion has a farthest reach."""

CENTRE_DEPTH_MM = 4.0
"""Lobular centres lie at least this far from the pleura and fissures: half of a small lobule."""

ONSET_MM = 8.0
"""A paraseptal cell has grown up before the next region begins: few full cells rather than many small ones."""

INWARD = 0.35
"""Paraseptal cells are centred this share of their radius inside the pleura: they are deeper than half a ball."""

HILUM_MM = 28.0
"""There is no pleura, and no paraseptal emphysema, where vessels and bronchi enter the lung."""

RECESS_MM = 9.0
"""How far around a place of the pleura the lung counts that makes it a recess or not."""

CELL_LOBULARITY = 0.08

THINNING = 3
"""Every so many voxels in plane are enough to find out when growth has to stop, but for a last few per cent."""

MAX_ATTEMPTS = 12


class NoRoomError(Exception):
    """Lungs have no room for the emphysema that was drawn for them."""


@dataclass(frozen=True)
class CentrilobularParameters:
    """Centrilobular emphysema (CLE).

    Attributes:
        percentage: share of the lung, in percent.
        lobule_spacing: mm between the centres of secondary lobules.
        upper_predominance: how strongly it prefers the upper zones: log ratio of the rates at apex and base.
        patchiness: how unevenly regions are affected (standard deviation of the log rate).
        onset_spread: mm by which the largest lesions lead the typical one: small makes all lesions alike.
        onset_radius: mm at which a lesion begins to show.
        satellites: share of lobules with a second, smaller lesion.
        lobularity: departure from round, as a share of the radius.
        hole: radius beyond which a lesion hardly grows, as a share of the spacing; None: it goes on growing.
    """

    percentage: float
    lobule_spacing: float
    upper_predominance: float
    patchiness: float
    onset_spread: float
    onset_radius: float
    satellites: float
    lobularity: float
    hole: float | None = None


@dataclass(frozen=True)
class ParaseptalParameters:
    """Paraseptal emphysema (PSE): one layer of thin-walled cells on the pleura and the fissures.

    Attributes:
        percentage: share of the lung, in percent.
        cell_radius: mm that a typical cell reaches into the lung; mild cells stay within 1 cm across.
        cell_variation: standard deviation of the log of the cells' radii.
        apical_predominance: as `CentrilobularParameters.upper_predominance`.
        patchiness: how much it comes in runs.
        fissural: weight of the fissures relative to the costal pleura.
        recess: how strongly it prefers tongues and recesses, where pleura surrounds little lung (0: not at all).
        wall: thickness of the walls between cells, in mm.
        bullae: number of bullae.
        bulla_radius: mm that the largest bulla reaches.
    """

    percentage: float
    cell_radius: float
    cell_variation: float
    apical_predominance: float
    patchiness: float
    fissural: float
    wall: float
    bullae: int
    bulla_radius: float
    recess: float | None = None


@dataclass(frozen=True)
class PanlobularParameters:
    """Panlobular emphysema: whole lobules, diffusely, with a preference for the bases.

    Attributes:
        percentage: share of the lung, in percent.
        basal_predominance: how strongly it prefers the bases over its own unevenness.
        length: mm over which it varies.
    """

    percentage: float
    basal_predominance: float
    length: float


@dataclass(frozen=True)
class MeshParameters:
    """What is left of the lung between destroyed parts: interlobular septa, and lung that is darkened but there.

    Attributes:
        lobule: mm between the centres of secondary lobules, whose septa form the mesh.
        septum: thickness of the septa, in mm.
        septum_hu: HU of a septum as thick as a voxel.
        darkening: HU by which lung within 3 mm of a centrilobular lesion is darker.
        completeness: how far lung inside lesions is destroyed, on average (1: all of it).
        unevenness: standard deviation of that.
    """

    lobule: float
    septum: float
    septum_hu: float
    darkening: float
    completeness: float
    unevenness: float


@dataclass(frozen=True)
class DiseaseParameters:
    """All three subtypes, and how destroyed lung looks.

    Attributes:
        attenuation: mean HU of destroyed lung.
        edge: mm over which a centrilobular lesion fades into the lung around it.
        vessel_loss: share of the small vessels that is gone inside lesions.
        distortion: mm that inflated, destroyed regions push vessels and airways aside (advanced destructive disease).
        mesh: what is left between lesions; None in the first look.
    """

    centrilobular: CentrilobularParameters
    paraseptal: ParaseptalParameters
    panlobular: PanlobularParameters
    attenuation: float
    edge: float
    vessel_loss: float
    distortion: float
    mesh: MeshParameters | None = None

    @property
    def present(self) -> bool:
        """Whether there is any."""
        return self.centrilobular.percentage + self.paraseptal.percentage + self.panlobular.percentage > 0


def draw_disease(
    rng: np.random.Generator,
    centrilobular: float,
    paraseptal: float,
    panlobular: float = 0.0,
    shifted: bool = False,
) -> DiseaseParameters:
    """Draw the look of a disease whose extents, in percent of the lung, are given.

    Args:
        shifted: draw from beyond the usual range: closer or wider holes, basal or even spread, other cells.
    """
    outside = rng.random() < 0.5
    # Mild cells are small; substantial disease has larger ones and bullae.
    substantial = np.clip((paraseptal - 3) / 4, 0, 1)
    if shifted:
        spacing = rng.uniform(5.0, 5.8) if outside else rng.uniform(12, 16)
        upper, apical = rng.uniform(-1.5, 0.2), rng.uniform(-0.5, 0.5)
        cell = rng.uniform(2.5, 3.5) if outside else rng.uniform(10, 12)
    else:
        spacing = rng.uniform(6.0, 10.0)
        upper, apical = rng.uniform(0.3, 3.0), rng.uniform(0.5, 3.0)
        cell = rng.uniform(3.4, 6.5) + substantial * rng.uniform(0.3, 3.0)
    bullae = int(rng.binomial(6, substantial * rng.uniform(0.1, 0.9)))
    return DiseaseParameters(
        centrilobular=CentrilobularParameters(
            percentage=centrilobular,
            lobule_spacing=float(spacing),
            upper_predominance=upper,
            patchiness=rng.uniform(0.4, 1.4),
            onset_spread=rng.uniform(1.5, 4.0),
            onset_radius=rng.uniform(0.8, 1.4),
            satellites=rng.uniform(0.0, 0.4),
            lobularity=rng.uniform(0.15, 0.35),
            hole=rng.uniform(0.36, 0.55),
        ),
        paraseptal=ParaseptalParameters(
            percentage=paraseptal,
            cell_radius=float(cell),
            cell_variation=rng.uniform(0.2, 0.5),
            apical_predominance=apical,
            patchiness=rng.uniform(1.0, 2.5),
            fissural=rng.uniform(0.2, 1.0),
            wall=rng.uniform(0.25, 0.6),
            bullae=bullae,
            bulla_radius=rng.uniform(12, 34),
            recess=rng.uniform(6, 20),
        ),
        panlobular=PanlobularParameters(panlobular, rng.uniform(2, 6), rng.uniform(15, 40)),
        attenuation=rng.uniform(-995, -968),
        edge=rng.uniform(0.3, 0.8),
        vessel_loss=rng.uniform(0.6, 0.95),
        distortion=float((centrilobular >= CENTRILOBULAR.grades[-1].lower) * rng.uniform(2, 7)),
        mesh=MeshParameters(
            lobule=rng.uniform(9, 16),
            septum=rng.uniform(0.2, 0.55),
            septum_hu=rng.uniform(-830, -720),
            darkening=rng.uniform(12, 48),
            completeness=rng.uniform(0.9, 1.0),
            unevenness=rng.uniform(0.02, 0.12),
        ),
    )


@dataclass(frozen=True)
class Emphysema:
    """Emphysema in given lungs, on the grid of `lobes`; float32 fields, in mm, `-NEVER` where there is none.

    Attributes:
        centrilobular, paraseptal, panlobular: how deep inside a lesion a voxel lies; truth is where it is at least 0.
        septum: distance to the wall between two paraseptal cells.
    """

    centrilobular: Floats
    paraseptal: Floats
    panlobular: Floats
    septum: Floats


def spread(
    parameters: DiseaseParameters,
    anatomy: Anatomy,
    grid: Grid,
    lobes: Labels,
    room: Labels,
    every: int,
    rng: np.random.Generator,
) -> Emphysema:
    """Let each subtype grow until it takes its percentage of the lungs.

    Args:
        grid: the grid of `lobes` and `room`.
        lobes: lobe labels, 0 outside the lungs: what percentages are of.
        room: lobe labels where emphysema may grow; no lesion crosses from one lobe to another.
        every: the extent is counted in the middle one of every so many slices (thick slices rendered from thin ones).
        rng: its stream gives places and onsets.
    """
    streams = rng.spawn(4)
    counted = slice(every // 2, (grid.shape[0] // every) * every, every)
    voxels = int(np.count_nonzero(lobes[counted]))
    open_lobes = room.copy()
    resampler = Resampler(anatomy.lattice, grid)
    form = np.clip(smooth_field(anatomy.lattice, FORM_LENGTH_MM, streams[0]), -FORM_LIMIT, FORM_LIMIT)
    form = _full(resampler, form)

    # The pleura comes first: a paraseptal cell displaces what centrilobular disease would have taken.
    paraseptal, septum = _paraseptal(parameters.paraseptal, anatomy, grid, open_lobes, form, counted, voxels, streams[1])
    open_lobes[paraseptal >= 0] = 0
    centrilobular = _centrilobular(parameters.centrilobular, anatomy, grid, open_lobes, form, counted, voxels, streams[2])
    open_lobes[centrilobular >= 0] = 0
    panlobular = _panlobular(parameters.panlobular, anatomy, resampler, open_lobes, counted, voxels, streams[3])
    return Emphysema(centrilobular, paraseptal, panlobular, septum)


def _full(resampler: Resampler, field: Floats) -> Floats:
    """`field` on the whole of the resampler's target."""
    result = np.empty(resampler.target.shape, np.float32)
    for part in resampler.target.slabs():
        result[part] = resampler.slab(field, part)
    return result


def _stop(time: Floats, limit: float, wanted: int) -> np.float32 | None:
    """The time at which `wanted` voxels have been reached, or None if fewer are reached before `limit`."""
    reached = time[time <= limit]
    if len(reached) < wanted:
        return None
    if wanted == 0:
        return np.float32(0)
    return np.float32(np.partition(reached, wanted - 1)[wanted - 1])


def _wanted(percentage: float, voxels: int) -> int:
    return round(percentage / 100 * voxels)


OVERGROWTH = 6.0
"""Slope of time beyond a lesion's last radius: it nearly, but not quite, stops growing."""


@dataclass(frozen=True)
class _Lesions:
    """N lesions: centre (N x 3, mm), stretch along each axis (N x 3), lobe, onset (mm of growth), and radii in mm: the
    one it begins with, and the one beyond which it hardly grows. `ball` is the share of a ball that lies in the lung,
    `least_form` the smallest factor that a lesion's form puts on distances."""

    centre: Points
    stretch: Points
    lobe: Labels
    onset: Numbers
    first_radius: Numbers
    last_radius: Numbers
    ball: float
    least_form: float

    def radius(self, limit: float) -> Numbers:
        """Radius of each lesion when the clock stops at `limit`, 0 before its onset."""
        radius = limit - self.onset + self.first_radius
        over = np.maximum(radius - self.last_radius, 0)
        return np.where(self.onset <= limit, radius - over * OVERGROWTH / (1 + OVERGROWTH), 0)

    def stopped(self, limit: float) -> _Lesions:
        """The lesions as they are when the clock stops at `limit`: their time is the distance to their surface."""
        radius = self.radius(limit)
        active = radius > 0
        return _Lesions(
            centre=self.centre[active],
            stretch=self.stretch[active],
            lobe=self.lobe[active],
            onset=-radius[active],
            first_radius=np.zeros(int(active.sum())),
            last_radius=np.full(int(active.sum()), np.inf),
            ball=self.ball,
            least_form=self.least_form,
        )

    def limit_for(self, share: float, lung: float) -> float:
        """A time by which `share` of `lung` mm3 is probably reached, if lesions overlap by chance."""
        low, high = 0.0, 200.0
        for _ in range(30):
            middle = (low + high) / 2
            balls = self.ball * 4 / 3 * np.pi * float((self.radius(middle)[:, None] * self.stretch).prod(1).sum())
            low, high = (low, middle) if -np.expm1(-balls / lung) > share else (middle, high)
        return 1.15 * high + 0.5


def _grow(lesions: _Lesions, grid: Grid, lobes: Labels, form: Floats, limit: float, second: Floats | None) -> Floats:
    """The time at which the first lesion reaches each voxel, right up to `limit`; the second's is written to `second`.

    Args:
        form: what distances to a lesion's centre are multiplied with; at least `exp(-FORM_LIMIT * lobularity)`.
    """
    first = np.full(grid.shape, NEVER, np.float32)
    axes = [grid.axis(k).astype(np.float64) for k in range(3)]
    radius = lesions.radius(limit)
    active = np.flatnonzero(radius > 0)
    reach = (radius[:, None] * lesions.stretch) / lesions.least_form
    starts = np.maximum(0, np.ceil(grid.index(lesions.centre - reach))).astype(int)
    stops = np.minimum(grid.shape, np.floor(grid.index(lesions.centre + reach)) + 1).astype(int)
    for k in active:
        if (starts[k] >= stops[k]).any():
            continue
        window = tuple(slice(start, stop) for start, stop in zip(starts[k], stops[k], strict=True))
        here = lobes[window] == lesions.lobe[k]
        dz, dy, dx = (
            (((axes[i][window[i]] - lesions.centre[k, i]) / lesions.stretch[k, i]) ** 2).astype(np.float32) for i in range(3)
        )
        time = (dz[:, None] + dy)[:, :, None] + dx
        np.sqrt(time, out=time)
        time *= form[window]
        if np.isfinite(lesions.last_radius[k]):
            time += OVERGROWTH * np.maximum(time - np.float32(lesions.last_radius[k]), 0)
        time -= np.float32(lesions.first_radius[k])
        np.maximum(time, 0, out=time)
        time += np.float32(lesions.onset[k])
        time[~here] = NEVER
        earliest = first[window]
        if second is not None:
            later = second[window]
            np.minimum(later, np.maximum(earliest, time), out=later)
        np.minimum(earliest, time, out=earliest)
    return first


def _stop_time(lesions: _Lesions, grid: Grid, lobes: Labels, form: Floats, counted: slice, share: float, limit: float) -> float:
    """The time at which `share` (0 to 1) of the counted voxels with a lobe have been reached; `limit` is a first guess.

    Raises:
        NoRoomError: the lesions cannot take that much of the lungs.
    """
    wanted = round(share * int(np.count_nonzero(lobes[counted])))
    for _ in range(MAX_ATTEMPTS):
        stop = _stop(_grow(lesions, grid, lobes, form, limit, None)[counted], limit, wanted)
        if stop is not None:
            return float(stop)
        limit = 1.3 * limit + 1
    raise NoRoomError(f"emphysema could not grow to {100 * share:.1f} % of what room there is in the lungs")


def _grow_until(
    lesions: _Lesions, grid: Grid, lobes: Labels, form: Floats, counted: slice, wanted: int, with_walls: bool = False
) -> tuple[Floats, Floats]:
    """Grow `lesions` until `wanted` of the counted voxels are reached.

    Returns:
        How deep inside a lesion each voxel lies, and its distance to the wall between two lesions (`NEVER` without
        `with_walls`), both in mm.

    Raises:
        NoRoomError: the lesions cannot take that much of the lungs.
    """
    share = wanted / max(1, int(np.count_nonzero(lobes[counted])))
    thin = (slice(None), slice(None, None, THINNING), slice(None, None, THINNING))
    # How long to grow is found on fewer voxels; the whole grid is then grown a little longer, once.
    limit = lesions.limit_for(share, float(np.count_nonzero(lobes)) * grid.voxel_mm3)
    limit = 1.03 * _stop_time(lesions, grid.thinned(THINNING), lobes[thin], form[thin], counted, share, limit) + 0.2
    stop = _stop_time(lesions, grid, lobes, form, counted, share, limit)
    second = np.full(grid.shape, NEVER, np.float32) if with_walls else None
    first = _grow(lesions.stopped(stop), grid, lobes, form, RIM_MM, second)
    if second is None:
        septum: Floats = np.broadcast_to(NEVER, grid.shape)
    else:
        septum = np.subtract(second, first, out=second)
        septum /= 2
    np.negative(first, out=first)
    return first, septum


def _region_rate(
    anatomy: Anatomy, points: Points, predominance: float, patchiness: float, length: float, rng: np.random.Generator
) -> Numbers:
    """Relative rate at which disease begins at `points`: higher towards the apex, and uneven by regions."""
    level = (points[:, 0] - anatomy.low[0]) / (anatomy.high[0] - anatomy.low[0])
    field = smooth_field(anatomy.lattice, length, rng)[anatomy.lattice.nearest(points)]
    return np.asarray(np.exp(predominance * (level - 0.5) + patchiness * field), np.float64)


def _centrilobular(
    parameters: CentrilobularParameters,
    anatomy: Anatomy,
    grid: Grid,
    lobes: Labels,
    form: Floats,
    counted: slice,
    voxels: int,
    rng: np.random.Generator,
) -> Floats:
    """How deep inside CLE each voxel lies, in mm."""
    wanted = _wanted(parameters.percentage, voxels)
    if wanted == 0:
        return np.broadcast_to(-NEVER, grid.shape)
    centres = lobule_centres(anatomy, parameters.lobule_spacing, rng)
    satellite = centres[rng.random(len(centres)) < parameters.satellites]
    satellite = satellite + rng.normal(0, 0.22 * parameters.lobule_spacing, satellite.shape)
    delay = np.concatenate([np.zeros(len(centres)), rng.uniform(0.3, 1.5, len(satellite))])
    centres = np.concatenate([centres, satellite])
    at = anatomy.lattice.nearest(centres)
    keep = (anatomy.lobes[at] > 0) & (np.minimum(anatomy.distance(), anatomy.fissure_distance())[at] > CENTRE_DEPTH_MM)
    centres, delay = centres[keep], delay[keep]
    rate = _region_rate(anatomy, centres, parameters.upper_predominance, parameters.patchiness, 40.0, rng)
    onset = parameters.onset_spread * (rng.gamma(2.0, 0.5, len(centres)) / rate + delay)
    lesions = _Lesions(
        centre=centres,
        # Lesions of one age still differ in size and form.
        stretch=np.exp(rng.normal(0, 0.16, centres.shape) + rng.normal(0, 0.28, (len(centres), 1))),
        lobe=anatomy.lobes[anatomy.lattice.nearest(centres)],
        onset=onset - onset.min(),
        first_radius=np.full(len(centres), parameters.onset_radius) * rng.uniform(0.8, 1.4, len(centres)),
        last_radius=np.full(len(centres), parameters.hole * parameters.lobule_spacing if parameters.hole else np.inf),
        ball=1.0,
        least_form=float(np.exp(-FORM_LIMIT * parameters.lobularity)),
    )
    return _grow_until(lesions, grid, lobes, np.exp(parameters.lobularity * form), counted, wanted)[0]


def septa(lobule: float, anatomy: Anatomy, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Two fields on the lattice whose zeros are the septa between secondary lobules, `lobule` mm apart; in mm.

    Lobules are the cells around their centres. Each belongs to one of two groups, twice by chance; a septum is where the
    nearest centres of both groups are equally far. One septum in four has the same groups on both sides, and is missing.
    """
    centres = lobule_centres(anatomy, lobule, rng)
    inside = np.argwhere(anatomy.distance() > -anatomy.lattice.spacing[0])
    points = anatomy.lattice.points(inside)
    fields = []
    for _ in range(2):
        group = rng.random(len(centres)) < 0.5
        nearest = [spatial.cKDTree(centres[part]).query(points)[0] for part in (group, ~group)]
        field = np.full(anatomy.lattice.shape, lobule, np.float32)
        field[tuple(inside.T)] = (nearest[0] - nearest[1]) / 2
        fields.append(field)
    return fields[0], fields[1]


def lobule_centres(anatomy: Anatomy, spacing: float, rng: np.random.Generator) -> Points:
    """Centres of the secondary lobules (N x 3, mm): a body-centred lattice, shaken, `spacing` mm between neighbours."""
    cell = spacing * 2 / np.sqrt(3)
    start = anatomy.low - rng.uniform(0, cell, 3)
    counts = np.ceil((anatomy.high - start) / cell).astype(int) + 1
    corners = np.indices(counts).reshape(3, -1).T * cell + start
    centres = np.concatenate([corners, corners + cell / 2])
    centres += rng.uniform(-0.25, 0.25, centres.shape) * spacing
    inside = ((centres > anatomy.low) & (centres < anatomy.high)).all(1)
    return np.asarray(centres[inside], np.float64)


def _paraseptal(
    parameters: ParaseptalParameters,
    anatomy: Anatomy,
    grid: Grid,
    lobes: Labels,
    form: Floats,
    counted: slice,
    voxels: int,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """How deep inside PSE each voxel lies, and its distance to the wall between two cells, in mm."""
    wanted = _wanted(parameters.percentage, voxels)
    if wanted == 0:
        return np.broadcast_to(-NEVER, grid.shape), np.broadcast_to(NEVER, grid.shape)
    centres, inward, lobe, weight = pleural_sites(anatomy, 1.5 * parameters.cell_radius, parameters.fissural, rng)
    if parameters.recess:
        around = ndimage.gaussian_filter((anatomy.lobes > 0).astype(np.float32), RECESS_MM / anatomy.lattice.spacing[0])
        # Flat pleura has lung on one side: half of what is around.
        weight = weight * np.exp(np.clip(parameters.recess * (0.5 - around[anatomy.lattice.nearest(centres)]), -2, 3.5))
    rate = weight * _region_rate(anatomy, centres, parameters.apical_predominance, parameters.patchiness, 28.0, rng)
    onset = ONSET_MM * rng.gamma(3.0, 1 / 3, len(centres)) / rate
    last = parameters.cell_radius * np.exp(rng.normal(0, parameters.cell_variation, len(centres)))
    bulla = rng.choice(len(centres), min(parameters.bullae, len(centres)), replace=False, p=rate**2 / (rate**2).sum())
    last[bulla] = parameters.bulla_radius * rng.uniform(0.35, 1, len(bulla))
    # Bullae are there from the start, so together they must stay well within what is wanted.
    bullous = 2 / 3 * np.pi * float((last[bulla] ** 3).sum())
    last[bulla] *= min(1.0, (0.5 * wanted * grid.voxel_mm3 / max(bullous, 1.0)) ** (1 / 3))
    onset -= onset.min()
    onset[bulla] = 0.0
    lesions = _Lesions(
        centre=centres + INWARD * last[:, None] * inward,
        stretch=np.exp(rng.normal(0, 0.10, centres.shape)),
        lobe=lobe,
        onset=onset,
        # A bulla is large from the start: it is what makes disease substantial.
        first_radius=np.where(np.isin(np.arange(len(centres)), bulla), last, 0.6 * last),
        last_radius=last,
        ball=0.6,
        least_form=float(np.exp(-FORM_LIMIT * CELL_LOBULARITY)),
    )
    return _grow_until(lesions, grid, lobes, np.exp(CELL_LOBULARITY * form), counted, wanted, with_walls=True)


def pleural_sites(
    anatomy: Anatomy, spacing: float, fissural: float, rng: np.random.Generator
) -> tuple[Points, Points, Labels, Numbers]:
    """Sites on the pleura and the fissures, about `spacing` mm apart: position and direction into the lobe (N x 3),
    lobe, and relative weight.

    The costal and apical pleura count fully, the mediastinal half, the diaphragm hardly; fissures by `fissural`.
    """
    lattice = anatomy.lattice
    distance, fissure = anatomy.distance(), anatomy.fissure_distance()
    inside = anatomy.lobes > 0
    parts = []
    slopes = _slopes(distance, lattice)
    for on_fissure in (False, True):
        if on_fissure:
            index = np.argwhere(inside & (fissure < 2.5) & (distance > 4))
            at = tuple(index.T)
            minor = np.isin(anatomy.lobes[at], LOBES_AT_HORIZONTAL)
            minor &= np.abs(anatomy.minor[at]) < np.abs(anatomy.major[at])
            of_major, of_minor = (_slopes(field, lattice) for field in (anatomy.major, anatomy.minor))
            normal = np.stack([np.where(minor, b[at], a[at]) for a, b in zip(of_major, of_minor, strict=True)], 1)
            offset = np.where(minor, anatomy.minor[at], anatomy.major[at])
            weight = np.full(len(index), fissural) * (anatomy.fissure_presence[at] > 0.5)
        else:
            index = np.argwhere(inside & (distance < 3.5))
            at = tuple(index.T)
            normal = np.stack([slope[at] for slope in slopes], 1)
            offset = distance[at]
            outward = -normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 0.2)
            weight = np.where(outward[:, 0] < -0.55, 0.08, 1.0)
            places = lattice.points(index)
            side = np.where(places[:, 2] < 0, 1.0, -1.0)
            weight = np.where((outward[:, 2] * side > 0.5) & (weight > 0.5), 0.5, weight)
            nearest = np.min([np.linalg.norm(places - hilum, axis=1) for hilum in anatomy.hila], axis=0)
            weight = np.where(nearest < HILUM_MM, 0.0, weight)
        length = np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 0.2)
        points = lattice.points(index) - normal / length * (offset[:, None] / length)
        points += rng.uniform(-0.8, 0.8, points.shape)
        # Distances to a fissure are signed: below it, the lobe lies against their slope.
        inward = normal / length * np.sign(offset)[:, None]
        parts.append((points, inward, anatomy.lobes[at], weight))
    points, inward, lobe, weight = (np.concatenate([part[i] for part in parts]) for i in range(4))
    # One site in each cell of a grid: near enough to even spacing, and it takes no pairwise distances.
    order = rng.permutation(len(points))
    key = np.floor((points + rng.uniform(0, spacing, 3)) / spacing).astype(np.int64)
    key = ((key[:, 0] * 4096 + key[:, 1]) * 4096 + key[:, 2]) * 8 + lobe
    _, unique = np.unique(key[order], return_index=True)
    chosen = order[unique]
    chosen = chosen[weight[chosen] > 0]
    return points[chosen], inward[chosen], lobe[chosen], weight[chosen]


def _slopes(field: Floats, lattice: Grid) -> list[Floats]:
    """Derivatives of `field` along z, y, x, per mm."""
    return [np.asarray(slope, np.float32) for slope in np.gradient(field, *lattice.spacing)]


def _panlobular(
    parameters: PanlobularParameters,
    anatomy: Anatomy,
    resampler: Resampler,
    lobes: Labels,
    counted: slice,
    voxels: int,
    rng: np.random.Generator,
) -> Floats:
    """Depth inside panlobular emphysema, in mm (roughly)."""
    wanted = _wanted(parameters.percentage, voxels)
    if wanted == 0:
        return np.broadcast_to(-NEVER, lobes.shape)
    z = anatomy.lattice.coordinates()[0]
    level = (z - anatomy.low[0]) / (anatomy.high[0] - anatomy.low[0])
    field = parameters.basal_predominance * level + smooth_field(anatomy.lattice, parameters.length, rng)
    field = field + 0.35 * smooth_field(anatomy.lattice, 9.0, rng)
    time = _full(resampler, np.asarray(field * parameters.length / 2, np.float32))
    time[lobes == 0] = NEVER
    limit = _stop(time[counted], float(NEVER) - 1, wanted)
    if limit is None:
        raise NoRoomError(f"panlobular emphysema has no room for {parameters.percentage:.1f} % of the lungs")
    return np.asarray(limit - time, np.float32)
