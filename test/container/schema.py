"""The schema of `results.json` that users validate against, and the validator that they may use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from test.conftest import ROOT

SCHEMA = ROOT / "docs" / "results.schema.json"


def problems(documents: Any) -> list[str]:
    """What a validator of JSON Schema finds wrong with the content of a `results.json`."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(documents)]


def problems_of(folder: Path) -> list[str]:
    """The same for the file in an output folder."""
    return problems(json.loads((folder / "results.json").read_text(encoding="utf-8")))
