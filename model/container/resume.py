"""What a later run needs to know of a scored case to skip it (`--resume`), or to remove what was written of it.

Each run notes its scored cases in a file beside `results.json`, which holds what would differ from run to run there: names,
sizes and times of input files. Where `results.json` is not written after each case, because a run has very many, a small file
for each case keeps its result until then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..imaging.readers import files_behind
from .results import CaseResult, Provenance
from .schema import Described, from_json, to_json

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What was noted of a scored case."""

    stat: Annotated[str, Described("sha256 over names, sizes and times of modification of the case's files.")]
    options: Annotated[
        dict[str, str], Described("Options that change what is written, and whether the mask's labels mean lobes.")
    ]
    files: Annotated[tuple[str, ...], Described("What was written of the case, relative to the output folder.")]
    sha256: Annotated[str | None, Described("sha256 over names and contents of the case's files; with --verify alone.")] = None


@dataclass(frozen=True)
class FinishedCase:
    """A scored case: its result, and what was noted of it."""

    result: Annotated[CaseResult, Described("As results.json has it.")]
    record: Annotated[Record, Described("What a later run needs to know to skip the case.")]


def options_of_case(options: Mapping[str, str], lobes: bool) -> dict[str, str]:
    """What `Record.options` has for a case: the run's options, and whether the labels of its mask mean lobes."""
    return {**options, "lobes": str(lobes)}


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


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from files_behind(path)


def reason_to_repeat(
    earlier: FinishedCase, current: Provenance, options: Mapping[str, str], stat: str, content: Callable[[], str | None] | None
) -> str:
    """Why a case that an earlier run finished must be scored again; empty if nothing has changed.

    Args:
        earlier: what that run found and noted.
        current: what the case would be scored with.
        options: of this run, as in `Record.options`.
        stat: `stat_fingerprint` of the case's files.
        content: with --verify, what returns their `content_fingerprint`, or None where it cannot be had.
    """
    if earlier.result.provenance != current:
        return "the bundle, its device or precision, or this software has changed"
    if earlier.record.options != dict(options):
        return "the options have changed"
    if content is not None and earlier.record.sha256 is None:
        return "the earlier run had no --verify"
    changed = stat != earlier.record.stat if content is None else content() != earlier.record.sha256
    return "the input has changed" if changed else ""


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


def note_text(finished: FinishedCase) -> str:
    """The content of the note of one case."""
    return json.dumps({"format": FORMAT, **to_json(finished)}) + "\n"


def read_note(path: Path) -> FinishedCase | None:
    """Read the note of one case; None where it cannot be read, or is none of this format."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        return from_json(FinishedCase, document) if document["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
