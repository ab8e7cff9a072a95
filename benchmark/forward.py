"""Time the network's forward pass on a GPU: plain, with algorithms of cuDNN chosen by trial, as a CUDA graph, and compiled.

Usage: python benchmark/forward.py [--base-width 64] [--precision float16 bfloat16] [--ways plain graph] [--json]

The input is one scan of 128 x 224 x 288 that lies in the GPU's memory. A process of process.py runs the network once for each
scan, so that the first pass counts as much as the following ones: `first_ms` is what a way costs before and in its first pass.
Every way runs in a process of its own, since libraries keep what they have loaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import checking, script_parser, timed_process
from benchmark.complexity import measure
from benchmark.inference import printed
from model.command_line import exit_code, whole_number
from model.errors import InputError
from model.network import EmphysemaNetwork, NetworkConfig, fold_batch_normalisation
from model.preprocessing import PAPER_INPUT_SHAPE
from model.subtyping import choose_device, choose_precision, place_network
from model.weights import untrained_bundle

WAYS = ("plain", "trial", "graph", "compiled")
PASSES = 20


def placed_network(base_width: int, precision: torch.dtype) -> EmphysemaNetwork:
    """An untrained network, folded and placed as `EmphysemaSubtyper` does it."""
    network = fold_batch_normalisation(untrained_bundle(base_width, seed=0)[0])
    place_network(network, torch.device("cuda"), precision)
    return network


def forward(way: str, network: EmphysemaNetwork, image: Tensor) -> Callable[[], object]:
    """A function that runs the network on `image`."""
    if way == "trial":
        torch.backends.cudnn.benchmark = True
    if way == "compiled":
        compiled = torch.compile(network)
        return lambda: compiled(image)
    if way == "graph":
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            network(image)  # a graph cannot hold what libraries do in their first call
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            network(image)
        return graph.replay
    return lambda: network(image)


@torch.no_grad()
def timed(way: str, base_width: int, precision: torch.dtype) -> dict[str, Any]:
    """Milliseconds of the first pass with all that it needs, and of the following ones (median); GB of GPU memory at most."""
    network = placed_network(base_width, precision)
    image = torch.rand(1, 1, *PAPER_INPUT_SHAPE, device="cuda").to(precision, memory_format=torch.channels_last_3d)
    torch.cuda.synchronize()
    start = time.perf_counter()
    run = forward(way, network, image)
    run()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(PASSES)]
    for before, after in events:
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    milliseconds = statistics.median(before.elapsed_time(after) for before, after in events)
    operations = 2e9 * measure(NetworkConfig("resnet34", "regression", base_width)).gmacs
    return {
        "precision": str(precision).removeprefix("torch."),
        "way": way,
        "first_ms": round(1000 * first),
        "following_ms": round(milliseconds, 2),
        "teraflops": round(operations / milliseconds / 1e9, 1),
        "gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def run(options: argparse.Namespace) -> None:
    """Time every way in every precision, and print the rows.

    Raises:
        InputError: there is no GPU, or no network of this width.
    """
    with checking("--base-width"):
        NetworkConfig("resnet34", "regression", options.base_width)
    device, notes = choose_device("auto")
    if device.type != "cuda":
        raise InputError("forward.py", ", ".join(notes) or "there is no GPU", "a GPU; benchmark/inference.py times the CPU")
    if len(options.precision) == len(options.ways) == 1:
        rows = [timed(options.ways[0], options.base_width, choose_precision(options.precision[0], device))]
    else:
        rows = []
        for precision in options.precision:
            for way in options.ways:
                command = [__file__, "--precision", precision, "--ways", way, "--json", "--base-width", str(options.base_width)]
                rows += json.loads(timed_process(command).output)
    print(json.dumps(rows) if options.json else f"{torch.cuda.get_device_name()}\n\n{printed(rows)}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--base-width", type=whole_number(2), default=64)
    parser.add_argument("--precision", nargs="+", choices=("float16", "bfloat16", "float32"), default=["float16", "bfloat16"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
