"""Whether the voxels of a file are whole: ITK's readers pass some damage on silently, and a scan must never be half another.

What they were seen to do: a truncated NIfTI file is filled up with whatever is in memory, and so is a compressed MetaImage
whose header asks for more slices than it holds; one that asks for fewer loses the rest; a flipped bit in a compressed
MetaImage goes unnoticed unless it breaks the stream's structure, because its checksum is not looked at; a header that names
another file as its voxels is followed wherever it leads, to a device or another patient's folder; one with a negative or
huge number of dimensions ends the process.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from model.errors import InputError

_CHUNK = 1 << 22
_LONGEST_HEADER = 1 << 20
_ZLIB_OR_GZIP = 47  # for zlib.decompressobj: find out which by the first bytes
_DIMENSIONS = ("1", "2", "3", "4")
_SLACK = 4096
"""Bytes that may follow the voxels: some programs write a line break or fill up a block."""

_BESIDE = "the voxels in the file itself, or in one file beside it"


def check_references(path: Path) -> None:
    """Check that a file's header names no voxels but its own or those of one regular file in the same folder or below.

    Raises:
        InputError: it names another file, several, or something that is no file; it scales its values, which no reader does;
            or its number of dimensions would crash the reader.
    """
    with path.open("rb") as stream:
        fields = _header(stream, path)
    slope = fields.get("ElementToIntensityFunctionSlope", "1")
    offset = fields.get("ElementToIntensityFunctionOffset", "0")
    try:
        scaled = (float(slope), float(offset)) != (1, 0)
    except ValueError:
        scaled = True
    if scaled:
        raise InputError(path, "its header scales the values by an intensity function, which is not applied", "values in HU")
    _data_file(path, fields)


def check_payload(path: Path, needed: int) -> None:
    """Check the length and, where its format has one, the checksum of a file's voxels; a DICOM file or folder has neither.

    Args:
        path: a file that `check_references` let pass, or a folder.
        needed: bytes of all voxels in memory (NIfTI files say themselves what they take on disk).

    Raises:
        InputError: they are cut off, damaged, or more than the header speaks of.
    """
    name = path.name.lower()
    try:
        if path.is_dir():
            return
        if name.endswith((".nii", ".nii.gz")):
            _check_nifti(path)
        elif name.endswith((".mha", ".mhd", ".nrrd")):
            _check_described(path, needed)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(path, f"its voxels are damaged or cut off ({error})", "a whole file") from error


def _check_nifti(path: Path) -> None:
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        header = stream.read(348)
        if len(header) < 348:
            return  # no NIfTI file at all, which the reader will say
        order = "<" if struct.unpack("<i", header[:4]) == (348,) else ">"
        dimensions, *sizes = struct.unpack(f"{order}8h", header[40:56])
        (bits,) = struct.unpack(f"{order}h", header[72:74])
        (start,) = struct.unpack(f"{order}f", header[108:112])
        needed = (int(start) if math.isfinite(start) else 0) + math.prod(sizes[:dimensions]) * bits // 8
        present = len(header)
        while chunk := stream.read(_CHUNK):
            present += len(chunk)
            _check_length(present, needed, at_end=False)
    _check_length(present, needed)


def _check_described(path: Path, needed: int) -> None:
    """A format whose header is text (MetaImage, NRRD)."""
    with path.open("rb") as stream:
        fields = _header(stream, path)
        start = stream.tell()
    data_file = _data_file(path, fields)
    with data_file.open("rb") as stream:
        stream.seek(start if data_file == path else 0)
        if _is_true(fields.get("CompressedData")) or fields.get("encoding", "").lower() in ("gz", "gzip"):
            _inflate(stream, needed)
        elif not _has_own_layout(fields):
            _check_length(stream.seek(0, os.SEEK_END) - (start if data_file == path else 0), needed)


def _is_true(value: str | None) -> bool:
    """As MetaImage's reader has it."""
    return value is not None and value[:1].lower() in ("t", "1")


def _has_own_layout(fields: dict[str, str]) -> bool:
    """Whether the voxels are text, or lie behind something that is to be skipped: their length tells nothing then."""
    is_text = not _is_true(fields.get("BinaryData", "True")) or fields.get("encoding", "raw").lower() != "raw"
    return is_text or any(fields.get(key, "0") != "0" for key in ("HeaderSize", "lineskip", "byteskip"))


def _check_length(present: int, needed: int, *, at_end: bool = True) -> None:
    if at_end and present < needed:
        raise EOFError(f"{present} of {needed} bytes")
    if present > needed + _SLACK:
        raise EOFError(f"{present - needed} bytes more than the {needed} that its header speaks of")


def _header(stream: BinaryIO, path: Path) -> dict[str, str]:
    """The fields of a MetaImage or NRRD header, and of any other format none; leaves the stream behind the header.

    Names are spelt as the formats' descriptions do, those of NRRD (which its reader takes in any spelling) in small letters
    without spaces.
    """
    fields: dict[str, str] = {}
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        while line := stream.readline(_LONGEST_HEADER):
            text = os.fsdecode(line)
            separator = min((place for place in (text.find("="), text.find(":")) if place >= 0), default=len(text))
            key, value = text[:separator].strip(), text[separator + 1 :].strip()
            if key == "NDims" and value not in _DIMENSIONS:
                raise InputError(path, "its header speaks of a number of dimensions that no image has", "a 3D volume")
            fields[key] = value
            if key == "ElementDataFile":
                break
    elif name.endswith(".nrrd"):
        while (line := stream.readline(_LONGEST_HEADER)) not in (b"\n", b"\r\n", b""):
            key, _, value = os.fsdecode(line).partition(":")
            fields[key.strip().lower().replace(" ", "")] = value.strip()
    return fields


def _data_file(path: Path, fields: dict[str, str]) -> Path:
    """The file that holds the voxels."""
    name = fields.get("ElementDataFile", fields.get("datafile", "LOCAL"))
    if name.upper() == "LOCAL":
        return path
    data_file = path.parent / name
    inside = name.isprintable() and not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not data_file.is_file():
        raise InputError(path, "its header names voxels that lie elsewhere, in several files, or nowhere", _BESIDE)
    return data_file


def _inflate(stream: BinaryIO, needed: int) -> None:
    """Run through a compressed payload, which compares its checksum, count what comes out, and forget it."""
    decompressor = zlib.decompressobj(_ZLIB_OR_GZIP)
    present = 0
    while not decompressor.eof:
        chunk = stream.read(_CHUNK)
        if not chunk:
            raise EOFError("the compressed data end too early")
        while chunk and not decompressor.eof:
            present += len(decompressor.decompress(chunk, _CHUNK))
            _check_length(present, needed, at_end=False)
            chunk = decompressor.unconsumed_tail
    _check_length(present, needed)
