"""What looks like emphysema and is not: gas trapping, dark speckle, wide airways, motion, and beam hardening.

Confounders are drawn without regard to disease, so that they occur with every grade, and none of them enters the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .anatomy import Anatomy
from .grid import Floats, Grid, Resampler, smooth_field, smoothstep


@dataclass(frozen=True)
class ConfounderParameters:
    """Amounts of each confounder; 0 means that it is not there.

    Attributes:
        trapping: share of the lung with trapped gas, in percent.
        trapping_hu: HU of trapped gas; above that of emphysema.
        trapping_length: mm, size of the lobules and groups of lobules that trap it.
        speckle: HU by which small specks of lung are darker.
        airway_dilation: width of the bronchi relative to the usual one.
        motion: mm that the lung moved above the diaphragm while it was scanned.
        hardening: HU by which lung beside bone is darker.
        streaks: HU (standard deviation) of streaks at the level of the shoulders.
    """

    trapping: float
    trapping_hu: float
    trapping_length: float
    speckle: float
    airway_dilation: float
    motion: float
    hardening: float
    streaks: float


def draw_confounders(rng: np.random.Generator) -> ConfounderParameters:
    """Draw confounders; each but the airways is absent from about half of all cases."""
    present = rng.random(5) < (0.5, 0.6, 0.4, 0.6, 0.5)
    return ConfounderParameters(
        trapping=float(present[0] * rng.uniform(2, 30)),
        trapping_hu=rng.uniform(-945, -900),
        trapping_length=rng.uniform(9, 22),
        speckle=float(present[1] * rng.uniform(8, 35)),
        airway_dilation=float(np.clip(rng.lognormal(0, 0.2), 0.7, 1.8)),
        motion=float(present[2] * rng.uniform(1, 4.5)),
        hardening=float(present[3] * rng.uniform(5, 35)),
        streaks=float(present[4] * rng.uniform(3, 18)),
    )


@dataclass(frozen=True)
class ConfounderFields:
    """Confounders as fields on the anatomy's lattice (float32).

    Attributes:
        trapping: 0 to 1, how far a place takes on the HU of trapped gas.
        speckle: HU to subtract before emphysema is drawn.
        artefact: HU to add to the finished picture, in and around the lungs.
        motion: 0 to 1, how far a place is smeared by motion.
    """

    trapping: Floats
    speckle: Floats
    artefact: Floats
    motion: Floats


def build_confounders(parameters: ConfounderParameters, anatomy: Anatomy, rng: np.random.Generator) -> ConfounderFields:
    """Place the confounders that `parameters` describe; their places come from `rng`."""
    lattice = anatomy.lattice
    inside = anatomy.lobes > 0
    lobules = smooth_field(lattice, parameters.trapping_length, rng) + 0.8 * smooth_field(lattice, 60.0, rng)
    threshold = np.quantile(lobules[inside], 1 - parameters.trapping / 100)
    # Geographic: its borders are those of lobules, a few millimetres wide.
    trapping = smoothstep(2.5 * (lobules - threshold)) * (parameters.trapping > 0)
    speckle = parameters.speckle * np.clip(smooth_field(lattice, 3.5, rng) - 0.8, 0, 1.6)

    nearness = np.zeros(lattice.shape, np.float32)
    step = anatomy.bone > 0.5
    # Within a slice only: beam hardening lies in the plane of the beam.
    for weight, reach in ((0.6, 3.0), (0.4, 8.0)):
        nearness += weight * _spread_in_plane(step.astype(np.float32), reach / lattice.spacing[0])
    artefact = -2.2 * parameters.hardening * nearness
    shoulders = smoothstep((lattice.coordinates()[0] / anatomy.high[0] - 0.72) / 0.2)
    streaks = smooth_field(lattice, (4.0, 5.0, 60.0), rng)
    artefact = artefact + parameters.streaks * shoulders * streaks

    motion = np.exp(-np.maximum(anatomy.clearance, 0) / 18) * (parameters.motion > 0)
    return ConfounderFields(
        trapping=np.asarray(trapping, np.float32),
        speckle=np.asarray(speckle, np.float32),
        artefact=np.asarray(artefact, np.float32),
        motion=np.asarray(np.clip(motion, 0, 0.85), np.float32),
    )


def _spread_in_plane(field: Floats, sigma: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(field, (0, sigma, sigma), truncate=3), np.float32)


def add_artefacts(hounsfield: Floats, fields: ConfounderFields, motion: float, lattice: Grid, grid: Grid) -> None:
    """Smear a rendered chest (z y x, HU, on `grid`) by `motion` mm where it moved, and add beam hardening; in place."""
    resampler = Resampler(lattice, grid)
    moving = float(fields.motion.max()) > 0
    still = hounsfield.copy() if moving else hounsfield
    shift = motion / grid.spacing[0]
    last = grid.shape[0] - 1
    for part in grid.slabs():
        picture = hounsfield[part]
        if moving:
            # Seen at two breathing positions at once: a double contour above the diaphragm.
            position = np.arange(grid.shape[0], dtype=np.float32)[part, None, None]
            picture += (
                0.5
                * resampler.slab(fields.motion, part)
                * (
                    _slices(still, np.clip(position + shift, 0, last))
                    + _slices(still, np.clip(position - shift, 0, last))
                    - 2 * picture
                )
            )
        picture += resampler.slab(fields.artefact, part)


def _slices(volume: Floats, position: Floats) -> Floats:
    """Slices of `volume` at fractional positions (n x 1 x 1), linearly between neighbours."""
    lower = np.minimum(position.astype(np.intp), len(volume) - 2)
    weight = (position - lower).astype(np.float32)
    return np.asarray((1 - weight) * volume[lower[:, 0, 0]] + weight * volume[lower[:, 0, 0] + 1], np.float32)
