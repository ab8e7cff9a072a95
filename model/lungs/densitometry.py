"""Established CT measures of emphysema: low-attenuation area, 15th percentile density and lung volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..imaging.scan import AIR_HU, Scan
from .regions import Regions

LOW_ATTENUATION_HU = -950
PERCENTILE = 15

_HIGHEST_HU = 3071


@dataclass(frozen=True)
class Densitometry:
    """Density of the lung or of a region of it.

    Attributes:
        laa950_percentage: voxels below -950 HU, in percent of the region (0 to 100).
        perc15_hu: 15th percentile of the density: the smallest whole HU that at least 15 % of the voxels do not exceed.
        volume_ml: volume of the region in ml.
    """

    laa950_percentage: float
    perc15_hu: int
    volume_ml: float


def measure(scan: Scan, regions: Regions) -> tuple[Densitometry, dict[str, Densitometry]]:
    """Measure the whole lung and each region.

    Values below -1024 HU (padding) count as -1024. Voxels are binned by whole HU, rounded down: the count below -950 HU is
    exact for integers and floating-point numbers.

    Returns:
        the whole lung's density, and that of each region by name.
    """
    voxel_ml = scan.geometry.voxel_ml
    histograms = _histograms(scan, regions)
    parts = {name: _summary(histograms[list(labels)].sum(axis=0), voxel_ml) for name, labels in regions.members.items()}
    return _summary(histograms[1:].sum(axis=0), voxel_ml), parts


def _histograms(scan: Scan, regions: Regions) -> np.ndarray:
    """Counts for each label (rows, 0 is outside the lung) and whole HU from -1024 to 3071 (columns), slice by slice."""
    bins = _HIGHEST_HU - AIR_HU + 1
    rows = max(max(labels) for labels in regions.members.values()) + 1
    counts = np.zeros(rows * bins, np.int64)
    for hounsfield, labels in zip(scan.hounsfield[regions.box], regions.labels, strict=True):
        inside = labels > 0
        whole = np.floor(hounsfield[inside]).clip(AIR_HU, _HIGHEST_HU).astype(np.int64) - AIR_HU
        counts += np.bincount(labels[inside] * np.int64(bins) + whole, minlength=counts.size)
    return counts.reshape(rows, bins)


def _summary(histogram: np.ndarray, voxel_ml: float) -> Densitometry:
    total = int(histogram.sum())
    cumulative = np.cumsum(histogram)
    return Densitometry(
        laa950_percentage=100 * float(cumulative[LOW_ATTENUATION_HU - AIR_HU - 1]) / total,
        perc15_hu=int(np.searchsorted(cumulative, PERCENTILE / 100 * total)) + AIR_HU,
        volume_ml=total * voxel_ml,
    )
