"""How much memory this process may still take, and the check that an image fits into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..errors import InputError

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux states the limits of a container."""


def available_memory() -> int:
    """Bytes that this process may still take: the machine's free memory, or what its control group leaves, if less."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):  # only Linux has this file
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    for folder, limit, usage, cache in (
        (CONTROL_GROUP, "memory.max", "memory.current", "file"),  # version 2
        (CONTROL_GROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),  # version 1
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" where there is no limit
            parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage).read_text()) - int(parts[cache])  # the kernel frees cached files on demand
            free = min(free, int((folder / limit).read_text()) - used)
    return free


def check_memory(path: Path, voxels: int, voxel_bytes: int) -> None:
    """Check that an image can be read: that takes its voxels in the file's type and one copy of them.

    Mask and network input are needed later, when the copy is gone, and are smaller.

    Raises:
        InputError: there is less memory.
    """
    needed, free = 2 * voxels * voxel_bytes, available_memory()
    if needed > free:
        raise InputError(
            path,
            f"its header asks for {voxels:.3g} voxels, which take {needed / 2**30:.1f} GiB to read",
            f"an image that fits into the {free / 2**30:.1f} GiB of memory that are free",
        )
