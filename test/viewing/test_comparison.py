"""Two scans side by side: what the differences are, and that both pictures lie at the same place of the lungs."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np

from model.container.results import CaseResult, Metrics, Provenance, Quality, RegionMetrics, failed_result
from model.slices.images import LUNG_WINDOW
from model.viewing.case import CaseFiles, ViewedCase
from model.viewing.comparison import (
    Difference,
    differences,
    differences_table,
    level_at,
    region_differences,
    reservations,
    side_by_side,
)
from test.container.test_table import RESULT

assert RESULT.metrics is not None
FIRST: Metrics = RESULT.metrics
SECOND = dataclasses.replace(
    FIRST,
    cle_severity_score=4,
    cle_severity="confluent",
    cle_percentage=21.0,
    perc15_hu=-970,
    regions={"right": RegionMetrics(19.5, 2.0, 20.0, -970, 2700), "left": RegionMetrics(1.0, 2.0, 3.0, -900, 2000)},
)


def cells(rows: list[Difference]) -> list[tuple[str, str, str, str]]:
    return [row.cells for row in rows]


def test_differences_are_the_second_minus_the_first_in_score_and_percent() -> None:
    assert cells(differences(FIRST, SECOND)) == [
        ("centrilobular score", "3", "4", "+1"),
        ("centrilobular, % of the lung", "14.2", "21.0", "+6.8"),
        ("paraseptal score", "1", "1", "+0"),
        ("paraseptal, % of the lung", "none", "none", "none"),
        ("LAA-950, %", "16.9", "16.9", "+0.0"),
        ("Perc15, HU", "-957", "-970", "-13"),
        ("lung volume, ml", "5266", "5266", "+0"),
    ]


def test_only_regions_of_both_scans_are_compared() -> None:
    assert cells(region_differences(FIRST, SECOND)) == [
        ("right: centrilobular, %", "15.5", "19.5", "+4.0"),
        ("right: paraseptal, %", "none", "2.0", "none"),
        ("right: LAA-950, %", "17.2", "20.0", "+2.8"),
    ]


def test_the_table_has_numbers_and_no_formula() -> None:
    text = differences_table(("=cmd", "b"), differences(FIRST, SECOND)).decode("utf-8-sig")
    head, score, extent, *_ = csv.reader(text.splitlines())
    assert head == ["measurement", "'=cmd", "b", "second minus first"]
    assert score == ["centrilobular score", "3", "4", "1"]
    assert extent == ["centrilobular, % of the lung", "14.2", "21.0", "6.8"]


def test_what_else_differs_than_the_scans_is_said() -> None:
    first = CaseResult("a", FIRST, Provenance("one", "00", lung_mask_source="given"))
    assert reservations(first, first) == []
    second = CaseResult("b", SECOND, Provenance("two", "11", lung_mask_source="automatic"))
    weights, mask, regions = reservations(first, second)
    assert "one and two" in weights
    assert "segmented automatically" in mask
    assert "different regions" in regions


def test_scans_of_another_sharpness_noise_or_slice_spacing_are_compared_with_a_reservation() -> None:
    """The first two are those of one real CT with a smooth and a sharp kernel (docs/image-quality.md)."""
    smooth = Quality(20.4, 1.06, 0.84, 5.0, None, 0.02, -814.9)
    sharp = Quality(65.7, 0.41, 0.84, 5.0, None, 0.03, -827.4)
    thin = dataclasses.replace(smooth, noise_hu=22.0, slice_spacing_mm=1.0, edge_width_mm=None)

    def said(one: Quality, other: Quality) -> list[str]:
        return reservations(*(CaseResult("a", FIRST, Provenance("one", "00"), quality=quality) for quality in (one, other)))

    (kernel,) = said(smooth, sharp)
    assert "(edge width 1.06 and 0.41 mm, noise 20 and 66 HU)" in kernel
    assert "LAA-950" in kernel
    (slices,) = said(smooth, thin)
    assert "(slice spacing 5.0 and 1.0 mm)" in slices
    assert said(smooth, dataclasses.replace(smooth, noise_hu=25.0, edge_width_mm=1.2)) == []


def case(shape: tuple[int, int, int], first: int, last: int) -> ViewedCase:
    """Lungs from one slice to another; each slice has a density of its own."""
    ct = np.repeat(np.arange(shape[0], dtype=np.int16) - 900, shape[1] * shape[2]).reshape(shape)
    lung = np.zeros(shape, bool)
    lung[first : last + 1, 2:-2, 2:-2] = True
    maps = {"centrilobular": np.zeros(shape, np.uint8), "paraseptal": np.zeros(shape, np.uint8)}
    return ViewedCase(failed_result("not needed here"), ct, lung, maps, (2.0, 1.0, 1.0), CaseFiles({}))


def test_slices_lie_at_the_same_share_of_the_lungs() -> None:
    scans = case((50, 20, 30), 10, 30), case((80, 40, 24), 0, 79)
    assert [level_at(scan, "axial", 0.0) for scan in scans] == [10, 0]
    assert [level_at(scan, "axial", 0.25) for scan in scans] == [15, 20]
    assert [level_at(scan, "coronal", 1.0) for scan in scans] == [17, 37]
    assert level_at(dataclasses.replace(scans[0], lung=None), "axial", 1.0) == 49


def test_both_scans_are_in_the_picture_beside_each_other() -> None:
    scans = case((50, 20, 30), 10, 30), case((80, 40, 24), 0, 79)
    picture = side_by_side(scans, ("one", "other"), "axial", 0.5, LUNG_WINDOW, ["paraseptal"])
    alone = side_by_side(scans[:1], ("one",), "axial", 0.5, LUNG_WINDOW, ["paraseptal"])
    height, width, _ = alone.shape
    assert picture.shape[1] > width
    np.testing.assert_array_equal(picture[:height, :width], alone)
