"""Checks that a file is complete and its header safe to read: ITK's readers accept some damage without an error.

They were observed to fill a truncated NIfTI file with uninitialised memory, and likewise a compressed MetaImage whose header
states more slices than the file holds; to drop slices that the header does not mention; to miss flipped bits in a compressed
MetaImage, because they do not compare its checksum; to follow a header that names another file, even a device or a file in
another patient's folder; to crash on a negative or huge number of dimensions and on overlong lines; to loop forever on an
infinite position; and to assume voxels of 1 mm where the header states no spacing.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from itertools import product
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ..errors import InputError
from .geometry import ImageGeometry

_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 20
_ZLIB_OR_GZIP = 47  # for zlib.decompressobj: detect the format by the first bytes
_NIFTI_HEADER = 348
_FARTHEST = 1e7
"""Largest plausible number in a NIfTI transform, in mm."""

_LONGEST_FIELD = 500
"""Longest line of a NRRD header in bytes, except comments and pairs: from about 1000 bytes, its reader overruns its stack."""

_DESCRIBED = (".mha", ".mhd", ".nrrd")
"""Formats whose header is text."""

_PATIENT_SPACE = re.compile(r"(right-anterior|left-anterior|left-posterior)-superior(-time)?|(ras|las|lps)t?", re.IGNORECASE)
"""Spaces of NRRD that name directions of the patient."""

_NO_ORIENTATION = "the file states no orientation: right and left may be swapped"

_NIFTI_METRE, _NIFTI_MICRON = 1, 3
_TRANSFORMS_APART_MM = 1.0
"""Corners of an image lie less far apart if its transforms differ by rounding alone."""

_DIMENSIONS = ("1", "2", "3", "4")
_SLACK = 4096
"""Bytes that may follow the voxels: some programs append a line break or padding."""

_BESIDE = "the voxel data in the file itself, or in one file beside it"


def check_header(path: Path) -> None:
    """Check a header before a reader opens the file: some headers lead the reader elsewhere, crash it or block it.

    Raises:
        InputError: the header refers to voxel data that are neither its own nor in one regular file in the same folder or
            below; it scales the values, which the readers ignore; or it states invalid dimensions or positions.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _check_nifti_place(path)
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


def check_grid(path: Path, geometry: ImageGeometry) -> tuple[str, ...]:
    """Check that a header states the voxel spacing: where it does not, readers take 1 mm.

    Args:
        path: a file that passed `check_header`, and whose header a reader has read.
        geometry: the grid that the reader found there.

    Returns:
        warnings, one sentence each: the header does not say how the axes lie in the patient, or says it twice, differently.

    Raises:
        InputError: it does not state the spacing.
    """
    name = path.name.lower()
    states_spacing = True
    warnings: tuple[str, ...] = ()
    if name.endswith((".nii", ".nii.gz")):
        states_spacing, warnings = _nifti_grid(path, geometry)
    elif name.endswith(_DESCRIBED):
        with path.open("rb") as stream:
            fields = _header(stream, path)
        if name.endswith(".nrrd"):
            states_spacing = _distances(fields.get("spacings", "")) >= 3 or _distances(fields.get("spacedirections", "")) >= 3
            # ITK names no space where it writes four axes; its own is that of the patient
            if not _PATIENT_SPACE.fullmatch(fields.get("space", "")) and fields.get("spacedimension") != "4":
                warnings = (_NO_ORIENTATION,)
        else:
            states_spacing = "ElementSpacing" in fields or "ElementSize" in fields
    if not states_spacing:
        raise InputError(path, "its header states no voxel spacing", "spacing in mm")
    return warnings


def _distances(value: str) -> int:
    """For how many axes a field of NRRD states a distance or a vector: neither `nan` nor `none`."""
    return sum("n" not in entry.lower() for entry in re.findall(r"\([^()]*\)|[^\s()]+", value))


def check_payload(path: Path, needed: int) -> None:
    """Check the length of a file's voxel data and, where the format has one, the checksum; DICOM has neither.

    Args:
        path: a file that passed `check_header`, or a folder.
        needed: bytes of all voxels in memory (NIfTI headers state the bytes on disk).

    Raises:
        InputError: the data are cut off, damaged, or longer than the header states.
    """
    name = path.name.lower()
    try:
        if path.is_dir():
            return
        if name.endswith((".nii", ".nii.gz")):
            _check_nifti(path)
        elif name.endswith(_DESCRIBED):
            _check_described(path, needed)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(path, f"its voxels are damaged or cut off ({error})", "a whole file") from error


def has_checksum(path: Path) -> bool:
    """Whether a file ends with a checksum of its voxels: the header is text, and the voxels are compressed."""
    if not path.is_file() or not path.name.lower().endswith(_DESCRIBED):
        return False
    with path.open("rb") as stream:
        return _is_compressed(_header(stream, path))


def matches_checksum(path: Path, voxels: np.ndarray) -> bool:
    """Whether the checksum at the end of a file (see `has_checksum`) is that of the voxels that were read from it.

    If so, they are complete, and need not be decompressed a second time. If not, `check_payload` decides: the reader may have
    swapped bytes, or padding may follow the checksum.
    """
    _, data_file, start = _payload(path)
    with data_file.open("rb") as stream:
        stream.seek(start)
        gzipped = stream.read(2) == b"\x1f\x8b"
        if stream.seek(0, os.SEEK_END) < start + 10:
            return False
        stream.seek(-8, os.SEEK_END)
        trailer = stream.read(8)
    if gzipped:
        return trailer == struct.pack("<II", zlib.crc32(voxels.data), voxels.nbytes & 0xFFFFFFFF)
    return trailer[4:] == struct.pack(">I", zlib.adler32(voxels.data))


def _check_nifti_place(path: Path) -> None:
    """Check voxel sizes and both transforms: the reader was observed to loop forever on an infinite rotation."""
    try:
        with _nifti(path) as stream:
            header = stream.read(_NIFTI_HEADER)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(path, f"it is damaged or cut off ({error})", "a whole file") from error
    if len(header) < _NIFTI_HEADER:
        return  # not a NIfTI file; the reader reports that
    order = _nifti_order(header)
    numbers = (*struct.unpack(f"{order}4f", header[76:92]), *struct.unpack(f"{order}18f", header[256:328]))
    if not all(abs(number) < _FARTHEST for number in numbers):
        raise InputError(path, "its header states an implausible position or voxel size", "voxel sizes and transforms in mm")


def _nifti_grid(path: Path, geometry: ImageGeometry) -> tuple[bool, tuple[str, ...]]:
    """Whether a header states voxel sizes, and warnings about its transforms, the qform and the sform."""
    with _nifti(path) as stream:
        header = stream.read(_NIFTI_HEADER)
    order = _nifti_order(header)
    qfac, *sizes = struct.unpack(f"{order}4f", header[76:92])
    has_sizes = all(sizes)
    codes = struct.unpack(f"{order}2h", header[252:256])
    numbers = np.array(struct.unpack(f"{order}18f", header[256:328]))
    units = {_NIFTI_METRE: 1000.0, _NIFTI_MICRON: 0.001}.get(header[123] & 7, 1.0)
    qform = _qform(numbers[:3], numbers[3:6], np.array([*sizes[:2], -sizes[2] if qfac < 0 else sizes[2]]))
    matrices = {"qform": qform, "sform": numbers[6:].reshape(3, 4)}
    stated = {name: units * matrix for (name, matrix), code in zip(matrices.items(), codes, strict=True) if code > 0}
    if not stated:
        return has_sizes, (_NO_ORIENTATION,)
    axes = np.reshape(geometry.direction, (3, 3)) * geometry.spacing
    used = np.column_stack([axes, geometry.origin]) * [[-1], [-1], [1]]  # towards right, anterior, superior
    corners = np.array(list(product(*((0, size - 1) for size in geometry.size), (1,))))
    apart = [name for name, matrix in stated.items() if np.abs(corners @ (matrix - used).T).max() > _TRANSFORMS_APART_MM]
    if not apart:
        return has_sizes, ()
    if len(apart) == len(stated):
        return has_sizes, (f"the file's voxel sizes and its {' and '.join(apart)} differ; the voxel sizes were used",)
    (taken,) = stated.keys() - apart
    return has_sizes, (f"the file's qform and sform differ; the {taken} was used",)


def _qform(imaginary: np.ndarray, offset: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The matrix (3 x 4) of a quaternion, an offset and voxel sizes (the third with its sign): method 2 of NIfTI-1."""
    b, c, d = imaginary
    a = math.sqrt(max(1 - float(imaginary @ imaginary), 0))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    return np.column_stack([rotation * sizes, offset])


def _nifti(path: Path) -> BinaryIO:
    """Open a NIfTI file, decompressed if it is compressed, whatever its name; its reader does the same."""
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb")


def _nifti_order(header: bytes) -> str:
    return "<" if struct.unpack("<i", header[:4]) == (_NIFTI_HEADER,) else ">"


def _check_nifti(path: Path) -> None:
    with _nifti(path) as stream:
        header = stream.read(_NIFTI_HEADER)
        if len(header) < _NIFTI_HEADER:
            return  # as above
        order = _nifti_order(header)
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
    """Check a format whose header is text (MetaImage, NRRD)."""
    fields, data_file, start = _payload(path)
    with data_file.open("rb") as stream:
        stream.seek(start)
        if _is_compressed(fields):
            _inflate(stream, needed)
        elif not _has_own_layout(fields):
            _check_length(stream.seek(0, os.SEEK_END) - start, needed)


def _payload(path: Path) -> tuple[dict[str, str], Path, int]:
    """The fields of a text header, the file that holds the voxels, and their offset in it."""
    with path.open("rb") as stream:
        fields = _header(stream, path)
        data_file = _data_file(path, fields)
        return fields, data_file, stream.tell() if data_file == path else 0


def _is_compressed(fields: dict[str, str]) -> bool:
    return _is_true(fields.get("CompressedData")) or fields.get("encoding", "").lower() in ("gz", "gzip")


def _is_true(value: str | None) -> bool:
    """Whether a value means true to MetaImage's reader."""
    return value is not None and value[:1].lower() in ("t", "1")


def _has_own_layout(fields: dict[str, str]) -> bool:
    """Whether the voxels are text or begin after skipped bytes: then their length cannot be checked."""
    is_text = not _is_true(fields.get("BinaryData", "True")) or fields.get("encoding", "raw").lower() != "raw"
    return is_text or any(fields.get(key, "0") != "0" for key in ("HeaderSize", "lineskip", "byteskip"))


def _check_length(present: int, needed: int, *, at_end: bool = True) -> None:
    if at_end and present < needed:
        raise EOFError(f"{present} of {needed} bytes")
    if present > needed + _SLACK:
        raise EOFError(f"{present - needed} bytes more than the {needed} that its header states")


def _header(stream: BinaryIO, path: Path) -> dict[str, str]:
    """The fields of a MetaImage or NRRD header, empty for other formats; the stream is then at the end of the header.

    Names are spelt as in the file; those of NRRD, whose reader ignores case and spaces, in lower case without spaces.
    """
    fields: dict[str, str] = {}
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        while line := stream.readline(_LONGEST_HEADER):
            text = os.fsdecode(line)
            separator = min((place for place in (text.find("="), text.find(":")) if place >= 0), default=len(text))
            key, value = text[:separator].strip(), text[separator + 1 :].strip()
            if key == "NDims" and value not in _DIMENSIONS:
                raise InputError(path, "its header states an invalid number of dimensions", "a 3D volume")
            fields[key] = value
            if key == "ElementDataFile":
                break
    elif name.endswith(".nrrd"):
        while (line := stream.readline(_LONGEST_HEADER)) not in (b"\n", b"\r\n", b""):
            key, _, value = os.fsdecode(line).partition(":")
            if len(line) > _LONGEST_FIELD and not line.startswith(b"#") and not value.startswith("="):
                raise InputError(path, "its header has an overlong line", f"at most {_LONGEST_FIELD} bytes")
            fields[key.strip().lower().replace(" ", "")] = value.strip()
    return fields


def data_file_of(path: Path) -> Path:
    """The file that holds the voxels of an image: the file itself, or what a detached header names.

    Raises:
        InputError: the header is damaged, or names no such file.
        OSError: the header cannot be read.
    """
    return _payload(path)[1]


def _data_file(path: Path, fields: dict[str, str]) -> Path:
    """The file that holds the voxels."""
    name = fields.get("ElementDataFile", fields.get("datafile", "LOCAL"))
    if name.upper() == "LOCAL":
        return path
    data_file = path.parent / name
    inside = name.isprintable() and not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not data_file.is_file():
        raise InputError(path, "its header refers to voxel data that lie elsewhere, in several files, or do not exist", _BESIDE)
    return data_file


def _inflate(stream: BinaryIO, needed: int) -> None:
    """Decompress a payload, which compares its checksum, and count its bytes without keeping them."""
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
