"""Image quality of a scan, and warnings where it lies outside of what a network was shown to work on.

A network that was trained on smooth kernels answers on a sharp one as on any other, and may take its noise for emphysema. What
is measured here tells the two apart without knowing the kernel's name: noise and sharpness inside the lungs, the voxels, how
much of the lungs the image cuts off, and how far they are filled with air.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..imaging.scan import AIR_HU, Scan
from .anatomy import coarse_steps

Range = tuple[float | None, float | None]
"""The least and the largest value; None leaves a side open."""

PADDED_HU = -1500
"""Below this lies what a scanner writes outside of its field of view; noise in air stays above."""

_SLICES = 40
_PATCH_MM = 6.0
_NOISE_PERCENTILE = 25.0
_EMPTY_HU = -1000.0
"""Patches darker than this may be clipped at -1024 HU, which hides their noise."""
_FEWEST_PATCHES = 50

_MIDDLE = (0.25, 0.75)
"""Share of the lungs' height in which their sides are about vertical."""
_ROW_MM = 2.0
_SLOPE_MM = 6.0
_STEEPEST = 0.5
_INSIDE_MM = (5.0, 12.0)
_OUTSIDE_MM = (2.5, 6.0)
_REACH_MM = 4.0
_LUNG_BELOW_HU = -600.0
_WALL_HU = (-150.0, 150.0)
"""Fat and muscle: a rib would raise the upper end of the edge."""
_BIN_MM = 0.25
_FEWEST_EDGES = 40


@dataclass(frozen=True)
class ImageQuality:
    """What was measured of a scan.

    Attributes:
        noise_hu: standard deviation in HU in homogeneous lung: the lower quartile over patches of 6 mm in axial slices. It
            holds the finest texture of the lung, too. None where the lung is too small for such patches.
        edge_width_mm: sharpness: the distance in which the density rises from a quarter to three quarters of the step
            between lung and chest wall, in axial slices. 1.35 standard deviations where the blur is Gaussian. None where too
            few such edges are in the image.
        pixel_spacing_mm: within axial slices; the larger of the two.
        slice_spacing_mm: between axial slices.
        slice_thickness_mm: as the DICOM header has it; None where there is none.
        cut_off_percentage: percent of the lungs' surface that lies on the border of the image or of its field of view.
        mean_lung_hu: mean density of the lungs; it rises from about -850 HU at full inspiration by more than 100 HU.
    """

    noise_hu: float | None
    edge_width_mm: float | None
    pixel_spacing_mm: float
    slice_spacing_mm: float
    slice_thickness_mm: float | None
    cut_off_percentage: float
    mean_lung_hu: float

    @classmethod
    def of(cls, scan: Scan) -> ImageQuality:
        """Measure a scan; noise and sharpness on at most 40 axial slices."""
        box = scan.lung_box()
        hounsfield, lung = scan.hounsfield[box], scan.lung[box]
        return cls(
            noise_hu=_noise(hounsfield, lung, scan.spacing),
            edge_width_mm=_edge_width(scan.hounsfield, scan.lung, scan.spacing, box[0]),
            pixel_spacing_mm=max(scan.spacing[1:]),
            slice_spacing_mm=scan.spacing[0],
            slice_thickness_mm=scan.slice_thickness_mm,
            cut_off_percentage=_cut_off(scan),
            mean_lung_hu=_mean(hounsfield, lung),
        )

    @property
    def noise_at_1_mm_hu(self) -> float | None:
        """See `noise_at_1_mm`."""
        return noise_at_1_mm(self.noise_hu, self.edge_width_mm)


def noise_at_1_mm(noise_hu: float | None, edge_width_mm: float | None) -> float | None:
    """The noise that a scan would have if it were blurred, or sharpened, to edges of 1 mm.

    The standard deviation of white noise is inversely proportional to the width of a blur within slices. A sharp kernel so has
    much noise and little of this; a low dose has much of both, and only that is coarse enough to look like emphysema.

    Returns:
        HU; None where either measure is not known.
    """
    return None if noise_hu is None or edge_width_mm is None else noise_hu * edge_width_mm


TERMS = {
    "noise_hu": ("the noise in the lungs", "HU", 0),
    "noise_at_1_mm_hu": ("the noise in the lungs, for edges of 1 mm", "HU", 0),
    "edge_width_mm": ("the width of edges (sharpness)", "mm", 2),
    "pixel_spacing_mm": ("the pixel spacing", "mm", 2),
    "slice_spacing_mm": ("the distance between slices", "mm", 2),
    "slice_thickness_mm": ("the slice thickness", "mm", 2),
    "cut_off_percentage": ("the part of the lungs' surface where the image ends", "%", 1),
    "mean_lung_hu": ("the mean density of the lungs (inspiration)", "HU", 0),
}
"""What warnings call each measure, its unit, and the decimals that they give."""


def quality_warnings(quality: ImageQuality, validated_range: Mapping[str, Range]) -> list[str]:
    """Say which measures lie outside the range of the scans that a network was tested on, one sentence each."""
    warnings = []
    for name, (term, unit, decimals) in TERMS.items():
        value = getattr(quality, name)
        low, high = validated_range.get(name, (None, None))
        if value is None or ((low is None or value >= low) and (high is None or value <= high)):
            continue
        ends = " ".join(f"{word} {end:.{decimals}f} {unit}" for word, end in (("from", low), ("to", high)) if end is not None)
        warnings.append(
            f"image quality: {term}: {value:.{decimals}f} {unit}, outside the range of the scans that these weights were "
            f"tested on ({ends}); the percentages may be wrong"
        )
    return warnings


def _levels(first: int, last: int) -> npt.NDArray[np.int64]:
    """At most 40 slices, evenly from the first to the last."""
    return np.unique(np.linspace(first, last, min(_SLICES, last - first + 1)).round().astype(np.int64))


def _mean(hounsfield: np.ndarray, lung: npt.NDArray[np.bool_]) -> float:
    """Slice by slice; padding counts as air."""
    total = sum(
        float(np.maximum(plane[inside], AIR_HU).sum(dtype=np.float64)) for plane, inside in zip(hounsfield, lung, strict=True)
    )
    return total / int(np.count_nonzero(lung))


def _noise(hounsfield: np.ndarray, lung: npt.NDArray[np.bool_], spacing: tuple[float, float, float]) -> float | None:
    """The lower quartile of the standard deviation in patches that lie inside the lung.

    Vessels, fissures and walls raise it in some patches. As in the global noise level of Christianson et al. (AJR
    2015), what most patches have is taken for the noise; theirs is the mode in soft tissue.
    """
    size = [max(2 * round(_PATCH_MM / distance / 2) + 1, 3) for distance in spacing[1:]]
    count = size[0] * size[1]
    found = []
    for level in _levels(0, len(lung) - 1):
        centred = hounsfield[level].astype(np.float32) - np.float32(-850)  # so that squares keep their digits
        inside = ndimage.minimum_filter(lung[level], size)
        mean = ndimage.uniform_filter(centred, size)
        variance = ndimage.uniform_filter(centred * centred, size) - mean * mean
        inside &= mean > _EMPTY_HU + 850
        found.append(np.maximum(variance[inside], 0) * count / (count - 1))
    variances = np.concatenate(found)
    if variances.size < _FEWEST_PATCHES:
        return None
    return float(np.sqrt(np.percentile(variances, _NOISE_PERCENTILE)))


def _edge_width(
    hounsfield: np.ndarray, lung: npt.NDArray[np.bool_], spacing: tuple[float, float, float], slices: slice
) -> float | None:
    """Width of the edge between lung and chest wall at the lungs' sides, from the profiles of many rows laid over each other.

    The edge of each profile is placed where it crosses half of its step; the median over all profiles is the edge spread
    function, as Sanders, Ding and Samei measure it at the skin (Med Phys 2016, doi 10.1118/1.4958208).
    """
    height = slices.stop - slices.start
    first, last = (slices.start + round(share * (height - 1)) for share in _MIDDLE)
    distances, values = [], []
    for level in _levels(first, last):
        plane = np.asarray(hounsfield[level], np.float32)
        for side in (slice(None), slice(None, None, -1)):
            found = _edges(plane[:, side], lung[level][:, side], spacing[1], spacing[2])
            distances.append(found[0])
            values.append(found[1])
    if sum(len(part) for part in distances) < _FEWEST_EDGES:
        return None
    distance, value = np.concatenate(distances).ravel(), np.concatenate(values).ravel()
    bins = np.round(distance / _BIN_MM).astype(np.int64)
    places = np.unique(bins[np.abs(distance) <= _REACH_MM])
    spread = np.array([np.median(value[bins == place]) for place in places], np.float64)
    centres = places * _BIN_MM
    return _crossing(centres, spread, 0.75) - _crossing(centres, spread, 0.25)


def _crossing(distance: np.ndarray, spread: np.ndarray, share: float) -> float:
    """Where a rising edge first reaches a share of its step, by linear interpolation."""
    above = int(np.argmax(spread >= share))
    if above == 0:
        return float(distance[0])
    low, high = spread[above - 1], spread[above]
    return float(distance[above - 1] + (distance[above] - distance[above - 1]) * (share - low) / (high - low))


def _edges(
    plane: npt.NDArray[np.float32], lung: npt.NDArray[np.bool_], row_mm: float, column_mm: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Profiles through the edge on the side of low columns: distance to the edge in mm, outwards, and share of the step.

    Returns:
        Two arrays of edges x samples; without edges 0 x samples.
    """
    inward, outward = round(_INSIDE_MM[1] / column_mm), max(round(_OUTSIDE_MM[1] / column_mm), 2)
    offsets = np.arange(-inward, outward + 1)  # outwards, which is towards low columns
    step = max(round(_SLOPE_MM / row_mm), 1)
    first = np.where(lung.any(axis=1), lung.argmax(axis=1), -1).astype(np.int64)
    rows = np.arange(step, len(lung) - step, max(round(_ROW_MM / row_mm), 1))
    edge, before, after = first[rows], first[rows - step], first[rows + step]
    slope = (after - before) * column_mm / (2 * step * row_mm)
    straight = np.abs(before + after - 2 * edge) * column_mm <= max(2 * column_mm, 0.2 * step * row_mm)
    fits = (edge - outward >= 0) & (edge + inward < lung.shape[1]) & (np.minimum(before, after) >= 0)
    chosen = fits & straight & (np.abs(slope) <= _STEEPEST)
    rows, edge, slope = rows[chosen], edge[chosen], slope[chosen]
    profiles = plane[rows[:, None], edge[:, None] - offsets].astype(np.float64)
    away = offsets * column_mm
    inside = np.median(profiles[:, (away <= -_INSIDE_MM[0]) | (offsets == -inward)], axis=1)
    outside = np.median(profiles[:, (away >= _OUTSIDE_MM[0]) | (offsets == outward)], axis=1)
    usable = (inside < _LUNG_BELOW_HU) & (outside >= _WALL_HU[0]) & (outside <= _WALL_HU[1])
    profiles, slope = profiles[usable], slope[usable]
    shares = (profiles - inside[usable, None]) / (outside - inside)[usable, None]
    above = shares >= 0.5
    place = np.argmax(above, axis=1)  # a vessel near the pleura is reached first: its profile is left out below
    number = np.arange(len(shares))
    single = (place > 0) & above[number, np.minimum(place + 1, shares.shape[1] - 1)]
    single &= np.abs(away[place]) <= _REACH_MM
    shares, slope, place, number = shares[single], slope[single], place[single], np.arange(int(single.sum()))
    low, high = shares[number, place - 1], shares[number, place]
    crossing = away[place] - column_mm * (high - 0.5) / (high - low)
    distances = (away - crossing[:, None]) / np.sqrt(1 + slope[:, None] ** 2)
    return distances, shares


def _cut_off(scan: Scan) -> float:
    """Percent of the lungs' faces that lie on the border of the image or beside padding, on voxels about 2.5 mm apart."""
    steps = coarse_steps(scan.spacing, scan.lung)
    every = tuple(slice(None, None, step) for step in steps)
    lung, padding = scan.lung[every], scan.hounsfield[every] < PADDED_HU
    lung = lung & ~padding
    faces = cut = 0.0
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        fine = float(np.prod([scan.spacing[other] for other in others]))
        coarse = fine * float(np.prod([steps[other] for other in others]))
        ends = sum(int(np.count_nonzero(scan.lung.take(end, axis))) for end in (0, -1)) * fine
        low = np.moveaxis(lung, axis, 0)[:-1]
        high = np.moveaxis(lung, axis, 0)[1:]
        padded = np.moveaxis(padding, axis, 0)
        faces += int(np.count_nonzero(low != high)) * coarse + ends
        cut += (int(np.count_nonzero(low & padded[1:])) + int(np.count_nonzero(high & padded[:-1]))) * coarse + ends
    return 100 * cut / faces if faces else 0.0
