"""The cases of all sessions, in bounded memory: a full-size case takes about a gigabyte as long as its page is open.

The oldest cases are dropped where all together would take more than their share of the memory; their page says so.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from ..imaging.memory import available_memory
from .case import ViewedCase

SHARE = 0.5
"""Of the memory that is free or taken by cases, what cases may take. Scoring needs the rest."""


@dataclass(eq=False)
class Held:
    """A session's hold on a case.

    Attributes:
        case: None once it was dropped.
    """

    case: ViewedCase | None = None


class Shelf:
    """Knows what all sessions hold, without holding it itself: what a session lets go, or loses by ending, is free."""

    def __init__(self, free: Callable[[], int] = available_memory) -> None:
        """
        Args:
            free: bytes of memory that are free now.
        """
        self._free = free
        self._lock = threading.Lock()
        self._places: list[weakref.ref[Held]] = []

    def hold(self, case: ViewedCase) -> Held:
        """Hold a case, and drop the oldest others as far as room is needed; this one is held in any event."""
        new = Held(case)
        with self._lock:
            others = [held for place in self._places if (held := place()) is not None and held.case is not None]
            taken = sum(held.case.size_bytes for held in others if held.case is not None)
            room = SHARE * (taken + self._free())
            for old in others:
                if taken + case.size_bytes <= room:
                    break
                taken -= old.case.size_bytes if old.case is not None else 0
                old.case = None
            self._places = [weakref.ref(held) for held in (*others, new) if held.case is not None]
        return new
