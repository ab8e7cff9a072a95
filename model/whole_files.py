"""Files that appear whole or not at all, in a folder that one run has to itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import InputError

_PREFIX = ".partial-"


class WholeFiles:
    """Writes files beside their places and renames them; those of one `with` block appear together when it ends, or none does.

    The folder is locked until `close` or the end of the process, so that no two runs mix their results. What a killed run
    left half-written is removed by the next.
    """

    def __init__(self, folder: Path, subfolders: Iterable[str] = ()) -> None:
        """Make the folder if need be, lock it, and try whether it can be written.

        Args:
            folder: where the files go.
            subfolders: those of its folders in which an earlier run may have left half-written files.

        Raises:
            InputError: it cannot be written, or another run is writing there.
        """
        self.folder = folder
        self._pending: dict[Path, Path] = {}
        self._lock: weakref.finalize[[int], WholeFiles] | None = None
        try:
            str(folder).encode()
            folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(folder)
            if lock is not None:
                self._lock = weakref.finalize(self, os.close, lock)
                # Without a lock they could be another run's.
                for place in (folder, *(folder / name for name in subfolders)):
                    for partial in place.glob(f"{_PREFIX}*"):
                        partial.unlink(missing_ok=True)
            probe = folder / _partial_name("")
            probe.touch(exist_ok=False)
            probe.unlink()
        except UnicodeEncodeError:
            raise InputError(folder, "the name is not valid UTF-8", "a name in UTF-8") from None
        except BlockingIOError:
            raise InputError(folder, "another run is writing into this folder", "a folder for each run") from None
        except OSError as error:
            self.close()
            raise InputError(folder, f"the output folder cannot be written ({error.strerror})", "a folder") from error

    def close(self) -> None:
        """Let other runs write into the folder."""
        if self._lock is not None:
            self._lock()

    def partial(self, final: Path) -> Path:
        """Return a new name beside `final`, which is renamed to it at the end of the `with` block.

        Raises:
            InputError: `final` would lie outside of the folder, because a link leads there.
            OSError: its folder cannot be made.
        """
        final.parent.mkdir(parents=True, exist_ok=True)
        if not final.parent.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(final.parent, "a link leads out of the output folder", "folders inside of it")
        partial = final.with_name(_partial_name(final.suffix))
        self._pending[partial] = final
        return partial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pending, self._pending = self._pending, {}
        try:
            if kind is None:
                for partial in pending:
                    _flush(partial)
                for partial, final in pending.items():
                    partial.replace(final)
        finally:
            for partial in pending:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)


def _partial_name(suffix: str) -> str:
    """Unlike any other run's, also where containers number their processes alike; and shorter than a long name."""
    return f"{_PREFIX}{secrets.token_hex(8)}{suffix}"


def _locked(folder: Path) -> int | None:
    """Lock a folder for this process; None where its file system, or our rights, do not allow that.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _flush(path: Path) -> None:
    """Wait until a file is on the disk: a network's file system tells only then that it is full."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
