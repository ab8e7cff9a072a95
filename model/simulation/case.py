"""One simulated case: `draw_parameters` decides by chance what it is, `simulate` turns that into a CT and its truth.

The two are apart so that a case can be replayed, or replayed with one thing changed: the same seed gives the same
lungs, vessels and noise whatever the disease or the confounders are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from ..fleischner import CENTRILOBULAR, PARASEPTAL, Subtype
from ..lungs.anatomy import LEFT, LOBES, RIGHT
from . import first_look
from .anatomy import AnatomyParameters, MaskParameters, build_anatomy, draw_anatomy, draw_mask
from .attenuation import TreeVoxels, attenuation, place_lungs, room_for_emphysema, threshold_mask
from .confounders import ConfounderParameters, add_artefacts, build_confounders, draw_confounders
from .disease import DiseaseParameters, draw_disease, spread
from .grid import Bools, Labels
from .scanner import GridName, ScannerParameters, Slab, draw_scanner, plan, scan
from .shapes import LungShape
from .trees import grow_trees

CENTRILOBULAR_CASES = (782, 431, 478, 430, 275, 111)
PARASEPTAL_CASES = (1145, 739, 623)
"""Cases of each score in the development set (Table 1 b and c)."""

SCORE_CORRELATION = 0.45
"""Of the severities of CLE and PSE in a patient (of the normal variables behind the scores)."""

REPEATED_SHARE = 0.04
"""Share of the cases, of those whose scores are not given, that repeat one slice."""

NO_DISEASE_SHARE = 0.6
"""Share of the cases that score 0 which have none at all; the others have less than the first grade takes."""

INTERVAL_MARGIN = 0.02
"""Targets keep this share of their interval from its ends, so that rounding never moves a case to another score."""

OPEN_TOP = {CENTRILOBULAR.name: (9.0, 60.0), PARASEPTAL.name: (4.5, 22.0)}
"""For the top grade, which reaches to 100 %: mean excess over its lower end, and the largest percentage; together the
largest still leave room for vessels."""

ROOM = 84.0
"""Largest percentage of the lung that all subtypes take together."""

SIDE_OF_LOBE = np.array(
    [0, *(RIGHT if name.startswith("right") else LEFT for name in sorted(LOBES, key=LOBES.__getitem__))], np.uint8
)
"""Label of the lung (1 right, 2 left) by lobe label, 0 outside."""


Look = Literal["measured", "first"]


@dataclass(frozen=True)
class _Draws:
    """How the four parts of a case are drawn."""

    anatomy: Callable[[np.random.Generator], AnatomyParameters]
    disease: Callable[[np.random.Generator, float, float, float, bool], DiseaseParameters]
    confounders: Callable[[np.random.Generator], ConfounderParameters]
    scanner: Callable[[np.random.Generator, float, bool], ScannerParameters]


MEASURED = _Draws(draw_anatomy, draw_disease, draw_confounders, draw_scanner)
FIRST = _Draws(first_look.draw_anatomy, first_look.draw_disease, first_look.draw_confounders, first_look.draw_scanner)


@dataclass(frozen=True)
class CaseParameters:
    """All that is decided about a case; `seed` places what the parameters only describe.

    Attributes:
        mask: how its lung mask was made; None: it follows the pleura.
        repeated_level: share of the lungs' height whose slice is repeated to fill the scan, as single slices are tried on
            networks for volumes; percentages are then of that slice. None: a scan as it is.
    """

    seed: int
    anatomy: AnatomyParameters
    disease: DiseaseParameters
    confounders: ConfounderParameters
    scanner: ScannerParameters
    mask: MaskParameters | None = None
    repeated_level: float | None = None


@dataclass(frozen=True)
class SimulatedCase:
    """A simulated scan and the truth about it. Arrays are z, y, x in LPS: slices towards the head, rows towards
    posterior, columns towards the patient's left.

    Attributes:
        hounsfield: int16, HU, -1024 to 3071.
        lungs: uint8, 0 outside, 1 right, 2 left lung.
        centrilobular, paraseptal, panlobular: bool truth maps; no voxel is in two of them.
        spacing, origin: mm, z y x.
    """

    parameters: CaseParameters
    hounsfield: npt.NDArray[np.int16]
    lungs: Labels
    centrilobular: Bools
    paraseptal: Bools
    panlobular: Bools
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    def _percentage(self, truth: Bools) -> float:
        return 100 * float(np.count_nonzero(truth)) / float(np.count_nonzero(self.lungs))

    @cached_property
    def centrilobular_percentage(self) -> float:
        """Share of the lungs' voxels that are CLE, in percent."""
        return self._percentage(self.centrilobular)

    @cached_property
    def paraseptal_percentage(self) -> float:
        """Share of the lungs' voxels that are PSE, in percent."""
        return self._percentage(self.paraseptal)

    @cached_property
    def panlobular_percentage(self) -> float:
        """Share of the lungs' voxels that are panlobular emphysema, in percent."""
        return self._percentage(self.panlobular)

    @property
    def centrilobular_score(self) -> int:
        """Score of what was really made, by Table 1."""
        return CENTRILOBULAR.score(self.centrilobular_percentage)

    @property
    def paraseptal_score(self) -> int:
        """Score of what was really made, by Table 1."""
        return PARASEPTAL.score(self.paraseptal_percentage)


def draw_percentage(subtype: Subtype, score: int, rng: np.random.Generator) -> float:
    """A percentage of the lung (in percent) inside the interval of `score`."""
    grade = subtype.grades[score]
    if score == 0 and rng.random() < NO_DISEASE_SHARE:
        return 0.0
    margin = INTERVAL_MARGIN * (min(grade.upper, 2 * grade.lower + 1) - grade.lower)
    if grade is subtype.grades[-1]:
        mean, largest = OPEN_TOP[subtype.name]
        # Exponential, cut at the largest percentage without piling up there.
        room = largest - grade.lower - margin
        return grade.lower + margin - mean * float(np.log1p(rng.random() * np.expm1(-room / mean)))
    return float(rng.uniform(grade.lower + margin, grade.upper - margin))


def _percentages(rng: np.random.Generator, centrilobular: int | None, paraseptal: int | None, look: Look) -> list[float]:
    """Percentages of CLE and PSE inside the intervals of the scores, which are drawn where they are None."""
    tables = ((CENTRILOBULAR, centrilobular, CENTRILOBULAR_CASES), (PARASEPTAL, paraseptal, PARASEPTAL_CASES))
    for subtype, given, _ in tables:
        if given is not None and not 0 <= given < len(subtype.grades):
            raise ValueError(f"{subtype.name} score is {given}, expected 0 to {len(subtype.grades) - 1}")
    percentages = []
    if look == "first":
        for subtype, given, cases in tables:
            drawn = int(rng.choice(len(cases), p=np.array(cases) / sum(cases)))
            percentages.append(draw_percentage(subtype, drawn if given is None else given, rng))
        return percentages
    # A given score says as much of the other as a drawn one: its place on the severity that both share lies in its share.
    severity = None
    for subtype, given, cases in tables if centrilobular is not None or paraseptal is None else tables[::-1]:
        share = np.cumsum(cases) / sum(cases)
        if given is not None:
            rank = rng.uniform(share[given - 1] if given else 0.0, share[given])
            mine = float(ndtri(np.clip(rank, 1e-6, 1 - 1e-6)))
        elif severity is None:
            mine = float(rng.standard_normal())
        else:
            mine = SCORE_CORRELATION * severity + float(np.sqrt(1 - SCORE_CORRELATION**2) * rng.standard_normal())
        severity = mine if severity is None else severity
        score = min(int(np.searchsorted(share, ndtr(mine), side="right")), len(cases) - 1) if given is None else given
        percentages.append(draw_percentage(subtype, score, rng))
    return percentages if centrilobular is not None or paraseptal is None else percentages[::-1]


def _draw_repeated(rng: np.random.Generator) -> float | None:
    level = float(rng.uniform(0.25, 0.9))
    return level if rng.random() < REPEATED_SHARE else None


def draw_parameters(
    seed: np.random.SeedSequence,
    centrilobular_score: int | None = None,
    paraseptal_score: int | None = None,
    *,
    panlobular: float = 0.0,
    shifted_scanner: bool = False,
    shifted_disease: bool = False,
    lungs: LungShape | None = None,
    look: Look = "measured",
) -> CaseParameters:
    """Draw a case.

    Scores that are not given follow Table 1's development set. Patients with more of one subtype have more of the other;
    in the first look, one says nothing about the other. Anatomy, disease, confounders and scanner come from streams of
    their own: none can tell of another.

    Args:
        panlobular: percentage of the lung with panlobular emphysema; less where the other subtypes leave less room.
        shifted_scanner, shifted_disease: draw those parameters from beyond the usual range.
        lungs: lungs that the case will be built on, whose width the field of view then follows.
        look: what the numbers are drawn from: `measured`, held to real patches, or `first`, as before that.
    """
    # Children are made here rather than spawned: spawning would change the caller's seed, and the next draw with it.
    children = [np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, k)) for k in range(7)]
    streams = [np.random.default_rng(child) for child in children]
    percentages = _percentages(streams[0], centrilobular_score, paraseptal_score, look)
    panlobular = min(panlobular, ROOM - sum(percentages))
    scored = centrilobular_score is not None or paraseptal_score is not None
    draw = MEASURED if look == "measured" else FIRST
    anatomy = draw.anatomy(streams[1])
    thorax = anatomy.thorax
    half_width = thorax.half_width if lungs is None else lungs.half_width * thorax.mask_scale[2]
    return CaseParameters(
        seed=int(streams[5].integers(2**63)),
        anatomy=anatomy,
        disease=draw.disease(streams[2], percentages[0], percentages[1], panlobular, shifted_disease),
        confounders=draw.confounders(streams[3]),
        scanner=draw.scanner(streams[4], 2 * half_width, shifted_scanner),
        mask=draw_mask(streams[6]) if look == "measured" else None,
        repeated_level=_draw_repeated(streams[6]) if look == "measured" and not scored else None,
    )


def simulate(parameters: CaseParameters, grid: GridName | Slab = "network", lungs: LungShape | None = None) -> SimulatedCase:
    """Make the case that `parameters` describe; the same parameters give the same voxels.

    Args:
        grid: `network` for the resolution that the network sees, `scan` for full size, `example` for a small file, or a
            `Slab` of a scan.
        lungs: the lungs to build it on; without them their shape follows from the parameters.
    """

    def stream(number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(parameters.seed, spawn_key=(number,)))

    disease = parameters.disease
    anatomy = build_anatomy(parameters.anatomy, stream(0), lungs, to_skin=grid != "network")
    sampling = plan(parameters.scanner, grid, anatomy.low, anatomy.high)
    placed = place_lungs(anatomy, parameters.anatomy.mask_margin, sampling.rendered, sampling.every)
    trees = grow_trees(anatomy, parameters.anatomy, parameters.confounders.airway_dilation, stream(1))
    confounders = build_confounders(parameters.confounders, anatomy, stream(2))

    if disease.distortion > 0:
        # The same lesions on the coarse lattice are enough to know which way vessels are pushed.
        lattice, lobes = anatomy.lattice, anatomy.lobes
        coarse = spread(disease, anatomy, lattice, lobes, lobes, 1, stream(3))
        trees = trees.pushed((coarse.centrilobular >= 0).astype(np.float32), lattice, disease.distortion)
    tree_voxels = TreeVoxels.of(trees, placed.grid)
    mask = threshold_mask(placed, parameters.mask, anatomy, tree_voxels, trees.trunk)
    room = np.where(mask > 0, room_for_emphysema(placed, tree_voxels), 0).astype(np.uint8)
    emphysema = spread(disease, anatomy, placed.grid, mask, room, sampling.every, stream(3))
    hounsfield = attenuation(
        anatomy,
        parameters.anatomy,
        disease,
        confounders,
        parameters.confounders,
        trees.trunk,
        tree_voxels,
        placed,
        emphysema,
        sampling.rendered,
        stream(4),
    )
    add_artefacts(hounsfield, confounders, parameters.confounders.motion, anatomy.lattice, sampling.rendered)
    final = scan(hounsfield, parameters.scanner, sampling, stream(5))
    z = slice(sampling.every // 2, None, sampling.every)

    chosen: slice | npt.NDArray[np.intp] = slice(None)
    if parameters.repeated_level is not None:
        level = anatomy.low[0] + parameters.repeated_level * (anatomy.high[0] - anatomy.low[0])
        chosen = np.full(sampling.grid.shape[0], int(np.argmin(np.abs(sampling.grid.axis(0) - level))))

    def on_scan(inner: npt.NDArray[Any]) -> npt.NDArray[Any]:
        whole = np.zeros(sampling.rendered.shape, inner.dtype)
        whole[placed.box] = inner
        return np.ascontiguousarray(whole[z][chosen])

    return SimulatedCase(
        parameters=parameters,
        hounsfield=final[chosen],
        lungs=on_scan(SIDE_OF_LOBE[mask]),
        centrilobular=on_scan(emphysema.centrilobular >= 0),
        paraseptal=on_scan(emphysema.paraseptal >= 0),
        panlobular=on_scan(emphysema.panlobular >= 0),
        spacing=sampling.grid.spacing,
        origin=sampling.grid.origin,
    )
