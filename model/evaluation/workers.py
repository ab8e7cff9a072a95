"""Calls in processes of their own: one that crashes takes no other with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import SimpleITK as sitk

from ..errors import InputError

Item = TypeVar("Item")
Value = TypeVar("Value")

# Forked from a clean server, not from here: a fork of a process in which ITK has threads may hang. The server imports once
# what takes long, and finds it wherever it was started.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["SimpleITK", "evalutils.stats", "evalutils.validators", "scipy.stats", "sklearn.metrics"])


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
    process.start()
    sender.close()
    try:
        outcome: Outcome[Value] = receiver.recv()
    except EOFError:
        process.join()
        return Outcome(None, f"its process ended with exit code {process.exitcode}")
    finally:
        receiver.close()
    process.join()
    return outcome


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
