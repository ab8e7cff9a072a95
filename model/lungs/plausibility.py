"""Warnings about implausible lung masks, with the measurements that show it.

The network scores whatever the mask covers. These warnings are the only sign that a mask is another patient's, covers the
airways or the table, or covers one lung only. The bounds are wide: masks of complete lungs pass, with or without vessels,
with emphysema or with an infiltrate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..imaging.scan import Scan
from .anatomy import Bools, body_of, coarse_steps, length_mm, trachea_of
from .quality import PADDED_HU

TISSUE_HU = -300
"""Soft tissue lies above this, the upper end of the network's window."""

BODY_HU = -500
"""Separates tissue from the air in lungs, airways and bowel."""

LUMEN_HU = -910
"""The median of a section through an airway lies below this, even with a smooth kernel; that of aerated lung lies above."""

SURROUNDING_HU = -950
"""The median of air around the patient lies below this."""

SMALLEST_VOLUME_ML = 1000.0
"""A choice, not from a source: a mask of less does not hold both lungs of an adult."""

_AIRWAY_STEPS_MM = (5.0, 1.0, 1.0)
"""Distance of the voxels in which airways are searched: z, y, x."""

_RIM_VOXELS = 2
"""Of about 2.5 mm: between a mask and the chest wall, some are too dark for tissue."""

_AIRWAY_FROM_MIDDLE_MM = 30.0
_SHORTEST_AIRWAY_MM = 30.0


@dataclass(frozen=True)
class MaskFigures:
    """Measurements of a mask that need no knowledge of the true lungs.

    Attributes:
        volume_ml: of the mask.
        mean_hu: mean inside the mask.
        tissue: share of the mask above -300 HU.
        outside_body: share of the mask outside the body.
        uncovered: share of the air inside the body (below -500 HU) that the mask leaves out.
        uncovered_ml: the same as a volume.
        right: share of the mask on the right half of the body.
        uncovered_right: share of that air on the right half of the body.
        pieces: number of connected parts.
        small_pieces: share of the mask outside the two largest parts.
        airway_mm: length of an air-filled tube in the middle of the chest that the mask covers; 0 if there is none.
    """

    volume_ml: float
    mean_hu: float
    tissue: float
    outside_body: float
    uncovered: float
    uncovered_ml: float
    right: float
    uncovered_right: float
    pieces: int
    small_pieces: float
    airway_mm: float

    @classmethod
    def of(cls, scan: Scan) -> MaskFigures:
        """Measure in voxels about 2.5 mm apart."""
        steps = coarse_steps(scan.spacing, scan.lung)
        hounsfield = scan.hounsfield[:: steps[0], :: steps[1], :: steps[2]]
        lung = scan.lung[:: steps[0], :: steps[1], :: steps[2]]
        inside = hounsfield[lung]
        body = body_of((hounsfield > BODY_HU) | _cut_lung(hounsfield, lung))
        middle = float(np.average(np.arange(body.shape[2]), weights=body.sum(axis=(0, 1)))) if body.any() else body.shape[2] / 2
        air = body & (hounsfield < BODY_HU)
        missed = air & ~lung
        sizes = np.sort(np.bincount(ndimage.label(lung)[0].ravel())[1:])
        voxel_ml = scan.geometry.voxel_ml * float(np.prod(steps))
        return cls(
            volume_ml=int(np.count_nonzero(scan.lung)) * scan.geometry.voxel_ml,
            mean_hu=float(inside.mean(dtype=np.float64)),
            tissue=float((inside > TISSUE_HU).mean()),
            outside_body=_share(lung & ~body, lung),
            uncovered=_share(missed, air),
            uncovered_ml=int(np.count_nonzero(missed)) * voxel_ml,
            right=_share(lung[..., : round(middle)], lung),
            uncovered_right=_share(missed[..., : round(middle)], missed),
            pieces=len(sizes),
            small_pieces=float(sizes[:-2].sum() / sizes.sum()),
            airway_mm=_airway_length(scan, middle * steps[2] * scan.spacing[2]),
        )


def _cut_lung(hounsfield: np.ndarray, lung: Bools) -> Bools:
    """Lung at the sides, the front or the back of the field of view, which cuts it off: it has no wall there.

    Air around the patient that a mask covers up to the border is darker, and no lung.
    """
    beyond = np.pad(hounsfield < PADDED_HU, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    in_slices = ndimage.generate_binary_structure(2, 1)[None]
    near = ndimage.binary_dilation(lung, in_slices, iterations=_RIM_VOXELS)
    border = near & (ndimage.binary_dilation(beyond, in_slices) & ~beyond)[:, 1:-1, 1:-1]
    labels, count = ndimage.label(border)
    medians = ndimage.median(hounsfield, labels, np.arange(1, count + 1))
    return np.isin(labels, 1 + np.flatnonzero(medians > SURROUNDING_HU))


def mask_warnings(figures: MaskFigures) -> list[str]:
    """Warn of what a mask of two complete lungs does not show, one sentence each, with the measurements."""

    def percent(share: float) -> str:
        return f"{100 * share:.0f}%"

    tissue = f"{percent(figures.tissue)} of it lies above {TISSUE_HU} HU, as soft tissue does (mean {figures.mean_hu:.0f} HU)"
    uncovered = f"{percent(figures.uncovered)} of the air inside the body ({figures.uncovered_ml:.0f} ml) lies outside it"
    side, on_side = ("right", figures.right) if figures.right > 0.5 else ("left", 1 - figures.right)
    on_other_side = 1 - figures.uncovered_right if side == "right" else figures.uncovered_right
    warnings = []
    if on_side > 0.95 and figures.uncovered > 0.25 and on_other_side > 0.75:
        warnings.append(
            f"the mask covers one lung only: {percent(on_side)} of it lies on the patient's {side}, and {uncovered}, "
            f"{percent(on_other_side)} of that on the other side"
        )
    elif figures.tissue > 0.1 and figures.uncovered > 0.1:
        warnings.append(f"the mask does not fit the scan and may be another patient's: {tissue}, and {uncovered}")
    elif figures.tissue > 0.3:
        warnings.append(f"the mask covers more than lung: {tissue}")
    elif figures.uncovered > 0.25:
        warnings.append(f"the mask leaves out a part of the lungs: {uncovered}")
    if figures.outside_body > 0.02:
        warnings.append(
            f"the mask covers the table or the air around the patient: {percent(figures.outside_body)} of it lies outside "
            "the body"
        )
    if figures.small_pieces > 0.05:
        warnings.append(
            f"the mask consists of {figures.pieces} pieces, and {percent(figures.small_pieces)} of it lies outside the "
            "two largest"
        )
    if figures.airway_mm >= _SHORTEST_AIRWAY_MM:
        warnings.append(
            f"the mask covers airways: it holds a tube of air, {figures.airway_mm:.0f} mm long, in the middle of the chest"
        )
    if figures.volume_ml < SMALLEST_VOLUME_ML:
        warnings.append(
            f"the mask has a volume of {figures.volume_ml:.0f} ml; the lungs of adults have more than "
            f"{SMALLEST_VOLUME_ML:.0f} ml"
        )
    return warnings


def _share(part: Bools, whole: Bools) -> float:
    return int(np.count_nonzero(part)) / max(int(np.count_nonzero(whole)), 1)


def _airway_length(scan: Scan, middle_mm: float) -> float:
    """Length in mm of the longest air-filled tube near the middle that the mask covers, apart from the lungs in each slice."""
    steps = coarse_steps(scan.spacing, distance_mm=_AIRWAY_STEPS_MM)
    every = tuple(slice(None, None, step) for step in steps)
    hounsfield, lung = scan.hounsfield[every], scan.lung[every]
    z, y, x = (step * distance for step, distance in zip(steps, scan.spacing, strict=True))

    def is_lumen(level: int, spot: Bools) -> bool:
        columns = np.flatnonzero(spot.any(axis=0))
        off_middle = abs((columns[0] + columns[-1] + 1) / 2 * x - middle_mm)
        return bool(off_middle <= _AIRWAY_FROM_MIDDLE_MM and np.median(hounsfield[level][spot]) < LUMEN_HU)

    return length_mm(trachea_of(lung, (z, y, x), is_lumen), (z, y, x))
