"""Imports are fast, and nothing is missing for it: scikit-learn comes when evalutils uses it, and collections go on."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from model.container.startup import imports_without_collections
from test.conftest import ROOT

LINES = """
import sys
import model.container.algorithm
print([name for name in sys.modules if name.startswith('sklearn')])
from evalutils.scorers import score_detection
found = score_detection(ground_truth=[(0.0, 0.0), (5.0, 5.0)], predictions=[(0.1, 0.0), (9.0, 9.0)], radius=1.0)
print(found.true_positives, found.false_negatives, found.false_positives)
"""


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """The two lines of a new process: scikit-learn's modules after inference was imported, then a score that needs them."""
    done = subprocess.run([sys.executable, "-c", LINES], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_inference_does_not_import_scikit_learn(printed: list[str]) -> None:
    assert printed[0] == "[]"


def test_evalutils_finds_scikit_learn_when_it_scores_detections(printed: list[str]) -> None:
    """One of two points is found, and one prediction is near none."""
    assert printed[1] == "1 1 1"


def test_collections_stop_while_importing() -> None:
    with imports_without_collections():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collections_go_on_after_imports_that_fail() -> None:
    with pytest.raises(ImportError), imports_without_collections():
        raise ImportError
    assert gc.isenabled()
