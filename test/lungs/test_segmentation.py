"""Segmented lungs of a phantom, of simulated scans and of real scans, against their masks."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch
from lungmask.resunet import UNet

from model.errors import InputError
from model.imaging.geometry import ImageGeometry
from model.imaging.readers import Volume
from model.imaging.scan import Scan
from model.lungs.segmentation import segment_lungs
from model.simulation import LungShape, SimulatedCase, draw_parameters, simulate
from test.phantom import BODY_HU, LUNG_HU, Phantom, make_phantom

AIR_HU = -1000

Bools = npt.NDArray[np.bool_]


@pytest.fixture(scope="module")
def chest() -> Phantom:
    return make_phantom((84, 100, 114), (3.0, 3.0, 3.0))


@pytest.fixture(scope="module")
def fine_chest() -> Phantom:
    """For walls and shells of less than 3 mm."""
    return make_phantom((100, 150, 170), (2.5, 2.0, 2.0))


def millimetres(phantom: Phantom) -> tuple[npt.NDArray[np.float64], ...]:
    """Coordinates z, y, x from the middle of a phantom, in mm."""
    axes = (np.arange(n) * s - (n - 1) * s / 2 for n, s in zip(phantom.lungs.shape, phantom.spacing, strict=True))
    return np.meshgrid(*axes, indexing="ij")


def ball(phantom: Phantom, centre: tuple[float, float, float], radius: float) -> Bools:
    axes = zip(millimetres(phantom), centre, strict=True)
    return np.asarray(sum((axis - middle) ** 2 for axis, middle in axes) <= radius**2)


def with_hounsfield(phantom: Phantom, *places: tuple[Bools, int]) -> Phantom:
    """The phantom with other HU in some places."""
    hounsfield = phantom.hounsfield.copy()
    for place, value in places:
        hounsfield[place] = value
    return Phantom(hounsfield, phantom.lungs, phantom.spacing)


def labels_of(ct: sitk.Image, **options: Path) -> sitk.Image:
    return segment_lungs(Volume(ct, "CT"), **options).image


def segmented(phantom: Phantom) -> npt.NDArray[np.uint8]:
    return sitk.GetArrayFromImage(labels_of(phantom.images()[0]))


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * np.count_nonzero((found > 0) & (truth > 0)) / (np.count_nonzero(found) + np.count_nonzero(truth))


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_right_and_left_lung_are_found_and_named_in_any_orientation(chest: Phantom, orientation: str) -> None:
    ct, lungs = chest.images(orientation)
    found = labels_of(ct)
    assert ImageGeometry.of(found) == ImageGeometry.of(ct)
    assert found.GetPixelID() == sitk.sitkUInt8
    for side in (1, 2):
        own, truth = (sitk.GetArrayFromImage(image) == side for image in (found, lungs))
        assert dice(own, truth) > 0.99


def test_trachea_and_main_bronchi_are_no_lung(chest: Phantom) -> None:
    z, y, x = millimetres(chest)
    bronchi = np.zeros(chest.lungs.shape, bool)
    for side in (-1, 1):
        along = (side * x).clip(0, 45)  # from the carina, 45 degrees down, into the lung
        bronchi |= (z - (20 - along)) ** 2 / 2 + y**2 <= 6**2
        bronchi &= (abs(x) < 45) | (chest.lungs == 0)
    trachea = (y**2 + x**2 <= 9**2) & (z > 15)
    airways = (trachea | bronchi) & (abs(x) < 45)
    found = segmented(with_hounsfield(chest, (airways, AIR_HU)))
    outside = airways & (chest.lungs == 0)
    assert np.count_nonzero(found[outside]) < 0.03 * np.count_nonzero(outside)
    assert dice(found, chest.lungs) > 0.985
    assert dice(found == 1, chest.lungs == 1) > 0.98, "the airways joined the two lungs"


def test_the_table_under_the_patient_is_no_lung(fine_chest: Phantom) -> None:
    _, y, _ = millimetres(fine_chest)
    foam, shell = (y > 128) & (y < 144), (abs(y - 126) < 1.5) | (abs(y - 145) < 1.5)
    found = segmented(with_hounsfield(fine_chest, (foam, -900), (shell, -100)))
    assert not found[y > 125].any()
    assert dice(found, fine_chest.lungs) > 0.99


def test_gas_in_the_bowel_is_no_lung_even_if_there_is_only_one_lung(chest: Phantom) -> None:
    gas = ball(chest, (-85, 20, 40), 32)
    found = segmented(with_hounsfield(chest, (chest.lungs == 2, BODY_HU), (gas & (chest.lungs != 1), AIR_HU)))
    assert dice(found, chest.lungs == 1) > 0.98
    assert not found[gas & (chest.lungs != 1)].any()


def test_a_bulla_at_the_pleura_is_lung_although_its_wall_parts_it_from_the_rest(fine_chest: Phantom) -> None:
    bulla = ball(fine_chest, (0, 55, -65), 24) & (fine_chest.lungs == 1)
    wall = ball(fine_chest, (0, 55, -65), 25.5) & (fine_chest.lungs == 1) & ~bulla
    found = segmented(with_hounsfield(fine_chest, (bulla, AIR_HU), (wall, -200)))
    assert np.count_nonzero(found[bulla]) > 0.99 * np.count_nonzero(bulla)
    assert np.count_nonzero(found[wall]) > 0.95 * np.count_nonzero(wall)


def test_a_vessel_and_a_nodule_at_the_pleura_are_closed_over(chest: Phantom) -> None:
    z, y, x = millimetres(chest)
    vessel = (abs(y) < 4) & (abs(z) < 4) & (chest.lungs > 0) & (x > 0)
    nodule = ball(chest, (0, -68, -65), 6) & (chest.lungs == 1)
    found = segmented(with_hounsfield(chest, (vessel | nodule, BODY_HU)))
    assert np.count_nonzero(found[vessel | nodule]) > 0.9 * np.count_nonzero(vessel | nodule)


def test_a_body_that_the_field_of_view_cuts_off_keeps_its_lungs(chest: Phantom) -> None:
    box = np.s_[:, 21:-21, 17:-17]  # about 14 mm beside the lungs
    found = segmented(Phantom(chest.hounsfield[box], chest.lungs[box], chest.spacing))
    assert dice(found, chest.lungs[box]) > 0.99


def test_voxels_that_are_not_a_number_change_nothing(chest: Phantom) -> None:
    hounsfield = chest.hounsfield.astype(np.float32)
    hounsfield[0, :5] = np.nan
    ct = sitk.GetImageFromArray(hounsfield)
    ct.CopyInformation(chest.images()[0])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels_of(ct)), segmented(chest))


@pytest.mark.parametrize(
    ("kind", "padding"),
    [(np.int16, 32767), (np.int32, 63536 - 1024), (np.float32, 63536 - 1024), (np.float64, np.inf), (np.float32, -np.inf)],
)
def test_padding_beside_the_patient_is_air_however_it_is_stored(chest: Phantom, kind: type, padding: float) -> None:
    """-2000 without its sign is 63536. Taken for tissue, it would enclose the air between the field of view and the patient."""
    _, y, x = millimetres(chest)
    outside = (y / 145) ** 2 + (x / 147) ** 2 > 1
    hounsfield: np.ndarray = chest.hounsfield.astype(kind)
    hounsfield[outside] = padding
    ct = sitk.GetImageFromArray(hounsfield)
    ct.CopyInformation(chest.images()[0])
    found = sitk.GetArrayFromImage(labels_of(ct))
    np.testing.assert_array_equal(found, segmented(with_hounsfield(chest, (outside, -2000))))
    assert dice(found, chest.lungs) > 0.99
    assert ct[0, 0, 0] == padding, "the caller's image stays as it was"


@pytest.mark.parametrize("filled", ["lungs", "everything"])
def test_a_ct_without_lungs_is_refused_by_name(chest: Phantom, filled: str) -> None:
    tissue, air = (chest.lungs > 0, BODY_HU), (chest.lungs >= 0, AIR_HU)
    ct = with_hounsfield(chest, tissue if filled == "lungs" else air).images()[0]
    with pytest.raises(InputError, match=r"abdomen\.mha: no lungs were found.*expected a chest CT in HU"):
        segment_lungs(Volume(ct, "abdomen.mha"))


def test_two_slices_thinner_than_a_coarse_voxel_are_refused_by_name(chest: Phantom) -> None:
    ct = chest.images()[0][:, :, 20:22]
    ct.SetSpacing((*ct.GetSpacing()[:2], 0.5))
    with pytest.raises(InputError, match=r"thin\.mha: no lungs were found"):
        segment_lungs(Volume(ct, "thin.mha"))


def test_what_is_found_can_be_scored(chest: Phantom) -> None:
    ct = chest.images("RAS")[0]
    scan = Scan.from_images(ct, labels_of(ct))
    assert dice(scan.lung, chest.lungs) > 0.99


@pytest.mark.parametrize("name", ["a0001-sharp", pytest.param("a0001-smooth", marks=pytest.mark.slow)])
def test_dice_with_the_masks_of_a_real_scan_is_at_least_095(shared: Path, name: str) -> None:
    folder = shared / "data" / name / "images"
    found = labels_of(sitk.ReadImage(str(folder / "ct" / f"{name}.mha")))
    truth = sitk.ReadImage(str(folder / "lung-mask" / f"{name}.mha"))
    assert dice(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(truth)) >= 0.95


def check_simulated(case: SimulatedCase) -> None:
    """Dice of at least 0.95 with the paraseptal cells and bullae inside, and the two sides apart."""
    ct = sitk.GetImageFromArray(case.hounsfield)
    ct.SetSpacing(case.spacing[::-1])
    found = sitk.GetArrayFromImage(labels_of(ct))
    assert dice(found, case.lungs) >= 0.95
    assert np.count_nonzero(found[case.paraseptal]) >= 0.99 * np.count_nonzero(case.paraseptal)
    for side in (1, 2):
        assert dice(found == side, case.lungs == side) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_simulated_lungs_with_heavy_paraseptal_emphysema_keep_their_bullae(seed: int) -> None:
    parameters = draw_parameters(np.random.SeedSequence(seed), paraseptal_score=2)
    case = simulate(parameters, "example")
    assert case.paraseptal_percentage >= 5
    check_simulated(case)


@pytest.mark.slow
def test_the_lungs_of_a_copd_patient_are_found_in_a_ct_simulated_in_them(shared: Path) -> None:
    lungs = LungShape.read(shared / "data/copd-lungs-10002k/lungs.mha")
    check_simulated(simulate(draw_parameters(np.random.SeedSequence(5), paraseptal_score=2, lungs=lungs), lungs=lungs))


def lungmask_state(label: int) -> OrderedDict[str, torch.Tensor]:
    """Weights of the lungmask network that give every voxel one label."""
    network = UNet(n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)
    state: OrderedDict[str, torch.Tensor] = network.state_dict()
    *_, weight, bias = state
    state[weight].zero_()
    state[bias] = torch.nn.functional.one_hot(torch.tensor(label), 3).float()
    return state


@pytest.mark.parametrize("label", [1, 2])
def test_the_lungmask_network_is_used_where_its_weights_are_given(chest: Phantom, tmp_path: Path, label: int) -> None:
    torch.save(lungmask_state(label), tmp_path / "unet.pth")
    ct = chest.images("RAS")[0][:, :, 40:42]  # the network is a large one, and goes slice by slice
    found = labels_of(ct, lungmask_weights=tmp_path / "unet.pth")
    assert ImageGeometry.of(found) == ImageGeometry.of(ct)
    inside = sitk.GetArrayFromImage(found)[sitk.GetArrayFromImage(ct) == LUNG_HU]
    assert (inside == label).mean() > 0.99


def test_files_that_are_no_lungmask_weights_are_refused_by_name(chest: Phantom, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name, found in (
        ("absent.pth", "no such file"),
        ("text.pth", "not weights of a lungmask network"),
        ("other.pth", "not weights of a lungmask network"),
    ):
        with pytest.raises(InputError, match=f"{re.escape(name)}: {found}") as refusal:
            labels_of(chest.images()[0], lungmask_weights=tmp_path / name)
        assert "\n" not in str(refusal.value)
