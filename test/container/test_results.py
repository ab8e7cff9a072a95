"""The shape of `results.json`: to JSON, back, and as the schema that users have."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.container.results import failed_result, parse_results, read_results, results_text, schema_text
from model.errors import InputError
from model.fleischner import CENTRILOBULAR, PARASEPTAL
from test.conftest import ROOT
from test.container.schema import SCHEMA, problems

REGION = {"cle_percentage": 20.5, "pse_percentage": 6.0, "laa950_percentage": 18.25, "perc15_hu": -960, "volume_ml": 2600}
REGRESSION = {
    "entity": "Größe 1",
    "metrics": {
        "cle_severity_score": 3,
        "cle_severity": "moderate",
        "cle_percentage": 14.2,
        "pse_severity_score": 1,
        "pse_severity": "mild",
        "pse_percentage": 3.1,
        "laa950_percentage": 16.9,
        "perc15_hu": -957,
        "lung_volume_ml": 5266,
        "regions": {"right": REGION, "left": REGION | {"pse_percentage": 0.0}},
    },
    "provenance": {
        "bundle": "a",
        "sha256": "0f",
        "trained_on": "nothing",
        "profile": "paper",
        "lung_mask_source": "given",
        "version": "0.1.0",
        "device": "cpu",
        "precision": "bfloat16",
        "validated_on": "500 scans of a hospital",
    },
    "warnings": ["One lung."],
    "error_messages": [],
}
CLASSIFICATION = {
    "entity": "b",
    "metrics": {
        "cle_severity_score": 0,
        "cle_severity": "absent",
        "cle_percentage": None,
        "cle_probabilities": [0.9, 0.1, 0.0, 0.0, 0.0, 0.0],
        "pse_severity_score": 2,
        "pse_severity": "substantial",
        "pse_percentage": None,
        "pse_probabilities": [0.1, 0.1, 0.8],
        "laa950_percentage": 1.0,
        "perc15_hu": -900,
        "lung_volume_ml": 4000,
        "regions": {"both": {"cle_percentage": None, "pse_percentage": None, "laa950_percentage": 1.0}},
    },
    "provenance": {"bundle": "b", "trained_on": "nothing", "version": "0.1.0"},
    "warnings": [],
    "error_messages": [],
}
CLASSIFICATION["metrics"]["regions"]["both"] |= {"perc15_hu": -900, "volume_ml": 4000}  # type: ignore[index]
FAILURE = {"entity": "c", "warnings": [], "error_messages": ["c.mha: the file is empty"]}
NO_RUN = {"entity": None, "warnings": [], "error_messages": ["weights: no bundle"]}
ALL = [REGRESSION, CLASSIFICATION, FAILURE, NO_RUN]


def written(folder: Path, documents: Any) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(documents, indent=2) + "\n", encoding="utf-8")
    return path


def test_what_is_read_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, ALL)
    assert results_text(read_results(path)) == path.read_text()


def test_readers_find_scores_by_subtype(tmp_path: Path) -> None:
    metrics = read_results(written(tmp_path, [REGRESSION]))[0].metrics
    assert metrics is not None
    found = [metrics.of(subtype) for subtype in (CENTRILOBULAR, PARASEPTAL)]
    assert [(score.score, score.severity, score.percentage) for score in found] == [(3, "moderate", 14.2), (1, "mild", 3.1)]
    assert metrics.regions["left"].pse_percentage == 0


def test_a_failure_says_why_and_has_no_metrics() -> None:
    assert json.loads(results_text([failed_result("c.mha: the file is empty", "c")])) == [FAILURE]
    assert json.loads(results_text([failed_result("weights: no bundle")])) == [NO_RUN]


def test_files_of_other_versions_are_read(tmp_path: Path) -> None:
    """Earlier ones have no warnings in failures; later ones may have fields that this one does not know."""
    later = REGRESSION | {"scanner": {"kernel": "B50f"}}
    (scored, failed) = read_results(written(tmp_path, [later, {"entity": "c", "error_messages": ["no"]}]))
    assert scored.metrics is not None
    assert failed.warnings == ()


def test_weights_that_were_not_validated_are_told_by_the_lack_of_the_field(tmp_path: Path) -> None:
    """Or by null, which other writers may set."""
    null = changed("provenance.bundle", "b")
    null["provenance"]["validated_on"] = None
    results = read_results(written(tmp_path, [REGRESSION, CLASSIFICATION, null]))
    assert [result.provenance.validated_on for result in results if result.provenance] == [
        "500 scans of a hospital",
        None,
        None,
    ]
    assert "validated_on" not in json.loads(results_text(results[1:]))[1]["provenance"]


def changed(place: str, value: Any = None) -> dict[str, Any]:
    """The regression result with one field changed, or left out."""
    document = copy.deepcopy(REGRESSION)
    *parents, name = place.split(".")
    part: Any = document
    for parent in parents:
        part = part[parent]
    if value is None:
        del part[name]
    else:
        part[name] = value
    return document


WRONG = [
    (changed("metrics.pse_severity_score", 3), "metrics.pse_severity_score is 3, expected integer, minimum 0, maximum 2"),
    (changed("metrics.cle_severity_score", 2.5), "metrics.cle_severity_score is 2.5"),
    (changed("metrics.cle_severity_score", True), "metrics.cle_severity_score is True"),
    (changed("metrics.cle_severity", "mild-ish"), "metrics.cle_severity is 'mild-ish'"),
    (changed("metrics.cle_percentage", 100.5), "metrics.cle_percentage is 100.5"),
    (changed("metrics.lung_volume_ml", "5 l"), "metrics.lung_volume_ml is '5 l'"),
    (changed("metrics.perc15_hu"), "metrics.perc15_hu is missing"),
    (changed("metrics.regions.left.volume_ml", -1), "metrics.regions.left.volume_ml is -1"),
    (changed("metrics.regions", [1]), "metrics.regions is [1]"),
    (changed("provenance.lung_mask_source", "found"), "provenance.lung_mask_source is 'found'"),
    (changed("provenance.validated_on", 500), "provenance.validated_on is 500"),
    (changed("provenance"), "metrics without provenance"),
    (changed("warnings", ["one", 2]), "warnings[1] is 2"),
    (changed("metrics", 3), "metrics: 3 is no object"),
    ({"entity": "Größe 1", "warnings": [], "error_messages": []}, "neither metrics nor error_messages"),
    ({"error_messages": ["no"], "warnings": []}, "entity is missing"),
]


@pytest.mark.parametrize(("document", "problem"), WRONG, ids=[problem for _, problem in WRONG])
def test_what_is_wrong_is_named_by_its_place_and_refused_by_the_schema_too(
    tmp_path: Path, document: dict[str, Any], problem: str
) -> None:
    path = written(tmp_path, [FAILURE, document])
    results, found = parse_results(path)
    assert len(results) == 1
    assert found[0].startswith(f"{document.get('entity', 'result 2')}: {problem}")
    with pytest.raises(InputError) as caught:
        read_results(path)
    assert found[0] in str(caught.value)
    assert problems([FAILURE]) == []
    assert problems([document]) != []


@pytest.mark.parametrize("content", ['{"entity": "a"}', "3", "[{", "[" * 100_000])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json: .* expected a list of results"):
        read_results(tmp_path / "results.json")


def test_a_percentage_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    """Python's json reads NaN, which JSON does not know."""
    text = json.dumps([REGRESSION]).replace("14.2", "NaN")
    (tmp_path / "results.json").write_text(text)
    assert parse_results(tmp_path / "results.json")[1][0].startswith("Größe 1: metrics.cle_percentage is nan")


def test_the_schema_describes_every_kind_of_result() -> None:
    assert problems(ALL) == []


def test_the_schema_in_the_documents_is_that_of_the_code() -> None:
    """`python -m model.container.results` writes it."""
    assert SCHEMA.read_text(encoding="utf-8") == schema_text()


def test_every_field_has_a_description_and_is_described_once() -> None:
    definitions = json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]
    assert set(definitions) == {"CaseResult", "Metrics", "Provenance", "Quality", "RegionMetrics"}
    for definition in definitions.values():
        assert all(field["description"] for field in definition["properties"].values())
    assert set(definitions["Metrics"]["properties"]) == set(REGRESSION["metrics"]) | set(CLASSIFICATION["metrics"])


def test_reading_results_imports_nothing_that_takes_seconds() -> None:
    slow = {"torch", "evalutils", "pandas", "scipy", "numpy", "SimpleITK"}
    code = f"import sys, model.container.results; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
