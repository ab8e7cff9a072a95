"""Measure what it costs that maps return to the scan with aligned corners, on scans whose truth is known voxel by voxel.

Usage: python benchmark/placement.py --manifest cohort.csv [--split test] [--cases N] [--input-shape Z Y X]

The truth itself is the map: it is brought to the maps' grid as training does, taken back to the scan, cut at one half and
compared with the truth that it came from. What is lost is lost by the two resamplings. A map voxel k can stand for two places:

    even       voxel 2 k of the network's input: targets of training with scores, and the lung of the percentages
    averaged   its share of the crop: truth maps of --strategy voxels

and can be put back to two places:

    corners    first and last map voxel lie on the first and last voxel of the crop
    matching   each map voxel lies where it stands
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.command import checking, script_parser
from model.cohort.manifest import Split, TrainingCase, read_manifest
from model.command_line import OneLineParser, exit_code, whole_number
from model.errors import InputError
from model.fleischner import SUBTYPES
from model.imaging.scan import Scan
from model.lungs.regions import Regions
from model.preprocessing import PAPER_INPUT_SHAPE, PAPER_PROFILE, Profile, Shape, check_input_shape, map_on_scan
from model.training.cache import read_truth

Volume = npt.NDArray[np.float32]
Positions = Callable[[int, int], npt.NDArray[np.float64]]
"""From the sizes of map and crop along an axis to the place on the map's axis of each voxel of the crop."""


def corners(size: int, count: int) -> npt.NDArray[np.float64]:
    """As `map_on_scan` places maps."""
    return np.linspace(0, size - 1, count)


def even(size: int, count: int) -> npt.NDArray[np.float64]:
    """Map voxel k on input voxel 2 k; the input's corners are the crop's."""
    return np.clip(np.linspace(0, 2 * size - 1, count) / 2, 0, size - 1)


def averaged(size: int, count: int) -> npt.NDArray[np.float64]:
    """Map voxel k in the middle of its share of the crop."""
    return np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)


def restored(activation: Volume, shape: tuple[int, ...], positions: Positions) -> Volume:
    """Trilinear, one axis after the other."""
    for axis, (size, count) in enumerate(zip(activation.shape, shape, strict=True)):
        place = positions(size, count)
        lower = np.minimum(place.astype(np.intp), size - 2)
        share = np.expand_dims((place - lower).astype(np.float32), tuple(other for other in range(3) if other != axis))
        first = np.take(activation, lower, axis)
        activation = first + share * (np.take(activation, lower + 1, axis) - first)
    return activation


def maps_of(truth: Volume, profile: Profile) -> dict[str, Volume]:
    """The truth of a crop on the maps' grid, for both things that a map voxel can stand for."""
    volume = torch.from_numpy(np.ascontiguousarray(truth))[None, None]
    fine: Tensor = functional.interpolate(volume, profile.input_shape, mode="trilinear", align_corners=True)[0, 0]
    return {
        "even": fine[::2, ::2, ::2].numpy(),
        "averaged": functional.interpolate(volume, profile.map_shape, mode="area")[0, 0].numpy(),
    }


def dice(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def measure(case: TrainingCase, profile: Profile) -> list[tuple[str, str, str, float, float]]:
    """Rows of map, placement, subtype, Dice at one half, and the largest error of the percentage of one lung, in points."""
    scan = Scan.read(case.ct, case.lung_mask)
    regions = Regions.of(scan)
    box = scan.lung_box()
    lung = scan.lung[box]
    assert case.truth is not None
    rows = []
    for subtype, path in zip(SUBTYPES, case.truth, strict=True):
        truth = read_truth(path, scan)[box] > 0
        if not truth.any():
            continue
        for name, activation in maps_of(truth.astype(np.float32), profile).items():
            for placement, positions in (("corners", corners), ("matching", {"even": even, "averaged": averaged}[name])):
                back = restored(activation, lung.shape, positions)
                if (name, placement) != ("averaged", "matching"):  # what the software writes
                    whole = torch.from_numpy(np.ascontiguousarray(activation))
                    written = map_on_scan(whole, box, scan, "float32", "corners" if placement == "corners" else "even")[box]
                    assert np.allclose(written[lung], back[lung], atol=1e-4)
                errors = []
                for members in regions.members.values():
                    inside = np.isin(regions.labels, list(members))
                    errors.append(abs(100 * float(back[inside].mean() - truth[inside].mean())))
                rows.append((name, placement, subtype.name, dice((back >= 0.5) & lung, truth), max(errors)))
    return rows


def build_parser() -> OneLineParser:
    """The command line."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="of train.py, with truth maps")
    parser.add_argument("--split", choices=get_args(Split), default="test", help="default: %(default)s")
    parser.add_argument("--cases", type=whole_number(1), help="default: all of them")
    parser.add_argument("--input-shape", type=whole_number(1), nargs=3, default=PAPER_INPUT_SHAPE, metavar=("Z", "Y", "X"))
    return parser


def table(rows: list[tuple[str, str, str, float, float]]) -> list[str]:
    """Means over all scans that have the subtype, as Markdown."""
    lines = [
        "| a map voxel is | it is put back | subtype | scans | Dice | error of a lung's percentage |",
        "|---|---|---|---:|---:|---:|",
    ]
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for name, placement, subtype, overlap, error in rows:
        groups.setdefault((name, placement, subtype), []).append((overlap, error))
    for key, figures in sorted(groups.items()):
        overlap, error = np.mean(figures, axis=0)
        lines.append(f"| {' | '.join(key)} | {len(figures)} | {overlap:.4f} | {error:.3f} |")
    return lines


def run(options: argparse.Namespace) -> None:
    """Measure every scan and print the table.

    Raises:
        InputError: the manifest cannot be used, has no scans with truth in the split, or the shape is of no network's input.
    """
    shape: Shape = tuple(options.input_shape)
    with checking("--input-shape"):
        check_input_shape(shape)
    cases = read_manifest(options.manifest, with_truth=True, needs_training=False).of(options.split)[: options.cases]
    if not cases or any(case.truth is None for case in cases):
        raise InputError(options.manifest, f"no scans with truth maps in {options.split}", "scans with truth maps")
    profile = replace(PAPER_PROFILE, input_shape=shape)
    print("\n".join(table([row for case in tqdm(cases, unit="scan", disable=None) for row in measure(case, profile)])))


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
