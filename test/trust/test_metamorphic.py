"""The same patient stored in another way: scores stay, percentages stay or move within stated bounds, maps move along.

Every case goes through files and process.main, as a user's does. Nothing here knows what the right percentage is; each test
compares two ways of storing the same scan. What must not differ by a digit is tried with a coarse input of the network; what
may differ is tried with a finer one, about as fine as the scan.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import process
from model.preprocessing import Shape
from model.weights import untrained_bundle, write_bundle
from test.imaging.series import write_dicom_series
from test.phantom import COARSE_INPUT, HALF_INPUT, LESION_HU, Phantom, make_phantom, write_case, write_dark_detector

pytestmark = pytest.mark.slow

Images = tuple[sitk.Image, sitk.Image]
MAP_NAMES = ("centrilobular", "paraseptal")


@pytest.fixture(scope="module")
def patient() -> Phantom:
    """Lungs with noise and dark balls of many sizes, unlike each other in every direction; a table below the back."""
    rng = np.random.default_rng(11)
    phantom = make_phantom((60, 112, 128), (4.0, 2.5, 2.5))
    hounsfield = phantom.hounsfield.astype(np.float64)
    for centre, radius in zip(rng.uniform((20, 60, 40), (220, 220, 280), (60, 3)), rng.uniform(3, 16, 60), strict=True):
        ball = phantom.with_lesion(tuple(centre), radius)[1]
        hounsfield[ball & (phantom.lungs > 0)] = LESION_HU
    hounsfield += rng.normal(0, 15, hounsfield.shape)
    hounsfield[:, 106:108, 20:110] = 300
    return dataclasses.replace(phantom, hounsfield=hounsfield.round().clip(-1024, 3071).astype(np.int16))


@pytest.fixture(scope="module", params=["paper", "released"])
def profile(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def weights(profile: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("coarse") / "bundle", profile, COARSE_INPUT)


@pytest.fixture(scope="module")
def fine_weights(profile: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("fine") / "bundle", profile, HALF_INPUT)


def write_weights(folder: Path, profile: str, input_shape: Shape) -> Path:
    """The dark detector with the paper's profile; with the other a random network, whose answer depends on everything."""
    if profile == "paper":
        return write_dark_detector(folder, input_shape=input_shape)
    network, metadata = untrained_bundle(base_width=2, seed=1)
    write_bundle(folder, network, dataclasses.replace(metadata, profile=profile, input_shape=input_shape))
    return folder


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a run said of a case: its metrics, and both maps as images."""

    metrics: dict[str, Any]
    maps: dict[str, sitk.Image]

    def arrays(self) -> Iterator[np.ndarray]:
        yield from (sitk.GetArrayFromImage(self.maps[name]) for name in MAP_NAMES)


def read(folder: Path, weights: Path) -> Reading:
    """Score a case that lies in `folder`."""
    output = folder / "output"
    options = ["--input", str(folder), "--output", str(output), "--weights", str(weights), "--precision", "float32"]
    assert process.main(options) == 0
    (result,) = json.loads((output / "results.json").read_text())
    maps = {name: next((output / f"images/{name}-emphysema-heatmap").iterdir()) for name in MAP_NAMES}
    return Reading(result["metrics"], {name: sitk.ReadImage(str(path)) for name, path in maps.items()})


def score(images: Images, folder: Path, weights: Path) -> Reading:
    return read(write_case(folder, *images), weights)


@pytest.fixture(scope="module")
def plain(patient: Phantom, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    """The patient as a scanner stores it."""
    reading = score(patient.images(), tmp_path_factory.mktemp("plain"), weights)
    assert reading.metrics["cle_percentage"] > 2
    assert max(int(array.max()) for array in reading.arrays()) > 100
    return reading


@pytest.fixture(scope="module")
def finely(patient: Phantom, fine_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    """The same on the finer input."""
    return score(patient.images(), tmp_path_factory.mktemp("plain"), fine_weights)


def assert_same(found: Reading, plain: Reading, undo: Callable[[sitk.Image], sitk.Image] = lambda image: image) -> None:
    """Not a digit and not a voxel differs, once the maps are brought back; and the maps lie where the plain ones do."""
    assert found.metrics == plain.metrics
    for name in MAP_NAMES:
        back, expected = undo(found.maps[name]), plain.maps[name]
        assert back.GetOrigin() == pytest.approx(expected.GetOrigin(), abs=1e-3)
        assert back.GetDirection() == pytest.approx(expected.GetDirection(), abs=1e-6)
        assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(expected))


def each(change: Callable[[sitk.Image], sitk.Image], images: Images) -> Images:
    ct, mask = images
    return change(ct), change(mask)


@pytest.mark.parametrize("orientation", ["LPI", "RAS", "PIR", "ASL", "SRP", "IPL"])
def test_axes_that_are_flipped_and_exchanged_change_nothing(
    patient: Phantom, plain: Reading, weights: Path, tmp_path: Path, orientation: str
) -> None:
    found = score(patient.images(orientation), tmp_path, weights)
    assert_same(found, plain, lambda image: sitk.DICOMOrient(image, "LPS"))


def test_a_patient_who_lies_elsewhere_or_askew_is_the_same(
    patient: Phantom, plain: Reading, weights: Path, tmp_path: Path
) -> None:
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    found = score(patient.images(rotation=turn), tmp_path, weights)
    assert found.metrics == plain.metrics
    for array, expected in zip(found.arrays(), plain.arrays(), strict=True):
        assert np.array_equal(array, expected)
    assert found.maps["paraseptal"].GetDirection() == pytest.approx(patient.images(rotation=turn)[0].GetDirection())


CUT = ([3, 6, 0], [3, 7, 2])
"""Voxels to cut off or add on each side, x y z: air and table, and slices beyond the lungs."""


def test_air_around_the_patient_can_be_cut_off(patient: Phantom, plain: Reading, weights: Path, tmp_path: Path) -> None:
    found = score(each(lambda image: sitk.Crop(image, *CUT), patient.images()), tmp_path, weights)
    assert_same(found, plain, lambda image: sitk.ConstantPad(image, *CUT, 0))


@pytest.mark.parametrize("value", [-1024, -3024, -32768, 40])
def test_padding_of_any_value_around_the_scan_changes_nothing(
    patient: Phantom, plain: Reading, weights: Path, tmp_path: Path, value: int
) -> None:
    ct, mask = patient.images()
    found = score((sitk.ConstantPad(ct, *CUT, value), sitk.ConstantPad(mask, *CUT, 0)), tmp_path, weights)
    assert_same(found, plain, lambda image: sitk.Crop(image, *CUT))


def test_what_lies_outside_of_the_body_changes_nothing(patient: Phantom, plain: Reading, weights: Path, tmp_path: Path) -> None:
    """A table, a blanket, or the round field of view with its padding of -2000."""
    hounsfield = patient.hounsfield.copy()
    rows, columns = np.meshgrid(np.arange(112) - 55.5, np.arange(128) - 63.5, indexing="ij")
    hounsfield[:, (rows / 50) ** 2 + (columns / 62) ** 2 > 1] = -2000
    hounsfield[:, 108:111, 10:118] = 900
    assert_same(score(dataclasses.replace(patient, hounsfield=hounsfield).images(), tmp_path, weights), plain)


@pytest.mark.parametrize(
    ("kind", "label"), [(sitk.sitkInt32, 255), (sitk.sitkInt64, 1), (sitk.sitkFloat32, 255), (sitk.sitkFloat64, 1)]
)
def test_types_and_labels_change_nothing(
    patient: Phantom, plain: Reading, weights: Path, tmp_path: Path, kind: int, label: int
) -> None:
    ct, mask = patient.images()
    assert_same(score((sitk.Cast(ct, kind), sitk.Cast(mask > 0, kind) * label), tmp_path, weights), plain)


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.5, -1024), (0.25, 100)])
def test_a_dicom_series_of_any_rescaling_changes_nothing(
    patient: Phantom, plain: Reading, weights: Path, tmp_path: Path, slope: float, intercept: float
) -> None:
    ct, mask = patient.images()
    write_case(tmp_path, ct, mask)
    (tmp_path / "images/ct/scan.mha").unlink()
    write_dicom_series(ct, tmp_path / "images/ct/scan", slope=slope, intercept=intercept)
    assert_same(read(tmp_path, weights), plain)


def test_the_names_of_dicom_files_change_nothing(patient: Phantom, plain: Reading, weights: Path, tmp_path: Path) -> None:
    ct, mask = patient.images()
    write_case(tmp_path, ct, mask)
    (tmp_path / "images/ct/scan.mha").unlink()
    paths = sorted(write_dicom_series(ct, tmp_path / "images/ct/scan").iterdir())
    for number, path in zip(np.random.default_rng(0).permutation(len(paths)), paths, strict=True):
        path.rename(path.with_name(f"new{number:04d}.dcm"))
    assert_same(read(tmp_path, weights), plain)


def test_a_nifti_file_that_is_rescaled_changes_nothing(patient: Phantom, plain: Reading, weights: Path, tmp_path: Path) -> None:
    """Stored values are (HU + 1024) / 0.5; slope and intercept stand at byte 112 of the header."""
    ct, mask = patient.images()
    write_case(tmp_path, ct, mask)
    (tmp_path / "images/ct/scan.mha").unlink()
    path = tmp_path / "images/ct/scan.nii"
    sitk.WriteImage((ct + 1024) * 2, str(path))
    data = bytearray(path.read_bytes())
    struct.pack_into("<2f", data, 112, 0.5, -1024.0)
    path.write_bytes(data)
    assert_same(read(tmp_path, weights), plain)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz"])
def test_the_file_format_changes_nothing(patient: Phantom, plain: Reading, weights: Path, tmp_path: Path, suffix: str) -> None:
    for place, image in zip(("ct", "lung-mask"), patient.images(), strict=True):
        (tmp_path / "images" / place).mkdir(parents=True)
        sitk.WriteImage(image, str(tmp_path / "images" / place / f"scan{suffix}"))
    assert_same(read(tmp_path, weights), plain)


def repeated(image: sitk.Image, factors: tuple[int, int, int]) -> sitk.Image:
    """Every voxel several times, x y z; the same body in space."""
    array = sitk.GetArrayFromImage(image)
    for axis, factor in enumerate(reversed(factors)):
        array = np.repeat(array, factor, axis)
    finer = sitk.GetImageFromArray(array)
    spacing = [distance / factor for distance, factor in zip(image.GetSpacing(), factors, strict=True)]
    finer.SetSpacing(spacing)
    finer.SetDirection(image.GetDirection())
    shift = [(new - old) / 2 for new, old in zip(spacing, image.GetSpacing(), strict=True)]
    finer.SetOrigin([place + move for place, move in zip(image.GetOrigin(), shift, strict=True)])
    return finer


REPETITIONS = [(1, 1, 2), (1, 1, 3), (2, 1, 1), (1, 2, 1)]
REPETITION_POINTS = 0.5
"""By how many percentage points repetition may move a percentage: the grid's corners move by a part of a voxel."""


@pytest.mark.parametrize("factors", REPETITIONS, ids=str)
def test_finer_spacing_by_exact_repetition_moves_percentages_by_less_than_half_a_point(
    patient: Phantom, finely: Reading, fine_weights: Path, tmp_path: Path, factors: tuple[int, int, int]
) -> None:
    found = score(each(lambda image: repeated(image, factors), patient.images()), tmp_path, fine_weights)
    for key in ("laa950_percentage", "perc15_hu", "lung_volume_ml"):
        assert found.metrics[key] == finely.metrics[key]
    for subtype in ("cle", "pse"):
        key = f"{subtype}_percentage"
        assert found.metrics[key] == pytest.approx(finely.metrics[key], abs=REPETITION_POINTS)
        assert found.metrics[f"{subtype}_severity_score"] == finely.metrics[f"{subtype}_severity_score"]
        for region in ("right", "left"):
            expected = finely.metrics["regions"][region][key]
            assert found.metrics["regions"][region][key] == pytest.approx(expected, abs=2 * REPETITION_POINTS)
    every = tuple(slice(factor // 2, None, factor) for factor in reversed(factors))
    for array, expected in zip(found.arrays(), finely.arrays(), strict=True):
        lung = sitk.GetArrayFromImage(patient.images()[1]) > 0
        difference = np.abs(array[every][lung].astype(float) - expected[lung]) / 2.55
        assert difference.mean() < 3


MIRROR_POINTS = 0.1


def test_a_mirrored_patient_has_right_and_left_exchanged(patient: Phantom, tmp_path: Path) -> None:
    """With the dark detector alone: other networks may well tell right from left."""
    bundle = write_dark_detector(tmp_path / "bundle", input_shape=HALF_INPUT)
    mirrored = dataclasses.replace(patient, hounsfield=patient.hounsfield[..., ::-1], lungs=patient.lungs[..., ::-1])
    one, other = (
        score(phantom.images(), tmp_path / str(number), bundle).metrics for number, phantom in enumerate((patient, mirrored))
    )
    assert other["cle_percentage"] == pytest.approx(one["cle_percentage"], abs=MIRROR_POINTS)
    for side, opposite in (("right", "left"), ("left", "right")):
        here, there = one["regions"][side], other["regions"][opposite]
        assert here["laa950_percentage"] == there["laa950_percentage"]
        assert here["volume_ml"] == there["volume_ml"]
        assert here["cle_percentage"] == pytest.approx(there["cle_percentage"], abs=2 * MIRROR_POINTS)
    right, left = (one["regions"][side]["cle_percentage"] for side in ("right", "left"))
    assert abs(right - left) > 4 * MIRROR_POINTS


@pytest.mark.parametrize("factors", [(2, 2, 1), (1, 1, 2)], ids=str)
def test_a_mask_on_a_finer_grid_of_the_same_body_is_the_same_mask(
    patient: Phantom, plain: Reading, weights: Path, tmp_path: Path, factors: tuple[int, int, int]
) -> None:
    ct, mask = patient.images()
    assert_same(score((ct, repeated(mask, factors)), tmp_path, weights), plain)


def test_noise_of_one_unit_moves_percentages_by_less_than_a_tenth_of_a_point(
    patient: Phantom, finely: Reading, fine_weights: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).integers(-1, 2, patient.hounsfield.shape).astype(np.int16)
    found = score(dataclasses.replace(patient, hounsfield=patient.hounsfield + noise).images(), tmp_path, fine_weights)
    for subtype in ("cle", "pse"):
        key = f"{subtype}_percentage"
        assert found.metrics[key] == pytest.approx(finely.metrics[key], abs=0.1)


def test_two_patients_in_one_run_do_not_touch_each_other(
    patient: Phantom, plain: Reading, weights: Path, tmp_path: Path
) -> None:
    """The second of three cases, between two others, gets what it gets alone."""
    other = make_phantom()
    for stem, phantom in (("a", other), ("b", patient), ("c", other)):
        write_case(tmp_path, *phantom.images(), stem=stem)
    output = tmp_path / "output"
    options = ["--input", str(tmp_path), "--output", str(output), "--weights", str(weights), "--precision", "float32"]
    assert process.main(options) == 0
    first, second, third = json.loads((output / "results.json").read_text())
    assert second["metrics"] == plain.metrics
    assert first["metrics"] == third["metrics"]
    assert first["metrics"] != second["metrics"]
