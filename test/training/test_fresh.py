from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.preprocessing import PAPER_PROFILE
from model.simulation.case import CaseParameters, SimulatedCase, draw_parameters
from model.simulation.disease import NoRoomError
from model.training import dataset, fresh
from model.training.augmentation import PAPER_RANGES
from model.training.cache import PreparedCase, read_case, write_case
from model.training.dataset import CohortDataset, Draw
from model.training.fresh import PANLOBULAR_PERCENT, CasePool, FreshCases, prepare_simulated
from test.training.test_augmentation import prepared_case


def test_new_cases_take_the_place_of_the_oldest(tmp_path: Path) -> None:
    pool = CasePool(tmp_path, seed=3, fresh=2, size=5)
    epochs = [{pool.number(place, epoch) for place in range(pool.size)} for epoch in range(3)]
    assert epochs == [{0, 1, 2, 3, 4}, {2, 3, 4, 5, 6}, {4, 5, 6, 7, 8}]


def test_panlobular_emphysema_counts_as_centrilobular_alone() -> None:
    lungs = np.zeros((24, 48, 48), np.uint8)
    lungs[4:20, 8:40, 8:40] = 1
    parts = {name: np.zeros(lungs.shape, bool) for name in ("centrilobular", "panlobular", "paraseptal")}
    for place, part in enumerate(parts.values()):  # an eighth, a quarter and a sixteenth of the lung
        part[4:20, 8:40, 8 + 12 * place : 8 + 12 * place + (4, 8, 2)[place]] = True
    case = SimulatedCase(
        parameters=draw_parameters(np.random.SeedSequence(1)),
        hounsfield=np.where(lungs > 0, -900, 0).astype(np.int16),
        lungs=lungs,
        spacing=(5.0, 4.0, 4.0),
        origin=(0.0, 0.0, 0.0),
        **parts,
    )
    prepared = prepare_simulated(case, PAPER_PROFILE)
    assert prepared.percentages == pytest.approx((37.5, 6.25), abs=0.5)


def test_cases_in_the_memory_of_a_device_are_read_once_give_the_same_samples_and_leave_with_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = CasePool(tmp_path, seed=3, fresh=1, size=1)
    case = prepared_case()
    same = {name: getattr(case, name)[40].expand_as(case.image).contiguous() for name in ("image", "lung")}
    write_case(case, pool.path(0))
    write_case(replace(case, **same), pool.path(1))
    datasets = [
        CohortDataset([], PAPER_PROFILE, tmp_path, ranges=PAPER_RANGES, with_truth=True, tile=(32, 48, 48), simulated=pool)
        for _ in range(2)
    ]
    read, resident = datasets
    resident.keep_on(torch.device("cpu"))
    expected = [read[Draw(0, epoch, occurrence)] for epoch, occurrence in ((0, 0), (0, 1), (1, 0))]
    reads: list[Path] = []

    def noted(path: Path) -> PreparedCase:
        reads.append(path)
        return read_case(path)

    monkeypatch.setattr(dataset, "read_case", noted)
    found = [resident[Draw(0, 0, occurrence)] for occurrence in range(2)]
    pool.path(0).unlink()
    found.append(resident[Draw(0, 1, 0)])
    assert reads == [pool.path(0), pool.path(1)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    pool.path(1).unlink()
    with pytest.raises(OSError, match="No such file"):
        resident[Draw(0, 0, 0)]  # it left when the second case came


@pytest.mark.slow
def test_an_epoch_finds_its_cases_made_the_same_in_every_run_and_older_ones_gone(tmp_path: Path) -> None:
    def made(folder: Path, epochs: range, panlobular: float = 1.0) -> CasePool:
        pool = CasePool(folder, seed=3, fresh=1, size=1, panlobular=panlobular)
        fresh = FreshCases(pool, PAPER_PROFILE, 1)
        for epoch in epochs:
            fresh.ready(epoch)
            dataset = CohortDataset([], PAPER_PROFILE, folder, with_truth=True, tile=(32, 48, 48), simulated=pool)
            sample = dataset[Draw(0, epoch, 0)]
            assert bool(sample.has_truth)
            assert sample.image.shape == (1, 32, 48, 48)
        fresh.close()
        return pool

    whole = made(tmp_path / "whole", range(2))
    assert not whole.path(0).is_file()
    resumed = made(tmp_path / "resumed", range(1, 2))
    first, second = (read_case(pool.path(1)) for pool in (whole, resumed))
    assert torch.equal(first.image, second.image)
    assert first.percentages == second.percentages
    assert first.truth is not None
    assert first.percentages is not None
    without = read_case(made(tmp_path / "without", range(1, 2), panlobular=0.0).path(1)).percentages
    assert without is not None
    assert first.percentages[0] > without[0] + PANLOBULAR_PERCENT[0] - 0.5
    inside = first.lung[::2, ::2, ::2]
    for part, percentage in zip(first.truth, first.percentages, strict=True):
        assert float(part[inside].float().mean()) / 2.55 == pytest.approx(percentage, abs=0.5)


def test_a_share_of_the_cases_has_the_look_of_the_first_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[CaseParameters] = []

    def stop(parameters: CaseParameters) -> SimulatedCase:
        drawn.append(parameters)
        raise InterruptedError

    monkeypatch.setattr(fresh, "simulate", stop)
    for share in (0.0, 0.5, 1.0):
        for number in range(16):
            with pytest.raises(InterruptedError):
                fresh._make(CasePool(tmp_path, seed=3, fresh=1, size=16, first_look=share), number, PAPER_PROFILE)
    first = [parameters.disease.mesh is None for parameters in drawn]
    assert not any(first[:16])
    assert 0 < sum(first[16:32]) < 16
    assert all(first[32:])


def test_a_case_without_room_is_drawn_again_and_another_failure_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [NoRoomError("no room"), RuntimeError("out of memory")]

    def fail(_: CaseParameters) -> SimulatedCase:
        raise errors.pop(0)

    monkeypatch.setattr(fresh, "simulate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fresh._make(CasePool(tmp_path, seed=3, fresh=1, size=1), 0, PAPER_PROFILE)
    assert errors == []
