"""Tables of scores: the names of their columns, and the reader of all of them.

The columns are `entity, centrilobular, paraseptal`, and `centrilobular_percentage, paraseptal_percentage` where percentages are
known. COPDGene's names and those of a simulated cohort's `reference.csv` are understood too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..fleischner import SUBTYPES, Subtype

ENTITY = "entity"
SCORE_COLUMNS = tuple(subtype.name for subtype in SUBTYPES)
PERCENTAGE_COLUMNS = tuple(f"{subtype.name}_percentage" for subtype in SUBTYPES)

COPDGENE_COLUMNS = {
    "sid": ENTITY,
    "CT_Visual_Emph_Severity_P1": "centrilobular",
    "CT_Visual_Emph_Paraseptal_P1": "paraseptal",
}
"""Names of COPDGene, and what they are called here."""

REFERENCE_COLUMNS = {
    ENTITY: ENTITY,
    **{subtype.name: f"{subtype.abbreviation}_score" for subtype in SUBTYPES},
    **{f"{subtype.name}_percentage": f"{subtype.abbreviation}_percentage" for subtype in SUBTYPES},
}
"""What a simulated cohort's `reference.csv` calls our columns."""

GRID_COLUMN = "grid"
"""A column that only a simulated cohort's `reference.csv` has."""

ALIASES = COPDGENE_COLUMNS | {theirs: ours for ours, theirs in REFERENCE_COLUMNS.items()}

RANGES = ", ".join(f"{subtype.name} scores 0 to {len(subtype.grades) - 1}" for subtype in SUBTYPES) + ", percentages 0 to 100"


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        columns: our names of its columns.
        rows: each with the number of its line in the file, and its cells by column, stripped; missing cells are empty.
        sha256: of the file.
    """

    columns: frozenset[str]
    rows: tuple[tuple[int, dict[str, str]], ...]
    sha256: str

    @property
    def cells(self) -> list[dict[str, str]]:
        """The rows without the numbers of their lines."""
        return [row for _, row in self.rows]


def read_table(path: Path, required: Sequence[str], instead: Mapping[str, Sequence[str]] | None = None) -> Table:
    """Read a CSV file, UTF-8, separated by commas or tabs.

    Args:
        path: the file.
        required: columns that it must have, by our names.
        instead: for a required column, the columns that may be there in its place.

    Raises:
        InputError: the file cannot be read or is no table, a column is missing or there twice, or there are no rows.
    """
    expected = f"a CSV with the columns {', '.join(required)}, separated by commas or tabs"
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error.strerror})", expected) from error
    except UnicodeDecodeError as error:
        raise InputError(path, f"not a table ({error})", expected) from error
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except csv.Error as error:
        raise InputError(path, f"not a table (line {reader.line_num}: {error})", expected) from error
    if not lines:
        raise InputError(path, "not a table (it is empty)", expected)
    names = [ALIASES.get(name, name) for name in lines[0][1]]
    replaced = {name for name, others in (instead or {}).items() if set(others) <= set(names)}
    missing = [name for name in required if name not in names and name not in replaced]
    if missing:
        raise InputError(path, f"missing columns: {', '.join(missing)}", expected)
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise InputError(path, f"several columns for {', '.join(twice)}", expected)
    if len(lines) == 1:
        raise InputError(path, "no rows", expected)
    rows = []
    for line, cells in lines[1:]:
        if any(cells[len(names) :]):
            raise InputError(path, f"not a table (line {line} has {len(cells)} cells for {len(names)} columns)", expected)
        if ENTITY in names and "\n" in (cells[names.index(ENTITY)] if len(cells) > names.index(ENTITY) else ""):
            raise InputError(path, f"not a table (line {line}: a name of several lines; is a quote not closed?)", expected)
        padded = cells + [""] * (len(names) - len(cells))
        rows.append((line, dict(zip(names, padded, strict=False))))
    return Table(frozenset(names), tuple(rows), hashlib.sha256(content).hexdigest())


class Extent(NamedTuple):
    """One subtype in one scan: the Fleischner score and the percentage of the lung (0 to 100); None where it is not known."""

    score: int | None
    percentage: float | None = None


def parse_extent(subtype: Subtype, score: Any, percentage: Any = None) -> Extent:
    """Check a score and a percentage, given as numbers or as text; None and empty text mean that it is not known.

    Raises:
        ValueError: one of them is no number, or out of range.
    """
    grade, share = _number(score), _number(percentage)
    if grade is not None and grade not in range(len(subtype.grades)):
        raise ValueError(f"{subtype.name} score {score!r} is not one of 0 to {len(subtype.grades) - 1}")
    if share is not None and not 0 <= share <= 100:
        raise ValueError(f"{subtype.name} percentage {percentage!r} is not a number from 0 to 100")
    return Extent(None if grade is None else int(grade), share)


def _number(value: Any) -> float | None:
    """A number, also one written as `3.0`, as in COPDGene's tables; nan, which is in no range, for anything else."""
    if value is None or value == "":
        return None
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def entity_problems(entities: Sequence[str]) -> list[str]:
    """Name the entities that are there several times, and count rows without one."""
    return [
        f"{entity}: {count} times" if entity else f"{count} without an entity"
        for entity, count in Counter(entities).items()
        if count > 1 or not entity
    ]


def reference_row(entity: str, extents: Sequence[Extent]) -> dict[str, Any]:
    """The first cells of a case's row in a simulated cohort's `reference.csv`, by their columns.

    Args:
        entity: the case.
        extents: one for each of `model.fleischner.SUBTYPES`, both numbers known.
    """
    row: dict[str, Any] = {ENTITY: entity}
    row |= {column: extent.score for column, extent in zip(SCORE_COLUMNS, extents, strict=True)}
    row |= {column: f"{extent.percentage:.4f}" for column, extent in zip(PERCENTAGE_COLUMNS, extents, strict=True)}
    return {REFERENCE_COLUMNS[column]: value for column, value in row.items()}
