from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import evaluate
from benchmark.ablation import (
    Scored,
    cells_of,
    check_trained,
    figure_3,
    main,
    pictured_cases,
    rule_method,
    table_1,
    table_5,
    table_of_strata,
)
from benchmark.complexity import TABLE_5, Complexity
from model.cohort.manifest import read_manifest
from model.cohort.readings import Reading, Readings, read_pairs
from model.cohort.tables import Extent
from model.evaluation.agreement import Bootstrap
from model.evaluation.calibrated_rule import CalibratedRule, Line
from model.evaluation.report import make_report
from model.imaging.scan import Scan
from model.training.export import BUNDLE_FOLDER
from model.training.options import RUN_FILE, parse
from test.evaluation.paper import REGRESSION_CLE, REGRESSION_PSE, write_scores
from test.phantom import COARSE_INPUT, Phantom, write_dark_detector
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


def write_cohort(folder: Path) -> Path:
    """Four cases with a GOLD stage each."""
    rows = []
    for entity, radius_mm, score, split, gold in (
        ("a", 20.0, 1, "train", "GOLD1"),
        ("b", 36.0, 2, "validation", "GOLD2"),
        ("c", 40.0, 3, "test", "GOLD2"),
        ("d", 20.0, 1, "test", ""),
    ):
        write_phantom(folder, entity, radius_mm)
        known = {"centrilobular_percentage": "4", "paraseptal_percentage": "0", "gold": gold}
        rows.append(row(entity, score, 0, split) | known)
    return write_manifest(folder / "m.csv", rows)


def test_table_1_counts_stages_and_scores_in_each_split(tmp_path: Path) -> None:
    manifest = read_manifest(write_cohort(tmp_path))
    gold, centrilobular, paraseptal = table_1(manifest, cells_of(manifest, "gold"))
    assert gold.header == ("GOLD stage", "train", "validation", "test")
    expected = [("GOLD1", "1", "0", "0"), ("GOLD2", "0", "1", "1"), ("not known", "0", "0", "1"), ("Total", "1", "1", "2")]
    assert list(gold.rows) == expected
    dash = "\N{EN DASH}"
    assert centrilobular.rows[1] == (f"1, trace (1{dash}5 %)", "1", "0", "1")
    counts = [cells[1:] for cells in centrilobular.rows]
    none = ("0", "0", "0")
    assert counts == [none, ("1", "0", "1"), ("0", "1", "0"), ("0", "0", "1"), none, none, ("1", "1", "2")]
    assert [cells[1:] for cells in paraseptal.rows] == [("1", "1", "2"), none, none, ("1", "1", "2")]
    assert cells_of(manifest, "age") == {}


def readings(name: str, scores: dict[str, tuple[int, int]]) -> Readings:
    cases = {entity: Reading(tuple(Extent(score, None) for score in found)) for entity, found in scores.items()}
    return Readings(Path(name), name, cases)


def test_agreement_is_split_by_the_values_of_a_column() -> None:
    truth = readings("truth", {"a": (0, 0), "b": (2, 1), "c": (4, 2)})
    found = Scored(readings("network", {"a": (0, 0), "b": (3, 1), "c": (4, 0)}), ())
    table = table_of_strata("sex", {"a": "f", "b": "f", "c": ""}, truth, [found])
    assert [cells[:5] for cells in table.rows] == [
        ("not known", "network", "Centrilobular", "1", "100.00"),
        ("not known", "network", "Paraseptal", "1", "0.00"),
        ("f", "network", "Centrilobular", "2", "50.00"),
        ("f", "network", "Paraseptal", "2", "100.00"),
    ]


def test_the_rule_s_percentages_are_those_of_its_masks_corrected_by_its_lines(lesioned: Phantom) -> None:
    scan = Scan.from_images(*lesioned.images())
    rule = CalibratedRule(0.0, -950.0, 0.0, Line(0.5, 1.0), Line(1.0, 7.0), "nothing")
    extents, masks = rule_method(rule)(scan)
    dark = 100 * float((scan.hounsfield[scan.lung] < -950).mean())
    assert extents[0].percentage == pytest.approx(0.5 * dark + 1, abs=1e-3)
    assert extents[1] == Extent(2, 7.0)
    assert masks[1].sum() == 0


def test_figure_3_shows_both_kinds_of_maps_over_the_same_slices(tmp_path: Path) -> None:
    cases = pictured_cases(read_manifest(write_cohort(tmp_path)).of("test"))
    assert [case.entity for case in cases] == ["c", "d"]
    regression = write_dark_detector(tmp_path / "regression", input_shape=COARSE_INPUT)
    classification = write_dark_detector(tmp_path / "classification", head="classification", input_shape=COARSE_INPUT)
    pixels = figure_3(cases, classification, regression, "cpu")
    tile, gap = (3 * 56 + 2 * 4, 3 * 72 + 2 * 4), 12
    assert pixels.shape == (2 * tile[0] + gap, 2 * tile[1] + gap, 3)
    left, right = pixels[: tile[0], : tile[1]], pixels[: tile[0], -tile[1] :]
    assert (left[:56] == right[:56]).all()  # the CT, in the same slices
    assert (left[60:116] != right[60:116]).any()


@pytest.mark.parametrize("more", [["--base-width", "4"], ["--base-width", "2", "--epochs", "9"]])
def test_a_bundle_of_a_run_with_other_options_is_refused(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, folder = write_cohort(tmp_path), tmp_path / "runs" / "slices-lstm"
    (folder / BUNDLE_FOLDER).mkdir(parents=True)
    shared = ["--manifest", str(manifest), "--device", "cpu"]
    first = ["--strategy", "slices-lstm", *shared, "--base-width", "2"]
    parse(["--output", str(folder), *first]).options.settled(read_manifest(manifest)).write(folder)
    check_trained(folder, read_manifest(manifest), first)  # the same options: nothing to say
    run = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps(run | {"device": "cuda", "precision": "float16"}))
    check_trained(folder, read_manifest(manifest), first)  # trained on another machine
    assert main([*shared, "--output", str(tmp_path / "runs"), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    option = more[-2].removeprefix("--").replace("-", "_")
    assert re.search(rf"its bundle is there, and {option} was \d+ and is {more[-1]}; expected the options of that run$", line)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["slices-lstm"]


@pytest.mark.slow
def test_all_methods_are_trained_and_evaluated_and_a_second_call_trains_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["--manifest", str(write_cohort(tmp_path)), "--output", str(tmp_path / "runs"), "--base-width", "2"]
    command += ["--backbones", "resnet18", "--epochs", "1", "--batch", "1", "--workers", "0", "--device", "cpu"]
    command += ["--input-shape", *map(str, COARSE_INPUT)]
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert printed.count("| ResNet18 | Centrilobular | ") == 2
    metrics = json.loads((tmp_path / "runs/metrics.json").read_text())
    methods = {"classification-resnet18", "regression-resnet18", "slices-lstm", "calibrated-rule"}
    assert set(metrics) == {*methods, "differences"}
    assert all(metrics[name]["centrilobular"]["n"] == 2 for name in methods)
    assert set(metrics["differences"]) == methods - {"regression-resnet18"}
    assert metrics["regression-resnet18"]["centrilobular"]["voxels"]["n"] == 2
    assert (tmp_path / "runs/figure-3.png").stat().st_size > 1000
    bundles = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/bundle/bundle.json")}
    assert len(bundles) == 3

    assert main(command) == 0
    assert capfd.readouterr().out.startswith("**Table 1.** GOLD stages")
    assert {path: path.stat().st_mtime_ns for path in bundles} == bundles

    rival, ours = (str(tmp_path / f"runs/scores-{name}.csv") for name in ("slices-lstm", "regression-resnet18"))
    assert evaluate.main(["--scores", ours, "--against", rival, "--output", str(tmp_path / "report")]) == 0
    document = json.loads((tmp_path / "report/metrics.json").read_text())
    assert document["against"]["difference"] == metrics["differences"]["slices-lstm"]
