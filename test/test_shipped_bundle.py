"""The bundle that ships, on simulated cases that it never saw: as recorded, and near the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from test.record_bundle import EXPECTED, described

LARGEST_ERROR = {"cle": 6.0, "pse": 5.0}
"""Points of the percentage; what is expected of a whole cohort stands in weights/README.md."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("shipped") / "cohort"
    return described(folder)


def test_scores_and_percentages_are_as_recorded(found: dict[str, Any]) -> None:
    expected = json.loads(EXPECTED.read_text())
    assert (found["bundle"], found["sha256"]) == (expected["bundle"], expected["sha256"])
    assert found["cases"].keys() == expected["cases"].keys()
    for entity, figures in expected["cases"].items():
        for subtype, recorded in figures.items():
            measured = found["cases"][entity][subtype]
            assert measured == pytest.approx(recorded, abs=0.02), (entity, subtype)


def test_percentages_and_places_are_near_the_truth(found: dict[str, Any]) -> None:
    for figures in found["cases"].values():
        for subtype, measured in figures.items():
            assert abs(measured["percentage"] - measured["true_percentage"]) < LARGEST_ERROR[subtype]
            if measured["true_percentage"] > 10:
                assert measured["dice"] > 0.5
            # Some of the eight true percentages lie near a threshold.
            assert abs(measured["score"] - measured["true_score"]) <= 1
