"""The stages of scoring a scan, and how a caller learns of the seconds that each took.

A caller passes a function to `observed_by`; in that block and thread, every `timed` block reports to it. Without one, nothing
is reported. `stage_line` is the form in which the commands log and show a stage, and `parse_stage_line` reads it back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum


class Stage(StrEnum):
    """A stage, in the order of a run; the value is its name in the log."""

    WEIGHTS = "weights"
    READ = "read"
    LUNGS = "lungs"
    PLAUSIBILITY = "plausibility"
    QUALITY = "quality"
    REGIONS = "regions"
    PREPARE = "prepare"
    NETWORK = "network"
    MAPS = "maps"
    DENSITOMETRY = "densitometry"
    DICOM = "dicom"
    WRITE = "write"
    REPORT = "report"
    """The viewer's: densitometry, map files and overview, all in memory."""


Observer = Callable[[Stage, float], None]
"""Called with a stage and its seconds when the stage has ended without an error."""

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)
_LINE = re.compile(r"(\S+) +(\d+\.\d\d) s$")


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Report the stages that end in this block, and in this thread, to `observer` alone."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextmanager
def timed(stage: Stage) -> Iterator[None]:
    """Report `stage` to the observer, if there is one, once the block has ended without an error."""
    start = time.perf_counter()
    yield
    observer = _observer.get()
    if observer is not None:
        observer(stage, time.perf_counter() - start)


def stage_line(name: str, seconds: float) -> str:
    """The line that the log has for a stage."""
    return f"{name:<12} {seconds:7.2f} s"


def parse_stage_line(line: str) -> tuple[Stage, float] | None:
    """The stage and seconds of a line that ends as `stage_line` has it; None for any other line."""
    found = _LINE.search(line)
    if found is None or found[1] not in tuple(Stage):
        return None
    return Stage(found[1]), float(found[2])
