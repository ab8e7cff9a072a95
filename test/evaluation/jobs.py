"""Functions that are called in processes of their own; they must be found by name in a module."""

from __future__ import annotations

import os
import signal

from model.errors import InputError


def answer(item: str) -> str:
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exits":
        os._exit(3)
    if item == "input":
        raise InputError("x.mha", "the file is empty", "an image")
    if item == "bug":
        raise KeyError("never\nmind")
    return item * 2
