"""Files and folders that appear whole or not at all.

`whole_file` and `whole_folder` write one beside its place and rename it. `WholeFiles` is for a run that has an output folder
for itself and writes several files that appear together. Readers find the old content or the new, whatever the writer suffers.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import InputError, check_name, reason


class FolderInUseError(InputError):
    """Another run is writing into a folder."""


_PREFIX = ".partial-"
"""Of the files of `WholeFiles`, which the next run in that folder removes."""
_UNFINISHED = ".unfinished-"
"""Of what `whole_file` and `whole_folder` are writing. Its writer holds a lock on it: without a lock, the writer is dead."""
_ASIDE = ".aside-"
"""Of a folder that holds an old folder while the new one takes its name."""

_LONGEST_SUFFIX = 16
"""In bytes. What is longer tells no format: the name of a folder may have its dots anywhere."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""From Linux' fcntl.h and fs.h."""


def is_free(folder: Path) -> bool:
    """Whether a folder is new or empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def check_free(folder: Path) -> None:
    """Check that a folder is new or empty.

    Raises:
        InputError: it holds something, or is a file.
    """
    if not is_free(folder):
        raise InputError(folder, "it already holds something", "a new or empty folder")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"it cannot be created ({reason(error)})", "a folder that can be written") from error


def try_folder(folder: Path) -> None:
    """Make a folder as `make_folder` does, and try whether files can be written into it.

    Raises:
        InputError: it cannot be made or written.
    """
    make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise InputError(folder, f"it cannot be written ({reason(error)})", "a folder that can be written") from error


def check_replaceable(final: Path) -> None:
    """Check, before the work, that `whole_folder` can make a folder or put one in its place.

    Raises:
        InputError: it is a mount or the working directory, or its parent cannot be written.
    """
    place = final.resolve()
    if os.path.ismount(place) or place == Path.cwd():
        raise InputError(final, "it cannot be replaced as a whole", f"a new folder, such as {final / 'new'}")
    try_folder(place.parent)


@contextlib.contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Yield a path to write a file to; when the block ends, it becomes `final`, in place of an earlier file of that name.

    If the block raises, nothing is changed. What writers that were killed left in the folder is removed.

    Raises:
        OSError: the file cannot be written.
    """
    with _unfinished(final, Path.touch) as partial:
        yield partial
        _flush(partial)
        partial.replace(final)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder by their names; each appears whole, in place of an earlier one.

    Raises:
        OSError: one cannot be written.
    """
    for name, content in files.items():
        with whole_file(folder / name) as partial:
            partial.write_bytes(content)


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a new folder to write into; when the block ends, it becomes `final`, in place of what had that name.

    An old folder keeps its name until the new one takes it, in one step. Where the file system has no such step, the old one is
    moved aside first; `recover` puts it back if the writer was killed before the new one had its name.

    Raises:
        OSError: the folder cannot be written.
    """
    with _unfinished(final, Path.mkdir) as partial:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                _flush(path)
        if not os.path.lexists(final):
            partial.rename(final)
        elif not _exchange(partial, final):
            _replace_in_two_steps(partial, final)


def recover(final: Path) -> None:
    """Put back a folder whose writer was killed after moving it aside, before the new one had its name; see `whole_folder`."""
    if not os.path.lexists(final):
        _clean_up(final.parent)


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
        check_name(folder)
        try:
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
        except BlockingIOError:
            raise FolderInUseError(folder, "another run is writing into this folder", "a folder for each run") from None
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

    @property
    def pending(self) -> tuple[Path, ...]:
        """The files that appear when the `with` block ends."""
        return tuple(self._pending.values())

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


def _partial_name(suffix: str, prefix: str = _PREFIX) -> str:
    """Unlike any other run's, also where containers number their processes alike; and shorter than a long name."""
    return f"{prefix}{secrets.token_hex(8)}{suffix if len(os.fsencode(suffix)) <= _LONGEST_SUFFIX else ''}"


@contextlib.contextmanager
def _unfinished(final: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder beside `final`, to be renamed; what has its name when the block ends is removed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(final.parent)
    with _locked_place(final, _UNFINISHED, make) as partial:
        yield partial


@contextlib.contextmanager
def _locked_place(final: Path, prefix: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make a file or folder beside `final` that is locked during the block and removed at its end."""
    while True:
        path = final.with_name(_partial_name(final.suffix, prefix))
        make(path)
        try:
            lock = _locked(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # `_clean_up` of another process found it without a lock, and removes it
        if lock is None or os.path.lexists(path):
            break
        os.close(lock)
    try:
        yield path
    finally:
        _remove(path)
        if lock is not None:
            os.close(lock)


def _replace_in_two_steps(new: Path, final: Path) -> None:
    with _locked_place(final, _ASIDE, Path.mkdir) as aside:
        old = aside / final.name
        final.rename(old)
        try:
            new.rename(final)
        except BaseException:
            old.rename(final)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two files or folders swap their names in one step; False where the system or the file system cannot."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "renameat2"):
        return False
    return library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _clean_up(folder: Path) -> None:
    """Remove what killed writers left in a folder; put back what they had moved aside, if nothing has its name.

    Where locks do not exist, a writer may be alive: then nothing is removed.
    """
    for left in (*folder.glob(f"{_UNFINISHED}*"), *folder.glob(f"{_ASIDE}*")):
        try:
            lock = _locked(left)
        except (BlockingIOError, FileNotFoundError):  # its writer is alive, or has just finished
            continue
        if left.name.startswith(_ASIDE):
            for old in left.iterdir():
                with contextlib.suppress(OSError):  # a folder that is not empty has the name
                    old.rename(folder / old.name)
        if lock is not None:
            _remove(left)
            os.close(lock)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock a file or folder during the block, where its file system has locks.

    Args:
        shared: let other processes lock it so, too.

    Raises:
        BlockingIOError: another process has locked it.
    """
    lock = _locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(path: Path, kind: int = fcntl.LOCK_EX) -> int | None:
    """Lock a file or folder for this process; None where its file system, or our rights, do not allow that.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _flush(path: Path) -> None:
    """Wait until a file is on the disk: a file system in a network reports only then that it is full."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
