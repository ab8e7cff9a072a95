"""Stages are reported to the observer of their own thread, and the benchmark counts every stage that the log holds."""

from __future__ import annotations

import logging
from threading import Thread

import pytest

from benchmark.inference import logged_stages
from model.stages import Stage, observed_by, parse_stage_line, stage_line, timed

LOG = """\
09:00:01 weights         1.50 s
09:00:01 running on cpu in torch.float32
09:00:01 a
09:00:02 read            0.25 s
09:00:02 plausibility    0.75 s
09:00:05 network         3.00 s
09:00:05 in all          4.00 s
09:00:06 b
09:00:09 network         2.00 s
09:00:09 in all          2.00 s
"""


def test_a_stage_is_reported_once_it_has_ended_without_an_error() -> None:
    reported: list[tuple[Stage, float]] = []
    with observed_by(lambda stage, seconds: reported.append((stage, seconds))):
        with timed(Stage.READ):
            assert reported == []
        with pytest.raises(ValueError), timed(Stage.NETWORK):  # noqa: PT011
            raise ValueError
    with timed(Stage.MAPS):
        pass
    assert [stage for stage, _ in reported] == [Stage.READ]
    assert 0 <= reported[0][1] < 10


def test_scans_that_are_scored_in_two_threads_do_not_report_to_each_other() -> None:
    reported: list[Stage] = []

    def another() -> None:
        with timed(Stage.MAPS):
            pass

    with observed_by(lambda stage, _: reported.append(stage)):
        thread = Thread(target=another)
        thread.start()
        thread.join()
    assert reported == []


def test_nothing_is_logged_unless_a_caller_asks_for_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), timed(Stage.READ):
        pass
    assert caplog.records == []


def test_the_log_line_names_stage_and_seconds_in_columns() -> None:
    assert stage_line(Stage.READ, 1.234) == "read            1.23 s"
    assert parse_stage_line("12:00:00 read            1.23 s") == (Stage.READ, 1.23)
    assert parse_stage_line("12:00:00 in all          1.23 s") is None
    assert parse_stage_line("12:00:00 a patient of 3 s") is None


def test_the_benchmark_counts_each_stage_of_the_log() -> None:
    assert logged_stages(LOG) == {
        Stage.WEIGHTS: 1.5,
        Stage.READ: 0.25,
        Stage.PLAUSIBILITY: 0.75,
        Stage.NETWORK: 5.0,
    }
