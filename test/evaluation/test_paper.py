"""The paper as a test: its own label pairs, rebuilt from its confusion matrices, give the figures that it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluate import main
from test.evaluation.paper import (
    CLASSIFICATION_CLE,
    CLASSIFICATION_PSE,
    HUMPHRIES_CLE,
    MISPRINTS,
    PRECISION_AND_RECALL,
    REGRESSION_CLE,
    REGRESSION_CLE_AS_PRINTED,
    REGRESSION_PSE,
    Matrix,
    write_scores,
)

ROUNDING = 0.0101
"""The paper rounds some figures and cuts others off after two decimals: 64.2958 is printed as 64.29, 65.3464 as 65.35."""

TABLE_2 = {
    "3a": ("centrilobular", 52.23, 51.00, 64.29, (63.16, 65.42), "good"),
    "3b": ("paraseptal", 59.12, 57.12, 42.03, (40.21, 43.85), "moderate"),
    "3c": ("centrilobular", 51.32, 49.61, 64.24, (63.14, 65.35), "good"),
    "3d": ("paraseptal", 64.62, 60.74, 52.06, (50.40, 53.73), "moderate"),
}

MATRICES = {
    "3a": CLASSIFICATION_CLE,
    "3b": CLASSIFICATION_PSE,
    "3c": REGRESSION_CLE,
    "3d": REGRESSION_PSE,
    "4": HUMPHRIES_CLE,
}


def metrics_of(folder: Path, cle: Matrix | None, pse: Matrix | None) -> dict[str, Any]:
    assert main(["--scores", str(write_scores(folder / "scores.csv", cle, pse)), "--output", str(folder)]) == 0
    return dict(json.loads((folder / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The figures of one subtype by the table that its pairs come from."""
    classification = metrics_of(tmp_path_factory.mktemp("classification"), CLASSIFICATION_CLE, CLASSIFICATION_PSE)
    regression = metrics_of(tmp_path_factory.mktemp("regression"), REGRESSION_CLE, REGRESSION_PSE)
    humphries = metrics_of(tmp_path_factory.mktemp("humphries"), HUMPHRIES_CLE, None)
    return {
        "3a": classification["centrilobular"],
        "3b": classification["paraseptal"],
        "3c": regression["centrilobular"],
        "3d": regression["paraseptal"],
        "4": humphries["centrilobular"],
    }


@pytest.mark.parametrize("table", TABLE_2)
def test_table_2_comes_out_of_table_3(metrics: dict[str, dict[str, Any]], table: str) -> None:
    _, accuracy, f_measure, kappa, interval, word = TABLE_2[table]
    figures = metrics[table]
    assert figures["n"] == 7143
    assert 100 * figures["accuracy"] == pytest.approx(accuracy, abs=ROUNDING)
    assert 100 * figures["f_measure"] == pytest.approx(f_measure, abs=ROUNDING)
    assert 100 * figures["linear_weighted_kappa"] == pytest.approx(kappa, abs=ROUNDING)
    assert [100 * end for end in figures["linear_weighted_kappa_ci95"]] == pytest.approx(interval, abs=ROUNDING)
    assert figures["agreement"] == word


def test_the_humphries_algorithm_has_the_accuracy_and_kappa_of_table_2(metrics: dict[str, dict[str, Any]]) -> None:
    figures = metrics["4"]
    assert 100 * figures["accuracy"] == pytest.approx(45.21, abs=ROUNDING)  # Table 4
    assert round(100 * figures["accuracy"]) == 45
    assert round(100 * figures["linear_weighted_kappa"]) == 60
    assert figures["agreement"] == "moderate"


@pytest.mark.parametrize("table", PRECISION_AND_RECALL)
def test_precision_and_recall_of_every_grade_come_out_as_printed(metrics: dict[str, dict[str, Any]], table: str) -> None:
    for kind, printed in zip(("precision", "recall"), PRECISION_AND_RECALL[table], strict=True):
        expected = [MISPRINTS.get((table, kind, grade), value) for grade, value in enumerate(printed)]
        found = [100 * grade[kind] for grade in metrics[table]["per_grade"]]
        assert found == pytest.approx(expected, abs=ROUNDING), kind


@pytest.mark.parametrize("table", MATRICES)
def test_the_confusion_matrix_comes_back(metrics: dict[str, dict[str, Any]], table: str) -> None:
    assert metrics[table]["confusion_matrix"] == [list(row) for row in MATRICES[table]]


def test_table_3c_as_printed_differs_from_table_2_by_its_missing_case_alone(tmp_path: Path) -> None:
    figures = metrics_of(tmp_path, REGRESSION_CLE_AS_PRINTED, REGRESSION_PSE)["centrilobular"]
    assert figures["n"] == 7142
    assert 100 * figures["accuracy"] == pytest.approx(51.32, abs=0.02)
    assert 100 * figures["f_measure"] == pytest.approx(49.61, abs=0.02)
    assert 100 * figures["linear_weighted_kappa"] == pytest.approx(64.24, abs=0.03)


def test_critical_errors_are_those_that_the_text_counts(metrics: dict[str, dict[str, Any]]) -> None:
    """Results, "In the extreme cases": absent read as advanced once; absent read as substantial, or the reverse."""
    counts = {table: round(metrics[table]["critical_errors"] * 7143) for table in TABLE_2}
    assert counts == {"3a": 1, "3b": 205 + 181, "3c": 0, "3d": 97 + 104}


def test_the_tables_have_the_papers_layout(tmp_path: Path) -> None:
    metrics_of(tmp_path, CLASSIFICATION_CLE, CLASSIFICATION_PSE)
    markdown = (tmp_path / "tables.md").read_text()
    assert "| Method | Subtype | ACC (%) | F-measure | Linear weighted kappa (95% CI) |" in markdown
    assert "| scores | Paraseptal | 59.12 | 57.12 | 42.03 (40.21\N{EN DASH}43.85) |" in markdown
    assert "| Absent | 1621 | 530 | 259 | 21 | 0 | 0 | 66.68 |" in markdown
    assert "| Recall (%) | 65.02 | 50.51 | 54.40 | 59.12 (ACC%) |" in markdown
    latex = (tmp_path / "tables.tex").read_text()
    assert r"scores & Paraseptal & 59.12 & 57.12 & 42.03 (40.21--43.85) \\" in latex
    assert r"Recall (\%) & 65.02 & 50.51 & 54.40 & 59.12 (ACC\%) \\" in latex
