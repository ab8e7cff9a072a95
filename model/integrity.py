"""Whether the voxels of a file are whole: ITK's readers pass some damage on silently, and a scan must never be half another.

What they were seen to do: a truncated NIfTI file is filled up with whatever is in memory, and a flipped bit in a compressed
MetaImage goes unnoticed unless it breaks the stream's structure, because its checksum is not looked at.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from model.errors import InputError

_CHUNK = 1 << 22
_LONGEST_HEADER = 1 << 20
_ZLIB_OR_GZIP = 47  # for zlib.decompressobj: find out which by the first bytes


def check_payload(path: Path) -> None:
    """Check the length or the checksum of a file's voxels, whichever its format has; a folder has neither.

    Raises:
        InputError: they are cut off or damaged.
    """
    name = path.name.lower()
    try:
        if path.is_dir():
            return
        if name.endswith((".nii", ".nii.gz")):
            _check_nifti(path)
        elif name.endswith((".mha", ".mhd")):
            _check_metaimage(path)
        elif name.endswith(".nrrd"):
            _check_nrrd(path)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(path, f"its voxels are damaged or cut off ({error})", "a whole file") from error


def _check_nifti(path: Path) -> None:
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        header = stream.read(348)
        present = len(header)
        while chunk := stream.read(_CHUNK):
            present += len(chunk)
    if len(header) < 348:
        return  # no NIfTI file at all, which the reader will say
    order = "<" if struct.unpack("<i", header[:4]) == (348,) else ">"
    dimensions, *sizes = struct.unpack(f"{order}8h", header[40:56])
    (bits,) = struct.unpack(f"{order}h", header[72:74])
    (start,) = struct.unpack(f"{order}f", header[108:112])
    needed = (int(start) if math.isfinite(start) else 0) + math.prod(sizes[:dimensions]) * bits // 8
    if present < needed:
        raise EOFError(f"{present} of {needed} bytes")


def _check_metaimage(path: Path) -> None:
    with path.open("rb") as stream:
        fields = {}
        while line := stream.readline(_LONGEST_HEADER):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        if fields.get("CompressedData", "").lower() != "true":
            return  # the reader itself refuses a file that is too short
        data_file = fields.get("ElementDataFile", "")
        if data_file.upper() == "LOCAL":
            _inflate(stream)
        elif (path.parent / data_file).is_file():
            with (path.parent / data_file).open("rb") as data:
                _inflate(data)


def _check_nrrd(path: Path) -> None:
    with path.open("rb") as stream:
        encoding = ""
        while (line := stream.readline(_LONGEST_HEADER)) not in (b"\n", b"\r\n", b""):
            key, _, value = line.decode("latin-1").partition(":")
            if key.strip() == "encoding":
                encoding = value.strip().lower()
        if encoding in ("gz", "gzip"):
            _inflate(stream)


def _inflate(stream: BinaryIO) -> None:
    """Run through a compressed payload, which compares its checksum, and forget what comes out."""
    decompressor = zlib.decompressobj(_ZLIB_OR_GZIP)
    while not decompressor.eof:
        chunk = stream.read(_CHUNK)
        if not chunk:
            raise EOFError("the compressed data end too early")
        while chunk and not decompressor.eof:
            decompressor.decompress(chunk, _CHUNK)
            chunk = decompressor.unconsumed_tail
