"""The numbers in docs/trust.md are those of the tests that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from test.conftest import ROOT
from test.trust.test_fuzz import FAMILIES

PAGE = (ROOT / "docs/trust.md").read_text(encoding="utf-8")


def test_the_families_of_mutated_inputs_are_those_of_the_fuzz_tests() -> None:
    stated = re.findall(r"^\| (\w+) \| (\d+) \|", PAGE, re.MULTILINE)
    assert dict(stated) == {name: str(count) for name, (count, _) in FAMILIES.items()}
    assert sum(int(count) for _, count in stated) >= 500


@pytest.mark.slow
def test_every_file_that_is_named_holds_as_many_tests_as_is_said() -> None:
    stated = {file: int(count) for file, count in re.findall(r"\| `(test/[\w/]+\.py)` \| (\d+) \|", PAGE)}
    assert len(stated) >= 7
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "slow or not slow",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        *stated,
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout
    found = Counter(line.partition("::")[0] for line in listed.splitlines() if "::" in line)
    assert dict(found) == stated
