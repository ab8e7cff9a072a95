"""Freed memory is reused, where the C library is glibc and the user has not set it up."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from test.conftest import need

ROOT = Path(__file__).resolve().parent.parent

PAGE_FAULTS = """
import ctypes, resource
from model.heap import reuse_freed_memory
reused = reuse_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = ctypes.c_void_p(library.malloc(64 << 20))
    library.memset(block, 1, 64 << 20)
    library.free(block)
print(reused, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
"""Of the block that is taken and freed twenty times."""


@pytest.fixture(autouse=True)
def _glibc() -> None:
    need(platform.libc_ver()[0] == "glibc", "glibc")


def page_faults(**settings: str) -> tuple[bool, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    answer = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], cwd=ROOT, env=environment | settings, capture_output=True, text=True, check=True
    )
    reused, faults = answer.stdout.split()
    return reused == "True", int(faults)


def test_a_block_that_was_freed_is_used_for_the_next_one() -> None:
    reused, faults = page_faults()
    assert reused
    assert faults < 2 * PAGES


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_MMAP_THRESHOLD_", "1048576"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1048576")]
)
def test_what_the_user_sets_is_left_as_it_is(name: str, value: str) -> None:
    reused, faults = page_faults(**{name: value})
    assert not reused
    assert faults > 10 * PAGES
