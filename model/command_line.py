"""What all command lines share: a parser that says what is wrong in one line, and what options may be set to.

Imports nothing heavy, so that a command line can be parsed before torch is imported.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

from .errors import InputError, printable

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
InferencePrecisionName = Literal["auto", "float32", "bfloat16", "float16", "int8"]
MapType = Literal["uint8", "float32"]

LARGEST_SEED = 2**32 - 1
"""That NumPy, torch and Keras all take."""


def module_command(name: str) -> str:
    """How to call a command of this package: `python -m model.weights` here, by the installed name where it is installed."""
    return f"python -m {__package__}.{name}"


def whole_number(lowest: int, largest: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `lowest` to `largest` (None: no limit), in digits 0 to 9."""
    expected = f"of at least {lowest}" if largest is None else f"from {lowest} to {largest}"

    def number(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]+", text) or int(text) < lowest or (largest is not None and int(text) > largest):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number {expected}")
        return int(text)

    return number


def granted_cpus() -> int:
    """How many CPUs this process may use: by its affinity and its control group; a container may see all of the host's."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(int(quota) // int(period), 1))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return cpus


def exit_code(run: Callable[[], int | None], output: Path | None = None) -> int:
    """Run what a command does; returns its exit code, after one line on stderr where it failed.

    Args:
        run: returns the exit code, None for 0.
        output: what the command writes; an `OSError` that does not name it, such as that of a full disk, is printed with it.

    Returns:
        What `run` returned; 2 for an input that cannot be used; 1 for what the machine failed at.
    """
    try:
        return run() or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        text = str(error) if output is None or str(output) in str(error) else f"{output}: {error}"
        print(printable(text), file=sys.stderr)
        return 1


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and exit code 2, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")
