"""A run that is stopped keeps what it finished; `--resume` scores the rest, and only what cannot have changed is skipped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.container.grand_challenge import OutputFolder
from model.container.logs import time_left
from model.container.results import read_results
from model.container.resume import (
    FinishedCase,
    Record,
    content_fingerprint,
    note_text,
    read_note,
    read_records,
    records_text,
    stat_fingerprint,
)
from test.phantom import Phantom, write_case
from test.trust.provoke import Forks

FORKS = Forks()
MAPS = ("centrilobular-emphysema-heatmap", "paraseptal-emphysema-heatmap")


def arguments(folder: Path, bundle: Path, *more: str) -> list[str]:
    return [f"--input={folder / 'input'}", f"--output={folder / 'output'}", f"--weights={bundle}", *more]


def results_of(folder: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads((folder / "output/results.json").read_text())
    return results


def maps_of(folder: Path) -> dict[str, int]:
    """Every map with its time of modification."""
    return {
        str(path.relative_to(folder / "output")): path.stat().st_mtime_ns
        for path in (folder / "output/images").rglob("[!.]*.mha")
    }


@pytest.fixture(scope="module")
def stopped(lesioned: Phantom, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a, b and c that got SIGTERM when b was scored, and its maps were about to appear."""
    folder = tmp_path_factory.mktemp("stopped")
    for stem in ("a", "b", "c"):
        write_case(folder / "input", *lesioned.images(), stem=stem)
    files_of_a = 7  # two maps, two scores, the results, their table and the notes
    done = FORKS.run(("kill-at", f"rename-{files_of_a}", "SIGTERM"), arguments(folder, bundle, "--verify"))
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")
    return folder


@pytest.fixture
def again(stopped: Path, tmp_path: Path) -> Path:
    """A copy of what the stopped run read and left, with the times of its files."""
    return shutil.copytree(stopped, tmp_path / "again")


def test_a_stopped_run_leaves_what_it_finished(stopped: Path) -> None:
    (result,) = results_of(stopped)
    assert result["entity"] == "a"
    assert result["metrics"]["cle_severity_score"] == 3
    assert sorted(maps_of(stopped)) == [f"images/{name}/a.mha" for name in MAPS]
    assert (stopped / "output/centrilobular-emphysema-score.json").is_file()


def test_resuming_scores_the_rest_alone_and_says_how_far_it_is(again: Path, bundle: Path) -> None:
    before = maps_of(again)
    done = FORKS.run((), arguments(again, bundle, "--resume"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 3 cases were finished before" in done.stdout
    assert "case 1 of 3" not in done.stdout
    assert "case 2 of 3: b\n" in done.stdout
    assert "case 3 of 3: c, less than 1 min left\n" in done.stdout
    assert [result["entity"] for result in results_of(again)] == ["a", "b", "c"]
    assert len({json.dumps(result["metrics"]) for result in results_of(again)}) == 1  # the three scans are the same
    after = maps_of(again)
    assert len(after) == 6
    assert before.items() <= after.items()


def test_a_case_whose_input_or_options_changed_is_scored_again(again: Path, bundle: Path) -> None:
    os.utime(again / "input/images/ct/a.mha")
    for name in ("b", "c"):
        (again / f"input/images/ct/{name}.mha").unlink()
    assert "0 of 1 cases were finished" in FORKS.run((), arguments(again, bundle, "--resume")).stdout
    assert "1 of 1 cases were finished" in FORKS.run((), arguments(again, bundle, "--resume")).stdout
    done = FORKS.run((), arguments(again, bundle, "--resume", "--map-type=float32"))
    assert "a: scored again: the options have changed" in done.stdout


def test_a_case_whose_mask_now_names_lobes_is_scored_again(again: Path, bundle: Path) -> None:
    for name in ("b", "c"):
        (again / f"input/images/ct/{name}.mha").unlink()
    (again / "input/images/lung-mask").rename(again / "input/images/pulmonary-lobes")
    done = FORKS.run((), arguments(again, bundle, "--resume"))
    assert "a: scored again: the options have changed" in done.stdout


def test_a_run_that_writes_its_results_seldom_loses_no_case_that_it_finished(again: Path, bundle: Path) -> None:
    """Killed after the maps of its second case: `results.json` holds the first alone, a note the second."""
    files_of_a, files_of_b = 7, 3  # of b two maps and a note
    fault = ("write-seldom", f"rename-{files_of_a + files_of_b}", "SIGKILL")
    assert FORKS.run(fault, arguments(again, bundle)).returncode == -9
    assert [result["entity"] for result in results_of(again)] == ["a"]
    assert [path.name for path in (again / "output/.finished").glob("[!.]*")] == ["b.json"]
    before = maps_of(again)
    done = FORKS.run((), arguments(again, bundle, "--resume"))
    assert "2 of 3 cases were finished before" in done.stdout
    assert [result["entity"] for result in results_of(again)] == ["a", "b", "c"]
    assert before.items() <= maps_of(again).items()
    assert not (again / "output/.finished").exists()


def test_a_run_that_writes_its_results_seldom_writes_all_of_them_when_it_is_stopped(again: Path, bundle: Path) -> None:
    fault = ("write-seldom", "rename-10", "SIGTERM")
    assert FORKS.run(fault, arguments(again, bundle)).returncode == 143
    assert [result["entity"] for result in results_of(again)] == ["a", "b"]
    assert not (again / "output/.finished").exists()


def test_with_verify_the_contents_tell_and_not_the_times(again: Path, bundle: Path) -> None:
    os.utime(again / "input/images/ct/a.mha")
    for name in ("b", "c"):
        (again / f"input/images/ct/{name}.mha").unlink()
    before = maps_of(again)
    done = FORKS.run((), arguments(again, bundle, "--resume", "--verify"))
    assert "1 of 1 cases were finished" in done.stdout
    assert maps_of(again) == before
    assert [result["entity"] for result in results_of(again)] == ["a"]


@pytest.mark.parametrize("resume", [("--resume",), ()])
def test_maps_of_cases_that_are_no_longer_there_are_removed_and_unknown_ones_reported(
    again: Path, bundle: Path, resume: tuple[str, ...]
) -> None:
    for stem in ("a", "b"):
        for kind in ("ct", "lung-mask"):
            (again / f"input/images/{kind}/{stem}.mha").unlink()
    unknown = again / "output/images" / MAPS[0] / "older.mha"
    unknown.write_bytes(b"of a version that noted nothing")
    done = FORKS.run((), arguments(again, bundle, *resume))
    assert done.returncode == 0
    assert [result["entity"] for result in results_of(again)] == ["c"]
    assert sorted(maps_of(again)) == sorted([f"images/{MAPS[0]}/older.mha", *(f"images/{name}/c.mha" for name in MAPS)])
    assert "1 maps of earlier runs are of no case of this one, such as " in done.stdout


@pytest.mark.parametrize("first", ["a", "0"], ids=["damaged since", "new"])
def test_a_first_case_that_fails_leaves_no_score_files_of_an_earlier_one(again: Path, bundle: Path, first: str) -> None:
    for name in ("b", "c"):
        (again / f"input/images/ct/{name}.mha").unlink()
    assert (again / "output/paraseptal-emphysema-score.json").is_file()
    (again / f"input/images/ct/{first}.mha").write_bytes(b"damaged")
    assert FORKS.run((), arguments(again, bundle, "--resume")).returncode == 2
    assert "metrics" not in results_of(again)[0]
    assert list((again / "output").glob("*-score.json")) == []


def test_a_run_that_cannot_begin_leaves_the_results_that_it_was_to_continue(again: Path, bundle: Path) -> None:
    done = FORKS.run((), [f"--input={again / 'nowhere'}", f"--output={again / 'output'}", f"--weights={bundle}", "--resume"])
    assert done.returncode == 2
    assert [result["entity"] for result in results_of(again)] == ["a"]


def test_the_log_can_be_json_lines(again: Path, bundle: Path) -> None:
    done = FORKS.run((), arguments(again, bundle, "--resume", "--log-format=json"))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(line.keys() >= {"time", "level", "message"} for line in lines)
    assert [(line["case"], line["cases"], line["entity"]) for line in lines if "case" in line] == [(2, 3, "b"), (3, 3, "c")]
    assert [line["stage"] for line in lines if "stage" in line].count("network") == 2
    assert (lines[-1]["message"], lines[-1]["cases"], lines[-1]["scored"]) == ("finished", 3, 3)


def test_fingerprints_tell_files_by_time_or_by_contents(tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for name in ("1.dcm", "2.dcm"):
        (series / name).write_bytes(b"slice")
    header, voxels = tmp_path / "mask.mhd", tmp_path / "mask.raw"
    header.write_bytes(b"header")
    voxels.write_bytes(b"voxels")
    before = stat_fingerprint([series, header]), content_fingerprint([series, header])
    os.utime(voxels, (1, 1))
    moved = stat_fingerprint([series, header]), content_fingerprint([series, header])
    assert (moved[0] == before[0], moved[1] == before[1]) == (False, True)
    (series / "2.dcm").write_bytes(b"other")
    assert content_fingerprint([series, header]) != before[1]


def test_fingerprints_know_the_voxels_that_a_header_names(tmp_path: Path) -> None:
    header, voxels = tmp_path / "ct.mhd", tmp_path / "voxels" / "of-ct.raw"
    voxels.parent.mkdir()
    voxels.write_bytes(b"voxels")
    header.write_text("NDims = 3\nElementDataFile = voxels/of-ct.raw\n")
    before = content_fingerprint([header])
    voxels.write_bytes(b"others")
    assert content_fingerprint([header]) != before


def test_notes_that_name_a_file_elsewhere_remove_nothing(tmp_path: Path) -> None:
    precious = tmp_path / "precious.mha"
    precious.write_bytes(b"1")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/link").symlink_to(tmp_path)
    names = ("../precious.mha", str(precious), "link/precious.mha")
    (tmp_path / "output/.resume.json").write_text(records_text({"a": Record("", {}, names)}))
    OutputFolder(tmp_path / "output").remove_others(())
    assert precious.is_file()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2, "cases": {}}', '{"format": 1, "cases": {"a": {"stat": 1}}}']
)
def test_notes_that_cannot_be_read_let_every_case_be_scored(tmp_path: Path, content: str) -> None:
    (tmp_path / "notes").write_text(content)
    assert read_records(tmp_path / "notes") == {}
    assert read_records(tmp_path / "missing") == {}


def test_notes_of_another_format_are_not_read(tmp_path: Path, stopped: Path) -> None:
    result = read_results(stopped / "output/results.json")[0]
    record = Record("stat", {"lobes": "False"}, ("images/a.mha",), "sha256")
    finished = FinishedCase(result, record)
    path = tmp_path / "notes"
    for text, read, content, nothing in (
        (records_text({"a": record}), read_records, {"a": record}, {}),
        (note_text(finished), read_note, finished, None),
    ):
        path.write_text(text)
        assert read(path) == content
        path.write_text(json.dumps(json.loads(text) | {"format": 2}))
        assert read(path) == nothing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (20, "less than 1 min left"),
        (31, "1 min left"),
        (3590, "1 h 0 min left"),
        (5400, "1 h 30 min left"),
        (90000, "25 h left"),
    ],
)
def test_the_time_left_in_words(seconds: float, text: str) -> None:
    assert time_left(seconds) == text
