"""The command as users call it: files in, files out."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluate import main
from test.conftest import ROOT
from test.evaluation.results import write_predictions, write_results, write_simulated_reference

REFERENCE = {"a": (0.0, 0.0), "b": (2.0, 0.5), "c": (7.0, 3.0), "d": (15.0, 9.0), "e": (40.0, 2.0)}
OURS = {"a": (0.5, 0.0), "b": (6.0, 0.0), "c": (8.0, 4.0), "d": (18.0, 6.0), "e": (28.0, 0.0)}
THEIRS = {"a": (2.0, 6.0), "b": (2.5, 0.0), "c": (8.0, 0.0), "d": (30.0, 6.0), "e": (28.0, 0.0)}
FILES = {
    "metrics.json",
    "tables.md",
    "tables.tex",
    *(f"{kind}-{subtype}.{suffix}" for kind in ("confusion", "bland-altman") for subtype in ("centrilobular", "paraseptal")
      for suffix in ("png", "svg")),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference and two results on the same cases."""
    root = tmp_path_factory.mktemp("evaluate")
    write_simulated_reference(root / "reference.csv", REFERENCE)
    write_predictions(root / "ours", OURS)
    write_predictions(root / "theirs", THEIRS)
    return root


def run(root: Path, output: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = ["--predictions", str(root / "ours"), "--reference", str(root / "reference.csv"), "--output", str(output)]
    code = main([*command, "--resamples", "500", *arguments])
    metrics = output / "metrics.json"
    return code, json.loads(metrics.read_text()) if metrics.exists() else {}


@pytest.fixture(scope="module")
def compared(root: Path) -> tuple[Path, dict[str, Any]]:
    """One result against the other: the output folder, and what is in its metrics."""
    arguments = ("--against", str(root / "theirs"), "--method", "Ours & co", "--against-method", "theirs_2")
    code, metrics = run(root, root / "compared", *arguments)
    assert code == 0
    return root / "compared", metrics


def test_one_command_writes_metrics_tables_and_pictures(compared: tuple[Path, dict[str, Any]]) -> None:
    output, metrics = compared
    assert {path.name for path in output.iterdir()} == FILES
    assert metrics["cases"] == {"paired": 5, "not_predicted": [], "not_in_reference": []}
    assert metrics["bootstrap"] == {"seed": 0, "resamples": 500}
    assert (metrics["method"], metrics["reference"]) == ("Ours & co", "simulated truth")
    centrilobular = metrics["centrilobular"]
    assert centrilobular["n"] == 5
    assert centrilobular["accuracy"] == pytest.approx(3 / 5)  # b is mild instead of trace, e confluent instead of advanced
    assert centrilobular["off_by_one"] == pytest.approx(2 / 5)
    assert centrilobular["percentages"]["mean_absolute_error_points"] == pytest.approx((0.5 + 4 + 1 + 3 + 12) / 5)
    assert metrics["paraseptal"]["accuracy"] == pytest.approx(4 / 5)


def test_pictures_are_pictures(compared: tuple[Path, dict[str, Any]]) -> None:
    output, _ = compared
    for path in output.glob("*.png"):
        with Image.open(path) as image:
            assert image.width == 2100, path  # a column of 3.5 inches at 600 dots an inch
            assert np.asarray(image.convert("L")).min() < 50, path  # something is drawn
    for path in output.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg"), path


def test_another_result_on_the_same_cases_is_compared(compared: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = compared
    against = metrics["against"]
    assert against["method"] == "theirs_2"
    assert against["centrilobular"]["accuracy"] == pytest.approx(2 / 5)
    difference = against["difference"]["centrilobular"]
    assert difference["accuracy"] == pytest.approx(1 / 5)
    low, high = difference["accuracy_ci95"]
    assert -0.6 <= low <= 0.2 <= high <= 1
    kappas = [part["linear_weighted_kappa"] for part in (metrics["centrilobular"], against["centrilobular"])]
    assert difference["linear_weighted_kappa"] == pytest.approx(kappas[0] - kappas[1])


def test_tables_name_both_methods_and_escape_what_latex_would_read(compared: tuple[Path, dict[str, Any]]) -> None:
    output, _ = compared
    markdown, latex = ((output / name).read_text(encoding="utf-8") for name in ("tables.md", "tables.tex"))
    assert "| Ours & co | Centrilobular | 60.00 |" in markdown
    assert "| theirs_2 | Centrilobular | 40.00 |" in markdown
    assert r"Ours \& co & Centrilobular & 60.00 &" in latex
    assert r"theirs\_2 & Centrilobular & 40.00 &" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == markdown.count("**Table ") == 7
    for line in latex.splitlines():
        assert line.isascii()
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert "%" not in line.replace(r"\%", "")


def test_the_same_input_gives_the_same_bytes(root: Path, compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    arguments = ("--against", str(root / "theirs"), "--method", "Ours & co", "--against-method", "theirs_2")
    assert run(root, tmp_path, *arguments)[0] == 0
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (compared[0] / name).read_bytes(), name


def test_without_percentages_there_is_no_bland_altman_plot_and_an_earlier_one_goes(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bland-altman-centrilobular.png").write_bytes(b"of an earlier run")
    (tmp_path / "out/mine.txt").write_text("kept")
    lines = ["entity,centrilobular,paraseptal", *(f"{entity},1,1" for entity in REFERENCE)]
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    code, metrics = run(root, tmp_path / "out", "--reference", str(tmp_path / "scores.csv"))
    assert code == 0
    assert metrics["centrilobular"]["percentages"] is None
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {name for name in FILES if "bland" not in name} | {"mine.txt"}


def test_files_that_an_evaluation_does_not_write_are_kept_and_an_input_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "confusion-scores.csv"
    rows = [f"{entity},{k % 3},{k % 2},{k % 3},{k % 2}" for k, entity in enumerate(REFERENCE)]
    header = "entity,cle_reference,pse_reference,cle_predicted,pse_predicted"
    scores.write_text("\n".join([header, *rows]))
    (tmp_path / "bland-altman-notes.txt").write_text("mine")
    assert main(["--scores", str(scores), "--output", str(tmp_path), "--resamples", "50"]) == 0
    assert {"confusion-scores.csv", "bland-altman-notes.txt", "metrics.json"} <= {path.name for path in tmp_path.iterdir()}
    capsys.readouterr()
    metrics = tmp_path / "metrics.json"
    assert main(["--scores", str(metrics), "--output", str(tmp_path)]) == 2
    assert "metrics.json: the output folder" in capsys.readouterr().err
    assert metrics.is_file()


def test_cases_on_one_side_alone_are_refused_and_leave_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_predictions(tmp_path / "some", {entity: OURS[entity] for entity in "abc"} | {"x": (1.0, 1.0)})
    write_results(tmp_path / "some/d", [{"entity": "d", "error_messages": ["d.mha: the file is empty"]}])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.json").write_text("{}")
    arguments = ("--predictions", str(tmp_path / "some"))
    assert run(root, tmp_path / "out", *arguments) == (2, {})
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no result for 2 scans: d (d.mha: the file is empty), e; not in " in error
    assert list((tmp_path / "out").iterdir()) == []

    code, metrics = run(root, tmp_path / "out", *arguments, "--allow-missing")
    assert code == 0
    assert metrics["cases"] == {"paired": 3, "not_predicted": ["d", "e"], "not_in_reference": ["x"]}
    assert metrics["centrilobular"]["n"] == 3


def test_a_subtype_that_no_case_has_is_told_as_none(tmp_path: Path) -> None:
    rows = ["entity,cle_reference,cle_predicted,pse_reference,pse_predicted", "a,1,1,,", "b,2,3,,1", "c,0,0,1,"]
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    assert main(["--scores", str(tmp_path / "scores.csv"), "--output", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["centrilobular"]["n"] == 3
    assert metrics["paraseptal"] == {"n": 0, "percentages": None}
    assert not (tmp_path / "out/confusion-paraseptal.png").exists()
    dash = "\N{EN DASH}"
    assert f"| scores | Paraseptal | {dash} | {dash} | {dash} |" in (tmp_path / "out/tables.md").read_text()


def test_a_table_to_compare_with_must_have_the_same_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "entity,cle_reference,cle_predicted,pse_reference,pse_predicted"
    for name, row in (("ours", "a,1,1,2,2"), ("same", "a,1,3,2,0"), ("other", "a,2,1,2,2")):
        (tmp_path / f"{name}.csv").write_text(f"{header}\n{row}\n")
    command = ["--scores", str(tmp_path / "ours.csv"), "--output", str(tmp_path / "out"), "--against"]
    assert main([*command, str(tmp_path / "same.csv")]) == 0
    assert main([*command, str(tmp_path / "other.csv")]) == 2
    assert "other.csv: another reference for a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--predictions", "p"], "--predictions and --reference go together"),
        (["--reference", "r.csv"], "--predictions and --reference go together"),
        (["--scores", "s.csv", "--reference", "r.csv"], "--scores goes without"),
        (["--truth", "t"], "--truth goes with --predictions"),
        (["--scores", "s.csv", "--input", "i"], "--input and --ground-truth go without --predictions and --scores"),
        (["--predictions", "p", "--reference", "r.csv", "--ground-truth", "g"], "--input and --ground-truth go without"),
        (["--input", "i", "--method", "m"], "--method goes with --predictions or --scores"),
        (["--scores", "s.csv", "--against-method", "m"], "--against-method goes with --against"),
        (["--scores", "s.csv", "--seed", "-1"], "--seed: '-1': expected a whole number of at least 0"),
        (["--scores", "s.csv", "--resamples", "0"], "--resamples: '0': expected a whole number of at least 1"),
        (["--scores", "s.csv", "--workers", "0"], "--workers: '0': expected a whole number of at least 1"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--output", "never"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not Path("never").exists()


def test_an_output_that_cannot_be_written_is_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(root, tmp_path / "file")[0] == 2
    assert "the output folder cannot be written" in capsys.readouterr().err


def test_evaluation_needs_no_torch() -> None:
    """The image has none."""
    code = "import sys, evaluate, model.evaluation.baselines, model.evaluation.figures; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
