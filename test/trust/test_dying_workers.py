"""A process that works beside another may be killed, by a machine that runs out of memory above all: nobody waits for it.

`test/evaluation/test_workers.py` holds the same for the evaluation, where the others go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model.cohort.manifest import read_manifest
from model.preprocessing import PAPER_PROFILE, Trilinear
from model.training.cache import prepare_cohort
from test.phantom import COARSE_INPUT
from test.training.cohort import row, write_manifest, write_phantom

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class KilledOnce(Trilinear):
    """An interpolation in whose use the first process to come to it is killed."""

    marker: Path

    def slices(self, depth: int, count: int) -> npt.NDArray[np.float64]:
        with contextlib.suppress(FileExistsError):
            self.marker.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().slices(depth, count)


def test_a_worker_that_dies_ends_the_preparation_and_the_next_one_completes_it(tmp_path: Path) -> None:
    for entity, radius_mm in (("a", 10.0), ("b", 20.0), ("c", 30.0)):
        write_phantom(tmp_path, entity, radius_mm)
    rows = [row("a", 1, 0, "train"), row("b", 2, 0, "train"), row("c", 2, 0, "validation")]
    cases = read_manifest(write_manifest(tmp_path / "manifest.csv", rows)).cases
    cache = tmp_path / "cache"
    profile = replace(PAPER_PROFILE, input_shape=COARSE_INPUT, interpolation=KilledOnce(tmp_path / "killed"))
    with pytest.raises(BrokenProcessPool):
        list(prepare_cohort(cases, profile, cache, workers=2))
    assert not list(cache.rglob("*.partial-*"))
    assert list(prepare_cohort(cases, profile, cache))[-1] == 3
    assert len(list(cache.rglob("*.safetensors"))) == 3
