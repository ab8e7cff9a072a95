"""Density of the lung and of its regions, against values by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk

from model.imaging.scan import Scan
from model.lungs import densitometry
from model.lungs.regions import Regions
from test.phantom import Phantom


def test_density_by_hand(phantom: Phantom) -> None:
    """Right lung: a tenth is padding, two tenths lie at -1000 HU, the rest at -860. Left lung: all at -950, not below."""
    hounsfield = phantom.hounsfield.copy()
    right = np.flatnonzero(phantom.lungs == 1)
    low = round(0.3 * len(right))
    hounsfield.flat[right[:low]] = -1000
    hounsfield.flat[right[: low // 3]] = -3024
    hounsfield[phantom.lungs == 2] = -950
    scan = Scan.from_images(*dataclasses.replace(phantom, hounsfield=hounsfield).images())
    whole, parts = densitometry.measure(scan, Regions.of(scan))
    assert parts["right"].laa950_percentage == pytest.approx(100 * low / len(right))
    assert parts["right"].perc15_hu == -1000
    assert parts["left"].laa950_percentage == 0
    assert parts["left"].perc15_hu == -950
    assert whole.laa950_percentage == pytest.approx(100 * low / np.count_nonzero(phantom.lungs))
    assert whole.volume_ml == pytest.approx(np.count_nonzero(phantom.lungs) * 0.08)


def test_floating_point_densities_are_counted_exactly_at_the_threshold(phantom: Phantom) -> None:
    hounsfield = phantom.hounsfield.astype(np.float32)
    inside = np.flatnonzero(phantom.lungs)
    hounsfield.flat[inside[:100]] = -950.01
    hounsfield.flat[inside[100:200]] = -949.99
    ct, mask = phantom.images()
    image = sitk.GetImageFromArray(hounsfield)
    image.CopyInformation(ct)
    scan = Scan.from_images(image, mask)
    whole, _ = densitometry.measure(scan, Regions.of(scan))
    assert whole.laa950_percentage == pytest.approx(100 * 100 / len(inside))
