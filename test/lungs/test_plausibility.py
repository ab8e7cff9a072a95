"""Implausible masks are reported with the measurements that show it, and correct ones are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model.imaging.scan import Scan
from model.lungs.plausibility import MaskFigures, mask_warnings
from test.phantom import BODY_HU, LESION_HU, LUNG_HU, Phantom, make_phantom

AIR_HU = -1000


@pytest.fixture(scope="module")
def chest() -> Phantom:
    """Lungs, a trachea of 20 mm that parts at the carina and reaches them, bowel gas, and a table below the back."""
    phantom = make_phantom((110, 130, 160), (2.5, 2.0, 2.0))
    z, y, x = (
        (np.arange(n) * s - (n - 1) * s / 2).reshape([-1 if axis == place else 1 for place in range(3)])
        for axis, (n, s) in enumerate(zip(phantom.lungs.shape, phantom.spacing, strict=True))
    )
    hounsfield, lungs = phantom.hounsfield.copy(), phantom.lungs
    tube = (np.hypot(y + 10, x) <= 10) & (z > 20)
    bronchi = (np.hypot(y + 10, z - 20) <= 8) & (np.abs(x) < 30)
    hounsfield[(tube | bronchi) & (lungs == 0)] = AIR_HU
    hounsfield[(np.hypot(np.hypot(z + 125, y), x) <= 25) & (lungs == 0)] = AIR_HU
    hounsfield[np.broadcast_to((np.abs(y - 126) <= 2) & (np.abs(x) < 140), hounsfield.shape)] = -200
    return dataclasses.replace(phantom, hounsfield=hounsfield)


def found(
    chest: Phantom, lungs: npt.NDArray[np.bool_] | npt.NDArray[np.uint8], hounsfield: np.ndarray | None = None
) -> list[str]:
    changed = dataclasses.replace(
        chest, lungs=lungs.astype(np.uint8), hounsfield=chest.hounsfield if hounsfield is None else hounsfield
    )
    scan = Scan.from_images(*changed.images("PIR"))
    return mask_warnings(MaskFigures.of(scan))


def test_a_mask_of_both_lungs_gives_no_warning(chest: Phantom) -> None:
    assert found(chest, chest.lungs) == []


def test_lungs_with_vessels_emphysema_and_an_infiltrate_give_no_warning(chest: Phantom) -> None:
    rng = np.random.default_rng(0)
    hounsfield = chest.hounsfield.copy()
    lung = chest.lungs > 0
    hounsfield[lung & (rng.random(lung.shape) < 0.08)] = BODY_HU
    hounsfield[:60][chest.lungs[:60] == 1] = LESION_HU
    hounsfield[44:60][chest.lungs[44:60] == 2] = BODY_HU
    assert found(chest, chest.lungs, hounsfield) == []


@pytest.mark.parametrize(("label", "side"), [(1, "right"), (2, "left")])
def test_a_mask_of_one_lung_is_reported_by_its_side_and_the_air_on_the_other(chest: Phantom, label: int, side: str) -> None:
    (warning,) = found(chest, chest.lungs == label)
    assert warning.startswith(f"the mask covers one lung only: 100% of it lies on the patient's {side}, and ")
    figures = MaskFigures.of(
        Scan.from_images(*dataclasses.replace(chest, lungs=(chest.lungs == label).astype(np.uint8)).images())
    )
    assert 0.45 < figures.uncovered < 0.6
    lung_ml = np.count_nonzero((chest.lungs > 0) & (chest.lungs != label)) * 0.01
    assert f"{100 * figures.uncovered:.0f}% of the air inside the body ({figures.uncovered_ml:.0f} ml)" in warning
    assert figures.uncovered_ml == pytest.approx(lung_ml + airway_ml(chest), rel=0.03)


def airway_ml(chest: Phantom) -> float:
    """Trachea, bronchi and bowel: air inside the body and outside of the lungs, which lie well inside of it."""
    rows, columns = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in chest.lungs.shape[1:]), indexing="ij")
    inner = (2 * rows / 115) ** 2 + (2 * columns / 145) ** 2 <= 1
    return float(np.count_nonzero((chest.hounsfield == AIR_HU) & (chest.lungs == 0) & inner)) * 0.01


def test_a_mask_that_covers_the_trachea_is_reported_by_the_tube_of_air(chest: Phantom) -> None:
    tube = (chest.hounsfield == AIR_HU) & (np.hypot(*centred(chest)[1:]) <= 24)[None]
    tube[:60] = False
    (warning,) = found(chest, (chest.lungs > 0) | tube)
    assert warning.startswith("the mask covers airways: it holds a tube of air, ")
    assert float(warning.split(", ")[1].split()[0]) == pytest.approx(112, abs=15)  # from the carina, 20 mm, to the top, 136 mm


def centred(chest: Phantom) -> list[np.ndarray]:
    _, rows, columns = chest.lungs.shape
    y, x = np.meshgrid((np.arange(rows) - (rows - 1) / 2) * 2, (np.arange(columns) - (columns - 1) / 2) * 2, indexing="ij")
    return [np.zeros(0), y + 10, x]


def test_a_mask_that_covers_the_table_and_the_air_around_it_is_reported_by_what_lies_outside_the_body(
    chest: Phantom,
) -> None:
    mask = chest.lungs > 0
    mask[30:60, 122:130, 20:140] = True
    (warning,) = (text for text in found(chest, mask) if "the table" in text)
    share = 100 * (np.count_nonzero(mask) - np.count_nonzero(chest.lungs)) / np.count_nonzero(mask)
    assert float(warning.split(": ")[1].split("%")[0]) == pytest.approx(share, abs=2)  # of every few-th voxel
    assert warning.startswith("the mask covers the table or the air around the patient: ")


def cropped(chest: Phantom, mask: npt.NDArray[np.bool_], shape: str) -> Phantom:
    """A narrow field of view that cuts 10 mm off the lungs on the right, the left, the front and the back."""
    rows, columns = (np.flatnonzero((chest.lungs > 0).any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = np.s_[:, rows[0] + 5 : rows[-1] - 4, columns[0] + 5 : columns[-1] - 4]
    hounsfield, inside = chest.hounsfield[box].copy(), mask[box].copy()
    if shape == "round":
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in hounsfield.shape[1:]), indexing="ij")
        hounsfield[:, y**2 + x**2 > 1] = -2000
        inside[:, y**2 + x**2 > 1] = False
    return dataclasses.replace(chest, hounsfield=hounsfield, lungs=inside.astype(np.uint8))


@pytest.mark.parametrize("shape", ["square", "round"])
def test_lungs_that_the_field_of_view_cuts_off_lie_inside_the_body(chest: Phantom, shape: str) -> None:
    scan = Scan.from_images(*cropped(chest, chest.lungs > 0, shape).images("PIR"))
    assert MaskFigures.of(scan).outside_body < 0.01
    assert mask_warnings(MaskFigures.of(scan)) == []


def test_lungs_that_are_cut_off_hide_no_mask_that_covers_the_air_around_the_patient(chest: Phantom) -> None:
    columns = np.flatnonzero((chest.lungs > 0).any(axis=(0, 1)))
    box = np.s_[..., columns[0] + 5 : columns[-1] - 4]
    air = (chest.lungs > 0) | (chest.hounsfield == AIR_HU)
    patient = dataclasses.replace(chest, hounsfield=chest.hounsfield[box], lungs=air[box].astype(np.uint8))
    warnings = mask_warnings(MaskFigures.of(Scan.from_images(*patient.images())))
    assert any("the table or the air around the patient" in text for text in warnings), warnings


@pytest.mark.parametrize("shift", [(0, 0, 20), (0, -18, 0), (24, 0, 0), (-16, 8, 8)])
def test_a_mask_that_lies_elsewhere_is_reported_by_the_tissue_in_it_and_the_air_outside(
    chest: Phantom, shift: tuple[int, int, int]
) -> None:
    """40 mm to the left, 36 mm to the front, 60 mm up; and 40 mm down, 16 mm back and left."""
    warnings = found(chest, np.roll(chest.lungs, shift, axis=(0, 1, 2)))
    assert any(text.startswith("the mask does not fit the scan and may be another patient's: ") for text in warnings), warnings
    assert "HU, as soft tissue does" in warnings[0]
    assert "of the air inside the body" in warnings[0]


def test_a_mask_of_the_whole_body_is_reported_by_the_tissue_in_it(chest: Phantom) -> None:
    y, x = centred(chest)[1:]
    body = np.broadcast_to(((y - 10) / 100) ** 2 + (x / 120) ** 2 <= 1, chest.lungs.shape)
    warnings = found(chest, body & (np.arange(110) < 80)[:, None, None] & (np.arange(110) > 30)[:, None, None])
    assert warnings[0].startswith("the mask covers more than lung: ") or warnings[0].startswith(
        "the mask does not fit the scan"
    )


def test_half_of_each_lung_is_reported_by_the_air_outside(chest: Phantom) -> None:
    mask = chest.lungs > 0
    mask[:55] = False
    (warning,) = found(chest, mask)
    assert warning.startswith("the mask leaves out a part of the lungs: ")


@pytest.mark.parametrize(("slices", "reported"), [(20, True), (60, False)])
def test_a_volume_below_that_of_an_adults_lungs_is_reported(chest: Phantom, slices: int, reported: bool) -> None:
    mask = chest.lungs > 0
    mask[: 55 - slices // 2] = mask[55 + slices // 2 :] = False
    volume_ml = float(np.count_nonzero(mask) * 0.01)
    warning = f"the mask has a volume of {volume_ml:.0f} ml; the lungs of adults have more than 1000 ml"
    assert (volume_ml < 1000) is reported
    assert (warning in found(chest, mask)) is reported


def test_pieces_are_counted(chest: Phantom) -> None:
    mask = chest.lungs > 0
    mask[40:44] = mask[70:74] = False
    (warning,) = found(chest, mask)
    assert warning.startswith("the mask consists of 6 pieces, and ")


def test_an_oddly_sparse_mask_is_measured_all_the_same() -> None:
    """Every voxel of it lies between those that are looked at first."""
    fine = make_phantom((60, 240, 300), (5.0, 1.0, 1.0))
    mask = (fine.lungs > 0) & (np.arange(240) % 2 == 1)[:, None] & (np.arange(300) % 2 == 1)
    assert found(fine, mask)


def test_air_alone_is_no_body() -> None:
    phantom = make_phantom()
    hounsfield = np.where(phantom.lungs > 0, LUNG_HU, AIR_HU).astype(np.int16)
    figures = MaskFigures.of(Scan.from_images(*dataclasses.replace(phantom, hounsfield=hounsfield).images()))
    assert figures.outside_body == 1
    assert any("outside the body" in text for text in mask_warnings(figures))


@pytest.mark.parametrize("kernel", ["sharp", "smooth"])
def test_the_thresholded_masks_of_a_real_scan_cover_its_trachea(shared: Path, kernel: str) -> None:
    """Seen in the images: in both, the mask holds the trachea from 8 to 9 slices of 5 mm above the lungs' tips."""
    images = shared / "data" / f"a0001-{kernel}" / "images"
    scan = Scan.read(*(next((images / name).iterdir()) for name in ("ct", "lung-mask")))
    (warning,) = mask_warnings(MaskFigures.of(scan))
    assert warning.startswith("the mask covers airways")
