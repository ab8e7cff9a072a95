from __future__ import annotations

import pytest

from model.evaluation.workers import Outcome, map_isolated
from test.evaluation.jobs import answer


@pytest.mark.parametrize("workers", [1, 3])
def test_a_call_that_crashes_or_fails_takes_no_other_with_it(workers: int) -> None:
    outcomes = map_isolated(answer, ["a", "killed", "input", "b", "exits", "bug", "c"], workers)
    assert outcomes == [
        Outcome("aa"),
        Outcome(None, "its process ended with exit code -9"),
        Outcome(None, "x.mha: the file is empty; expected an image", is_input=True),
        Outcome("bb"),
        Outcome(None, "its process ended with exit code 3"),
        Outcome(None, "KeyError: 'never\\nmind'"),
        Outcome("cc"),
    ]


def test_processes_that_end_at_once_keep_their_own_exit_codes() -> None:
    outcomes = map_isolated(answer, ["exits"] * 100, 8)
    assert outcomes == [Outcome(None, "its process ended with exit code 3")] * 100
