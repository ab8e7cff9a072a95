"""What all command lines share: a parser that says what is wrong in one line, and what options may be set to.

Imports nothing heavy, so that a command line can be parsed before torch is imported.
"""

from __future__ import annotations

import argparse
from typing import Literal, NoReturn

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
InferencePrecisionName = Literal["auto", "float32", "bfloat16", "float16", "int8"]
MapType = Literal["uint8", "float32"]


def module_command(name: str) -> str:
    """How to call a command of this package: `python -m model.weights` here, by the installed name where it is installed."""
    return f"python -m {__package__}.{name}"


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and exit code 2, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")
