"""What a cohort costs beside the scoring itself.

Usage: python benchmark/cohort.py schedule [--cases 10000] [--networks 2]
       python benchmark/cohort.py evaluate [--cases 10000]
       python benchmark/cohort.py throughput FOLDER [--weights BUNDLE]

schedule: a run with Ray whose readers and scorers do nothing, with journal and tables: milliseconds for each case, and the
driver's memory after each tenth of the cases. evaluate: `evaluate.py` on the table of as many cases; seconds of CPU and peak
memory. throughput: `process.py` on a folder of cases, then `cohort.py` on the same; seconds of each.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import timed_process
from model.batch.cases import CohortCase
from model.batch.cluster import Plan, RayRun, Work, connected
from model.batch.command import CaseRecorder
from model.batch.journal import Entry, opened
from model.batch.scoring import Identity, ScoredCase
from model.command_line import OneLineParser, exit_code, whole_number
from model.container.grand_challenge import find_cases
from model.container.results import CaseResult, Metrics, Provenance, Quality, RegionMetrics
from model.container.resume import Record
from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.weights import locate_bundle

MB = 1 << 20
PROVENANCE = Provenance("benchmark", "0" * 64, "nothing", "paper", "given", "0", "cpu", "float32")
RECORD = Record("0" * 64, {"map_type": "uint8"}, ("images/a.mha", "images/b.mha"))


def synthetic_result(entity: str, cle: float, pse: float) -> CaseResult:
    """A result with all of its fields, as large as a real one."""
    region = RegionMetrics(round(cle, 4), round(pse, 4), 5.0, -900, 2500)
    names = ("right", "left", "left_upper_lobe", "left_lower_lobe", "right_upper_lobe", "right_lower_lobe", "right_middle_lobe")
    metrics = Metrics(
        cle_severity_score=CENTRILOBULAR.score(cle),
        cle_severity=CENTRILOBULAR.grade(cle).severity,
        cle_percentage=round(cle, 4),
        pse_severity_score=PARASEPTAL.score(pse),
        pse_severity=PARASEPTAL.grade(pse).severity,
        pse_percentage=round(pse, 4),
        laa950_percentage=5.0,
        perc15_hu=-900,
        lung_volume_ml=5000,
        regions=dict.fromkeys(names, region),
    )
    return CaseResult(
        entity, metrics, PROVENANCE, ("a warning of the usual length, about the kernel",), (), Quality(9, 1, 1, 1, 1, 0, -850)
    )


def synthetic_cases(count: int) -> list[CohortCase]:
    """Cases whose files do not exist."""
    return [CohortCase(f"case-{k:05d}", Path(f"/data/{k}/ct.nii.gz"), Path(f"/data/{k}/mask.nii.gz")) for k in range(count)]


def read_nothing(_: CohortCase) -> None:
    """A reader that reads nothing."""


class Nothing:
    """A scorer that returns a result at once."""

    identity = Identity(PROVENANCE, {})

    def score_packed(self, case: CohortCase, _: Any) -> ScoredCase:
        return ScoredCase(synthetic_result(case.entity, 12.0, 3.0), RECORD, 0.0, 0)


def make_nothing(_: int) -> Nothing:
    """Load it."""
    return Nothing()


def resident() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MB


def schedule(cases: int, networks: int) -> None:
    """Print the cost of scheduling."""
    plan = Plan(networks, 0.5, 0.0, 1, 2, 0.25)
    with tempfile.TemporaryDirectory() as folder, connected(None, networks), opened(Path(folder)) as journal:
        run = RayRun(Work(read_nothing, make_nothing), lambda _: plan)
        run.start()
        recorder = CaseRecorder(journal, cases, 0)
        start, cpu = time.perf_counter(), time.process_time()
        print("cases  ms a case  driver: CPU ms a case  MB")
        for number, outcome in enumerate(run.score(iter(synthetic_cases(cases))), start=1):
            recorder.add(Entry.of(outcome.case, outcome.value.result, outcome.value.record), 0)
            if number % max(cases // 10, 1) == 0:
                wall, own = time.perf_counter() - start, time.process_time() - cpu
                print(f"{number:5d}  {1000 * wall / number:9.2f}  {1000 * own / number:21.2f}  {resident():.0f}", flush=True)
        begin = time.perf_counter()
        journal.write_tables()
        print(f"tables of all cases: {time.perf_counter() - begin:.1f} s")


def evaluate(cases: int) -> None:
    """Print what `evaluate.py` takes on a table of a cohort."""
    rng = np.random.default_rng(0)
    truth = np.clip(rng.gamma(0.5, 12.0, (cases, 2)), 0, 100)
    found = np.clip(truth + rng.normal(0, 3, truth.shape), 0, 100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with opened(folder) as journal:
            for case, (cle, pse) in zip(synthetic_cases(cases), found.tolist(), strict=True):
                journal.add(Entry.of(case, synthetic_result(case.entity, cle, pse), RECORD))
            journal.write_tables()
        lines = ["entity,cle_score,pse_score,cle_percentage,pse_percentage"]
        for case, (cle, pse) in zip(synthetic_cases(cases), truth.tolist(), strict=True):
            lines.append(f"{case.entity},{CENTRILOBULAR.score(cle)},{PARASEPTAL.score(pse)},{cle:.4f},{pse:.4f}")
        (folder / "reference.csv").write_text("\n".join(lines) + "\n")
        for table in ("cohort.parquet", "cohort.csv"):
            options = ("--predictions", folder / table, "--reference", folder / "reference.csv", "--output", folder / "report")
            process = timed_process([ROOT / "evaluate.py", *options])
            figures = f"{process.core_seconds:.1f} s of CPU, {process.seconds:.1f} s in all, {process.memory / MB:.0f} MB"
            print(f"evaluate.py on {table}, {cases} cases: {figures}")


def throughput(folder: Path, weights: Path | None) -> None:
    """Print what `process.py` and `cohort.py` take for one folder, one after the other.

    Raises:
        InputError: the folder holds no cases, or `weights` no bundle.
    """
    find_cases(folder)
    more = () if weights is None else ("--weights", locate_bundle(weights))
    with tempfile.TemporaryDirectory() as output:
        for command in ("process.py", "cohort.py"):
            process = timed_process([ROOT / command, "--input", folder, "--output", Path(output) / command, *more])
            figures = f"{process.seconds:.1f} s, {process.core_seconds:.1f} s of CPU"
            print(f"{command}: {figures} of its own and of processes that it waited for")


def run(options: argparse.Namespace) -> None:
    """One of the three commands."""
    if options.command == "schedule":
        schedule(options.cases, options.networks)
    elif options.command == "evaluate":
        evaluate(options.cases)
    else:
        throughput(options.folder, options.weights)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="benchmark/cohort.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("schedule", "evaluate"):
        command = commands.add_parser(name)
        command.add_argument("--cases", type=whole_number(1), default=10000)
        if name == "schedule":
            command.add_argument("--networks", type=whole_number(1), default=2)
    command = commands.add_parser("throughput")
    command.add_argument("folder", type=Path)
    command.add_argument("--weights", type=Path)
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
