"""Time process.py stage by stage, from process start to exit, beside the least that the machine needs for it.

Usage: python benchmark/inference.py --lungs MASK [--runs 3] [--profile released] [--base-width 64] [--int8] [--json]
       python benchmark/inference.py --lungs MASK --growth      # against the number of voxels
       python benchmark/inference.py --lungs MASK --many 4      # several scans in one run, against one after another

The case is made from MASK: -860 HU inside, 40 HU around it, noise. The network is ResNet-34 with random weights: time does not
depend on them. Figures are medians over the runs; every run is a process of its own.

The floor is measured in the same run: importing torch, reading the CT with SimpleITK, and the network's arithmetic at the rate
of a matrix product of 4096 x 4096 x 4096 in the same precision. What no floor is given for could be free.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import checking, script_parser, timed_process
from benchmark.complexity import measure
from model.command_line import exit_code, whole_number
from model.imaging.readers import read_volume
from model.network import NetworkConfig
from model.preprocessing import PROFILES
from model.stages import Stage, parse_stage_line
from model.subtyping import choose_device, choose_precision
from model.training.quantize import in_eight_bits
from model.weights import Bundle, EightBitBundle, has_eight_bit, read_bundle, untrained_bundle, write_bundle

LUNG_HU, BODY_HU, NOISE_HU = -860, 40, 30
GROWTH = (0.25, 0.5, 1.0, 2.0, 4.0)
MATRIX = 4096


@dataclass(frozen=True)
class Run:
    """One run of process.py: seconds of each stage, from process start to exit, and of all cores; peak memory in GB."""

    stages: dict[Stage, float]
    seconds: float
    core_seconds: float
    gigabytes: float


def write_case(mask: sitk.Image, folder: Path, name: str) -> None:
    """Lay out a case as the platform does; files are compressed, as the platform's are."""
    lungs = sitk.GetArrayFromImage(mask) > 0
    noise = np.random.default_rng(0).standard_normal(lungs.shape, np.float32) * NOISE_HU
    ct = sitk.GetImageFromArray((np.where(lungs, LUNG_HU, BODY_HU) + noise).astype(np.int16))
    ct.CopyInformation(mask)
    for kind, image in (("ct", ct), ("lungs", mask)):
        path = folder / "images" / kind / f"{name}.mha"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path), useCompression=True)


def resized(mask: sitk.Image, factor: float) -> sitk.Image:
    """The mask with `factor` times as many voxels in the same space."""
    size = [max(round(count * factor ** (1 / 3)), 1) for count in mask.GetSize()]
    spacing = [old * count / new for old, count, new in zip(mask.GetSpacing(), mask.GetSize(), size, strict=True)]
    return sitk.Resample(mask, size, sitk.Transform(), sitk.sitkNearestNeighbor, mask.GetOrigin(), spacing, mask.GetDirection())


def run(case: Path, weights: Path, output: Path) -> Run:
    """Run process.py once, in 8-bit integers if the bundle has them.

    Raises:
        ChildProcessError: it failed.
    """
    options = [f"--input={case}", f"--output={output}", f"--weights={weights}"]
    options += ["--precision=int8"] * has_eight_bit(weights)
    process = timed_process([ROOT / "process.py", *options])
    return Run(logged_stages(process.output), process.seconds, process.core_seconds, process.memory / 1e9)


def calibrated_on_noise(bundle: Bundle) -> EightBitBundle:
    """The bundle's network in 8-bit integers, calibrated on noise: fast to make, and as fast as any."""
    shape = bundle.metadata.input_shape
    image = np.random.default_rng(0).random((1, 1, *shape), np.float32)
    return in_eight_bits(bundle, [image], correct_biases=False)


def logged_stages(log: str) -> dict[Stage, float]:
    """Seconds of every stage that a log of process.py holds, summed over its scans, in the order of `Stage`."""
    stages: dict[Stage, float] = {}
    for found in filter(None, map(parse_stage_line, log.splitlines())):
        stages[found[0]] = stages.get(found[0], 0.0) + found[1]
    return {stage: stages[stage] for stage in Stage if stage in stages}


def median_run(runs: list[Run]) -> Run:
    """Medians of every figure."""
    stages = {stage: statistics.median(part.stages[stage] for part in runs) for stage in runs[0].stages}
    middle = (statistics.median(getattr(part, figure) for part in runs) for figure in ("seconds", "core_seconds", "gigabytes"))
    return Run(stages, *middle)


def import_seconds() -> float:
    """Seconds of a Python process that imports torch and nothing else."""
    return timed_process(["-c", "import torch"]).seconds


def read_seconds(case: Path) -> float:
    """Seconds that SimpleITK takes to read the CT."""
    (path,) = (case / "images" / "ct").iterdir()
    start = time.perf_counter()
    sitk.ReadImage(str(path))
    return time.perf_counter() - start


def matrix_rate() -> tuple[float, str]:
    """Floating-point operations a second of a matrix product on the device and in the precision that inference chooses."""
    device, _ = choose_device("auto")
    precision = choose_precision("auto", device)
    left, right = (torch.randn(MATRIX, MATRIX, device=device, dtype=precision) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * MATRIX**3 / min(seconds), f"{device}, {str(precision).removeprefix('torch.')}"


def stage_table(case: Path, weights: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The stages of one case, with floors."""
    runs, imports, reads = [], [], []
    for index in range(options.runs):
        imports.append(import_seconds())
        reads.append(read_seconds(case))
        runs.append(run(case, weights, folder / f"output-{index}"))
    middle = median_run(runs)
    rate, where = matrix_rate()
    operations = 2e9 * measure(NetworkConfig("resnet34", "regression", options.base_width)).gmacs
    floors = {"import": statistics.median(imports), "read": statistics.median(reads), "network": operations / rate}
    stages = {str(stage): value for stage, value in middle.stages.items()}
    seconds = {"import": middle.seconds - sum(stages.values())} | stages
    rows = {
        name: {
            "seconds": round(value, 2),
            "share": round(value / middle.seconds, 3),
            "floor": round(floors[name], 2) if name in floors else None,
            "ratio": round(value / floors[name], 2) if name in floors else None,
        }
        for name, value in seconds.items()
    }
    floor = sum(floors.values())
    rows["in all"] = {
        "seconds": round(middle.seconds, 2),
        "share": 1.0,
        "floor": round(floor, 2),
        "ratio": round(middle.seconds / floor, 2),
    }
    return {
        "on": where,
        "matrix_teraflops": round(rate / 1e12, 3),
        "network_teraflop": round(operations / 1e12, 3),
        "runs": options.runs,
        "peak_memory_gb": round(middle.gigabytes, 2),
        "stages": rows,
    }


def growth_table(mask: sitk.Image, weights: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and memory against the number of voxels."""
    rows = []
    for factor in GROWTH:
        grown = resized(mask, factor)
        case = folder / f"case-{factor}"
        write_case(grown, case, "scan")
        middle = median_run([run(case, weights, folder / f"output-{factor}-{index}") for index in range(options.runs)])
        rows.append(
            {
                "voxels": float(np.prod(grown.GetSize())),
                "seconds": round(middle.seconds, 2),
                "network": middle.stages[Stage.NETWORK],
                "around_the_network": round(middle.seconds - middle.stages[Stage.NETWORK], 2),
                "peak_memory_gb": round(middle.gigabytes, 2),
            }
        )
    return rows


def many_table(mask: sitk.Image, weights: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Several scans in one run of process.py, against a run for each."""
    single, several = folder / "single", folder / "several"
    write_case(mask, single, "scan0")
    for index in range(options.many):
        write_case(mask, several, f"scan{index}")
    alone = median_run([run(single, weights, folder / f"alone-{index}") for index in range(options.runs)])
    together = median_run([run(several, weights, folder / f"together-{index}") for index in range(options.runs)])
    each, network = together.seconds / options.many, together.stages[Stage.NETWORK]
    cores = len(os.sched_getaffinity(0))
    return {
        "scans": options.many,
        "seconds_a_scan_in_a_run_each": round(alone.seconds, 2),
        "seconds_a_scan_in_one_run": round(each, 2),
        "throughput": round(alone.seconds / each, 2),
        "ratio_to_network": round(together.seconds / network, 2),
        "ratio_if_no_core_idled": round(together.core_seconds / cores / network, 2),
        "peak_memory_gb": round(together.gigabytes, 2),
    }


def printed(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    lines += [f"| {' | '.join('' if value is None else str(value) for value in row.values())} |" for row in rows]
    return "\n".join(lines)


def run_script(options: argparse.Namespace) -> None:
    """Make the case and the weights, measure, and print the table that is asked for.

    Raises:
        InputError: the mask cannot be read, or there is no network of this width.
        ChildProcessError: process.py failed.
    """
    with checking("--base-width"):
        NetworkConfig("resnet34", "regression", options.base_width)
    mask = read_volume(options.lungs).image
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network, metadata = untrained_bundle(base_width=options.base_width, seed=0)
        weights = folder / "weights"
        metadata = replace(metadata, profile=options.profile)
        write_bundle(weights, network, metadata)
        if options.int8:
            write_bundle(weights, network, metadata, calibrated_on_noise(read_bundle(weights)))
        if options.growth:
            result: Any = growth_table(mask, weights, folder, options)
            text = printed(result)
        elif options.many:
            result = many_table(mask, weights, folder, options)
            text = printed([result])
        else:
            write_case(mask, folder / "case", "scan")
            result = stage_table(folder / "case", weights, folder, options)
            facts = {key: value for key, value in result.items() if key != "stages"}
            rows = [{"stage": stage, **row} for stage, row in result["stages"].items()]
            text = printed(rows) + "\n\n" + "\n".join(f"{key}: {value}" for key, value in facts.items())
    print(json.dumps(result, indent=2) if options.json else text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--lungs", type=Path, required=True, help="lung mask that the case is made from")
    parser.add_argument("--runs", type=whole_number(1), default=3)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="released")
    parser.add_argument("--base-width", type=whole_number(2), default=64)
    parser.add_argument("--int8", action="store_true", help="with the network in 8-bit integers")
    parser.add_argument("--growth", action="store_true", help="against the number of voxels instead")
    parser.add_argument("--many", type=whole_number(1), metavar="N", help="N scans in one run instead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run_script(options))


if __name__ == "__main__":
    sys.exit(main())
