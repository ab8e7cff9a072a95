"""The healthy chest: fields, lungs, given lung shapes, vessels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from model.errors import InputError
from model.lungs.anatomy import LOBES
from model.simulation import LungShape, first_look, simulate
from model.simulation.anatomy import Anatomy, build_anatomy, draw_anatomy
from model.simulation.grid import Grid, Resampler, smooth_field
from model.simulation.trees import Tubes, coverage, grow_trees
from test.conftest import need
from test.simulation.conftest import draw


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    # Shapes are the same in every look.
    rng = np.random.default_rng(5)
    return build_anatomy(first_look.draw_anatomy(rng), rng)


def test_resampling_keeps_what_is_linear() -> None:
    coarse = Grid((9, 10, 11), (3.0, 3.0, 3.0), (0.0, -5.0, 2.0))
    fine = Grid((20, 21, 22), (1.1, 1.2, 1.3), (0.5, -4.0, 2.5))
    z, y, x = coarse.coordinates()
    fine_z, fine_y, fine_x = fine.coordinates()
    expected = 2 * fine_z - fine_y + 0.5 * fine_x
    field = (2 * z - y + 0.5 * x).astype(np.float32)
    np.testing.assert_allclose(Resampler(coarse, fine).slab(field, slice(4, 9)), expected[4:9], atol=1e-4)


def test_smooth_fields_have_unit_variance_and_the_reach_asked_for() -> None:
    grid = Grid((40, 40, 40), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    fields = np.stack([smooth_field(grid, 12.0, np.random.default_rng(k)) for k in range(12)])
    assert fields.std() == pytest.approx(1, abs=0.06)
    assert abs(fields.mean()) < 0.06
    assert np.mean(fields[:, 1:] * fields[:, :-1]) > 0.9
    assert abs(np.mean(fields[:, 16:] * fields[:, :-16])) < 0.1


def test_lungs_are_two_of_human_size_with_five_lobes(anatomy: Anatomy) -> None:
    voxel = anatomy.lattice.voxel_mm3 / 1000
    for side in (anatomy.right > 0, anatomy.left > 0):
        assert ndimage.label(side)[1] == 1
        assert 900 < side.sum() * voxel < 4500
    assert not ((anatomy.right > 0) & (anatomy.left > 0)).any()
    assert np.median(np.nonzero(anatomy.right > 0)[2]) < np.median(np.nonzero(anatomy.left > 0)[2])
    # The heart lies left and the liver right: the right lung is the larger.
    assert (anatomy.right > 0).sum() > (anatomy.left > 0).sum()
    for label in LOBES.values():
        assert (anatomy.lobes == label).sum() * voxel > 100


def test_distance_to_the_pleura_is_true_to_a_fraction_of_a_voxel(anatomy: Anatomy) -> None:
    # On a fine grid across the surface, the field must fall by the step in space.
    distance = anatomy.distance()
    slopes = np.gradient(distance, 3.0)
    slope = np.sqrt(sum(part**2 for part in slopes))
    band = (distance > 3) & (distance < 15)
    assert np.median(slope[band]) == pytest.approx(1, abs=0.05)
    exact = ndimage.distance_transform_edt(distance > 0, sampling=3.0)
    assert np.abs(exact - distance)[distance > 3].max() < 3.5


def test_vessels_taper_from_the_hilum_and_stay_in_the_lungs() -> None:
    rng = np.random.default_rng(6)
    parameters = draw_anatomy(rng)
    anatomy = build_anatomy(parameters, rng)
    vessels = grow_trees(anatomy, parameters, 1.0, rng).vessels
    assert len(vessels.start) > 5000
    assert (vessels.radius_end <= vessels.radius_start).all()
    assert 1.5 < vessels.radius_start.max() < 5
    hilum = np.min([np.linalg.norm(vessels.start - h, axis=1) for h in anatomy.hila], axis=0)
    thick, thin = vessels.radius_start > 1.3, vessels.radius_start < 0.7
    assert np.median(hilum[thick]) < 0.75 * np.median(hilum[thin])
    inside = anatomy.distance()[anatomy.lattice.nearest(vessels.end)] > -3
    assert inside.mean() > 0.97


@pytest.mark.parametrize("radius", [0.3, 2.5])
def test_tubes_take_their_volume_whatever_their_width(radius: float) -> None:
    grid = Grid((40, 60, 60), (2.0, 0.8, 0.9), (0.0, 0.0, 0.0))
    ends = np.array([[15.0, 10, 10], [60, 40, 42]])
    tube = Tubes(ends[:1], ends.mean(0)[None], ends[1:], np.array([radius]), np.array([radius]))
    volume = np.pi * radius**2 * np.linalg.norm(ends[1] - ends[0])
    cover = coverage(tube, grid)
    assert cover.max() <= 1
    assert cover.sum() * grid.voxel_mm3 == pytest.approx(volume, rel=0.06)


def write_mask(path: Path, gap: int = 6, flip: bool = False, volume: float = 1.0) -> Path:
    """Two ellipsoids 3 mm apart by voxel, `gap` voxels between; labels 2 and 3; optionally stored head first."""
    z, y, x = np.mgrid[:90, :70, :100].astype(float)
    mask = np.zeros(z.shape, np.uint8)
    for label, centre, width in ((2, 25, 24 - gap / 2), (3, 75, 22 - gap / 2)):
        ball = ((z - 45) / 40) ** 2 + ((y - 35) / 28) ** 2 + ((x - centre) / width) ** 2
        mask[ball < volume] = label
    image = sitk.GetImageFromArray(mask[::-1] if flip else mask)
    image.SetSpacing((3.0, 3.0, 3.0))
    if flip:
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
        image.SetOrigin((0, 0, 89 * 3.0))
    sitk.WriteImage(image, str(path))
    return path


def test_given_lungs_keep_their_sides_and_size(tmp_path: Path) -> None:
    shape = LungShape.read(write_mask(tmp_path / "mask.nii.gz"))
    volume = [(field < 0).sum() * shape.grid.voxel_mm3 / 1000 for field in (shape.right, shape.left)]
    expected = [4 / 3 * np.pi * 120 * 84 * 3 * width / 1000 for width in (21, 19)]
    assert volume == pytest.approx(expected, rel=0.04)
    columns = [np.median(np.nonzero(field < 0)[2]) for field in (shape.right, shape.left)]
    assert columns[0] < columns[1]


def test_orientation_of_the_mask_file_does_not_matter(tmp_path: Path) -> None:
    usual = LungShape.read(write_mask(tmp_path / "usual.mha"))
    flipped = LungShape.read(write_mask(tmp_path / "flipped.mha", flip=True))
    np.testing.assert_allclose(usual.right, flipped.right, atol=1e-3)


def test_lungs_that_touch_are_parted(tmp_path: Path) -> None:
    shape = LungShape.read(write_mask(tmp_path / "touching.mha", gap=-4))
    volumes = [(field < 0).sum() for field in (shape.right, shape.left)]
    assert 0.8 < volumes[1] / volumes[0] < 1.1


@pytest.mark.slow
def test_a_case_built_on_given_lungs_has_their_shape(tmp_path: Path) -> None:
    lungs = LungShape.read(write_mask(tmp_path / "mask.mha"))
    case = simulate(draw(70, 1, 1), "example", lungs)
    assert (case.centrilobular_score, case.paraseptal_score) == (1, 1)
    stretch = float(np.prod(case.parameters.anatomy.thorax.mask_scale))
    volume = (case.lungs > 0).sum() * float(np.prod(case.spacing)) / 1000
    expected = stretch * sum((field < 0).sum() for field in (lungs.right, lungs.left)) * lungs.grid.voxel_mm3 / 1000
    assert volume == pytest.approx(expected, rel=0.12)
    right, left = (np.median(np.nonzero(case.lungs == side)[2]) for side in (1, 2))
    assert right < left


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("absent.mha", "no such file"),
        ("text.mha", "not an image that can be read"),
        ("empty.mha", "0 ml of lung"),
        ("one.mha", "no right and left lung that can be told apart"),
        ("flat.mha", "a 2D image"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, name: str, found: str) -> None:
    path = tmp_path / name
    if name == "text.mha":
        path.write_text("not an image")
    elif name == "empty.mha":
        write_mask(path, volume=0)
    elif name == "one.mha":
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(write_mask(path))))
        image = sitk.GetImageFromArray((mask == 2).astype(np.uint8))
        image.SetSpacing((3.0, 3.0, 3.0))
        sitk.WriteImage(image, str(path))
    elif name == "flat.mha":
        sitk.WriteImage(sitk.Image(64, 64, sitk.sitkUInt8), str(path))
    with pytest.raises(InputError, match=found) as caught:
        LungShape.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_lungs_of_a_copd_patient_can_be_built_on(shared: Path) -> None:
    path = shared / "data" / "copd-lungs-10002k" / "lungs.mha"
    need(path.is_file(), "../shared/data/copd-lungs-10002k, which does not come with the repository")
    lungs = LungShape.read(path)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    voxel = 0.521484**2 * 0.5 / 1000
    for field, label in ((lungs.right, 1), (lungs.left, 2)):
        volume = (field < 0).sum() * lungs.grid.voxel_mm3 / 1000
        assert volume == pytest.approx((labels == label).sum() * voxel, rel=0.03)
    case = simulate(draw(71, 1, 1), "example", lungs)
    assert (case.centrilobular_score, case.paraseptal_score) == (1, 1)


def test_destroyed_lung_pushes_vessels_aside_and_leaves_trees_whole() -> None:
    lattice = Grid((30, 30, 30), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    z, y, x = lattice.coordinates()
    centre = np.array([45.0, 45.0, 45.0])
    ball = ((z - 45) ** 2 + (y - 45) ** 2 + (x - 45) ** 2 < 20**2).astype(np.float32)
    near, far = np.array([[45.0, 45.0, 62.0]]), np.array([[6.0, 6.0, 6.0]])
    tube = Tubes(near, (near + far) / 2, far, np.array([1.0]), np.array([1.0]))
    pushed = tube.pushed(ball, lattice, 5.0)
    moved = np.linalg.norm(pushed.start - centre) - np.linalg.norm(near - centre)
    assert 1 < moved <= 6
    np.testing.assert_allclose(pushed.start[0, :2], [45, 45], atol=0.2)
    np.testing.assert_allclose(pushed.end, far, atol=0.2)
    child = Tubes(far, far, near, tube.radius_end, tube.radius_end).pushed(ball, lattice, 5.0)
    np.testing.assert_array_equal(child.start, pushed.end)
