"""The scripts in `benchmark/` refuse in one line what they cannot measure, and print no figure of a run that failed."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from benchmark import counterfactuals, determinism, lungs, other_lesions, quality, real_slices, startup
from benchmark.command import timed_process
from model.command_line import exit_code
from model.errors import InputError
from model.fleischner import SUBTYPES
from model.simulation import draw_parameters, simulate
from model.simulation.scanner import Slab
from model.slices import CLASSES
from test.phantom import make_phantom
from test.training.cohort import write_volume

REFUSED = [
    ("startup", "--runs 0"),
    ("cohort", "schedule --cases 0"),
    ("cohort", "schedule --networks 0"),
    ("cohort", "evaluate --cases 0"),
    ("cohort", "throughput /nope"),
    ("counterfactuals", "--cases 0"),
    ("counterfactuals", "--csv FILE/table.csv"),
    ("determinism", "--threads 0"),
    ("forward", "--base-width 0"),
    ("inference", "--runs 0"),
    ("inference", "--many 0"),
    ("inference", "--lungs /nope --base-width 3"),
    ("int8", "layer --runs 0"),
    ("int8", "layer --threads 0"),
    ("int8", "time --input-shape 0 0 0"),
    ("int8", "time --input-shape 8 8 9"),
    ("int8", "time --base-width 3"),
    ("lungs", "/nope"),
    ("other_lesions", "--cases 0"),
    ("other_lesions", "--seed -1"),
    ("other_lesions", "--lungs /nope --csv FILE/table.csv"),
    ("placement", "--cases -1"),
    ("placement", "--manifest /nope --input-shape 8 8 9"),
    ("quality", "/nope"),
    ("quality", "/nope --cases 0"),
    ("quality", "/nope --validation -3"),
    ("real_patches", "--patches /nope --lungs /nope --picture FILE/pictures"),
    ("real_slices", "--sheet-slices -1"),
    ("real_slices", "--data /nope --csv FILE/table.csv"),
    ("real_slices", "--data /nope --csv FOLDER"),
    ("real_slices", "--data /nope --sheet FILE/sheets"),
    ("realism", "--cases 0"),
    ("realism", "--seed -1"),
    ("realism", "--patches /nope --picture FILE/pictures"),
    ("training", "--steps 0"),
    ("training", "--batch 0"),
    ("training", "--workers -1"),
    ("training", "--tile 0 0 0"),
    ("training", "--tile 63 112 144"),
    ("training", "--base-width 3"),
    ("training", "--device nothing"),
    ("viewer", "--shape 0 0 0"),
    ("viewer", "--runs 0"),
]
"""Scripts, and command lines of which the last option cannot be used."""


@pytest.mark.parametrize(("script", "line"), REFUSED)
def test_an_option_that_cannot_be_used_is_named_in_one_line(
    script: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = [word.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path)) for word in line.split()]
    try:
        code = importlib.import_module(f"benchmark.{script}").main(words)
    except SystemExit as exit_:
        code = exit_.code
    printed = capsys.readouterr()
    named = [word for word in words if word.startswith("--")][-1:] or words[-1:]
    if named[0] in ("--csv", "--sheet", "--picture"):
        named = [str(tmp_path)]
    assert (code, printed.out) == (2, "")
    assert len(printed.err.splitlines()) == 1
    assert named[0] in printed.err
    assert "expected" in printed.err or "invalid choice" in printed.err


def test_a_script_ends_with_2_for_an_input_and_with_1_for_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: fail(InputError("a.mha", "it is empty", "a scan"))) == 2
    assert exit_code(lambda: fail(OSError(28, "No space left on device", "b\nc.csv"))) == 1
    assert capsys.readouterr().err.splitlines() == [
        "a.mha: it is empty; expected a scan",
        r"[Errno 28] No space left on device: 'b\nc.csv'",
    ]


def test_the_memory_of_a_process_is_its_own() -> None:
    """Neither that of the process before it nor that of this one, which has torch."""
    large = timed_process(["-c", "block = b'x' * 300_000_000; import time; time.sleep(0.1)"])
    small = timed_process(["-c", "import time; time.sleep(0.1)"])
    assert large.memory > 300e6
    assert small.memory < 50e6


def test_a_process_that_failed_has_no_figures() -> None:
    with pytest.raises(ChildProcessError, match=r"exit code 3: there is no disk$"):
        timed_process(["-c", "import sys; print('there is no disk', file=sys.stderr); sys.exit(3)"])


def test_start_up_is_not_timed_where_the_example_case_or_the_imports_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert startup.main(["--against", str(tmp_path)]) == 2
    assert "there is no process.py; expected a checkout" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").touch()  # before one that is installed
    with pytest.raises(ChildProcessError, match="ModuleNotFoundError"):
        timed_process(["-c", startup.IMPORTS], tmp_path)
    (tmp_path / "process.py").write_text("raise SystemExit('no weights')\n")
    monkeypatch.setattr(startup, "ROOT", tmp_path)
    assert startup.main(["--runs", "1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("exit code 1: no weights\n")


def test_results_are_compared_with_float32_on_one_thread_whatever_the_threads() -> None:
    reference = ("cpu", "float32", 1)
    assert determinism.runs([2], False) == [reference, ("cpu", "float32", 2), ("cpu", "bfloat16", 2)]
    assert determinism.runs([2, 1], True)[:4] == [
        reference,
        ("cpu", "float32", 2),
        ("cpu", "bfloat16", 2),
        ("cpu", "bfloat16", 1),
    ]


def test_lungs_without_room_for_the_lesions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for radius in (1, 5):
        mask = np.zeros((30, 30, 30), np.uint8)
        mask[15 - radius : 15 + radius, 15 - radius : 15 + radius, 15 - radius : 15 + radius] = 1
        write_volume(tmp_path / "mask.mha", mask, (2.0, 2.0, 2.0))
        assert other_lesions.main(["--lungs", str(tmp_path / "mask.mha")]) == 2
        assert "% of the lungs lie deeper than 8 mm; expected lungs of an adult" in capsys.readouterr().err
    allowed = np.zeros((5, 5, 5), bool)
    allowed[2, 2, 1:4] = True
    with pytest.raises(InputError, match="4 voxels of lesions do not fit where 3 are free"):
        other_lesions.place_balls(np.argwhere(allowed), (2.0, 5.0), allowed, 4, np.random.default_rng(0))


def test_lungs_are_the_same_however_their_mask_is_turned(tmp_path: Path) -> None:
    mask = np.zeros((20, 30, 40), np.uint8)
    mask[3:12, 5:21, 8:20] = 1
    write_volume(tmp_path / "lps.mha", mask, (2.0, 2.0, 2.0))
    turned = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "lps.mha")), "RAS")
    sitk.WriteImage(turned, str(tmp_path / "ras.nii.gz"))
    lungs_found = other_lesions.read_lungs(tmp_path / "lps.mha")
    assert lungs_found.any()
    assert np.array_equal(other_lesions.read_lungs(tmp_path / "ras.nii.gz"), lungs_found)


@pytest.mark.slow
def test_a_case_with_one_thing_changed_looks_otherwise_and_has_the_same_truth() -> None:
    drawn = draw_parameters(np.random.SeedSequence(2001, spawn_key=(4,)), 3, 1)
    case, *changed = [simulate(change(drawn), Slab(0.6, 4, 2.0, 2.0)) for change in counterfactuals.CHANGES.values()]
    assert case.centrilobular.any()
    assert case.paraseptal.any()
    for other in changed:
        assert np.array_equal(other.centrilobular, case.centrilobular)
        assert np.array_equal(other.paraseptal, case.paraseptal)
        assert not np.array_equal(other.hounsfield, case.hounsfield)
    noiseless, light = changed[0], changed[3]
    lung = case.lungs > 0
    before, after = (np.abs(np.diff(ct.hounsfield[lung].astype(float))).mean() for ct in (case, noiseless))
    assert after < before
    assert light.hounsfield[lung].mean() > case.hounsfield[lung].mean() + 10


def test_what_is_measured_on_changed_cases_is_summed_up_by_change() -> None:
    rows = [
        counterfactuals.Measured(number, change, subtype.name, truth, truth + 2 * place)
        for place, change in enumerate(counterfactuals.CHANGES)
        for number, truth in enumerate((0.5, 3.0, 30.0))
        for subtype in SUBTYPES
    ]
    lines = counterfactuals.table(rows).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {change}" for change in counterfactuals.CHANGES]
    assert lines[0] == "| as drawn | 1.00 | 0.0 | +0.0 | 1.00 | 0.0 | +0.0 |"
    assert "| 2.0 | +2.0 |" in lines[1]


def test_a_cohort_that_the_validated_range_takes_whole_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a" / "truth").mkdir(parents=True)
    assert quality.main([str(tmp_path), "--validation", "1"]) == 2
    assert "of which the first 1 are for the range" in capsys.readouterr().err


def test_listed_patients_without_a_slice_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{label}.png,{label},of {label}" for label in CLASSES]
    for label in CLASSES:
        (tmp_path / f"{label}.png").touch()
    (tmp_path / "patients.csv").write_text("\n".join(["file,class,patient", *rows]) + "\n")
    listed = tmp_path / "list.txt"
    listed.write_text("of CLE\nof nobody\n")
    assert [entry.patient for entry in real_slices.chosen_slices(tmp_path, listed)] == ["of CLE"]
    assert capsys.readouterr().err == f"{listed}: 1 of 2 patients have no slice: of nobody\n"
    listed.write_text("of nobody\n")
    with pytest.raises(InputError, match="none of its 1 patients has a slice"):
        real_slices.chosen_slices(tmp_path, listed)


@pytest.mark.parametrize(
    ("patients", "text"),
    [(2, "1.000 (no interval: 2 patients of a class)"), (5, "1.000 (no interval: every sample has the same)")],
)
def test_few_patients_have_no_interval(patients: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_slices, "RESAMPLES", 20)
    rows = [
        real_slices.Measured("a", label, f"{label} {number % patients}", 9.0 * (label == "CLE"), 0.5, 1.0, 0.2)
        for label in ("CLE", "NT")
        for number in range(6)
    ]
    assert real_slices.auc_with_interval(rows, real_slices.TASKS[0], "centrilobular") == text


def test_several_cases_beside_one_truth_are_refused_before_a_table_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phantom = make_phantom()
    for name in "ab":
        for kind, array in (("ct", phantom.hounsfield), ("lung-mask", phantom.lungs)):
            folder = tmp_path / "images" / kind
            folder.mkdir(parents=True, exist_ok=True)
            write_volume(folder / f"{name}.mha", array, phantom.spacing)
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "paraseptal.mha").touch()
    assert lungs.main([str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2 cases beside one paraseptal.mha; expected one case in a folder with truth" in printed.err
