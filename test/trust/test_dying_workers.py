"""A process that works beside another may be killed, by a machine that runs out of memory above all: nobody waits for it.

`test/evaluation/test_workers.py` holds the same for the evaluation, where the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from model.cohort.manifest import read_manifest
from model.preprocessing import PAPER_PROFILE
from model.training.cache import prepare_cohort
from test.training.cohort import row, write_manifest, write_phantom

pytestmark = pytest.mark.slow


def kill_the_first_worker() -> None:
    """Wait until there is one; an executor has no other children."""
    while not (workers := multiprocessing.active_children()):
        time.sleep(0.05)
    os.kill(workers[0].pid or 0, signal.SIGKILL)


def test_a_worker_that_dies_ends_the_preparation_and_the_next_one_completes_it(tmp_path: Path) -> None:
    for entity, radius_mm in (("a", 10.0), ("b", 20.0), ("c", 30.0)):
        write_phantom(tmp_path, entity, radius_mm)
    rows = [row("a", 1, 0, "train"), row("b", 2, 0, "train"), row("c", 2, 0, "validation")]
    cases = read_manifest(write_manifest(tmp_path / "manifest.csv", rows)).cases
    cache = tmp_path / "cache"
    killer = threading.Thread(target=kill_the_first_worker, daemon=True)
    killer.start()
    with pytest.raises(BrokenProcessPool):
        list(prepare_cohort(cases, PAPER_PROFILE, cache, workers=2))
    killer.join()
    assert not list(cache.rglob("*.partial-*"))
    assert list(prepare_cohort(cases, PAPER_PROFILE, cache))[-1] == 3
    assert len(list(cache.rglob("*.safetensors"))) == 3
