"""A signal ends a run with one line on stderr, whatever its other threads are doing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from model.container import command
from model.imaging.native import captured_stderr


@pytest.fixture
def handlers() -> Iterator[None]:
    """This process's handlers, put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_a_capture_is_shown_and_not_collected(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    signal.signal(number, signal.SIG_DFL)  # nohup has a hangup ignored
    command.end_on_signals()
    with captured_stderr() as lines, pytest.raises(SystemExit) as ended:
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert lines == []
    assert capfd.readouterr().err == f"stopped by {signal.Signals(number).name}\n"


@pytest.mark.usefixtures("handlers")
def test_a_signal_is_shown_though_a_capture_begins_just_before_the_handler_writes(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command.end_on_signals()
    write = os.write

    def write_late(descriptor: int, text: bytes) -> int:
        with captured_stderr():  # as another thread may at this point
            return write(descriptor, text)

    monkeypatch.setattr(os, "write", write_late)
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err == "stopped by SIGTERM\n"


@pytest.mark.usefixtures("handlers")
def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    command.end_on_signals()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
def test_a_process_without_stdout_ends_with_the_code_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        command.run_process(lambda: 2)
    assert ended.value.code == 2
