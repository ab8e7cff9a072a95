from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.fleischner import SUBTYPES
from model.preprocessing import PAPER_INPUT_SHAPE as INPUT_SHAPE
from model.preprocessing import PAPER_PROFILE
from model.training.augmentation import Augmentation, Tile, spatial_map
from model.training.dataset import UNKNOWN, Batch, assemble, with_own_scores
from model.training.tiles import check_tile_shape, draw_slab, draw_tile
from test.training.test_augmentation import centre, prepared_case

TILE = (48, 64, 80)
UNMOVED = Augmentation()
FLIPPED = Augmentation(flips=(False, True, True))
TURNED = Augmentation(
    flips=(False, False, True), degrees=(8.0, -3.0, 4.0), crop_start=(0.02, 0.03, 0.01), crop_size=(0.9, 0.95, 0.92)
)


def sample(augmentation: Augmentation, tile: Tile | None) -> Batch:
    return assemble(prepared_case(), (1, 0), 0, PAPER_PROFILE, augmentation, with_truth=True, with_suspect=False, tile=tile)


def cut(volume: torch.Tensor, tile: Tile, stride: int) -> torch.Tensor:
    ranges = zip(tile.start, tile.shape, strict=True)
    z, y, x = (slice(start // stride, (start + size) // stride) for start, size in ranges)
    return volume[..., z, y, x]


@pytest.mark.parametrize("augmentation", [UNMOVED, FLIPPED, TURNED])
def test_a_tile_is_what_the_whole_augmented_scan_has_in_its_place(augmentation: Augmentation) -> None:
    whole = sample(augmentation, None)
    assert whole.truth is not None
    z, y, x = (2 * (int(place) - size // 4) for place, size in zip(centre(whole.truth[0]), TILE, strict=True))
    tile = Tile((z, y, x), TILE)
    part = sample(augmentation, tile)
    assert part.truth is not None
    assert part.image.shape == (1, *TILE)
    assert part.lung.any()
    assert part.truth.any()
    torch.testing.assert_close(part.image, cut(whole.image, tile, 1), rtol=0, atol=2e-3)
    torch.testing.assert_close(part.truth, cut(whole.truth, tile, 2), rtol=0, atol=2e-3)
    for mask, expected in ((part.lung, whole.lung), (part.low_attenuation, whole.low_attenuation)):
        assert float((mask != cut(expected, tile, 2)).float().mean()) < 1e-3  # nearest neighbours tie in rounding


def drawn(augmentation: Augmentation, occurrence: int, anywhere: bool = False, **changes: object) -> Tile:
    case = replace(prepared_case(), **changes)  # type: ignore[arg-type]
    affine = spatial_map(augmentation, INPUT_SHAPE, case.extent_mm)
    return draw_tile(TILE, case, affine, seed=3, epoch=0, entity="a", occurrence=occurrence, anywhere=anywhere)


def test_tiles_lie_inside_the_input_follow_from_their_seed_and_seek_lesions() -> None:
    tiles = [drawn(TURNED, occurrence) for occurrence in range(40)]
    assert tiles == [drawn(TURNED, occurrence) for occurrence in range(40)]
    assert len(set(tiles)) > 10
    for tile in tiles:
        assert all(0 <= start <= whole - size for start, size, whole in zip(tile.start, TILE, INPUT_SHAPE, strict=True))
        assert not any(start % 2 for start in tile.start)
    truth = sample(TURNED, None).truth
    assert truth is not None
    with_lesion = [bool(cut(truth, tile, 2).any()) for tile in tiles]
    assert 0.4 < np.mean(with_lesion) < 0.9  # one of the two kinds of voxel that the case has; from the other come some


def test_tiles_are_drawn_around_paraseptal_lesions_twice_as_often_as_around_others() -> None:
    corner, opposite = (slice(0, 4),) * 3, (slice(-4, None),) * 3
    truth = torch.zeros(2, 64, 112, 144, dtype=torch.uint8)
    truth[0][corner] = truth[1][opposite] = 255
    nowhere = torch.zeros(INPUT_SHAPE, dtype=torch.bool)
    tiles = [drawn(UNMOVED, occurrence, truth=truth, lung=nowhere) for occurrence in range(300)]
    assert np.mean([tile.start[0] > 0 for tile in tiles]) == pytest.approx(2 / 3, abs=0.1)


def test_tiles_can_be_drawn_anywhere_in_the_lung_whether_there_are_lesions_or_not() -> None:
    lung, truth = torch.zeros(INPUT_SHAPE, dtype=torch.bool), torch.zeros(2, 64, 112, 144, dtype=torch.uint8)
    lung[:8], truth[:, -4:] = True, 255
    anywhere = [drawn(UNMOVED, occurrence, anywhere=True, lung=lung, truth=truth).start[0] for occurrence in range(40)]
    around_lesions = [drawn(UNMOVED, occurrence, lung=lung, truth=truth).start[0] for occurrence in range(40)]
    assert max(anywhere) < 8
    assert max(around_lesions) > 64


def test_a_tile_can_have_the_scores_of_its_own_part_of_the_truth_maps() -> None:
    tiles = [drawn(UNMOVED, occurrence) for occurrence in range(40)]
    for tile in tiles:
        part = sample(UNMOVED, tile)._replace(bounds=torch.zeros(2, 2), leading=torch.tensor(1))  # of the whole scan
        assert part.truth is not None
        found = with_own_scores(part)
        assert bool(found.bounds.isnan().all())
        assert found.leading == UNKNOWN
        assert found.truth is None
        assert not bool(found.has_truth)
        inside = part.truth[:, part.lung[0]].numpy()
        expected = [subtype.score(100 * float(lesion.mean())) for subtype, lesion in zip(SUBTYPES, inside, strict=True)]
        assert found.scores.tolist() == expected
    assert len({tuple(with_own_scores(sample(UNMOVED, tile)).scores.tolist()) for tile in tiles}) > 1
    without_lung = sample(UNMOVED, tiles[0])._replace(lung=torch.zeros(1, *(size // 2 for size in TILE), dtype=torch.bool))
    assert with_own_scores(without_lung).scores.tolist() == [UNKNOWN, UNKNOWN]


def test_a_scan_without_truth_maps_keeps_its_scores() -> None:
    whole = assemble(
        replace(prepared_case(), truth=None), (4, 1), 0, PAPER_PROFILE, UNMOVED, with_truth=True, with_suspect=False
    )
    found = with_own_scores(whole)
    assert found.scores.tolist() == [4, 1]
    assert found.truth is None


def test_a_case_without_lung_gets_a_tile_from_the_middle() -> None:
    empty = torch.zeros(INPUT_SHAPE, dtype=torch.bool)
    tile = drawn(UNMOVED, 0, lung=empty, truth=torch.zeros(2, 64, 112, 144, dtype=torch.uint8))
    for start, size, whole in zip(tile.start, TILE, INPUT_SHAPE, strict=True):
        assert abs(start + size / 2 - whole / 2) <= size / 2 + 2


@pytest.mark.parametrize("shape", [(0, 16, 16), (64, 100, 96), (144, 96, 96)])
def test_sizes_that_the_network_cannot_take_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected multiples of 16 up to 128 224 288"):
        check_tile_shape(shape, INPUT_SHAPE)


def test_a_slab_is_neighbouring_slices_whole_and_lies_anywhere() -> None:
    slabs = [draw_slab(16, INPUT_SHAPE, seed=1, epoch=0, entity="a", occurrence=turn) for turn in range(300)]
    assert {(slab.start[1:], slab.shape) for slab in slabs} == {((0, 0), (16, *INPUT_SHAPE[1:]))}
    starts = {slab.start[0] for slab in slabs}
    assert (min(starts), max(starts)) == (0, INPUT_SHAPE[0] - 16)
    assert not any(start % 2 for start in starts)
    assert slabs[7] == draw_slab(16, INPUT_SHAPE, seed=1, epoch=0, entity="a", occurrence=7)


def test_the_whole_input_is_a_tile() -> None:
    check_tile_shape(INPUT_SHAPE, INPUT_SHAPE)
