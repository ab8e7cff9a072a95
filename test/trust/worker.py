"""One process that runs command after command and is watched from outside: its time, its memory, and whether it lives."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import process
from model import weights
from model.cohort.manifest import read_manifest
from model.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: its exit code; negative after a signal that ended the worker; None if it did not end in time.
        stdout: what it printed.
        stderr: likewise.
        memory: bytes by which the resident memory grew at most.
    """

    code: int | None
    stdout: str
    stderr: str
    memory: int


def check_manifest(arguments: list[str]) -> int:
    """Read a training manifest as train.py does."""
    try:
        read_manifest(arguments[0])
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "process": process.main,
    "weights": weights.main,
    "manifest": check_manifest,
}


def _resident(name: str) -> int:
    """VmRSS (now) or VmHWM (at most) in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _work(connection: Connection) -> None:
    while True:
        command, arguments, folder, logs = connection.recv()
        os.chdir(folder)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            target = os.open(f"{logs}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, descriptor)
            os.close(target)
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from now on
        before = _resident("VmRSS")
        try:
            code = COMMANDS[command](arguments)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        sys.stdout.flush()
        connection.send((code, _resident("VmHWM") - before))


class Worker:
    """A process that imports everything once; it is replaced when a command ends or outlasts it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def run(self, command: str, arguments: list[str], folder: Path, logs: Path) -> Outcome:
        """Run one of `COMMANDS` in a folder; what it prints goes into files in `logs`."""
        connection = self._connected()
        connection.send((command, arguments, str(folder), str(logs)))
        code: int | None = None
        memory = 0
        try:
            if connection.poll(self._seconds):
                code, memory = connection.recv()
            else:
                self.stop()
        except EOFError:
            assert self._process is not None
            self._process.join(10)
            code = self._process.exitcode
            self.stop()
        stdout, stderr = ((logs / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        return Outcome(code, stdout, stderr, memory)

    def _connected(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["test.trust.provoke", "test.trust.worker"])
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        return self._connection

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._connection = None
