"""Kill writers at every step: `python -m test.killed_writer KIND FOLDER`, where KIND is a key of `WRITERS`.

Each writer is a fork of this process. It kills itself before its n-th call to the operating system (Python's audit events are
counted), for n = 1, 2, … until one runs to its end. A line of JSON follows each: what the writer left, what a reader finds
after `recover`, and what there is after the next writer has finished.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model import whole_files
from model.whole_files import recover, whole_file, whole_folder

SYSTEM_CALLS = ("open", "os.", "shutil.", "fcntl.", "ctypes.")


def write_file(final: Path) -> None:
    with whole_file(final) as partial, partial.open("w") as stream:
        stream.write("new ")
        stream.flush()
        stream.write("text")


def write_folder(final: Path) -> None:
    with whole_folder(final) as partial:
        (partial / "deep").mkdir()
        for name in ("one", "deep/two"):
            (partial / name).write_text("new")


def write_folder_in_two_steps(final: Path) -> None:
    """As on a file system that cannot swap two names in one step."""
    whole_files._exchange = lambda *_: False
    write_folder(final)


WRITERS: dict[str, Callable[[Path], None]] = {
    "file": write_file,
    "folder": write_folder,
    "folder in two steps": write_folder_in_two_steps,
}


def old_content(kind: str, final: Path) -> None:
    if kind == "file":
        final.write_text("old text")
    else:
        (final / "former").mkdir(parents=True)
        for name in ("one", "former/three"):
            (final / name).write_text("old")


def content(place: Path) -> Any:
    """Text of a file, texts of a folder's files by name, or None where there is nothing."""
    if place.is_dir():
        return {str(path.relative_to(place)): path.read_text() for path in sorted(place.rglob("*")) if path.is_file()}
    return place.read_text() if place.exists() else None


def write_and_die(write: Callable[[Path], None], final: Path, last: int) -> None:
    calls = 0

    def count(event: str, _: tuple[Any, ...]) -> None:
        nonlocal calls
        if event.startswith(SYSTEM_CALLS):
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    write(final)


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    final = folder / "result.d"
    for last in range(1, 1000):
        old_content(kind, final)
        child = os.fork()
        if child == 0:
            write_and_die(WRITERS[kind], final, last)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        left = content(final)
        recover(final)
        found = content(final)
        WRITERS[kind](final)
        after = {path.name: content(path) for path in folder.iterdir()}
        killed = os.WIFSIGNALED(status)
        print(json.dumps({"killed": killed, "left": left, "found": found, "after": after}), flush=True)
        if not killed:
            return
        shutil.rmtree(folder)
        folder.mkdir()


if __name__ == "__main__":
    main()
