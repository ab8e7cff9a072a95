#!/usr/bin/env python3
"""Entry point of inference: reads a chest CT and its lung mask, writes Fleischner scores and activation maps.

On grand-challenge it runs without arguments, from /input to /output. Research software, not a medical device.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

import SimpleITK as sitk
import torch
from evalutils.evalutils import Algorithm
from evalutils.exceptions import FileLoaderError
from evalutils.io import FileLoader
from pandas import DataFrame, Series

from model import __version__, grand_challenge
from model.command_line import OneLineParser
from model.errors import InputError, printable
from model.grand_challenge import Case, OutputFolder
from model.lung_segmentation import segment_lungs
from model.preprocessing import MapType
from model.rendering import DISCLAIMER, preview
from model.results import case_result, failed_result
from model.scan import Scan, read_header, read_image
from model.stages import stage
from model.subtyping import DeviceName, EmphysemaSubtyper, PrecisionName, Subtyping
from model.weights import locate_bundle

logger = logging.getLogger("process")

ENVIRONMENT_PREFIX = "EMPHYSEMA_"
WEIGHTS_BESIDE_CODE = Path(__file__).resolve().parent / "weights"


class HeaderLoader(FileLoader):  # type: ignore[misc]
    """Reads and checks the header alone: evalutils' own loader reads and hashes the whole volume, twice."""

    def load(self, *, fname: Path) -> list[dict[str, Any]]:
        """Return the file's path and size in voxels.

        Raises:
            FileLoaderError: the file cannot be a scan or mask; the cause is an `InputError`.
        """
        try:
            return [{"path": fname, "size": read_header(fname)}]
        except InputError as error:
            raise FileLoaderError(str(error)) from error


class EmphysemaAlgorithm(Algorithm):  # type: ignore[misc]
    """Scores every case of a run with one subtyper and collects `results.json`.

    A case that cannot be scored is listed with its error, and the others go on.

    Attributes:
        exit_code: 0 while every case was scored, 2 after an input that cannot be used, 1 after anything else.
    """

    def __init__(
        self,
        cases: list[Case],
        subtyper: EmphysemaSubtyper,
        outputs: OutputFolder,
        map_type: MapType,
        with_preview: bool,
        lungmask_weights: Path | None,
    ) -> None:
        loader = HeaderLoader()
        super().__init__(
            index_key="ct",
            file_loaders={"ct": loader, "lung_mask": loader},
            validators={},
            output_path=outputs.folder / "images",
            output_file=outputs.folder / grand_challenge.RESULTS_FILE,
        )
        self.exit_code = 0
        self._listed = cases
        self._subtyper = subtyper
        self._outputs = outputs
        self._map_type = map_type
        self._with_preview = with_preview
        self._lungmask_weights = lungmask_weights

    @property
    def results(self) -> list[dict[str, Any]]:
        """What `results.json` holds: one object a case, in the order of the cases."""
        return list(self._case_results)

    def load(self) -> None:
        """Read the headers of all cases before the first is scored; `problem` says what stands in a case's way, if anything."""
        rows = []
        for case in self._listed:
            row: dict[str, Any] = {"case": case, "problem": ""}
            try:
                for key, path in zip(("ct", "lung_mask"), case.files, strict=False):
                    self._file_loaders[key].load(fname=path)
            except (InputError, FileLoaderError) as error:
                row["problem"] = str(error)
            rows.append(row)
        self._cases[self._index_key] = DataFrame(rows)

    def process_case(self, *, idx: int, case: Series) -> dict[str, Any]:
        """Score one case and write its maps (and with the run's first case the score files); return its result."""
        files: Case = case["case"]
        try:
            self._outputs.discard(files.entity)
            if case["problem"]:
                raise FileLoaderError(case["problem"])
            return self._scored(files, is_first=idx == 0)
        except (InputError, FileLoaderError) as error:
            self.exit_code = self.exit_code or 2
            message = str(error)
        except Exception as error:
            self.exit_code = 1
            message = printable(f"{files.entity}: {unexpected(error)}")
        print(message, file=sys.stderr)
        return failed_result(message, files.entity)

    def predict(self, *, input_image: Scan) -> Subtyping:
        """Score one scan."""
        return self._subtyper.predict(input_image, self._map_type)

    def save(self) -> None:
        """Write `results.json`."""
        with self._outputs as outputs:
            outputs.write_results(self._case_results)

    def _scored(self, case: Case, is_first: bool) -> dict[str, Any]:
        start = time.perf_counter()
        logger.info("%s", printable(case.entity))
        scan = self._read(case)
        subtyping = self.predict(input_image=scan)
        with stage("densitometry"):
            result = case_result(case.entity, scan, subtyping, self._subtyper, case.lung_mask_source)
        for warning in result["warnings"]:
            logger.info("%s: %s", printable(case.entity), warning)
        with stage("write"), self._outputs as outputs:
            for finding in (subtyping.centrilobular, subtyping.paraseptal):
                outputs.write_map(finding.subtype.name, case.entity, scan.to_file_grid(finding.activation_map))
                if is_first:
                    outputs.write_score(finding.subtype.name, finding.score, finding.severity, finding.percentage)
            if self._with_preview:
                outputs.write_preview(case.entity, preview(scan, subtyping, self._subtyper.metadata.trained_on))
        logger.info("%-12s %7.2f s", "in all", time.perf_counter() - start)
        return result

    def _read(self, case: Case) -> Scan:
        ct, *lung_mask = case.files
        if lung_mask:
            with stage("read"):
                return Scan.read(ct, lung_mask[0], lobes=case.lobes)
        with stage("read"):
            image = read_image(ct)
        with stage("lungs"):
            lungs = segment_lungs(image, str(ct), self._lungmask_weights)
        return Scan.from_images(image, lungs, names=(str(ct), f"{ct} (the lungs found in it)"))


def unexpected(error: Exception) -> str:
    """Log where an error of ours came from, and return it as one line."""
    logger.info("%s", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def summary(results: list[dict[str, Any]], seconds: float, output: Path) -> str:
    """Return the table that is printed at the end of a run."""
    lines = [f"{'entity':<24} {'centrilobular':<32} {'paraseptal':<26} {'LAA-950':>8}"]
    for result in results:
        entity = printable(result["entity"])
        if result["error_messages"]:
            lines.append(f"{entity:<24} not scored: {result['error_messages'][0]}")
            continue
        metrics = result["metrics"]
        cells = [_summary_cell(metrics, prefix) for prefix in ("cle", "pse")]
        laa950 = f"{metrics['laa950_percentage']:.1f} %"
        lines.append(f"{entity:<24} {cells[0]:<32} {cells[1]:<26} {laa950:>8}")
    scored = next((result for result in results if not result["error_messages"]), None)
    if scored:
        lines.append(f"weights: {scored['provenance']['bundle']} (trained on: {scored['provenance']['trained_on']})")
    lines.append(printable(f"{seconds:.1f} s; written to {output}"))
    lines.append(DISCLAIMER)
    return "\n".join(lines)


def _summary_cell(metrics: dict[str, Any], prefix: str) -> str:
    percentage = metrics[f"{prefix}_percentage"]
    extent = "" if percentage is None else f", {percentage:.1f} %"
    return f"{metrics[f'{prefix}_severity_score']} {metrics[f'{prefix}_severity']}{extent}"


def parsed_options(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; what it leaves out may be set by the environment (EMPHYSEMA_DEVICE for --device, and so on)."""
    parser = OneLineParser(
        prog="process.py",
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
            "--lungmask-weights", type=Path, help="with --segment-lungs: let the lungmask network do it, with these weights"
        ),
        parser.add_argument(
            "--weights",
            type=Path,
            help=f"weight bundle; default: {grand_challenge.MODEL_FOLDER} if it is there, else weights/ beside the code",
        ),
        parser.add_argument("--device", choices=get_args(DeviceName), default="auto"),
        parser.add_argument("--precision", choices=get_args(PrecisionName), default="auto"),
        parser.add_argument("--map-type", choices=get_args(MapType), default="uint8", help="default: %(default)s"),
    ]
    flags = [
        parser.add_argument("--preview", action="store_true", help="write a picture of each case too"),
        parser.add_argument("--segment-lungs", action="store_true", help="find the lungs of CTs that have no lung mask"),
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
        parser.error("--ct and --lung-mask go together")
    if parsed.ct is not None and parsed.lung_mask is None and not parsed.segment_lungs:
        parser.error("--ct and --lung-mask go together, unless there is --segment-lungs")
    if parsed.lungmask_weights is not None and not parsed.segment_lungs:
        parser.error("--lungmask-weights goes with --segment-lungs")
    return parsed


def limit_threads() -> None:
    """Use no more threads than the control group grants CPUs: a container may see all cores of a large machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(int(quota) // int(period), 1))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    torch.set_num_threads(cpus)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(cpus)


def main(arguments: list[str] | None = None) -> int:
    start = time.perf_counter()
    options = parsed_options(sys.argv[1:] if arguments is None else arguments)
    set_up_logging()
    limit_threads()
    try:
        outputs = OutputFolder(options.output)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    with contextlib.closing(outputs):
        return run(options, outputs, start)


def run(options: argparse.Namespace, outputs: OutputFolder, start: float) -> int:
    """Score what the options name into a folder that is this run's alone; return the exit code."""
    try:
        if options.ct:
            cases = [Case.of(options.ct, options.lung_mask)]
        else:
            cases = grand_challenge.find_cases(options.input, segment_lungs=options.segment_lungs)
        with stage("weights"):
            places = [options.weights] if options.weights else [grand_challenge.MODEL_FOLDER, WEIGHTS_BESIDE_CODE]
            subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(*places), options.device, options.precision)
        for note in subtyper.notes:
            logger.info("%s", note)
        logger.info("running on %s in %s", subtyper.device, subtyper.precision)
        algorithm = EmphysemaAlgorithm(cases, subtyper, outputs, options.map_type, options.preview, options.lungmask_weights)
        algorithm.process()
    except Exception as error:
        is_input = isinstance(error, InputError)
        message = str(error) if is_input else printable(f"{options.output}: {unexpected(error)}")
        with contextlib.suppress(OSError), outputs:  # a full disk may be what went wrong
            outputs.write_results([failed_result(message)])
        print(message, file=sys.stderr)
        return 2 if is_input else 1
    report(summary(algorithm.results, time.perf_counter() - start, options.output))
    return algorithm.exit_code


def set_up_logging() -> None:
    """Log to stdout, whatever it can encode; a log that cannot be written, as on a full disk, is no reason to lose a result."""
    logging.raiseExceptions = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.captureWarnings(True)


def report(text: str) -> None:
    """Print the run's last words, and give up stdout where nobody reads it any more."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at the end


def end_on_signals() -> None:
    """End on SIGTERM and SIGINT as on an error, which removes what is half-written; the exit code is 128 + the number."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
