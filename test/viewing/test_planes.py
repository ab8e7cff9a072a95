"""Pictures of a slice: which way up, through which window, with which map over it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from model.rendering import COLOURS, CONTOUR_COLOUR, Plane
from model.slices.images import Window
from model.viewing.planes import LARGEST_SIDE, Slab, heat_over, labelled, plane_picture, png

SHAPE = (4, 6, 8)


def corner(z: int, y: int, x: int) -> np.ndarray:
    """A volume of air with one bright voxel."""
    volume = np.full(SHAPE, -1000, np.int16)
    volume[z, y, x] = 1000
    return volume


@pytest.mark.parametrize(
    ("plane", "index", "voxel", "place"),
    [
        ("axial", 1, (1, 0, 0), (0, 0)),  # the front is up, the patient's right on the left
        ("axial", 1, (1, 5, 7), (5, 7)),
        ("coronal", 2, (3, 2, 0), (0, 0)),  # the head is up, the patient's right on the left
        ("coronal", 2, (0, 2, 7), (3, 7)),
        ("sagittal", 5, (3, 0, 5), (0, 0)),  # the head is up, the front on the left
        ("sagittal", 5, (0, 5, 5), (3, 5)),
    ],
)
def test_each_plane_lies_as_radiologists_see_it(
    plane: Plane, index: int, voxel: tuple[int, int, int], place: tuple[int, int]
) -> None:
    picture = plane_picture(corner(*voxel), {}, plane, index, (1.0, 1.0, 1.0))
    assert divmod(int(picture[..., 0].argmax()), picture.shape[1]) == place


def test_pixels_are_square_and_pictures_not_too_large() -> None:
    volume = np.zeros(SHAPE, np.int16)
    assert plane_picture(volume, {}, "coronal", 0, (5.0, 1.0, 1.0)).shape == (20, 8, 3)
    assert plane_picture(volume, {}, "sagittal", 0, (1.0, 2.0, 1.0)).shape == (4, 12, 3)
    large = np.zeros((2, 2000, 1000), np.int16)
    assert plane_picture(large, {}, "axial", 0, (1.0, 1.0, 1.0)).shape == (LARGEST_SIDE, LARGEST_SIDE // 2, 3)


def test_maps_lie_over_the_ct_as_strongly_as_asked() -> None:
    volume = np.full(SHAPE, -600, np.int16)
    maps = {"centrilobular": np.zeros(SHAPE, np.uint8), "paraseptal": np.zeros(SHAPE, np.uint8)}
    maps["centrilobular"][1, 2, 3] = 255
    maps["paraseptal"][1, 4, 5] = 255

    def pixels(*shown: str, opacity: float = 1.0) -> np.ndarray:
        return plane_picture(volume, {name: maps[name] for name in shown}, "axial", 1, (1.0, 1.0, 1.0), opacity=opacity)

    both = pixels("centrilobular", "paraseptal")
    assert both[2, 3].tolist() == [255, 120, 0]
    assert both[4, 5].tolist() == [0, 170, 255]
    assert both[0, 0].tolist() == [128, 128, 128]
    assert pixels("paraseptal")[2, 3].tolist() == [128, 128, 128]
    assert pixels("centrilobular", opacity=0.5)[2, 3].tolist() == pytest.approx([191, 124, 64], abs=1)


def test_without_a_ct_maps_are_drawn_on_black() -> None:
    active = np.full(SHAPE, 255, np.uint8)
    picture = plane_picture(None, {"paraseptal": active}, "coronal", 0, (1.0, 1.0, 1.0), opacity=0.5)
    assert picture[0, 0].tolist() == [0, 85, 128]


def test_the_window_decides_what_is_seen() -> None:
    volume = np.full(SHAPE, -900, np.int16)
    grey = [plane_picture(volume, {}, "axial", 0, (1.0, 1.0, 1.0), window)[0, 0, 0] for window in (Window(), Window(-875, 350))]
    assert grey == [76, 109]


def test_lung_and_maps_are_outlined_and_paraseptal_maps_dashed() -> None:
    volume = np.full((1, 12, 12), -600, np.int16)
    region = np.zeros(volume.shape, bool)
    region[0, 2:10, 2:10] = True
    spacing = (1.0, 1.0, 1.0)
    lungs = plane_picture(volume, {}, "axial", 0, spacing, lung=region)
    assert (lungs == CONTOUR_COLOUR).all(axis=2).sum() == 4 * 7, "the border of 8 x 8 pixels"
    border = {}
    for subtype, colour in (("centrilobular", [255, 120, 0]), ("paraseptal", [0, 170, 255])):
        active = {subtype: np.where(region, 255, 0).astype(np.uint8)}
        picture = plane_picture(volume, active, "axial", 0, spacing, opacity=0.5, outlined=True)
        border[subtype] = (picture == colour).all(axis=2).sum()
    assert border["centrilobular"] == 28
    assert 7 <= border["paraseptal"] <= 21


def test_a_labelled_picture_has_a_scale_bar_of_its_length() -> None:
    black = np.zeros((300, 600, 3), np.uint8)
    picture = labelled(black, "coronal", 300.0, "scan", ["centrilobular"], contour=True, notes=("slice 3",))
    left_half = picture[: -2 * 24, :300]  # without the lines below
    longest = max(int(row.all(axis=1).sum()) for row in (left_half == 255).astype(bool)[60:])
    assert longest == pytest.approx(2 * 100, abs=4), "100 mm at 2 pixels a mm"
    assert picture.shape[1] == 600
    assert (picture == COLOURS["centrilobular"]).all(axis=2).any(), "the legend"
    assert (picture == CONTOUR_COLOUR).all(axis=2).any()


def test_a_png_holds_the_picture() -> None:
    picture = heat_over(np.full((5, 7, 3), 100, np.uint8), np.eye(5, 7, dtype=np.float32))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)
    assert picture[0, 0].tolist() != picture[0, 1].tolist() == [100, 100, 100]


@pytest.mark.parametrize(("spacing_mm", "slices"), [(1.0, 10), (2.0, 5), (3.0, 3), (4.0, 3), (5.0, 2), (10.0, 1), (25.0, 1)])
def test_a_slab_is_as_thick_as_slices_allow_wherever_it_lies(spacing_mm: float, slices: int) -> None:
    """Counted by the steps between its least and its greatest value: slice n of the volume is n."""
    volume = np.arange(60, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    for index in range(20, 26):
        slabs = (Slab("maximum", 10.0), Slab("minimum", 10.0))
        high, low = (slab.of(volume, "axial", index, (spacing_mm, 1.0, 1.0)) for slab in slabs)
        assert high.shape == (1, 4, 4)
        assert int(high[0, 0, 0]) - int(low[0, 0, 0]) + 1 == slices
        assert low[0, 0, 0] <= index <= high[0, 0, 0]
    assert Slab("minimum", 10.0).of(volume, "axial", 0, (1.0, 1.0, 1.0))[0, 0, 0] == 0
