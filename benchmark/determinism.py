"""How far a case's percentages and maps differ between numbers of threads, precisions, and devices.

Usage: python benchmark/determinism.py [--case FOLDER] [--weights BUNDLE] [--threads 1 2]

Everything is compared with float32 on one thread of the CPU. Percentages are printed, so that two machines can be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import script_parser
from model import SHIPPED_WEIGHTS
from model.command_line import DeviceName, PrecisionName, exit_code, whole_number
from model.container.grand_challenge import find_cases
from model.imaging.scan import Scan
from model.subtyping import EmphysemaSubtyper, Subtyping
from model.weights import locate_bundle

CPU_PRECISIONS: tuple[PrecisionName, ...] = ("float32", "bfloat16")
GPU_PRECISIONS: tuple[PrecisionName, ...] = ("float32", "bfloat16", "float16")


def percentages(result: Subtyping) -> list[float]:
    """Both subtypes' percentages of the whole lung, then those of each region."""
    values = [finding.percentage for finding in result.findings]
    values += [value for finding in result.findings for value in finding.region_percentages.values()]
    return [value for value in values if value is not None]


def compared(result: Subtyping, reference: Subtyping) -> str:
    """Largest difference of a percentage (points) and of a voxel (levels of 255), and the share of voxels that differ."""
    points = max(abs(one - other) for one, other in zip(percentages(result), percentages(reference), strict=True))
    maps = [np.stack([finding.activation_map for finding in each.findings]).astype(int) for each in (result, reference)]
    differences = np.abs(maps[0] - maps[1])
    return f"{points:>10.4f} {differences.max():>8} {100 * np.mean(differences > 0):>9.4f} %"


def runs(threads: Sequence[int], cuda: bool) -> list[tuple[DeviceName, PrecisionName, int]]:
    """Device, precision and threads of each run. The first, float32 on one thread of the CPU, is what all are compared with."""
    cpu: list[tuple[DeviceName, PrecisionName, int]] = [
        ("cpu", precision, number) for precision in CPU_PRECISIONS for number in dict.fromkeys(threads)
    ]
    reference: tuple[DeviceName, PrecisionName, int] = ("cpu", "float32", 1)
    others = [each for each in cpu if each != reference]
    return [reference, *others, *(("cuda", precision, 1) for precision in GPU_PRECISIONS if cuda)]


def run(options: argparse.Namespace) -> None:
    """Print a line for each run."""
    bundle = locate_bundle(options.weights)
    ct, lung_mask = find_cases(options.case)[0].files
    scan = Scan.read(ct, lung_mask)
    print(f"{'':<26} {'CLE %':>9} {'PSE %':>9} {'points':>10} {'levels':>8} {'voxels':>11}")
    reference: Subtyping | None = None
    for device, precision, threads in runs(options.threads, torch.cuda.is_available()):
        torch.set_num_threads(threads)
        result = EmphysemaSubtyper.from_bundle(bundle, device, precision).predict(scan)
        reference = reference or result
        cle, pse = percentages(result)[:2]
        name = f"{device} {precision} {threads} thread{'s' if threads > 1 else ''}"
        print(f"{name:<26} {cle:>9.4f} {pse:>9.4f} {compared(result, reference)}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--case", type=Path, default=ROOT / "test/input")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--threads", type=whole_number(1), nargs="+", default=[1, 2])
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
