from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.cohort.manifest import TrainingCase
from model.preprocessing import PAPER_PROFILE
from model.training.dataset import (
    Batch,
    CohortDataset,
    ConsecutiveBatches,
    Draw,
    EpochBatches,
    EpochSampler,
    stacked,
    turns_for,
)


def order(sampler: EpochSampler) -> list[int]:
    return [draw.place for draw in sampler]


def test_every_case_comes_up_once_an_epoch_in_an_order_that_seed_and_epoch_fix() -> None:
    sampler, same = EpochSampler(20, seed=3), EpochSampler(20, seed=3)
    first = order(sampler)
    assert sorted(first) == list(range(20))
    assert order(same) == first
    sampler.set_epoch(1)
    assert order(sampler) != first
    sampler.set_epoch(0)
    assert order(sampler) == first


def test_several_turns_are_each_a_whole_order_and_another_draw() -> None:
    sampler = EpochSampler(5, turns=3, seed=1)
    draws = list(sampler)
    assert len(draws) == len(sampler) == 15
    for turn in range(3):
        part = draws[5 * turn : 5 * turn + 5]
        assert sorted(draw.place for draw in part) == list(range(5))
        assert {draw.occurrence for draw in part} == {turn}


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_global_batch_of_the_one_process_order(processes: int) -> None:
    alone = order(EpochSampler(12, seed=1))
    parts = [order(EpochSampler(12, seed=1, rank=rank, processes=processes)) for rank in range(processes)]
    together = [place for turn in zip(*parts, strict=True) for place in turn]
    assert together == alone


def test_an_uneven_epoch_is_filled_up_so_that_no_process_waits() -> None:
    parts = [list(EpochSampler(3, shuffled=False, rank=rank, processes=2)) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 2] == [len(EpochSampler(3, rank=rank, processes=2)) for rank in range(2)]
    assert {draw.place for part in parts for draw in part} == {0, 1, 2}


def test_uniform_sampling_makes_rare_scores_as_likely() -> None:
    strata = [0] * 900 + [5] * 100
    sampler = EpochSampler(1000, strata=strata)
    drawn = Counter(strata[place] for place in order(sampler))
    assert 430 < drawn[5] < 570


def test_an_epoch_can_have_a_number_of_draws_for_each_score() -> None:
    sampler = EpochSampler(10, strata=[0] * 6 + [3] * 3 + [5], draws_per_stratum=128)
    assert len(order(sampler)) == len(sampler) == 3 * 128
    parts = [EpochSampler(10, strata=[0] * 9 + [5], draws_per_stratum=5, rank=rank, processes=3) for rank in range(3)]
    assert [len(list(part)) for part in parts] == [len(part) for part in parts] == [4, 4, 4]


def test_a_case_that_comes_up_again_is_another_draw() -> None:
    draws = list(EpochSampler(8, strata=[0] * 7 + [1]))
    again = [draw for draw in draws if draw.place == 7]
    assert [draw.occurrence for draw in again] == list(range(len(again)))
    assert len(again) > 1
    assert isinstance(draws[0], Draw)


def test_stacking_keeps_what_is_not_there_away() -> None:
    part = torch.zeros(1, 2, 2, 2)
    scores, bounds = torch.tensor([1, 2]), torch.full((2, 2), torch.nan)
    sample = Batch(part, part.bool(), part.bool(), None, torch.tensor(False), None, None, scores, bounds, torch.tensor(4))
    batch = stacked([sample, sample])
    assert batch.image.shape == (2, 1, 2, 2, 2)
    assert batch.truth is None
    assert batch.place.tolist() == [4, 4]


def test_batches_hold_one_kind_each_and_the_other_kinds_take_turns() -> None:
    main, slabs, whole = EpochSampler(range(8), seed=1), EpochSampler([8, 9], turns=2), EpochSampler([10])
    batches = EpochBatches(main, 2, [slabs, whole], other_batch=1, every=2)
    kinds = [
        "".join(sorted({"m" if draw.place < 8 else "s" if draw.place < 10 else "w" for draw in batch})) for batch in batches
    ]
    assert kinds == ["m", "m", "s", "m", "m", "w"]
    assert len(batches) == len(kinds)
    assert sorted(draw.place for batch in batches for draw in batch if draw.place < 8) == list(range(8))


@pytest.mark.parametrize("processes", [1, 2])
def test_validation_sees_every_case_in_batches_of_one_kind(processes: int) -> None:
    seen = []
    for rank in range(processes):
        orders = [
            EpochSampler(places, shuffled=False, rank=rank, processes=processes) for places in ([0, 1, 4, 5, 6, 7], [2, 3, 8])
        ]
        batches = ConsecutiveBatches(orders, 2)
        parts = [[draw.place for draw in batch] for batch in batches]
        assert len(batches) == len(parts)
        assert all(len({place in (2, 3, 8) for place in part}) == 1 for part in parts)
        seen += [place for part in parts for place in part]
    assert set(seen) == set(range(9))


def test_tiles_whole_scans_and_slabs_are_groups_of_their_own(lesioned: TrainingCase, tmp_path: Path) -> None:
    whole = replace(lesioned, truth=None)
    slab = replace(whole, uniform_slices=True)
    cases = [slab, lesioned, whole, slab, replace(lesioned, uniform_slices=True)]
    dataset = CohortDataset(cases, PAPER_PROFILE, tmp_path, with_truth=True, tile=(32, 48, 64), slab=16)
    assert dataset.groups() == [[1, 4], [2], [0, 3]]


def test_the_epoch_decides_the_batches() -> None:
    def places(epoch: int) -> list[list[int]]:
        batches = EpochBatches(EpochSampler(6, seed=1), 2, [EpochSampler([6, 7, 8], seed=1)])
        batches.sampler.set_epoch(epoch)
        return [[draw.place for draw in batch] for batch in batches]

    assert places(1) == places(1) != places(2)


@pytest.mark.parametrize(("batches", "batch", "cases", "turns"), [(4, 2, 8, 1), (5, 2, 8, 2), (1, 4, 3, 2), (0, 4, 3, 1)])
def test_cases_come_up_as_often_as_full_batches_need(batches: int, batch: int, cases: int, turns: int) -> None:
    assert turns_for(batches, batch, cases) == turns
