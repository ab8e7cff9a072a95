"""How good a network is on the validation set: the figures that choose its best epoch and that its bundle reports."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, cohen_kappa_score, roc_auc_score

from ..fleischner import SUBTYPES, Subtype


@dataclass(frozen=True)
class Agreement:
    """Agreement of one subtype's results with the reference.

    Attributes:
        accuracy: share of scores that are right, 0 to 1; None where no score is known.
        kappa: linear weighted kappa, at most 1; 0 where it is not defined (every score the same); None where no score is known.
        percentage_error: mean absolute error of the percentage, in percentage points; None where no percentages are known.
        separation: how well percentages separate cases that must have the subtype from cases that cannot, by their bounds: area
            under the receiver operating characteristic curve, 0 to 1; None unless both kinds occur.
    """

    accuracy: float | None
    kappa: float | None
    percentage_error: float | None
    separation: float | None = None


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
        """Mean of both subtypes' kappa, which early stopping watches; 0 for a subtype without scores."""
        return ((self.centrilobular.kappa or 0.0) + (self.paraseptal.kappa or 0.0)) / 2

    @property
    def separation(self) -> float | None:
        """Mean of both subtypes' separation, or that of the one that has any."""
        found = [part.separation for part in (self.centrilobular, self.paraseptal) if part.separation is not None]
        return sum(found) / len(found) if found else None

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
    bounds: npt.NDArray[np.float64] | None = None,
) -> Performance:
    """Compare results with the reference.

    Args:
        scores: N x 2, centrilobular and paraseptal, by the network.
        percentages: N x 2, percent of the lung; nan where the network gives none.
        true_scores: N x 2, below 0 where they are not known.
        true_percentages: N x 2, nan where they are not known.
        low_attenuation: N, LAA-950 in percent of the lung.
        bounds: N x 2 x 2, least and largest percentage where there is no score, nan where they are not known; None: none are.
    """
    if bounds is None:
        bounds = np.full((len(scores), len(SUBTYPES), 2), np.nan)
    found = [
        agreement(
            subtype,
            scores[:, place],
            true_scores[:, place],
            percentages[:, place],
            true_percentages[:, place],
            bounds[:, place],
        )
        for place, subtype in enumerate(SUBTYPES)
    ]
    baseline = [
        agreement(
            subtype,
            np.array([subtype.score(value) for value in low_attenuation]),
            true_scores[:, place],
            low_attenuation,
            true_percentages[:, place],
            bounds[:, place],
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
    bounds: npt.NDArray[np.float64] | None = None,
) -> Agreement:
    """Compare one subtype's results (N each; bounds N x 2) with the reference; what is not known is left out."""
    grades: Sequence[int] = range(len(subtype.grades))
    is_scored = true_scores >= 0
    accuracy, kappa = None, None
    if is_scored.any():
        found, expected = scores[is_scored], true_scores[is_scored]
        accuracy = float(accuracy_score(expected, found))
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore")  # one grade alone leaves kappa undefined
            kappa = float(cohen_kappa_score(expected, found, labels=list(grades), weights="linear"))
            kappa = kappa if np.isfinite(kappa) else 0.0
    error = np.abs(percentages - true_percentages)
    error = error[np.isfinite(error)]
    return Agreement(
        accuracy=accuracy,
        kappa=kappa,
        percentage_error=float(error.mean()) if error.size else None,
        separation=None if bounds is None else _separation(subtype, percentages, bounds),
    )


def known_presence(subtype: Subtype, bounds: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which cases must have a subtype and which cannot, by their bounds (N x 2, percent, nan if not known); N each."""
    absent = subtype.grades[0].upper
    return bounds[:, 0] >= absent, bounds[:, 1] <= absent  # nan is neither


def _separation(subtype: Subtype, percentages: npt.NDArray[np.float64], bounds: npt.NDArray[np.float64]) -> float | None:
    present, absent = known_presence(subtype, bounds)
    if not present.any() or not absent.any() or np.isnan(percentages).any():
        return None
    known = present | absent
    return float(roc_auc_score(present[known], percentages[known]))
