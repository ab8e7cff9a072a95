"""A line in which sessions wait for their turn: a full-size scan takes gigabytes of memory, so one is scored at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_SECONDS = 1.0
"""How often those who wait are told; a session that has been closed leaves the line then."""


class WaitingLine:
    """Lets one caller at a time through, first come, first served."""

    def __init__(self) -> None:
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, tell: Callable[[int], None]) -> Iterator[None]:
        """Wait for the turn, and hold it in the `with` block.

        Args:
            tell: called with how many are before the caller while there are any. What it raises ends the waiting.
        """
        ticket = object()
        with self._changed:
            self._line.append(ticket)
        try:
            while before := self._before(ticket):
                tell(before)
            yield
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()

    def _before(self, ticket: object) -> int:
        """How many are before; 0 at once when it is the ticket's turn, else after a change or a moment."""
        with self._changed:
            if self._line[0] is not ticket:
                self._changed.wait(LOOK_SECONDS)
            return self._line.index(ticket)
