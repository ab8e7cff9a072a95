"""Train and evaluate all networks of the paper on one manifest: its Tables 1, 2, 3, 4 and 5 and Figure 3 for another cohort.

Usage: python benchmark/ablation.py --manifest cohort.csv --output runs/ablation [--split test] [options of train.py]

The networks are the three backbones with both strategies, and the rival (`--strategy slices-lstm`); where the manifest has
percentages, a rule of thresholds is fitted on its validation cases, too. What the command does not know goes to train.py, for
every network alike. A run that was interrupted goes on where it stopped.

The output folder gets `tables.md`, `tables.tex`, `metrics.json`, `figure-3.png`, and for each method `scores-METHOD.csv`, which
`evaluate.py --scores A --against B` takes.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.complexity import Complexity
from benchmark.complexity import measure as measure_complexity
from model.cohort.manifest import Manifest, Split, TrainingCase, read_manifest
from model.cohort.readings import PAIR_COLUMNS, VISUAL, Reading, Readings
from model.cohort.tables import ENTITY, Extent, read_table
from model.command_line import DeviceName, OneLineParser, exit_code, whole_number
from model.errors import InputError
from model.evaluation.agreement import Bootstrap
from model.evaluation.baselines import RuleFinding
from model.evaluation.calibrated_rule import CalibratedRule, fit_on_validation
from model.evaluation.report import Report, compare, make_report
from model.evaluation.tables import (
    NOTHING,
    Table,
    difference_table,
    extent_tables,
    percent,
    score_tables,
    to_latex,
    to_markdown,
    with_interval,
)
from model.evaluation.voxels import Counts, active, by_subtype, count_masks
from model.fleischner import SUBTYPES
from model.imaging.scan import Scan
from model.lungs.regions import Regions
from model.network import BackboneName, HeadName, NetworkConfig, class_activation_map
from model.preprocessing import labels_on_map_grid, prepare
from model.rendering import most_affected_levels
from model.subtyping import EmphysemaSubtyper
from model.training.cache import read_truth
from model.training.export import BUNDLE_FOLDER
from model.training.options import RUN_FILE, RunOptions, parse
from model.training.pictures import figure, png
from model.weights import locate_bundle
from model.whole_files import whole_file

STRATEGIES: tuple[HeadName, ...] = ("classification", "regression")
"""In the order of Table 5."""

RIVAL, RULE = "slices-lstm", "calibrated-rule"
GOLD_COLUMN = "gold"
"""A column that a manifest may have: the GOLD stage, in any words."""

MAIN_BACKBONE = "resnet34"
"""Of the networks in Tables 2 and 3 and in Figure 3, if it is among those that are trained."""

MACHINE = ("device", "devices", "nodes", "precision")
"""Options of a run that go with the machine: its bundle can be used on another."""

_GAP = 12


@dataclass(frozen=True)
class Scored:
    """What one method says of the evaluated cases, and its maps counted against voxel truth where that is known."""

    readings: Readings
    counts: tuple[Counts, ...]


def check_trained(folder: Path, manifest: Manifest, options: Sequence[str]) -> None:
    """Check that a run's bundle, if it has left one, is what train.py would make now.

    Raises:
        InputError: its run had other options, or another manifest.
    """
    if not (folder / BUNDLE_FOLDER).exists():
        return
    now = parse(["--output", str(folder), *options]).options.settled(manifest)
    if differences := RunOptions.read(folder).differences(now, but=MACHINE):
        raise InputError(folder, f"its bundle is there, and {', '.join(differences)}", "the options of that run")


def train(folder: Path, options: Sequence[str]) -> Path:
    """Train one network with train.py, or go on with its run, or take the bundle that it has left; return the bundle.

    Args:
        folder: of the run.
        options: of train.py.

    Raises:
        InputError: train.py has failed; it has said why.
    """
    bundle = folder / BUNDLE_FOLDER
    if bundle.exists():
        return bundle
    resume = ["--resume"] if (folder / RUN_FILE).exists() else []
    command = [str(ROOT / "train.py"), "--output", str(folder), *options, *resume]
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        raise InputError(folder, f"train.py ended with exit code {code}", "a run that ends with a bundle")
    return bundle


Method = Callable[[Scan], tuple[tuple[Extent, ...], Sequence[npt.NDArray[np.bool_]]]]
"""From a scan to the extent of each subtype, and where its map is active."""


def network_method(bundle: Path, device: DeviceName) -> Method:
    """Score with one bundle, in float32."""
    subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(bundle), device, "float32")

    def score(scan: Scan) -> tuple[tuple[Extent, ...], Sequence[npt.NDArray[np.bool_]]]:
        findings = subtyper.predict(scan).findings
        extents = tuple(Extent(finding.score, finding.percentage) for finding in findings)
        return extents, [active(finding.activation_map) for finding in findings]

    return score


def rule_method(rule: CalibratedRule) -> Method:
    """Score with the calibrated rule."""

    def score(scan: Scan) -> tuple[tuple[Extent, ...], Sequence[npt.NDArray[np.bool_]]]:
        masks, regions = rule.maps(scan), Regions.of(scan)
        lines = (rule.centrilobular, rule.paraseptal)
        findings = [
            RuleFinding.of(subtype, mask, scan, regions, line)
            for subtype, mask, line in zip(SUBTYPES, masks, lines, strict=True)
        ]
        return tuple(Extent(finding.score, finding.percentage) for finding in findings), masks

    return score


def score_cases(name: str, source: Path, method: Method, cases: Sequence[TrainingCase]) -> Scored:
    """Score cases with one method."""
    found, counts = {}, []
    for case in tqdm(cases, unit="case", desc=name, disable=None):
        scan = Scan.read(case.ct, case.lung_mask)
        extents, masks = method(scan)
        found[case.entity] = Reading(extents)
        if case.truth is not None:
            counts.append(count_masks([read_truth(path, scan) > 0 for path in case.truth], masks))
    return Scored(Readings(source, name, found), tuple(counts))


def reference(manifest: Manifest, cases: Sequence[TrainingCase]) -> Readings:
    """What the manifest says of its cases."""
    readings = {}
    for case in cases:
        percentages = case.percentages or (None, None)
        readings[case.entity] = Reading(tuple(Extent(*extent) for extent in zip(case.scores, percentages, strict=True)))
    return Readings(manifest.path, VISUAL, readings)


def table_1(manifest: Manifest, gold: dict[str, str]) -> list[Table]:
    """Table 1: how many cases of each split have each GOLD stage, where the manifest has one, and each score."""
    splits = [split for split in get_args(Split) if manifest.of(split)]
    tables = []
    if gold:
        stages = {split: [gold[case.entity] or "not known" for case in manifest.of(split)] for split in splits}
        names = sorted({stage for found in stages.values() for stage in found})
        rows = [(name, *(str(stages[split].count(name)) for split in splits)) for name in names]
        tables.append(Table("GOLD stages of the cohort.", ("GOLD stage", *splits), (*rows, _totals(manifest, splits))))
    for place, subtype in enumerate(SUBTYPES):
        scores = {split: [case.scores[place] for case in manifest.of(split)] for split in splits}
        rows = [
            (
                f"{grade.score}, {grade.severity} ({grade.lower:g}{NOTHING}{grade.upper:g} %)",
                *(str(scores[split].count(grade.score)) for split in splits),
            )
            for grade in subtype.grades
        ]
        if any(score is None for found in scores.values() for score in found):
            rows.append(("not known", *(str(scores[split].count(None)) for split in splits)))
        caption = f"{subtype.name.capitalize()} scores of the cohort."
        tables.append(Table(caption, ("Score", *splits), (*rows, _totals(manifest, splits))))
    return tables


def _totals(manifest: Manifest, splits: Sequence[Split]) -> tuple[str, ...]:
    return ("Total", *(str(len(manifest.of(split))) for split in splits))


def table_5(strategy: str, rows: Sequence[tuple[Complexity, Report]]) -> Table:
    """One half of Table 5: the networks of one strategy, two rows each."""
    cells = []
    for complexity, report in rows:
        for place, part in enumerate(report.subtypes):
            first = place == 0
            cells.append(
                (
                    complexity.backbone.replace("resnet", "ResNet") if first else "",
                    part.pairs.subtype.name.capitalize(),
                    *_agreement_cells(part.agreement),
                    f"{complexity.parameters / 1e6:.2f}" if first else "",
                    f"{complexity.gmacs:.2f}" if first else "",
                )
            )
    sizes = sorted({len(report.coverage.paired) for _, report in rows})
    caption = f"{strategy.capitalize()} networks in predicting emphysema severity (n = {', '.join(map(str, sizes))})."
    header = ("Backbone", "Subtype", "Accuracy (%)", "F-measure", "Linear weighted kappa (95% CI)", "#Param (M)", "GMACs")
    return Table(caption, header, tuple(cells), labels=2)


def _agreement_cells(figures: Any) -> tuple[str, str, str]:
    if figures is None:
        return NOTHING, NOTHING, NOTHING
    kappa = with_interval(figures.linear_weighted_kappa, figures.linear_weighted_kappa_ci95)
    return percent(figures.accuracy), percent(figures.f_measure), kappa


def table_of_strata(column: str, strata: dict[str, str], truth: Readings, methods: Sequence[Scored]) -> Table:
    """Agreement of each method for cases that have the same value in a column of the manifest."""
    values = sorted({strata[entity] for entity in truth.cases})
    cells = []
    for value in values:
        inside = [entity for entity in truth.cases if strata[entity] == value]
        for scored in methods:
            readings = [replace(part, cases={name: part.cases[name] for name in inside}) for part in (truth, scored.readings)]
            report = make_report(readings[0], readings[1], Bootstrap())
            for part in report.subtypes:
                labels = value or "not known", scored.readings.name, part.pairs.subtype.name.capitalize()
                cells.append((*labels, str(len(part.pairs.entities)), *_agreement_cells(part.agreement)))
    caption = f"Agreement by the manifest's column {column}."
    header = (column, "Method", "Subtype", "n", "Accuracy (%)", "F-measure", "Linear weighted kappa (95% CI)")
    return Table(caption, header, tuple(cells), labels=3)


def cells_of(manifest: Manifest, column: str) -> dict[str, str]:
    """A column of the manifest by entity; empty if there is no such column.

    Raises:
        InputError: the manifest cannot be read.
    """
    table = read_table(manifest.path, (ENTITY,))
    return {row[ENTITY]: row[column] for row in table.cells} if column in table.columns else {}


def pictured_cases(cases: Sequence[TrainingCase]) -> list[TrainingCase]:
    """The two cases of Figure 3: much centrilobular emphysema, without and with paraseptal emphysema, if there are such."""
    chosen: list[TrainingCase] = []
    for wanted in (0, 2):
        rest = [case for case in cases if case not in chosen and case.scores.centrilobular is not None]
        if rest:
            chosen.append(max(rest, key=lambda case: (case.scores.paraseptal == wanted, case.scores.centrilobular or 0)))
    return chosen


def figure_3(
    cases: Sequence[TrainingCase], classification: Path, regression: Path, device: DeviceName
) -> npt.NDArray[np.uint8]:
    """Figure 3: for each case class activation maps on the left, regression activation maps on the right, of the same slices.

    Args:
        cases: one row of the picture each.
        classification: the bundle of a classification network.
        regression: the bundle of a regression network.
        device: to compute on.

    Returns:
        RGB pixels, y x 3. A half has three columns (slices) and three rows (CT, centrilobular map, paraseptal map).
    """
    subtypers = [EmphysemaSubtyper.from_bundle(locate_bundle(path), device, "float32") for path in (classification, regression)]
    rows = []
    for case in cases:
        scan = Scan.read(case.ct, case.lung_mask)
        halves = []
        for subtyper in subtypers:
            prepared = prepare(scan, Regions.of(scan), subtyper.metadata.preprocessing)
            lung = torch.from_numpy(labels_on_map_grid(prepared.labels) > 0)[None, None]
            logits = subtyper.logits(prepared.image)
            if subtyper.metadata.network.head == "classification":
                maps = torch.cat([class_activation_map(part, lung)[0] for part in logits])
            else:
                maps = torch.cat([(part.sigmoid() * lung)[0] for part in logits])
            halves.append((prepared.image[0, 0], maps, lung[0, 0]))
        levels = most_affected_levels([part.numpy() for part in halves[1][1]], halves[1][2].numpy())
        pictures = [figure(image, maps, lung, levels) for image, maps, lung in halves]
        gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
        rows += [np.concatenate((pictures[0], gap, pictures[1]), axis=1)]
    gap = np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def build_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(
        prog="benchmark/ablation.py",
        description="Train and evaluate three backbones with both strategies, their rival and a rule, as in the paper's Tables "
        "1 to 5 and Figure 3. Options that are not listed here go to train.py.",
    )
    parser.add_argument("--manifest", type=Path, required=True, help="of train.py")
    parser.add_argument("--output", type=Path, required=True, help="gets a run for each network, the tables and the picture")
    parser.add_argument("--split", choices=get_args(Split), default="test", help="evaluated on, default: %(default)s")
    backbones = get_args(BackboneName)
    parser.add_argument("--backbones", nargs="+", choices=backbones, default=backbones, help="default: all of them")
    parser.add_argument(
        "--base-width", type=whole_number(2), default=64, help="filters of the first convolution, default: %(default)s"
    )
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--stratum", default=GOLD_COLUMN, help="column of the manifest by which agreement is split, default: %(default)s"
    )
    return parser


def run(options: argparse.Namespace, passed: Sequence[str]) -> list[Table]:
    """Train and evaluate all networks; write the tables, the picture and the scores, and return the tables.

    Raises:
        InputError: the manifest cannot be used, it has no case to evaluate on, or a run has failed.
    """
    manifest = read_manifest(options.manifest)
    cases = manifest.of(options.split)
    if not cases:
        raise InputError(options.manifest, f"no row has the split {options.split}", "cases to evaluate on, or another --split")
    truth = reference(manifest, cases)
    networks = {
        f"{strategy}-{backbone}": ["--backbone", backbone, "--strategy", strategy]
        for strategy in STRATEGIES
        for backbone in options.backbones
    }
    networks[RIVAL] = ["--strategy", RIVAL]
    shared = ["--manifest", str(options.manifest), "--base-width", str(options.base_width), "--device", options.device, *passed]
    for name, network in networks.items():
        check_trained(options.output / name, manifest, [*network, *shared])
    bundles = {name: train(options.output / name, [*network, *shared]) for name, network in networks.items()}
    methods = {name: score_cases(name, path, network_method(path, options.device), cases) for name, path in bundles.items()}
    validation = manifest.of("validation")
    if validation and all(case.percentages for case in validation):
        rule = fit_on_validation(manifest)
        rule.write(options.output / "rule.json")
        methods[RULE] = score_cases(RULE, options.output / "rule.json", rule_method(rule), cases)
    reports = {name: _report(truth, scored) for name, scored in methods.items()}
    main = MAIN_BACKBONE if MAIN_BACKBONE in options.backbones else options.backbones[-1]
    tables, document = _tables(manifest, options, truth, methods, reports, main)
    pixels = figure_3(pictured_cases(cases), bundles[f"classification-{main}"], bundles[f"regression-{main}"], options.device)
    _write(options.output, tables, document, truth, methods, pixels)
    return tables


def _report(truth: Readings, scored: Scored) -> Report:
    report = make_report(truth, scored.readings, Bootstrap())
    return report.with_voxels(by_subtype(scored.counts)) if scored.counts else report


def _tables(
    manifest: Manifest,
    options: argparse.Namespace,
    truth: Readings,
    methods: dict[str, Scored],
    reports: dict[str, Report],
    main: str,
) -> tuple[list[Table], dict[str, Any]]:
    """The tables in the order of the paper, and all figures."""
    document: dict[str, Any] = {name: report.as_document() for name, report in reports.items()}
    compared = [name for name in (RULE, RIVAL, f"classification-{main}", f"regression-{main}") if name in reports]
    parts = [(reports[name], part) for name in compared for part in reports[name].subtypes]
    tables = [*table_1(manifest, cells_of(manifest, GOLD_COLUMN)), *score_tables(parts)]
    for strategy in STRATEGIES:
        rows = []
        for backbone in options.backbones:
            complexity = measure_complexity(NetworkConfig(backbone, strategy, options.base_width))
            document[f"{strategy}-{backbone}"] |= {"parameters": complexity.parameters, "gmacs": complexity.gmacs}
            rows.append((complexity, reports[f"{strategy}-{backbone}"]))
        tables.append(table_5(strategy, rows))
    tables += extent_tables(parts)
    ours = reports[f"regression-{main}"]
    differences = {}
    for name in compared[:-1]:
        comparison = compare(ours, reports[name], Bootstrap())
        differences[name] = comparison.as_document()["difference"]
        tables.append(difference_table(comparison))
    document["differences"] = differences
    strata = cells_of(manifest, options.stratum)
    if strata:
        tables.append(table_of_strata(options.stratum, strata, truth, [methods[name] for name in compared]))
    return tables, document


def _write(
    output: Path,
    tables: Sequence[Table],
    document: dict[str, Any],
    truth: Readings,
    methods: dict[str, Scored],
    pixels: npt.NDArray[np.uint8],
) -> None:
    texts = {
        "metrics.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
        "tables.md": to_markdown(tables),
        "tables.tex": to_latex(tables),
    }
    for name, scored in methods.items():
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(PAIR_COLUMNS)
        for entity, reading in truth.cases.items():
            sides = zip(reading.extents, scored.readings.cases[entity].extents, strict=True)
            scores = [extent.score for pair in sides for extent in pair]
            writer.writerow((entity, *("" if score is None else score for score in scores)))
        texts[f"scores-{name}.csv"] = text.getvalue()
    for name, content in texts.items():
        with whole_file(output / name) as partial:
            partial.write_text(content, encoding="utf-8")
    with whole_file(output / "figure-3.png") as partial:
        png(pixels).save(partial, format="PNG")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for an input that cannot be used or a run that has failed, or 1."""
    options, passed = build_parser().parse_known_args(arguments)
    return exit_code(lambda: print(to_markdown(run(options, passed))))


if __name__ == "__main__":
    sys.exit(main())
