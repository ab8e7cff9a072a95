"""Right and left lung, and lobes, of phantoms whose regions are known by construction."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

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
    """The five labels of a lobe mask: upper and lower half of the left lung; top of the right, and below it front and back."""
    lobes = np.zeros_like(phantom.lungs)
    left, right = phantom.lungs == 2, phantom.lungs == 1
    height = np.arange(lobes.shape[0])[:, None, None] / lobes.shape[0]
    lobes[left & (height >= 0.5)] = LOBES["left_upper_lobe"]
    lobes[left & (height < 0.5)] = LOBES["left_lower_lobe"]
    lobes[right & (height >= 0.6)] = LOBES["right_upper_lobe"]
    front = np.arange(lobes.shape[1])[:, None] < lobes.shape[1] / 2
    lobes[right & (height < 0.6) & front] = LOBES["right_middle_lobe"]
    lobes[right & (height < 0.6) & ~front] = LOBES["right_lower_lobe"]
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


OBLIQUE = Rotation.from_euler("zyx", (20, -15, 10), degrees=True).as_matrix()
STORED = pytest.mark.parametrize(
    ("orientation", "rotation"), [("LPS", None), ("RAS", None), ("PIR", None), ("LPS", OBLIQUE), ("RAS", OBLIQUE)]
)


def relabelled(phantom: Phantom, **labels: int) -> Phantom:
    """The lobes with other labels; 0 leaves a lobe out."""
    table = np.arange(256, dtype=np.uint8)
    for name, label in labels.items():
        table[LOBES[name]] = label
    return dataclasses.replace(phantom, lungs=table[phantom.lungs])


@STORED
@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (
            {"right_upper_lobe": 1, "right_middle_lobe": 2, "right_lower_lobe": 3, "left_upper_lobe": 4, "left_lower_lobe": 5},
            "label 3 does not lie to the right of label 1",
        ),
        ({"right_middle_lobe": 4, "right_lower_lobe": 5}, "label 5 does not lie anterior to label 4"),
        ({"left_upper_lobe": 2, "left_lower_lobe": 1}, "label 2 does not lie below label 1"),
        ({"right_upper_lobe": 4, "right_lower_lobe": 3, "right_middle_lobe": 0}, "label 4 does not lie below label 3"),
        # the first of these labellings after a left pneumonectomy: all labels lie on one side
        (
            {"right_upper_lobe": 1, "right_middle_lobe": 2, "right_lower_lobe": 3, "left_upper_lobe": 0, "left_lower_lobe": 0},
            "label 3 does not lie to the right of label 1",
        ),
    ],
)
def test_lobes_of_another_labelling_are_not_reported(
    phantom: Phantom, orientation: str, rotation: np.ndarray | None, labels: dict[str, int], reason: str
) -> None:
    other = relabelled(lobed(phantom), **labels)
    regions = Regions.of(Scan.from_images(*other.images(orientation, rotation), lobes=True))
    assert regions.warnings == (f"the labels do not lie where lobes 1 to 5 lie ({reason}): lobes are not reported",)
    if labels.get("left_upper_lobe") == 0:
        assert regions.members == {"both": (1,)}
    else:
        assert regions.members == {"right": (1,), "left": (2,)}
        assert np.array_equal(regions.labels, np.where(other.lungs > 0, phantom.lungs, 0)[regions.box])


@pytest.mark.parametrize(
    ("right", "left", "reason"),
    [
        (1, 1, "all are of lobes of the left lung, and the mask covers two lungs"),
        (4, 4, "all are of lobes of the right lung, and the mask covers two lungs"),
        (2, 1, "label 2 does not lie on the side of label 1"),
        (3, 5, "label 5 does not lie on the side of label 3"),
    ],
)
def test_labels_of_lungs_are_not_taken_for_those_of_lobes(phantom: Phantom, right: int, left: int, reason: str) -> None:
    lungs = np.choose(phantom.lungs, [0, right, left]).astype(np.uint8)
    lungs[35:][phantom.lungs[35:] == 1] = 0  # the right lung lies lower
    regions = Regions.of(scan_of(dataclasses.replace(phantom, lungs=lungs), lobes=True))
    assert regions.warnings == (f"the labels do not lie where lobes 1 to 5 lie ({reason}): lobes are not reported",)
    assert regions.members == {"right": (1,), "left": (2,)}


@pytest.mark.parametrize(("factor", "kind"), [(256, np.uint16), (512, np.int32), (1e9, np.float64), (0.5, np.float32)])
def test_labels_above_255_and_fractions_are_lung_and_no_lobes(phantom: Phantom, factor: float, kind: type) -> None:
    ct, lungs = phantom.images()
    stored = sitk.GetImageFromArray((factor * (phantom.lungs > 0)).astype(kind))
    stored.CopyInformation(lungs)
    scan = Scan.from_images(ct, stored, lobes=True)
    assert np.array_equal(scan.lung, phantom.lungs > 0)
    regions = Regions.of(scan)
    found = "the mask of lobes has other labels than 1 to 5 (255, above or fractional)"
    assert regions.warnings == (f"{found}: lobes are not reported",)
    assert regions.members == {"right": (1,), "left": (2,)}


@STORED
@pytest.mark.parametrize(
    "absent",
    [
        *((), ("right_middle_lobe",), ("right_upper_lobe",), ("right_lower_lobe",), ("left_upper_lobe",)),
        *(("right_upper_lobe", "right_middle_lobe"), ("left_upper_lobe", "left_lower_lobe")),
        ("right_upper_lobe", "right_middle_lobe", "right_lower_lobe"),
    ],
    ids=lambda absent: "-".join(absent) or "none",
)
def test_lobes_are_reported_whatever_way_the_file_is_stored_and_whichever_were_removed(
    phantom: Phantom, orientation: str, rotation: np.ndarray | None, absent: tuple[str, ...]
) -> None:
    left = relabelled(lobed(phantom), **dict.fromkeys(absent, 0))
    regions = Regions.of(Scan.from_images(*left.images(orientation, rotation), lobes=True))
    assert regions.warnings == ()
    assert set(regions.members) - {"right", "left"} == set(LOBES) - set(absent)
    assert np.array_equal(regions.labels, left.lungs[regions.box])


def test_stray_voxels_are_not_taken_for_a_lobe_that_lies_elsewhere(phantom: Phantom) -> None:
    lungs = relabelled(lobed(phantom), right_middle_lobe=0).lungs
    lowest = np.argwhere(lungs == LOBES["right_lower_lobe"])
    lungs[tuple(lowest[lowest[:, 1].argmax()])] = LOBES["right_middle_lobe"]
    assert Regions.of(scan_of(dataclasses.replace(phantom, lungs=lungs), lobes=True)).warnings == ()


@pytest.mark.parametrize(("right", "left"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_labels_1_and_2_of_a_plain_lung_mask_name_no_side(phantom: Phantom, right: int, left: int, orientation: str) -> None:
    lungs = np.where(phantom.lungs == 1, right, np.where(phantom.lungs == 2, left, 0)).astype(np.uint8)
    regions = Regions.of(Scan.from_images(*dataclasses.replace(phantom, lungs=lungs).images(orientation)))
    assert regions.members == {"right": (1,), "left": (2,)}
    assert np.array_equal(regions.labels, phantom.lungs[regions.box])


def test_the_same_labels_in_a_plain_lung_mask_mean_nothing(phantom: Phantom) -> None:
    assert set(Regions.of(scan_of(lobed(phantom))).members) == {"right", "left"}
