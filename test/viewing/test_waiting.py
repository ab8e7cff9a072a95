"""Five sessions at once: one after another, in the order in which they came."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.viewing.waiting import WaitingLine

SESSIONS = 5


def test_five_sessions_have_their_turns_one_at_a_time_in_the_order_they_came() -> None:
    line = WaitingLine()
    order: list[int] = []
    told: dict[int, list[int]] = {number: [] for number in range(SESSIONS)}
    inside, most = 0, 0
    everybody_came = threading.Event()

    def session(number: int) -> None:
        nonlocal inside, most
        with line.turn(told[number].append):
            everybody_came.wait(30)
            inside += 1
            most = max(most, inside)
            order.append(number)
            inside -= 1

    with ThreadPoolExecutor(SESSIONS) as pool:
        for number in range(SESSIONS):
            pool.submit(session, number)
            while len(line._line) <= number:
                time.sleep(0.001)
        while not all(told[number] for number in range(1, SESSIONS)):
            time.sleep(0.01)
        everybody_came.set()
    assert (most, order) == (1, [0, 1, 2, 3, 4])
    assert [max(told[number], default=0) for number in range(SESSIONS)] == [0, 1, 2, 3, 4]


def test_whoever_fails_or_leaves_does_not_hold_up_the_others() -> None:
    line = WaitingLine()

    def leave(_: int) -> None:
        raise KeyboardInterrupt

    with line.turn(lambda _: None), pytest.raises(KeyboardInterrupt), line.turn(leave):
        pytest.fail("it was not its turn")
    with pytest.raises(ValueError, match="broken"), line.turn(lambda _: None):
        raise ValueError("broken")
    with line.turn(leave):
        pass
