"""Both profiles from values computed by hand, and the way back onto the scan's grid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch.nn import functional

from model.errors import InputError
from model.imaging.scan import Scan
from model.lungs.regions import Regions
from model.preprocessing import (
    PAPER_INPUT_SHAPE,
    PAPER_PROFILE,
    RELEASED_PROFILE,
    PickedSlices,
    Trilinear,
    dilated,
    finish,
    labels_on_map_grid,
    map_on_scan,
    prepare,
    windowed,
)
from model.subtyping import EmphysemaSubtyper
from test.phantom import Phantom, make_phantom, write_dark_detector

FLAT_INPUT = (128, 112, 144)
"""Half of the paper's input within slices: between slices, of 5 mm in the phantom, a coarser one would hide an offset."""


@pytest.fixture(scope="module")
def flat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dark_detector(tmp_path_factory.mktemp("bundle") / "dark", input_shape=FLAT_INPUT)


@pytest.fixture(scope="module")
def scan(phantom: Phantom) -> Scan:
    """A phantom whose density varies along every axis."""
    ramp = np.add.outer(np.add.outer(np.arange(50) * 2, np.arange(64)), np.arange(80) // 2)
    hounsfield = np.where(phantom.lungs > 0, -1000 + ramp, phantom.hounsfield).astype(np.int16)
    return Scan.from_images(*dataclasses.replace(phantom, hounsfield=hounsfield).images())


def test_the_window_clamps_and_rescales() -> None:
    expected = [0, 0, 0.5, 1, 1]  # -725 lies in the middle of -1150 and -300
    np.testing.assert_allclose(windowed(np.array([-3024, -1150, -725, -300, 500], np.int16)), expected)


def test_trilinear_positions_align_corners() -> None:
    np.testing.assert_allclose(Trilinear().slices(5, 9), [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4])
    z, _, _ = Trilinear().nearest((5, 4, 4), (9, 4, 4))
    assert z.tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4]  # halves go to the even neighbour


def test_picked_slices_are_rounded_down_and_masks_take_them_too() -> None:
    positions = PickedSlices().slices(5, 9)
    assert positions.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    z, y, x = PickedSlices().nearest((5, 3, 6), (9, 6, 4))
    assert z.tolist() == positions.tolist()
    assert y.tolist() == [0, 0, 1, 1, 2, 2]  # floor(i * 3 / 6)
    assert x.tolist() == [0, 1, 3, 4]  # floor(i * 6 / 4)


@pytest.mark.parametrize("voxels", [1, 2, 5])
def test_dilation_is_that_of_a_full_element(voxels: int) -> None:
    """scipy's binary dilation is the other implementation."""
    mask = np.random.default_rng(1).random((4, 9, 11)) > 0.97
    expected = ndimage.binary_dilation(mask, np.ones((3, 3, 3)), iterations=voxels)
    assert np.array_equal(dilated(mask, voxels), expected)


def test_the_paper_profile_step_by_step(scan: Scan) -> None:
    """Window, crop to the lung's box, trilinear (torch's own, corners aligned), and 0 outside the lung."""
    box = scan.lung_box()
    lung = scan.lung[box]
    intensities = (np.clip(scan.hounsfield[box].astype(np.float64), -1150, -300) + 1150) / 850
    resized = functional.interpolate(
        torch.from_numpy(intensities)[None, None], PAPER_INPUT_SHAPE, mode="trilinear", align_corners=True
    )[0, 0]
    places = np.ix_(
        *(np.rint(np.linspace(0, n - 1, m)).astype(int) for n, m in zip(lung.shape, PAPER_INPUT_SHAPE, strict=True))
    )
    prepared = prepare(scan, Regions.of(scan), PAPER_PROFILE)
    assert prepared.image.shape == (1, 1, *PAPER_INPUT_SHAPE)
    assert prepared.suspect is None
    assert prepared.box == box
    assert np.array_equal(prepared.labels > 0, lung[places])
    np.testing.assert_allclose(prepared.image[0, 0], np.where(lung[places], resized, 0), atol=1e-5)


def test_the_released_profile_step_by_step(scan: Scan) -> None:
    """The seven steps of the published container, written out plainly in double precision."""
    dilation = ndimage.binary_dilation(scan.lung, np.ones((3, 3, 3)), iterations=2)
    hounsfield = np.where(dilation, scan.hounsfield, -2048).astype(np.float64)
    box = scan.lung_box(margin_mm=5)
    crop, lung = hounsfield[box], scan.lung[box]
    intensities = (np.clip(crop, -1150, -300) + 1150) / 850
    standardised = (intensities - intensities.mean()) / intensities.std(ddof=1)
    picked = np.floor(np.linspace(0, len(crop) - 1, 128)).astype(int)
    expected = functional.interpolate(
        torch.from_numpy(standardised[picked])[:, None], PAPER_INPUT_SHAPE[1:], mode="bilinear", align_corners=True
    )[:, 0]
    resized_lung, suspect = (
        functional.interpolate(torch.from_numpy(mask[picked]).float()[:, None], PAPER_INPUT_SHAPE[1:], mode="nearest")[:, 0] > 0
        for mask in (lung, (crop < -910) & lung)
    )
    prepared = prepare(scan, Regions.of(scan), RELEASED_PROFILE)
    assert prepared.box == box
    np.testing.assert_allclose(prepared.image[0, 0], expected, atol=2e-5)
    assert np.array_equal(prepared.labels > 0, resized_lung)
    assert prepared.suspect is not None
    assert np.array_equal(prepared.suspect, suspect)
    assert 0 < suspect.sum() < resized_lung.sum()


def test_what_the_network_says_outside_the_lung_does_not_reach_the_written_map(scan: Scan) -> None:
    prepared = prepare(scan, Regions.of(scan), PAPER_PROFILE)
    inside = torch.from_numpy(labels_on_map_grid(prepared.labels) > 0)[None, None]
    maps = finish(torch.where(inside, 0.25, 1.0), torch.where(inside, 0.5, 0.0), prepared)
    for activation, expected in ((maps.centrilobular, 0.25), (maps.paraseptal, 0.5)):
        written = map_on_scan(activation, maps.box, scan, "float32")
        np.testing.assert_allclose(written[scan.lung], expected, atol=1e-6)


def test_maps_count_only_where_emphysema_is_suspected(scan: Scan) -> None:
    prepared = prepare(scan, Regions.of(scan), RELEASED_PROFILE)
    maps = finish(torch.ones(1, 1, 64, 112, 144), torch.full((1, 1, 64, 112, 144), 0.5), prepared)
    assert prepared.suspect is not None
    assert np.array_equal(maps.centrilobular, prepared.suspect)
    assert np.array_equal(maps.paraseptal, 0.5 * prepared.suspect)


def test_a_lung_that_vanishes_at_the_networks_resolution_is_refused(scan: Scan) -> None:
    regions = Regions.of(scan)
    nothing = dataclasses.replace(regions, labels=np.zeros_like(regions.labels))
    named = dataclasses.replace(scan, lung_mask_name="case/lungs.mha")
    with pytest.raises(InputError, match=r"^case/lungs\.mha: nothing of it is left at the network's resolution"):
        prepare(named, nothing, PAPER_PROFILE)


def test_a_map_comes_back_by_trilinear_interpolation_inside_the_lung_alone(scan: Scan) -> None:
    """A map that grows linearly along an axis is linear again on the scan: 0 at one end of the box, 255 at the other."""
    box = scan.lung_box()
    for axis, count in enumerate((64, 112, 144)):
        ramp = torch.linspace(0, 1, count).reshape([-1 if other == axis else 1 for other in range(3)]).expand(64, 112, 144)
        size = box[axis].stop - box[axis].start
        line = np.linspace(0, 1, size).reshape([-1 if other == axis else 1 for other in range(3)])
        expected = np.zeros(scan.shape)
        expected[box] = line * scan.lung[box]
        np.testing.assert_allclose(map_on_scan(ramp, box, scan, "float32"), expected, atol=1e-5)
        levels = map_on_scan(ramp, box, scan, "uint8")
        assert levels.dtype == np.uint8
        assert np.abs(levels - 255 * expected).max() <= 0.51


def test_a_map_of_every_second_voxel_comes_back_where_those_voxels_lie(scan: Scan) -> None:
    """Map voxel k holds 2 k, its place on an input of 128 x 224 x 288. On the scan, each voxel has its own place, but for those
    behind the last map voxel. With corners aligned, places are stretched by up to one voxel of the input."""
    box = scan.lung_box()
    lung = scan.lung[box]
    for axis, count in enumerate((64, 112, 144)):
        line = [-1 if other == axis else 1 for other in range(3)]
        ramp = (2 * torch.arange(count, dtype=torch.float32)).reshape(line).expand(64, 112, 144)
        place = np.linspace(0, 2 * count - 1, lung.shape[axis])
        expected = np.minimum(place, 2 * count - 2).reshape(line) * lung
        found = map_on_scan(ramp, box, scan, "float32", "even")
        np.testing.assert_allclose(found[box], expected, atol=1e-3)
        stretched = map_on_scan(ramp, box, scan, "float32", "corners")
        off = (place - place * (2 * count - 2) / (2 * count - 1)).reshape(line) * lung
        np.testing.assert_allclose(place.reshape(line) * lung - stretched[box], off, atol=1e-3)


@pytest.mark.parametrize(
    ("orientation", "tilt_degrees"), [("LPS", 0), ("RAS", 0), ("LAI", 0), ("PIR", 0), ("SAL", 0), ("LPS", 17), ("PSR", -25)]
)
@pytest.mark.parametrize("spacing", [(5.0, 4.0, 4.0), (2.5, 4.4, 3.1)])
def test_a_lesion_comes_back_where_it_was(
    flat_bundle: Path, orientation: str, tilt_degrees: float, spacing: tuple[float, float, float]
) -> None:
    """Within one voxel of the network's grid, measured in space between the lesion's and the map's centre of mass."""
    shape = tuple(round(extent / distance) for extent, distance in zip((250, 256, 320), spacing, strict=True))
    plain = make_phantom(shape, spacing)  # type: ignore[arg-type]
    phantom, lesion = plain.with_lesion((165.0, 140.0, 100.0), 14.0)
    angle = np.deg2rad(tilt_degrees)
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    ct, mask = phantom.images(orientation, tilt)
    truth, _ = dataclasses.replace(phantom, hounsfield=lesion.astype(np.int16)).images(orientation, tilt)

    scan = Scan.from_images(ct, mask)
    subtyper = EmphysemaSubtyper.from_bundle(flat_bundle, device="cpu", precision="float32")
    written = scan.to_file_grid(subtyper.predict(scan).centrilobular.activation_map)
    assert (written.GetSize(), written.GetSpacing()) == (ct.GetSize(), ct.GetSpacing())
    assert (written.GetOrigin(), written.GetDirection()) == (ct.GetOrigin(), ct.GetDirection())

    depth = ndimage.distance_transform_edt(sitk.GetArrayFromImage(mask) > 0, sampling=ct.GetSpacing()[::-1])
    inner = np.where(depth > 12, sitk.GetArrayFromImage(written), 0)  # outside the lung the input is dark as well
    offset = (_centre(inner > 127, ct) - _centre(sitk.GetArrayFromImage(truth) > 0, ct)) @ tilt
    box_mm = [(side.stop - side.start) * distance for side, distance in zip(scan.lung_box(), scan.spacing, strict=True)]
    one_voxel = [extent / count for extent, count in zip(box_mm, FLAT_INPUT, strict=True)][::-1]
    assert (np.abs(offset) <= one_voxel).all(), (offset, one_voxel)


def _centre(mask: np.ndarray, image: sitk.Image) -> np.ndarray:
    index = np.argwhere(mask).mean(axis=0)[::-1].tolist()
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index))
