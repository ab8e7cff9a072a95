"""How this process gets its memory from the system, which costs a network on a CPU up to a quarter of its time by default."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""

LARGEST_KEPT = 128 << 20
"""Bytes of the largest block that is reused: the outputs of nearly all layers on a scan are smaller, the arrays of a full-size
scan larger."""

KEPT_FREE = 512 << 20
"""Bytes at the end of the heap that are kept when nothing uses them."""


def reuse_freed_memory() -> bool:
    """Let the C library keep freed blocks of up to `LARGEST_KEPT` bytes for the next ones, where it is glibc.

    By default, glibc gives each block of 32 MB or more back to the system as soon as it is freed: so every layer of a network
    gets its output as new pages, which the system has to clear one by one. What the user sets in the environment (mallopt(3):
    MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES) is left as it is.

    Returns:
        Whether blocks are reused from now on.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wanted = {_MMAP_THRESHOLD: LARGEST_KEPT, _TRIM_THRESHOLD: KEPT_FREE}
    return all(library.mallopt(name, value) == 1 for name, value in wanted.items())
