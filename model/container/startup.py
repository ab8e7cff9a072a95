"""What makes the imports that take seconds faster; imports nothing that takes seconds itself."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_SCIKIT_LEARN = "sklearn.neighbors"


@contextlib.contextmanager
def imports_without_collections() -> Iterator[None]:
    """Import in this block without garbage collections, which take a fifth of the time and find next to nothing.

    What was imported is exempt from later collections, too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def scikit_learn_when_used() -> Iterator[None]:
    """Import evalutils in this block without scikit-learn, which takes as long as torch.

    evalutils uses one class of it, to score detections. It is imported when that class is first used, which nothing here does.
    """
    if _SCIKIT_LEARN in sys.modules:
        yield
        return
    stand_in = ModuleType(_SCIKIT_LEARN)
    stand_in.BallTree = _ball_tree  # type: ignore[attr-defined]
    sys.modules[_SCIKIT_LEARN] = stand_in
    try:
        yield
    finally:
        del sys.modules[_SCIKIT_LEARN]


def _ball_tree(*arguments: Any, **named: Any) -> Any:
    from sklearn.neighbors import BallTree

    return BallTree(*arguments, **named)
