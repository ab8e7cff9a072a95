"""What native code prints on stderr is captured, and stderr is restored."""

from __future__ import annotations

import os
import threading
import time

import pytest

from model.imaging.native import captured_stderr, print_error


def test_what_native_code_prints_is_collected_and_not_shown() -> None:
    with captured_stderr() as lines:
        os.write(2, b"  first line\n\nsecond line\n")
        assert lines == []
    assert lines == ["first line", "second line"]


def test_threads_that_collect_at_once_leave_stderr_as_it_was() -> None:
    before = os.fstat(2)
    collected: dict[int, list[str]] = {}

    def collect(number: int) -> None:
        with captured_stderr() as lines:
            time.sleep(0.01)
            os.write(2, f"{number}\n".encode())
            time.sleep(0.01 * (number % 3))
        collected[number] = lines

    threads = [threading.Thread(target=collect, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collected == {number: [str(number)] for number in range(8)}
    assert os.path.samestat(os.fstat(2), before)


def test_an_error_that_is_printed_meanwhile_is_shown_and_not_collected(capfd: pytest.CaptureFixture[str]) -> None:
    inside, ending = threading.Event(), threading.Event()
    collected: list[str] = []

    def collect() -> None:
        with captured_stderr() as lines:
            inside.set()
            ending.wait(10)
        collected.extend(lines)

    thread = threading.Thread(target=collect)
    thread.start()
    inside.wait(10)
    printing = threading.Thread(target=print_error, args=("the case before failed",))
    printing.start()
    ending.set()
    for each in (thread, printing):
        each.join(10)
    assert collected == []
    assert capfd.readouterr().err == "the case before failed\n"
