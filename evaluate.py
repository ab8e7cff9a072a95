#!/usr/bin/env python3
"""Entry point of evaluation: compares results with visual scores, and writes the figures and tables that the paper prints.

    python evaluate.py --predictions DIR --reference CSV --output DIR
    python evaluate.py --scores CSV --output DIR

Research software, not a medical device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from model.command_line import OneLineParser
from model.errors import InputError
from model.evaluation.agreement import RESAMPLES, Resampling
from model.evaluation.readings import read_pairs, read_predictions, read_reference
from model.evaluation.report import make_report


def build_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(
        prog="evaluate.py",
        description="Compare results with visual scores. Research software, not a medical device.",
    )
    parser.add_argument("--predictions", type=Path, help="one output folder of process.py a case, or results.json of many")
    parser.add_argument(
        "--reference",
        type=Path,
        help="CSV with entity, centrilobular, paraseptal, or COPDGene's columns, or reference.csv of a simulated cohort",
    )
    parser.add_argument(
        "--scores", type=Path, help="CSV with entity, cle_reference, cle_predicted, pse_reference, pse_predicted"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for metrics.json")
    parser.add_argument("--allow-missing", action="store_true", help="compare the scans that are on both sides")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, default: %(default)s")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap, default: %(default)s")
    return parser


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if bool(options.scores) == bool(options.predictions) or bool(options.predictions) != bool(options.reference):
        parser.error("--predictions and --reference, or --scores alone, are needed")
    if options.seed < 0 or options.resamples < 1:
        parser.error("--seed is 0 or more, --resamples 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for an input that cannot be used."""
    options = _parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.scores:
            reference, predictions = read_pairs(options.scores)
        else:
            reference, predictions = read_reference(options.reference), read_predictions(options.predictions)
        resampling = Resampling(options.seed, options.resamples)
        report = make_report(reference, predictions, resampling, allow_missing=options.allow_missing)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.as_document(), indent=2, allow_nan=False) + "\n"
    (options.output / "metrics.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
