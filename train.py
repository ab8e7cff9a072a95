#!/usr/bin/env python3
"""Entry point of training: reads a manifest of scored chest CTs, trains the network, writes a weight bundle.

    python train.py --manifest cohort.csv --output runs/first
    python train.py --output runs/first --resume
    python train.py --output runs/first --export-only

Research software, not a medical device.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from model.cohort.manifest import read_manifest
from model.command_line import exit_code
from model.heap import reuse_freed_memory
from model.training.options import Command, parse


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*when logging on epoch level in distributed setting.*")  # every process knows
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning's own
    reuse_freed_memory()
    return exit_code(lambda: _run(parse(sys.argv[1:] if arguments is None else arguments)))


def _run(command: Command) -> int:
    try:
        bundle = _trained(command)
    except FloatingPointError as error:
        print(f"{error}; expected a finite loss: try a smaller --learning-rate, from the start", file=sys.stderr)
        return 1
    if bundle is not None:
        print(f"bundle: {bundle}")
    return 0


def _trained(command: Command) -> Path | None:
    # Lightning takes seconds to import; a bad manifest shall not have to wait for it.
    options = command.options
    if command.export_only:
        from model.training.export import export_run

        return export_run(command.output, options.name)
    assert options.manifest is not None
    manifest = read_manifest(options.manifest, with_truth=options.needs_truth, needs_training=not options.simulate)
    settled = options.settled(manifest, find_init=command.checkpoint is None)
    from model.training.run import train

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # importing it sets INFO, at which it advertises
    return train(settled, manifest, command.output, resume=command.resume)


if __name__ == "__main__":
    code = main()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Everything is written. Taking a process group down after a peer has gone was seen to wait for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
