"""What goes wrong around a run: it ends with one line, writes nothing by halves, and the next run makes it good."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.container.grand_challenge import RECORDS_FILE
from test.conftest import ROOT, need
from test.phantom import Phantom, write_case
from test.trust.provoke import STAGES, Forks

pytestmark = pytest.mark.slow

MAPS = [f"images/{name}-emphysema-heatmap/scan.mha" for name in ("centrilobular", "paraseptal")]
SCORES = [f"{name}-emphysema-score.json" for name in ("centrilobular", "paraseptal")]
ALL_FILES = sorted([*MAPS, *SCORES, "results.csv", "results.json"])
DISK = 1 << 16
PAGE = mmap.PAGESIZE
"""What tmpfs gives to files is whole pages."""


def command(case: Path, output: Path, bundle: Path, *fault: str) -> list[str]:
    """process.py with one fault."""
    return [sys.executable, "-m", "test.trust.provoke", *fault, "--", *options(case, output, bundle)]


def options(case: Path, output: Path, bundle: Path) -> list[str]:
    return ["--input", str(case), "--output", str(output), "--weights", str(bundle), "--precision", "float32"]


@pytest.fixture(scope="module")
def forks() -> Forks:
    return Forks()


def run(
    arguments: list[str], environment: dict[str, str] | None = None, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.PIPE, errors="replace", timeout=300, check=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the notes for `--resume`, which hold times of the input files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORDS_FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def results(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((output / "results.json").read_text())
    return found


def succeeded(done: subprocess.CompletedProcess[str]) -> bool:
    return (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def undisturbed(noisy: Phantom, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run writes when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(command(write_case(folder / "input", *noisy.images()), folder / "output", bundle))
    assert succeeded(done), done
    files = contents(folder / "output")
    assert sorted(files) == ALL_FILES
    return files


PLACES = (*STAGES, "flush", "rename-1", "rename-3", "rename-4")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_is_killed_leaves_no_half_file_and_the_next_completes(
    case: Path,
    bundle: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    forks: Forks,
    place: str,
    number: str,
) -> None:
    output = tmp_path / "output"
    done = forks.run(("kill-at", place, number), options(case, output, bundle))
    if number == "SIGKILL":
        assert done.returncode == -signal.SIGKILL
    else:
        assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")
    left = contents(output)
    partial = {name for name in left if ".partial-" in name}
    assert {name: content for name, content in left.items() if name not in partial}.items() <= undisturbed.items()
    assert "results.json" not in left
    assert number == "SIGKILL" or not partial
    assert succeeded(forks.run((), options(case, output, bundle)))
    assert contents(output) == undisturbed


def test_ctrl_c_ends_a_run_without_a_traceback(case: Path, bundle: Path, forks: Forks, tmp_path: Path) -> None:
    done = forks.run(("kill-at", "network", "SIGINT"), options(case, tmp_path / "output", bundle))
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT\n")
    assert contents(tmp_path / "output") == {}


def test_a_run_without_stderr_completes(case: Path, bundle: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    done = run(["bash", "-c", 'exec "$@" 2>&-', "bash", *command(case, tmp_path / "output", bundle)])
    assert succeeded(done), done
    assert contents(tmp_path / "output") == undisturbed


@pytest.mark.parametrize("what", ["images/ct/scan.mha", "images/lung-mask/scan.mha", "."])
def test_an_input_that_disappears_is_named_in_one_line(
    case: Path, bundle: Path, forks: Forks, tmp_path: Path, what: str
) -> None:
    done = forks.run(("delete-at", "read", str(case / what)), options(case, tmp_path / "output", bundle))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "scan.mha: no such file; expected " in line
    assert list(contents(tmp_path / "output")) == ["results.json"]
    assert results(tmp_path / "output")[0]["error_messages"] == [line]


def test_an_input_that_is_gone_before_it_is_looked_for_is_named_in_one_line(
    case: Path, bundle: Path, forks: Forks, tmp_path: Path
) -> None:
    done = forks.run(("delete-at", "find", str(case)), options(case, tmp_path / "output", bundle))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds `DISK` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)]
    need(subprocess.run(mount, capture_output=True, check=False).returncode == 0, "the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room", ["none", "less than the first map", "the maps alone"])
def test_a_full_disk_is_one_line_an_exit_code_of_1_and_no_half_file(
    case: Path, bundle: Path, forks: Forks, small_disk: Path, undisturbed: dict[str, bytes], room: str
) -> None:
    first, second = (-(-len(undisturbed[name]) // PAGE) * PAGE for name in MAPS)
    assert first > PAGE, "a disk that holds less than this map holds results.json"
    free = {"none": 0, "less than the first map": first - PAGE, "the maps alone": first + second}[room]
    (small_disk / "filler").write_bytes(bytes(DISK - free))
    done = forks.run((), options(case, small_disk / "output" if free else small_disk, bundle))
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert all("No space left on device" in line for line in lines)
    assert len(lines) == (2 if free == 0 else 1)
    left = {name for name in contents(small_disk) if name != "filler"}
    assert left == (set() if free == 0 else {"output/results.json"})
    (small_disk / "filler").unlink()


def test_a_read_only_output_folder_is_refused_before_anything_is_computed(
    case: Path, bundle: Path, forks: Forks, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = forks.run((), options(case, small_disk, bundle))
    assert done.returncode == 2
    assert done.stderr == f"{small_disk}: the output folder cannot be written (Read-only file system); expected a folder\n"
    assert done.stdout == ""


def test_temporary_space_and_a_home_are_not_needed(
    case: Path, bundle: Path, small_disk: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    (small_disk / "filler").write_bytes(bytes(DISK))
    bare = {"PATH": os.environ["PATH"], "TMPDIR": str(small_disk)}
    done = run(command(case, tmp_path / "output", bundle), bare)
    assert succeeded(done), done
    assert contents(tmp_path / "output") == undisturbed


def test_a_user_that_the_system_does_not_know_can_run_it(
    case: Path, bundle: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    stranger = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    tried = subprocess.run([*stranger, "true"], capture_output=True, check=False)
    need(tried.returncode == 0, "the right to make a user namespace")
    done = run([*stranger, *command(case, tmp_path / "output", bundle)], os.environ | {"HOME": "/nonexistent"})
    assert succeeded(done), done
    assert contents(tmp_path / "output") == undisturbed


def test_a_second_run_into_the_same_folder_is_refused_and_harms_nothing(
    case: Path, bundle: Path, forks: Forks, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output, signal_file = tmp_path / "output", tmp_path / "go"
    first = subprocess.Popen(
        command(case, output, bundle, "wait-at", "write", str(signal_file)), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "go.waiting").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = forks.run((), options(case, output, bundle))
    signal_file.touch()
    assert second.returncode == 2
    assert second.stderr == f"{output}: another run is writing into this folder; expected a folder for each run\n"
    assert first.wait(300) == 0
    assert contents(output) == undisturbed


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX"},
        {"LC_ALL": "tr_TR.UTF-8", "LANGUAGE": "tr"},
        {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii", "TZ": "Nowhere/Land"},
    ],
    ids=lambda environment: " ".join(environment.values()),
)
def test_the_locale_changes_nothing(
    noisy: Phantom, bundle: Path, undisturbed: dict[str, bytes], tmp_path: Path, environment: dict[str, str]
) -> None:
    case = write_case(tmp_path / "Größe 患者", *noisy.images(), stem="Jürgens scan №1")
    done = run(command(case, tmp_path / "aus gabe", bundle), os.environ | environment)
    assert succeeded(done), done
    found = contents(tmp_path / "aus gabe")
    assert found["images/centrilobular-emphysema-heatmap/Jürgens scan №1.mha"] == undisturbed[MAPS[0]]
    (result,) = json.loads(found["results.json"])
    (expected,) = json.loads(undisturbed["results.json"])
    assert result == expected | {"entity": "Jürgens scan №1"}


@pytest.mark.parametrize("seconds", ["-1000000", "0", "8000000000"])
def test_the_clock_changes_nothing(
    case: Path, bundle: Path, forks: Forks, undisturbed: dict[str, bytes], tmp_path: Path, seconds: str
) -> None:
    done = forks.run(("clock", seconds), options(case, tmp_path / "output", bundle))
    assert succeeded(done), done
    assert contents(tmp_path / "output") == undisturbed


@pytest.mark.parametrize("stdout", ["/dev/full", "closed"])
def test_a_log_that_cannot_be_written_costs_no_result(
    case: Path, bundle: Path, undisturbed: dict[str, bytes], tmp_path: Path, stdout: str
) -> None:
    if stdout == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(stdout, os.O_WRONLY)
    try:
        done = run(command(case, tmp_path / "output", bundle), stdout=writer)
    finally:
        os.close(writer)
    assert succeeded(done), done
    assert contents(tmp_path / "output") == undisturbed
