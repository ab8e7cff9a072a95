"""The list of scans that a network learns from: a CSV that is checked row by row before anything starts.

Columns: `entity, ct, lung_mask, centrilobular, paraseptal, split`; paths are relative to the CSV. COPDGene's own names are
understood too (`sid`, `CT_Visual_Emph_Severity_P1`, `CT_Visual_Emph_Paraseptal_P1`), and tabs instead of commas. Optional:

- `centrilobular_truth, paraseptal_truth`: voxel maps on the CT's grid;
- `centrilobular_percentage, paraseptal_percentage`: percent of the lung;
- `centrilobular_lower, centrilobular_upper, paraseptal_lower, paraseptal_upper`: what is known of the percentage where there is
  no score, in percent of the lung. One empty cell of a pair leaves that side open (0 or 100); two say that nothing is known.
  A score counts before them. With both columns of a subtype, its column of scores may be missing;
- `leading`: `centrilobular` or `paraseptal`, where a reader said which of them is predominant;
- `uniform_slices`: `yes` where all slices of the scan are the same, so that a slab of it stands for the whole;
- `patient`: an identifier.

A score cell may be empty. Something must be known of every scan: a score, a bound, truth maps, or the predominant subtype. No
CT and no patient may be in two splits.

    python -m model.training.manifest SIMULATED_COHORT [MANIFEST] [--validation 0.1] [--test 0] [--seed 0]

writes such a list for a cohort of `model.simulation`.
"""

from __future__ import annotations

import csv
import io
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ..errors import InputError
from ..fleischner import SUBTYPES, Subtype
from ..imaging.readers import Header, read_header
from ..whole_files import whole_file
from .layout import REFERENCE_FILE, ct_path, is_file_name, lung_mask_path, truth_paths
from .tables import ENTITY, PERCENTAGE_COLUMNS, SCORE_COLUMNS, parse_extent, read_table

Split = Literal["train", "validation", "test"]

COLUMNS = ("entity", "ct", "lung_mask", "centrilobular", "paraseptal", "split")
BOUND_COLUMNS = {subtype.name: (f"{subtype.name}_lower", f"{subtype.name}_upper") for subtype in SUBTYPES}
LEADING_COLUMN = "leading"
PATIENT_COLUMN = "patient"
UNIFORM_COLUMN = "uniform_slices"
UNIFORM_VALUES = {"": False, "no": False, "yes": True}
TRUTH_COLUMNS = tuple(f"{subtype.name}_truth" for subtype in SUBTYPES)

MANIFEST_FILE = "manifest.csv"

LONGEST_NAME = 200
"""Most bytes in the name of a scan: prepared files and pictures are named after it, with what follows, in 255 bytes."""

Interval = tuple[float, float]
"""The least and the largest percentage of the lung that a scan may have, 0 to 100."""


class Scores(NamedTuple):
    """Visual scores of one scan; None where a score is not known."""

    centrilobular: int | None
    paraseptal: int | None


@dataclass(frozen=True)
class TrainingCase:
    """One row of a manifest.

    Attributes:
        entity: its name, unlike any other's in the manifest.
        ct: a file, or a folder that holds one DICOM series.
        lung_mask: a file on the same grid.
        scores: the Fleischner scores.
        split: what the scan is for.
        truth: voxel maps of centrilobular and paraseptal emphysema on the CT's grid, or None.
        percentages: of the lung, centrilobular and paraseptal, 0 to 100, or None where they are not known.
        intervals: bounds of the percentage for each subtype, where the manifest gives any; a score counts before them.
        uniform_slices: whether all slices are the same.
        leading: the predominant subtype, where that is known.
    """

    entity: str
    ct: Path
    lung_mask: Path
    scores: Scores
    split: Split
    truth: tuple[Path, Path] | None = None
    percentages: tuple[float, float] | None = None
    intervals: tuple[Interval | None, Interval | None] = (None, None)
    uniform_slices: bool = False
    leading: Subtype | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case, the CT first."""
        return (self.ct, self.lung_mask, *(self.truth or ()))


@dataclass(frozen=True)
class Manifest:
    """A checked list of scans; `sha256` is that of the CSV file."""

    path: Path
    cases: tuple[TrainingCase, ...]
    sha256: str

    def of(self, split: Split) -> tuple[TrainingCase, ...]:
        """The cases of one split, in the order of the file."""
        return tuple(case for case in self.cases if case.split == split)


def read_manifest(path: Path | str, *, with_truth: bool = False, needs_training: bool = True) -> Manifest:
    """Read a manifest and check every row: scores, bounds, names, files, that the grids of each scan are equal, and that no CT
    and no patient is in two splits.

    Args:
        path: the CSV.
        with_truth: whether at least one of the scans to train on, if there are any, must have voxel maps.
        needs_training: whether there must be scans to train on, with voxel maps if they are asked for.

    Raises:
        InputError: the file is no manifest, or rows are bad: one error that lists every one of them.
    """
    path = Path(path)
    table = read_table(path, COLUMNS, BOUND_COLUMNS)
    cases: list[TrainingCase] = []
    problems: list[str] = []
    times = Counter(row["entity"] for row in table.cells)
    splits_of = _splits_of(table.cells, path.parent)
    for line, row in table.rows:
        found = [*_row_problems(row, path.parent, times), *_leaks(row, path.parent, splits_of)]
        if found:
            problems.append(f"row {line} ({row['entity'] or 'no entity'}): {', '.join(found)}")
        else:
            cases.append(_case(row, path.parent))
    if problems:
        raise InputError(
            path,
            f"{len(problems)} bad row{'s' if len(problems) > 1 else ''}: {'; '.join(problems)}",
            "files that exist on equal grids, scores of the Fleischner system or bounds in percent, each entity once, "
            f"split {' or '.join(get_args(Split))}, no CT or patient in two splits",
        )
    manifest = Manifest(path, tuple(cases), table.sha256)
    splits: tuple[Split, ...] = ("train", "validation") if needs_training else ("validation",)
    for split in splits:
        if not manifest.of(split):
            raise InputError(path, f"no row has the split {split}", "at least one scan to train on and one to validate on")
    if with_truth and needs_training and not any(case.truth for case in manifest.of("train")):
        raise InputError(path, f"no scan to train on has {' and '.join(TRUTH_COLUMNS)}", "at least one that has both")
    return manifest


def _row_problems(row: dict[str, str], folder: Path, times: Counter[str]) -> Iterator[str]:
    entity = row["entity"]
    if not is_file_name(entity, LONGEST_NAME):
        yield f"entity {entity!r} cannot be a file name of at most {LONGEST_NAME} bytes"
    elif times[entity] > 1:
        yield f"duplicate entity {entity}"
    for subtype in SUBTYPES:
        score = row.get(subtype.name, "")
        if score and _score(score, subtype) is None:
            yield f"{subtype.name} score {score!r} is not one of 0 to {len(subtype.grades) - 1}"
        yield from _bound_problems(row, subtype)
    known = (*(subtype.name for subtype in SUBTYPES), *(column for pair in BOUND_COLUMNS.values() for column in pair))
    if not any(row.get(column) for column in (*known, *TRUTH_COLUMNS, LEADING_COLUMN)):
        yield "no score, bound, truth map or predominant subtype"
    if row.get(LEADING_COLUMN, "") not in ("", *(subtype.name for subtype in SUBTYPES)):
        yield f"{LEADING_COLUMN} {row[LEADING_COLUMN]!r} is not {' or '.join(subtype.name for subtype in SUBTYPES)}"
    if row.get(UNIFORM_COLUMN, "") not in UNIFORM_VALUES:
        yield f"{UNIFORM_COLUMN} {row[UNIFORM_COLUMN]!r} is not yes, no or empty"
    if row["split"] not in get_args(Split):
        yield f"unknown split {row['split']!r}"
    if any(_percentage(row.get(column, "")) is None for column in PERCENTAGE_COLUMNS) and any(
        row.get(column) for column in PERCENTAGE_COLUMNS
    ):
        yield f"{' and '.join(PERCENTAGE_COLUMNS)} are not both numbers from 0 to 100"
    truth = [column for column in TRUTH_COLUMNS if row.get(column)]
    if len(truth) == 1:
        yield f"no {' and '.join(column for column in TRUTH_COLUMNS if column not in truth)}"
    yield from _file_problems({column: row[column] for column in ("ct", "lung_mask", *truth)}, folder)


def _splits_of(rows: Iterable[Mapping[str, str]], folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """For each CT and patient, the splits that it is in, each with an entity."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        for shared in _in_one_split(row, folder):
            found.setdefault(shared, {}).setdefault(row["split"], row["entity"])
    return found


def _in_one_split(row: Mapping[str, str], folder: Path) -> Iterator[tuple[str, str]]:
    """What may not be in two splits: kind and name."""
    if row["split"] not in get_args(Split):
        return
    if row["ct"]:
        yield "CT", os.path.realpath(folder / row["ct"])
    if row.get(PATIENT_COLUMN):
        yield "patient", row[PATIENT_COLUMN]


def _leaks(row: Mapping[str, str], folder: Path, splits_of: Mapping[tuple[str, str], Mapping[str, str]]) -> Iterator[str]:
    for kind, name in _in_one_split(row, folder):
        others = [f"{entity} ({split})" for split, entity in splits_of[kind, name].items() if split != row["split"]]
        if others:
            yield f"the same {kind} as {', '.join(others)}"


def _file_problems(files: dict[str, str], folder: Path) -> Iterator[str]:
    headers: dict[str, Header] = {}
    for column, name in files.items():
        if not name:
            yield f"no {column}"
            continue
        try:
            headers[column] = read_header(folder / name)
        except InputError as error:
            yield str(error)
    ct = headers.pop("ct", None)
    if ct is None:
        return
    for column, header in headers.items():
        if header.size != ct.size:
            found = [" x ".join(map(str, size)) for size in (header.size, ct.size)]
            yield f"unequal grids: {column} has {found[0]} voxels, the CT {found[1]}"
        elif header.geometry and ct.geometry and not ct.geometry.same_grid(header.geometry):  # else known after reading
            yield f"unequal grids: {column} lies elsewhere than the CT"


def _score(text: str, subtype: Subtype) -> int | None:
    """None if the text is no score."""
    try:
        return parse_extent(subtype, text).score
    except ValueError:
        return None


def _bound_problems(row: dict[str, str], subtype: Subtype) -> Iterator[str]:
    bounds = [(column, row.get(column, "")) for column in BOUND_COLUMNS[subtype.name]]
    wrong = [
        f"{column} {text!r} is not a number from 0 to 100" for column, text in bounds if text and _percentage(text) is None
    ]
    yield from wrong
    interval = None if wrong else _interval(row, subtype)
    if interval is not None and interval[0] > interval[1]:
        yield f"{bounds[0][0]} {bounds[0][1]} is above {bounds[1][0]} {bounds[1][1]}"


def _interval(row: dict[str, str], subtype: Subtype) -> Interval | None:
    """The bounds of one subtype, checked to be numbers; None where nothing is known."""
    lower, upper = (row.get(column, "") for column in BOUND_COLUMNS[subtype.name])
    bounds = float(lower or 0), float(upper or 100)
    return bounds if bounds != (0, 100) else None


def _percentage(text: str) -> float | None:
    """None if the text is no percentage."""
    try:
        return parse_extent(SUBTYPES[0], None, text).percentage
    except ValueError:
        return None


def _case(row: dict[str, str], folder: Path) -> TrainingCase:
    centrilobular, paraseptal = (_score(row.get(subtype.name, ""), subtype) for subtype in SUBTYPES)
    percentages = tuple(_percentage(row.get(column, "")) for column in PERCENTAGE_COLUMNS)
    truth = tuple(folder / row[column] for column in TRUTH_COLUMNS if row.get(column))
    return TrainingCase(
        entity=row["entity"],
        ct=folder / row["ct"],
        lung_mask=folder / row["lung_mask"],
        scores=Scores(centrilobular, paraseptal),
        split=row["split"],  # type: ignore[arg-type]  # checked before
        truth=truth or None,  # type: ignore[arg-type]
        percentages=None if None in percentages else percentages,  # type: ignore[arg-type]
        intervals=(_interval(row, SUBTYPES[0]), _interval(row, SUBTYPES[1])),
        uniform_slices=UNIFORM_VALUES[row.get(UNIFORM_COLUMN, "")],
        leading=next((subtype for subtype in SUBTYPES if subtype.name == row.get(LEADING_COLUMN)), None),
    )


def write_simulated_manifest(
    cohort: Path | str, manifest: Path | str | None = None, *, validation: float = 0.1, test: float = 0.0, seed: int = 0
) -> Path:
    """Write the manifest of a cohort that `python -m model.simulation` wrote.

    Every split gets its share of every combination of scores; which case goes where is drawn from `seed`.

    Args:
        cohort: the folder with `reference.csv`.
        manifest: the file to write; None: `manifest.csv` in that folder.
        validation: share of the cases to validate on, 0 to 1.
        test: share that neither training nor validation sees.
        seed: of the draw.

    Returns:
        The manifest's path.

    Raises:
        InputError: the folder is no simulated cohort, or the shares leave nothing to train on.
    """
    cohort = Path(cohort)
    manifest = cohort / MANIFEST_FILE if manifest is None else Path(manifest)
    if not 0 <= validation + test < 1 or min(validation, test) < 0:
        raise InputError("--validation and --test", f"shares {validation} and {test}", "shares that leave cases to train on")
    known = (ENTITY, *SCORE_COLUMNS, *PERCENTAGE_COLUMNS)
    rows = read_table(cohort / REFERENCE_FILE, known).cells
    splits = _splits(rows, validation, test, seed)
    base = Path(os.path.relpath(cohort, manifest.parent))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*known, "ct", "lung_mask", *TRUTH_COLUMNS, "split"))
    for row in rows:
        entity = row[ENTITY]
        case = base / entity
        files = (ct_path(case, entity), lung_mask_path(case, entity), *truth_paths(base, entity))
        writer.writerow((*(row[name] for name in known), *files, splits[entity]))
    with whole_file(manifest) as unfinished:
        unfinished.write_text(text.getvalue(), encoding="utf-8")
    return manifest


def _splits(rows: list[dict[str, str]], validation: float, test: float, seed: int) -> dict[str, Split]:
    """Sort the cases by scores (ties at random) and take some at even distances: strata without remainders."""
    generator = random.Random(seed)
    order = sorted(rows, key=lambda row: (*(row[name] for name in SCORE_COLUMNS), generator.random()))
    offset = generator.random()
    # Multiples of the golden ratio, modulo 1, spread any share of the cases evenly over the sorted list.
    spread = sorted(range(len(order)), key=lambda place: (place * 0.6180339887498949 + offset) % 1)
    entities = [order[place]["entity"] for place in spread]
    first, last = round(validation * len(entities)), len(entities) - round(test * len(entities))
    return {
        entity: "validation" if place < first else "test" if place >= last else "train" for place, entity in enumerate(entities)
    }
