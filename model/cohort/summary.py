"""The tables of a cohort that was scored: one row a case, and one row a region, each as Parquet and as CSV.

Columns are the fields of `results.json` that hold one value; `model.batch` writes the tables, evaluation reads them. Parquet
needs pyarrow, which is imported where it is used: a CSV is read without it.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..container.results import Metrics, Provenance, Quality, RegionMetrics
from ..container.schema import scalar_fields
from ..container.table import FORMULA_STARTS, cell
from ..errors import InputError, encodable, reason
from ..whole_files import whole_file
from .tables import ENTITY

CASES_TABLE, REGIONS_TABLE = "cohort.csv", "regions.csv"
"""Parquet files have the same names but for the suffix."""

CASE_COLUMNS: dict[str, type] = {
    ENTITY: str,
    "state": str,
    **scalar_fields(Metrics),
    "cle_probabilities": str,
    "pse_probabilities": str,
    "warnings": str,
    "error": str,
    **scalar_fields(Quality),
    **scalar_fields(Provenance),
    "ct": str,
    "lung_mask": str,
    "folder": str,
    "attempts": int,
    "seconds": float,
    "finished": str,
}
REGION_COLUMNS: dict[str, type] = {ENTITY: str, "region": str, **scalar_fields(RegionMetrics)}

ROWS_AT_ONCE = 1000
NEEDS_PYARROW = "the packages of requirements/cohort.lock (pyarrow), or the .csv beside it"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CaseEntry:
    """What the tables say of a case beside its result.

    Attributes:
        ct, lung_mask: the files that were scored; `lung_mask` is empty where the lungs were found in the CT.
        folder: of its outputs, relative to the tables.
        attempts: how many times it was tried.
        seconds: from the beginning of the last attempt to its end.
        finished: when, in UTC.
    """

    ct: str
    lung_mask: str
    folder: str
    attempts: int
    seconds: float
    finished: str


def case_row(entry: CaseEntry, result: Mapping[str, Any]) -> Row:
    """The row of a case; `result` is its object in `results.json`."""
    row: Row = {}
    for part in ("metrics", "quality", "provenance"):
        row |= result.get(part) or {}
    for name in ("cle_probabilities", "pse_probabilities"):
        row[name] = " ".join(map(str, row[name])) if row.get(name) else None
    row |= dataclasses.asdict(entry)
    row[ENTITY] = result["entity"]
    row["state"] = "scored" if result.get("metrics") else "failed"
    row["warnings"] = "; ".join(result.get("warnings", ()))
    row["error"] = "; ".join(result.get("error_messages", ()))
    return {name: None if row.get(name) == "" else row.get(name) for name in CASE_COLUMNS}


def region_rows(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a case's regions."""
    regions = (result.get("metrics") or {}).get("regions", {})
    return [
        {ENTITY: result["entity"], "region": name, **{column: region.get(column) for column in scalar_fields(RegionMetrics)}}
        for name, region in regions.items()
    ]


class _Table:
    """Writes one table in both formats, some rows at a time."""

    def __init__(self, csv_path: Path, parquet_path: Path, columns: Mapping[str, type]) -> None:
        import pyarrow
        import pyarrow.parquet

        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._parquet = pyarrow.parquet.ParquetWriter(parquet_path, self._schema)
        self._stream = csv_path.open("w", encoding="utf-8-sig", newline="")  # Excel needs the mark to know the encoding
        self._csv = csv.DictWriter(self._stream, list(columns))
        self._csv.writeheader()
        self._rows: list[Row] = []
        self._table: Any = pyarrow.Table

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS_AT_ONCE:
            self._write()

    def close(self) -> None:
        self._write()
        self._stream.close()
        self._parquet.close()

    def _write(self) -> None:
        if not self._rows:
            return
        rows = [
            {name: encodable(value) if isinstance(value, str) else value for name, value in row.items()} for row in self._rows
        ]
        self._parquet.write_table(self._table.from_pylist(rows, schema=self._schema))
        self._csv.writerows({name: cell(value) for name, value in row.items()} for row in rows)
        self._rows = []


class SummaryWriter:
    """Writes all four files; they appear, each whole, when the `with` block ends without an error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        self._tables = []
        for name, columns in ((CASES_TABLE, CASE_COLUMNS), (REGIONS_TABLE, REGION_COLUMNS)):
            as_csv = self._exit.enter_context(whole_file(self._folder / name))
            as_parquet = self._exit.enter_context(whole_file(parquet_of(self._folder / name)))
            self._tables.append(_Table(as_csv, as_parquet, columns))
        return self

    def add(self, entry: CaseEntry, result: Mapping[str, Any]) -> None:
        """Add a case and its regions."""
        cases, regions = self._tables
        cases.add(case_row(entry, result))
        for row in region_rows(result):
            regions.add(row)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for table in self._tables:
                table.close()
        except BaseException:  # as on a full disk: nothing appears
            self._exit.__exit__(*sys.exc_info())
            raise
        self._exit.__exit__(kind, error, trace)


def parquet_of(path: Path) -> Path:
    """The Parquet file beside a CSV."""
    return path.with_suffix(".parquet")


def is_summary(path: Path) -> bool:
    """Whether a file is a table of cases as `SummaryWriter` writes it, by its suffix or its header."""
    if path.suffix.lower() == ".parquet":
        return True
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        header = next(csv.reader(stream), [])
    return {ENTITY, "state", "cle_severity_score", "folder"} <= set(header)


def read_summary(path: Path) -> Iterator[Row]:
    """Read a table of cases, Parquet or CSV, row by row; cells that are empty are None.

    Raises:
        InputError: it cannot be read, or is no such table.
    """
    wanted: tuple[str, ...] = (ENTITY, "state", "error", "bundle", "ct", "lung_mask", "lung_mask_source", "folder")
    wanted += tuple(f"{subtype}_{name}" for subtype in ("cle", "pse") for name in ("severity_score", "percentage"))
    if path.suffix.lower() == ".parquet":
        columns = read_columns(path, wanted)
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return
    expected = "a cohort.csv, as cohort.py writes it"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = set(wanted) - set(reader.fieldnames or ())
            if missing:
                raise InputError(path, f"missing columns: {', '.join(sorted(missing))}", expected)
            for row in reader:
                yield {name: _value(row[name], CASE_COLUMNS[name]) for name in wanted}
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error.strerror})", expected) from error
    except (csv.Error, ValueError) as error:
        raise InputError(path, f"not a table of cases ({error})", expected) from error


def _value(text: str | None, kind: type) -> Any:
    if not text:
        return None
    if kind is str and text.startswith("'") and text[1:].startswith(FORMULA_STARTS):
        return text[1:]  # `cell` has put the apostrophe there
    return kind(text)


def read_columns(path: Path, names: Sequence[str], optional: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Read columns of a Parquet file, in the order of `names`; those that are optional may be missing.

    Raises:
        InputError: it cannot be read, a column is missing, or pyarrow is.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(path, "pyarrow, which reads Parquet, is not installed", NEEDS_PYARROW) from None
    try:
        held = parquet.read_schema(path).names
        missing = [name for name in names if name not in held and name not in set(optional)]
        if missing:
            raise InputError(path, f"missing columns: {', '.join(missing)}", "a Parquet file that has them")
        table = parquet.read_table(path, columns=[name for name in names if name in held])
        return {name: table.column(name).to_pylist() for name in names if name in held}
    except (OSError, ArrowException) as error:
        raise InputError(path, f"it cannot be read ({reason(error)})", "a Parquet file") from error
