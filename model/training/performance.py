"""How good a network is on the validation set: the figures that choose its best epoch and that its bundle reports."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, cohen_kappa_score

from ..fleischner import SUBTYPES, Subtype


@dataclass(frozen=True)
class Agreement:
    """Agreement of one subtype's results with the reference.

    Attributes:
        accuracy: share of scores that are right, 0 to 1.
        kappa: linear weighted kappa, at most 1; 0 where it is not defined (every score the same).
        percentage_error: mean absolute error of the percentage, in percentage points; None where no percentages are known.
    """

    accuracy: float
    kappa: float
    percentage_error: float | None


@dataclass(frozen=True)
class Performance:
    """Figures on one set of scans.

    Attributes:
        cases: how many.
        centrilobular: agreement of the network's results.
        paraseptal: likewise.
        low_attenuation: agreement of LAA-950, graded by Table 1, with centrilobular and with paraseptal scores: what people
            have without a network.
    """

    cases: int
    centrilobular: Agreement
    paraseptal: Agreement
    low_attenuation: tuple[Agreement, Agreement]

    @property
    def kappa(self) -> float:
        """Mean of both subtypes' kappa: the one number that early stopping watches."""
        return (self.centrilobular.kappa + self.paraseptal.kappa) / 2

    def as_document(self) -> dict[str, Any]:
        """For a bundle's metadata: figures rounded to four digits."""
        document = asdict(self)
        baseline = document.pop("low_attenuation")
        document["laa950_alone"] = dict(zip((subtype.name for subtype in SUBTYPES), baseline, strict=True))
        return _rounded(document)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def measure(
    scores: npt.NDArray[np.int64],
    percentages: npt.NDArray[np.float64],
    true_scores: npt.NDArray[np.int64],
    true_percentages: npt.NDArray[np.float64],
    low_attenuation: npt.NDArray[np.float64],
) -> Performance:
    """Compare results with the reference.

    Args:
        scores: N x 2, centrilobular and paraseptal, by the network.
        percentages: N x 2, percent of the lung; nan where the network tells none.
        true_scores: N x 2.
        true_percentages: N x 2, nan where they are not known.
        low_attenuation: N, LAA-950 in percent of the lung.
    """
    found = [
        agreement(subtype, scores[:, place], true_scores[:, place], percentages[:, place], true_percentages[:, place])
        for place, subtype in enumerate(SUBTYPES)
    ]
    baseline = [
        agreement(
            subtype,
            np.array([subtype.score(value) for value in low_attenuation]),
            true_scores[:, place],
            low_attenuation,
            true_percentages[:, place],
        )
        for place, subtype in enumerate(SUBTYPES)
    ]
    return Performance(len(scores), found[0], found[1], (baseline[0], baseline[1]))


def agreement(
    subtype: Subtype,
    scores: npt.NDArray[np.int64],
    true_scores: npt.NDArray[np.int64],
    percentages: npt.NDArray[np.float64],
    true_percentages: npt.NDArray[np.float64],
) -> Agreement:
    """Compare one subtype's results (N each) with the reference; nan percentages are left out."""
    grades: Sequence[int] = range(len(subtype.grades))
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # one grade alone leaves kappa undefined
        kappa = float(cohen_kappa_score(true_scores, scores, labels=list(grades), weights="linear"))
    error = np.abs(percentages - true_percentages)
    error = error[np.isfinite(error)]
    return Agreement(
        accuracy=float(accuracy_score(true_scores, scores)),
        kappa=kappa if np.isfinite(kappa) else 0.0,
        percentage_error=float(error.mean()) if error.size else None,
    )
