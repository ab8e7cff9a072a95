"""Train and evaluate every backbone with both strategies on one manifest, and print the paper's Table 5 for them.

Usage: python benchmark/ablation.py --manifest cohort.csv --output runs/ablation [--split test] [options of train.py]

What it does not know goes to train.py, for every network alike. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.complexity import Complexity
from benchmark.complexity import measure as measure_complexity
from model.cohort.manifest import Manifest, Split, TrainingCase, read_manifest
from model.cohort.readings import VISUAL, Reading, Readings
from model.cohort.tables import Extent
from model.command_line import DeviceName, OneLineParser
from model.errors import InputError
from model.evaluation.agreement import Bootstrap
from model.evaluation.report import Report, make_report
from model.evaluation.tables import NOTHING, Table, percent, to_latex, to_markdown, with_interval
from model.imaging.scan import Scan
from model.network import BackboneName, HeadName, NetworkConfig
from model.subtyping import EmphysemaSubtyper
from model.training.options import RUN_FILE
from model.weights import locate_bundle

STRATEGIES: tuple[HeadName, ...] = ("classification", "regression")
"""In the order of Table 5."""


def train(config: NetworkConfig, manifest: Path, output: Path, options: Sequence[str]) -> Path:
    """Train one network with train.py, or go on with its run, or take the bundle that it has left; return the bundle.

    Raises:
        InputError: train.py has failed; it has said why.
    """
    bundle = output / "bundle"
    if bundle.exists():
        return bundle
    network = ["--backbone", config.backbone, "--strategy", config.head, "--base-width", str(config.base_width)]
    resume = ["--resume"] if (output / RUN_FILE).exists() else []
    command = [str(ROOT / "train.py"), "--manifest", str(manifest), "--output", str(output), *network, *resume, *options]
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        raise InputError(output, f"train.py ended with exit code {code}", "a run that ends with a bundle")
    return bundle


def score(bundle: Path, cases: Sequence[TrainingCase], device: DeviceName) -> Readings:
    """Score cases with one bundle, in float32."""
    subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(bundle), device, "float32")
    found = {}
    for case in tqdm(cases, unit="case", desc="scoring", disable=None):
        result = subtyper.predict(Scan.read(case.ct, case.lung_mask))
        found[case.entity] = Reading(tuple(Extent(finding.score, finding.percentage) for finding in result.findings))
    return Readings(bundle, bundle.parent.name, found)


def reference(manifest: Manifest, cases: Sequence[TrainingCase]) -> Readings:
    """What the manifest says of its cases."""
    readings = {}
    for case in cases:
        percentages = case.percentages or (None, None)
        readings[case.entity] = Reading(tuple(Extent(*extent) for extent in zip(case.scores, percentages, strict=True)))
    return Readings(manifest.path, VISUAL, readings)


def table_5(strategy: str, rows: Sequence[tuple[Complexity, Report]]) -> Table:
    """One half of Table 5: the networks of one strategy, two rows each."""
    cells = []
    for complexity, report in rows:
        for place, part in enumerate(report.subtypes):
            first = place == 0
            figures = part.agreement
            agreement = (NOTHING,) * 3
            if figures:
                kappa = with_interval(figures.linear_weighted_kappa, figures.linear_weighted_kappa_ci95)
                agreement = (percent(figures.accuracy), percent(figures.f_measure), kappa)
            cells.append(
                (
                    complexity.backbone.replace("resnet", "ResNet") if first else "",
                    part.pairs.subtype.name.capitalize(),
                    *agreement,
                    f"{complexity.parameters / 1e6:.2f}" if first else "",
                    f"{complexity.gmacs:.2f}" if first else "",
                )
            )
    sizes = sorted({len(report.coverage.paired) for _, report in rows})
    caption = f"{strategy.capitalize()} networks in predicting emphysema severity (n = {', '.join(map(str, sizes))})."
    header = ("Backbone", "Subtype", "Accuracy (%)", "F-measure", "Linear weighted kappa (95% CI)", "#Param (M)", "GMACs")
    return Table(caption, header, tuple(cells), labels=2)


def build_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(
        prog="benchmark/ablation.py",
        description="Train and evaluate three backbones and both strategies, as in the paper's Table 5. "
        "Options that are not listed here go to train.py.",
    )
    parser.add_argument("--manifest", type=Path, required=True, help="of train.py")
    parser.add_argument("--output", type=Path, required=True, help="gets a run for each network, and the table")
    parser.add_argument("--split", choices=get_args(Split), default="test", help="evaluated on, default: %(default)s")
    backbones = get_args(BackboneName)
    parser.add_argument("--backbones", nargs="+", choices=backbones, default=backbones, help="default: all of them")
    parser.add_argument("--base-width", type=int, default=64, help="filters of the first convolution, default: %(default)s")
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto", help="default: %(default)s")
    return parser


def run(options: argparse.Namespace, passed: Sequence[str]) -> list[Table]:
    """Train and evaluate all networks; write `metrics.json`, `tables.md` and `tables.tex`, and return the tables.

    Raises:
        InputError: the manifest cannot be used, it has no case to evaluate on, or a run has failed.
    """
    manifest = read_manifest(options.manifest)
    cases = manifest.of(options.split)
    if not cases:
        raise InputError(options.manifest, f"no row has the split {options.split}", "cases to evaluate on, or another --split")
    truth = reference(manifest, cases)
    document = {}
    tables = []
    for strategy in STRATEGIES:
        rows = []
        for backbone in options.backbones:
            config = NetworkConfig(backbone, strategy, options.base_width)
            folder = options.output / f"{strategy}-{backbone}"
            bundle = train(config, options.manifest, folder, ["--device", options.device, *passed])
            report = make_report(truth, score(bundle, cases, options.device), Bootstrap())
            complexity = measure_complexity(config)
            rows.append((complexity, report))
            figures = {"parameters": complexity.parameters, "gmacs": complexity.gmacs}
            document[folder.name] = report.as_document() | figures
        tables.append(table_5(strategy, rows))
    for name, text in (
        ("metrics.json", json.dumps(document, indent=2, allow_nan=False) + "\n"),
        ("tables.md", to_markdown(tables)),
        ("tables.tex", to_latex(tables)),
    ):
        (options.output / name).write_text(text, encoding="utf-8")
    return tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for an input that cannot be used or a run that has failed."""
    options, passed = build_parser().parse_known_args(arguments)
    try:
        print(to_markdown(run(options, passed)))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
