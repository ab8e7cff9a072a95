"""Reading scans: every format and orientation gives the same patient, and what is odd is mended or refused."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.errors import InputError
from model.imaging.scan import ImageGeometry, Orientation, Scan, available_memory, read_header, read_image
from test.phantom import LUNG_HU, Phantom
from test.trust.mutations import set_element


def write_dicom_series(
    image: sitk.Image,
    folder: Path,
    *,
    without: int | None = None,
    slope: float = 1,
    intercept: float = 0,
    tags: Callable[[int], dict[str, str]] = lambda _: {},
) -> Path:
    """Write one file a slice, as a scanner does: stored values are (HU - intercept) / slope; `tags` adds some to a slice.

    The writer would rescale values by the tags that it is given, and knows whole slopes only: they are set in the files.
    """
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for index in range(image.GetDepth()):
        if index == without:
            continue
        section = sitk.Cast((sitk.Cast(image[:, :, index], sitk.sitkFloat64) - intercept) / slope, sitk.sitkInt16)
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        for tag, value in {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{index}",
            "0020|0013": str(index),
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "\\".join(str(direction[place]) for place in (0, 3, 6, 1, 4, 7)),
            "0028|1053": "1",
            "0028|1052": "0",
            **tags(index),
        }.items():
            section.SetMetaData(tag, value)
        path = folder / f"{index:04d}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(section)
        data = set_element(path.read_bytes(), (0x28, 0x1053), str(slope).encode())
        path.write_bytes(set_element(data, (0x28, 0x1052), str(intercept).encode()))
    return folder


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


def test_a_dicom_series_without_one_slice_is_refused(asymmetric: Phantom, tmp_path: Path) -> None:
    folder = write_dicom_series(asymmetric.images()[0], tmp_path / "series", without=20)
    with pytest.raises(InputError, match=r"slice distances from 5.00 to 10.00 mm"):
        read_image(folder)


def test_a_folder_with_two_dicom_series_is_refused(asymmetric: Phantom, tmp_path: Path) -> None:
    ct, _ = asymmetric.images()
    folder = write_dicom_series(ct, tmp_path / "series")
    section = sitk.Cast(ct[:, :, 0], sitk.sitkInt16)
    section.SetMetaData("0020|000e", "1.2.826.0.1.3680043.2.1125.9")
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(folder / "other.dcm"))
    writer.Execute(section)
    with pytest.raises(InputError, match="the folder holds 2 DICOM series"):
        read_header(folder)


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


def test_an_orientation_and_its_way_back_by_hand() -> None:
    """A sagittal file: x runs to the head, y to the back, z to the right."""
    direction = (0, 0, -1, 0, 1, 0, 1, 0, 0)
    orientation = Orientation.of(ImageGeometry((2, 3, 4), (1, 1, 1), (0, 0, 0), direction))
    assert orientation == Orientation(axes=(2, 1, 0), flips=(False, False, True))
    array = np.arange(24).reshape(4, 3, 2)
    assert np.array_equal(orientation.to_patient(array), array.transpose(2, 1, 0)[:, :, ::-1])
    assert np.array_equal(orientation.to_file(orientation.to_patient(array)), array)


@pytest.mark.parametrize("kind", [sitk.sitkInt32, sitk.sitkInt64, sitk.sitkFloat32, sitk.sitkFloat64])
def test_every_pixel_type_gives_the_same_hounsfield_units(asymmetric: Phantom, kind: int) -> None:
    ct, mask = asymmetric.images()
    assert_same_patient(Scan.from_images(sitk.Cast(ct, kind), sitk.Cast(mask, sitk.sitkFloat32)), asymmetric)


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


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz"])
def test_no_flipped_bit_in_compressed_voxels_is_read_as_another_scan(tmp_path: Path, suffix: str) -> None:
    """Some flips change nothing; every other must be noticed by the payload's checksum."""
    rng = np.random.default_rng(3)
    voxels = np.cumsum(rng.integers(-3, 4, (12, 12, 12)), axis=2).astype(np.int16)
    path = tmp_path / f"ct{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=True)
    whole = path.read_bytes()
    refused = 0
    for place in rng.integers(len(whole) // 3, len(whole), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :])
        try:
            assert np.array_equal(sitk.GetArrayFromImage(read_image(path)), voxels), place
        except InputError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_memory_limit_counts_and_cached_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_cache"), 2: ("max", "current", "file")}[version]
    folder = tmp_path / "memory" if version == 1 else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / f"memory.{names[0]}").write_text("1000000\n")
    (folder / f"memory.{names[1]}").write_text("900000\n")
    (folder / "memory.stat").write_text(f"anon 300000\n{names[2]} 600000\n")
    monkeypatch.setattr("model.imaging.scan.CONTROL_GROUP", tmp_path)
    assert available_memory() == 700000
    if version == 2:
        (folder / "memory.max").write_text("max\n")
        assert available_memory() > 1e9


def test_an_image_larger_than_the_memory_is_refused_before_it_is_read(
    asymmetric: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sitk.WriteImage(asymmetric.images()[0], str(tmp_path / "ct.mha"))
    monkeypatch.setattr("model.imaging.scan.available_memory", lambda: 2 * 2 * asymmetric.lungs.size - 1)
    with pytest.raises(InputError, match=r"its header asks for 2\.56e\+05 voxels"):
        read_header(tmp_path / "ct.mha")
    monkeypatch.setattr("model.imaging.scan.available_memory", lambda: 2 * 2 * asymmetric.lungs.size)
    assert read_header(tmp_path / "ct.mha") == (80, 64, 50)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 4 // 5]


def flip_a_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def cut_inside_gzip(data: bytes) -> bytes:
    return gzip.compress(cut(gzip.decompress(data)))


@pytest.mark.parametrize(
    ("suffix", "compressed", "damage"),
    [
        (".mha", True, cut),
        (".mha", False, cut),
        (".mha", True, flip_a_byte),
        (".nii", False, cut),
        (".nii.gz", True, cut),
        (".nii.gz", True, cut_inside_gzip),
        (".nii.gz", True, flip_a_byte),
        (".nrrd", True, cut),
        (".nrrd", False, cut),
    ],
)
def test_voxels_that_are_cut_off_or_damaged_are_never_read(
    asymmetric: Phantom, tmp_path: Path, suffix: str, compressed: bool, damage: Callable[[bytes], bytes]
) -> None:
    rng = np.random.default_rng(0)
    noisy = sitk.GetImageFromArray(
        (asymmetric.hounsfield + rng.integers(-20, 20, asymmetric.hounsfield.shape)).astype(np.int16)
    )
    path = tmp_path / f"ct{suffix}"
    sitk.WriteImage(noisy, str(path), useCompression=compressed)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"ct\.\S+: .*(cut off|damaged|cannot be read)"):
        read_image(path)
