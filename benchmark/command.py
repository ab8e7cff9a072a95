"""What the scripts of this folder share: options and output files that are checked before the work, and a timed process.

Imports nothing heavy, so that a command line is refused at once.
"""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model import SHIPPED_WEIGHTS
from model.command_line import OneLineParser, whole_number
from model.errors import InputError
from model.whole_files import try_folder, whole_file

if TYPE_CHECKING:
    from model.subtyping import Finding

_POLL_SECONDS = 0.005


def script_parser(script: str, description: str | None) -> OneLineParser:
    """The parser of a script, by its `__file__` and its docstring, of which it shows the first line."""
    return OneLineParser(prog=f"benchmark/{Path(script).name}", description=(description or "").partition("\n")[0])


def add_scans(parser: OneLineParser, seed: int, rows: str) -> None:
    """Add the options of a script that scores scans which it makes: `--weights`, `--cases`, `--seed` and `--csv`.

    Args:
        seed: the default.
        rows: what a row of the CSV is.
    """
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--cases", type=whole_number(1), default=24, help="default: %(default)s")
    parser.add_argument("--seed", type=whole_number(0), default=seed, help="default: %(default)s")
    parser.add_argument("--csv", type=Path, help=f"write one row a {rows}")


@contextlib.contextmanager
def checking(option: str) -> Iterator[None]:
    """Turn the ValueError of a check ("..., expected ...") into the InputError of an option."""
    try:
        yield
    except ValueError as error:
        found, _, expected = str(error).partition(", expected ")
        raise InputError(option, found, expected) from None


def try_file(path: Path | None) -> None:
    """Try, before the work, whether a file that is asked for can be written after it.

    Raises:
        InputError: it cannot.
    """
    if path is not None:
        if path.is_dir():
            raise InputError(path, "it is a folder", "a file to write")
        try_folder(path.parent)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def percentage_of(finding: Finding) -> float:
    """The percentage of the lung that the network of `--weights` has found.

    Raises:
        InputError: it is a classification network.
    """
    if finding.percentage is None:
        raise InputError("--weights", "a classification network", "a regression network: percentages are compared")
    return finding.percentage


@dataclass(frozen=True)
class Process:
    """A process that has ended well.

    Attributes:
        seconds: from start to exit.
        core_seconds: of all cores, of the process and of the children that it waited for.
        memory: of the process alone at most, in bytes.
        output, log: what it wrote on stdout and on stderr.
    """

    seconds: float
    core_seconds: float
    memory: int
    output: str
    log: str


def timed_process(command: Sequence[str | Path], folder: Path | None = None) -> Process:
    """Run a Python command in a folder.

    The system's own figure for memory (`ru_maxrss`) is at least what the process that starts it has, so it is not used.

    Raises:
        ChildProcessError: it failed; its last line on stderr is named.
    """
    memory = 0
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=output, stderr=log)
        while True:
            memory = max(memory, _peak_memory(process.pid))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (output, log):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    if process.returncode:
        last = (texts[1].strip().splitlines() or ["it did not say why"])[-1]
        raise ChildProcessError(f"{' '.join(map(str, command))}: exit code {process.returncode}: {last}")
    return Process(seconds, usage.ru_utime + usage.ru_stime, memory, *texts)


def _peak_memory(process: int) -> int:
    """Bytes of resident memory that a process has had at most; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
