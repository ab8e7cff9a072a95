"""Grey pictures of chest CT to HU, and the lungs of one slice: the display window must not decide what a network sees.

A picture shows HU through a window that it does not name. Two materials are in every chest slice and give it back: the air
around the patient and soft tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from ..errors import InputError
from ..lungs.anatomy import largest_part

AIR_HU = -1000.0
SOFT_TISSUE_HU = 45.0
FAT_HU = -100.0
LOWEST_HU = -1024.0
"""Below it lies no tissue: what is outside of the scanner's field of view, or below a window's floor."""

Grey = npt.NDArray[np.uint8]
Hounsfield = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_WORKING_SIZE = 384
"""Pixels of the longer side at which patients and lungs are looked for: about a millimetre each."""

_SLICE = "an axial slice of the chest"
_EXPECTED = f"{_SLICE} in a lung window, with air around the patient"

_LEAST_AIR = 0.004
_LEAST_PATIENT = 0.08
"""As shares of the picture."""

_LEAST_CONTRAST = 60
"""Grey levels between air and soft tissue at least: a window of 4,000 HU has 66."""

BRIGHTEST_AIR = 110
"""Of a lung window, 1,600 HU wide around -600 HU, air is 64; of -600 and 2,000 HU, 77."""

_CLIPPED_SHARE = 0.25
"""Of the patient that is white where the window ends below soft tissue. Bone and contrast medium are less."""

_HIGHEST_TOP_HU = 150.0
"""Where a window that ends below soft tissue ends at most. What seems to be fat in a higher one is something else."""

_LEAST_GREY = 0.15
"""Of the chest wall that is nearly white in such a window, where fat has no peak. In one that ends below fat, that is edges.
42 real slices have 0.18 and more in a window of 1,200 HU around -600 HU; at most 0.17 in windows that end below -200 HU."""

_LEAST_PEAK = 0.08
"""Of the patient that is near the commonest grey level at least. A photograph's grey levels spread."""

_TISSUE_FROM_HU = -300.0
_LUNG_BELOW_HU = -400.0
_GAS_BELOW_HU = -930.0
_LEAST_LUNG = 0.012
"""Of the patient's area that lungs take at least. Lower are the tips of the lungs, which say little."""


def calibrate(levels: Grey) -> Hounsfield:
    """Grey levels to HU, from the air around the patient (-1000 HU) and the mode of soft tissue (45 HU), linear between.

    Where the window's floor lies above air or its top below soft tissue, both read as the window's ends: what is clipped is
    lost. A window that ends below soft tissue is calibrated by fat (-100 HU) where its peak shows.

    Args:
        levels: rows x columns, 0 (black) to 255 (white).

    Returns:
        rows x columns, HU, at least -1024.

    Raises:
        InputError: there is no air around a patient, no patient, or no peak of soft tissue, as in a photograph; or the window
            ends below fat, and nothing tells where.
    """
    if levels.ndim != 2 or min(levels.shape) < 64:
        raise InputError("picture", f"its size is {' x '.join(map(str, levels.shape))}", f"{_SLICE} of at least 64 x 64 pixels")
    small = _resized(levels.astype(np.float32), _WORKING_SIZE)
    bright = ndimage.gaussian_filter(small, 1.0)
    threshold = _otsu(bright)
    patient = _patient_mask(bright > threshold)
    if patient.mean() < _LEAST_PATIENT:
        raise InputError("picture", "no patient is seen in it", _EXPECTED)
    air = _air_level(small, patient, threshold)
    tissue, hounsfield = _tissue_level(bright[_chest_wall(patient, bright <= threshold)], air)
    slope = (hounsfield - AIR_HU) / (tissue - air)
    return np.maximum(AIR_HU + slope * (levels.astype(np.float32) - np.float32(air)), LOWEST_HU).astype(np.float32)


def _resized(picture: npt.NDArray[np.float32], longest: int) -> npt.NDArray[np.float32]:
    """Shrink a picture until its longer side is at most `longest`; each pixel is the mean of those that it replaces."""
    rows, columns = picture.shape
    scale = longest / max(rows, columns)
    if scale >= 1:
        return picture
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _otsu(picture: npt.NDArray[np.float32]) -> float:
    """The grey level between dark and bright that leaves the two most alike within themselves (Otsu, 1979)."""
    counts = np.bincount(np.rint(picture).astype(int).clip(0, 255).ravel(), minlength=256).astype(float)
    below = np.cumsum(counts)
    sums = np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(np.nanargmax(np.nan_to_num(between)))


def _disk(radius: int) -> Mask:
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(rows**2 + columns**2 <= radius**2)


def _patient_mask(tissue: Mask) -> Mask:
    """The largest part of tissue that is thicker than a table's sheet, with the lungs and airways in it."""
    thick = largest_part(ndimage.binary_opening(tissue, _disk(2)))
    return np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(thick, 4), _disk(3)))[4:-4, 4:-4])


def _air_level(small: npt.NDArray[np.float32], patient: Mask, threshold: float) -> float:
    """The mode of what is dark around the patient; the scanner's padding, which is flat, does not count if there is other."""
    rows, columns = small.shape
    y, x = np.ogrid[:rows, :columns]
    circle = ((y + 0.5) / rows - 0.5) ** 2 + ((x + 0.5) / columns - 0.5) ** 2 < 0.48**2
    outside = ~ndimage.binary_dilation(patient, _disk(4)) & (small < threshold)
    flat = ndimage.maximum_filter(small, 3) - ndimage.minimum_filter(small, 3) < 0.75
    for chosen in (outside & circle & ~flat & (small >= 1), outside & ~flat & (small >= 1), outside & circle, outside):
        if chosen.mean() >= _LEAST_AIR:
            counts = np.bincount(np.rint(small[chosen]).astype(int), minlength=256)
            level = float(ndimage.uniform_filter1d(counts.astype(float), 3).argmax())
            if level > BRIGHTEST_AIR:
                raise InputError("picture", "what surrounds the patient is not dark, as air is", _EXPECTED)
            return level
    raise InputError("picture", "no air is seen around a patient", _EXPECTED)


def _chest_wall(patient: Mask, dark: Mask) -> Mask:
    """The patient without the lungs and what lies between them: blood may be bright with contrast medium."""
    lungs = patient & ndimage.binary_opening(dark, _disk(3))
    between = np.maximum.accumulate(lungs, axis=1) & np.maximum.accumulate(lungs[:, ::-1], axis=1)[:, ::-1]
    wall = patient & ~dark & ~between
    return np.asarray(wall if wall.sum() > 0.25 * patient.sum() else patient & ~dark)


def _tissue_level(values: npt.NDArray[np.float32], air: float) -> tuple[float, float]:
    """Grey level and HU of the material that soft tissue's peak shows."""
    counts = np.bincount(np.rint(values).astype(int).clip(0, 255), minlength=256).astype(float)
    shares = counts / max(counts.sum(), 1)
    smooth = ndimage.gaussian_filter1d(shares[:252], 1.5, mode="nearest")
    peaks = [
        level
        for level in range(int(air) + _LEAST_CONTRAST, 251)
        if smooth[level] == smooth[max(level - 4, 0) : level + 5].max() and smooth[level] > 0.004
    ]
    clipped = shares[252:].sum() > _CLIPPED_SHARE
    if clipped:
        lowest = air + (255 - air) * (FAT_HU - AIR_HU) / (_HIGHEST_TOP_HU - AIR_HU)
        fat = [level for level in peaks if level >= lowest and smooth[level] > 0.01]
        if fat:
            return float(max(fat, key=lambda level: smooth[level])), FAT_HU
        if shares[round(lowest) : 252].sum() < _LEAST_GREY:
            found = "its window is too narrow or too low: soft tissue and fat are white"
            raise InputError("picture", found, "a lung window, such as -600 HU with a width of 1500 HU")
        return 255.0, SOFT_TISSUE_HU
    if not peaks:
        raise InputError("picture", "no grey level stands out as soft tissue", _EXPECTED)
    highest = max(peaks, key=lambda level: smooth[level])
    if _share(shares, air, highest, 0.96, 1.04) < _LEAST_PEAK:
        raise InputError("picture", "no grey level stands out as soft tissue", _EXPECTED)
    # Below fat there is nothing; below soft tissue there is fat, and what lies in the same pixel as fat.
    if _share(shares, air, highest, 1.04, 1.2) < max(0.15, 2 * _share(shares, air, highest, 0.84, 0.96)):
        return float(highest), SOFT_TISSUE_HU
    soft_tissue = air + (highest - air) * (SOFT_TISSUE_HU - AIR_HU) / (FAT_HU - AIR_HU)
    seen = [level for level in peaks if abs(level - soft_tissue) <= 0.035 * (soft_tissue - air)]
    best = max(seen, key=lambda level: smooth[level], default=0)
    if smooth[best] > 0.3 * smooth[highest]:
        return float(best), SOFT_TISSUE_HU
    return float(highest), FAT_HU  # an obese patient: little muscle is seen, and fat has the sharper peak


def _share(shares: npt.NDArray[np.float64], air: float, level: float, lowest: float, highest: float) -> float:
    """The share of tissue from `lowest` to `highest` of a level's distance from air."""
    first, last = (round(air + factor * (level - air)) for factor in (lowest, highest))
    return float(shares[max(first, 0) : last + 1].sum())


@dataclass(frozen=True, eq=False)
class _Part:
    """One connected part of low attenuation inside the patient.

    Attributes:
        mask: rows x columns.
        area: as a share of the patient.
        parenchyma: share of its inside that is denser than gas.
        airway: it is small and lies in the middle, as trachea, main bronchi and oesophagus do.
        left: its centre lies in the left half of the picture.
    """

    mask: Mask
    area: float
    parenchyma: float
    airway: bool
    left: bool


def find_lungs(hounsfield: Hounsfield, spacing_mm: float | None) -> Mask:
    """The lungs of an axial slice, with the vessels, bullae and subpleural holes in them, without trachea and bowel gas.

    Args:
        hounsfield: rows x columns, HU.
        spacing_mm: width of a (square) pixel; None where it is not known, as for pictures.

    Returns:
        rows x columns.

    Raises:
        InputError: there is no patient or there are no lungs in the slice.
    """
    rows, columns = hounsfield.shape
    millimetres = _WORKING_SIZE if spacing_mm is None else round(max(rows, columns) * spacing_mm)
    small = _resized(hounsfield.astype(np.float32).clip(LOWEST_HU, 500), min(max(millimetres, 192), 768))
    smooth = ndimage.gaussian_filter(small, 0.7)
    patient = _patient_mask(smooth > _TISSUE_FROM_HU)
    if patient.mean() < _LEAST_PATIENT:
        raise InputError("slice", "no patient is seen in it", _SLICE)
    parts = _parts((smooth < _LUNG_BELOW_HU) & patient, smooth, patient)
    large = [part for part in parts if part.area >= 0.006 and not part.airway]
    kept = [part for part in large if part.parenchyma >= 0.05]
    sides = {part.left for part in kept}
    if kept:  # a lung may be one bulla; bowel gas lies below a lung
        kept += [part for part in large if part.parenchyma < 0.05 and part.left not in sides]
    if sum(part.area for part in kept) < _LEAST_LUNG:
        raise InputError("slice", "no lungs are seen in it", f"{_SLICE} that shows the lungs")
    lungs = np.logical_or.reduce([part.mask for part in kept])
    near = ndimage.binary_dilation(lungs, _disk(5))
    for part in parts:
        if not part.airway and (part.mask & near).any():
            lungs |= part.mask
    lungs = _without_small_holes(ndimage.binary_closing(np.pad(lungs, 6), _disk(4))[6:-6, 6:-6] & patient)
    grown = Image.fromarray(lungs.astype(np.float32)).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(np.asarray(grown) > 0.5)


def _parts(low: Mask, smooth: npt.NDArray[np.float32], patient: Mask) -> list[_Part]:
    labels, _ = ndimage.label(low)
    sizes = np.bincount(labels.ravel()) / np.count_nonzero(patient)
    sizes[0] = 0
    large = np.flatnonzero((sizes[labels] >= 0.01).any(axis=0))
    middle, extent = ((large[0] + large[-1]) / 2, large[-1] - large[0] + 1) if large.size else (0.0, 1)
    surface = patient & ~ndimage.binary_erosion(patient, _disk(4))
    parts = []
    for index in np.flatnonzero(sizes >= 0.0003):
        mask = labels == index
        if (surface & mask).sum() > 0.15 * mask.sum():
            continue  # air between the skin and a table, a fold or an arm
        inside = ndimage.binary_erosion(mask, _disk(2))
        parenchyma = float((smooth[inside] > _GAS_BELOW_HU).mean()) if inside.any() else 1.0
        offset = (float(np.nonzero(mask)[1].mean()) - middle) / extent
        airway = bool(abs(offset) < 0.14 and sizes[index] < 0.03)
        parts.append(_Part(mask, float(sizes[index]), parenchyma, airway, offset < 0))
    return parts


def _without_small_holes(mask: Mask) -> Mask:
    """Fill what the lungs enclose, vessels and nodules; a mediastinum between joined lungs is larger."""
    holes, _ = ndimage.label(~mask)
    sizes = np.bincount(holes.ravel())
    small = sizes < 0.04 * np.count_nonzero(mask)
    small[np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))] = False
    small[0] = False
    return np.asarray(mask | small[holes])
