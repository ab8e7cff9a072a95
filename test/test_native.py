"""What native code prints on stderr is collected, and stderr comes back as it was."""

from __future__ import annotations

import os
import threading
import time

from model.native import captured_stderr


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
