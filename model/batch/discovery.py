"""Which scans an input holds: a tree of folders, or a list in a CSV or Parquet file.

Found in a tree, in any depth and mixture:

- DICOM series, told apart by UID (`series`); localisers and derived series are left out;
- `.mha`, `.mhd`, `.nii`, `.nii.gz` and `.nrrd` files, a CT and its mask paired by name: `a.nii.gz` or `a_ct.nii.gz` with
  `a_mask.nii.gz`, `a_lung.nii.gz`, `a_lobes.nii.gz` or `a_seg.nii.gz`, in one folder; a mask may belong to a series' folder
  too;
- folders laid out as the platform does (`images/ct` in them), which the container's own rules pair: also each case of a
  simulated cohort.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..cohort.layout import TRUTH_FOLDER, is_file_name
from ..cohort.summary import CASES_TABLE, read_columns
from ..cohort.tables import read_table
from ..container.grand_challenge import CT_FOLDER, LOBES_FOLDER, MAP_FOLDERS, MASK_FOLDERS, composed, find_cases, stem_of
from ..errors import InputError
from ..imaging.readers import is_image_file
from .cases import CohortCase, LeftOut, Listing, entity_of
from .series import READING_THREADS, Part, cases_of, may_be_slices, read_parts

CT_ENDING = re.compile(r"(?:^|[_-])ct$", re.IGNORECASE)
LOBES = "lobes"
LOBES_ENDING = re.compile(r"(?:^|[_-])(?:(?:lung|pulmonary)[_-]?)?(?:lobes|lobes?[_-]?masks?)$", re.IGNORECASE)
"""Of a mask whose labels mean lobes."""
MASK_ENDING = re.compile(r"(?:^|[_-])(lung[_-]?masks?|lungs?|masks?|seg)$", re.IGNORECASE)
MASK_ORDER = ("lung", "mask", LOBES, "seg")
"""Which of several masks of one CT is used: the first whose ending begins so; "lobes" stands for all of `LOBES_ENDING`."""

LIST_SUFFIXES = (".csv", ".tsv", ".parquet")
LIST_COLUMNS = ("entity", "ct", "lung_mask", "lobes")
LIST_EXPECTED = "a column ct with paths, and lung_mask, entity and lobes (yes or no) where they are needed"
YES_OR_NO = {"": False, "no": False, "false": False, "0": False, "yes": True, "true": True, "1": True}


def find_cohort(source: Path, *, segment_lungs: bool, output: Path | None = None) -> Listing:
    """Find the cases of a tree or a list.

    Args:
        source: a folder, or a CSV or Parquet file with a row a case.
        segment_lungs: whether cases without a mask are wanted.
        output: a folder that is not looked into.

    Raises:
        InputError: it cannot be read, or a list has rows that name no case.
    """
    if source.is_dir():
        tree = _Tree(source, output)
        try:
            tree.look_into(source)
        except OSError as error:
            raise InputError(source, f"it cannot be read ({error.strerror})", "a folder that can be read") from error
        cases = list(tree.cases())
        return Listing.of(cases, tree.left_out, segment_lungs)
    if source.suffix.lower() not in LIST_SUFFIXES:
        found = "a file of another kind" if source.exists() else "no such file or folder"
        raise InputError(source, found, f"a folder of scans, or a list of them ({', '.join(LIST_SUFFIXES)})")
    return Listing.of(read_list(source), (), segment_lungs)


def read_list(path: Path) -> list[CohortCase]:
    """Read a list of cases; paths are relative to it. Files that are missing are found out when they are read.

    Raises:
        InputError: the file is no such list; all rows that name no case are listed.
    """
    if path.suffix.lower() == ".parquet":
        columns = read_columns(path, LIST_COLUMNS, optional=LIST_COLUMNS)
        count = len(columns.get("ct", []))
        rows = [{name: "" if column[k] is None else str(column[k]) for name, column in columns.items()} for k in range(count)]
        numbered = list(enumerate(rows, start=1))
        if not rows:
            raise InputError(path, "no column ct, or no rows", LIST_EXPECTED)
    else:
        numbered = list(read_table(path, ("ct",)).rows)
    cases: list[CohortCase] = []
    problems: list[str] = []
    entities: set[str] = set()
    for number, row in numbered:
        ct, mask = row["ct"], row.get("lung_mask", "")
        entity = row.get("entity", "") or entity_of([CT_ENDING.sub("", stem_of(Path(ct))) or Path(ct).parent.name])
        lobes = YES_OR_NO.get(row.get("lobes", "").lower())
        if not ct:
            problems.append(f"row {number}: no ct")
        elif not is_file_name(entity):
            problems.append(f"row {number}: entity {entity!r} cannot be a file name")
        elif entity in entities:
            problems.append(f"row {number}: duplicate entity {entity}")
        elif lobes is None:
            problems.append(f"row {number}: lobes {row['lobes']!r} is not yes, no or empty")
        else:
            entities.add(entity)
            lung_mask = path.parent / mask if mask else None
            lobes = lobes or (lung_mask is not None and lung_mask.absolute().parent.name == Path(LOBES_FOLDER).name)
            cases.append(CohortCase(entity, path.parent / ct, lung_mask, lobes))
    if problems:
        raise InputError(path, f"{len(problems)} rows that cannot be used: {'; '.join(problems)}", LIST_EXPECTED)
    return cases


@dataclass
class _Names:
    """Images of one folder that share a name but for the ending, and the series in a folder beside them of that name."""

    cts: list[Path] = field(default_factory=list)
    masks: list[tuple[str, Path]] = field(default_factory=list)
    series: list[CohortCase] = field(default_factory=list)


class _Tree:
    """What was found in a tree of folders so far."""

    def __init__(self, root: Path, output: Path | None) -> None:
        self.left_out: list[LeftOut] = []
        self._root = root
        self._skipped = output.resolve() if output is not None and output.exists() else None
        self._seen: set[tuple[int, int]] = set()
        self._parts: list[Part] = []
        self._platform: list[CohortCase] = []
        self._named: dict[tuple[Path, str], _Names] = defaultdict(_Names)

    def look_into(self, folder: Path) -> None:
        """Look into a folder and all that are in it.

        Raises:
            OSError: `folder` cannot be listed; of folders in it, that is noted.
        """
        with ThreadPoolExecutor(READING_THREADS) as threads:
            waiting = [folder]
            while waiting:
                current = waiting.pop()
                try:
                    waiting += self._look_at(current, threads)
                except OSError as error:
                    if current == folder:
                        raise
                    self.left_out.append(LeftOut(current, f"it cannot be read ({error.strerror})"))

    def _look_at(self, folder: Path, threads: ThreadPoolExecutor) -> list[Path]:
        """Note what one folder holds; return the folders in it."""
        status = folder.stat()
        if (status.st_dev, status.st_ino) in self._seen or folder.resolve() == self._skipped:
            return []
        self._seen.add((status.st_dev, status.st_ino))
        if (folder / CT_FOLDER).is_dir():
            self._platform_folder(folder)
            self._left_beside_platform(folder)
            return []
        if (folder / CASES_TABLE).is_file() or any((folder / name).is_dir() for name in MAP_FOLDERS.values()):
            self.left_out.append(LeftOut(folder, "an output folder of this software"))
            return []
        folders, names = self._entries(folder)
        for name in names:
            if is_image_file(name):
                self._image(folder / name)
        parts, left_out = read_parts(folder, may_be_slices(names), threads)
        self._parts += parts
        self.left_out += left_out
        return [folder / name for name in folders]

    def _entries(self, folder: Path) -> tuple[list[str], list[str]]:
        """Names of the folders and files in a folder, sorted, without hidden ones; links that lead nowhere are noted."""
        folders, files = [], []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
                elif entry.is_symlink():
                    self.left_out.append(LeftOut(folder / entry.name, "a link that leads nowhere"))
            except OSError as error:  # such as a link to itself
                self.left_out.append(LeftOut(folder / entry.name, f"it cannot be read ({error.strerror})"))
        return folders, files

    def _image(self, path: Path) -> None:
        stem = composed(stem_of(path))
        lobes, mask = LOBES_ENDING.search(stem), MASK_ENDING.search(stem)
        if lobes:
            self._named[path.parent, CT_ENDING.sub("", stem[: lobes.start()])].masks.append((LOBES, path))
        elif mask:
            self._named[path.parent, CT_ENDING.sub("", stem[: mask.start()])].masks.append((mask[1].lower(), path))
        else:
            self._named[path.parent, CT_ENDING.sub("", stem)].cts.append(path)

    def _left_beside_platform(self, folder: Path) -> None:
        """Note what lies beside `images` in a folder of the platform's layout, but for a simulated case's truth."""
        folders, files = self._entries(folder)
        beside = {*folders} - {Path(CT_FOLDER).parts[0], TRUTH_FOLDER}
        beside |= {name for name in files if is_image_file(name)}
        reason = f"beside {CT_FOLDER}, which is scored alone; a list of cases (CSV) can name it"
        self.left_out += [LeftOut(folder / name, reason) for name in sorted(beside)]

    def _platform_folder(self, folder: Path) -> None:
        parts = folder.relative_to(self._root).parts
        try:
            found = find_cases(folder, segment_lungs=True)
        except InputError as error:
            self.left_out.append(LeftOut(folder, error.found))
            return
        for case in found:
            if parts and len(found) == 1:
                entity = case.entity if case.entity == parts[-1] else entity_of(parts)
            else:
                entity = entity_of((*parts, case.entity))
            self._platform.append(CohortCase(entity, case.ct, case.lung_mask, case.lobes))
        used = {case.lung_mask for case in found}
        for masks in (folder / name for name in MASK_FOLDERS if (folder / name).is_dir()):
            unused = [masks / name for name in self._entries(masks)[1] if is_image_file(name) and masks / name not in used]
            self.left_out += [LeftOut(path, "a mask that no CT uses") for path in unused]

    def cases(self) -> Iterator[CohortCase]:
        """The cases; what is left out is noted once all have been taken."""
        yield from self._platform
        found = list(cases_of(self._parts, self._root))
        self.left_out += [other for other in found if isinstance(other, LeftOut)]
        series = [case for case in found if isinstance(case, CohortCase)]
        folders = {(case.ct.parent, composed(case.ct.name)) for case in series}
        for case in series:
            self._beside(case.ct, folders).series.append(case)
        for (folder, name), names in sorted(self._named.items()):
            yield from self._pairs(folder, name, names)

    def _beside(self, folder: Path, series: set[tuple[Path, str]]) -> _Names:
        """The images beside a series' folder of its name, without the ending of a CT unless another scan has that name."""
        name = composed(folder.name)
        short = folder.parent, CT_ENDING.sub("", name)
        is_taken = bool(self._named[short].cts) or (short in series and short[1] != name)
        return self._named[(folder.parent, name) if is_taken else short]

    def _pairs(self, folder: Path, name: str, names: _Names) -> Iterator[CohortCase]:
        if len(names.series) == 1:
            mask, lobes = self._mask(names)
            names.masks.clear()
            yield replace(names.series[0], lung_mask=mask, lobes=lobes)
        else:
            yield from names.series
        if len(names.cts) > 1:
            found = ", ".join(path.name for path in names.cts)
            self.left_out += [LeftOut(path, f"several CTs have one name ({found})") for path in names.cts]
        elif names.cts:
            parts = folder.relative_to(self._root).parts
            own = parts if parts or name else (folder.resolve().name,)
            stem = CT_ENDING.sub("", stem_of(names.cts[0]))
            yield CohortCase(entity_of((*own, stem)), names.cts[0], *self._mask(names))
            return
        if not names.cts:
            found = "several series have its name" if names.series else "named as a mask, and no CT has its name"
            reason = f"{found}; a list of cases (CSV) can name it"
            self.left_out += [LeftOut(path, reason) for _, path in names.masks]

    def _mask(self, names: _Names) -> tuple[Path | None, bool]:
        """The mask of a CT, and whether its labels mean lobes; others that the CT has are left out."""
        if not names.masks:
            return None, False
        order = [next(place for place, start in enumerate(MASK_ORDER) if kind.startswith(start)) for kind, _ in names.masks]
        kind, chosen = names.masks[order.index(min(order))]
        self.left_out += [LeftOut(path, f"{chosen.name} is the CT's mask") for _, path in names.masks if path != chosen]
        return chosen, kind == LOBES
