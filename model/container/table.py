"""`results.csv`: the results as a table for a spreadsheet, one row for each case."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import encodable
from .results import CaseResult
from .schema import to_json

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def results_table(results: Sequence[CaseResult]) -> bytes:
    """The content of `results.csv`: the fields of `results.json`, with one column for each field of each region.

    UTF-8 with a byte order mark, which Excel needs to recognise it. Text that a spreadsheet would run as a formula, such as a
    file name that begins with `=`, is preceded by an apostrophe.
    """
    rows = [dict(_cells(result)) for result in results]
    columns = {"entity": None} | {name: None for row in rows for name in row}
    ends = [name for name in columns if name in ("warnings", "error_messages")]
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, [*(name for name in columns if name not in ends), *ends])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8-sig")


def _cells(result: CaseResult) -> Iterator[tuple[str, Any]]:
    document = to_json(result)
    texts = {name: "; ".join(document.pop(name)) for name in ("warnings", "error_messages")}
    for name, value in {**_flat(document), **texts}.items():
        yield name, cell(value)


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Objects become columns: those of a region are named after it, those of other objects by their own names."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if name == "regions":
            for region, values in value.items():
                flat |= _flat(values, f"{region}_")
        elif isinstance(value, dict):
            flat |= _flat(value)
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def cell(value: Any) -> Any:
    """What a CSV has for a value; None is empty, a list its items."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, str):
        return encodable(f"'{value}" if value.startswith(FORMULA_STARTS) else value)
    return "" if value is None else value
