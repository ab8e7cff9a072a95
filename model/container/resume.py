"""What a later run needs to know of a scored case to skip it (`--resume`), or to remove what was written of it.

Each run notes its scored cases in a file beside `results.json`, which holds what would differ from run to run there: names,
sizes and times of input files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from .schema import Described, from_json, to_json

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What was noted of a scored case."""

    stat: Annotated[str, Described("sha256 over names, sizes and times of modification of the case's files.")]
    options: Annotated[dict[str, str], Described("Options of the run that change what is written.")]
    files: Annotated[tuple[str, ...], Described("What was written of the case, relative to the output folder.")]
    sha256: Annotated[str | None, Described("sha256 over names and contents of the case's files; with --verify alone.")] = None


def stat_fingerprint(paths: Sequence[Path]) -> str:
    """Fingerprint of files and series folders: names, sizes and times of modification (ns).

    Folders above do not count, so that an input may be mounted elsewhere.

    Raises:
        OSError: a file is missing or cannot be looked at.
    """
    lines = []
    for path in _files(paths):
        status = path.stat()
        lines.append(f"{path.name!r} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_fingerprint(paths: Sequence[Path]) -> str:
    """Fingerprint of files and series folders: names and contents.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    total = hashlib.sha256()
    for path in _files(paths):
        with path.open("rb") as stream:
            total.update(f"{path.name!r} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _files(paths: Sequence[Path]) -> list[Path]:
    """Files, those of folders, and the voxels that lie beside an .mhd header."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(inside for inside in path.iterdir() if inside.is_file())
        elif path.suffix.lower() == ".mhd":
            found += sorted(beside for beside in path.parent.iterdir() if beside.is_file() and beside.stem == path.stem)
        else:
            found.append(path)
    return found


def records_text(records: Mapping[str, Record]) -> str:
    """The content of the file of notes; records by entity."""
    cases = {entity: to_json(record) for entity, record in records.items()}
    return json.dumps({"format": FORMAT, "cases": cases}, indent=1) + "\n"


def read_records(path: Path) -> dict[str, Record]:
    """Read the notes of an earlier run; empty where there are none, or none of this format: then every case is scored."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            return {}
        return {entity: from_json(Record, case) for entity, case in document["cases"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
