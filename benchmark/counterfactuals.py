"""Find out what makes simulated scans hard for a weight bundle: score them as they are, and made again with one thing changed.

Usage: python benchmark/counterfactuals.py [--weights BUNDLE] [--cases 24] [--seed 2001] [--csv FILE]

The cases are those of `python -m model.simulation --cases 24 --seed 2001`. A case that is made again keeps its lungs, vessels
and lesions, and with them its truth, to the voxel. Printed for each change and subtype: linear weighted kappa, mean absolute
error and bias of the percentage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.command import add_scans, percentage_of, script_parser, try_file, write_csv
from model.command_line import exit_code
from model.evaluation.agreement import linear_weighted_kappas
from model.fleischner import SUBTYPES, Subtype
from model.simulation import CaseParameters, SimulatedCase, draw_parameters, simulate
from model.subtyping import EmphysemaSubtyper
from model.training.fresh import scan_of
from model.weights import locate_bundle

LIGHT_HU, LIGHT_GRADIENT_HU = -860.0, 20.0
"""Healthy lung that is nowhere near the density of emphysema; drawn are -895 HU (standard deviation 20) and 15 to 45 HU."""

Change = Callable[[CaseParameters], CaseParameters]


def without_noise(case: CaseParameters) -> CaseParameters:
    return replace(case, scanner=replace(case.scanner, noise=0.0))


def without_confounders(case: CaseParameters) -> CaseParameters:
    """No gas trapping, dark speckle, motion, beam hardening and streaks; airways as they are, which vessels follow."""
    none = replace(case.confounders, trapping=0.0, speckle=0.0, motion=0.0, hardening=0.0, streaks=0.0)
    return replace(case, confounders=none)


def without_mesh(case: CaseParameters) -> CaseParameters:
    """Lesions in lung that is not darkened, wholly destroyed, without septa."""
    return replace(case, disease=replace(case.disease, mesh=None))


def light(case: CaseParameters) -> CaseParameters:
    """Healthy lung of one density in every case, well above that of emphysema."""
    tissue = replace(case.anatomy.parenchyma, density=LIGHT_HU, gradient=LIGHT_GRADIENT_HU)
    return replace(case, anatomy=replace(case.anatomy, parenchyma=tissue))


CHANGES: dict[str, Change] = {
    "as drawn": lambda case: case,
    "no noise": without_noise,
    "no confounders": without_confounders,
    "no mesh": without_mesh,
    "light healthy lung": light,
    "light, without confounders": lambda case: without_confounders(light(case)),
    "light, without confounders and mesh": lambda case: without_mesh(without_confounders(light(case))),
}


@dataclass(frozen=True)
class Measured:
    """One scan and subtype: percentages of the lung."""

    number: int
    change: str
    subtype: str
    truth: float
    network: float


def measure(subtyper: EmphysemaSubtyper, case: SimulatedCase, number: int, change: str) -> list[Measured]:
    """Score one case.

    Raises:
        InputError: the bundle gives no percentages.
    """
    truths = (case.centrilobular_percentage, case.paraseptal_percentage)
    rows = []
    for finding, truth in zip(subtyper.predict(scan_of(case)).findings, truths, strict=True):
        rows.append(Measured(number, change, finding.subtype.name, truth, percentage_of(finding)))
    return rows


def summary(subtype: Subtype, rows: Sequence[Measured]) -> str:
    """Kappa, error and bias of one subtype, as cells of a Markdown table."""
    grades = len(subtype.grades)
    counts = np.zeros((grades, grades), np.int64)
    for row in rows:
        counts[subtype.score(row.truth), subtype.score(row.network)] += 1
    error = np.array([row.network - row.truth for row in rows])
    kappa = float(linear_weighted_kappas(counts))
    return f"{kappa:.2f} | {np.abs(error).mean():.1f} | {error.mean():+.1f}"


def table(rows: Sequence[Measured]) -> str:
    """Markdown: one row a change."""
    head = " | ".join(f"{subtype.name}: kappa | error | bias" for subtype in SUBTYPES)
    lines = [f"| | {head} |", "| --- |" + " --- |" * 3 * len(SUBTYPES)]
    for change in CHANGES:
        cells = [
            summary(subtype, [row for row in rows if (row.change, row.subtype) == (change, subtype.name)])
            for subtype in SUBTYPES
        ]
        lines.append(f"| {change} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Make and score the scans; print the table, then write the file.

    Raises:
        InputError: a bundle or file that cannot be used.
    """
    try_file(options.csv)
    subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(options.weights))
    rows: list[Measured] = []
    for number in tqdm(range(options.cases), unit="case", disable=None):
        drawn = draw_parameters(np.random.SeedSequence(options.seed, spawn_key=(number,)))
        for name, change in CHANGES.items():
            rows += measure(subtyper, simulate(change(drawn)), number, name)
    print(f"weights: {subtyper.metadata.name}; {options.cases} scans")
    print(table(rows))
    if options.csv:
        write_csv(options.csv, [column.name for column in fields(Measured)], map(astuple, rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    add_scans(parser, 2001, "scan, change and subtype")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
