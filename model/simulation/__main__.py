"""Make a cohort of simulated cases: `python -m model.simulation --cases N --seed S --output DIR`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from ..cohort.layout import REFERENCE_FILE
from ..command_line import OneLineParser, exit_code, module_command, whole_number
from ..fleischner import CENTRILOBULAR, PARASEPTAL, Subtype
from .case import Look
from .cohort import CohortParameters, make_cohort
from .scanner import GridName


def _percentage(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 60:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a percentage from 0 to 60")
    return value


def _scores(subtype: Subtype) -> range:
    return range(len(subtype.grades))


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=module_command("simulation"),
        description=(
            "Make simulated chest CT with emphysema of known type and extent: one folder a case, as process.py --input "
            f"takes it, with the truth as voxel maps, and {REFERENCE_FILE} with scores, percentages and all that was drawn."
        ),
    )
    parser.add_argument("--cases", type=whole_number(1), required=True, metavar="N", help="number of cases")
    parser.add_argument("--seed", type=whole_number(0), required=True, metavar="S", help="same seed, same bytes")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="a new or empty folder, or one where this command stopped"
    )
    parser.add_argument(
        "--grid",
        choices=get_args(GridName),
        default="network",
        help=("network: the resolution that the network sees (default); scan: a full-size scan; example: a small file"),
    )
    parser.add_argument(
        "--lungs",
        type=Path,
        nargs="+",
        default=[],
        metavar="MASK",
        help=("lung masks to build the cases on, in turn; without them, lungs are parametric"),
    )
    parser.add_argument("--workers", type=whole_number(1), default=1, metavar="K", help="processes; the result is the same")
    parser.add_argument("--cle-score", type=int, choices=_scores(CENTRILOBULAR), help="one CLE score for all cases")
    parser.add_argument("--pse-score", type=int, choices=_scores(PARASEPTAL), help="one PSE score for all cases")
    parser.add_argument(
        "--panlobular",
        type=_percentage,
        default=0.0,
        metavar="PERCENT",
        help=("panlobular emphysema in every case, in percent of the lung (default none)"),
    )
    ranges = ("trained", "shifted")
    parser.add_argument(
        "--scanner",
        choices=ranges,
        default="trained",
        help=("shifted: sharper kernels, thicker slices, or more noise than any case of the trained range"),
    )
    parser.add_argument(
        "--disease", choices=ranges, default="trained", help=("shifted: lobules, cells and zones beyond the trained range")
    )
    parser.add_argument(
        "--look",
        choices=get_args(Look),
        default="measured",
        help="measured: held to real patches (default); first: the scans that figures before that were measured on",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: as of `exit_code`, or 130 where it was interrupted."""
    options = build_parser().parse_args(arguments)
    cohort = CohortParameters(
        seed=options.seed,
        grid=options.grid,
        lungs=tuple(options.lungs),
        centrilobular_score=options.cle_score,
        paraseptal_score=options.pse_score,
        panlobular=options.panlobular,
        shifted_scanner=options.scanner == "shifted",
        shifted_disease=options.disease == "shifted",
        look=options.look,
    )
    try:
        return exit_code(lambda: _run(cohort, options.cases, options.output, options.workers), options.output)
    except KeyboardInterrupt:
        print(f"{options.output}: not finished; the same command goes on, or delete the folder", file=sys.stderr)
        return 130


def _run(cohort: CohortParameters, cases: int, output: Path, workers: int) -> None:
    rows = make_cohort(cohort, cases, output, workers)
    scores = [
        (row["cle_score"], row["pse_score"]) for row in tqdm(rows, total=cases, unit="case", desc="simulating", disable=None)
    ]
    for name, counts in (("CLE", Counter(cle for cle, _ in scores)), ("PSE", Counter(pse for _, pse in scores))):
        print(f"{name} scores: " + ", ".join(f"{score}: {counts[score]}" for score in sorted(counts)))
    print(f"{output / REFERENCE_FILE}")


if __name__ == "__main__":
    sys.exit(main())
