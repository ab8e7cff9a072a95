"""Simulated cases that are made while a network is trained on earlier ones: the pool of each epoch has some that are new.

Which cases an epoch sees follows from the run's seed and the epoch's number alone, so that a run can be repeated and resumed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from tqdm import tqdm

from ..cohort.processes import process_pool
from ..imaging.scan import Scan
from ..preprocessing import Profile
from ..simulation.case import Look, SimulatedCase, draw_parameters, simulate
from ..simulation.disease import NoRoomError
from .cache import PreparedCase, prepare_scan, write_case

FRESH_FOLDER = "simulated"
"""Where in a run's folder its simulated cases lie."""

_STREAM = 20
"""Apart from the streams of `model.simulation.cohort`: a cohort with the run's seed, to validate on, holds other cases."""

PANLOBULAR_PERCENT = (10.0, 70.0)
"""Percent of the lung that is panlobular emphysema, in cases that have any: drawn evenly, and less where other emphysema leaves
less room."""

_PANLOBULAR_STREAM = 100
"""Apart from the streams that `draw_parameters` makes of a case's seed."""

_ATTEMPTS = 3
_NICENESS = 5
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class CasePool:
    """Which simulated cases an epoch is trained on, and where they lie. Cases are numbered in the order that they are made.

    Attributes:
        folder: of the prepared cases.
        seed: of the run.
        fresh: cases that are new in each epoch, and take the place of the oldest.
        size: cases in the pool.
        panlobular: share of the cases that have panlobular emphysema, 0 to 1.
        first_look: share of the cases with the look of the first simulator, 0 to 1.
    """

    folder: Path
    seed: int
    fresh: int
    size: int
    panlobular: float = 0.0
    first_look: float = 0.0

    def number(self, place: int, epoch: int) -> int:
        """The case at `place`, from 0 to `size` - 1, in an epoch."""
        return epoch * self.fresh + place

    def entity(self, number: int) -> str:
        """Name of a case."""
        return f"simulated-{self.seed}-{number:06d}"

    def path(self, number: int) -> Path:
        """Where a prepared case lies."""
        return self.folder / f"{self.entity(number)}.safetensors"


def scan_of(case: SimulatedCase) -> Scan:
    """The scan of a simulated case, without a way over files."""

    def image(array: np.ndarray) -> sitk.Image:
        result = sitk.GetImageFromArray(array)
        result.SetSpacing(case.spacing[::-1])
        result.SetOrigin(case.origin[::-1])
        return result

    return Scan.from_images(image(case.hounsfield), image((case.lungs > 0).astype(np.uint8)))


def prepare_simulated(case: SimulatedCase, profile: Profile) -> PreparedCase:
    """Prepare a simulated case for training.

    Panlobular emphysema counts as centrilobular: the Fleischner system grades panlobular lucencies in smokers as the top of
    the centrilobular scale, advanced destructive emphysema (Lynch et al., Radiology 2015). In the truth of a simulated cohort,
    it is neither.
    """
    scan = scan_of(case)
    parts = (case.centrilobular | case.panlobular, case.paraseptal)
    truth = [scan.orientation.to_patient(part.astype(np.float32)) for part in parts]
    return prepare_scan(scan, profile, truth)


def _make(pool: CasePool, number: int, profile: Profile) -> None:
    for attempt in range(_ATTEMPTS):
        key = (_STREAM, number, attempt)
        seed = np.random.SeedSequence(pool.seed, spawn_key=key)
        drawn = np.random.default_rng(np.random.SeedSequence(pool.seed, spawn_key=(*key, _PANLOBULAR_STREAM)))
        percent = drawn.uniform(*PANLOBULAR_PERCENT) if drawn.random() < pool.panlobular else 0.0
        look: Look = "first" if drawn.random() < pool.first_look else "measured"
        try:
            case = simulate(draw_parameters(seed, panlobular=percent, look=look))
            break
        except NoRoomError:
            if attempt == _ATTEMPTS - 1:
                raise
    write_case(prepare_simulated(case, profile), pool.path(number))


def _start_worker() -> None:
    """One core, after the training itself; and not longer than the process that trains, however that ends."""
    torch.set_num_threads(1)
    os.nice(_NICENESS)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


class FreshCases:
    """Makes the cases of a pool: those of an epoch before it begins, and those of the next one meanwhile.

    Args:
        pool: which cases.
        profile: how they are prepared.
        workers: processes that make them.
        makes: whether this process has them made; the others of a machine wait for it.
    """

    def __init__(self, pool: CasePool, profile: Profile, workers: int, *, makes: bool = True) -> None:
        self._pool = pool
        self._profile = profile
        self._makes = makes
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._ordered: dict[int, Future[None]] = {}

    def ready(self, epoch: int) -> None:
        """Wait until every case of an epoch is there; remove those before it, and have those made that the next one adds."""
        first = self._pool.number(0, epoch)
        wanted = range(first, first + self._pool.size)
        if not self._makes:
            while not all(self._pool.path(number).is_file() for number in wanted):
                time.sleep(_POLL_SECONDS)
            return
        self._order(wanted)
        waiting = [self._ordered[number] for number in wanted if number in self._ordered]
        if not all(future.done() for future in waiting):
            for future in tqdm(waiting, desc="simulating", unit="scan", disable=None):
                future.result()
        for number in [number for number in self._ordered if number < wanted.stop]:
            self._ordered.pop(number).result()
        for path in self._pool.folder.glob(f"{self._pool.entity(0)[:-6]}*.safetensors"):
            if path < self._pool.path(first):
                path.unlink(missing_ok=True)
        self._order(range(wanted.stop, wanted.stop + self._pool.fresh))

    def _order(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number in self._ordered or self._pool.path(number).is_file():
                continue
            if self._executor is None:
                self._executor = process_pool(self._workers, _start_worker)
            self._ordered[number] = self._executor.submit(_make, self._pool, number, self._profile)

    def close(self) -> None:
        """Stop making cases."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
