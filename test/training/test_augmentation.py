from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from model.preprocessing import PAPER_PROFILE
from model.training.augmentation import (
    AVERAGED_LATTICE,
    PICKED_LATTICE,
    RANGES,
    RELEASED_RANGES,
    Augmentation,
    AugmentationRanges,
    Tile,
    draw_augmentation,
    moved,
    spatial_map,
    with_changed_intensities,
    with_masked_boxes,
)
from model.training.cache import PreparedCase
from model.training.dataset import assemble

ALWAYS = AugmentationRanges(
    flip_probability=(0.5, 0.5, 0.5),
    rotation_probability=1,
    crop_probability=1,
    smoothing_probability=1,
    sharpening_probability=1,
    jitter_probability=1,
    noise_probability=1,
)
SHARPENED = replace(ALWAYS, smoothing_probability=0)
"""Where something is smoothed, nothing is sharpened."""

SHAPE = (32, 40, 48)
EXTENT = (300.0, 200.0, 280.0)


def marked(places: list[tuple[int, int, int]]) -> Tensor:
    volume = torch.zeros(1, *SHAPE, dtype=torch.bool)
    for z, y, x in places:
        volume[0, z : z + 4, y : y + 4, x : x + 4] = True
    return volume


def centre(volume: Tensor) -> np.ndarray:
    """Centre of mass in voxels, z y x."""
    weight = volume.double()
    return np.array(
        [
            float((weight * axis).sum() / weight.sum())
            for axis in torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in volume.shape), indexing="ij")
        ]
    )


def test_the_same_seed_epoch_and_entity_draw_the_same_augmentation_and_others_do_not() -> None:
    first = draw_augmentation(ALWAYS, 1, 2, "a")
    assert draw_augmentation(ALWAYS, 1, 2, "a") == first
    others = [(2, 2, "a", 0), (1, 3, "a", 0), (1, 2, "b", 0), (1, 2, "a", 1)]
    assert all(draw_augmentation(ALWAYS, *key) != first for key in others)


@pytest.mark.parametrize("ranges", [ALWAYS, SHARPENED], ids=["smoothed", "sharpened"])
def test_an_augmentation_is_replayed_bit_by_bit(ranges: AugmentationRanges) -> None:
    image = torch.rand(SHAPE)
    augmentation = draw_augmentation(ranges, 0, 0, "a")
    assert any(augmentation.smoothing) != (augmentation.sharpening > 0)
    torch.manual_seed(1)
    once = with_changed_intensities(moved(image[None], augmentation, EXTENT)[0], augmentation)
    torch.manual_seed(2)  # nothing is drawn from the global generator
    again = with_changed_intensities(moved(image[None], augmentation, EXTENT)[0], augmentation)
    assert torch.equal(once, again)


def test_without_chances_nothing_is_changed() -> None:
    never = AugmentationRanges(
        (0.0, 0.0, 0.0),
        rotation_probability=0,
        crop_probability=0,
        smoothing_probability=0,
        sharpening_probability=0,
        jitter_probability=0,
        noise_probability=0,
    )
    augmentation = draw_augmentation(never, 0, 0, "a")
    assert replace(augmentation, noise_seed=0) == Augmentation()
    image = torch.rand(1, *SHAPE)
    assert torch.equal(with_changed_intensities(moved(image, augmentation, EXTENT)[0].clone(), augmentation), image[0])


def test_the_released_augmentation_draws_what_the_published_code_draws() -> None:
    drawn = [draw_augmentation(RELEASED_RANGES, 0, epoch, "a") for epoch in range(400)]
    plain = Augmentation()
    for name in ("degrees", "smoothing", "sharpening", "contrast", "shift"):
        assert all(getattr(augmentation, name) == getattr(plain, name) for augmentation in drawn), name
    for name in ("flips", "crop_size", "noise", "boxes"):
        assert 0.4 < np.mean([getattr(augmentation, name) != getattr(plain, name) for augmentation in drawn]) < 0.6, name
    # one or two of the three axes, each as often
    flips = np.array([augmentation.flips for augmentation in drawn if any(augmentation.flips)])
    assert set(flips.sum(axis=1)) == {1, 2}
    assert np.allclose(flips.mean(axis=0), 0.5, atol=0.1)
    noise = [augmentation.noise for augmentation in drawn if augmentation.noise]
    assert 0.03 <= min(noise) < 0.032 < 0.058 < max(noise) <= 0.06
    counts = {len(augmentation.boxes) for augmentation in drawn if augmentation.boxes}
    assert counts == set(range(1, 11))
    boxes = np.array([box for augmentation in drawn for box in augmentation.boxes])  # n x (centre, size) x 3
    assert 0.2 <= boxes[:, 0].min() < 0.21
    assert 0.79 < boxes[:, 0].max() <= 0.8
    assert 0.01 <= boxes[:, 1].min() < 0.011
    assert 0.059 < boxes[:, 1].max() <= 0.06
    # centre 0.45 to 0.55, size 0.95 to 1, cut off at the border
    starts = np.array([augmentation.crop_start for augmentation in drawn if augmentation.is_affine])
    sizes = np.array([augmentation.crop_size for augmentation in drawn if augmentation.is_affine])
    assert starts.min() >= 0
    assert (starts + sizes).max() <= 1
    assert 0.9 <= sizes.min() < 0.95
    assert 0.06 < starts.max() <= 0.55 - 0.475


def test_the_paper_s_ranges_draw_what_they_drew_before_the_released_ones_were_there() -> None:
    """Runs that were started before can be resumed: the values are of the earlier code."""
    drawn = draw_augmentation(RANGES["paper"], 7, 3, "case")
    assert drawn.flips == (False, False, True)
    assert drawn.crop_size == pytest.approx((0.90770208, 0.99806062, 0.97183410))
    assert drawn.crop_start == pytest.approx((0.06895983, 0.00092932, 0.00996601), abs=1e-8)
    assert drawn.noise_seed == 1707596055
    assert drawn.boxes == ()


def test_boxes_are_set_to_0_where_the_published_code_sets_them_and_in_tiles_too() -> None:
    # an axis of 20 voxels, centre 0.5, share 0.25: voxel 10, 5 wide, from 8 to 12; of 40: 0.3, 0.1: voxel 12, 4 wide, 10 to 13;
    # of 10: 0.05, 0.4: voxel 0, 4 wide, cut off to 0 and 1
    augmentation = Augmentation(boxes=(((0.5, 0.3, 0.05), (0.25, 0.1, 0.4)),))
    whole = with_masked_boxes(torch.ones(20, 40, 10), augmentation, (20, 40, 10))
    expected = torch.ones(20, 40, 10)
    expected[8:13, 10:14, 0:2] = 0
    assert torch.equal(whole, expected)
    tile = Tile((10, 8, 0), (8, 16, 10))
    part = with_masked_boxes(torch.ones(8, 16, 10), augmentation, (20, 40, 10), tile)
    assert torch.equal(part, expected[10:18, 8:24])
    beyond = Tile((16, 0, 0), (4, 8, 10))
    assert with_masked_boxes(torch.ones(4, 8, 10), augmentation, (20, 40, 10), beyond).all()


def test_an_augmentation_may_smooth_and_mask_boxes() -> None:
    ranges = replace(ALWAYS, box_probability=1, boxes=(2, 2), box_centre=(0.3, 0.7), box_size=(0.05, 0.1))
    drawn = draw_augmentation(ranges, 0, 0, "a")
    assert any(drawn.smoothing)
    assert len(drawn.boxes) == 2
    assert all(0.3 <= place <= 0.7 for centre, _ in drawn.boxes for place in centre)


def test_a_crop_is_resized_to_the_whole_and_its_masks_with_it() -> None:
    """A crop of the middle half doubles distances from the centre: of 33 voxels, voxel 12 goes to 8 and voxel 20 to 24."""
    volume = torch.zeros(1, 33, 33, 33)
    volume[0, 12, 16, 20] = 1
    crop = Augmentation(crop_start=(0.25,) * 3, crop_size=(0.5,) * 3)
    image = moved(volume, crop, (1.0, 1.0, 1.0))
    mask = moved(volume.bool(), crop, (1.0, 1.0, 1.0))
    place = tuple(int(index) for index in np.unravel_index(int(image.argmax()), image.shape))
    assert place == (0, 8, 16, 24)
    assert image[place] == pytest.approx(1)
    assert bool(mask[place])


def test_drawn_parameters_stay_in_their_ranges() -> None:
    drawn = [draw_augmentation(ALWAYS, 0, epoch, "a") for epoch in range(200)]
    degrees = np.array([augmentation.degrees for augmentation in drawn])
    assert (np.abs(degrees) <= ALWAYS.rotation_degrees).all()
    assert np.abs(degrees[:, 0]).max() > 0.8 * ALWAYS.rotation_degrees[0]
    sizes = np.array([augmentation.crop_size for augmentation in drawn])
    ends = np.array([augmentation.crop_start for augmentation in drawn]) + sizes
    assert sizes.min() >= ALWAYS.crop_share
    assert ends.max() <= 1
    assert max(augmentation.noise for augmentation in drawn) <= ALWAYS.noise
    sharpenings = [draw_augmentation(SHARPENED, 0, epoch, "a").sharpening for epoch in range(200)]
    assert min(sharpenings) > 0
    assert 0.8 * SHARPENED.sharpening < max(sharpenings) <= SHARPENED.sharpening
    assert all(any(augmentation.smoothing) and augmentation.sharpening == 0 for augmentation in drawn)
    assert 0.3 < np.mean([augmentation.flips[2] for augmentation in drawn]) < 0.7


@pytest.mark.parametrize("axis", range(3))
def test_a_flip_is_the_mirror_image_whether_it_is_interpolated_or_not(axis: int) -> None:
    flips = tuple(axis == other for other in range(3))
    volume = torch.rand(1, *SHAPE)
    plain = moved(volume, Augmentation(flips=flips), EXTENT)  # type: ignore[arg-type]
    assert torch.equal(plain, volume.flip(axis + 1))
    interpolated = moved(volume, Augmentation(flips=flips, degrees=(1e-9, 0, 0)), EXTENT)  # type: ignore[arg-type]
    torch.testing.assert_close(interpolated, plain, atol=1e-4, rtol=0)


def test_a_quarter_turn_about_the_vertical_takes_posterior_to_left_in_mm() -> None:
    """In mm and not in voxels: a point 40 mm behind the centre comes to lie 40 mm beside it."""
    affine = spatial_map(Augmentation(degrees=(90.0, 0.0, 0.0)), SHAPE, EXTENT)
    spacing = np.array(EXTENT) / (np.array(SHAPE) - 1)
    middle = (np.array(SHAPE) - 1) / 2
    source = (affine.matrix @ (middle + np.array([0, 0, 40.0]) / spacing) + affine.translation - middle) * spacing
    assert np.abs(source) == pytest.approx([0, 40.0, 0], abs=1e-9)


def test_a_crop_fills_the_volume_with_its_part() -> None:
    ramp = torch.linspace(0, 1, SHAPE[2]).expand(1, *SHAPE).contiguous()
    augmentation = Augmentation(crop_start=(0.0, 0.0, 0.25), crop_size=(1.0, 1.0, 0.5))
    found = moved(ramp, augmentation, EXTENT)
    torch.testing.assert_close(found[0, 0, 0], torch.linspace(0.25, 0.75, SHAPE[2]))


@pytest.mark.parametrize("number", range(6))
def test_image_masks_and_targets_move_together(number: int) -> None:
    """A marked block ends at the same place in the image, the lung, the low-attenuation target and the truth."""
    block = marked([(14, 12, 26)])
    augmentation = replace(draw_augmentation(ALWAYS, 4, number, "a"))
    averaged = torch.nn.functional.avg_pool3d(block.float()[None], 2)[0]
    image = moved(block.float(), augmentation, EXTENT)
    lung = moved(block, augmentation, EXTENT)
    picked = moved(block, augmentation, EXTENT, target=PICKED_LATTICE)
    truth = moved(averaged, augmentation, EXTENT, AVERAGED_LATTICE, AVERAGED_LATTICE)
    place = centre(image[0])
    assert np.abs(place - centre(block[0])).max() > 0.3  # it did move
    assert centre(lung[0]) == pytest.approx(place, abs=0.35)
    assert torch.equal(picked, lung[:, ::2, ::2, ::2])
    assert 2 * centre(truth[0]) + 0.5 == pytest.approx(place, abs=0.25)


@cache
def prepared_case() -> PreparedCase:
    shape = (128, 224, 288)
    block = torch.zeros(shape, dtype=torch.bool)
    block[40:60, 100:130, 60:90] = True
    lung = torch.zeros(shape, dtype=torch.bool)
    lung[10:-10, 30:-30, 20:130] = True
    truth = torch.zeros(2, 64, 112, 144, dtype=torch.uint8)
    truth[0, 20:30, 50:65, 30:45] = 255
    return PreparedCase(
        image=torch.where(block, 50, 150).to(torch.uint8),
        darkest=0.0,
        brightest=1.0,
        lung=lung,
        suspect=None,
        low_attenuation=block,
        truth=truth,
        extent_mm=(280.0, 220.0, 300.0),
        low_attenuation_percentage=1.0,
        percentages=None,
    )


def test_a_sample_keeps_its_parts_aligned_and_is_blank_outside_the_moved_lung() -> None:
    augmentation = replace(draw_augmentation(ALWAYS, 0, 1, "a"), contrast=1.0, shift=0.0, noise=0.02)
    sample = assemble(prepared_case(), (1, 0), 0, PAPER_PROFILE, augmentation, with_truth=True, with_suspect=False)
    assert sample.truth is not None
    dark = (sample.image[0] < 0.4) & (sample.image[0] > 0)
    place = centre(dark)
    assert 2 * centre(sample.low_attenuation[0]) == pytest.approx(place, abs=1.0)
    assert 2 * centre(sample.truth[0]) + 0.5 == pytest.approx(place, abs=1.0)
    inside = sample.image[0, ::2, ::2, ::2] > 0
    assert torch.equal(inside, sample.lung[0])


def test_smoothing_and_turning_do_not_darken_the_rim_of_the_lung() -> None:
    """What lies outside the lung is blanked after interpolation; before it, a dark rim would look like paraseptal emphysema."""
    bright = replace(prepared_case(), image=torch.full((128, 224, 288), 150, dtype=torch.uint8))
    augmentation = Augmentation(degrees=(7.0, 3.0, 2.0), smoothing=(0.8, 0.8, 0.8))
    sample = assemble(bright, (1, 0), 0, PAPER_PROFILE, augmentation, with_truth=False, with_suspect=False)
    inside = sample.image[sample.image > 0]
    assert inside.numel() > 1_000_000
    torch.testing.assert_close(inside, torch.full_like(inside, 150 / 255))


def test_smoothing_is_gaussian_and_keeps_the_mean() -> None:
    volume = torch.zeros(21, 21, 21)
    volume[10, 10, 10] = 1.0
    smoothed = with_changed_intensities(volume, Augmentation(smoothing=(1.5, 1.5, 1.5)))
    assert float(smoothed.sum()) == pytest.approx(1, abs=1e-3)
    distance = torch.arange(21.0) - 10
    spread = float((smoothed.sum(dim=(1, 2)) * distance**2).sum())
    assert spread == pytest.approx(1.5**2, rel=0.05)  # the kernel ends at three deviations


def test_smoothing_is_of_each_axis_by_itself() -> None:
    volume = torch.zeros(21, 21, 21)
    volume[10, 10, 10] = 1.0
    smoothed = with_changed_intensities(volume, Augmentation(smoothing=(1.5, 0.0, 0.0)))
    assert float(smoothed[:, 10, 10].sum()) == pytest.approx(1, abs=1e-3)
    assert int((smoothed > 0).sum()) > 5


def test_sharpening_makes_an_edge_overshoot_within_slices_and_keeps_what_is_even() -> None:
    image = torch.full((8, 20, 20), 0.4)
    image[:, :, 10:] = 0.6
    image[4:] = 0.5  # a step between slices
    sharpened = with_changed_intensities(image.clone(), Augmentation(sharpening=1.0))
    assert float(sharpened[0, 10, 9]) < 0.37
    assert float(sharpened[0, 10, 10]) > 0.63
    torch.testing.assert_close(sharpened[..., [0, 19]], image[..., [0, 19]])
    torch.testing.assert_close(sharpened[4:], image[4:])


def test_sharpening_lifts_noise_within_slices() -> None:
    image = 0.5 + 0.01 * torch.randn((16, 48, 48), generator=torch.Generator().manual_seed(0))
    sharpened = with_changed_intensities(image.clone(), Augmentation(sharpening=1.0))
    assert 1.6 < float(sharpened.std() / image.std()) < 2


def test_contrast_turns_about_the_middle_of_the_window_and_stays_inside_it() -> None:
    image = torch.tensor([0.0, 0.4, 0.5, 1.0]).view(1, 1, 4)
    found = with_changed_intensities(image, Augmentation(contrast=1.1, shift=0.02))
    assert found.flatten().tolist() == pytest.approx([0.0, 0.41, 0.52, 1.0])


def test_noise_has_the_drawn_deviation() -> None:
    noisy = with_changed_intensities(torch.full((40, 40, 40), 0.5), Augmentation(noise=0.03, noise_seed=5))
    assert float(noisy.std()) == pytest.approx(0.03, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=1e-3)
