"""Files appear whole or not at all, and no two runs share a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from model.errors import InputError
from model.whole_files import (
    WholeFiles,
    check_free,
    check_replaceable,
    make_folder,
    recover,
    whole_file,
    whole_folder,
    write_files,
)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_have_their_names_only_when_the_block_ends(tmp_path: Path) -> None:
    with WholeFiles(tmp_path) as files:
        files.partial(tmp_path / "a.txt").write_text("a")
        files.partial(tmp_path / "deep" / "er" / "b.txt").write_text("b")
        assert not (tmp_path / "a.txt").exists()
    assert files_in(tmp_path) == ["a.txt", "deep/er/b.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_block_that_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("earlier")
    files = WholeFiles(tmp_path)

    def fail() -> None:
        with files:
            files.partial(tmp_path / "a.txt").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert files_in(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "earlier"


def test_a_file_that_cannot_be_flushed_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's file system may report a full disk only then."""

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    files = WholeFiles(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"), files:
        files.partial(tmp_path / "a.txt").write_text("a")
    assert files_in(tmp_path) == []


def test_files_that_are_written_together_are_each_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a.txt": b"old", "b.txt": b"old"})
    replace = Path.replace

    def fail_for_b(partial: Path, final: Path) -> Path:
        if final.name == "b.txt":
            raise OSError(28, "No space left on device")
        return replace(partial, final)

    monkeypatch.setattr(Path, "replace", fail_for_b)
    with pytest.raises(OSError, match="No space left"):
        write_files(tmp_path, {"a.txt": b"new", "b.txt": b"new"})
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == {"a.txt": b"new", "b.txt": b"old"}


def test_a_folder_for_results_is_new_or_empty_and_is_made(tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    make_folder(tmp_path / "new" / "deeper")
    check_free(tmp_path / "new" / "deeper")
    (tmp_path / "file").touch()
    for taken in (tmp_path / "new", tmp_path / "file"):
        with pytest.raises(InputError, match="it already holds something; expected a new or empty folder"):
            check_free(taken)
    with pytest.raises(InputError, match=r"cannot be created \(Not a directory\); expected a folder that can be written"):
        make_folder(tmp_path / "file" / "below")


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    first = WholeFiles(tmp_path)
    with pytest.raises(InputError, match="another run is writing into this folder"):
        WholeFiles(tmp_path)
    first.close()
    second = WholeFiles(tmp_path)
    second.close()
    second.close()
    third = WholeFiles(tmp_path)
    del third  # forgotten, it lets go as well
    WholeFiles(tmp_path)


def test_the_lock_holds_between_processes(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from model.whole_files import WholeFiles; WholeFiles(Path({str(tmp_path)!r}))"
    files = WholeFiles(tmp_path)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1
    files.close()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "other").mkdir()
    for name in (".partial-0123.mha", "maps/.partial-4567.mha", "maps/whole.mha", "other/.partial-89.mha", ".hidden"):
        (tmp_path / name).write_text("x")
    WholeFiles(tmp_path, ["maps", "missing"])
    assert files_in(tmp_path) == [".hidden", "maps/whole.mha", "other/.partial-89.mha"]


def test_without_a_lock_nobodys_half_written_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    (tmp_path / ".partial-0123.mha").write_text("another run's")
    with WholeFiles(tmp_path) as one, WholeFiles(tmp_path) as other:
        one.partial(tmp_path / "a.txt").write_text("one")
        other.partial(tmp_path / "a.txt").write_text("other")
    assert files_in(tmp_path) == [".partial-0123.mha", "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "one"


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "maps").symlink_to(tmp_path / "elsewhere")
    with WholeFiles(tmp_path / "output") as files:
        with pytest.raises(InputError, match="maps: a link leads out of the output folder"):
            files.partial(tmp_path / "output" / "maps" / "a.mha")
        (tmp_path / "victim").write_text("precious")
        (tmp_path / "output" / "a.txt").symlink_to(tmp_path / "victim")
        files.partial(tmp_path / "output" / "a.txt").write_text("new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "output" / "a.txt").read_text() == "new"
    assert files_in(tmp_path / "elsewhere") == []


def test_a_folder_that_is_itself_a_link_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with WholeFiles(tmp_path / "link") as files:
        files.partial(tmp_path / "link" / "maps" / "a.txt").write_text("a")
    assert files_in(tmp_path / "real") == ["maps/a.txt"]


def test_the_longest_name_that_a_file_may_have_can_be_written(tmp_path: Path) -> None:
    with WholeFiles(tmp_path) as files:
        files.partial(tmp_path / f"{'n' * 251}.mha").write_text("x")
    assert files_in(tmp_path) == [f"{'n' * 251}.mha"]


def test_a_long_name_with_an_early_dot_can_be_written(tmp_path: Path) -> None:
    """What follows the dot is no suffix to keep."""
    names = [f"{kind}.{'x' * 250}" for kind in "abc"]
    with whole_folder(tmp_path / names[0]) as folder:
        (folder / "one").write_text("x")
    with whole_file(tmp_path / names[1]) as file:
        file.write_text("x")
    with WholeFiles(tmp_path) as files:
        files.partial(tmp_path / names[2]).write_text("x")
    assert files_in(tmp_path) == [f"{names[0]}/one", *names[1:]]


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out\\udcff: the name is not valid UTF-8"):
        WholeFiles(Path(os.fsdecode(os.fsencode(tmp_path) + b"/out\xff")))


OLD = {"former/three": "old", "one": "old"}
NEW = {"deep/two": "new", "one": "new"}


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [("file", "old text", "new text"), ("folder", OLD, NEW), ("folder in two steps", OLD, NEW)],
)
def test_a_writer_that_is_killed_at_any_step_leaves_the_old_or_the_new_whole(
    tmp_path: Path, kind: str, old: object, new: object
) -> None:
    command = [sys.executable, "-m", "test.killed_writer", kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step["killed"] for step in steps] == [True] * (len(steps) - 1) + [False]
    found = [step["found"] for step in steps]
    assert found == [old] * found.count(old) + [new] * found.count(new)
    assert min(found.count(old), found.count(new)) > 1
    missing = [step["left"] is None for step in steps]
    assert any(missing) == (kind == "folder in two steps")
    assert all(step["left"] == step["found"] for step, none in zip(steps, missing, strict=True) if not none)
    assert all(step["after"] == {"result.d": new} for step in steps)


def test_a_living_writers_file_is_left_alone(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt") as one:
        one.write_text("one")
        with whole_file(tmp_path / "a.txt") as other, whole_folder(tmp_path / "b"):
            other.write_text("other")
        recover(tmp_path / "c")
        assert (tmp_path / "a.txt").read_text() == "other"
    assert (tmp_path / "a.txt").read_text() == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b"]


@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_a_block_that_fails_changes_nothing(tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]]) -> None:
    (tmp_path / "old").write_text("old")

    def fail() -> None:
        with write(tmp_path / "old") as unfinished:
            (unfinished / "half" if unfinished.is_dir() else unfinished).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert files_in(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_link_is_replaced_and_what_it_leads_to_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
) -> None:
    if not in_one_step:
        monkeypatch.setattr("model.whole_files._exchange", lambda *_: False)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "new").write_text("x")
    assert files_in(tmp_path) == ["link/new", "target/precious"]


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with whole_file(tmp_path / "a") as file, whole_folder(tmp_path / "b") as folder:
            file.write_text("x")
            (folder / "c").write_text("x")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "b", "b/c")] == [0o644, 0o755, 0o644]


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_replaceable(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"it cannot be replaced as a whole; expected a new folder, such as .*new"):
        check_replaceable(Path())
    with pytest.raises(InputError, match=r"/proc: it cannot be replaced as a whole"):
        check_replaceable(Path("/proc"))
    (tmp_path / "link").symlink_to("/proc")
    with pytest.raises(InputError, match=r"/link: it cannot be replaced as a whole"):
        check_replaceable(tmp_path / "link")
