"""Pictures for a paper: confusion matrices and Bland-Altman plots, one column wide, as PNG and SVG."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..fleischner import Subtype
from .agreement import Agreement
from .pairing import Pairs
from .percentages import PercentageAgreement, percentage_pairs
from .tables import MINUS, number

COLUMN_INCHES = 3.5
"""Width of a journal's column (89 mm)."""
DOTS_PER_INCH = 600

# Ids in an SVG do not change from run to run, and fonts have the size of a caption.
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "emphysema-subtyping",
}

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of its cache on stderr


def confusion_figure(subtype: Subtype, agreement: Agreement, reference: str) -> Figure:
    """A confusion matrix as in the paper's Table 3: predictions in rows, the reference in columns.

    Each cell holds the number of cases, and in percent and as its colour its share of the cases in its column.

    Args:
        subtype: whose grades they are.
        agreement: with the confusion matrix.
        reference: what the axis calls the reference.
    """
    counts = np.array(agreement.confusion_matrix)
    totals = counts.sum(axis=0)
    shares = counts / np.maximum(totals, 1)
    grades = [grade.severity.replace(" ", "\n").capitalize() for grade in subtype.grades]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, 0.92 * COLUMN_INCHES), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            ink = "white" if shares[row, column] > 0.6 else "black"
            text = f"{count}\n{_in_percent(shares[row, column])}" if count else "0"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7, linespacing=1.3)
        axes.set_xticks(range(len(grades)), grades, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(grades)), grades)
        axes.set_xlabel(f"{reference.capitalize()}, {subtype.name} (n = {agreement.n})")
        axes.set_ylabel("Predicted scores")
        axes.tick_params(length=0)
    return figure


def _in_percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.005 else "<1%"


def bland_altman_figure(pairs: Pairs, agreement: PercentageAgreement) -> Figure:
    """Difference of predicted and reference percentage against their mean, with bias and limits of agreement."""
    reference, predicted = percentage_pairs(pairs)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, 0.8 * COLUMN_INCHES), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter((reference + predicted) / 2, predicted - reference, s=8, alpha=0.5, linewidths=0, color="tab:blue")
        axes.axhline(agreement.bias_points, color="black", linewidth=0.8)
        title = f"Bias {number(agreement.bias_points)}"
        if limits := agreement.limits_of_agreement_points:
            for limit in limits:
                axes.axhline(limit, color="black", linewidth=0.8, linestyle="--")
            title += f", limits of agreement {number(limits[0])} to {number(limits[1])} (n = {agreement.n})"
        axes.set_title(title, loc="left", fontsize=7)
        axes.set_xlabel(f"Mean of both, {pairs.subtype.name} (% of the lung)")
        axes.set_ylabel(f"Predicted {MINUS} reference (points)")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def render(figure: Figure, formats: Sequence[str]) -> dict[str, bytes]:
    """The figure in each format; the same figure gives the same bytes."""
    files = {}
    for name in formats:
        buffer = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            figure.savefig(buffer, format=name, dpi=DOTS_PER_INCH, metadata={"Date": None} if name == "svg" else None)
        files[name] = buffer.getvalue()
    return files
