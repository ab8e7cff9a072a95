"""DICOM series in trees of folders: which files belong together, and which series are no scans.

Files are told apart by the series instance UID in their headers, wherever they lie. Pixels are not read.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..imaging.dicom import (
    IMAGE_TYPE,
    INSTANCE,
    MODALITY,
    NUMBER_OF_FRAMES,
    SERIES,
    SUFFIXES,
    Tags,
    may_be_dicom,
    read_identity,
)
from .cases import CohortCase, LeftOut, entity_of

FEWEST_SLICES = 10
READING_THREADS = 16
"""Most of the time is spent waiting for the storage."""

LOCALISERS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
"""Values of the image type (0008,0008); the first is the standard's."""


def may_be_slices(name: str) -> bool:
    """Whether a file may be of a DICOM series, by its name alone."""
    return name != "DICOMDIR" and may_be_dicom(name)


@dataclass(frozen=True)
class Part:
    """The files of one series in one folder.

    Attributes:
        uid: of the series.
        folder: where they lie.
        names: of the files, sorted, without copies; empty where no other DICOM file lies in the folder.
        slices: how many there are, or frames of a file that holds several.
        reason: why the series is not scored, by the header of its first file; empty if nothing is against it.
    """

    uid: str
    folder: Path
    names: tuple[str, ...]
    slices: int
    reason: str

    @property
    def files(self) -> list[Path]:
        if self.names:
            return [self.folder / name for name in self.names]
        names = sorted(entry.name for entry in os.scandir(self.folder) if may_be_slices(entry.name))
        files = (self.folder / name for name in names if not name.startswith("."))
        return [file for file in files if isinstance(_identity(file), dict)]


def read_parts(folder: Path, names: Sequence[str], threads: ThreadPoolExecutor) -> tuple[list[Part], list[LeftOut]]:
    """Read the headers of the files in a folder that may be DICOM, and tell their series apart; leave copies out."""
    by_series: dict[str, list[tuple[str, Tags]]] = defaultdict(list)
    unusable: dict[str, list[str]] = defaultdict(list)
    for name, found in zip(names, threads.map(_identity, (folder / name for name in names)), strict=True):
        if isinstance(found, str):
            unusable[found].append(name)
        elif found is not None:
            by_series[found.get(SERIES, "")].append((name, found))
    left_out = [_unusable(folder, reason, files) for reason, files in unusable.items()]
    parts = []
    for uid, files in by_series.items():
        own = _without_copies(files)
        if len(own) < len(files):
            left_out.append(LeftOut(folder, f"copies of other files in it ({len(files) - len(own)} files)"))
        slices = max(len(own), _frames(files[0][1]))
        mixed = len(by_series) > 1
        reason = _reason(files[0][1])
        if mixed and unusable and not reason:  # of which series is it? Where there is one alone, reading it fails.
            first = min(name for files in unusable.values() for name in files)
            reason = f"{first}, which may belong to it, cannot be used; a list of cases (CSV) can name it"
        named = mixed or len(own) < len(files)
        parts.append(Part(uid, folder, tuple(name for name, _ in own) if named else (), slices, reason))
    return parts, left_out


def _unusable(folder: Path, reason: str, names: Sequence[str]) -> LeftOut:
    """One line for all files of a folder that cannot be used for the same reason."""
    if len(names) == 1:
        return LeftOut(folder / names[0], reason)
    return LeftOut(folder, f"{reason} ({len(names)} files, such as {names[0]})")


def _without_copies(files: Sequence[tuple[str, Tags]]) -> list[tuple[str, Tags]]:
    """The files of a series in one folder without those that have the instance UID of an earlier one.

    A UID that all slices have, as anonymisation may leave it, tells nothing.
    """
    own: dict[str, tuple[str, Tags]] = {}
    for name, tags in files:
        own.setdefault(tags.get(INSTANCE, "") or name, (name, tags))
    return list(files) if len(own) == 1 and len(files) >= FEWEST_SLICES else list(own.values())


def _identity(path: Path) -> Tags | str | None:
    """The tags of a DICOM file; None for another file; a reason why it cannot be read."""
    try:
        found = read_identity(path)
    except InputError as error:
        return error.found
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if found is None and path.suffix.lower() in SUFFIXES:
        return "not a DICOM file, or its beginning is damaged"
    return found


def _frames(tags: Tags) -> int:
    text = tags.get(NUMBER_OF_FRAMES, "")
    return int(text) if text.isdecimal() else 1


def _reason(tags: Tags) -> str:
    """Why a series is no scan to score, as far as the header of one file says."""
    modality = tags.get(MODALITY, "")
    kinds = [value.strip().upper() for value in tags.get(IMAGE_TYPE, "").split("\\")]
    if modality != "CT":
        return f"the modality is {modality or 'not known'}, not CT"
    if LOCALISERS & set(kinds):
        return "a localiser"
    if "DERIVED" in kinds[:1] or "SECONDARY" in kinds[1:2]:
        return f"a derived series ({'/'.join(kinds[:3])}); a list of cases (CSV) can name it"
    return ""


def _without_copied_parts(group: Sequence[Part]) -> tuple[list[Part], list[LeftOut]]:
    """The parts of a series without instances that an earlier part has, and a line for each folder with such copies."""
    if len(group) == 1:
        return list(group), []
    folder_of: dict[str, Path] = {}
    kept, left_out = [], []
    for part in group:
        files = part.files
        names = []
        copies: Counter[Path] = Counter()
        for file in files:
            found = _identity(file)
            instance = found.get(INSTANCE, "") if isinstance(found, dict) else ""
            first = folder_of.setdefault(instance, part.folder) if instance else part.folder
            if first == part.folder:
                names.append(file.name)
            else:
                copies[first] += 1
        if not copies:
            kept.append(part)
        elif names:
            kept.append(replace(part, names=tuple(names), slices=len(names)))
        left_out += [LeftOut(part.folder, f"a copy of {folder} ({count} files)") for folder, count in copies.items()]
    return kept, left_out


def cases_of(parts: Sequence[Part], root: Path) -> Iterator[CohortCase | LeftOut]:
    """Bring the parts of each series together, without copies.

    A series is named after its folder under `root`; where that holds several scans, also by a digest of its UID.
    """
    by_series: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_series[part.uid].append(part)
    scans = []
    for uid, group in by_series.items():
        group, copies = _without_copied_parts(sorted(group, key=lambda part: part.folder))
        yield from copies
        slices = sum(part.slices for part in group)
        reason = next((part.reason for part in group if part.reason), "")
        if not reason and not uid:
            reason = "the files name no series"
        if not reason and slices < FEWEST_SLICES:
            reason = f"{slices} slices; expected {FEWEST_SLICES} or more"
        if reason:
            yield from (LeftOut(part.folder, f"{reason} ({part.slices} files)") for part in group)
        else:
            scans.append(group)
    several: dict[Path, int] = defaultdict(int)
    for group in scans:
        several[group[0].folder] += 1
    for group in scans:
        folder = group[0].folder
        parts_of_name = folder.relative_to(root).parts or (folder.resolve().name,)
        entity = entity_of(parts_of_name)
        if several[folder] > 1:
            entity = entity_of([f"{entity}-{hashlib.sha256(group[0].uid.encode()).hexdigest()[:6]}"])
        alone = len(group) == 1 and not group[0].names
        series = () if alone else tuple(path for part in group for path in part.files)
        yield CohortCase(entity, folder, series=series)
