"""Right and left lung, and lobes, of phantoms whose regions are known by construction."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from model.imaging.scan import Scan
from model.lungs import densitometry
from model.lungs.anatomy import LOBES
from model.lungs.regions import Regions
from test.phantom import Phantom


def scan_of(phantom: Phantom, lobes: bool = False) -> Scan:
    return Scan.from_images(*phantom.images(), lobes=lobes)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SAL"])
def test_right_and_left_are_the_patients_whatever_way_the_file_is_stored(phantom: Phantom, orientation: str) -> None:
    scan = Scan.from_images(*phantom.images(orientation))
    regions = Regions.of(scan)
    assert regions.members == {"right": (1,), "left": (2,)}
    assert np.array_equal(regions.labels, phantom.lungs[regions.box])


def test_lungs_that_touch_are_parted(phantom: Phantom) -> None:
    joined = phantom.lungs.copy()
    middle = joined.shape[2] // 2
    joined[20:30, 30:33, middle - 7 : middle + 7] = 1
    regions = Regions.of(scan_of(dataclasses.replace(phantom, lungs=joined)))
    assert regions.members == {"right": (1,), "left": (2,)}
    truth = phantom.lungs[regions.box]
    assert np.array_equal(regions.labels[truth > 0], truth[truth > 0])


def test_a_single_lung_is_not_given_a_side(phantom: Phantom) -> None:
    one = np.where(phantom.lungs == 1, 1, 0).astype(np.uint8)
    regions = Regions.of(scan_of(dataclasses.replace(phantom, lungs=one)))
    assert regions.members == {"both": (1,)}
    assert np.count_nonzero(regions.labels) == np.count_nonzero(one)


def lobed(phantom: Phantom) -> Phantom:
    """The five labels of a lobe mask: the left lung's upper and lower half, the right lung's thirds."""
    lobes = np.zeros_like(phantom.lungs)
    left, right = phantom.lungs == 2, phantom.lungs == 1
    height = np.arange(lobes.shape[0])[:, None, None] / lobes.shape[0]
    lobes[left & (height >= 0.5)] = LOBES["left_upper_lobe"]
    lobes[left & (height < 0.5)] = LOBES["left_lower_lobe"]
    lobes[right & (height >= 0.6)] = LOBES["right_upper_lobe"]
    lobes[right & (height >= 0.4) & (height < 0.6)] = LOBES["right_middle_lobe"]
    lobes[right & (height < 0.4)] = LOBES["right_lower_lobe"]
    return dataclasses.replace(phantom, lungs=lobes)


def test_a_mask_of_lobes_gives_lungs_and_lobes(phantom: Phantom) -> None:
    scan = scan_of(lobed(phantom), lobes=True)
    regions = Regions.of(scan)
    assert set(regions.members) == {"right", "left", *LOBES}
    _, parts = densitometry.measure(scan, regions)
    voxel_ml = 5 * 4 * 4 / 1000
    assert parts["right"].volume_ml == pytest.approx(np.count_nonzero(phantom.lungs == 1) * voxel_ml)
    assert parts["left"].volume_ml == pytest.approx(parts["left_upper_lobe"].volume_ml + parts["left_lower_lobe"].volume_ml)


def test_labels_that_are_no_lobes_fall_back_to_right_and_left(phantom: Phantom) -> None:
    lobes = lobed(phantom).lungs
    regions = Regions.of(
        scan_of(dataclasses.replace(phantom, lungs=np.where(lobes == 1, 9, lobes).astype(np.uint8)), lobes=True)
    )
    assert regions.members == {"right": (1,), "left": (2,)}
    assert regions.warnings == ("the mask of lobes has other labels than 1 to 5 (9): lobes are not reported",)


def test_the_same_labels_in_a_plain_lung_mask_mean_nothing(phantom: Phantom) -> None:
    assert set(Regions.of(scan_of(lobed(phantom))).members) == {"right", "left"}
