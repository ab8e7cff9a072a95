"""What is reported of a case: the objects that `results.json` holds, as the container and the viewer both give them."""

from __future__ import annotations

from typing import Any, Literal

from .. import __version__
from ..imaging.scan import Scan
from ..lungs import densitometry
from ..subtyping import EmphysemaSubtyper, Finding, Subtyping

LungMaskSource = Literal["given", "automatic"]
"""Whether the lung mask came with the CT, or was made by `model.lungs.segmentation`."""


def case_result(
    entity: str, scan: Scan, subtyping: Subtyping, subtyper: EmphysemaSubtyper, lung_mask_source: LungMaskSource
) -> dict[str, Any]:
    """Return the object that `results.json` holds for a case that was scored."""
    return {
        "entity": entity,
        "metrics": case_metrics(subtyping, *densitometry.measure(scan, subtyping.regions)),
        "provenance": provenance(subtyper, lung_mask_source),
        "warnings": [*scan.warnings, *subtyping.warnings],
        "error_messages": [],
    }


def case_metrics(
    subtyping: Subtyping, lung: densitometry.Densitometry, parts: dict[str, densitometry.Densitometry]
) -> dict[str, Any]:
    """Return the `metrics` object of `results.json`: percentages in percent, density in HU, volumes in ml."""
    findings = subtyping.findings
    metrics: dict[str, Any] = {}
    for finding in findings:
        metrics |= _finding_metrics(finding)
    metrics |= {
        "laa950_percentage": round(lung.laa950_percentage, 4),
        "perc15_hu": lung.perc15_hu,
        "lung_volume_ml": round(lung.volume_ml),
        "regions": {
            name: {
                **{f"{finding.subtype.abbreviation}_percentage": finding.region_percentages[name] for finding in findings},
                "laa950_percentage": round(part.laa950_percentage, 4),
                "perc15_hu": part.perc15_hu,
                "volume_ml": round(part.volume_ml),
            }
            for name, part in parts.items()
        },
    }
    return metrics


def _finding_metrics(finding: Finding) -> dict[str, Any]:
    prefix = finding.subtype.abbreviation
    metrics = {
        f"{prefix}_severity_score": finding.score,
        f"{prefix}_severity": finding.severity,
        f"{prefix}_percentage": finding.percentage,
    }
    if finding.probabilities is not None:
        metrics[f"{prefix}_probabilities"] = [round(probability, 4) for probability in finding.probabilities]
    return metrics


def provenance(subtyper: EmphysemaSubtyper, lung_mask_source: LungMaskSource) -> dict[str, Any]:
    """Return the `provenance` object of `results.json`: what it takes to repeat a result."""
    return {
        "bundle": subtyper.metadata.name,
        "sha256": subtyper.bundle_sha256,
        "trained_on": subtyper.metadata.trained_on,
        "profile": subtyper.metadata.profile,
        "lung_mask_source": lung_mask_source,
        "version": __version__,
        "device": subtyper.device.type,
        "precision": str(subtyper.precision).removeprefix("torch."),
    }
