from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from model.training.distributed import CpuBatchNormSync, ProcessGroupBatchNorm, ProcessPlace


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 1, 1))


def step(network: nn.Module, images: Tensor) -> None:
    network(images).square().mean(dim=(1, 2, 3, 4)).mean().backward()


def two_scans() -> Tensor:
    return torch.rand(2, 1, 5, 6, 7, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting-point", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    network = CpuBatchNormSync().apply(small_network())
    parallel = nn.parallel.DistributedDataParallel(network)
    step(parallel, two_scans()[rank : rank + 1])
    if rank == 0:
        gradients = {name: value.grad for name, value in network.named_parameters()}
        torch.save({"gradients": gradients, "buffers": dict(network.named_buffers())}, Path(folder) / "result.pt")
    _leave_together(rank, Path(folder))


def _leave_together(rank: int, folder: Path) -> None:
    """End without the interpreter's farewell: freeing a parallel network after its peer has gone was seen to wait for ever."""
    (folder / f"done-{rank}").touch()
    while not all((folder / f"done-{other}").exists() for other in range(2)):
        time.sleep(0.01)
    os._exit(0)


def test_two_cpu_processes_compute_the_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    """Batch normalisation over both: with one of their own each, gradients would differ."""
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    found = torch.load(tmp_path / "result.pt")
    network = small_network()
    step(network, two_scans())
    for name, value in network.named_parameters():
        torch.testing.assert_close(found["gradients"][name], value.grad, rtol=1e-4, atol=1e-6)
    for name, statistic in network.named_buffers():
        torch.testing.assert_close(found["buffers"][name], statistic, rtol=1e-5, atol=1e-6)


def test_synchronising_can_be_undone_and_keeps_every_name() -> None:
    network, sync = small_network(), CpuBatchNormSync()
    names = list(network.state_dict())
    assert any(isinstance(module, ProcessGroupBatchNorm) for module in sync.apply(network).modules())
    assert list(network.state_dict()) == names
    assert not any(isinstance(module, ProcessGroupBatchNorm) for module in sync.revert(network).modules())


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, ProcessPlace(True, True)),
        ({"LOCAL_RANK": "1"}, ProcessPlace(False, False)),
        ({"NODE_RANK": "1"}, ProcessPlace(False, True)),
        ({"RANK": "0", "LOCAL_RANK": "0"}, ProcessPlace(True, True)),
        ({"RANK": "8", "LOCAL_RANK": "0"}, ProcessPlace(False, True)),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "3"}, ProcessPlace(False, False)),
    ],
)
def test_a_process_knows_its_place_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], place: ProcessPlace
) -> None:
    for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ProcessPlace.here() == place
