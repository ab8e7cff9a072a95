from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from model.training.distributed import ProcessPlace, gathered, summed


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting-point", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    rows = torch.tensor([[float(rank), 1.0]])
    if rank == 0:
        torch.save({"sum": summed(rows), "rows": gathered(rows)}, Path(folder) / "result.pt")
    else:
        summed(rows)
        gathered(rows)
    _leave_together(rank, Path(folder))


def _leave_together(rank: int, folder: Path) -> None:
    """End without the interpreter's farewell: taking a process group down after a peer has gone was seen to wait for ever."""
    (folder / f"done-{rank}").touch()
    while not all((folder / f"done-{other}").exists() for other in range(2)):
        time.sleep(0.01)
    os._exit(0)


def test_processes_add_up_and_gather_what_each_has(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    found = torch.load(tmp_path / "result.pt")
    assert found["sum"].tolist() == [[1, 2]]
    assert found["rows"].tolist() == [[0, 1], [1, 1]]


def test_one_process_has_what_it_has() -> None:
    rows = torch.tensor([[3.0, 4.0]])
    assert torch.equal(summed(rows), rows)
    assert torch.equal(gathered(rows), rows)


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
