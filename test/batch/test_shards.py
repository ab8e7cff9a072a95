"""A part of a cohort scored without Ray: each case as `process.py` writes it, and what a killed part leaves to the next."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from model.batch import command
from model.batch.cases import CohortCase
from model.batch.cluster import Outcome, Plan, Work
from model.batch.command import parsed_options
from model.batch.journal import opened
from model.batch.scoring import PackedScorer, Settings, read_packed, unseen
from model.batch.series import digest_of
from model.cohort.summary import read_summary
from model.container.command import main as process
from model.evaluation.baselines import main as baselines
from test.imaging.series import write_dicom_series
from test.phantom import Phantom, write_case

SHARD = "1-of-1"


@pytest.fixture(scope="module")
def tree(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of files, a DICOM series that shares its folder with another, and a CT whose file is cut off."""
    root = tmp_path_factory.mktemp("tree")
    ct, mask = phantom.images()
    for name, image in (("a", ct), ("a_mask", mask), ("b_mask", mask), ("d/study_mask", mask)):
        (root / name).parent.mkdir(exist_ok=True)
        sitk.WriteImage(image, str(root / f"{name}.nii.gz"))
    (root / "b.nii.gz").write_bytes((root / "a.nii.gz").read_bytes()[:2000])
    for uid, image_of_series in (("1.2.3", ct), ("1.2.4", ct[:, :, :3])):
        tags = {"0020|000e": uid, "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL"}
        for path in write_dicom_series(image_of_series, root / "new", tags=lambda _, tags=tags: tags).iterdir():  # type: ignore[misc]
            (root / "d/study").mkdir(exist_ok=True)
            path.rename(root / "d/study" / f"{uid}-{path.name}")
        (root / "new").rmdir()
    return root


def run(tree: Path, output: Path, bundle: Path, *more: str) -> int:
    """As the command runs, without its settings of this process's log."""
    options = [f"--input={tree}", f"--output={output}", f"--weights={bundle}", "--precision=float32", "--shard=1/1", *more]
    return command._run(parsed_options(options), time.monotonic())


@pytest.fixture(scope="module")
def scored(tree: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scored") / "out"
    assert run(tree, output, bundle) == 2
    return output


@pytest.fixture
def again(scored: Path, tmp_path: Path) -> Path:
    """A copy that a test may continue."""
    return shutil.copytree(scored, tmp_path / "out", symlinks=True)


def rows(output: Path) -> dict[str, dict[str, Any]]:
    return {row["entity"]: row for row in read_summary(output / "cohort.parquet")}


def maps(output: Path) -> dict[str, int]:
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in (output / "cases").rglob("*.mha")}


def test_the_table_says_what_was_scored_and_why_the_rest_was_not(scored: Path, tree: Path) -> None:
    found = rows(scored)
    assert {entity: row["state"] for entity, row in found.items()} == {"a": "scored", "b": "failed", "d_study": "scored"}
    assert found["b"]["error"].startswith(f"{tree / 'b.nii.gz'}: ")
    assert found["a"]["cle_percentage"] == pytest.approx(found["d_study"]["cle_percentage"], abs=1e-3)
    assert "3 slices" in (scored / "left-out.csv").read_text(encoding="utf-8-sig")


def test_each_case_has_the_folder_that_process_py_writes(scored: Path, tree: Path, bundle: Path, tmp_path: Path) -> None:
    files = [f"--ct={tree / 'a.nii.gz'}", f"--lung-mask={tree / 'a_mask.nii.gz'}"]
    assert process([*files, f"--output={tmp_path}", f"--weights={bundle}", "--precision=float32"]) == 0
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == sorted(
        str(path.relative_to(scored / "cases/a")) for path in (scored / "cases/a").rglob("*") if path.is_file()
    )
    for name in names:
        assert (tmp_path / name).read_bytes() == (scored / "cases/a" / name).read_bytes(), name


def test_a_second_run_scores_only_what_failed(again: Path, tree: Path, bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = maps(again)
    with caplog.at_level(logging.INFO, "process"):
        assert run(tree, again, bundle) == 2
    assert "2 of 3 cases were finished before" in caplog.text
    assert maps(again) == before


def test_a_case_whose_maps_or_options_changed_is_scored_again(
    again: Path, tree: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (again / "cases/a/images/paraseptal-emphysema-heatmap/a.mha").unlink()
    before = maps(again)
    with caplog.at_level(logging.INFO, "process"):
        run(tree, again, bundle)
    assert "a: scored again: files that were written are missing" in caplog.text
    after = maps(again)
    assert {name for name in after if after[name] != before.get(name)} == {name for name in after if "/a/" in name}


@pytest.fixture
def listed(tree: Path, bundle: Path, tmp_path: Path) -> Path:
    """A list of one case on a share, scored into `out` beside it."""
    (tmp_path / "share").mkdir()
    for name in ("a.nii.gz", "a_mask.nii.gz"):
        shutil.copy(tree / name, tmp_path / "share" / name)
    (tmp_path / "list.csv").write_text("ct,lung_mask\nshare/a.nii.gz,share/a_mask.nii.gz\n")
    assert run(tmp_path / "list.csv", tmp_path / "out", bundle) == 0
    return tmp_path / "list.csv"


@pytest.mark.parametrize("options", [[], ["--map-type=float32"], ["--verify"]], ids=["the same", "other maps", "by sha256"])
def test_a_scored_case_whose_input_cannot_be_looked_at_keeps_its_result(
    listed: Path, bundle: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    share, output = listed.with_name("share"), listed.with_name("out")
    before, names = maps(output), sorted(output.rglob("*"))
    share.rename(share.with_name("unmounted"))
    capsys.readouterr()
    assert run(listed, output, bundle, *options) == 2
    assert capsys.readouterr().err == (
        f"{share / 'a.nii.gz'}: it cannot be looked at (No such file or directory); the earlier result of a is kept; "
        "expected the input of the earlier result\n"
    )
    assert rows(output)["a"]["state"] == "scored"
    assert maps(output) == before
    assert sorted(output.rglob("*")) == names
    share.with_name("unmounted").rename(share)
    assert run(listed, output, bundle) == 0
    assert maps(output) == before


def test_a_scored_case_whose_input_vanishes_during_the_run_keeps_its_result(
    listed: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share, output = listed.with_name("share"), listed.with_name("out")
    before = maps(output)
    share.rename(share.with_name("unmounted"))
    monkeypatch.setattr(command, "is_finished", lambda *_: False)  # as while it was there, with other options
    assert run(listed, output, bundle, "--map-type=float32") == 2
    assert "the earlier result of a is kept" in capsys.readouterr().err
    assert (rows(output)["a"]["state"], maps(output)) == ("scored", before)
    with opened(output, SHARD) as journal:
        assert not journal.was_killed


def test_a_run_with_ray_keeps_the_entry_of_a_result_that_its_worker_kept(
    listed: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share, output = listed.with_name("share"), listed.with_name("out")
    journal = (output / f"journal/{SHARD}.jsonl").read_text()
    share.rename(share.with_name("unmounted"))

    class Run:
        plan = Plan(1, 1.0, 0.0, 1, 1, 0.0)

        def __init__(self, work: Work, _: Any) -> None:
            self._work = work
            self._scorer: Any = work.make_scorer(1)

        def start(self) -> Any:
            return self._scorer.identity

        def score(self, cases: Iterator[CohortCase]) -> Iterator[Outcome]:
            for case in cases:
                yield Outcome(case, self._scorer.score_packed(case, self._work.read(case)), 1)

    monkeypatch.setattr(command, "is_finished", lambda *_: False)
    monkeypatch.setattr(command, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(command, "end_on_signals", lambda: None)
    monkeypatch.setattr(command, "RayRun", Run)
    options = [f"--input={listed}", f"--output={output}", f"--weights={bundle}", "--precision=float32"]
    assert command._run(parsed_options(options), time.monotonic()) == 2
    assert "the earlier result of a is kept" in capsys.readouterr().err
    assert rows(output)["a"]["state"] == "scored"
    assert (output / f"journal/{SHARD}.jsonl").read_text() == journal
    assert (output / "journal/driver.jsonl").read_text() == ""


@pytest.mark.parametrize("state", ["there", "missing", "an empty folder", "a link that leads nowhere"])
def test_the_input_of_a_series_is_unseen_where_its_folder_shows_no_slices(tmp_path: Path, state: str) -> None:
    if state != "missing":
        (tmp_path / "ct").mkdir()
    if state == "there":
        (tmp_path / "ct/1.dcm").touch()
    if state == "a link that leads nowhere":
        (tmp_path / "ct/1.dcm").touch()
        (tmp_path / "ct/2.dcm").symlink_to(tmp_path / "archive/2.dcm")
    found = unseen(CohortCase("a", tmp_path / "ct"))
    assert (found is None) == (state == "there")


def test_a_header_without_its_voxels_cannot_be_looked_at(tmp_path: Path) -> None:
    image = sitk.Image(4, 4, 4, sitk.sitkInt16)
    header = tmp_path / "ct.mhd"
    sitk.WriteImage(image, str(header))
    assert unseen(CohortCase("a", header)) is None
    header.with_suffix(".raw").rename(tmp_path / "archived")
    assert "its voxels are missing" in str(unseen(CohortCase("a", header)))


def test_a_case_whose_input_has_changed_and_cannot_be_read_fails(listed: Path, bundle: Path) -> None:
    (listed.with_name("share") / "a.nii.gz").write_bytes(b"damaged")
    assert run(listed, listed.with_name("out"), bundle) == 2
    assert rows(listed.with_name("out"))["a"]["state"] == "failed"
    assert not maps(listed.with_name("out"))


def test_the_table_has_the_paths_of_scans_that_were_moved(
    again: Path, tree: Path, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved, output = shutil.copytree(tree, tmp_path / "moved"), again.rename(tmp_path / "other")
    before = maps(output)
    with caplog.at_level(logging.INFO, "process"):
        assert run(moved, output, bundle) == 2
    assert "2 of 3 cases were finished before" in caplog.text
    assert maps(output) == before
    found = rows(output)
    assert (found["a"]["ct"], found["a"]["lung_mask"]) == (str(moved / "a.nii.gz"), str(moved / "a_mask.nii.gz"))
    assert (found["d_study"]["ct"], found["d_study"]["lung_mask"]) == (
        str(output / "series/d_study"),
        str(moved / "d/study_mask.nii.gz"),
    )
    journal = (output / f"journal/{SHARD}.jsonl").read_text()
    assert run(moved, output, bundle) == 2
    assert '"entity": "a"' not in (output / f"journal/{SHARD}.jsonl").read_text().removeprefix(journal)


def test_a_case_that_a_killed_run_wrote_with_other_options_and_did_not_note_is_scored_again(
    scored: Path, again: Path, tree: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = CohortCase("a", tree / "a.nii.gz", tree / "a_mask.nii.gz")
    other = Settings(again, bundle, precision="float32", map_type="float32")
    assert PackedScorer(other, 1).score_packed(case, read_packed(case, other)).exit_code == 0
    name = "cases/a/images/paraseptal-emphysema-heatmap/a.mha"
    assert (again / name).read_bytes() != (scored / name).read_bytes()
    with caplog.at_level(logging.INFO, "process"):
        run(tree, again, bundle)
    assert "a: scored again: its folder does not hold the result of the journal" in caplog.text
    assert "1 of 3 cases were finished before" in caplog.text
    assert (again / name).read_bytes() == (scored / name).read_bytes()


def test_a_series_whose_links_cannot_be_made_fails_and_the_others_are_scored(
    tree: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert run(tree, tmp_path / "out", bundle) == 2
    found = rows(tmp_path / "out")
    assert {entity: row["state"] for entity, row in found.items()} == {"a": "scored", "b": "failed", "d_study": "failed"}
    assert "links to the files of a series cannot be made (Operation not permitted)" in found["d_study"]["error"]
    printed = capsys.readouterr()
    assert "links to the files of a series cannot be made" in printed.err
    assert "1 of 3 cases scored, " in printed.out


def test_a_case_that_ended_its_process_twice_is_listed_and_not_tried_again(
    again: Path, tree: Path, bundle: Path, tmp_path: Path
) -> None:
    tree = shutil.copytree(tree, tmp_path / "tree")
    os.utime(tree / "a.nii.gz")
    with opened(again, SHARD) as journal:
        for _ in range(2):
            journal.begin("a")
    assert run(tree, again, bundle) == 1
    row = rows(again)["a"]
    assert (row["state"], row["error"]) == ("failed", "a: its worker ended 2 times (the process that scored it ended)")
    assert run(tree, again, bundle) == 1
    assert run(tree, again, bundle, "--retry-crashed") == 2  # for b alone
    assert rows(again)["a"]["state"] == "scored"


def test_the_rules_without_a_network_score_the_scans_of_a_cohorts_table(scored: Path, tmp_path: Path) -> None:
    assert baselines([str(scored / "cohort.parquet"), "--output", str(tmp_path)]) == 0
    assert sorted(path.name for path in (tmp_path / "laa950").iterdir()) == ["a", "d_study"]
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "laa950/a/images/centrilobular-emphysema-heatmap/a.mha")))
    assert not np.any(mask)  # the phantom has no voxel below -950 HU in its lungs


def test_lungs_that_were_found_are_those_that_the_rules_use(phantom: Phantom, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sitk.WriteImage(phantom.images()[0], str(tmp_path / "in/a.mha"))
    assert run(tmp_path / "in", tmp_path / "out", bundle, "--segment-lungs") == 0
    assert (rows(tmp_path / "out")["a"]["lung_mask"], rows(tmp_path / "out")["a"]["lung_mask_source"]) == (None, "automatic")
    assert baselines([str(tmp_path / "out/cohort.csv"), "--output", str(tmp_path / "rules")]) == 0


def test_a_dry_run_lists_and_writes_nothing(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command._run(parsed_options([f"--input={tree}", f"--output={tmp_path / 'out'}", "--dry-run"]), 0.0) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a: {tree / 'a.nii.gz'}, {tree / 'a_mask.nii.gz'}"
    assert lines[2] == f"d_study: {tree / 'd/study'} (50 files), {tree / 'd/study_mask.nii.gz'}"
    reason = f"3 slices; expected 10 or more (3 files, series {digest_of('1.2.4')})"
    assert lines[-2:] == [f"left out: {tree / 'd/study'}: {reason}", "3 cases, 1 left out"]
    assert not (tmp_path / "out").exists()


def test_an_input_without_a_case_is_refused_with_the_first_reasons(
    phantom: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "in/case", *phantom.images())
    (tmp_path / "in/case/images/lung-mask/scan.mha").unlink()
    assert command.main([f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]) == 2
    assert "no case to score (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", ["0/4", "5/4", "x", "1/0", "1"])
def test_a_part_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(SystemExit):
        parsed_options(["--input=a", "--output=b", f"--shard={shard}"])


@pytest.mark.parametrize("option", [["--input=a"], ["--shard=1/4"], ["--dry-run"]])
def test_tables_are_merged_without_an_input_a_part_or_a_dry_run(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--output=b", *option, "--merge"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(": --merge goes without --input, --shard and --dry-run; see --help\n")


@pytest.mark.parametrize("option", ["--networks", "--networks-per-gpu", "--readers"])
def test_less_than_one_network_or_reader_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed_options(["--input=a", "--output=b", f"{option}=0"])
    assert f"{option}: '0': expected a whole number of at least 1" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_an_error_of_its_case_alone(tree: Path, bundle: Path, tmp_path: Path) -> None:
    """The process with the network goes on: a worker that ends would count as what the case did."""
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases/a").write_text("a file")
    settings = Settings(tmp_path, bundle, precision="float32")
    case = CohortCase("a", tree / "a.nii.gz", tree / "a_mask.nii.gz")
    scorer = PackedScorer(settings, 1)
    failed = scorer.score_packed(case, read_packed(case, settings))
    assert (failed.result.metrics, failed.exit_code) == (None, 2)
    assert f"{tmp_path / 'cases/a'}: " in failed.result.error_messages[0]


def test_names_that_are_not_utf_8_are_listed_and_the_others_are_scored(tree: Path, bundle: Path, tmp_path: Path) -> None:
    for name in ("z", os.fsdecode(b"caf\xe9")):
        for end in (".nii.gz", "_mask.nii.gz"):
            shutil.copy(tree / f"a{end}", tmp_path / f"{name}{end}")
    shutil.copy(tree / "a.nii.gz", tmp_path / os.fsdecode(b"alone-\xe9.nii.gz"))
    assert run(tmp_path, tmp_path / "out", bundle) == 2
    assert {entity: row["state"] for entity, row in rows(tmp_path / "out").items()} == {"caf\\udce9": "failed", "z": "scored"}
    assert "alone-\\udce9" in (tmp_path / "out/left-out.csv").read_text("utf-8-sig")


def test_a_case_that_another_process_read_has_the_same_result(scored: Path, tree: Path, bundle: Path, tmp_path: Path) -> None:
    settings = Settings(tmp_path, bundle, precision="float32")
    case = CohortCase("a", tree / "a.nii.gz", tree / "a_mask.nii.gz")
    sent = pickle.loads(pickle.dumps(read_packed(case, settings)))
    assert PackedScorer(settings, 1).score_packed(case, sent).exit_code == 0
    for path in (scored / "cases/a").rglob("*"):
        if path.is_file():
            name = path.relative_to(scored / "cases/a")
            assert (tmp_path / "cases/a" / name).read_bytes() == path.read_bytes(), name
