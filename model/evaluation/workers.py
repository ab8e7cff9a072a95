"""Calls in processes of their own: one that crashes takes no other with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from threading import Lock
from typing import Any, Generic, TypeVar

import SimpleITK as sitk

from ..errors import InputError

Item = TypeVar("Item")
Value = TypeVar("Value")

# Forked from a clean server, not from here: a fork of a process in which ITK has threads may hang. The server imports once
# what takes long, and finds it wherever it was started.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["SimpleITK", "evalutils.stats", "evalutils.validators", "scipy.stats", "sklearn.metrics"])

_EXIT_CODES = Lock()
"""Held while an exit code may be read: it can be read once, and a start reads those of all processes that have ended. Of two
threads that read at once, the second would find nothing, and multiprocessing calls that 255."""


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """What came of one call.

    Attributes:
        value: what it returned, None if it failed.
        problem: why it failed, one line; empty if it did not.
        is_input: whether the input was at fault, and not the code or the machine.
    """

    value: Value | None
    problem: str = ""
    is_input: bool = False


def map_isolated(function: Callable[[Item], Value], items: Sequence[Item], workers: int = 1) -> list[Outcome[Value]]:
    """Call `function` on each item in a process of its own, several at a time; return what came of each, in order.

    Args:
        function: found by its name in a module, so that another process can import it.
        items: what can be sent to another process.
        workers: how many processes run at a time.
    """
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(partial(_call, function), items))


def _call(function: Callable[[Item], Value], item: Item) -> Outcome[Value]:
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_answer, args=(function, item, sender))
    with _EXIT_CODES:
        process.start()
    sender.close()
    outcome: Outcome[Value] | None = None
    with receiver, contextlib.suppress(EOFError):  # it ended before it could answer
        outcome = receiver.recv()
    wait([process.sentinel])
    with _EXIT_CODES:
        process.join()
    return outcome or Outcome(None, f"its process ended with exit code {process.exitcode}")


def _answer(function: Callable[[Any], Any], item: Any, sender: Connection) -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the other processors have work of their own
    try:
        outcome: Outcome[Any] = Outcome(function(item))
    except InputError as error:
        outcome = Outcome(None, str(error), is_input=True)
    except Exception as error:
        outcome = Outcome(None, f"{type(error).__name__}: {' '.join(str(error).split())}")
    sender.send(outcome)
    sender.close()
