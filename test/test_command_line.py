"""What all command lines share: whole numbers, exit codes, and the CPUs that a process may use."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import pytest

import evaluate
from model.command_line import exit_code, granted_cpus, whole_number
from model.errors import InputError


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("7", 7), ("007", 7), ("-0", 0)])
def test_a_whole_number_is_taken(text: str, number: int) -> None:
    assert whole_number(0)(text) == number


@pytest.mark.parametrize("text", ["-1", "²", "--5", "1.0", "1e3", " 1", "1\n", "1_000", "٣", "", "many"])
def test_what_is_no_whole_number_in_the_range_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r": expected a whole number of at least 0$"):
        whole_number(0)(text)


def test_a_number_above_the_largest_is_refused() -> None:
    port = whole_number(1, 65535)
    assert (port("1"), port("65535")) == (1, 65535)
    for text in ("0", "65536"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': expected a whole number from 1 to 65535"):
            port(text)


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8), (None, 8)]
)
def test_a_container_uses_the_cpus_that_it_is_granted(quota: str | None, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path) -> str:
        assert str(path) == "/sys/fs/cgroup/cpu.max"
        if quota is None:
            raise FileNotFoundError(path)
        return f"{quota}\n"

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(Path, "read_text", read_text)
    assert granted_cpus() == cpus
    assert evaluate.build_parser().parse_args([]).workers == min(cpus, 4)


def test_a_command_ends_with_one_line_for_an_input_and_for_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    output = Path("out")
    codes: list[int | None] = [None, 0, 1, 2]
    assert [exit_code(partial(codes.pop, 0), output) for _ in range(4)] == [0, 0, 1, 2]
    assert exit_code(lambda: fail(InputError("a.mha", "it is empty", "a scan")), output) == 2
    assert exit_code(lambda: fail(OSError(28, "No space left on device"))) == 1
    assert exit_code(lambda: fail(OSError(28, "No space left on device")), output) == 1
    assert exit_code(lambda: fail(OSError(28, "No space left on device", "out/b\nc.csv")), output) == 1
    assert capsys.readouterr().err.splitlines() == [
        "a.mha: it is empty; expected a scan",
        "[Errno 28] No space left on device",
        "out: [Errno 28] No space left on device",
        r"[Errno 28] No space left on device: 'out/b\nc.csv'",
    ]
    with pytest.raises(RuntimeError):
        exit_code(lambda: fail(RuntimeError("a mistake of ours")), output)
