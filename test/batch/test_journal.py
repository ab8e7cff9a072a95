"""The journal of a run and the tables made of it, without a network."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from evaluate import main as evaluate
from model.batch import journal as journal_module
from model.batch.cases import CohortCase, LeftOut
from model.batch.command import main
from model.batch.journal import DRIVER, Entry, opened, write_left_out
from model.cohort.readings import read_predictions
from model.cohort.summary import CASE_COLUMNS, read_summary
from model.container.grand_challenge import NOTES_FOLDER
from model.container.results import CaseResult, failed_result, results_text
from model.container.resume import FinishedCase, Record, note_text, records_text
from model.container.schema import from_json
from model.errors import InputError
from model.whole_files import locked
from test.conftest import ROOT
from test.evaluation.results import result, write_simulated_reference

REGIONS = {
    side: {"cle_percentage": 1.5, "pse_percentage": None, "laa950_percentage": 2.0, "perc15_hu": -910, "volume_ml": 2500}
    for side in ("right", "left")
}


def entry(entity: str, cle: float = 12.0, pse: float = 0.5, **changes: Any) -> Entry:
    document = result(entity, cle, pse, regions=REGIONS) | {"warnings": ["a sharp kernel", "=cmd"]}
    case = CohortCase(entity, Path(f"/data/{entity}.mha"), Path(f"/data/{entity}_mask.mha"))
    return Entry.of(case, from_json(CaseResult, document), Record("stat", {}, ()), seconds=3.25, **changes)


def failure(entity: str) -> Entry:
    return Entry.of(CohortCase(entity, Path("x.mha")), failed_result("x.mha: no such file; expected one", entity))


def entities(output: Path) -> list[str]:
    return [row["entity"] for row in read_summary(output / "cohort.parquet")]


def test_tables_have_a_row_a_case_and_a_row_a_region_in_both_formats(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for one in (entry("b"), failure("a"), entry("c", attempts=2)):
            journal.add(one)
        journal.write_tables()
    table = parquet.read_table(tmp_path / "cohort.parquet")
    assert table.column_names == list(CASE_COLUMNS)
    failed, scored, again = table.to_pylist()
    assert (failed["entity"], failed["state"], failed["cle_severity_score"]) == ("a", "failed", None)
    assert failed["error"] == "x.mha: no such file; expected one"
    assert (scored["cle_severity_score"], scored["cle_percentage"], scored["perc15_hu"]) == (3, 12.0, -900)
    assert (scored["warnings"], scored["bundle"], scored["folder"]) == ("a sharp kernel; =cmd", "tested", "cases/b")
    assert (scored["ct"], scored["attempts"], scored["seconds"], again["attempts"]) == ("/data/b.mha", 1, 3.25, 2)
    with (tmp_path / "cohort.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["entity"] for row in rows] == ["a", "b", "c"]
    assert (rows[1]["cle_percentage"], rows[0]["cle_percentage"]) == ("12.0", "")
    regions = parquet.read_table(tmp_path / "regions.parquet").to_pylist()
    assert [(row["entity"], row["region"], row["volume_ml"], row["pse_percentage"]) for row in regions] == [
        (entity, side, 2500, None) for entity in ("b", "c") for side in ("right", "left")
    ]
    assert (tmp_path / "regions.csv").read_text(encoding="utf-8-sig").count("\n") == 5


def test_a_cell_that_a_spreadsheet_would_run_is_text(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.add(entry("=1+1"))
        journal.write_tables()
    assert "'=1+1,scored" in (tmp_path / "cohort.csv").read_text(encoding="utf-8-sig")


def test_evaluation_finds_cases_whose_names_a_spreadsheet_would_run_in_both_formats(tmp_path: Path) -> None:
    names = ["'quoted'", "+p1", "-e2", "=e1", "@a"]
    with opened(tmp_path) as journal:
        for name in names:
            journal.add(entry(name))
        journal.write_tables()
    for table in ("cohort.csv", "cohort.parquet"):
        readings = read_predictions(tmp_path / table)
        assert list(readings.cases) == names, table
        assert readings.cases["=e1"].maps[0].name == "=e1.mha"


def test_of_several_entries_of_a_case_the_last_counts_also_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.add(failure("a"))
        journal.add(entry("a", cle=2.0))
    with opened(tmp_path) as journal:
        found = journal.entry("a")
        assert found is not None
        assert found.result.metrics is not None
        assert found.result.metrics.cle_percentage == 2.0
        journal.add(entry("a", cle=7.0))
        journal.write_tables()
    (row,) = read_summary(tmp_path / "cohort.parquet")
    assert row["cle_percentage"] == 7.0


def test_of_several_lines_of_a_file_the_last_counts_also_if_the_clock_went_back(tmp_path: Path) -> None:
    times = ("2030-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")
    for percentage, finished in zip((2.0, 7.0), times, strict=True):
        with opened(tmp_path / finished) as journal:
            journal.add(dataclasses.replace(entry("a", cle=percentage), finished=finished))
    lines = [(tmp_path / finished / "journal/driver.jsonl").read_text() for finished in times]
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/driver.jsonl").write_text("".join(lines))
    with opened(tmp_path) as journal:
        found = journal.entry("a")
        journal.write_tables()
    assert found is not None
    assert found.finished == times[1]
    (row,) = read_summary(tmp_path / "cohort.parquet")
    assert row["cle_percentage"] == 7.0


def test_an_entry_is_later_than_the_one_of_another_file_that_it_replaces_whatever_the_clock_says(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.add(dataclasses.replace(entry("a", cle=2.0), finished="2030-01-01T00:00:00+00:00"))
    with opened(tmp_path, "1-of-2") as journal:
        journal.add(dataclasses.replace(entry("a", cle=7.0), finished="2026-01-01T00:00:00+00:00"))
    with opened(tmp_path) as journal:
        found = journal.entry("a")
    assert found is not None
    assert found.finished == "2030-01-01T00:00:01+00:00"
    assert found.result.metrics is not None
    assert found.result.metrics.cle_percentage == 7.0


def test_a_line_that_a_killed_run_has_not_finished_is_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.add(entry("a"))
    own = tmp_path / "journal/driver.jsonl"
    whole = own.read_bytes()
    own.write_bytes(whole + whole[: len(whole) // 2])
    with opened(tmp_path) as journal:
        assert journal.entities == {"a"}
        journal.add(entry("b"))
    with opened(tmp_path) as journal:
        assert journal.entities == {"a", "b"}
        journal.write_tables()
    assert entities(tmp_path) == ["a", "b"]


def test_lines_that_are_no_entries_are_passed_over(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.add(entry("a"))
    with (tmp_path / "journal/driver.jsonl").open("a") as stream:
        stream.write('[]\nnonsense\n{"format": 99}\n{"format": 1, "result": {"entity": 3}, "finished": ""}\n\n')
    with opened(tmp_path) as journal:
        assert journal.entities == {"a"}


def test_what_a_killed_driver_had_not_noted_is_found_in_the_cases_folders(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / "cases" / name).mkdir(parents=True)
    found = entry("a")
    assert found.record is not None
    (tmp_path / "cases/a" / NOTES_FOLDER).mkdir()
    (tmp_path / "cases/a" / NOTES_FOLDER / "a.json").write_text(note_text(FinishedCase(found.result, found.record)))
    (tmp_path / "cases/b/results.json").write_text(results_text([failed_result("no", "b")]))
    (tmp_path / "cases/c/results.json").write_text("torn")
    cases = [CohortCase(name, Path(f"{name}.mha")) for name in ("a", "b", "c", "d", "e")]
    with opened(tmp_path) as journal:
        assert journal.restore(cases) == 1
        restored = journal.entry("a")
        assert restored is not None
        assert restored.result == found.result
        assert journal.restore(cases) == 0


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (entry("a"), True),
        (entry("a", cle=7.0), False),
        (dataclasses.replace(entry("a"), record=Record("stat", {"map_type": "float32"}, ())), False),
        (None, False),
    ],
    ids=["the same", "another result", "other options", "a run that was killed while it wrote"],
)
def test_a_case_is_finished_where_its_folder_holds_the_result_of_the_journal(
    tmp_path: Path, held: Entry | None, expected: bool
) -> None:
    folder = tmp_path / "cases/a"
    folder.mkdir(parents=True)
    if held is not None:
        assert held.record is not None
        (folder / "results.json").write_text(results_text([held.result]))
        (folder / ".resume.json").write_text(records_text({"a": held.record}))
    with opened(tmp_path) as journal:
        journal.add(entry("a"))
        noted = journal.entry("a")
        assert noted is not None
        assert journal.is_in_folder(noted) == expected


def test_the_beginnings_that_count_are_those_without_an_end(tmp_path: Path) -> None:
    with opened(tmp_path, "1-of-2") as journal:
        journal.begin("a")
        journal.add(entry("a"))
        journal.begin("b")
        journal.stop("b")
        assert not journal.was_killed
        journal.begin("c")
    with opened(tmp_path, "1-of-2") as journal:
        assert [journal.times_begun(name) for name in ("a", "b", "c")] == [0, 0, 1]
        assert journal.was_killed
    with opened(tmp_path, "2-of-2") as journal:
        assert journal.times_begun("c") == 0


def test_two_drivers_are_refused_and_shards_only_where_they_are_the_same(tmp_path: Path) -> None:
    """Locks are between processes: another one tries while this one holds them."""

    def tried(name: str) -> str:
        folder = f"Path({str(tmp_path)!r})"
        code = (
            f"from pathlib import Path\nfrom model.batch.journal import opened\nwith opened({folder}, {name!r}): print('open')"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1].partition(": ")[2].partition(": ")[2]

    with opened(tmp_path):
        assert tried(DRIVER) == "another run is writing this output; expected one run for each output, or for each shard"
        assert tried("1-of-2").startswith("another run is writing this output;")
    with opened(tmp_path, "1-of-2"):
        assert tried("2-of-2") == "open"
        assert tried("1-of-2").startswith("another run is writing shard 1/2")
        assert tried(DRIVER).startswith("another run is writing this output")


def test_an_output_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the output folder cannot be written"), opened(tmp_path / "file"):
        pass


def test_every_shard_writes_the_tables_of_all(tmp_path: Path) -> None:
    with opened(tmp_path, "1-of-2") as one, opened(tmp_path, "2-of-2") as other:
        one.add(entry("a"))
        other.add(entry("b"))
        one.write_tables()
        assert entities(tmp_path) == ["a", "b"]


def test_one_command_merges_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        with opened(tmp_path / name, f"{'ab'.index(name) + 1}-of-2") as journal:
            journal.add(entry(name))
    assert main(["--merge", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "all")]) == 0
    assert [(row["entity"], row["folder"]) for row in read_summary(tmp_path / "all/cohort.csv")] == [
        ("a", "../a/cases/a"),
        ("b", "../b/cases/b"),
    ]
    assert main(["--merge", "--output", str(tmp_path / "a")]) == 0
    assert entities(tmp_path / "a") == ["a"]
    capsys.readouterr()
    assert main(["--merge", "--output", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'nothing'}: no journal of a run is in it; expected")
    assert main(["--merge", str(tmp_path / "a"), str(tmp_path / "B"), "--output", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'B'}: no journal of a run is in it; expected")
    with opened(tmp_path / "other") as journal:
        journal.add(dataclasses.replace(entry("a"), ct="/elsewhere/a.mha"))
    assert main(["--merge", str(tmp_path / "a"), str(tmp_path / "other"), "--output", str(tmp_path / "new")]) == 2
    assert "a is /elsewhere/a.mha, in " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_outputs_in_which_one_path_stands_for_different_scans_are_not_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of two sites that mount their data at the same path of a container."""
    others = {
        "failed": dataclasses.replace(failure("a"), ct="/data/a.mha"),
        "site-b": dataclasses.replace(entry("a"), record=Record("other", {}, ())),
        "without-mask": dataclasses.replace(entry("a"), lung_mask="", record=Record("of the CT alone", {}, ())),
        "again": entry("a"),
    }
    for name, one in {"site-a": entry("a"), **others}.items():
        with opened(tmp_path / name) as journal:
            journal.add(one)

    def merged(*names: str) -> int:
        return main(["--merge", *(str(tmp_path / name) for name in names), "--output", str(tmp_path / "all")])

    for names in (("site-a", "site-b"), ("failed", "site-a", "site-b")):
        assert merged(*names) == 2
        assert capsys.readouterr().err == (
            f"{tmp_path / 'site-b'}: a is /data/a.mha, whose files have another name, size or time in {tmp_path / 'site-a'}; "
            "expected one name for each scan\n"
        )
    assert not (tmp_path / "all").exists()
    for names in (("site-a", "again"), ("site-a", "without-mask"), ("site-a", "failed")):
        assert merged(*names) == 0
        assert capsys.readouterr().out.startswith("1 case; written to ")


def test_a_merge_waits_for_the_part_that_writes_and_has_what_was_finished_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, "1-of-2") as part, contextlib.ExitStack() as writing:
        part.add(entry("a"))
        part.write_tables()
        writing.enter_context(locked(tmp_path / "journal/tables.lock"))

        def finish(_: float) -> None:
            part.add(entry("b"))
            writing.close()

        monkeypatch.setattr(time, "sleep", finish)
        assert main(["--merge", "--output", str(tmp_path)]) == 0
    assert entities(tmp_path) == ["a", "b"]


def test_the_folders_of_cases_are_found_from_a_table_that_a_link_leads_to(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as journal:
        journal.add(entry("x"))
    (tmp_path / "a/cases/x").mkdir(parents=True)
    (tmp_path / "disk/deep/all").mkdir(parents=True)
    (tmp_path / "all").symlink_to(tmp_path / "disk/deep/all")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert main(["--merge", str(tmp_path / "b"), "--output", str(tmp_path / "all")]) == 0
    (row,) = read_summary(tmp_path / "all/cohort.csv")
    assert row["folder"] == "../../../a/cases/x"
    assert (tmp_path / "all" / row["folder"]).is_dir()


@pytest.mark.parametrize("more", [["--input=scans"], ["--merge"]])
def test_an_output_whose_name_is_not_utf_8_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    output = tmp_path / os.fsdecode(b"out\xe4")
    assert main([f"--output={output}", *more]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/out\\udce4: the name is not valid UTF-8; expected a name in UTF-8\n"
    assert not output.exists()


def test_readers_find_whole_tables_while_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that fails in its midst changes nothing and leaves nothing."""
    with opened(tmp_path) as journal:
        journal.add(entry("a"))
        journal.write_tables()
        journal.add(entry("b"))
        before = (tmp_path / "cohort.csv").read_bytes()

        def fail(**_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal_module, "CaseEntry", fail)
        with pytest.raises(OSError, match="No space"):
            journal.write_tables()
    assert (tmp_path / "cohort.csv").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "cohort.csv", "cohort.parquet", "regions.csv", "regions.parquet", "journal"
    }  # fmt: skip


def test_tables_are_written_seldom_enough_to_cost_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(journal_module, "write_tables", lambda *_: pass_time())

    def pass_time() -> None:
        nonlocal now
        now += 2.0

    with opened(tmp_path) as journal:
        assert journal.tables_are_due
        journal.write_tables()
        now += 39.0
        assert not journal.tables_are_due
        now += 1.0
        assert journal.tables_are_due


def test_what_is_left_out_is_listed_with_the_reason(tmp_path: Path) -> None:
    write_left_out(tmp_path, [LeftOut(Path("/data/x, y.mha"), "a localiser")])
    assert (tmp_path / "left-out.csv").read_text(encoding="utf-8-sig").splitlines() == [
        "path,reason",
        '"/data/x, y.mha",a localiser',
    ]
    write_left_out(tmp_path, [LeftOut(Path("=lonely.mha"), "-1 slices"), LeftOut(Path(os.fsdecode(b"\xe9.mha")), "alone")])
    assert (tmp_path / "left-out.csv").read_text(encoding="utf-8-sig").splitlines()[1:] == [
        "'=lonely.mha,'-1 slices",
        "\\udce9.mha,alone",
    ]


def test_evaluation_takes_the_table_the_csv_and_the_folder_of_a_cohort(tmp_path: Path) -> None:
    ours = {"a": (0.5, 0.0), "b": (6.0, 0.0), "c": (8.0, 4.0)}
    with opened(tmp_path / "out") as journal:
        for name, (cle, pse) in ours.items():
            journal.add(entry(name, cle, pse))
        journal.add(failure("d"))
        journal.write_tables()
    reference = write_simulated_reference(tmp_path / "reference.csv", {"a": (0.0, 0.0), "b": (2.0, 0.5), "c": (7.0, 3.0)})
    readings = [read_predictions(tmp_path / "out" / name) for name in ("cohort.parquet", "cohort.csv", "")]
    assert len({json.dumps({name: reading.extents for name, reading in found.cases.items()}) for found in readings}) == 1
    assert readings[0].cases["b"].extents[0] == (2, 6.0)
    assert readings[0].cases["b"].maps[0] == tmp_path / "out/cases/b/images/centrilobular-emphysema-heatmap/b.mha"
    assert readings[0].failures == {"d": "x.mha: no such file; expected one"}
    assert readings[0].name == "tested"
    command = ["--predictions", str(tmp_path / "out/cohort.parquet"), "--reference", str(reference), "--allow-missing"]
    against = ["--against", str(tmp_path / "out/cohort.csv"), "--resamples", "20"]
    assert evaluate([*command, *against, "--output", str(tmp_path / "report")]) == 0
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["centrilobular"]["accuracy"] == pytest.approx(2 / 3)  # b: 6.0 is mild, the reference trace


def test_a_table_without_the_columns_of_a_cohort_is_refused(tmp_path: Path) -> None:
    import pyarrow

    parquet.write_table(pyarrow.table({"entity": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="missing columns: state"):
        read_predictions(tmp_path / "other.parquet")
    (tmp_path / "cohort.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="it cannot be read"):
        read_predictions(tmp_path / "cohort.parquet")


def test_without_pyarrow_a_parquet_file_is_refused_and_the_csv_is_read(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.add(entry("a"))
        journal.write_tables()
    code = f"""
import sys
sys.modules["pyarrow"] = None
from pathlib import Path
from model.cohort.readings import read_predictions
print(list(read_predictions(Path({str(tmp_path)!r})).cases))
try:
    read_predictions(Path({str(tmp_path)!r}) / "cohort.parquet")
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['a']\n")
    assert "pyarrow, which reads Parquet, is not installed" in done.stdout


def test_a_journal_keeps_no_result_in_memory(tmp_path: Path) -> None:
    """Of ten thousand cases a driver knows where their lines lie, and nothing more."""
    with opened(tmp_path) as journal:
        journal.add(entry("a"))
        assert "severity" in (tmp_path / "journal/driver.jsonl").read_text()
        assert b"severity" not in pickle.dumps([journal._index.places, journal._begun])
