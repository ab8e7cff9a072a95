"""The command that scores a cohort: `cohort.py` calls `run_command`."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args

from .. import DISCLAIMER, __version__
from ..cohort.summary import CASES_TABLE
from ..command_line import DeviceName, InferencePrecisionName, MapType, OneLineParser, whole_number
from ..container.command import end_on_signals, granted_threads, run_process
from ..container.grand_challenge import MODEL_FOLDER
from ..container.logs import LogFormat, fields, log_stage, report, set_up_logging, time_left
from ..container.reading import CaseVolumes, ReadAhead, read_case
from ..container.results import failed_result
from ..errors import InputError, check_name, printable, unexpected
from ..fleischner import SUBTYPES
from ..imaging.native import print_error
from ..stages import observed_by
from .cases import CohortCase, Listing
from .cluster import ATTEMPTS, Outcome, Plan, RayRun, Work, connected
from .discovery import find_cohort
from .journal import DRIVER, LEFT_OUT_FILE, Entry, Index, Journal, opened, tables_locked, write_left_out, write_tables
from .scoring import CaseScorer, Identity, PackedScorer, ScoredCase, Settings, is_finished, read_packed

logger = logging.getLogger("process")

CHECKING_THREADS = 16
"""Threads that look at the files of cases that were finished before: most of the time is spent waiting for the storage."""


def build_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(prog="cohort.py", description=f"Score emphysema subtypes on many chest CTs. {DISCLAIMER}")
    parser.add_argument(
        "--input", type=Path, help="a folder of scans, of any depth; or a CSV or Parquet file with ct, lung_mask, entity"
    )
    parser.add_argument("--output", type=Path, help="gets the tables and a folder for each case; a run into it is continued")
    parser.add_argument("--dry-run", action="store_true", help="list the cases and what is left out; write nothing")
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--address", help="of a running Ray cluster (host:port, or auto); default: a Ray of its own on this machine"
    )
    where.add_argument(
        "--networks",
        type=whole_number(1),
        help="networks at a time; default: one for each GPU, or without a GPU one for each four CPUs and 4 GB",
    )
    where.add_argument(
        "--networks-per-gpu", type=whole_number(1), default=1, help="networks that share a GPU, default: %(default)s"
    )
    where.add_argument(
        "--readers",
        type=whole_number(1),
        help="cases that are read for a network while it scores another; default: 1 without a GPU, else up to 4",
    )
    where.add_argument("--shard", type=_shard, metavar="I/N", help="score one of N parts, in this process and without Ray")
    where.add_argument(
        "--merge",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help="only write the tables of all cases in --output, or of these outputs",
    )
    how = parser.add_argument_group("how cases are scored, as with process.py")
    how.add_argument("--segment-lungs", action="store_true", help="also score CTs that have no lung mask")
    how.add_argument(
        "--lungmask-weights", type=Path, help="with --segment-lungs: segment with the lungmask network, using these weights"
    )
    how.add_argument("--weights", type=Path, help=f"weight bundle; default: {MODEL_FOLDER}, else the included one")
    how.add_argument("--device", choices=get_args(DeviceName), default="auto")
    how.add_argument("--precision", choices=get_args(InferencePrecisionName), default="auto")
    how.add_argument("--map-type", choices=get_args(MapType), default="uint8")
    how.add_argument("--preview", action="store_true", help="also write a picture of each case")
    how.add_argument("--report", action="store_true", help="also write a printable report of each case")
    how.add_argument("--save-lung-mask", action="store_true", help="also write the lungs that were scored")
    how.add_argument("--dicom", action="store_true", help="also write DICOM objects, for CTs that came as DICOM")
    how.add_argument("--verify", action="store_true", help="tell inputs by sha256 instead of by size and time of modification")
    how.add_argument("--retry-crashed", action="store_true", help="also try cases again that ended their workers")
    parser.add_argument("--log-format", choices=get_args(LogFormat), default="text", help="json: one object a line")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part of a whole, such as 3/16")
    return int(number), int(count)


def parsed_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.merge is not None and (options.input is not None or options.shard or options.dry_run):
        parser.error("--merge goes without --input, --shard and --dry-run")
    if options.merge is None and options.input is None:
        parser.error("--input is needed")
    if options.output is None and not options.dry_run:
        parser.error("--output is needed")
    if options.shard and options.address:
        parser.error("--shard runs without Ray: it goes without --address")
    if options.lungmask_weights is not None and not options.segment_lungs:
        parser.error("--lungmask-weights goes with --segment-lungs")
    return options


class CaseRecorder:
    """Notes the cases that come back: in the journal, in the log, now and then in the tables, and in the run's exit code."""

    def __init__(self, journal: Journal, cases: int, finished: int) -> None:
        """
        Args:
            cases: of the run.
            finished: those of them that earlier runs have finished.
        """
        self._journal = journal
        self._cases = cases
        self._done = finished
        self._scored = 0
        self._start = time.monotonic()
        self.failed = 0
        self.exit_code = 0

    def add(self, entry: Entry, exit_code: int) -> None:
        """Note a case that is finished; the exit code is that of a run with this case alone."""
        self._journal.add(entry)
        self._done += 1
        self._scored += 1
        self.count(exit_code)
        seconds_left = (time.monotonic() - self._start) / self._scored * (self._cases - self._done)
        text = f"{self._done} of {self._cases}: {printable(entry.entity)}: {_outcome(entry)}"
        if self._done < self._cases:
            text += f", {time_left(seconds_left)}"
        values = {"case": self._done, "cases": self._cases, "seconds": entry.seconds, "seconds_left": round(seconds_left)}
        logger.info("%s", text, extra=fields(entity=entry.entity, **values))
        for warning in entry.result.warnings:
            logger.info("%s: %s", printable(entry.entity), warning, extra=fields(entity=entry.entity, warning=warning))
        if self._journal.tables_are_due:
            self._journal.write_tables()

    def keep(self, problem: str) -> None:
        """Say why a case was not scored again, whose earlier result is kept."""
        print_error(problem)
        self._done += 1
        self.count(2)

    def count(self, exit_code: int) -> None:
        """Count a case that was scored (0), that cannot be used (2), or that failed otherwise (1)."""
        self.failed += exit_code != 0
        if exit_code == 1 or self.exit_code == 0:
            self.exit_code = exit_code


def _outcome(entry: Entry) -> str:
    metrics = entry.result.metrics
    if metrics is None:
        return "not scored"
    return ", ".join(f"{subtype.abbreviation.upper()} {metrics.of(subtype).score}" for subtype in SUBTYPES)


def unfinished(
    cases: Sequence[CohortCase], journal: Journal, identity: Identity, settings: Settings, *, retry_crashed: bool
) -> tuple[list[CohortCase], CaseRecorder]:
    """The cases that no earlier run has finished with the same bundle, options and input; and a recorder that knows the others.

    Of these, those that ended their workers count as failed: they are not tried again unless `retry_crashed`. So do those that
    were scored and whose input cannot be looked at: their results are kept. Those whose files lie elsewhere now are noted anew.
    """
    unseen: dict[str, str] = {}

    def state(case: CohortCase) -> str:
        entry = journal.entry(case.entity) if case.entity in journal.entities else None
        if entry is not None and entry.crashed and not retry_crashed:
            return "crashed"
        try:
            if entry is None or not is_finished(case, entry, identity, settings):
                return ""
        except InputError as error:
            unseen[case.entity] = str(error)
            return "unseen"
        if not journal.is_in_folder(entry):
            logger.info("%s: scored again: its folder does not hold the result of the journal", printable(case.entity))
            return ""
        return "finished" if entry == entry.of_files(case) else "moved"

    with ThreadPoolExecutor(CHECKING_THREADS) as threads:
        states = list(threads.map(state, cases))
    left = [case for case, found in zip(cases, states, strict=True) if not found]
    if len(left) < len(cases):
        logger.info("%d of %d cases were finished before", len(cases) - len(left), len(cases))
    recorder = CaseRecorder(journal, len(cases), len(cases) - len(left) - len(unseen))
    for case, found in zip(cases, states, strict=True):
        entry = journal.entry(case.entity) if found == "moved" else None
        if entry is not None:
            journal.add(entry.of_files(case))
        elif found == "unseen":
            recorder.keep(unseen[case.entity])
        elif found == "crashed":
            recorder.count(1)
    return left, recorder


def score_with_ray(
    options: argparse.Namespace, cases: Sequence[CohortCase], settings: Settings, journal: Journal
) -> CaseRecorder:
    """Score cases on this machine or on a cluster.

    Raises:
        InputError: the bundle, or the cluster, cannot be used.
    """
    work = Work(partial(read_packed, settings=settings), partial(PackedScorer, settings))
    plan = partial(
        Plan.of,
        use_gpus=options.device != "cpu",
        networks=options.networks,
        per_gpu=options.networks_per_gpu,
        readers=options.readers,
    )
    with connected(options.address, granted_threads()):
        end_on_signals()  # Ray has handlers of its own
        ray_run = RayRun(work, plan)
        identity = ray_run.start()
        source = identity.provenance
        logger.info("networks: %d, on %s in %s", ray_run.plan.networks, source.device, source.precision)
        left, recorder = unfinished(cases, journal, identity, settings, retry_crashed=options.retry_crashed)
        for outcome in ray_run.score(iter(left)):
            if outcome.value is not None and outcome.value.kept:
                recorder.keep(outcome.value.kept)
                continue
            entry, exit_code = entry_of(outcome)
            for message in entry.result.error_messages:
                print_error(message)
            recorder.add(entry, exit_code)
    return recorder


def entry_of(outcome: Outcome) -> tuple[Entry, int]:
    """The journal's entry of what came back of a case, and its exit code."""
    if outcome.value is None:
        message = printable(f"{outcome.case.entity}: its worker ended {outcome.attempts} times ({outcome.crashed})")
        result = failed_result(message, outcome.case.entity)
        return Entry.of(outcome.case, result, attempts=outcome.attempts, crashed=outcome.crashed), 1
    scored: ScoredCase = outcome.value
    entry = Entry.of(outcome.case, scored.result, scored.record, attempts=outcome.attempts, seconds=scored.seconds)
    return entry, scored.exit_code


def score_shard(options: argparse.Namespace, cases: Sequence[CohortCase], settings: Settings, journal: Journal) -> CaseRecorder:
    """Score cases one after another in this process, the next being read meanwhile.

    A case that ended this process twice, as the journal tells, is listed and not tried again.

    Raises:
        InputError: the bundle cannot be used.
    """
    scorer = CaseScorer(settings, granted_threads())
    for note in scorer.notes:
        logger.info("%s", note)
    left, recorder = unfinished(cases, journal, scorer.identity, settings, retry_crashed=options.retry_crashed)
    # After a run that was killed, no case is read ahead: what kills this one shall be the case that was begun.
    was_killed = journal.was_killed
    with ReadAhead([case.container_case for case in left]) as scans, observed_by(log_stage):
        for index, case in enumerate(left):
            attempts = journal.times_begun(case.entity) + 1
            if attempts > ATTEMPTS:
                entry, exit_code = entry_of(Outcome(case, None, attempts - 1, "the process that scored it ended"))
                print_error(entry.result.error_messages[0])
                recorder.add(entry, exit_code)
                continue
            journal.begin(case.entity)
            try:
                volumes, is_input = _read(case, scans, index, ahead=not was_killed)
                scored = scorer.score_or_list(case, volumes)
            except SystemExit:  # on SIGTERM
                journal.stop(case.entity)
                raise
            if scored.kept:
                journal.stop(case.entity)
                recorder.keep(scored.kept)
                continue
            entry = Entry.of(case, scored.result, scored.record, attempts=attempts, seconds=scored.seconds)
            recorder.add(entry, scored.exit_code if is_input else 1)
    return recorder


def _read(case: CohortCase, scans: ReadAhead, index: int, *, ahead: bool) -> tuple[CaseVolumes | str, bool]:
    """What was read of a case, or why it could not be; and whether that is the input's fault."""
    try:
        return scans.take(index) if ahead else read_case(case.container_case), True
    except InputError as error:
        return str(error), True
    except Exception as error:
        return printable(f"{case.entity}: {unexpected(error)}"), False


def dry_run(listing: Listing, options: argparse.Namespace) -> str:
    """What a run would do: its cases with their files, what is left out, and why."""
    known = Index([options.output]).places if options.output is not None else {}
    lines = []
    for case in listing.cases:
        files = f"{case.ct}{f' ({len(case.series)} files)' if case.series else ''}"
        mask = case.lung_mask or "lungs found in the CT"
        note = " [in the tables already]" if case.entity in known else ""
        lines.append(printable(f"{case.entity}: {files}, {mask}{note}"))
    lines += [printable(f"left out: {other.path}: {other.reason}") for other in listing.left_out]
    return "\n".join([*lines, f"{_cases(len(listing.cases))}, {len(listing.left_out)} left out"])


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0; 2 for an input that cannot be used; 1 for anything else."""
    start = time.monotonic()
    options = parsed_options(sys.argv[1:] if arguments is None else arguments)
    set_up_logging(options.log_format)
    try:
        if options.output is not None:
            check_name(options.output.absolute())
        if options.merge is not None:
            folders = options.merge or [options.output]
            return _merge(folders, options.output)
        return _run(options, start)
    except InputError as error:
        print_error(str(error))
        return 2
    except Exception as error:
        print_error(printable(f"{options.output or options.input}: {unexpected(error)}"))
        return 1


def _merge(folders: Sequence[Path], output: Path) -> int:
    known: dict[str, tuple[dict[str, Any], Path]] = {}
    for folder in folders:
        one = Index([folder])
        if not one.places:
            raise InputError(folder, "no journal of a run is in it", "an output folder of cohort.py")
        for _, document in one.documents() if len(folders) > 1 else ():
            entity, ct, record = document["result"]["entity"], document["ct"], document.get("record") or {}
            files = {"ct": ct, "lung_mask": document["lung_mask"], "stat": record.get("stat")}
            other, where = known.setdefault(entity, (files, folder))
            if other["ct"] != ct:
                raise InputError(folder, f"{entity} is {ct}, in {where} it is {other['ct']}", "one name for each scan")
            if other["stat"] is None:
                known[entity] = files, folder
            elif files["stat"] and files["lung_mask"] == other["lung_mask"] and files["stat"] != other["stat"]:
                found = f"{entity} is {ct}, whose files have another name, size or time in {where}"
                raise InputError(folder, found, "one name for each scan")
    with tables_locked(output):
        index = Index(folders)
        write_tables(index, output)
    report(f"{_cases(len(index.places))}; written to {output / CASES_TABLE}")
    return 0


def _run(options: argparse.Namespace, start: float) -> int:
    _need_pyarrow(options.input)
    listing = find_cohort(options.input, segment_lungs=options.segment_lungs, output=options.output)
    if not listing.cases:
        reasons = "; ".join(f"{other.path}: {other.reason}" for other in listing.left_out[:3])
        raise InputError(options.input, f"no case to score{f' ({reasons})' if reasons else ''}", "chest CTs with lung masks")
    if options.shard:
        listing = listing.shard(*options.shard)
    if options.dry_run:
        report(dry_run(listing, options))
        return 0
    settings = Settings(
        output=options.output.absolute(),
        weights=options.weights.absolute() if options.weights else None,
        device=options.device,
        precision=options.precision,
        map_type=options.map_type,
        lung_mask=options.save_lung_mask,
        preview=options.preview,
        report=options.report,
        dicom=options.dicom,
        lungmask_weights=options.lungmask_weights.absolute() if options.lungmask_weights else None,
        verify=options.verify,
    )
    name = "{}-of-{}".format(*options.shard) if options.shard else DRIVER
    with opened(options.output, name) as journal:
        write_left_out(options.output, listing.left_out)
        cases, unlinked = _with_one_folder(listing.cases, settings.output)
        for entry in unlinked:
            print_error(entry.result.error_messages[0])
            journal.add(entry)
        restored = journal.restore(cases)
        if restored:
            logger.info("%d cases were found finished in their folders", restored)
        others = journal.entities - {case.entity for case in listing.cases}
        if others and not options.shard:
            logger.info("%d cases of earlier runs, not in this input, stay in the tables", len(others))
        score = score_shard if options.shard else score_with_ray
        try:
            recorder = score(options, cases, settings, journal)
        finally:
            journal.write_tables()
    for _ in unlinked:
        recorder.count(2)
    seconds = time.monotonic() - start
    count = len(listing.cases)
    scored = count - recorder.failed
    if options.log_format == "json":
        values = {"cases": count, "scored": scored, "left_out": len(listing.left_out), "seconds": round(seconds, 3)}
        logger.info("finished", extra=fields(**values))
    else:
        left_out = f", {len(listing.left_out)} left out ({LEFT_OUT_FILE})" if listing.left_out else ""
        report(f"{scored} of {count} cases scored{left_out}; {seconds:.0f} s; written to {options.output}\n{DISCLAIMER}")
    return recorder.exit_code


def _with_one_folder(cases: Sequence[CohortCase], output: Path) -> tuple[list[CohortCase], list[Entry]]:
    """The cases with a folder for each series; and the entries of those for which none can be made."""
    made, failed = [], []
    for case in cases:
        try:
            made.append(case.with_one_folder(output))
        except InputError as error:
            failed.append(Entry.of(case, failed_result(str(error), case.entity)))
    return made, failed


def _need_pyarrow(source: Path) -> None:
    """
    Raises:
        InputError: pyarrow is not installed, which writes the tables.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            source, "pyarrow, which writes the tables, is not installed", "the packages of requirements/cohort.lock"
        )


def run_command() -> NoReturn:
    """Run `main` as a process of its own."""
    run_process(main)
