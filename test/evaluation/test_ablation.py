from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.ablation import main, table_5
from benchmark.complexity import TABLE_5, Complexity
from model.cohort.readings import read_pairs
from model.evaluation.agreement import Bootstrap
from model.evaluation.report import make_report
from test.evaluation.paper import REGRESSION_CLE, REGRESSION_PSE, write_scores
from test.training.cohort import row, write_manifest, write_phantom


def test_the_table_has_the_rows_and_figures_of_table_5(tmp_path: Path) -> None:
    """The row of ResNet34 in Table 5 b; its kappas are printed as 64.24 (63.14-65.35) and 52.06 (50.40-53.73)."""
    report = make_report(*read_pairs(write_scores(tmp_path / "s.csv", REGRESSION_CLE, REGRESSION_PSE)), Bootstrap(0, 10))
    parameters, gmacs = TABLE_5["resnet34", "regression"]
    table = table_5("regression", [(Complexity("resnet34", "regression", round(parameters * 1e6), gmacs), report)])
    dash = "\N{EN DASH}"
    assert table.rows == (
        ("ResNet34", "Centrilobular", "51.32", "49.61", f"64.25 (63.14{dash}65.35)", "64.79", "1661.72"),
        ("", "Paraseptal", "64.62", "60.74", f"52.07 (50.41{dash}53.73)", "", ""),
    )


def test_a_manifest_without_cases_to_evaluate_on_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for entity in "ab":
        write_phantom(tmp_path, entity, 20.0)
    manifest = write_manifest(tmp_path / "m.csv", [row("a", 1, 0, "train"), row("b", 1, 0, "validation")])
    assert main(["--manifest", str(manifest), "--output", str(tmp_path / "runs")]) == 2
    assert "no row has the split test; expected cases to evaluate on, or another --split" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_both_strategies_are_trained_and_evaluated_and_a_second_call_trains_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for entity, radius_mm in (("a", 20.0), ("b", 36.0), ("c", 40.0)):
        write_phantom(tmp_path, entity, radius_mm)
    rows = [row("a", 1, 0, "train"), row("b", 2, 0, "validation"), row("c", 3, 0, "test")]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    command = ["--manifest", str(manifest), "--output", str(tmp_path / "runs"), "--base-width", "2", "--device", "cpu"]
    command += ["--backbones", "resnet18", "--epochs", "1", "--batch", "1", "--workers", "0"]
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert printed.count("| ResNet18 | Centrilobular | ") == 2
    metrics = json.loads((tmp_path / "runs/metrics.json").read_text())
    assert set(metrics) == {"classification-resnet18", "regression-resnet18"}
    assert all(figures["centrilobular"]["n"] == 1 for figures in metrics.values())
    bundles = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/bundle/bundle.json")}
    assert len(bundles) == 2

    assert main(command) == 0
    assert capfd.readouterr().out.startswith("**Table 1.** Classification networks")
    assert {path: path.stat().st_mtime_ns for path in bundles} == bundles
