"""The processes that share a cohort's scans."""

from __future__ import annotations

import multiprocessing
import os

import SimpleITK as sitk

from model.cohort.processes import process_pool

STARTED = "STARTED_BY_A_TEST"


def mark() -> None:
    os.environ[STARTED] = "yes"


def state(_: int) -> tuple[int, str | None, str | None]:
    return sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), os.environ.get(STARTED), multiprocessing.get_start_method()


def test_processes_are_spawned_and_keep_to_one_core() -> None:
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(4)
    try:
        with process_pool(1) as plain, process_pool(1, mark) as marked:
            assert list(plain.map(state, range(1))) == [(1, None, "spawn")]
            assert list(marked.map(state, range(1))) == [(1, "yes", "spawn")]
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 4
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
