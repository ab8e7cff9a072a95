"""Processes that share the scans of a cohort, one core each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import SimpleITK as sitk


def process_pool(workers: int, at_start: Callable[[], object] | None = None) -> ProcessPoolExecutor:
    """A pool of processes in which SimpleITK starts no threads of its own.

    They are spawned, not forked: a fork of a process whose libraries run threads may hang.

    Args:
        workers: how many processes.
        at_start: what each process does first; found by its name in a module, so that another process can import it.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (at_start,))


def _start(at_start: Callable[[], object] | None) -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if at_start is not None:
        at_start()
