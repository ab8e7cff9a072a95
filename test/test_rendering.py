"""Pictures: which slices they show, and that colour lies where activation is."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from model.fleischner import CENTRILOBULAR, PARASEPTAL, Subtype
from model.imaging.scan import Scan
from model.lungs.quality import ImageQuality
from model.lungs.regions import Regions
from model.rendering import (
    COLOURS,
    OPACITY,
    WARNING_COLOUR,
    View,
    _caption,
    contour,
    grey_levels,
    most_affected_levels,
    most_affected_slice,
    overlay,
    plane_slice,
    preview,
    three_planes,
    without_commands,
)
from model.subtyping import Finding, Subtyping
from test.phantom import Phantom


def test_the_most_affected_slices_are_apart_and_come_head_first() -> None:
    lung = np.zeros((40, 4, 4), bool)
    lung[4:37] = True  # slices must lie four apart: an eighth of 32
    cle, pse = np.zeros((2, 40, 4, 4), np.uint8)
    cle[10], cle[11], pse[30], cle[20] = 200, 190, 100, 50
    assert most_affected_levels([cle, pse], lung) == [30, 20, 10]


def test_without_activation_the_slices_are_quarters_of_the_lungs_height() -> None:
    lung = np.zeros((50, 2, 2), bool)
    lung[4:45] = True
    assert most_affected_levels([np.zeros((50, 2, 2))], lung) == [34, 24, 14]


def test_a_single_affected_slice_is_shown_once() -> None:
    lung = np.zeros((50, 2, 2), bool)
    lung[4:45] = True
    activation = np.zeros((50, 2, 2), np.uint8)
    activation[24] = 255  # the middle, which is the first choice where nothing is active
    assert most_affected_levels([activation], lung) == [34, 24, 14]


def test_without_activation_the_most_affected_slice_is_in_the_middle_of_the_lungs() -> None:
    """Of lungs in slices 60 to 89; of the whole scan where they are not known."""
    lung = np.zeros((100, 4, 6), bool)
    lung[60:90, 1:3, 2:5] = True
    nothing = np.zeros(lung.shape, np.uint8)
    assert [most_affected_slice([nothing, nothing], lung, plane) for plane in ("axial", "coronal", "sagittal")] == [75, 2, 3]
    assert most_affected_slice([nothing], None, "axial") == 50
    assert View(nothing, lung, {"centrilobular": nothing}, (1.0, 1.0, 1.0)).most_affected("axial") == 75


def test_both_subtypes_count_for_the_most_affected_slice() -> None:
    cle, pse = np.zeros((2, 8, 2, 2), np.uint8)
    cle[1], cle[5], pse[5] = 90, 50, 50
    assert most_affected_slice([cle, pse], cle > 0, "axial") == 5


def test_grey_levels_span_the_lung_window() -> None:
    assert grey_levels(np.array([-3000, -1350, -600, 150, 1000], np.int16)).tolist() == [0, 0, 128, 255, 255]


def test_an_overlay_blends_in_proportion_to_activation() -> None:
    pixels = np.full((1, 3, 3), 100, np.uint8)
    blended = overlay(pixels, np.array([[0, 51, 255]], np.uint8), (200, 0, 100))
    assert blended[0, 0].tolist() == [100, 100, 100]
    assert blended[0, 1].tolist() == [113, 87, 100]  # a fifth of the opacity of 0.65
    assert blended[0, 2].tolist() == [round(100 + 100 * OPACITY), round(100 - 100 * OPACITY), 100]
    assert np.array_equal(blended, overlay(pixels, np.array([[0, 0.2, 1]], np.float32), (200, 0, 100)))


def finding(subtype: Subtype, score: int, percentage: float, activation_map: np.ndarray) -> Finding:
    return Finding(subtype, score, percentage, {}, None, activation_map)


def result_of(scan: Scan, cle: np.ndarray, pse: np.ndarray) -> Subtyping:
    return Subtyping(
        finding(CENTRILOBULAR, 3, 14.2, cle), finding(PARASEPTAL, 1, 3.1, pse), Regions.of(scan), ImageQuality.of(scan)
    )


def picture_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


def painted(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has the hue of a map at full activation over lung: row, column."""
    wanted = np.array(colour, float)
    hue = (picture - picture.mean(axis=2, keepdims=True)) @ (wanted - wanted.mean())
    return np.argwhere(hue > 0.5 * hue.max())


def test_the_preview_paints_each_subtype_in_its_row_on_the_patients_side(phantom: Phantom) -> None:
    """Centrilobular activation fills the right lung, which is on the left in all four columns, paraseptal the left lung."""
    scan = Scan.from_images(*phantom.images())
    right, left = ((255 * (phantom.lungs == label)).astype(np.uint8) for label in (1, 2))
    picture = picture_of(preview(scan, result_of(scan, right, left), "scan", "nothing"))
    tiles = picture[: picture.shape[0] - 140]  # above scores and legend
    height, width, _ = tiles.shape
    for name, (low, high) in {"centrilobular": (0.34, 0.67), "paraseptal": (0.67, 1.0)}.items():
        found = painted(tiles, COLOURS[name])
        assert low < found[:, 0].min() / height
        assert found[:, 0].max() / height < high
        within_column = (found[:, 1] / width * 4) % 1
        assert (within_column < 0.56).all() if name == "centrilobular" else (within_column > 0.5).all()
        assert len({int(column) for column in found[:, 1] / width * 4}) == 4


def test_the_preview_is_the_same_picture_for_both_types_of_map(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    levels = (255 * (phantom.lungs > 0)).astype(np.uint8)
    pictures = [
        preview(scan, result_of(scan, cle, 0 * cle), "scan", "nothing") for cle in (levels, (levels / 255).astype(np.float32))
    ]
    assert pictures[0] == pictures[1]


def test_a_name_that_is_too_long_for_the_preview_is_cut_off(phantom: Phantom) -> None:
    """The start of the name stays, also where it has no space."""
    scan = Scan.from_images(*phantom.images())
    result = result_of(scan, 0 * phantom.lungs, 0 * phantom.lungs)
    headings = [
        picture_of(preview(scan, result, name, "nothing"))[:30] for name in ("sub-" + 160 * "7", "sub-" + 160 * "8", "...")
    ]
    bright = [int((heading > 128).any(axis=2).any(axis=0).sum()) for heading in headings]
    assert min(bright[:2]) > 4 * bright[2]
    assert not np.array_equal(headings[0], headings[1])


def test_a_long_name_in_wide_letters_ends_before_the_edge_of_the_preview(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    heading = picture_of(preview(scan, result_of(scan, 0 * phantom.lungs, 0 * phantom.lungs), 160 * "W", "nothing"))[:30]
    columns = np.flatnonzero((heading > 128).any(axis=(0, 2)))
    assert heading.shape[1] - 40 < columns.max() < heading.shape[1] - 10


def test_names_in_letters_that_the_preview_lacks_stay_apart(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    result = result_of(scan, 0 * phantom.lungs, 0 * phantom.lungs)
    names = ("患者_张三", "患者_李四", r"\u60a3\u8005_\u5f20\u4e09")
    one, other, escaped = (preview(scan, result, name, "nothing") for name in names)
    assert one != other
    assert one == escaped


def test_the_preview_shows_no_percentage_of_another_grade() -> None:
    found = finding(CENTRILOBULAR, 1, 4.9712, np.zeros((1, 1, 1)))
    assert _caption(found) == "Centrilobular: 1 (trace), 4.97 % of the lung"


def test_warnings_are_in_the_preview(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    result = result_of(scan, 0 * phantom.lungs, 0 * phantom.lungs)
    odd = dataclasses.replace(result, warnings=("the lung mask is odd",))
    plain, warned = (picture_of(preview(scan, one, "scan", "nothing")) for one in (result, odd))
    assert warned.shape[0] > plain.shape[0]
    assert (warned == WARNING_COLOUR).all(axis=2).any()
    assert not (plain == WARNING_COLOUR).all(axis=2).any()


def test_what_the_weights_were_validated_on_is_in_the_preview(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    result = result_of(scan, 0 * phantom.lungs, 0 * phantom.lungs)
    texts = ("Not validated.", "Validated on: X.", "")
    assert len({preview(scan, result, "scan", "nothing", text) for text in texts}) == 3


def test_commands_are_left_out_of_what_weights_were_trained_on() -> None:
    assert without_commands("400 simulated CTs (python -m model.simulation --cases 400)") == "400 simulated CTs"
    assert without_commands("COPDGene (phase 1)") == "COPDGene (phase 1)"


def test_the_contour_is_the_rim_of_a_mask() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:5, 1:6] = True
    rim = mask.copy()
    rim[2:4, 2:5] = False
    assert np.array_equal(contour(mask), rim)


def test_the_contour_of_a_volume_is_its_surface() -> None:
    mask = np.zeros((7, 7, 7), bool)
    mask[1:6, 1:6, 1:6] = True
    assert contour(mask).sum() == 5**3 - 3**3
    assert contour(np.ones((3, 3, 3), bool)).sum() == 26, "beyond the array lies outside"


def test_coronal_and_sagittal_slices_have_the_head_up_and_the_front_on_the_left() -> None:
    array = np.zeros((3, 4, 5), np.uint8)  # z, y, x: head at high z, back at high y, left at high x
    array[2, 0, 0] = 1  # head, front, right
    view = View(array, array > 0, {"centrilobular": array}, (3.0, 2.0, 1.0))
    for plane in ("axial", "coronal", "sagittal"):
        assert plane_slice(array, plane, view.most_affected(plane))[0, 0] == 1
    assert (view.size_mm("axial"), view.size_mm("coronal"), view.size_mm("sagittal")) == ((5, 8), (5, 9), (8, 9))


def test_the_three_planes_show_both_maps_in_the_lower_row_alone(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    right, left = ((255 * (phantom.lungs == label)).astype(np.uint8) for label in (1, 2))
    picture = picture_of(three_planes(View.of(scan, result_of(scan, right, left))))
    tiles = picture[: picture.shape[0] - 60]
    for name in ("centrilobular", "paraseptal"):
        assert painted(tiles, COLOURS[name])[:, 0].min() > 0.5 * len(tiles)
