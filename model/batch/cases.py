"""The cases of a cohort, and what was found beside them and is not scored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..container.grand_challenge import LONGEST_ENTITY, Case
from ..errors import InputError
from ..whole_files import whole_folder

CASES_FOLDER = "cases"
SERIES_FOLDER = "series"
"""Links to the files of series that are not alone in one folder, as the readers expect them."""

NO_MASK = "no lung mask was found for it; expected one, or --segment-lungs"


@dataclass(frozen=True)
class CohortCase:
    """One scan of a cohort.

    Attributes:
        entity: its name, unlike any other's; its output folder and files are named after it.
        ct: a file, or a folder that holds one DICOM series.
        lung_mask: likewise; None: the lungs are found in the CT.
        lobes: whether the mask's labels mean lobes.
        series: the files of a DICOM series that lies among others, or in several folders, whose first `ct` is then.
    """

    entity: str
    ct: Path
    lung_mask: Path | None = None
    lobes: bool = False
    series: tuple[Path, ...] = ()

    def with_one_folder(self, output: Path) -> CohortCase:
        """The case with a folder for its series alone, which links to its files.

        Raises:
            InputError: the folder cannot be made.
        """
        if not self.series:
            return self
        folder = output / SERIES_FOLDER / self.entity
        targets = {f"{place:05d}.dcm": str(path.absolute()) for place, path in enumerate(self.series)}
        try:
            known = {link.name: str(link.readlink()) for link in folder.iterdir()} if folder.is_dir() else {}
            if known != targets:
                with whole_folder(folder) as links:
                    for name, target in targets.items():
                        (links / name).symlink_to(target)
        except OSError as error:
            found = f"links to the files of a series cannot be made ({error.strerror})"
            raise InputError(folder, found, "a file system with symbolic links") from error
        return replace(self, ct=folder, series=())

    @property
    def container_case(self) -> Case:
        """As the container scores it; of a case whose series has a folder for itself."""
        return Case(self.entity, self.ct, self.lung_mask, self.lobes, segment_lungs=self.lung_mask is None)


@dataclass(frozen=True)
class LeftOut:
    """A file, folder or series that is not scored, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """What an input holds, both parts sorted."""

    cases: tuple[CohortCase, ...]
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def of(cls, cases: Iterable[CohortCase], left_out: Iterable[LeftOut], segment_lungs: bool) -> Listing:
        """Leave out cases without a mask, unless lungs are to be found, and all but the first of one name."""
        kept: dict[str, CohortCase] = {}
        others = list(left_out)
        for case in sorted(cases, key=lambda case: (case.entity, str(case.ct))):
            if case.lung_mask is None and not segment_lungs:
                others.append(LeftOut(case.ct, f"{NO_MASK} ({case.entity})" if case.series else NO_MASK))
            elif case.entity in kept:
                others.append(LeftOut(case.ct, f"{kept[case.entity].ct} has the same name, {case.entity}"))
            else:
                kept[case.entity] = case
        return cls(tuple(kept.values()), tuple(sorted(others, key=lambda other: str(other.path))))

    def shard(self, number: int, count: int) -> Listing:
        """The part of one of `count` shards, from 1. The name of a case decides where it belongs."""
        kept = tuple(case for case in self.cases if shard_of(case.entity, count) == number)
        return Listing(kept, self.left_out)


def shard_of(entity: str, count: int) -> int:
    """The shard of a case, 1 to `count`."""
    return int.from_bytes(hashlib.sha256(entity.encode(errors="surrogateescape")).digest()[:8], "big") % count + 1


def entity_of(parts: Iterable[str]) -> str:
    """A name from the parts of a path, short enough for the names of files."""
    name = "_".join(part.strip() for part in parts if part.strip()).lstrip(".") or "case"
    if len(os.fsencode(name)) <= LONGEST_ENTITY:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{os.fsencode(name)[: LONGEST_ENTITY - 9].decode(errors='ignore')}-{digest}"
