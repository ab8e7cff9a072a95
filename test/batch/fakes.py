"""Scorers without a network, for runs with Ray: a case's name says what happens when it is scored or read."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from model.batch.cases import CohortCase
from model.batch.cluster import Plan, Work


def read(case: CohortCase) -> str:
    """`unreadable…` ends its worker."""
    if case.entity.startswith("unreadable"):
        os.kill(os.getpid(), signal.SIGKILL)
    return f"read {case.entity}"


class FakeScorer:
    """Notes each attempt; `poison…` ends its worker each time, `once…` the first time, `slow…` takes three seconds."""

    identity = "fake"

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def score_packed(self, case: CohortCase, packed: str) -> tuple[str, str]:
        with (self._notes / case.entity).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        attempts = len((self._notes / case.entity).read_text().splitlines())
        if case.entity.startswith("slow"):
            time.sleep(3)
        if case.entity.startswith("poison") or (case.entity.startswith("once") and attempts == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return case.entity, packed


def make_fake(_: int, notes: Path) -> FakeScorer:
    return FakeScorer(notes)


def fake_work(notes: Path) -> Work:
    return Work(read, partial(make_fake, notes=notes))


def one_for_each_node(nodes: Sequence[Mapping[str, float]]) -> Plan:
    """For nodes of one CPU, with room for a reader on each."""
    return Plan(len(nodes), 0.5, 0.0, 1, 1, 0.25)
