"""Writes results and references as they are found on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.fleischner import CENTRILOBULAR, PARASEPTAL

Percentages = Mapping[str, tuple[float, float]]
"""Centrilobular and paraseptal percentage by entity."""


def result(entity: str, cle: float, pse: float, **changes: Any) -> dict[str, Any]:
    """One object of `results.json`."""
    metrics = {
        "cle_severity_score": CENTRILOBULAR.score(cle),
        "cle_severity": CENTRILOBULAR.grade(cle).severity,
        "cle_percentage": cle,
        "pse_severity_score": PARASEPTAL.score(pse),
        "pse_severity": PARASEPTAL.grade(pse).severity,
        "pse_percentage": pse,
        "laa950_percentage": 1.0,
        "perc15_hu": -900,
        "lung_volume_ml": 5000,
        "regions": {},
    }
    return {
        "entity": entity,
        "metrics": metrics | changes,
        "provenance": {"bundle": "tested", "trained_on": "nothing"},
        "warnings": [],
        "error_messages": [],
    }


def write_results(folder: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Write one output folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(list(entries)), encoding="utf-8")
    return folder


def write_predictions(folder: Path, percentages: Percentages) -> Path:
    """Write one output folder a case."""
    for entity, (cle, pse) in percentages.items():
        write_results(folder / entity, [result(entity, cle, pse)])
    return folder


def write_simulated_reference(path: Path, percentages: Percentages) -> Path:
    """Write a table with the columns of a simulated cohort's reference."""
    lines = ["entity,cle_score,pse_score,cle_percentage,pse_percentage,panlobular_percentage,grid,lungs,seed"]
    for entity, (cle, pse) in percentages.items():
        lines.append(f"{entity},{CENTRILOBULAR.score(cle)},{PARASEPTAL.score(pse)},{cle:.4f},{pse:.4f},0.0000,network,,17")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
