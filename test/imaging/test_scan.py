"""Scans: every format and orientation gives the same patient, and unusual input is corrected, with a warning, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from model.errors import InputError
from model.imaging.geometry import ImageGeometry
from model.imaging.readers import Volume
from model.imaging.scan import Scan
from model.lungs.quality import ImageQuality
from test.imaging.series import write_dicom_series
from test.phantom import BODY_HU, LUNG_HU, Phantom


@pytest.fixture(scope="module")
def asymmetric(phantom: Phantom) -> Phantom:
    """A phantom without symmetry, so that a flip or a swap of axes shows."""
    return phantom.with_lesion((160.0, 100.0, 80.0), 25.0)[0]


def assert_same_patient(scan: Scan, phantom: Phantom) -> None:
    assert np.array_equal(scan.hounsfield, phantom.hounsfield)
    assert np.array_equal(scan.lung, phantom.lungs > 0)
    assert scan.spacing == pytest.approx(phantom.spacing)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nii", ".nii.gz", ".nrrd"])
def test_every_file_format_gives_the_same_scan(asymmetric: Phantom, tmp_path: Path, suffix: str) -> None:
    ct, mask = asymmetric.images()
    sitk.WriteImage(ct, str(tmp_path / f"ct{suffix}"))
    sitk.WriteImage(mask, str(tmp_path / f"mask{suffix}"))
    assert_same_patient(Scan.read(tmp_path / f"ct{suffix}", tmp_path / f"mask{suffix}"), asymmetric)


def test_a_dicom_series_gives_the_same_scan(asymmetric: Phantom, tmp_path: Path) -> None:
    ct, mask = asymmetric.images()
    sitk.WriteImage(mask, str(tmp_path / "mask.mha"))
    assert_same_patient(Scan.read(write_dicom_series(ct, tmp_path / "series"), tmp_path / "mask.mha"), asymmetric)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAI", "PIR", "SAL", "ASR"])
def test_every_orientation_gives_the_same_patient_and_the_way_back(asymmetric: Phantom, orientation: str) -> None:
    ct, mask = asymmetric.images(orientation)
    scan = Scan.from_images(ct, mask)
    assert_same_patient(scan, asymmetric)
    back = scan.to_file_grid(scan.hounsfield)
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(ct))
    assert ImageGeometry.of(back) == ImageGeometry.of(ct)


def test_an_oblique_grid_is_taken_to_the_nearest_axes_and_stays_oblique(asymmetric: Phantom) -> None:
    angle = np.deg2rad(20)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    ct, mask = asymmetric.images("RAS", tilt)
    assert_same_patient(Scan.from_images(ct, mask), asymmetric)


@pytest.mark.parametrize("kind", [sitk.sitkInt32, sitk.sitkInt64, sitk.sitkFloat32, sitk.sitkFloat64])
def test_every_pixel_type_gives_the_same_hounsfield_units(asymmetric: Phantom, kind: int) -> None:
    ct, mask = asymmetric.images()
    assert_same_patient(Scan.from_images(sitk.Cast(ct, kind), sitk.Cast(mask, sitk.sitkFloat32)), asymmetric)


def test_a_scan_of_images_in_memory_stays_as_it_was_when_they_change(asymmetric: Phantom) -> None:
    ct, mask = asymmetric.images()
    scan = Scan.from_images(ct, mask)
    ct[40, 32, 25] = 1234
    mask[40, 32, 25] = 9
    assert_same_patient(scan, asymmetric)


def test_a_scan_of_a_volume_holds_the_volumes_voxels_and_no_copy_of_them(asymmetric: Phantom) -> None:
    ct, mask = asymmetric.images()
    place = sitk.GetArrayViewFromImage(ct).__array_interface__["data"][0]
    scan = Scan.of(Volume(ct, "CT"), Volume(mask, "mask"))
    del ct
    assert scan.hounsfield.__array_interface__["data"][0] == place
    assert_same_patient(scan, asymmetric)


def test_the_lungs_of_a_ct_without_a_mask_are_found(lesioned: Phantom, tmp_path: Path) -> None:
    sitk.WriteImage(lesioned.images("RAS")[0], str(tmp_path / "ct.nii.gz"))
    scan = Scan.read(tmp_path / "ct.nii.gz")
    assert np.array_equal(scan.hounsfield, lesioned.hounsfield)
    both = np.count_nonzero(scan.lung & (lesioned.lungs > 0))
    assert 2 * both / (np.count_nonzero(scan.lung) + np.count_nonzero(lesioned.lungs)) > 0.98  # Dice


def test_a_mask_on_another_grid_is_resampled_by_nearest_neighbour(asymmetric: Phantom) -> None:
    ct, mask = asymmetric.images()
    fine = sitk.Resample(
        mask, [160, 128, 50], sitk.Transform(), sitk.sitkNearestNeighbor, [-151, -121, 700], [2, 2, 5], mask.GetDirection(), 0
    )
    scan = Scan.from_images(ct, fine)
    assert np.array_equal(scan.lung, asymmetric.lungs > 0)
    assert "another grid" in scan.warnings[0]


def test_a_mask_moved_by_a_hundredth_of_a_voxel_lies_on_the_same_grid(asymmetric: Phantom) -> None:
    ct, mask = asymmetric.images()
    mask.SetOrigin([place + 0.04 for place in mask.GetOrigin()])
    assert Scan.from_images(ct, mask).warnings == ()


def test_scattered_voxels_that_are_not_finite_are_replaced_and_counted(phantom: Phantom) -> None:
    ct, mask = phantom.images()
    voxels = sitk.GetArrayFromImage(sitk.Cast(ct, sitk.sitkFloat32))
    inside = np.argwhere(phantom.lungs > 0)[1000]
    outside = np.argwhere(phantom.hounsfield == -1000)[5]
    voxels[tuple(inside)] = np.nan
    voxels[tuple(outside)] = np.inf
    image = sitk.GetImageFromArray(voxels)
    image.CopyInformation(ct)
    scan = Scan.from_images(image, mask)
    assert scan.hounsfield[tuple(inside)] == LUNG_HU
    assert scan.hounsfield[tuple(outside)] == -1024
    assert scan.warnings == ("2 voxels of the CT were not finite numbers and were replaced, 1 inside the lung",)


def test_numbers_far_from_any_hounsfield_unit_are_clipped_or_count_as_air(phantom: Phantom) -> None:
    ct, mask = phantom.images()
    voxels = sitk.GetArrayFromImage(sitk.Cast(ct, sitk.sitkFloat32))
    voxels[:, :4, :4] = -np.finfo(np.float32).max
    voxels[:, 4:8, :4] = 1e20
    image = sitk.GetImageFromArray(voxels)
    image.CopyInformation(ct)
    scan = Scan.from_images(image, mask)
    assert (scan.hounsfield.min(), scan.hounsfield.max()) == (-32768, BODY_HU)
    assert (scan.hounsfield[:, 4:8, :4] == -2000).all()
    noise = ImageQuality.of(scan).noise_hu
    assert noise == pytest.approx(ImageQuality.of(Scan.from_images(ct, mask)).noise_hu)


@pytest.mark.parametrize(
    ("kind", "padding"),
    [(sitk.sitkInt16, 32767), (sitk.sitkInt32, 62512), (sitk.sitkFloat32, 62512), (sitk.sitkFloat64, 31744)],
)
def test_padding_above_every_ct_scale_counts_as_air_and_metal_stays(phantom: Phantom, kind: int, padding: int) -> None:
    """12 bits end at 3071 HU, 16 bits with their sign at 31743 HU; -2000 stored without its sign, as 63536, is 62512 HU."""
    ct, mask = phantom.images()
    voxels = sitk.GetArrayFromImage(ct).astype(np.int32)
    voxels[10, 30, 30:32] = 3071, 31743
    voxels[:, :4, :4] = padding
    image = sitk.Cast(sitk.GetImageFromArray(voxels), kind)
    image.CopyInformation(ct)
    scan = Scan.from_images(image, mask)
    assert scan.hounsfield[10, 30, 30:32].tolist() == [3071, 31743]
    assert (scan.hounsfield[:, :4, :4] == -2000).all()
    assert image[0, 0, 0] == padding, "the caller's image stays as it was"


def test_unsigned_padding_of_a_dicom_series_counts_as_air(phantom: Phantom, tmp_path: Path) -> None:
    """Stored as 63536, which is -2000 without its sign, with an intercept of -1024."""
    ct, mask = phantom.images()
    folder = write_dicom_series(ct, tmp_path / "series", intercept=-1024)
    for path in folder.iterdir():
        data_set = pydicom.dcmread(path)
        stored = data_set.pixel_array.astype(np.uint16)
        stored[:4, :4] = 63536
        data_set.PixelRepresentation = 0
        data_set.PixelData = stored.tobytes()
        pydicom.dcmwrite(path, data_set)
    sitk.WriteImage(mask, str(tmp_path / "mask.mha"))
    expected = phantom.hounsfield.copy()
    expected[:, :4, :4] = -2000
    assert np.array_equal(Scan.read(folder, tmp_path / "mask.mha").hounsfield, expected)


def test_too_many_voxels_that_are_not_finite_are_refused(phantom: Phantom) -> None:
    ct, mask = phantom.images()
    voxels = sitk.GetArrayFromImage(sitk.Cast(ct, sitk.sitkFloat32))
    voxels[(phantom.lungs > 0) & (np.arange(voxels.size).reshape(voxels.shape) % 20 == 0)] = np.nan
    image = sitk.GetImageFromArray(voxels)
    image.CopyInformation(ct)
    with pytest.raises(InputError, match="are not finite numbers; expected at most 1%"):
        Scan.from_images(image, mask)


def test_padding_inside_the_mask_counts_as_air(phantom: Phantom) -> None:
    """A tenth of the lung at -3024 HU would pull a plain mean below the lowest that is believed."""
    hounsfield = phantom.hounsfield.copy()
    hounsfield.flat[np.flatnonzero(phantom.lungs)[::10]] = -3024
    scan = Scan.from_images(*dataclasses.replace(phantom, hounsfield=hounsfield).images())
    assert scan.hounsfield.min() == -3024


def test_the_box_is_the_lungs_bounding_box_grown_by_whole_voxels_and_clipped(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    filled = np.argwhere(phantom.lungs)
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    assert [(s.start, s.stop) for s in scan.lung_box()] == list(zip(low, high, strict=True))
    grown = scan.lung_box(margin_mm=6)  # 2 voxels of 5 mm, 2 of 4 mm
    assert [(s.start, s.stop) for s in grown] == [(a - 2, b + 2) for a, b in zip(low, high, strict=True)]
    assert [(s.start, s.stop) for s in scan.lung_box(margin_mm=1000)] == [(0, n) for n in scan.shape]


def sheared(image: sitk.Image) -> sitk.Image:
    image.SetDirection((1, 0.3, 0, 0, 1, 0, 0, 0, 1))
    return image


@pytest.mark.parametrize(
    ("change_ct", "change_mask", "message"),
    [
        (None, lambda mask: sitk.Compose(mask, mask), "lung mask: 2 numbers per voxel; expected a scalar image"),
        (lambda ct: sitk.Compose(ct, ct), None, "CT: 2 numbers per voxel; expected a scalar image"),
        (lambda ct: ct[:, :, 20], None, "CT: a 2D image of 80 x 64 voxels; expected a 3D volume"),
        (lambda ct: sitk.JoinSeries([ct, ct]), None, "CT: a 4D image of 80 x 64 x 50 x 2 voxels; expected a 3D volume"),
        (lambda ct: ct[:, :, 20:21], None, "CT: one slice of 80 x 64 pixels; expected a 3D volume"),
        (lambda ct: sitk.Cast(ct, sitk.sitkComplexFloat32), None, "CT: voxels of type complex .*; expected integers or"),
        (None, lambda mask: sitk.Cast(mask, sitk.sitkLabelUInt8), "lung mask: voxels of type label .*; expected integers or"),
        (None, lambda mask: 0 * mask, "lung mask: the mask is empty; expected labels above 0 inside the lungs"),
        (
            None,
            lambda mask: sitk.Cast(mask > 0, sitk.sitkInt8) * -1,
            "lung mask: the mask has negative labels and none above 0",
        ),
        (sheared, sheared, "CT: axes that are not at right angles"),
    ],
)
def test_images_in_memory_are_checked_as_files_are(
    phantom: Phantom,
    change_ct: Callable[[sitk.Image], sitk.Image] | None,
    change_mask: Callable[[sitk.Image], sitk.Image] | None,
    message: str,
) -> None:
    ct, mask = phantom.images()
    with pytest.raises(InputError, match=message):
        Scan.from_images(change_ct(ct) if change_ct else ct, change_mask(mask) if change_mask else mask)


def test_an_image_in_memory_may_have_a_fourth_axis_of_one_place(asymmetric: Phantom) -> None:
    ct, mask = asymmetric.images("RAS")
    assert_same_patient(Scan.from_images(sitk.JoinSeries([ct]), sitk.JoinSeries([mask])), asymmetric)


def test_a_mask_goes_back_to_the_files_grid_as_ones(asymmetric: Phantom) -> None:
    ct, mask = asymmetric.images("PIR")
    back = Scan.from_images(ct, mask).to_file_grid(Scan.from_images(ct, mask).lung)
    assert back.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(mask) > 0)


def test_warnings_about_the_file_of_the_mask_say_so(phantom: Phantom, tmp_path: Path) -> None:
    for name, image in zip(("ct", "mask"), phantom.images(), strict=True):
        path = tmp_path / f"{name}.nrrd"
        sitk.WriteImage(image, str(path))
        path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior", b"space dimension: 3"))
    warning = "the file states no orientation: right and left may be swapped"
    assert Scan.read(tmp_path / "ct.nrrd", tmp_path / "mask.nrrd").warnings == (warning, f"lung mask: {warning}")
