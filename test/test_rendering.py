"""Pictures: which slices they show, and that colour lies where activation is."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from model.fleischner import CENTRILOBULAR, PARASEPTAL, Subtype
from model.imaging.scan import Scan
from model.lungs.regions import Regions
from model.rendering import COLOURS, OPACITY, grey_levels, most_affected_levels, overlay, preview
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


def test_the_preview_paints_each_subtype_in_its_row_on_the_patients_side(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    right, left = ((255 * (phantom.lungs == label)).astype(np.uint8) for label in (1, 2))
    result = Subtyping(finding(CENTRILOBULAR, 3, 14.2, right), finding(PARASEPTAL, 1, 3.1, left), Regions.of(scan))
    picture = np.asarray(Image.open(io.BytesIO(preview(scan, result, "trained on nothing")))).astype(float)
    height, width, _ = picture.shape
    for name in ("centrilobular", "paraseptal"):
        colour = np.array(COLOURS[name], float)
        hue = (picture - picture.mean(axis=2, keepdims=True)) @ (colour - colour.mean())
        painted = np.argwhere(hue[: round(0.86 * height)] > 0.3 * hue.max())
        rows, columns = painted[:, 0] / height, painted[:, 1] / width
        low, high = (0.3, 0.6) if name == "centrilobular" else (0.55, 0.9)
        assert rows.min() > low
        assert rows.max() < high
        within_tile = (columns * 3) % 1
        assert (within_tile < 0.5).all() if name == "centrilobular" else (within_tile > 0.45).all()


def test_the_preview_is_the_same_picture_for_both_types_of_map(phantom: Phantom) -> None:
    scan = Scan.from_images(*phantom.images())
    levels = (255 * (phantom.lungs > 0)).astype(np.uint8)
    result = Subtyping(finding(CENTRILOBULAR, 3, 14.2, levels), finding(PARASEPTAL, 0, 0.0, 0 * levels), Regions.of(scan))
    as_float = dataclasses.replace(
        result,
        centrilobular=finding(CENTRILOBULAR, 3, 14.2, (levels / 255).astype(np.float32)),
        paraseptal=finding(PARASEPTAL, 0, 0.0, (0 * levels).astype(np.float32)),
    )
    assert preview(scan, result) == preview(scan, as_float)
