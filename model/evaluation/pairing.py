"""Pairs: the scans that both the reference and the predictions tell of, ready to be counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cohort.readings import Readings, subtype_extents
from ..errors import InputError
from ..fleischner import Subtype

Scores = npt.NDArray[np.int64]
Percentages = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """Which scans are on both sides, and which on one alone; entities are sorted.

    Attributes:
        paired: in the reference and in the predictions.
        not_predicted: in the reference alone.
        not_in_reference: in the predictions alone.
    """

    paired: tuple[str, ...]
    not_predicted: tuple[str, ...]
    not_in_reference: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "paired": len(self.paired),
            "not_predicted": list(self.not_predicted),
            "not_in_reference": list(self.not_in_reference),
        }


@dataclass(frozen=True)
class Pairs:
    """One subtype's pairs, N of them, in the order of `entities`.

    Attributes:
        reference, predicted: N; scores.
        reference_percentages, predicted_percentages: N; percent of the lung, 0 to 100, nan where it is not told.
    """

    subtype: Subtype
    entities: tuple[str, ...]
    reference: Scores
    predicted: Scores
    reference_percentages: Percentages
    predicted_percentages: Percentages


def match(reference: Readings, predictions: Readings, *, allow_missing: bool = False) -> Coverage:
    """Find the scans that are on both sides.

    Raises:
        InputError: some are on one side alone (one error that lists them all) and `allow_missing` is not given, or no scan is
            on both.
    """
    ours, theirs = set(predictions.cases), set(reference.cases)
    coverage = Coverage(tuple(sorted(ours & theirs)), tuple(sorted(theirs - ours)), tuple(sorted(ours - theirs)))
    complaints = []
    if coverage.not_predicted:
        complaints.append(f"no result for {_listed(coverage.not_predicted, predictions.failures)}")
    others = {entity: why for entity, why in predictions.failures.items() if entity not in theirs}
    if others:
        complaints.append(f"no result for {_listed(sorted(others), others)}")
    unscored = [entity for entity in coverage.not_in_reference if entity in reference.failures]
    if unscored:
        complaints.append(f"no score in {reference.source}: {_listed(unscored)}")
    absent = [entity for entity in coverage.not_in_reference if entity not in reference.failures]
    if absent:
        complaints.append(f"not in {reference.source}: {_listed(absent)}")
    if complaints and not (allow_missing and coverage.paired):
        expected = "the same entities in both" + (", or --allow-missing" if coverage.paired else "")
        raise InputError(predictions.source, "; ".join(complaints), expected)
    return coverage


def _listed(entities: Sequence[str], reasons: dict[str, str] | None = None) -> str:
    reasons = reasons or {}
    named = [f"{entity} ({reasons[entity]})" if entity in reasons else entity for entity in entities]
    return f"{len(named)} scan{'s' if len(named) > 1 else ''}: {', '.join(named)}"


def pair(subtype: Subtype, reference: Readings, predictions: Readings) -> Pairs:
    """Pair one subtype's scores; a scan that one side tells no score of is left out."""
    true, found = subtype_extents(reference, subtype), subtype_extents(predictions, subtype)
    entities = tuple(sorted(true.keys() & found.keys()))
    return Pairs(
        subtype,
        entities,
        np.array([true[entity].score for entity in entities], np.int64),
        np.array([found[entity].score for entity in entities], np.int64),
        np.array([true[entity].percentage for entity in entities], np.float64),  # None becomes nan
        np.array([found[entity].percentage for entity in entities], np.float64),
    )
