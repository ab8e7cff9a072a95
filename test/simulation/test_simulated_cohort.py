"""The command: files, table, repeatability, errors."""

from __future__ import annotations

import csv
import fcntl
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.imaging.scan import Scan
from model.simulation import NoRoomError, SimulatedCase
from model.simulation import cohort as simulated_cohort
from model.simulation.__main__ import main
from model.simulation.cohort import UNFINISHED_FILE, CohortParameters

COLUMNS = ["entity", "cle_score", "pse_score", "cle_percentage", "pse_percentage"]


def command(output: Path, *more: str, cases: int = 2) -> list[str]:
    return ["--cases", str(cases), "--seed", "380", "--output", str(output), "--grid", "example", *more]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cohort") / "made" / "here"
    assert main(command(output, "--panlobular", "4")) == 0
    return output


def rows(cohort: Path) -> list[dict[str, str]]:
    with (cohort / "reference.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> npt.NDArray[np.int16]:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_each_case_is_laid_out_as_the_platform_does_with_its_truth(cohort: Path) -> None:
    entities = [row["entity"] for row in rows(cohort)]
    expected = {"reference.csv"}
    for entity in entities:
        expected |= {f"{entity}/images/ct/{entity}.mha", f"{entity}/images/lung-mask/{entity}.mha"}
        expected |= {f"{entity}/truth/{name}.mha" for name in ("centrilobular", "paraseptal", "panlobular")}
    assert set(contents(cohort)) == expected
    assert len(set(entities)) == 2


def test_files_are_compressed_have_one_geometry_and_their_types(cohort: Path) -> None:
    for row in rows(cohort):
        folder, entity = cohort / row["entity"], row["entity"]
        ct = sitk.ReadImage(str(folder / f"images/ct/{entity}.mha"))
        assert ct.GetPixelID() == sitk.sitkInt16
        assert ct.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        for path in sorted(folder.rglob("*.mha")):
            header = path.read_bytes()[:600]
            assert b"CompressedData = True" in header
            image = sitk.ReadImage(str(path))
            assert (image.GetSize(), image.GetSpacing(), image.GetOrigin()) == (
                ct.GetSize(),
                ct.GetSpacing(),
                ct.GetOrigin(),
            )
            if path.parent.name != "ct":
                assert image.GetPixelID() == sitk.sitkUInt8
                assert set(np.unique(sitk.GetArrayViewFromImage(image))) <= {0, 1}


def test_table_holds_what_the_truth_maps_hold(cohort: Path) -> None:
    table = rows(cohort)
    assert list(table[0])[:5] == COLUMNS
    for row in table:
        folder, entity = cohort / row["entity"], row["entity"]
        lung = read(folder / f"images/lung-mask/{entity}.mha") > 0
        for name, short, subtype in (("centrilobular", "cle", CENTRILOBULAR), ("paraseptal", "pse", PARASEPTAL)):
            truth = read(folder / f"truth/{name}.mha") > 0
            percentage = 100 * truth[lung].mean()
            assert float(row[f"{short}_percentage"]) == pytest.approx(percentage, abs=1e-3)
            assert int(row[f"{short}_score"]) == subtype.score(percentage)
        assert float(row["panlobular_percentage"]) == pytest.approx(4, abs=0.05)
        for name in ("scanner.mtf50", "scanner.slice_thickness", "disease.centrilobular.lobule_spacing"):
            assert float(row[name]) > 0


def test_what_is_written_is_a_scan_that_can_be_read(cohort: Path) -> None:
    entity = rows(cohort)[0]["entity"]
    scan = Scan.read(cohort / entity / f"images/ct/{entity}.mha", cohort / entity / f"images/lung-mask/{entity}.mha")
    np.testing.assert_array_equal(scan.hounsfield, read(cohort / entity / f"images/ct/{entity}.mha"))


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_by_two_workers_and_in_a_longer_cohort(cohort: Path, tmp_path: Path) -> None:
    assert main(command(tmp_path / "again", "--panlobular", "4", "--workers", "2", cases=3)) == 0
    first, second = contents(cohort), contents(tmp_path / "again")
    assert len(second) == len(first) + 5
    for name in first:
        if name != "reference.csv":
            assert first[name] == second[name], name
    lines = [files["reference.csv"].splitlines() for files in (first, second)]
    assert lines[0] == lines[1][:3]


@pytest.mark.slow
def test_a_case_with_a_repeated_slice_and_a_mask_of_another_kind_shares_the_table_of_one_without(tmp_path: Path) -> None:
    assert main(command(tmp_path, "--seed", "321")) == 0
    first, second = rows(tmp_path)
    assert first["repeated_level"] == first["mask.airways"] == ""
    assert 0 < float(second["repeated_level"]) < 1
    assert second["mask.airways"] != ""


@pytest.mark.slow
def test_example_case_has_the_scores_asked_for_and_is_small_enough_to_ship(tmp_path: Path) -> None:
    assert main(command(tmp_path, "--cle-score", "3", "--pse-score", "1", cases=1)) == 0
    assert [(row["cle_score"], row["pse_score"]) for row in rows(tmp_path)] == [("3", "1")]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.mha")) < 4.5e6


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--cases", "0"], "at least 1"),
        (["--cases", "two"], "at least 1"),
        (["--seed", "-1"], "at least 0"),
        (["--workers", "0"], "at least 1"),
        (["--grid", "huge"], "invalid choice"),
        (["--cle-score", "6"], "invalid choice"),
        (["--pse-score", "3"], "invalid choice"),
        (["--panlobular", "nan"], "0 to 60"),
        (["--lungs", "nowhere.mha"], "no such file"),
    ],
)
def test_bad_arguments_end_with_2_one_line_and_no_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    output = tmp_path / "output"
    try:
        code = main([*command(output), *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    error = capsys.readouterr().err
    assert code == 2
    assert reason in error
    assert len(error.strip().splitlines()) == 1
    assert not output.exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert main(command(tmp_path)) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_case_that_fails_to_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: sitk.Image, path: str, **__: bool) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    assert main(command(tmp_path / "output", "--cle-score", "0", "--pse-score", "0", cases=1)) == 1
    ct = tmp_path / "output/simulated-380-00000/images/ct/simulated-380-00000.mha"
    assert capsys.readouterr().err.splitlines()[-1] == f"{ct}: the image cannot be written (disk full)"
    assert [path.name for path in (tmp_path / "output").iterdir()] == [UNFINISHED_FILE]


class Maker:
    """Makes cases without voxels, and is interrupted at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interrupted_at: int) -> None:
        self.made: list[int] = []
        self.interrupted_at = interrupted_at
        monkeypatch.setattr(simulated_cohort, "_make_and_write", self.make)

    def make(self, cohort: CohortParameters, number: int, output: Path) -> dict[str, object]:
        if number == self.interrupted_at:
            raise KeyboardInterrupt
        self.made.append(number)
        (output / cohort.entity(number)).mkdir()
        (output / cohort.entity(number) / "case").write_text(str(number))
        return {"entity": cohort.entity(number), "cle_score": number, "pse_score": 0, "cle_percentage": f"{number / 3:.4f}"}


def test_a_cohort_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = Maker(monkeypatch, interrupted_at=2)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    assert main(command(stopped, cases=4)) == 130
    assert f"{stopped}: not finished; the same command goes on" in capsys.readouterr().err
    journal = stopped / UNFINISHED_FILE
    journal.write_text(journal.read_text() + '{"entity": "simul')  # a line that a killed run has cut off
    maker.interrupted_at = -1
    assert main(command(stopped, cases=4)) == 0
    assert maker.made == [0, 1, 2, 3], "each once"
    assert main(command(whole, cases=4)) == 0
    assert contents(stopped) == contents(whole)
    assert not journal.exists()
    assert main(command(stopped, cases=4)) == 2, "a finished one is left alone"


def test_a_cohort_that_was_begun_otherwise_or_is_being_made_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = Maker(monkeypatch, interrupted_at=1)
    assert main(command(tmp_path)) == 130
    capsys.readouterr()
    assert main(command(tmp_path, "--look", "first", "--panlobular", "3")) == 2
    assert f"{tmp_path}: an unfinished cohort that was made otherwise (panlobular, look); expected" in capsys.readouterr().err
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert main(command(tmp_path)) == 2
    assert "another run is writing" in capsys.readouterr().err
    os.close(lock)
    (tmp_path / UNFINISHED_FILE).write_text("")
    assert main(command(tmp_path)) == 2
    assert f"{UNFINISHED_FILE}: cannot be read" in capsys.readouterr().err
    assert maker.made == [0]


@pytest.mark.slow
def test_the_first_look_still_makes_the_example_case_voxel_by_voxel(tmp_path: Path) -> None:
    # test/input was written by test/make_example.py before there was another look.
    arguments = ["--cases", "1", "--seed", "4", "--output", str(tmp_path / "made"), "--grid", "example", "--look", "first"]
    assert main([*arguments, "--cle-score", "3", "--pse-score", "1"]) == 0
    example = Path(__file__).resolve().parent.parent / "input" / "images"
    for folder in ("ct", "lung-mask"):
        (made,) = (tmp_path / "made").glob(f"*/images/{folder}/*.mha")
        difference = np.abs(read(made).astype(int) - read(example / folder / "example.mha"))
        # Another processor rounds a few voxels of the CT the other way.
        assert difference.max() <= (1 if folder == "ct" else 0)
        assert difference.mean() < 2e-4


def test_lungs_without_room_for_what_was_drawn_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> SimulatedCase:
        raise NoRoomError("panlobular emphysema has no room for 60.0 % of the lungs")

    monkeypatch.setattr(simulated_cohort, "simulate", full)
    assert main(command(tmp_path / "output", cases=1)) == 2
    expected = "simulated-380-00000: panlobular emphysema has no room for 60.0 % of the lungs; expected another seed"
    assert capsys.readouterr().err.splitlines()[-1].startswith(expected)
