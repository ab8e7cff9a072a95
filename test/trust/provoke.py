"""Run process.py with one thing going wrong: `python -m test.trust.provoke FAULT... -- ARGUMENTS OF process.py`.

    kill-at PLACE SIGNAL     the process sends itself a signal when it comes to a place
    write-seldom PLACE SIGNAL  the same, in a run that writes its results after the first case alone
    delete-at PLACE PATH     a file or folder disappears then
    wait-at PLACE PATH       it waits until a file appears
    clock SECONDS            the wall clock shows this time, and runs backwards

A place is `find` (cases are looked for), a stage of the road (weights, read, regions, ..., write), `flush` (every file of a
block is written, none has its name yet), or `rename-N` (N files of all blocks have their names).
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model import subtyping, whole_files
from model.container import algorithm, command, grand_challenge, reading
from model.stages import Stage

STAGES = tuple(stage for stage in Stage if stage not in (Stage.LUNGS, Stage.DICOM, Stage.REPORT))
"""Those of process.py with a lung mask."""


def before(owner: Any, name: str, place_of: Callable[..., str], place: str, action: Callable[[], None]) -> None:
    """Replace a function by one that first acts, if it is called at `place`."""
    function = getattr(owner, name)

    def replaced(*arguments: Any, **options: Any) -> Any:
        if place_of(*arguments) == place:
            action()
        return function(*arguments, **options)

    setattr(owner, name, replaced)


def act_at(place: str, action: Callable[[], None]) -> None:
    """Do something when the run comes to a place."""
    if place == "find":
        before(grand_challenge, "find_cases", lambda *_: place, place, action)
    elif place == "read":
        before(reading, "read_case", lambda *_: place, place, action)
    elif place in STAGES:
        for module in (command, algorithm, subtyping):
            before(module, "timed", str, place, action)
    elif place == "flush":
        before(whole_files, "_flush", lambda _: place, place, action)
    else:
        renamed = iter(range(1000))
        before(os, "replace", lambda *_: f"rename-{next(renamed)}", place, action)


def delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def wait_for(path: Path) -> None:
    path.with_suffix(".waiting").touch()
    while not path.exists():
        time.sleep(0.02)


def set_clock(seconds: float) -> None:
    ticks = iter(range(10**9))
    time.time = lambda: seconds - next(ticks)


def provoke(kind: str, *arguments: str) -> None:
    match kind, arguments:
        case "kill-at", (place, number):
            act_at(place, lambda: os.kill(os.getpid(), signal.Signals[number]))
        case "write-seldom", (place, number):
            algorithm.CASES_TO_WRITING = 1e9
            provoke("kill-at", place, number)
        case "delete-at", (place, path):
            act_at(place, lambda: delete(Path(path)))
        case "wait-at", (place, path):
            act_at(place, lambda: wait_for(Path(path)))
        case "clock", (seconds,):
            set_clock(float(seconds))
        case _:
            raise ValueError(kind)


def run_with_fault(fault: tuple[str, ...], arguments: list[str]) -> int:
    """As process.py's command line runs."""
    if fault:
        provoke(*fault)
    command.end_on_signals()
    return command.main(arguments)


def _run_apart(fault: tuple[str, ...], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    sys.exit(run_with_fault(fault, arguments))


class Forks:
    """Runs in processes that are forked from one that has imported everything: a second each, not five."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["test.trust.provoke", "test.trust.worker"])

    def run(
        self, fault: tuple[str, ...], arguments: list[str], environment: Mapping[str, str] = os.environ
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; the return code is negative after a signal, as with `subprocess`."""
        with tempfile.TemporaryDirectory() as folder:
            child = self._context.Process(target=_run_apart, args=(fault, arguments, dict(environment), folder))
            child.start()
            child.join(300)
            if child.exitcode is None:
                child.kill()
                raise TimeoutError(f"{fault}: the run has not ended")
            texts = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
            return subprocess.CompletedProcess(arguments, child.exitcode, *texts)


if __name__ == "__main__":
    end = sys.argv.index("--")
    sys.exit(run_with_fault(tuple(sys.argv[1:end]), sys.argv[end + 1 :]))
