"""Whether a lung mask can be that of the scan: warnings with the numbers that give away one that is not.

The network reads what the mask shows it. A mask of another patient, one that covers the airways or the table, or one lung
alone is scored like any other, and nothing but these warnings tells. The bounds are wide: masks of whole lungs pass, drawn
with vessels or without, with emphysema or with an infiltrate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..imaging.scan import Scan

TISSUE_HU = -300
"""Above this lies soft tissue: the top of the window that the network sees."""

BODY_HU = -500
"""Between tissue and the air in lungs, airways and bowel."""

LUMEN_HU = -910
"""The median of a section through an airway lies below this, also after a smooth kernel; that of an aerated lung above."""

_COARSE_MM = 2.5
_FINE_MM = 1.0
_AIRWAY_STEP_MM = 5.0
_AIRWAY_AREA_MM2 = (60.0, 800.0)
_AIRWAY_WIDTH_MM = 40.0
_AIRWAY_FROM_MIDDLE_MM = 30.0
_AIRWAY_SHIFT_MM = 12.0
_SHORTEST_AIRWAY_MM = 30.0


@dataclass(frozen=True)
class MaskFigures:
    """What can be measured about a mask without knowing the lungs.

    Attributes:
        mean_hu: mean inside the mask.
        tissue: share of the mask above -300 HU.
        outside_body: share of the mask that lies outside of the body.
        uncovered: share of the air inside the body (below -500 HU) that the mask leaves out.
        uncovered_ml: the same as a volume.
        right: share of the mask on the right half of the body.
        uncovered_right: share of that air on the right half of the body.
        pieces: connected parts.
        small_pieces: share of the mask that lies outside of the two largest.
        airway_mm: length of a tube of air in the middle of the chest that the mask covers, 0 where there is none.
    """

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
        """Measure on every few-th voxel, 2.5 mm apart."""
        steps = [max(round(_COARSE_MM / distance), 1) for distance in scan.spacing]
        if not scan.lung[:: steps[0], :: steps[1], :: steps[2]].any():  # a mask with less than that between its parts
            steps = [1, 1, 1]
        hounsfield = scan.hounsfield[:: steps[0], :: steps[1], :: steps[2]]
        lung = scan.lung[:: steps[0], :: steps[1], :: steps[2]]
        inside = hounsfield[lung]
        body = _body(hounsfield)
        middle = float(np.average(np.arange(body.shape[2]), weights=body.sum(axis=(0, 1)))) if body.any() else body.shape[2] / 2
        air = body & (hounsfield < BODY_HU)
        missed = air & ~lung
        sizes = np.sort(np.bincount(ndimage.label(lung)[0].ravel())[1:])
        voxel_ml = scan.geometry.voxel_ml * float(np.prod(steps))
        return cls(
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


def mask_warnings(figures: MaskFigures) -> list[str]:
    """Say what a mask of a whole pair of lungs would not have, one sentence each, with the numbers that gave it away."""

    def percent(share: float) -> str:
        return f"{100 * share:.0f}%"

    tissue = f"{percent(figures.tissue)} of it lies above {TISSUE_HU} HU, as soft tissue does (mean {figures.mean_hu:.0f} HU)"
    uncovered = f"{percent(figures.uncovered)} of the air inside the body ({figures.uncovered_ml:.0f} ml) lies outside of it"
    side, on_side = ("right", figures.right) if figures.right > 0.5 else ("left", 1 - figures.right)
    on_other_side = 1 - figures.uncovered_right if side == "right" else figures.uncovered_right
    warnings = []
    if on_side > 0.95 and figures.uncovered > 0.25 and on_other_side > 0.75:
        warnings.append(
            f"the mask holds one lung only: {percent(on_side)} of it lies on the patient's {side}, and {uncovered}, "
            f"{percent(on_other_side)} of that on the other side"
        )
    elif figures.tissue > 0.1 and figures.uncovered > 0.1:
        warnings.append(f"the mask does not fit the scan, as another patient's would not: {tissue}, and {uncovered}")
    elif figures.tissue > 0.3:
        warnings.append(f"the mask covers more than lung: {tissue}")
    elif figures.uncovered > 0.25:
        warnings.append(f"the mask leaves out a part of the lungs: {uncovered}")
    if figures.outside_body > 0.02:
        warnings.append(
            f"the mask covers the table or the air around the patient: {percent(figures.outside_body)} of it lies outside of "
            "the body"
        )
    if figures.small_pieces > 0.05:
        warnings.append(
            f"the mask falls into {figures.pieces} pieces, and {percent(figures.small_pieces)} of it lies outside of the "
            "two largest"
        )
    if figures.airway_mm >= _SHORTEST_AIRWAY_MM:
        warnings.append(
            f"the mask covers airways: it holds a tube of air, {figures.airway_mm:.0f} mm long, in the middle of the chest"
        )
    return warnings


def _share(part: npt.NDArray[np.bool_], whole: npt.NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(part)) / max(int(np.count_nonzero(whole)), 1)


def _body(hounsfield: np.ndarray) -> npt.NDArray[np.bool_]:
    """The largest connected part above -500 HU, and what it encloses in each axial slice."""
    labels, _ = ndimage.label(hounsfield > BODY_HU)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = (labels == sizes.argmax()) & (labels > 0)
    within_slices = np.zeros((3, 3, 3), bool)
    within_slices[1] = ndimage.generate_binary_structure(2, 1)
    around, _ = ndimage.label(~largest, within_slices)
    edge = np.zeros_like(largest)
    edge[:, [0, -1]] = edge[:, :, [0, -1]] = True
    return ~np.isin(around, np.setdiff1d(around[edge], 0))


def _airway_length(scan: Scan, middle_mm: float) -> float:
    """Length of the longest run of slices in which the mask has a small part of its own, full of air, near the middle."""
    step = max(round(_AIRWAY_STEP_MM / scan.spacing[0]), 1)
    longest = length = 0.0
    previous: list[tuple[float, float, float]] = []  # row, column, length so far
    for hounsfield, lung in zip(scan.hounsfield[::step], scan.lung[::step], strict=True):
        current = []
        for row, column in _airway_sections(hounsfield, lung, scan.spacing[1:], middle_mm):
            before = [p[2] for p in previous if np.hypot(p[0] - row, p[1] - column) <= _AIRWAY_SHIFT_MM]
            length = max(before, default=0.0) + step * scan.spacing[0]
            current.append((row, column, length))
            longest = max(longest, length)
        previous = current
    return longest


def _airway_sections(
    hounsfield: np.ndarray, lung: npt.NDArray[np.bool_], spacing: tuple[float, ...], middle_mm: float
) -> list[tuple[float, float]]:
    """Centres (row and column in mm) of what may be sections of the trachea or a main bronchus in an axial slice."""
    steps = [max(round(_FINE_MM / distance), 1) for distance in spacing]
    hounsfield, lung = hounsfield[:: steps[0], :: steps[1]], lung[:: steps[0], :: steps[1]]
    row_mm, column_mm = (step * distance for step, distance in zip(steps, spacing, strict=True))
    smallest, largest = _AIRWAY_AREA_MM2
    labels, _ = ndimage.label(lung)
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[rows, columns] == label
        height, width = part.shape[0] * row_mm, part.shape[1] * column_mm
        if not smallest <= np.count_nonzero(part) * row_mm * column_mm <= largest or max(height, width) > _AIRWAY_WIDTH_MM:
            continue
        row, column = rows.start * row_mm + height / 2, columns.start * column_mm + width / 2
        if abs(column - middle_mm) <= _AIRWAY_FROM_MIDDLE_MM and np.median(hounsfield[rows, columns][part]) < LUMEN_HU:
            found.append((row, column))
    return found
