"""What becomes of uploads: they lie in memory; the readers, which need files, get them in a private folder for a moment.

Files there are named after what they are, never after what the user called them: those names may be a patient's.
"""

from __future__ import annotations

import io
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..imaging.dicom import SUFFIXES as DICOM_SUFFIXES
from ..imaging.dicom import may_be_slice
from ..imaging.memory import available_memory
from ..imaging.readers import FILE_SUFFIXES, Volume, read_volume

SINGLE_FILES = tuple(suffix for suffix in FILE_SUFFIXES if suffix != ".mhd")  # .mhd names a second file
FORMATS = f"one {', '.join(SINGLE_FILES)} file, or the DICOM files of one series (as they are, or in one .zip)"
DAMAGED_ZIP = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
)
"""What unpacking a .zip that is damaged or encrypted raises."""


@dataclass(frozen=True)
class Upload:
    """A file that somebody uploaded; its content and name stay out of what is printed."""

    name: str = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def suffix(self) -> str:
        """The name's end, in small letters, if it is one that matters: `.nii.gz`, `.png`; else nothing."""
        name = self.name.lower()
        known = next((suffix for suffix in FILE_SUFFIXES if name.endswith(suffix)), None)
        plain = re.search(r"\.[a-z0-9]{1,5}$", name)
        return known or (plain.group() if plain else "")


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can look into (mode 0700), removed at the end whatever happens.

    An `InputError` from inside names its files without the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="emphysema-viewer-"))
    try:
        yield folder
    except InputError as error:
        error.args = (str(error).replace(f"{folder}/", "").replace(str(folder), "upload"),)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_upload(uploads: Sequence[Upload], role: str) -> Volume:
    """Read an uploaded CT or lung mask; `role` is its name in messages.

    Raises:
        InputError: it cannot be read.
    """
    with private_folder() as folder:
        path = _lay_out(uploads, role, folder)
        try:
            return replace(read_volume(path), name=role)
        except InputError as error:
            if "folder" not in error.expected:
                raise
            raise InputError(error.source, error.found, FORMATS) from error  # the page takes none


def _lay_out(uploads: Sequence[Upload], role: str, folder: Path) -> Path:
    if len(uploads) == 1 and uploads[0].suffix in SINGLE_FILES:
        path = folder / f"{role}{uploads[0].suffix}"
        path.write_bytes(uploads[0].content)
        return path
    series = folder / role
    series.mkdir()
    if len(uploads) == 1 and uploads[0].suffix == ".zip":
        _unpack(uploads[0].content, role, series)
        return series
    uploads = [upload for upload in uploads if not _is_no_slice(upload.name)]
    suffixes = {upload.suffix for upload in uploads} - {*DICOM_SUFFIXES, ".dicom", ""}
    other = sorted(suffix for suffix in suffixes if not suffix[1:].isdigit())  # many DICOM names end with a number
    if other:
        raise InputError(role, f"{_files(len(uploads))} of type {', '.join(other)}", FORMATS)
    for number, upload in enumerate(uploads):
        (series / _slice_name(number, upload.name)).write_bytes(upload.content)
    return series


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def _is_no_slice(name: str) -> bool:
    """Whether a file is passed over by its name, as in a folder: hidden, a DICOMDIR, or what macOS adds to archives."""
    *folders, base = name.replace("\\", "/").split("/")
    return base.startswith(".") or base.upper() == "DICOMDIR" or "__MACOSX" in folders


_LETTERS = str.maketrans("0123456789", "abcdefghij")


def _slice_name(number: int, name: str) -> str:
    """A name of our own. Only what is called DICOM keeps a suffix, and only what may be a slice by its name has digits: without
    them, `read_series` passes over other files."""
    if name.lower().endswith(DICOM_SUFFIXES):
        return f"{number:05d}.dcm"
    is_named_as_slice = may_be_slice(PurePosixPath(name.replace("\\", "/")).name)
    return f"{number:05d}" if is_named_as_slice else f"{number:05d}".translate(_LETTERS)


def _unpack(content: bytes, role: str, series: Path) -> None:
    """Write the files of a .zip that may be slices under names of our own, as far as they fit into the memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [file for file in archive.infolist() if not file.is_dir() and not _is_no_slice(file.filename)]
            size, free = sum(member.file_size for member in members), available_memory()
            if size > free // 2:
                found = f"the .zip unpacks to {size / 2**30:.1f} GiB"
                raise InputError(role, found, f"at most half of the {free / 2**30:.1f} GiB of memory that are free")
            for number, member in enumerate(members):
                with archive.open(member) as stream:
                    (series / _slice_name(number, member.filename)).write_bytes(stream.read(member.file_size))
    except DAMAGED_ZIP as error:
        raise InputError(role, f"the .zip cannot be unpacked ({type(error).__name__})", FORMATS) from error
