"""What the browser is sent: where its voxels lie, and how much it is at most."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.container.results import failed_result
from model.viewing import volumes
from model.viewing.case import CaseFiles, ViewedCase
from model.viewing.linked_planes import FILES
from model.viewing.volumes import Grid, coarser, levels, start_mm
from test.phantom import Phantom

NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"


@pytest.fixture
def case(lesioned: Phantom) -> ViewedCase:
    lung = lesioned.lungs > 0
    maps: dict[str, np.ndarray] = {
        "centrilobular": np.where(lung & (lesioned.hounsfield == -1000), 255, 0).astype(np.uint8),
        "paraseptal": np.zeros(lung.shape, np.float32),
    }
    return ViewedCase(failed_result("not needed here"), lesioned.hounsfield, lung, maps, lesioned.spacing, CaseFiles({}))


def read(content: bytes, folder: Path, suffix: str) -> sitk.Image:
    path = folder / f"{suffix.count('.')}{suffix}"  # beside a.nii, the reader takes the voxels of a.nii.gz from there
    path.write_bytes(content)
    return sitk.ReadImage(str(path))


def value_at(image: sitk.Image, case: ViewedCase, z: int, y: int, x: int) -> int:
    """The value at a voxel of the scan, by its place in space; SimpleITK's x and y are NIfTI's with the opposite sign."""
    _, rows, columns = case.shape
    place = ((x - (columns - 1) / 2) * case.spacing[2], (y - (rows - 1) / 2) * case.spacing[1], z * case.spacing[0])
    return int(image[image.TransformPhysicalPointToIndex(place)])


def test_another_reader_finds_every_voxel_where_it_lies_in_the_patient(
    case: ViewedCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "MAP_VOXELS", case.maps["centrilobular"].size)  # as they are
    assert case.hounsfield is not None
    (only,) = levels(case)
    ct = read(only["ct"], tmp_path, ".nii")
    centrilobular = read(only["centrilobular"], tmp_path, ".nii.gz")
    assert case.lung is not None
    places = np.argwhere(case.lung)[::997]
    for z, y, x in places.tolist():
        assert value_at(ct, case, z, y, x) == case.hounsfield[z, y, x]
        assert value_at(centrilobular, case, z, y, x) == case.maps["centrilobular"][z, y, x]
    assert np.asarray(ct.GetSpacing()) == pytest.approx(case.spacing[::-1])


def test_the_cross_hair_starts_in_the_emphysema(case: ViewedCase) -> None:
    x, y, z = start_mm(case)
    _, rows, columns = case.shape
    voxel = (z / case.spacing[0], (rows - 1) / 2 - y / case.spacing[1], (columns - 1) / 2 - x / case.spacing[2])
    assert case.maps["centrilobular"][tuple(round(place) for place in voxel)] == 255
    assert x > 0, "the right lung"


def voxel_of(case: ViewedCase) -> tuple[int, int, int]:
    """Where the cross-hair starts: z, y, x."""
    x, y, z = start_mm(case)
    _, rows, columns = case.shape
    place = (z / case.spacing[0], (rows - 1) / 2 - y / case.spacing[1], (columns - 1) / 2 - x / case.spacing[2])
    return round(place[0]), round(place[1]), round(place[2])


def test_the_cross_hair_starts_in_affected_lung_where_row_and_column_of_most_meet_outside(case: ViewedCase) -> None:
    """A wide lesion in one lung, a high one in the other: row of the first and column of the second cross outside of both."""
    lung, activation = np.zeros((5, 60, 100), bool), np.zeros((5, 60, 100), np.uint8)
    lung[1:4, 5:25, 5:45] = lung[1:4, 30:55, 60:80] = True
    activation[2, 10:12, 5:45] = activation[2, 30:55, 70:72] = 200
    activation[2, 0, 0] = 255  # outside the lung
    there = replace(case, lung=lung, maps={"centrilobular": activation}, spacing=(5.0, 1.0, 1.0))
    place = voxel_of(there)
    assert lung[place]
    assert activation[place] == 200
    assert lung[voxel_of(replace(there, maps={"centrilobular": np.zeros_like(activation)}))], "without emphysema, too"


def test_the_contour_of_thick_slices_is_a_line_in_each_of_them(case: ViewedCase, tmp_path: Path) -> None:
    lung = np.zeros((6, 60, 60), bool)
    for level in range(1, 6):
        lung[level, 30 - 5 * level : 30 + 5 * level, 30 - 5 * level : 30 + 5 * level] = True  # 5 mm wider in each slice
    pyramid = replace(case, hounsfield=None, lung=lung, maps={"centrilobular": lung.astype(np.uint8)}, spacing=(5.0, 1.0, 1.0))
    (only,) = levels(pyramid)
    border = sitk.GetArrayFromImage(read(only["contour"], tmp_path, ".nii.gz"))
    perimeters = [4 * (10 * level - 1) for level in range(1, 6)]
    assert sorted(border.sum(axis=(1, 2)).tolist()) == [0, *perimeters]

    (only,) = levels(replace(pyramid, spacing=(1.0, 1.0, 1.0)))
    border = sitk.GetArrayFromImage(read(only["contour"], tmp_path, ".nii.gz"))
    assert border[:, 30, 30].any(), "where slices are thin, the border of a plane through the top is closed"


def test_a_large_scan_comes_coarse_first_and_then_within_the_limit(
    case: ViewedCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "LEVELS", (20_000, 100_000))
    coarse, fine = levels(case)
    sizes = []
    for level in (coarse, fine):
        image = read(level["ct"], tmp_path, ".nii")
        sizes.append(image.GetNumberOfPixels())
        lesion = np.argwhere(case.maps["centrilobular"] > 0).mean(axis=0).round().astype(int)
        assert value_at(image, case, *lesion.tolist()) == -1000
        border = read(level["contour"], tmp_path, ".nii.gz")
        assert set(np.unique(sitk.GetArrayFromImage(border))) == {0, 1}
    assert 15_000 < sizes[0] <= 20_000
    assert 80_000 < sizes[1] <= 100_000


def test_spacings_become_equal_and_no_axis_finer() -> None:
    array, grid = coarser(np.zeros((60, 64, 64), np.int16), Grid((5.0, 0.7, 0.7), (0.0, 0.0, 0.0)), 60_000)
    assert array.size <= 60_000
    assert grid.spacing[0] == 5.0
    assert grid.spacing[1] == grid.spacing[2] > 0.7


def test_without_ct_and_mask_the_maps_are_sent_alone(case: ViewedCase) -> None:
    for level in levels(replace(case, hounsfield=None, lung=None)):
        assert set(level) == {"ct", "centrilobular", "paraseptal"}
        assert set(gzip.decompress(level["paraseptal"])[352:]) == {0}
        assert set(level["ct"][352:]) == {0x00, 0xFC}, "-1024 HU everywhere"


def test_niivue_is_the_file_of_its_release() -> None:
    assert hashlib.sha256((FILES / "niivue.umd.js").read_bytes()).hexdigest() == NIIVUE_SHA256
    assert "BSD 2-Clause" in (FILES / "niivue.LICENSE").read_text()
