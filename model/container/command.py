"""The inference command: reads a chest CT and its lung mask, writes Fleischner scores and activation maps.

`process.py` and the console command `emphysema-subtyping` both call `run_command`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, get_args

import SimpleITK as sitk

# Nothing here imports torch or evalutils, which take seconds: `scored` does, while the first scan is being read.
from .. import DISCLAIMER, __version__
from ..command_line import DeviceName, InferencePrecisionName, MapType, OneLineParser, granted_cpus
from ..errors import InputError, printable, unexpected
from ..fleischner import SUBTYPES, Subtype
from ..heap import reuse_freed_memory
from ..imaging.native import print_error
from ..stages import Stage, observed_by, timed
from . import grand_challenge
from .grand_challenge import Case, OutputFolder
from .logs import LogFormat, fields, log_stage, report, set_up_logging
from .reading import ReadAhead
from .results import CaseResult, SubtypeScore, failed_result
from .startup import imports_without_collections

if TYPE_CHECKING:
    from .algorithm import EmphysemaAlgorithm

logger = logging.getLogger("process")

ENVIRONMENT_PREFIX = "EMPHYSEMA_"
CONSOLE_COMMAND = "emphysema-subtyping"
"""The name that pyproject.toml installs this command under."""


def summary(results: list[CaseResult], seconds: float, output: Path) -> str:
    """Return the table that is printed at the end of a run."""
    lines = [f"{'entity':<24} {'centrilobular':<32} {'paraseptal':<26} {'LAA-950':>8}"]
    for result in results:
        entity = printable(result.entity or "")
        if result.metrics is None:
            lines.append(f"{entity:<24} not scored: {result.error_messages[0]}")
            continue
        cells = [_summary_cell(subtype, result.metrics.of(subtype)) for subtype in SUBTYPES]
        laa950 = f"{result.metrics.laa950_percentage:.1f} %"
        lines.append(f"{entity:<24} {cells[0]:<32} {cells[1]:<26} {laa950:>8}")
    provenance = next((result.provenance for result in results if result.provenance), None)
    if provenance:
        lines.append(f"weights: {provenance.bundle} (trained on: {provenance.trained_on})")
        lines.append(provenance.validation)
    lines.append(printable(f"{seconds:.1f} s; written to {output}"))
    lines.append(DISCLAIMER)
    return "\n".join(lines)


def _summary_cell(subtype: Subtype, found: SubtypeScore) -> str:
    extent = "" if found.percentage is None else f", {subtype.percentage_text(found.percentage)} %"
    return f"{found.score} {found.severity}{extent}"


def parsed_options(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; what it leaves out may be set by the environment (EMPHYSEMA_DEVICE for --device, and so on)."""
    parser = OneLineParser(
        prog=CONSOLE_COMMAND if Path(sys.argv[0]).stem == CONSOLE_COMMAND else "process.py",
        description=f"Score emphysema subtypes on chest CT. {DISCLAIMER}",
        epilog=f"Each option can be set by an environment variable too: {ENVIRONMENT_PREFIX}DEVICE, "
        f"{ENVIRONMENT_PREFIX}MAP_TYPE, {ENVIRONMENT_PREFIX}PREVIEW=1, and so on.",
    )
    options = [
        parser.add_argument("--input", type=Path, default=grand_challenge.INPUT_FOLDER, help="default: %(default)s"),
        parser.add_argument("--output", type=Path, default=grand_challenge.OUTPUT_FOLDER, help="default: %(default)s"),
        parser.add_argument("--ct", type=Path, help="score this CT alone, instead of what --input holds"),
        parser.add_argument("--lung-mask", type=Path, help="the lung mask of --ct"),
        parser.add_argument(
            "--lungmask-weights",
            type=Path,
            help="with --segment-lungs: segment with the lungmask network, using these weights",
        ),
        parser.add_argument(
            "--weights",
            type=Path,
            help=f"weight bundle; default: {grand_challenge.MODEL_FOLDER} if it is there, else the included one",
        ),
        parser.add_argument("--device", choices=get_args(DeviceName), default="auto", help="default: %(default)s"),
        parser.add_argument(
            "--precision", choices=get_args(InferencePrecisionName), default="auto", help="default: %(default)s"
        ),
        parser.add_argument("--map-type", choices=get_args(MapType), default="uint8", help="default: %(default)s"),
        parser.add_argument(
            "--log-format", choices=get_args(LogFormat), default="text", help="json: one object a line; default: %(default)s"
        ),
    ]
    flags = [
        parser.add_argument("--preview", action="store_true", help="also write a picture of each case"),
        parser.add_argument(
            "--report", action="store_true", help="also write a printable report of each case, as PDF and HTML"
        ),
        parser.add_argument("--save-lung-mask", action="store_true", help="also write the lungs that were scored"),
        parser.add_argument(
            "--dicom", action="store_true", help="also write segmentations and a report as DICOM, for CTs that came as DICOM"
        ),
        parser.add_argument("--segment-lungs", action="store_true", help="find the lungs of CTs that have no lung mask"),
        parser.add_argument(
            "--resume",
            action="store_true",
            help="skip the cases that an earlier run into --output has finished with the same bundle, options and input",
        ),
        parser.add_argument(
            "--verify", action="store_true", help="tell inputs by sha256 instead of by size and time of modification"
        ),
    ]
    parser.add_argument("--version", action="version", version=__version__)
    preset = []
    for option in options:
        value = os.environ.get(ENVIRONMENT_PREFIX + option.dest.upper())
        if value:
            preset.append(f"{option.option_strings[0]}={value}")
    for flag in flags:
        if os.environ.get(ENVIRONMENT_PREFIX + flag.dest.upper(), "").lower() in ("1", "true", "yes", "on"):
            preset.append(flag.option_strings[0])
    parsed = parser.parse_args([*preset, *arguments])
    if parsed.lung_mask is not None and parsed.ct is None:
        parser.error("--lung-mask needs --ct")
    if parsed.ct is not None and parsed.lung_mask is None and not parsed.segment_lungs:
        parser.error("--ct needs --lung-mask or --segment-lungs")
    if parsed.lungmask_weights is not None and not parsed.segment_lungs:
        parser.error("--lungmask-weights goes with --segment-lungs")
    return parsed


def granted_threads() -> int:
    """What OMP_NUM_THREADS says; else one for each CPU that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return granted_cpus()


def main(arguments: list[str] | None = None) -> int:
    start = time.perf_counter()
    options = parsed_options(sys.argv[1:] if arguments is None else arguments)
    set_up_logging(options.log_format)
    try:
        outputs = OutputFolder(options.output, keep=options.resume)
    except InputError as error:
        print_error(str(error))
        return 2
    with contextlib.closing(outputs):
        return run(options, outputs, start)


def run(options: argparse.Namespace, outputs: OutputFolder, start: float) -> int:
    """Score what the options name into a folder that is this run's alone; return the exit code."""
    try:
        cases = cases_to_score(options)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(granted_threads())
        reuse_freed_memory()
        with ReadAhead(cases) as scans, observed_by(log_stage):
            if not options.resume:  # else it is known only with the bundle which case comes first
                scans.begin()
            algorithm = scored(cases, scans, options, outputs)
    except Exception as error:
        is_input = isinstance(error, InputError)
        message = str(error) if is_input else printable(f"{options.output}: {unexpected(error)}")
        if not outputs.has_results:  # of cases that were finished before this went wrong
            with contextlib.suppress(OSError), outputs:  # a full disk may be what went wrong
                outputs.write_results([failed_result(message)])
        print_error(message)
        return 2 if is_input else 1
    seconds = time.perf_counter() - start
    if options.log_format == "json":
        done = sum(result.metrics is not None for result in algorithm.results)
        logger.info("finished", extra=fields(cases=len(cases), scored=done, seconds=round(seconds, 3)))
    else:
        report(summary(algorithm.results, seconds, options.output))
    return algorithm.exit_code


def cases_to_score(options: argparse.Namespace) -> list[Case]:
    """The cases that the options name.

    Raises:
        InputError: as `find_cases`; nothing is named, and the platform's folder is not there.
    """
    if options.ct:
        return [Case.of(options.ct, options.lung_mask)]
    if options.input == grand_challenge.INPUT_FOLDER and not options.input.exists():
        expected = f"a folder with {grand_challenge.CT_FOLDER} and {grand_challenge.MASK_FOLDERS[0]}, or --input or --ct"
        raise InputError(options.input, "no such folder", expected)
    return grand_challenge.find_cases(options.input, segment_lungs=options.segment_lungs)


def scored(cases: list[Case], scans: ReadAhead, options: argparse.Namespace, outputs: OutputFolder) -> EmphysemaAlgorithm:
    """Load the network while the first scan is being read, then score every case."""
    with imports_without_collections():
        import torch

        from ..subtyping import EmphysemaSubtyper
        from ..weights import locate_bundle
        from .algorithm import EmphysemaAlgorithm, Written

    torch.set_num_threads(granted_threads())
    with timed(Stage.WEIGHTS):
        bundle = locate_bundle(*grand_challenge.bundle_places(options.weights))
        subtyper = EmphysemaSubtyper.from_bundle(bundle, options.device, options.precision)
    for note in subtyper.notes:
        logger.info("%s", note)
    logger.info("running on %s in %s", subtyper.device, subtyper.precision)
    written = Written(options.map_type, options.save_lung_mask, options.preview, options.report, options.dicom)
    algorithm = EmphysemaAlgorithm(
        cases, scans, subtyper, outputs, written, options.lungmask_weights, resume=options.resume, verify=options.verify
    )
    algorithm.process()
    return algorithm


def end_on_signals() -> None:
    """End on SIGTERM, SIGINT and SIGHUP as on an error, which removes what is half-written; the exit code is 128 + the number.

    SIGHUP stays ignored where it is, as under nohup.
    """
    try:
        stderr = os.dup(2)  # a handler cannot wait until no other thread captures descriptor 2
    except OSError:  # started without stderr
        stderr = os.open(os.devnull, os.O_WRONLY)

    def stop(number: int, _: FrameType | None) -> NoReturn:
        os.write(stderr, f"stopped by {signal.Signals(number).name}\n".encode())
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def run_command() -> NoReturn:
    """Run `main` as a process of its own."""
    run_process(main)


def run_process(command: Callable[[], int]) -> NoReturn:
    """Run a command as a process of its own, which ends here with the exit code that the command returns."""
    end_on_signals()
    code = command()
    if sys.stdout is not None:  # started without stdout
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    os._exit(code)  # everything is on the disk; to take torch and large arrays down in order would take a second more
