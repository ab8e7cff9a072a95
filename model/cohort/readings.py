"""Readings: what a reader, a network or a rule says about each scan; read from tables and from folders of results.

A table that holds visual scores names its columns `entity, centrilobular, paraseptal`, as COPDGene does, or as a simulated
cohort's reference does; a table of both sides has `entity, cle_reference, cle_predicted, pse_reference, pse_predicted`.
A table or folder that cannot be used is one `InputError` that lists everything that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..container.grand_challenge import RESULTS_FILE, composed, map_path
from ..container.results import parse_results
from ..errors import InputError
from ..fleischner import SUBTYPES, Subtype
from .summary import CASES_TABLE, is_summary, read_summary
from .tables import (
    ENTITY,
    GRID_COLUMN,
    PERCENTAGE_COLUMNS,
    RANGES,
    SCORE_COLUMNS,
    Extent,
    entity_problems,
    parse_extent,
    read_table,
)

PAIR_COLUMNS = (ENTITY, *(f"{subtype.abbreviation}_{side}" for subtype in SUBTYPES for side in ("reference", "predicted")))
VISUAL, SIMULATED = "visual scores", "simulated truth"
"""What tables call a reference."""

NO_SCORE = "no score"
"""Why a row of a reference is no case."""

RESULTS = f"a folder that holds {RESULTS_FILE} or {CASES_TABLE}, or one output folder a case with a {RESULTS_FILE} in each"


@dataclass(frozen=True)
class Reading:
    """What is said about one scan.

    Attributes:
        extents: one for each of `model.fleischner.SUBTYPES`, in that order.
        maps: the files of the activation maps, one a subtype, where there may be some.
    """

    extents: tuple[Extent, ...]
    maps: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Readings:
    """Readings of many scans.

    Attributes:
        source: the file or folder that they were read from.
        name: whose they are, in tables: of a network its bundle.
        cases: by entity, in composed letters (NFC).
        failures: scans without a result, by entity, and why; a run that failed as a whole goes by its folder's name.
    """

    source: Path
    name: str
    cases: dict[str, Reading]
    failures: dict[str, str] = field(default_factory=dict)


def read_reference(path: Path) -> Readings:
    """Read a table of visual scores, with percentages where it has them.

    Cells may be empty; a row without any score, also one with percentages, counts as a scan that has no reference, and is among
    the failures.

    Raises:
        InputError: no such table, a column is missing, a value is out of range, or an entity is there twice.
    """
    table = read_table(path, (ENTITY, *SCORE_COLUMNS))
    problems = entity_problems([composed(row[ENTITY]) for row in table.cells])
    cases: dict[str, Reading] = {}
    failures: dict[str, str] = {}
    for row in table.cells:
        entity = composed(row[ENTITY])
        extents, found = _extents(row, list(zip(SCORE_COLUMNS, PERCENTAGE_COLUMNS, strict=True)))
        problems += [f"{entity}: {problem}" for problem in found]
        if any(extent.score is not None for extent in extents):
            cases[entity] = Reading(extents)
        else:
            failures[entity] = NO_SCORE
    _raise_for(path, problems)
    return Readings(path, SIMULATED if GRID_COLUMN in table.columns else VISUAL, cases, failures)


def read_pairs(path: Path) -> tuple[Readings, Readings]:
    """Read a table with both sides; return the reference and the predictions.

    Cells may be empty; a row without any score on one side counts as a scan that this side does not have, and is among the
    failures of the reference.

    Raises:
        InputError: as `read_reference` does.
    """
    table = read_table(path, PAIR_COLUMNS)
    problems = entity_problems([row[ENTITY] for row in table.cells])
    sides: list[Readings] = []
    for side in ("reference", "predicted"):
        cases: dict[str, Reading] = {}
        failures: dict[str, str] = {}
        for row in table.cells:
            extents, found = _extents(row, [(f"{subtype.abbreviation}_{side}", "") for subtype in SUBTYPES])
            problems += [f"{row[ENTITY]}: {side} {problem}" for problem in found]
            if any(extent.score is not None for extent in extents):
                cases[row[ENTITY]] = Reading(extents)
            elif side == "reference":
                failures[row[ENTITY]] = NO_SCORE
        sides.append(Readings(path, VISUAL if side == "reference" else path.stem, cases, failures))
    _raise_for(path, problems)
    return sides[0], sides[1]


def read_predictions(path: Path) -> Readings:
    """Read the results of `process.py`: one `results.json` of many scans, or a folder that holds one output folder a scan; or
    those of `cohort.py`: its table of cases (Parquet or CSV), or the folder that holds it.

    Raises:
        InputError: there is no result, a file is none, a value is out of range, or an entity is there twice.
    """
    summary = path / CASES_TABLE if path.is_dir() else path
    if is_summary(summary):
        return _read_cohort(path, summary)
    problems: list[str] = []
    cases: dict[str, Reading] = {}
    failures: dict[str, str] = {}
    entities: list[str] = []
    bundles: set[str] = set()
    for file in _results_files(path):
        results, found = parse_results(file)
        problems += [f"{file.parent.name}/{file.name}: {problem}" for problem in found]
        for result in results:
            written = result.entity or file.parent.name
            entity = composed(written)
            if result.entity:
                entities.append(entity)
            if result.metrics is None:
                failures[entity] = "; ".join(result.error_messages)
                continue
            scores = [result.metrics.of(subtype) for subtype in SUBTYPES]
            maps = tuple(map_path(file.parent, subtype.name, written) for subtype in SUBTYPES)
            cases[entity] = Reading(tuple(Extent(score.score, score.percentage) for score in scores), maps)
            bundles.add(result.bundle)
    problems += entity_problems(entities)
    _raise_for(path, problems)
    return Readings(path, " and ".join(sorted(bundles - {""})) or path.resolve().name, cases, failures)


def _read_cohort(source: Path, summary: Path) -> Readings:
    """The readings of a table that `cohort.py` wrote; of two formats in one folder, the CSV, which needs no pyarrow."""
    problems: list[str] = []
    cases: dict[str, Reading] = {}
    failures: dict[str, str] = {}
    entities: list[str] = []
    bundles: set[str] = set()
    columns = [(f"{subtype.abbreviation}_severity_score", f"{subtype.abbreviation}_percentage") for subtype in SUBTYPES]
    for row in read_summary(summary):
        written = row[ENTITY] or ""
        entity = composed(written)
        entities.append(entity)
        if row["state"] != "scored":
            failures[entity] = row["error"] or "not scored"
            continue
        extents, found = _extents(row, columns)
        problems += [f"{entity}: {problem}" for problem in found]
        folder = summary.parent / (row["folder"] or "")
        cases[entity] = Reading(extents, tuple(map_path(folder, subtype.name, written) for subtype in SUBTYPES))
        bundles.add(row["bundle"] or "")
    problems += entity_problems(entities)
    _raise_for(source, problems)
    return Readings(source, " and ".join(sorted(bundles - {""})) or summary.resolve().parent.name, cases, failures)


def _extents(row: dict[str, Any], columns: Sequence[tuple[str, str]]) -> tuple[tuple[Extent, ...], list[str]]:
    """Each subtype's score and percentage, and what is wrong with them.

    Args:
        row: values by column name, as text or as numbers.
        columns: for each subtype the names of its score and its percentage.
    """
    extents = []
    problems = []
    for subtype, (score, percentage) in zip(SUBTYPES, columns, strict=True):
        try:
            extents.append(parse_extent(subtype, row.get(score), row.get(percentage)))
        except ValueError as error:
            problems.append(str(error))
    return tuple(extents), problems


def _raise_for(path: Path, problems: list[str]) -> None:
    if problems:
        expected = f"each entity once, {RANGES}"
        raise InputError(path, f"{len(problems)} that cannot be used: {'; '.join(problems)}", expected)


def _results_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() == ".csv":
            raise InputError(path, f"not the table of cases that cohort.py writes ({CASES_TABLE}, with commas)", RESULTS)
        return [path]
    if not path.is_dir():
        raise InputError(path, "no such folder", RESULTS)
    own = path / RESULTS_FILE
    files = [own] if own.exists() else sorted(path.glob(f"*/{RESULTS_FILE}"))
    if not files:
        raise InputError(path, f"no {RESULTS_FILE} in it or in its folders", RESULTS)
    return files


def subtype_extents(readings: Readings, subtype: Subtype) -> dict[str, Extent]:
    """One subtype's extents by entity, where a score is known."""
    place = SUBTYPES.index(subtype)
    extents = {entity: reading.extents[place] for entity, reading in readings.cases.items()}
    return {entity: extent for entity, extent in extents.items() if extent.score is not None}
