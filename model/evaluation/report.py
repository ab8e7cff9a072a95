"""The report: from readings on both sides to all figures, and to `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..cohort.readings import Readings
from ..fleischner import SUBTYPES
from .agreement import Agreement, Bootstrap, Difference, measure_agreement, measure_difference
from .pairing import Coverage, Pairs, match, pair
from .percentages import PercentageAgreement, measure_percentages
from .voxels import VoxelAgreement


@dataclass(frozen=True)
class SubtypeReport:
    """Figures of one subtype; None where no case allows them."""

    pairs: Pairs
    agreement: Agreement | None
    percentages: PercentageAgreement | None
    voxels: VoxelAgreement | None = None

    def as_document(self) -> dict[str, Any]:
        """For `metrics.json`."""
        document: dict[str, Any] = {"n": 0} if self.agreement is None else self.agreement.as_document()
        document["percentages"] = None if self.percentages is None else self.percentages.as_document()
        return document if self.voxels is None else document | {"voxels": self.voxels.as_document()}


@dataclass(frozen=True)
class Report:
    """Figures of one result.

    Attributes:
        name: whose result it is.
        reference: what it is compared with.
        bootstrap: how the confidence intervals were drawn.
        coverage: which scans were compared.
        subtypes: in the order of `model.fleischner.SUBTYPES`.
    """

    name: str
    reference: str
    bootstrap: Bootstrap
    coverage: Coverage
    subtypes: tuple[SubtypeReport, ...]

    def as_document(self) -> dict[str, Any]:
        """For `metrics.json`."""
        subtypes = {part.pairs.subtype.name: part.as_document() for part in self.subtypes}
        return {
            "method": self.name,
            "reference": self.reference,
            "bootstrap": asdict(self.bootstrap),
            "cases": self.coverage.as_document(),
            **subtypes,
        }

    def with_voxels(self, voxels: Mapping[str, VoxelAgreement]) -> Report:
        """The same with the agreement of maps and voxel truth, by the subtype's name."""
        parts = (replace(part, voxels=voxels.get(part.pairs.subtype.name)) for part in self.subtypes)
        return replace(self, subtypes=tuple(parts))


@dataclass(frozen=True)
class Comparison:
    """One result against another on the scans that both have.

    Attributes:
        name, other: whose results they are.
        differences: by the subtype's name; None where no scan allows it.
    """

    name: str
    other: str
    differences: dict[str, Difference | None]

    def as_document(self) -> dict[str, Any]:
        """For `metrics.json`."""
        parts = {name: None if part is None else part.as_document() for name, part in self.differences.items()}
        return {"method": self.other, "difference": parts}


def make_report(
    reference: Readings,
    predictions: Readings,
    bootstrap: Bootstrap,
    *,
    allow_missing: bool = False,
) -> Report:
    """Compare predictions with the reference.

    Args:
        reference: visual scores, or the truth of simulated scans.
        predictions: on the same scans.
        bootstrap: how the confidence intervals were drawn.
        allow_missing: compare the scans that are on both sides, rather than raise.

    Raises:
        InputError: scans are on one side alone and `allow_missing` is not given, or no scan is on both.
    """
    coverage = match(reference, predictions, allow_missing=allow_missing)
    parts = []
    for subtype in SUBTYPES:
        pairs = pair(subtype, reference, predictions)
        agreement = measure_agreement(pairs, bootstrap) if pairs.entities else None
        parts.append(SubtypeReport(pairs, agreement, measure_percentages(pairs)))
    return Report(predictions.name, reference.name, bootstrap, coverage, tuple(parts))


def compare(report: Report, other: Report, bootstrap: Bootstrap) -> Comparison:
    """Subtract the figures of `other` from those of `report`, on the scans that both have."""
    differences = {
        ours.pairs.subtype.name: measure_difference(ours.pairs, theirs.pairs, bootstrap)
        for ours, theirs in zip(report.subtypes, other.subtypes, strict=True)
    }
    return Comparison(report.name, other.name, differences)
