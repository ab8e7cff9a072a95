#!/usr/bin/env python3
"""What the viewer sends to a browser for one scan, and the processor time that it takes to make it.

The scan is synthetic: two ellipsoid lungs with noise. Its content hardly matters: the CT is not compressed.
Example: `python benchmark/viewer.py --shape 600 512 512`
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.container.results import failed_result
from model.viewing.case import CaseFiles, ViewedCase
from model.viewing.volumes import levels, start_mm

SPACING_MM = (0.6, 0.7, 0.7)


def made_case(shape: tuple[int, int, int]) -> ViewedCase:
    """Lungs that take the share of the field of view that they have in a scan of the chest; emphysema in a fifth of them."""
    generator = np.random.default_rng(0)
    z, y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    lung = np.zeros(shape, bool)
    for side in (-1, 1):
        across = ((y[:, None] / 0.6) ** 2 + ((x[None, :] - side * 0.4) / 0.32) ** 2)[None]
        lung |= across + (z[:, None, None] / 0.9) ** 2 <= 1
    hounsfield = np.where(lung, np.int16(-860), np.int16(40))
    for plane in hounsfield:
        plane += generator.normal(0, 30, plane.shape).astype(np.int16)
    active = np.zeros(shape, np.uint8)
    active[: shape[0] // 5] = 200
    active[~lung] = 0
    maps = {"centrilobular": active, "paraseptal": active[::-1].copy()}
    return ViewedCase(failed_result("synthetic"), hounsfield, lung, maps, SPACING_MM, CaseFiles({}))


def main() -> None:
    """Print a line for each level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(600, 512, 512), metavar=("Z", "Y", "X"), help="voxels")
    z, y, x = parser.parse_args().shape
    case = made_case((z, y, x))
    print(f"{z} x {y} x {x} voxels")
    print("level   sent (MB)   of which the CT (MB)   processor time (s)   wall time (s)")
    made = levels(case)
    for number in (1, 2):
        processor, wall = time.process_time(), time.perf_counter()
        files = next(made, None)
        if files is None:
            break
        seconds = time.process_time() - processor, time.perf_counter() - wall
        sizes = [sum(map(len, files.values())) / 1e6, len(files["ct"]) / 1e6]
        print(f"{number:5d} {sizes[0]:11.1f} {sizes[1]:22.1f} {seconds[0]:20.2f} {seconds[1]:15.2f}")
    processor = time.process_time()
    start_mm(case)
    print(f"place of the cross-hair: {time.process_time() - processor:.2f} s of processor time")


if __name__ == "__main__":
    main()
