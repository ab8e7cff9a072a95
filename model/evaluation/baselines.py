"""Comparison rules: what can be had without a network, written as `process.py` writes its results.

    python -m model.evaluation.baselines CASES --output DIR [--calibrated RULE] [--workers K]

CASES is a folder with one case a folder, each laid out as for `process.py --input`, or the table of a cohort
(`cohort.parquet`). Each rule gets a folder in DIR, with one output folder a case in it, so that
`evaluate.py --predictions DIR/RULE` measures it like a network.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..cohort.summary import CASES_TABLE, is_summary, read_summary
from ..cohort.tables import ENTITY
from ..command_line import OneLineParser, exit_code, module_command, whole_number
from ..container.grand_challenge import Case, OutputFolder, find_cases, lung_mask_path
from ..container.results import CaseResult, Provenance, case_metrics, failed_result
from ..errors import InputError, printable
from ..fleischner import SUBTYPES, Subtype
from ..imaging.scan import Scan
from ..lungs.densitometry import LOW_ATTENUATION_HU, measure
from ..lungs.regions import Regions
from ..whole_files import make_folder
from .calibrated_rule import CalibratedRule, Line, pleural_depth
from .workers import map_isolated

RIM_MM = 8.0
"""How deep under the lung's surface the rim reaches, in mm."""

PERCENTAGE_DECIMALS = 4
"""Percentages are rounded to this and then graded, as those of a network are."""

Mask = npt.NDArray[np.bool_]


def low_attenuation(scan: Scan) -> Mask:
    """Voxels of the lung below -950 HU; z, y, x."""
    return scan.lung & (scan.hounsfield < LOW_ATTENUATION_HU)


def all_centrilobular(scan: Scan) -> tuple[Mask, Mask]:
    """All of LAA-950 is centrilobular, nothing paraseptal."""
    return low_attenuation(scan), np.zeros(scan.shape, np.bool_)


def rim_paraseptal(scan: Scan) -> tuple[Mask, Mask]:
    """LAA-950 in the lung's outer 8 mm is paraseptal, the rest centrilobular."""
    low, rim = low_attenuation(scan), pleural_depth(scan) <= RIM_MM
    return low & ~rim, low & rim


@dataclass(frozen=True)
class Rule:
    """A rule that gives every voxel of low attenuation to a subtype.

    Attributes:
        name: of its folder, and in tables.
        maps: the voxels of centrilobular and of paraseptal emphysema in a scan.
        lines: what corrects the percentages of both; None: nothing.
        trained_on: what the rule was fitted on.
    """

    name: str
    maps: Callable[[Scan], tuple[Mask, Mask]]
    lines: tuple[Line, Line] | None = None
    trained_on: str = "nothing: a rule"


RULES = (Rule("laa950", all_centrilobular), Rule("laa950-rim", rim_paraseptal))


def calibrated(path: Path) -> Rule:
    """The rule of a file that `model.evaluation.calibrated_rule` wrote."""
    rule = CalibratedRule.read(path)
    return Rule("calibrated", rule.maps, (rule.centrilobular, rule.paraseptal), rule.fitted_on)


@dataclass(frozen=True)
class RuleFinding:
    """What a rule finds of one subtype, in percent of the lung and of each region (0 to 100)."""

    subtype: Subtype
    percentage: float
    region_percentages: dict[str, float | None]
    probabilities: None = None

    @classmethod
    def of(cls, subtype: Subtype, found: Mask, scan: Scan, regions: Regions, line: Line | None = None) -> RuleFinding:
        """Measure the voxels that a rule gives to a subtype (z, y, x); `line` corrects the percentages."""
        inside = np.bincount(regions.labels[found[regions.box]], minlength=256)
        voxels = np.bincount(regions.labels.ravel(), minlength=256)
        shares: dict[str, float | None] = {
            name: _percentage(inside[list(labels)], voxels[list(labels)], line) for name, labels in regions.members.items()
        }
        return cls(subtype, _percentage(np.count_nonzero(found), np.count_nonzero(scan.lung), line), shares)

    @property
    def score(self) -> int:
        """Fleischner score of the percentage."""
        return self.subtype.score(self.percentage)

    @property
    def severity(self) -> str:
        """Name of the score."""
        return self.subtype.grade(self.percentage).severity


def _percentage(part: npt.ArrayLike, whole: npt.ArrayLike, line: Line | None) -> float:
    percentage = 100 * int(np.sum(part)) / int(np.sum(whole))
    return round(percentage if line is None else line(percentage), PERCENTAGE_DECIMALS)


def score_case(case: Case, output: Path, rules: Sequence[Rule] = RULES) -> None:
    """Score one case by some rules: maps (uint8, 255 = emphysema), score files and `results.json`.

    Raises:
        InputError: it cannot be used.
    """
    ct, lung_mask = case.files
    scan = Scan.read(ct, lung_mask, lobes=case.lobes)
    regions = Regions.of(scan)
    density, parts = measure(scan, regions)
    for rule in rules:
        masks = rule.maps(scan)
        findings = [
            RuleFinding.of(subtype, found, scan, regions, line)
            for subtype, found, line in zip(SUBTYPES, masks, rule.lines or (None, None), strict=True)
        ]
        provenance = Provenance(
            rule.name, trained_on=rule.trained_on, lung_mask_source=case.lung_mask_source, version=__version__
        )
        metrics = case_metrics(findings, density, parts)
        maps = {
            subtype.name: scan.to_file_grid(found.astype(np.uint8) * np.uint8(255))
            for subtype, found in zip(SUBTYPES, masks, strict=True)
        }
        with _outputs(rule, case, output) as outputs:
            outputs.write_maps(case.entity, maps)
            for subtype in SUBTYPES:
                outputs.write_score(subtype.name, metrics.of(subtype))
            outputs.write_results([CaseResult(case.entity, metrics, provenance, scan.warnings)])


def _outputs(rule: Rule, case: Case, output: Path) -> OutputFolder:
    return OutputFolder(output / rule.name / case.entity)


def list_cases(folder: Path) -> list[Case]:
    """The cases of all folders in `folder` that hold images, or those of a table that `cohort.py` wrote.

    Raises:
        InputError: there is none, one cannot be used, or two have the same name.
    """
    if folder.is_file():
        return _tabled_cases(folder)
    folders = sorted(path.parent for path in folder.glob("[!.]*/images"))
    if not folders:
        raise InputError(folder, "no folder in it holds a case", "one folder a case, each with images/ as for process.py")
    cases = [case for path in folders for case in find_cases(path)]
    twice = [entity for entity, count in Counter(case.entity for case in cases).items() if count > 1]
    if twice:
        raise InputError(folder, f"several CTs are called {', '.join(twice)}", "a name of its own for each case's CT")
    return cases


def _tabled_cases(path: Path) -> list[Case]:
    """The scored cases of a table of a cohort; lungs that were found in a CT are those that its run wrote."""
    if not is_summary(path):
        raise InputError(path, "no table of a cohort", f"cohort.parquet or {CASES_TABLE}, as cohort.py writes it")
    cases = []
    for row in read_summary(path):
        if row["state"] != "scored":
            continue
        folder = path.parent / row["folder"]
        mask = Path(row["lung_mask"]) if row["lung_mask"] else lung_mask_path(folder, row[ENTITY])
        cases.append(replace(Case.of(Path(row["ct"]), mask), entity=row[ENTITY]))
    if not cases:
        raise InputError(path, "no case in it was scored", "a table with scored cases")
    return cases


def build_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(
        prog=module_command("evaluation.baselines"),
        description="Score cases by rules instead of a network: LAA-950 as centrilobular emphysema (laa950), and LAA-950 with "
        f"the lung's outer {RIM_MM:g} mm as paraseptal (laa950-rim).",
    )
    folder = f"folder with one case a folder, as {module_command('simulation')} writes it; or cohort.parquet"
    parser.add_argument("cases", type=Path, help=folder)
    parser.add_argument("--output", type=Path, required=True, help="gets a folder a rule, with one output folder a case in it")
    parser.add_argument(
        "--calibrated",
        type=Path,
        metavar="RULE",
        help="also score by this rule (python -m model.evaluation.calibrated_rule)",
    )
    parser.add_argument("--workers", type=whole_number(1), default=1, help="processes, default: %(default)s")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0; 2 if a case cannot be used (the others are scored); 1 for anything else."""
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: _run(options), options.output)


def _run(options: argparse.Namespace) -> int:
    cases = list_cases(options.cases)
    rules = RULES if options.calibrated is None else (*RULES, calibrated(options.calibrated))
    for rule in rules:
        make_folder(options.output / rule.name)
    outcomes = map_isolated(partial(score_case, output=options.output, rules=rules), cases, options.workers)
    failed = [(case, outcome.problem) for case, outcome in zip(cases, outcomes, strict=True) if outcome.problem]
    for case, problem in failed:
        print(printable(f"{case.entity}: {problem}"), file=sys.stderr)
        for rule in rules:
            with _outputs(rule, case, options.output) as outputs:
                outputs.write_results([failed_result(problem, case.entity)])
    print(f"{len(cases) - len(failed)} cases scored: {', '.join(str(options.output / rule.name) for rule in rules)}")
    if not failed:
        return 0
    return 2 if all(outcome.is_input for outcome in outcomes if outcome.problem) else 1


if __name__ == "__main__":
    sys.exit(main())
