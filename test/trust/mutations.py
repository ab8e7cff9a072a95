"""Seeded damage to inputs: the same seed always makes the same file. Each function takes a generator and returns new bytes.

Every header that can hold text holds `PATIENT`, which must never come out again.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

PATIENT = b"Ottilie^Zweistein"

NUMBERS = (
    *(b"0", b"-1", b"1", b"2", b"3", b"7", b"1e400", b"nan", b"inf", b"-inf", b"1e-320", b"0x10", b"1,5", b"1e9"),
    *(b"2147483648", b"4294967297", b"9223372036854775808", b"99999999999999999999999999", b"-2147483649"),
)
TEXTS = (
    *(b"", b" ", b"%s%n%x", b"../../escaped", b"/etc/passwd", b"/dev/zero", b"\x00", b"\xff\xfe", b"A" * 70000, PATIENT),
    *("Größe 患者".encode(), b"\x1b[31m", b"LIST", b"LOCAL", b"True", b"MET_SHORT", b"short", b"3", b"{}", b"null"),
)

Mutation = Callable[[np.random.Generator, bytes], bytes]


def one_of(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def damaged(rng: np.random.Generator, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """Flip, overwrite, delete, repeat, move or cut off bytes between two places."""
    stop = len(data) if stop is None else min(stop, len(data))
    if stop - start < 2:
        return data
    for _ in range(int(rng.integers(1, 4))):
        first, last = sorted(int(place) for place in rng.integers(start, min(stop, len(data)) or 1, 2))
        last = min(last, first + int(rng.integers(1, 64)))
        run = data[first:last]
        match int(rng.integers(7)):
            case 0 if run:
                flipped = bytes([run[0] ^ (1 << int(rng.integers(8)))])
                data = data[:first] + flipped + data[first + 1 :]
            case 1:
                data = data[:first] + rng.bytes(len(run)) + data[last:]
            case 2:
                data = data[:first] + data[last:]
            case 3:
                data = data[:last] + run * int(rng.integers(1, 4)) + data[last:]
            case 4:
                data = data[:first] + one_of(rng, (b"\x00", b"\xff")) * len(run) + data[last:]
            case 5:
                data = data[:first] + one_of(rng, TEXTS + NUMBERS)[: stop - start] + data[last:]
            case _:
                data = data[: first + 1]
    return data


def damaged_lines(rng: np.random.Generator, header: bytes, separator: bytes) -> bytes:
    """Change values, names and order of a header's lines."""
    lines = header.split(b"\n")
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(lines)))
        key, found, value = lines[place].partition(separator)
        match int(rng.integers(9)):
            case 0:
                lines[place] = key + found + b" " + one_of(rng, TEXTS)
            case 1:
                lines[place] = key + found + b" " + b" ".join(one_of(rng, NUMBERS) for _ in range(int(rng.integers(1, 5))))
            case 2 | 3 if value.split():
                parts = value.split()
                parts[int(rng.integers(len(parts)))] = one_of(rng, NUMBERS)
                lines[place] = key + found + b" " + b" ".join(parts)
            case 4:
                del lines[place]
                lines = lines or [b""]
            case 5:
                lines.insert(int(rng.integers(len(lines))), lines[place])
            case 6:
                other = int(rng.integers(len(lines)))
                lines[place], lines[other] = lines[other], lines[place]
            case 7:
                lines[place] = damaged(rng, lines[place])
            case _:
                lines.insert(
                    place, one_of(rng, (b"PatientName", b"HeaderSize", b"byte skip", b"CompressedData")) + separator + b" 1"
                )
    return b"\n".join(lines)


def metaimage(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage to the header, or to the voxels."""
    end = data.index(b"ElementDataFile")
    if rng.random() < 0.6:
        return damaged_lines(rng, data[:end], b"=") + data[end:]
    if rng.random() < 0.2:
        return damaged_lines(rng, data[: data.index(b"\n", end)], b"=") + data[data.index(b"\n", end) :]
    return damaged(rng, data, end)


def nrrd(rng: np.random.Generator, data: bytes) -> bytes:
    """Likewise."""
    end = data.index(b"\n\n")
    return damaged_lines(rng, data[:end], b":") + data[end:] if rng.random() < 0.7 else damaged(rng, data, end)


_NIFTI_FIELDS = (
    *(("i", 0), ("c", 39)),
    *(("h", place) for place in range(40, 56, 2)),
    *(("h", place) for place in (68, 70, 72, 74, 252, 254)),
    *(("f", place) for place in (*range(76, 120, 4), *range(256, 328, 4))),
    *(("c", place) for place in (123, 344, 345, 346, 347, 348)),
)
_HOSTILE = {
    "c": (0, 1, 2, 8, 255),
    "h": (0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 128, 512, 1024, 2304, 32767, -32768),
    "i": (0, 348, 540, -1, 1543569408, 2147483647),
    "f": (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 352.0, 1e9, -1024.0, 0.5),
}


def nifti(rng: np.random.Generator, data: bytes) -> bytes:
    """Hostile numbers in header fields, or damage anywhere; inside or outside of the compression, if there is one."""
    if data[:2] == b"\x1f\x8b":
        if rng.random() < 0.3:
            return damaged(rng, data)
        return gzip.compress(nifti(rng, gzip.decompress(data)), 1, mtime=0)
    if rng.random() < 0.25:
        return damaged(rng, data)
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind, place = one_of(rng, _NIFTI_FIELDS)
        struct.pack_into("B" if kind == "c" else f"<{kind}", changed, place, one_of(rng, _HOSTILE[kind]))
    return bytes(changed)


def set_element(data: bytes, tag: tuple[int, int], value: bytes) -> bytes:
    """Replace a DICOM element's value; data without it come back as they are.

    The data are little endian, and implicit or, for a type of short length, explicit.
    """
    place = data.find(struct.pack("<HH", *tag), 132)
    if place < 0:
        return data
    is_explicit = data[place + 4 : place + 6].isalpha()
    layout, start = ("<H", place + 6) if is_explicit else ("<I", place + 4)
    (length,) = struct.unpack_from(layout, data, start)
    value = value[:65000] + b" " * (len(value[:65000]) % 2)
    return data[:start] + struct.pack(layout, len(value)) + value + data[place + 8 + length :]


_DICOM_NUMBERS = ((0x28, 0x30), (0x20, 0x32), (0x20, 0x37), (0x28, 0x1052), (0x28, 0x1053), (0x20, 0x13), (0x18, 0x50))
_DICOM_COUNTS = ((0x28, 0x2), (0x28, 0x10), (0x28, 0x11), (0x28, 0x100), (0x28, 0x101), (0x28, 0x102), (0x28, 0x103))
_DICOM_TEXTS = (
    (0x2, 0x10),
    (0x8, 0x18),
    (0x20, 0xD),
    (0x20, 0xE),
    (0x10, 0x10),
    (0x10, 0x20),
    (0x8, 0x60),
    (0x28, 0x4),
    (0x8, 0x5),
)


def dicom(rng: np.random.Generator, data: bytes) -> bytes:
    """Hostile values of tags, or damage anywhere in a slice."""
    match int(rng.integers(4)):
        case 0:
            parts = [one_of(rng, NUMBERS) for _ in range(int(rng.integers(1, 7)))]
            return set_element(data, one_of(rng, _DICOM_NUMBERS), b"\\".join(parts))
        case 1:
            return set_element(
                data, one_of(rng, _DICOM_COUNTS), struct.pack("<H", int(rng.choice([0, 1, 2, 7, 8, 12, 16, 32, 65535])))
            )
        case 2:
            return set_element(data, one_of(rng, _DICOM_TEXTS), one_of(rng, TEXTS + NUMBERS))
        case _:
            return damaged(rng, data, 0 if rng.random() < 0.3 else 128, len(data) if rng.random() < 0.3 else 1500)


_JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    10**30,
    "",
    "images/ct",
    "../..",
    "/etc",
    [],
    {},
    [[]],
    {"slug": 1},
    "\ud800",
    PATIENT.decode(),
)


def json_document(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage to the text, or another value in one of the document's places."""
    if rng.random() < 0.4:
        return damaged(rng, data)
    document = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in list(items):
            places.append((value, key))
            collect(inner)

    collect(document)
    if not places or rng.random() < 0.05:
        return json.dumps(one_of(rng, _JSON_VALUES)).encode()
    for _ in range(int(rng.integers(1, 3))):
        owner, key = one_of(rng, places)
        match int(rng.integers(4)):
            case 0 if isinstance(owner, dict):
                owner.pop(key, None)
            case 1 if isinstance(owner, dict):
                owner[str(one_of(rng, _JSON_VALUES))] = owner.get(key)
            case 2:
                nested: Any = one_of(rng, _JSON_VALUES)
                for _ in range(int(rng.integers(1, 400))):
                    nested = [nested]
                if key in owner if isinstance(owner, dict) else key < len(owner):
                    owner[key] = nested
            case _:
                if key in owner if isinstance(owner, dict) else key < len(owner):
                    owner[key] = one_of(rng, _JSON_VALUES)
    return json.dumps(document).encode()


def safetensors(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage to the header's length, its JSON, or the numbers."""
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = data[8 : 8 + length], data[8 + length :]
    match int(rng.integers(4)):
        case 0:
            length = int(rng.choice([0, 1, 7, len(header) - 1, len(header) + 1, 2**31, 2**62]))
        case 1:
            header = json_document(rng, header)
            length = len(header)
        case 2:
            values = np.frombuffer(numbers, "<f4").copy()
            values[rng.integers(len(values), size=8)] = rng.choice([np.nan, np.inf, 3e38, -3e38, 1e-40, 0.0])
            numbers = values.tobytes()
        case _:
            return damaged(rng, data)
    return struct.pack("<Q", length) + header + numbers


def csv(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage to a table's text, names or cells."""
    if rng.random() < 0.4:
        return damaged(rng, data)
    rows = [row.split(b",") for row in data.split(b"\n")]
    for _ in range(int(rng.integers(1, 4))):
        row = one_of(rng, rows)
        row[int(rng.integers(len(row)))] = one_of(rng, (*TEXTS, *NUMBERS, b'"', b"\r", b"\t", b"train", b"a\nb"))
    return b"\n".join(b",".join(row) for row in rows)


def hostile_voxels(rng: np.random.Generator, voxels: np.ndarray) -> np.ndarray:
    """A volume of another type, with extreme values in it."""
    kind = np.dtype(one_of(rng, ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")))
    with np.errstate(over="ignore", invalid="ignore"):
        changed = voxels.astype(kind)
    if kind.kind == "f":
        extremes: tuple[Any, ...] = (np.nan, np.inf, -np.inf, np.finfo(kind).max, -np.finfo(kind).max, 1e-40, -1e9)
    else:
        extremes = (np.iinfo(kind).min, np.iinfo(kind).max, 0, 1)
    for _ in range(int(rng.integers(1, 4))):
        share = float(rng.choice([1e-4, 1e-2, 0.3, 1.0], p=[0.4, 0.4, 0.15, 0.05]))
        changed[rng.random(changed.shape) < share] = one_of(rng, extremes)
    return changed


def bomb(size: int) -> bytes:
    """A compressed stream that grows to `size` bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()
