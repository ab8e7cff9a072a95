"""Image quality of chests whose noise and blur are known, and the warnings that follow from a bundle's range."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from model.container.results import Quality
from model.imaging.scan import Scan
from model.lungs.quality import ImageQuality, quality_warnings
from model.training import validated_range
from model.weights import read_bundle, read_metadata
from test.phantom import BODY_HU, LUNG_HU, Phantom, make_phantom, write_dark_detector


@pytest.fixture(scope="module")
def fine() -> Phantom:
    """Voxels of 1 mm in axial slices."""
    return make_phantom((50, 256, 320), (5.0, 1.0, 1.0))


def measured(phantom: Phantom, hounsfield: np.ndarray | None = None, orientation: str = "LPS") -> ImageQuality:
    changed = phantom if hounsfield is None else dataclasses.replace(phantom, hounsfield=np.rint(hounsfield).astype(np.int16))
    return ImageQuality.of(Scan.from_images(*changed.images(orientation)))


def blurred(phantom: Phantom, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(phantom.hounsfield.astype(np.float32), (0, sigma, sigma))


@pytest.mark.parametrize("noise", [10.0, 40.0])
def test_the_noise_is_that_of_the_phantom(fine: Phantom, noise: float) -> None:
    """The lower quartile over patches of 7 x 7 independent values lies 7 % below their standard deviation."""
    grain = np.random.default_rng(1).normal(0, noise, fine.lungs.shape)
    assert measured(fine, fine.hounsfield + grain).noise_hu == pytest.approx(0.93 * noise, rel=0.04)


def test_vessels_do_not_count_as_noise(fine: Phantom) -> None:
    grain = np.random.default_rng(1).normal(0, 20, fine.lungs.shape)
    vessels = np.zeros(fine.lungs.shape, bool)
    vessels[:, ::20, ::20] = True
    with_vessels = np.where(vessels & (fine.lungs > 0), BODY_HU, fine.hounsfield)
    assert measured(fine, with_vessels + grain).noise_hu == pytest.approx(0.93 * 20, rel=0.1)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
@pytest.mark.parametrize("noise", [0.0, 40.0])
def test_the_edge_width_is_that_of_a_gaussian_blur(fine: Phantom, sigma: float, noise: float) -> None:
    """25 to 75 % of a step under a Gaussian: 2 x 0.6745 standard deviations; the voxel's width adds a variance of 1/12 mm^2."""
    grain = np.random.default_rng(1).normal(0, noise, fine.lungs.shape)
    expected = 1.349 * np.sqrt(sigma**2 + 1 / 12)
    assert measured(fine, blurred(fine, sigma) + grain).edge_width_mm == pytest.approx(expected, rel=0.15)


def test_sharpening_narrows_edges_and_raises_noise(fine: Phantom) -> None:
    soft = blurred(fine, 1.5) + ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 60, fine.lungs.shape), (0, 1, 1))
    sharp = soft + 2 * (soft - ndimage.gaussian_filter(soft, (0, 1.0, 1.0)))
    before, after = measured(fine, soft), measured(fine, sharp)
    assert after.noise_hu is not None
    assert before.noise_hu is not None
    assert after.noise_hu > 1.5 * before.noise_hu
    assert after.edge_width_mm is not None
    assert before.edge_width_mm is not None
    assert after.edge_width_mm < 0.8 * before.edge_width_mm


def test_the_orientation_of_the_file_changes_nothing(fine: Phantom) -> None:
    voxels = blurred(fine, 1.0)
    assert measured(fine, voxels, "RAS") == measured(fine, voxels, "PIR") == measured(fine, voxels)


def test_spacing_density_and_thickness_are_the_scans(fine: Phantom) -> None:
    scan = dataclasses.replace(Scan.from_images(*fine.images()), slice_thickness_mm=6.0)
    quality = ImageQuality.of(scan)
    assert (quality.pixel_spacing_mm, quality.slice_spacing_mm, quality.slice_thickness_mm) == (1.0, 5.0, 6.0)
    assert quality.mean_lung_hu == pytest.approx(LUNG_HU)
    assert quality.cut_off_percentage == 0


def test_a_lung_that_the_image_cuts_off_says_so(phantom: Phantom) -> None:
    """The lower half of the lungs is gone: the cut shows two ellipses with half axes of 70 and 42 mm.

    The surface of each half ellipsoid in voxel faces is twice its silhouette along each axis: pi x (70 x 42 + 105 x 42 / 2 +
    105 x 70 / 2), once more pi x 70 x 42 for the cut, and the cap once.
    """
    upper = dataclasses.replace(phantom, hounsfield=phantom.hounsfield[25:], lungs=phantom.lungs[25:])
    cut, sides = 70 * 42, 105 * 42 + 105 * 70
    assert measured(upper).cut_off_percentage == pytest.approx(100 * cut / (2 * cut + sides), rel=0.05)


def test_padding_around_a_round_field_of_view_counts_as_its_border(phantom: Phantom) -> None:
    padded = phantom.hounsfield.copy()
    padded[:, :, :20] = -2048  # through the right lung
    quality = measured(phantom, padded)
    assert quality.cut_off_percentage > 5
    assert quality.noise_hu == pytest.approx(0, abs=0.5)

    image, mask = phantom.images()
    unsigned = sitk.GetImageFromArray(np.where(padded == -2048, 62512, padded.astype(np.int32)))  # -2000 without its sign
    unsigned.CopyInformation(image)
    assert ImageQuality.of(Scan.from_images(unsigned, mask)).cut_off_percentage == quality.cut_off_percentage


def test_coarse_or_small_lungs_have_no_noise_or_edges_but_a_quality(phantom: Phantom) -> None:
    without_wall = np.where(phantom.hounsfield == BODY_HU, 700, phantom.hounsfield)  # bone alone
    assert measured(phantom, without_wall).edge_width_mm is None


QUALITY = ImageQuality(65.7, 0.41, 0.84, 5.0, None, 0.0, -827.0)


def test_what_lies_outside_the_range_of_the_tested_scans_is_warned_of_with_the_numbers() -> None:
    known = {
        "noise_hu": (None, 50.0),
        "edge_width_mm": (0.7, 1.4),
        "slice_thickness_mm": (None, 3.0),
        "mean_lung_hu": (-900, -700),
    }
    outside = "outside the range of the scans that these weights were tested on"
    assert quality_warnings(QUALITY, known) == [
        f"image quality: {found}; the percentages may be wrong"
        for found in (
            f"the noise in the lungs: 66 HU, {outside} (to 50 HU)",
            f"the width of edges (sharpness): 0.41 mm, {outside} (from 0.70 mm to 1.40 mm)",
        )
    ]
    assert quality_warnings(QUALITY, {}) == []


def test_noise_of_a_sharp_kernel_differs_from_that_of_a_low_dose() -> None:
    known = {"noise_hu": (None, 70.0), "noise_at_1_mm_hu": (None, 30.0)}
    assert quality_warnings(QUALITY, known) == []  # 66 HU, edges of 0.41 mm
    low_dose = dataclasses.replace(QUALITY, noise_hu=58.0, edge_width_mm=1.0)
    (warning,) = quality_warnings(low_dose, known)
    assert "the noise in the lungs, for edges of 1 mm: 58 HU, outside the range" in warning
    assert "(to 30 HU)" in warning
    assert quality_warnings(dataclasses.replace(low_dose, edge_width_mm=None), known) == []


def test_blurring_white_noise_keeps_its_level_for_edges_of_1_mm(fine: Phantom) -> None:
    grain = np.random.default_rng(1).normal(0, 120, fine.hounsfield.shape)
    levels = []
    for sigma in (1.0, 1.4):
        quality = measured(fine, blurred(fine, sigma) + ndimage.gaussian_filter(grain, (0, sigma, sigma)))
        levels.append(quality.noise_at_1_mm_hu)
    assert levels[0] is not None
    assert levels[1] == pytest.approx(levels[0], rel=0.15)


def test_the_range_of_the_validation_is_stored_in_the_bundle(tmp_path: Path) -> None:
    bundle = write_dark_detector(tmp_path / "bundle")
    before = read_bundle(bundle)
    assert before.metadata.validated_range == {}
    soft = dataclasses.replace(QUALITY, noise_hu=20.0, edge_width_mm=1.0)
    results = [
        {"entity": str(number), "metrics": None, "error_messages": ["x"], "quality": dataclasses.asdict(Quality.of(quality))}
        for number, quality in enumerate((QUALITY, soft))
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert validated_range.main([str(bundle), str(tmp_path / "results.json")]) == 0
    after = read_bundle(bundle)
    assert after.sha256 != before.sha256
    ranges = after.metadata.validated_range
    assert (ranges["noise_hu"], ranges["edge_width_mm"]) == ((None, 69.0), (0.39, 1.05))
    assert ranges["noise_at_1_mm_hu"] == (None, 28.0)  # 66 HU x 0.41 mm, and 5 %
    assert ranges["cut_off_percentage"] == (None, 1.0)
    assert "slice_thickness_mm" not in ranges
    assert quality_warnings(QUALITY, ranges) == quality_warnings(soft, ranges) == []


@pytest.mark.parametrize("broken", [{"noise": [0, 1]}, {"noise_hu": [0, "1"]}, {"noise_hu": [1]}, {"noise_hu": 3}, [1]])
def test_a_range_that_is_none_is_refused(tmp_path: Path, broken: object) -> None:
    bundle = write_dark_detector(tmp_path / "bundle")
    path = bundle / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"validated_range": broken}))
    with pytest.raises(Exception, match=r"bundle\.json: a field is missing or wrong"):
        read_metadata(bundle)


@pytest.mark.parametrize(("kernel", "warned"), [("smooth", 0), ("sharp", 2)])
def test_the_sharp_kernel_of_a_real_scan_lies_outside_of_simulated_ones(shared: Path, kernel: str, warned: int) -> None:
    """Noise to 50 HU, edges from 0.7 mm: wider than a hundred simulated scans of the kind used in training."""
    images = shared / f"data/a0001-{kernel}/images"
    scan = Scan.read(*(next((images / name).iterdir()) for name in ("ct", "lung-mask")))
    assert len(quality_warnings(ImageQuality.of(scan), {"noise_hu": (None, 50.0), "edge_width_mm": (0.7, 1.4)})) == warned
