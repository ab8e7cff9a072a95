"""DICOM series in trees of folders: which files belong together, and which series are no scans.

Files are told apart by the series instance UID in their headers, wherever they lie. Pixels are not read.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..imaging.dicom import (
    BLANK,
    IMAGE_TYPE,
    INSTANCE,
    NUMBER_OF_FRAMES,
    SERIES,
    SUFFIXES,
    Tags,
    is_blank_slice,
    is_localiser,
    modality_of,
    read_identity,
)
from ..imaging.readers import is_image_file
from .cases import CohortCase, LeftOut, entity_of

FEWEST_SLICES = 10
READING_THREADS = 16
"""Most of the time is spent waiting for the storage."""


OTHER_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff"),
    *(".csv", ".doc", ".docx", ".htm", ".html", ".json", ".jsonl", ".log", ".md", ".parquet", ".pdf", ".tsv", ".txt"),
    *(".xls", ".xlsx", ".xml", ".yaml", ".yml", ".7z", ".bz2", ".gz", ".tar", ".tgz", ".xz", ".zip"),
    *(".h5", ".hdf5", ".hdr", ".mgz", ".nhdr", ".npy", ".npz", ".pkl", ".pt", ".pth", ".raw", ".stl", ".vtk", ".zraw"),
    *(".dll", ".exe", ".inf", ".ini", ".py", ".sh"),
)
"""Of files that are not opened: pictures, tables and texts, archives, other data, and programs on discs for patients."""


def may_be_slices(names: Sequence[str]) -> list[str]:
    """Those files of a folder that may be of a DICOM series, by their names alone: all of no other known type.

    The voxels of an Analyze image lie in a file `.img` beside its header.
    """
    analyze = {Path(name).stem for name in names if Path(name).suffix.lower() in (".hdr", ".nhdr")}
    found = []
    for name in names:
        suffix = Path(name).suffix.lower()
        is_other = is_image_file(name) or suffix in OTHER_SUFFIXES or (suffix == ".img" and Path(name).stem in analyze)
        if name != "DICOMDIR" and not is_other:
            found.append(name)
    return found


def digest_of(uid: str) -> str:
    """Six digits that tell a series from others of its folder."""
    return hashlib.sha256(uid.encode()).hexdigest()[:6]


@dataclass(frozen=True)
class Part:
    """The files of one series in one folder.

    Attributes:
        uid: of the series.
        folder: where they lie.
        instances: the instance UID of each file, by its name, sorted; empty where it has none.
        frames: of the first file.
        alone: whether the folder holds nothing else of DICOM, so that reading it reads these files.
        unusable: a file in the folder that cannot be used and may belong to the series; empty if there is none.
        reason: why the series is not scored, by the header of its first file; empty if nothing is against it.
    """

    uid: str
    folder: Path
    instances: Mapping[str, str]
    frames: int
    alone: bool
    unusable: str
    reason: str

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name in self.instances]

    @property
    def slices(self) -> int:
        """How many there are, or frames of a file that holds several."""
        return max(len(self.instances), self.frames)


def read_parts(folder: Path, names: Sequence[str], threads: ThreadPoolExecutor) -> tuple[list[Part], list[LeftOut]]:
    """Read the headers of the files in a folder that may be DICOM, and tell their series apart."""
    by_series: dict[str, list[tuple[str, Tags]]] = defaultdict(list)
    unusable: dict[str, list[str]] = defaultdict(list)
    for name, found in zip(names, threads.map(_identity, (folder / name for name in names)), strict=True):
        if isinstance(found, str):
            unusable[found].append(name)
        elif found is not None:
            by_series[found.get(SERIES, "")].append((name, found))
    left_out = [_unusable(folder, reason, files) for reason, files in unusable.items()]
    first_unusable = min((name for files in unusable.values() for name in files), default="")
    parts = []
    for uid, files in by_series.items():
        instances = {name: tags.get(INSTANCE, "") for name, tags in files}
        first = files[0][1]
        parts.append(Part(uid, folder, instances, _frames(first), len(by_series) == 1, first_unusable, _reason(first)))
    return parts, left_out


def _unusable(folder: Path, reason: str, names: Sequence[str]) -> LeftOut:
    """One line for all files of a folder that cannot be used for the same reason."""
    if len(names) == 1:
        return LeftOut(folder / names[0], reason)
    return LeftOut(folder, f"{reason} ({len(names)} files, such as {names[0]})")


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
    return BLANK if found is None and is_blank_slice(path) else found


def _frames(tags: Tags) -> int:
    text = tags.get(NUMBER_OF_FRAMES, "")
    return int(text) if text.isdecimal() else 1


def _reason(tags: Tags) -> str:
    """Why a series is no scan to score, as far as the header of one file says."""
    modality = modality_of(tags)
    kinds = [value.strip().upper() for value in tags.get(IMAGE_TYPE, "").split("\\")]
    if modality != "CT":
        return f"the modality is {modality or 'not known'}, not CT"
    if is_localiser(tags):
        return "a localiser"
    if "DERIVED" in kinds[:1] or "SECONDARY" in kinds[1:2]:
        return f"a derived series ({'/'.join(kinds[:3])}); a list of cases (CSV) can name it"
    return ""


def _without_copies(group: Sequence[Part]) -> tuple[list[Part], list[LeftOut]]:
    """The parts of a series without files whose instance UID an earlier one has; a line for each folder with such copies.

    A UID that all slices in a folder have, as anonymisation may leave it, tells nothing.
    """
    telling_nothing = {""}
    for part in group:
        instances = set(part.instances.values())
        if len(instances) == 1 and len(part.instances) >= FEWEST_SLICES:
            telling_nothing |= instances
    folder_of: dict[str, Path] = {}
    kept, left_out = [], []
    for part in group:
        own: dict[str, str] = {}
        copies: Counter[Path] = Counter()
        for name, instance in part.instances.items():
            if instance in telling_nothing or instance not in folder_of:
                folder_of[instance] = part.folder
                own[name] = instance
            else:
                copies[folder_of[instance]] += 1
        if own:
            kept.append(replace(part, instances=own, alone=part.alone and not copies))
        for folder, count in copies.items():
            found = "copies of other files in it" if folder == part.folder else f"a copy of {folder}"
            left_out.append(LeftOut(part.folder, f"{found} ({count} files)"))
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
        group, copies = _without_copies(sorted(group, key=lambda part: part.folder))
        yield from copies
        slices = sum(part.slices for part in group)
        reason = next((part.reason for part in group if part.reason), "")
        unusable = next((part.unusable for part in group if part.unusable), "")
        if not reason and unusable and not _is_a_folder(group):  # else reading the folder fails
            reason = f"{unusable}, which may belong to it, cannot be used; a list of cases (CSV) can name it"
        if not reason and not uid:
            reason = "the files name no series"
        if not reason and slices < FEWEST_SLICES:
            reason = f"{slices} slices; expected {FEWEST_SLICES} or more"
        if reason:
            yield from (LeftOut(part.folder, f"{reason} ({_described(part)})") for part in group)
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
            entity = entity_of([f"{entity}-{digest_of(group[0].uid)}"])
        series = () if _is_a_folder(group) else tuple(path for part in group for path in part.files)
        yield CohortCase(entity, folder, series=series)


def _described(part: Part) -> str:
    """How many files a series has in a folder, and its digits where the folder holds others."""
    return f"{part.slices} files" if part.alone else f"{part.slices} files, series {digest_of(part.uid)}"


def _is_a_folder(group: Sequence[Part]) -> bool:
    """Whether a series is all that a folder holds, so that the folder is read, not a list of files."""
    return len(group) == 1 and group[0].alone
