"""The first look of simulated scans: how anatomy, disease, confounders and scanner were drawn before they were held to real
patches. Kept so that figures measured with it can be repeated: the same seed gives the same bytes.
"""

from __future__ import annotations

import numpy as np

from ..fleischner import CENTRILOBULAR
from .anatomy import AnatomyParameters, FissureParameters, ParenchymaParameters
from .confounders import ConfounderParameters
from .disease import CentrilobularParameters, DiseaseParameters, PanlobularParameters, ParaseptalParameters
from .scanner import SCAN_MARGIN_MM, SCAN_MATRIX, SHIFTS, SPACING_MM, ScannerParameters
from .shapes import draw_thorax


def draw_anatomy(rng: np.random.Generator) -> AnatomyParameters:
    """Draw a chest."""
    return AnatomyParameters(
        thorax=draw_thorax(rng),
        fissures=FissureParameters(
            height=(rng.uniform(0.36, 0.46), rng.uniform(0.38, 0.48)),
            slope=(rng.uniform(0.85, 1.25), rng.uniform(0.9, 1.3)),
            horizontal=rng.uniform(0.48, 0.56),
            waviness=rng.uniform(2, 6),
            thickness=rng.uniform(0.5, 1.0),
            completeness=rng.uniform(0.5, 1.0),
        ),
        parenchyma=ParenchymaParameters(
            density=float(np.clip(rng.normal(-852, 17), -892, -805)),
            gradient=rng.uniform(30, 60),
            mottle=rng.uniform(4, 12),
            mottle_length=rng.uniform(18, 45),
            grain=rng.uniform(4, 12),
            dependent=float(rng.choice([0.0, 1.0]) * rng.uniform(10, 90)),
        ),
        mask_margin=rng.uniform(-0.4, 0.9),
        vessel_scale=rng.uniform(0.85, 1.15),
        vessel_hu=rng.uniform(30, 70),
    )


def draw_disease(
    rng: np.random.Generator,
    centrilobular: float,
    paraseptal: float,
    panlobular: float = 0.0,
    shifted: bool = False,
) -> DiseaseParameters:
    """Draw the look of a disease whose extents, in percent of the lung, are given.

    Args:
        shifted: draw from beyond the usual range: larger or smaller lobules, basal or even spread, other cells.
    """
    outside = rng.random() < 0.5
    # Mild cells stay within 1 cm; substantial disease has larger ones and bullae.
    substantial = np.clip((paraseptal - 3) / 4, 0, 1)
    if shifted:
        spacing = rng.uniform(8, 10) if outside else rng.uniform(20, 25)
        upper, apical = rng.uniform(-1.5, 0.2), rng.uniform(-0.5, 0.5)
        cell = rng.uniform(2.5, 3.5) if outside else rng.uniform(6, 8)
    else:
        spacing = rng.triangular(10, 12, 20)
        upper, apical = rng.uniform(0.3, 3.0), rng.uniform(0.5, 3.0)
        cell = rng.uniform(3.2, 4.6) + substantial * rng.uniform(0.3, 2.8)
    bullae = int(rng.binomial(10, substantial * rng.uniform(0.1, 0.9)))
    return DiseaseParameters(
        centrilobular=CentrilobularParameters(
            percentage=centrilobular,
            lobule_spacing=spacing,
            upper_predominance=upper,
            patchiness=rng.uniform(0.2, 1.0),
            onset_spread=rng.uniform(2.0, 5.0),
            onset_radius=rng.uniform(1.0, 1.6),
            satellites=rng.uniform(0.0, 0.6),
            lobularity=rng.uniform(0.12, 0.30),
        ),
        paraseptal=ParaseptalParameters(
            percentage=paraseptal,
            cell_radius=float(cell),
            cell_variation=rng.uniform(0.15, 0.35),
            apical_predominance=apical,
            patchiness=rng.uniform(0.8, 2.0),
            fissural=rng.uniform(0.2, 1.0),
            wall=rng.uniform(0.35, 0.75),
            bullae=bullae,
            bulla_radius=rng.uniform(12, 34),
        ),
        panlobular=PanlobularParameters(panlobular, rng.uniform(2, 6), rng.uniform(15, 40)),
        attenuation=rng.uniform(-982, -964),
        edge=rng.uniform(0.8, 2.0),
        vessel_loss=rng.uniform(0.2, 0.8),
        distortion=float((centrilobular >= CENTRILOBULAR.grades[-1].lower) * rng.uniform(2, 7)),
    )


def draw_confounders(rng: np.random.Generator) -> ConfounderParameters:
    """Draw confounders; each but the airways is absent from about half of all cases."""
    present = rng.random(5) < (0.5, 0.6, 0.4, 0.6, 0.5)
    return ConfounderParameters(
        trapping=float(present[0] * rng.uniform(2, 30)),
        trapping_hu=rng.uniform(-930, -880),
        trapping_length=rng.uniform(9, 22),
        speckle=float(present[1] * rng.uniform(15, 55)),
        airway_dilation=float(np.clip(rng.lognormal(0, 0.2), 0.7, 1.8)),
        motion=float(present[2] * rng.uniform(1, 4.5)),
        hardening=float(present[3] * rng.uniform(5, 35)),
        streaks=float(present[4] * rng.uniform(3, 18)),
    )


def draw_scanner(rng: np.random.Generator, lung_width: float, shifted: bool = False) -> ScannerParameters:
    """Draw a protocol for lungs that are `lung_width` mm wide.

    Args:
        shifted: draw from beyond the trained range, in one of the ways of `SHIFTS`.
    """
    sharpness = rng.uniform(0, 1)
    # Thin slices are the rule, as in the paper's data; thick ones must not be new to a network either.
    thickness = float(np.exp(rng.uniform(np.log(0.6), np.log(5.0))))
    noise = float(np.exp(rng.uniform(np.log(8), np.log(26))))
    if shifted:
        thicker, sharper, noisier = SHIFTS[rng.integers(len(SHIFTS))]
        if thicker:
            thickness = rng.uniform(5.5, 8.0)
        if sharper:
            sharpness = rng.uniform(1.1, 1.6)
        if noisier:
            noise = rng.uniform(29, 42)
    smallest = float(np.clip((lung_width + 2 * SCAN_MARGIN_MM) / SCAN_MATRIX, *SPACING_MM))
    return ScannerParameters(
        sharpness=sharpness,
        mtf50=(0.28 + 0.27 * sharpness) * rng.uniform(0.94, 1.06),
        enhancement=max(0.0, 0.55 * (sharpness - 0.35)) * rng.uniform(0.7, 1.3),
        noise=noise,
        noise_centre=rng.uniform(0.1, 0.6),
        slice_thickness=thickness,
        slice_increment=thickness * rng.uniform(0.7, 1.0),
        spacing=smallest + (SPACING_MM[1] - smallest) * rng.beta(1.2, 3),
    )
