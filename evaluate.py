#!/usr/bin/env python3
"""Entry point of evaluation: compares results with visual scores, and writes the figures and tables that the paper prints.

    python evaluate.py --predictions DIR --reference CSV --output DIR
    python evaluate.py --scores CSV --output DIR
    python evaluate.py                            # on grand-challenge: the jobs in /input/predictions.json

Research software, not a medical device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.cohort.layout import REFERENCE_FILE
from model.cohort.readings import Readings, read_pairs, read_predictions, read_reference
from model.cohort.summary import is_summary
from model.command_line import OneLineParser, exit_code, granted_cpus, whole_number
from model.container.grand_challenge import GROUND_TRUTH_FOLDER, INPUT_FOLDER, METRICS_FILE, OUTPUT_FOLDER, PREDICTIONS_FILE
from model.errors import InputError, printable
from model.evaluation.agreement import RESAMPLES, Bootstrap
from model.evaluation.challenge import challenge_document, ground_truth, read_submission
from model.evaluation.report import Comparison, Report, compare, make_report
from model.evaluation.tables import all_tables, to_latex, to_markdown
from model.evaluation.voxels import by_subtype, measure_voxels
from model.fleischner import SUBTYPES
from model.whole_files import WholeFiles

MOST_WORKERS = 4
TABLES = {"tables.md": to_markdown, "tables.tex": to_latex}
FIGURES = ("confusion", "bland-altman")
FIGURE_SUFFIXES = ("png", "svg")


def build_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(
        prog="evaluate.py",
        description="Compare results with visual scores. Without --predictions and --scores: score a challenge's jobs. "
        "Research software, not a medical device.",
    )
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--predictions", type=Path, help="output folder of process.py, a folder of such folders, or cohort.parquet"
    )
    what.add_argument(
        "--reference",
        type=Path,
        help="CSV with entity, centrilobular, paraseptal (and percentages: centrilobular_percentage, paraseptal_percentage), "
        "or with COPDGene's columns, or reference.csv of a simulated cohort",
    )
    what.add_argument("--scores", type=Path, help="CSV with entity, cle_reference, cle_predicted, pse_reference, pse_predicted")
    what.add_argument("--against", type=Path, help="another result on the same cases: as --predictions, or a CSV as --scores")
    what.add_argument("--truth", type=Path, help="voxel truth: DIR/ENTITY/truth/centrilobular.mha and paraseptal.mha")
    what.add_argument("--allow-missing", action="store_true", help="compare the cases that are on both sides")
    what.add_argument("--method", help="what tables call the result, default: its bundle or file name")
    what.add_argument("--against-method", help="likewise for --against")

    challenge = parser.add_argument_group("a challenge's jobs")
    challenge.add_argument("--input", type=Path, help=f"with {PREDICTIONS_FILE}, default: {INPUT_FOLDER}")
    challenge.add_argument(
        "--ground-truth",
        type=Path,
        help=f"folder with reference.csv, default: {GROUND_TRUTH_FOLDER} if it is there, else beside the code",
    )

    parser.add_argument("--output", type=Path, default=OUTPUT_FOLDER, help="default: %(default)s")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the bootstrap, default: %(default)s")
    parser.add_argument("--resamples", type=whole_number(1), default=RESAMPLES, help="of the bootstrap, default: %(default)s")
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        default=min(granted_cpus(), MOST_WORKERS),
        help="processes that read jobs and maps, default: %(default)s",
    )
    return parser


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.scores and (options.predictions or options.reference or options.truth):
        parser.error("--scores goes without --predictions, --reference and --truth")
    if bool(options.predictions) != bool(options.reference):
        parser.error("--predictions and --reference go together")
    if not (options.scores or options.predictions) and (options.truth or options.against):
        parser.error("--truth goes with --predictions, --against with --predictions or --scores")
    if (options.scores or options.predictions) and (options.input or options.ground_truth):
        parser.error("--input and --ground-truth go without --predictions and --scores")
    if not (options.scores or options.predictions) and options.method:
        parser.error("--method goes with --predictions or --scores")
    if options.against_method and not options.against:
        parser.error("--against-method goes with --against")
    return options


def evaluate(options: argparse.Namespace) -> dict[str, bytes]:
    """Compare one result with the reference, and with another result where one is given; return the files to write.

    Raises:
        InputError: something cannot be read, or the cases differ.
    """
    bootstrap = Bootstrap(options.seed, options.resamples)
    if options.scores:
        reference, predictions = read_pairs(options.scores)
    else:
        reference, predictions = read_reference(options.reference), read_predictions(options.predictions)
    reports = [_report(reference, predictions, options.method, bootstrap, options)]
    comparison = None
    if options.against:
        other = _other(options.against, reference)
        reports.append(_report(reference, other, options.against_method, bootstrap, options))
        comparison = compare(reports[0], reports[1], bootstrap)
    return _files(reports, comparison)


def _report(
    reference: Readings, predictions: Readings, name: str | None, bootstrap: Bootstrap, options: argparse.Namespace
) -> Report:
    predictions = replace(predictions, name=name or predictions.name)
    report = make_report(reference, predictions, bootstrap, allow_missing=options.allow_missing)
    if not options.truth:
        return report
    voxels = measure_voxels(predictions, report.coverage.paired, options.truth, options.workers)
    return report.with_voxels(voxels)


def _other(path: Path, reference: Readings) -> Readings:
    """Another result: a folder of results, or a table of both sides whose reference must be ours."""
    if not path.is_file() or path.suffix == ".json" or is_summary(path):
        return read_predictions(path)
    theirs, predictions = read_pairs(path)
    scores = {entity: [extent.score for extent in reading.extents] for entity, reading in reference.cases.items()}
    differing = [
        entity
        for entity, reading in theirs.cases.items()
        if entity in scores and [extent.score for extent in reading.extents] != scores[entity]
    ]
    if differing:
        raise InputError(path, f"another reference for {', '.join(differing)}", f"the scores of {reference.source}")
    return predictions


def _files(reports: Sequence[Report], comparison: Comparison | None) -> dict[str, bytes]:
    """Metrics, tables and pictures, by the names of their files."""
    from model.evaluation.figures import bland_altman_figure, confusion_figure, render  # matplotlib takes its time

    document = reports[0].as_document()
    if comparison:
        document["against"] = reports[1].as_document() | comparison.as_document()
    tables = all_tables(reports, comparison)
    files = {METRICS_FILE: _json(document)} | {name: write(tables).encode() for name, write in TABLES.items()}
    for part in reports[0].subtypes:
        confusion = confusion_figure(part.pairs.subtype, part.agreement, reports[0].reference) if part.agreement else None
        bland_altman = bland_altman_figure(part.pairs, part.percentages) if part.percentages else None
        for kind, figure in zip(FIGURES, (confusion, bland_altman), strict=True):
            if figure:
                rendered = render(figure, FIGURE_SUFFIXES)
                files |= {f"{kind}-{part.pairs.subtype.name}.{suffix}": content for suffix, content in rendered.items()}
    return files


def score_challenge(options: argparse.Namespace) -> tuple[dict[str, bytes], list[str], int]:
    """Score a challenge's jobs; return the files to write, what is wrong with the jobs, and the exit code.

    Raises:
        InputError: there is no list of jobs or no ground truth, or no job can be scored.
    """
    truth = options.ground_truth or ground_truth(GROUND_TRUTH_FOLDER, Path(__file__).resolve().parent)
    reference = read_reference(truth / REFERENCE_FILE)
    submission = read_submission(options.input or INPUT_FOLDER, truth, options.workers)
    voxels = by_subtype(list(submission.voxels.values())) if submission.voxels else {}
    bootstrap = Bootstrap(options.seed, options.resamples)
    report = make_report(reference, submission.readings, bootstrap, allow_missing=True).with_voxels(voxels)
    problems = [f"{name}: {problem}" for name, problem in submission.readings.failures.items()]
    coverage = report.coverage
    problems += [f"{entity}: no job has scored it" for entity in coverage.not_predicted]
    for entity in coverage.not_in_reference:
        lacking = "has no score of" if entity in reference.failures else "does not hold"
        problems.append(f"{entity}: {reference.source} {lacking} it")
    code = 0 if options.allow_missing or not problems else 2 if submission.is_input else 1
    return {METRICS_FILE: _json(challenge_document(report, reference, submission))}, problems, code


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def remove_earlier(folder: Path, inputs: Sequence[Path]) -> None:
    """Remove an earlier run's files, so that they cannot be taken for this one's.

    Raises:
        InputError: one cannot be removed, or is an input of this run.
    """
    pictures = [f"{kind}-{subtype.name}.{suffix}" for kind in FIGURES for subtype in SUBTYPES for suffix in FIGURE_SUFFIXES]
    earlier = [folder / name for name in (METRICS_FILE, *TABLES, *pictures)]
    for path in inputs:
        if path.resolve() in [other.resolve() for other in earlier]:
            raise InputError(path, f"the output folder {folder} would replace this input", "another output folder")
    try:
        for path in earlier:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(folder, f"an earlier run's files cannot be removed ({error.strerror})", "a folder") from error


def run(options: argparse.Namespace) -> tuple[dict[str, bytes], list[str], int]:
    """Evaluate into the output folder; return what was written, what is wrong with single jobs, and the exit code.

    Raises:
        InputError: something cannot be used; nothing has been written then.
    """
    with contextlib.closing(WholeFiles(options.output)) as outputs:
        given = (options.scores, options.predictions, options.reference, options.against)
        remove_earlier(options.output, [path for path in given if path is not None])
        if options.scores or options.predictions:
            files, problems, code = evaluate(options), list[str](), 0
        else:
            files, problems, code = score_challenge(options)
        with outputs:
            for name, content in files.items():
                outputs.partial(options.output / name).write_bytes(content)
    return files, problems, code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0; 2 for an input that cannot be used; 1 for what the machine failed at."""
    options = _parsed(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run_and_report(options), options.output)


def _run_and_report(options: argparse.Namespace) -> int:
    files, problems, code = run(options)
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    print(printable(f"written to {options.output}: {', '.join(sorted(files))}"))
    return code


if __name__ == "__main__":
    sys.exit(main())
