"""Files and DICOM series: damaged ones, and those that are no volume, are refused."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.errors import InputError
from model.imaging.geometry import ImageGeometry
from model.imaging.readers import read_header, read_volume
from test.imaging.series import write_dicom_series
from test.phantom import Phantom


def test_a_dicom_series_without_one_slice_is_refused(phantom: Phantom, tmp_path: Path) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series", without=20)
    with pytest.raises(InputError, match=r"slice distances from 5.00 to 10.00 mm"):
        read_volume(folder)


def test_a_folder_with_two_dicom_series_is_refused(phantom: Phantom, tmp_path: Path) -> None:
    ct, _ = phantom.images()
    folder = write_dicom_series(ct, tmp_path / "series")
    section = sitk.Cast(ct[:, :, 0], sitk.sitkInt16)
    section.SetMetaData("0020|000e", "1.2.826.0.1.3680043.2.1125.9")
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(folder / "other.dcm"))
    writer.Execute(section)
    with pytest.raises(InputError, match="the folder holds 2 DICOM series"):
        read_header(folder)


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
            assert np.array_equal(sitk.GetArrayFromImage(read_volume(path).image), voxels), place
        except InputError:
            refused += 1
    assert refused > 150


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
    phantom: Phantom, tmp_path: Path, suffix: str, compressed: bool, damage: Callable[[bytes], bytes]
) -> None:
    rng = np.random.default_rng(0)
    noisy = sitk.GetImageFromArray((phantom.hounsfield + rng.integers(-20, 20, phantom.hounsfield.shape)).astype(np.int16))
    path = tmp_path / f"ct{suffix}"
    sitk.WriteImage(noisy, str(path), useCompression=compressed)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"ct\.\S+: .*(cut off|damaged|cannot be read)"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nii.gz"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_fourth_dimension_of_one_place_is_dropped(phantom: Phantom, tmp_path: Path, suffix: str, compressed: bool) -> None:
    ct, _ = phantom.images("RAS")
    path = tmp_path / f"ct{suffix}"
    sitk.WriteImage(sitk.JoinSeries([ct]), str(path), useCompression=compressed)
    header = read_header(path)
    assert (header.size, header.geometry) == (ct.GetSize(), ImageGeometry.of(read_volume(path).image))
    volume = read_volume(path)
    assert volume.geometry.same_grid(ImageGeometry.of(ct))
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(ct))
    sitk.WriteImage(sitk.JoinSeries([ct, ct]), str(path))
    with pytest.raises(InputError, match="a 4D image of 80 x 64 x 50 x 2 voxels; expected a 3D volume"):
        read_header(path)


def test_a_single_slice_is_refused_with_a_word_of_its_series(phantom: Phantom, tmp_path: Path) -> None:
    path = sorted(write_dicom_series(phantom.images()[0], tmp_path / "series").iterdir())[0]
    size = " x ".join(map(str, reversed(phantom.lungs.shape[1:])))
    with pytest.raises(InputError, match=f"one slice of {size} pixels; expected a 3D volume; of a DICOM series, the folder"):
        read_header(path)


def test_the_reason_that_the_library_gives_names_no_source_file(tmp_path: Path) -> None:
    """With a sheared sform and no qform, the reader warns with a place in its source code before it fails."""
    path = tmp_path / "ct.nii"
    sitk.WriteImage(sitk.Image(6, 5, 4, sitk.sitkInt16), str(path))
    header = bytearray(path.read_bytes())
    header[252:254] = struct.pack("<h", 0)
    header[284:288] = struct.pack("<f", 0.4)
    path.write_bytes(header)
    with pytest.raises(InputError, match=r"\(ITK only supports orthonormal direction cosines\.") as refused:
        read_volume(path)
    assert "/ITK/" not in str(refused.value)


def test_the_header_of_several_files_gives_their_size_and_no_grid(phantom: Phantom, tmp_path: Path) -> None:
    header = read_header(write_dicom_series(phantom.images()[0], tmp_path / "series"))
    assert (header.size, header.geometry) == ((80, 64, 50), None)
