"""Show how many samples a second the training step and the data pipeline manage apart, and which of the two waits.

Usage: python benchmark/training.py [--base-width 16] [--batch 2] [--tile Z Y X] [--workers 2 | --resident] [--steps 5] [--json]

Prepared cases are made up and kept in a temporary folder; the network is drawn at random. A sample is a whole scan, or
with --tile one tile of a scan, with truth maps, augmented as in training; with --resident on the device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.command import checking, script_parser
from model.cohort.manifest import Scores, TrainingCase
from model.command_line import DeviceName, exit_code, whole_number
from model.fleischner import SUBTYPES
from model.network import BackboneName, NetworkConfig, build_network
from model.preprocessing import PAPER_PROFILE
from model.subtyping import choose_device, choose_precision
from model.training.augmentation import AugmentationRanges
from model.training.cache import PreparedCase, cache_path, write_case
from model.training.dataset import Batch, CohortDataset, Draw, stacked
from model.training.recipes import PAPER_RECIPE
from model.training.strategies import VoxelStrategy
from model.training.tiles import check_tile_shape

CASES = 4
WARM_UP = 2


def made_up_cases(folder: Path) -> list[TrainingCase]:
    """A few prepared cases in a cache, of noise in two boxes of lung."""
    generator = torch.Generator().manual_seed(0)
    lung = torch.zeros(PAPER_PROFILE.input_shape, dtype=torch.bool)
    lung[8:-8, 24:-24, 16:128] = True
    lung[8:-8, 24:-24, 160:-16] = True
    cases = []
    for place in range(CASES):
        scan = folder / f"{place}.mha"
        scan.touch()
        case = TrainingCase(str(place), scan, scan, Scores(3, 1), "train", (scan, scan), None)
        image = torch.randint(0, 256, lung.shape, dtype=torch.uint8, generator=generator)
        truth = torch.randint(0, 256, (len(SUBTYPES), *PAPER_PROFILE.map_shape), dtype=torch.uint8, generator=generator)
        prepared = PreparedCase(image, 0.0, 1.0, lung, None, lung & (image < 20), truth, (300.0, 250.0, 350.0), 5.0, None)
        write_case(prepared, cache_path(case, PAPER_PROFILE, folder))
        cases.append(case)
    return cases


def pipeline_rate(dataset: CohortDataset, batch: int, workers: int, batches: int) -> float:
    """Samples a second that `workers` processes, or none, prepare while no network is trained."""
    draws = [Draw(place % CASES, 0, place // CASES) for place in range(batch * (batches + WARM_UP))]
    loader = DataLoader(dataset, batch_size=batch, sampler=draws, num_workers=workers, collate_fn=stacked)
    start = 0.0
    for index, _ in enumerate(loader):
        if index == WARM_UP - 1:
            synchronise()
            start = time.perf_counter()
    synchronise()
    return batch * batches / (time.perf_counter() - start)


def synchronise() -> None:
    """Wait until a GPU, if there is one, has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step_rate(
    config: NetworkConfig, sample: Batch, device: torch.device, precision: torch.dtype, batch: int, steps: int
) -> float:
    """Samples a second of the training step alone, median over steps."""
    network = build_network(config).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    strategy = VoxelStrategy(PAPER_RECIPE, (torch.ones(6), torch.ones(3))).to(device)
    optimiser = torch.optim.Adam(network.parameters(), PAPER_RECIPE.learning_rate)
    columns = (None if part is None else part.to(device) for part in stacked([sample] * batch))
    samples = Batch(*columns)  # type: ignore[arg-type]
    seconds = []
    for _ in range(steps + WARM_UP):
        start = time.perf_counter()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = network(samples.image)
            loss = torch.stack(list(strategy.terms(logits, samples).values())).sum(dim=0).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return batch / statistics.median(seconds[WARM_UP:])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both; samples a second, and GB of GPU memory at the most.

    Raises:
        InputError: the device cannot be had, or there is no network or tile of this size.
    """
    device, _ = choose_device(options.device)
    precision = choose_precision("auto", device)
    tile = None if options.tile is None else tuple(options.tile)
    with checking("--base-width"):
        config = NetworkConfig(options.backbone, "regression", options.base_width)
    if tile is not None:
        with checking("--tile"):
            check_tile_shape(cast(Any, tile), PAPER_PROFILE.input_shape)
    with tempfile.TemporaryDirectory() as folder:
        cases = made_up_cases(Path(folder))
        dataset = CohortDataset(
            cases, PAPER_PROFILE, Path(folder), ranges=AugmentationRanges(), with_truth=True, tile=cast(Any, tile)
        )
        if options.resident:
            dataset.keep_on(device)
        pipeline = pipeline_rate(dataset, options.batch, 0 if options.resident else options.workers, options.steps)
        step = step_rate(config, dataset[Draw(0, 0, 0)], device, precision, options.batch, options.steps)
    result: dict[str, Any] = {
        "device": device.type,
        "precision": str(precision).removeprefix("torch."),
        "sample": "tile of " + " x ".join(map(str, tile)) if tile else "whole scan",
        "network": f"{options.backbone}, base width {options.base_width}",
        "batch": options.batch,
        "pipeline_samples_per_second": round(pipeline, 3),
        "step_samples_per_second": round(step, 3),
        "step_ms": round(1000 * options.batch / step),
        "waits": "the step for the pipeline" if pipeline < step else "the pipeline for the step",
    }
    if device.type == "cuda":
        result["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return result


def run(options: argparse.Namespace) -> None:
    """Measure, and print what was found."""
    result = measure(options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        width = max(map(len, result))
        for name, value in result.items():
            print(f"{name:<{width}}  {value}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--backbone", choices=get_args(BackboneName), default="resnet34")
    parser.add_argument("--base-width", type=whole_number(2), default=16)
    parser.add_argument("--batch", type=whole_number(1), default=2)
    parser.add_argument("--tile", type=whole_number(1), nargs=3, metavar=("Z", "Y", "X"))
    parser.add_argument("--workers", type=whole_number(0), default=2)
    parser.add_argument("--resident", action="store_true", help="keep cases on the device and augment them there")
    parser.add_argument("--steps", type=whole_number(1), default=5)
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
