"""Captures what the readers' C++ code prints on stderr: some damage of files is reported only there."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Collect the lines that native code prints on stderr during the block; the list is filled when the block ends.

    The process has one stderr: a block in another thread, as in the viewer, waits for the end of this one. The lines may
    quote the file, and thus a patient's name: do not log them.
    """
    lines: list[str] = []
    with _ONE_AT_A_TIME, _buffer() as capture:
        stderr = os.dup(2)
        os.dup2(capture.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            capture.seek(0)
            text = capture.read().decode(errors="replace")
            lines.extend(line.strip() for line in text.splitlines() if line.strip())


def print_error(message: str) -> None:
    """Print a line on stderr, as soon as no other thread captures it."""
    with _ONE_AT_A_TIME:
        print(message, file=sys.stderr, flush=True)


def _buffer() -> BinaryIO:
    """A file in memory where the system has them: a full or missing temporary folder must not stop a run."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()
