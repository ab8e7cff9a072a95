"""Grey pictures to HU whatever their window, and the lungs of a slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from model.slices.calibration import calibrate, find_lungs
from model.slices.images import Window
from model.slices.inputs import INPUT_SIZE, LungCrop
from test.slices.chest import HOLE, LUNGS, TRACHEA, chest, ellipse

WINDOWS = (
    Window(-600, 1500),
    Window(-600, 1600),
    Window(-400, 1400),
    Window(-500, 1400),
    Window(-600, 1200),
    Window(-450, 1100),
    Window(-700, 1500),
    Window(-300, 1400),
    Window(-550, 1800),
    Window(-500, 2000),
)


def whitens_all_but_lungs(window: Window, fat: float) -> bool:
    """Whether soft tissue is white, and there is too little fat to give the scale: refused, as another test shows."""
    return fat == 2 and window.centre + window.width / 2 <= 50


@pytest.mark.parametrize(
    ("window", "fat"),
    [(window, fat) for window in WINDOWS for fat in (2.0, 10.0, 20.0) if not whitens_all_but_lungs(window, fat)],
    ids=lambda value: f"{value.centre:.0f}/{value.width:.0f}" if isinstance(value, Window) else f"{value:.0f} mm of fat",
)
def test_grey_through_any_window_gives_the_same_hounsfield_back(window: Window, fat: float) -> None:
    hounsfield = chest(fat)
    found = calibrate(window.grey(hounsfield))

    floor = max(window.centre - window.width / 2, -1000)
    parenchyma = LUNGS & ~HOLE & (hounsfield > -920) & (hounsfield < -800)
    assert found.dtype == np.float32
    assert found.min() >= -1024
    assert np.abs(found - np.maximum(hounsfield, floor))[parenchyma].mean() < 25


def test_blood_that_is_bright_with_contrast_medium_is_not_taken_for_soft_tissue() -> None:
    hounsfield = chest()
    hounsfield[ellipse((165, 160), (45, 24)) & ~TRACHEA & ~LUNGS] = 190
    found = calibrate(Window(-600, 1600).grey(hounsfield))
    assert np.median(found[LUNGS & ~HOLE]) == pytest.approx(-860, abs=15)


def test_padding_outside_of_the_field_of_view_is_not_taken_for_air() -> None:
    hounsfield = chest()
    hounsfield[~ellipse((160, 160), (158, 158))] = -1024
    found = calibrate(Window(-600, 1600).grey(hounsfield))
    assert np.median(found[LUNGS & ~HOLE]) == pytest.approx(-860, abs=10)


def test_a_window_that_ends_below_soft_tissue_is_calibrated_by_fat() -> None:
    found = calibrate(Window(-600, 1200).grey(chest(20)))  # its top is 0 HU
    assert np.median(found[LUNGS & ~HOLE]) == pytest.approx(-860, abs=15)


@pytest.mark.parametrize(
    ("window", "fat"),
    [
        (Window(-850, 300), 10),
        (Window(-825, 350), 10),
        (Window(-800, 400), 10),
        (Window(-700, 600), 20),
        (Window(-650, 1000), 10),
        (Window(-600, 1200), 2),
    ],
    ids=lambda value: f"{value.centre}/{value.width}" if isinstance(value, Window) else str(value),
)
def test_a_window_that_shows_neither_soft_tissue_nor_fat_is_refused(window: Window, fat: float) -> None:
    with pytest.raises(InputError, match="its window is too narrow or too low"):
        calibrate(window.grey(chest(fat)))


def test_fat_without_a_peak_tells_that_a_window_ends_at_soft_tissue() -> None:
    hounsfield = chest(20)
    fat = ellipse((160, 160), (95, 132)) & ~ellipse((160, 160), (75, 112))
    hounsfield[fat] = np.random.default_rng(0).uniform(-200, 45, fat.sum())
    found = calibrate(Window(-600, 1200).grey(hounsfield))
    assert np.median(found[LUNGS & ~HOLE]) == pytest.approx(-855, abs=20)


def test_lungs_are_found_with_their_vessels_and_holes_and_without_the_trachea() -> None:
    hounsfield = chest().astype(np.float32)
    found = find_lungs(hounsfield, None)
    overlap = 2 * (found & LUNGS).sum() / (found.sum() + LUNGS.sum())
    assert overlap > 0.96
    assert found[HOLE].mean() > 0.9
    assert not found[TRACHEA].any()
    assert not found[ellipse((160, 160), (97, 134)) == 0].any()


def test_gas_in_the_bowel_is_no_lung() -> None:
    hounsfield = chest()
    hounsfield[LUNGS & (np.arange(320) > 160) & (np.arange(320)[:, None] < 180)] = 45
    gas = ellipse((125, 215), (25, 25))
    hounsfield[gas] = -1000
    found = find_lungs(hounsfield.astype(np.float32), None)
    assert not found[gas].any()
    assert found[:, :150].any()
    assert found[190:, 180:].any(), "the lung behind it"


def test_a_lung_that_is_one_bulla_is_kept() -> None:
    hounsfield = chest()
    left = LUNGS & (np.arange(320) > 160)
    hounsfield[left] = -1000
    assert find_lungs(hounsfield.astype(np.float32), None)[left].mean() > 0.95


def head() -> np.ndarray:
    hounsfield = np.full((320, 320), -1000.0)
    hounsfield[ellipse((160, 160), (120, 95))] = 45
    hounsfield[ellipse((160, 160), (114, 89))] = 900
    hounsfield[ellipse((160, 160), (106, 81))] = 40
    hounsfield[ellipse((100, 140), (14, 12))] = -1000
    return hounsfield + np.random.default_rng(0).normal(0, 10, hounsfield.shape)


def test_a_head_has_no_lungs() -> None:
    with pytest.raises(InputError, match="no lungs are seen"):
        find_lungs(head().astype(np.float32), None)


def photograph() -> np.ndarray:
    """Smooth shades everywhere."""
    rows, columns = np.mgrid[:320, :320]
    return (128 + 90 * np.sin(rows / 60) * np.cos(columns / 45)).astype(np.uint8)


@pytest.mark.parametrize(
    "picture",
    [photograph(), np.zeros((320, 320), np.uint8), np.full((320, 320), 200, np.uint8), np.zeros((320, 30), np.uint8)],
    ids=["photograph", "black", "white", "strip"],
)
def test_what_shows_no_air_around_a_patient_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        find_lungs(calibrate(picture), None)
    assert len(str(caught.value).splitlines()) == 1


def test_real_slices_of_every_class_are_calibrated_and_their_lungs_found(shared: Path) -> None:
    """Parenchyma lies between -1000 and -650 HU in inspiration, and lungs take 1 to 50 % of a slice."""
    for label in ("CLE", "NT", "PLE", "PSE"):
        for path in sorted((shared / "data" / "real-slices" / label).glob("*.jpg"))[::40]:
            hounsfield = calibrate(np.asarray(Image.open(path).convert("L")))
            lungs = find_lungs(hounsfield, None)
            assert 0.01 < lungs.mean() < 0.5, path.name
            assert -1000 < np.median(hounsfield[lungs]) < -650, path.name


def test_lungs_of_too_few_pixels_are_refused() -> None:
    """The crop is 162 pixels high in 320: 76 in 150, and 91 in 180."""
    grey = Image.fromarray(Window().grey(chest()))
    with pytest.raises(InputError, match=r"too small: with their margin 10\d x 7\d pixels; expected at least 107 x 80 pixels"):
        LungCrop.find(calibrate(np.asarray(grey.resize((150, 150)))))
    assert LungCrop.find(calibrate(np.asarray(grey.resize((180, 180))))).hounsfield.shape == (INPUT_SIZE, INPUT_SIZE)
