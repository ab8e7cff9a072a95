"""The bundle that ships, on simulated cases that it never saw: as recorded, and near the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.fleischner import SUBTYPES
from test.record_bundle import CASES, EXPECTED, described

TOLERANCE = 0.02
"""Points of the percentage, and Dice: as far apart are processors and precisions."""

LARGEST_ERROR = {"cle": 6.0, "pse": 5.0}
"""Points of the percentage; what is expected of a whole cohort stands in weights/README.md."""


@pytest.fixture(scope="module", params=[1, pytest.param(CASES, marks=pytest.mark.slow)], ids=["one case", "all"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the first case, or of all that are recorded."""
    folder: Path = tmp_path_factory.mktemp("shipped") / "cohort"
    return described(folder, request.param)


def test_scores_and_percentages_are_as_recorded(found: dict[str, Any]) -> None:
    expected = json.loads(EXPECTED.read_text())
    assert (found["bundle"], found["sha256"]) == (expected["bundle"], expected["sha256"])
    assert len(expected["cases"]) == CASES
    assert list(found["cases"]) == list(expected["cases"])[: len(found["cases"])]
    for entity, figures in found["cases"].items():
        for subtype, measured in figures.items():
            recorded = expected["cases"][entity][subtype]
            if _is_near_a_threshold(subtype, recorded["percentage"]):
                measured = measured | {"score": recorded["score"]}
            assert measured == pytest.approx(recorded, abs=TOLERANCE), (entity, subtype)


def _is_near_a_threshold(abbreviation: str, percentage: float) -> bool:
    """Another processor may compute the other score there."""
    (grades,) = (subtype.grades for subtype in SUBTYPES if subtype.abbreviation == abbreviation)
    return any(abs(percentage - grade.lower) <= TOLERANCE for grade in grades)


def test_percentages_and_places_are_near_the_truth(found: dict[str, Any]) -> None:
    for figures in found["cases"].values():
        for subtype, measured in figures.items():
            assert abs(measured["percentage"] - measured["true_percentage"]) < LARGEST_ERROR[subtype]
            if measured["true_percentage"] > 10:
                assert measured["dice"] > 0.5
            # Some of the eight true percentages lie near a threshold.
            assert abs(measured["score"] - measured["true_score"]) <= 1
