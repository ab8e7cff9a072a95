"""The journal of a cohort's run: a line for each case that is finished, and the tables that are made of it.

    OUTPUT/journal/driver.jsonl, 3-of-16.jsonl    one file for each run that may go on beside others
    OUTPUT/cohort.csv, regions.csv, *.parquet     written anew now and then, and at the end
    OUTPUT/left-out.csv                           what is not scored, and why
    OUTPUT/cases/ENTITY/                          as process.py writes it

Lines are appended, so that a case costs the same however many came before it. Of an entity's lines in a file, the last counts,
whatever the clock said; of several files, the one with the later time. What is missing from the journal after a kill is found
again in the cases' own folders.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

from ..cohort.summary import CaseEntry, SummaryWriter
from ..container.grand_challenge import finished_cases
from ..container.results import CaseResult
from ..container.resume import FinishedCase, Record
from ..container.schema import Described, from_json, to_json
from ..container.table import cell
from ..errors import InputError
from ..whole_files import locked, whole_file
from .cases import CASES_FOLDER, CohortCase, LeftOut

JOURNAL_FOLDER = "journal"
TABLES_LOCK = "tables.lock"
"""Of several shards, one at a time writes the tables, so that the last one knows what all have finished."""
LEFT_OUT_FILE = "left-out.csv"
DRIVER = "driver"

FORMAT = 1
TABLES_EVERY_SECONDS = 10.0
WAITING_SECONDS = 0.2
CASES_TO_TABLES = 20.0
"""Tables are written again once this many times as long has passed as writing them took, but no sooner than the above."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A case that is finished, scored or not."""

    result: Annotated[CaseResult, Described("As results.json has it.")]
    record: Annotated[Record | None, Described("What a later run needs to know to skip it; null of a case that failed.")] = None
    ct: Annotated[str, Described("The CT that was scored.")]
    lung_mask: Annotated[str, Described("Its lung mask, or empty.")]
    attempts: Annotated[int, Described("How many times it was tried.", 1)]
    seconds: Annotated[float, Described("Of the last attempt.", 0)]
    finished: Annotated[str, Described("When, in UTC.")]
    crashed: Annotated[str, Described("How its process ended, where it was not scored for that; else empty.")] = ""

    @classmethod
    def of(
        cls,
        case: CohortCase,
        result: CaseResult,
        record: Record | None = None,
        *,
        attempts: int = 1,
        seconds: float = 0.0,
        crashed: str = "",
    ) -> Entry:
        """The entry of a case that is finished now."""
        ct, lung_mask = _files(case)
        return cls(
            result=result,
            record=record,
            ct=ct,
            lung_mask=lung_mask,
            attempts=attempts,
            seconds=round(seconds, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            crashed=crashed,
        )

    def of_files(self, case: CohortCase) -> Entry:
        """The entry with the files of the case as they lie now."""
        ct, lung_mask = _files(case)
        return replace(self, ct=ct, lung_mask=lung_mask)

    @property
    def entity(self) -> str:
        assert self.result.entity is not None, "the entry is one of a case"
        return self.result.entity


def _files(case: CohortCase) -> tuple[str, str]:
    """CT and lung mask of a case as its entry has them."""
    return str(case.ct.absolute()), str(case.lung_mask.absolute()) if case.lung_mask else ""


class Place(NamedTuple):
    """Where an entity's last line lies."""

    file: Path
    offset: int
    length: int


class Index:
    """Where the last entry of each case lies, in all journals of some output folders."""

    def __init__(self, outputs: Iterable[Path]) -> None:
        self.places: dict[str, Place] = {}
        self.finished: dict[str, str] = {}
        for output in outputs:
            for path in sorted((output / JOURNAL_FOLDER).glob("*.jsonl")):
                self._read(path)

    def _read(self, path: Path) -> None:
        offset = 0
        last: dict[str, tuple[str, Place]] = {}
        with path.open("rb") as stream:
            for line in stream:
                document = _parsed(line)
                if document is not None:
                    last[document["result"]["entity"]] = document["finished"], Place(path, offset, len(line))
                offset += len(line)
        for entity, (finished, place) in last.items():
            if finished >= self.finished.get(entity, ""):
                self.finished[entity], self.places[entity] = finished, place

    def documents(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        """The entries, sorted by entity, one in memory at a time."""
        with contextlib.ExitStack() as stack:
            streams: dict[Path, BinaryIO] = {}
            for entity in sorted(self.places):
                place = self.places[entity]
                if place.file not in streams:
                    streams[place.file] = stack.enter_context(place.file.open("rb"))
                streams[place.file].seek(place.offset)
                document = _parsed(streams[place.file].read(place.length))
                if document is not None:
                    yield place, document


class Journal:
    """The journals of one output folder: this run's is appended to, those of others are read when it is opened."""

    def __init__(self, output: Path, name: str) -> None:
        """Open the journal of a run; use `opened`, which locks it."""
        self.output = output
        self._own = output / JOURNAL_FOLDER / f"{name}.jsonl"
        self._has_others = name != DRIVER
        self._index = Index([output])
        self._begun = _begun(self._own)
        self._stream = self._own.open("ab")
        self._size = _without_torn_line(self._own, self._stream.fileno())
        self._tables_due = 0.0

    @property
    def entities(self) -> frozenset[str]:
        """All that are finished, scored or not."""
        return frozenset(self._index.places)

    @property
    def was_killed(self) -> bool:
        """Whether a run that this one continues ended in the middle of a case."""
        return bool(self._begun)

    def begin(self, entity: str) -> None:
        """Note that a case is begun, where the run itself would end with its process."""
        self._begun[entity] = self._begun.get(entity, 0) + 1
        self._append({"begun": entity})

    def times_begun(self, entity: str) -> int:
        """How often this run or those that it continues began a case without finishing it."""
        return self._begun.get(entity, 0)

    def stop(self, entity: str) -> None:
        """Note that a case which was begun was stopped, and did not end the run itself."""
        self._begun.pop(entity, None)
        self._append({"stopped": entity})

    def add(self, entry: Entry) -> None:
        """Append the entry of a case; its time is later than that of the entry that it replaces, whatever the clock says."""
        finished = _later(entry.finished, self._index.finished.get(entry.entity, ""))
        place = Place(self._own, self._size, self._append({"format": FORMAT, **to_json(replace(entry, finished=finished))}))
        self._index.finished[entry.entity], self._index.places[entry.entity] = finished, place
        self._begun.pop(entry.entity, None)

    def _append(self, document: dict[str, Any]) -> int:
        line = json.dumps(document).encode() + b"\n"
        self._stream.write(line)
        self._stream.flush()
        self._size += len(line)
        return len(line)

    def entry(self, entity: str) -> Entry | None:
        """The last entry of an entity; None if it has none that can be read."""
        place = self._index.places.get(entity)
        if place is None:
            return None
        with place.file.open("rb") as stream:
            stream.seek(place.offset)
            document = _parsed(stream.read(place.length))
        try:
            return None if document is None else from_json(Entry, document)
        except ValueError:
            return None

    def restore(self, cases: Iterable[CohortCase]) -> int:
        """Add entries of cases whose folders hold a result that no journal has; return how many there were."""
        folder = self.output / CASES_FOLDER
        there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        restored = 0
        for case in cases:
            if case.entity in there and case.entity not in self._index.places:
                found = finished_cases(folder / case.entity).get(case.entity)
                if found is not None:
                    self.add(Entry.of(case, found.result, found.record))
                    restored += 1
        return restored

    def is_in_folder(self, entry: Entry) -> bool:
        """Whether a scored case's folder holds what its entry says: a killed run may have written another result there.

        The result tells the bundle, the record the options and the input.
        """
        if entry.record is None:
            return False
        found = finished_cases(self.output / CASES_FOLDER / entry.entity)
        return found.get(entry.entity) == FinishedCase(entry.result, entry.record)

    def write_tables(self) -> None:
        """Write the tables of all finished cases, those of other shards too; wait for a shard that is writing them."""
        start = time.monotonic()
        with tables_locked(self.output):
            write_tables(Index([self.output]) if self._has_others else self._index, self.output)
        end = time.monotonic()
        self._tables_due = end + max(TABLES_EVERY_SECONDS, CASES_TO_TABLES * (end - start))

    @property
    def tables_are_due(self) -> bool:
        """Whether it is time to write the tables again."""
        return time.monotonic() >= self._tables_due

    def close(self) -> None:
        """Write what is left to the disk."""
        with contextlib.suppress(OSError):
            os.fsync(self._stream.fileno())
        self._stream.close()


def _later(finished: str, replaced: str) -> str:
    """When an entry was finished, or a second after the one that it replaces, if that is later."""
    if finished > replaced:
        return finished
    with contextlib.suppress(ValueError, OverflowError):
        return (datetime.fromisoformat(replaced) + timedelta(seconds=1)).isoformat(timespec="seconds")
    return replaced  # no time that we wrote


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The document of an entry; None for a line that is not whole, or is something else."""
    try:
        document = json.loads(line)
        is_entry = document["format"] == FORMAT and isinstance(document["result"]["entity"], str)
        return document if is_entry and isinstance(document["finished"], str) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _begun(path: Path) -> dict[str, int]:
    """How often each case was begun, of those that were begun last and not finished or stopped since."""
    begun: dict[str, int] = {}
    with path.open("rb") as stream:
        for line in stream:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                document = json.loads(line)
                if "begun" in document:
                    begun[document["begun"]] = begun.get(document["begun"], 0) + 1
                else:
                    begun.pop(document["stopped"] if "stopped" in document else document["result"]["entity"], None)
    return begun


def _without_torn_line(path: Path, descriptor: int) -> int:
    """Cut off a last line that a killed run has not written to its end; return the size."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        back = size
        while back > 0:
            step = min(back, 1 << 16)
            stream.seek(back - step)
            found = stream.read(step).rfind(b"\n")
            if found >= 0:
                back = back - step + found + 1
                break
            back -= step
    if back < size:
        os.ftruncate(descriptor, back)
    return back


@contextlib.contextmanager
def tables_locked(output: Path) -> Iterator[None]:
    """Keep others from writing the tables during the block; wait for one that is writing them.

    The journals are read in the block, too: what was read before may be older than the tables.
    """
    lock = output / JOURNAL_FOLDER / TABLES_LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(lock))
                break
            except BlockingIOError:
                time.sleep(WAITING_SECONDS)
        yield


def write_tables(index: Index, folder: Path) -> None:
    """Write the tables of all entries, sorted by entity, with a thousand rows in memory at a time."""

    @functools.cache
    def cases_folder(output: Path) -> str:
        return os.path.relpath(output.resolve() / CASES_FOLDER, folder.resolve())  # `..` leads up from what a link leads to

    with SummaryWriter(folder) as tables:
        for place, document in index.documents():
            result = document["result"]
            entry = CaseEntry(
                ct=document["ct"],
                lung_mask=document["lung_mask"],
                folder=f"{cases_folder(place.file.parent.parent)}/{result['entity']}",
                attempts=document["attempts"],
                seconds=document["seconds"],
                finished=document["finished"],
            )
            tables.add(entry, result)


def write_left_out(output: Path, left_out: Iterable[LeftOut]) -> None:
    """Write the list of what is not scored."""
    with whole_file(output / LEFT_OUT_FILE) as path, path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "reason"))
        writer.writerows((cell(str(other.path)), cell(other.reason)) for other in left_out)


@contextlib.contextmanager
def opened(output: Path, name: str = DRIVER) -> Iterator[Journal]:
    """Open the journal of a run, and keep other runs out: all of them, or for a shard all but other shards.

    Raises:
        InputError: another run is writing there, or the folder cannot be written.
    """
    is_shard = name != DRIVER
    folder = output / JOURNAL_FOLDER
    own = folder / f"{name}.jsonl"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            own.touch()
            what = "this output"
            stack.enter_context(locked(folder, shared=is_shard))
            if is_shard:
                what = f"shard {name.replace('-of-', '/')} of this output"
            stack.enter_context(locked(own))
        except BlockingIOError:
            raise InputError(output, f"another run is writing {what}", "one run for each output, or for each shard") from None
        except OSError as error:
            raise InputError(output, f"the output folder cannot be written ({error.strerror})", "a folder") from error
        journal = Journal(output, name)
        stack.callback(journal.close)
        yield journal
