#!/usr/bin/env python3
"""Entry point of training: reads a manifest of scored chest CTs, trains the network, writes a weight bundle.

    python train.py --manifest cohort.csv --output runs/first
    python train.py --manifest cohort.csv --output runs/first --resume
    python train.py --output runs/first --export-only

Research software, not a medical device.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from model.cohort.manifest import Manifest, read_manifest
from model.command_line import DeviceName, OneLineParser, PrecisionName
from model.errors import InputError
from model.network import BackboneName, HeadName, NetworkConfig
from model.preprocessing import PAPER_INPUT_SHAPE, PROFILES, check_input_shape
from model.subtyping import choose_device, choose_precision
from model.training.recipes import OPTIONS, PAPER_RECIPE, RECIPES, Recipe
from model.training.settings import MONITORS, RunSettings
from model.training.tiles import check_tile_shape
from model.weights import locate_bundle, read_bundle

SUPERVISIONS = ("scores", "voxels")


def build_parser() -> OneLineParser:
    """The command line; every option of a recipe is one of it."""
    parser = OneLineParser(
        prog="train.py",
        description="Train the emphysema network from a manifest (columns: entity, ct, lung_mask, centrilobular, paraseptal, "
        "split; or COPDGene's own) and write a weight bundle. Research software, not a medical device.",
    )
    parser.add_argument("--manifest", type=Path, help="CSV; paths in it are relative to it")
    parser.add_argument("--output", type=Path, required=True, help="the run's folder: checkpoints, logs, pictures, bundle")
    parser.add_argument("--resume", action="store_true", help="go on from the last finished epoch of the run in --output")
    parser.add_argument("--export-only", action="store_true", help="write the bundle of the run in --output as it stands")
    parser.add_argument("--cache", type=Path, help="prepared scans; default: a folder cache beside the manifest")

    what = parser.add_argument_group("what is trained")
    what.add_argument("--strategy", choices=get_args(HeadName), default="regression", help="default: %(default)s")
    what.add_argument("--backbone", choices=get_args(BackboneName), default="resnet34", help="default: %(default)s")
    what.add_argument("--base-width", type=int, default=64, help="filters of the first convolution, default: %(default)s")
    what.add_argument("--profile", choices=sorted(PROFILES), default="paper", help="of preprocessing, default: %(default)s")
    what.add_argument(
        "--input-shape",
        type=int,
        nargs=3,
        default=PAPER_INPUT_SHAPE,
        metavar=("Z", "Y", "X"),
        help="size of the network's input in voxels, default: the paper's 128 224 288",
    )
    what.add_argument("--init", type=Path, help="start from the weights of this bundle")

    what.add_argument(
        "--freeze-statistics",
        action="store_true",
        help="normalise by the statistics of --init, as inference will, instead of each batch's own: for a run's last epochs",
    )
    what.add_argument(
        "--head-alone",
        action="store_true",
        help="train the last convolution of --init alone: after tiles, a few whole scans set how readily the maps say yes",
    )

    how = parser.add_argument_group("how it is trained")
    how.add_argument(
        "--average",
        type=float,
        default=0.0,
        metavar="X",
        help="judge and keep a running average of the weights, of which each step keeps the part X (such as 0.998): steps on "
        "small batches are noisy; default: the weights themselves",
    )
    how.add_argument("--recipe", choices=sorted(RECIPES), default=PAPER_RECIPE.name, help="default: %(default)s")
    how.add_argument(
        "--supervision",
        choices=SUPERVISIONS,
        default="scores",
        help="voxels: truth maps take the place of the three losses; default: %(default)s",
    )
    how.add_argument(
        "--tile",
        type=int,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="train on tiles of this many voxels of the network's input; needs --supervision voxels",
    )
    how.add_argument(
        "--tiles-per-scan",
        type=int,
        default=1,
        metavar="N",
        help="tiles that an epoch draws of each scan, default: %(default)s",
    )
    how.add_argument(
        "--slab",
        type=int,
        metavar="N",
        help="train on N neighbouring slices, whole, of scans without truth maps whose slices are all the same (column "
        "uniform_slices of the manifest)",
    )
    how.add_argument(
        "--weak-batch",
        type=int,
        metavar="N",
        help="cases in a batch where samples have another shape than the first kind's (tiles before whole scans before slabs); "
        "default: --batch",
    )
    how.add_argument(
        "--weak-every",
        type=int,
        default=1,
        metavar="K",
        help="after K batches of the first kind comes one of another; with --accumulate K+1, a step sees both; "
        "default: %(default)s",
    )
    how.add_argument(
        "--simulate",
        type=int,
        default=0,
        metavar="N",
        help="train on simulated cases too, N of them new in each epoch, made by --workers processes meanwhile; needs "
        "--supervision voxels",
    )
    how.add_argument(
        "--simulated-pool",
        type=int,
        metavar="P",
        help="simulated cases that an epoch is trained on; the N new ones take the place of the oldest; default: N",
    )
    how.add_argument(
        "--monitor",
        choices=sorted(MONITORS),
        default="kappa",
        help="what early stopping and the best epoch follow on the validation set, default: %(default)s",
    )
    how.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True, help="default: yes")
    how.add_argument("--seed", type=int, default=0)
    for option in OPTIONS:
        _add_recipe_option(how, option.name, option.metadata["help"], option.default)

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=get_args(DeviceName), default="auto", help="default: %(default)s")
    machine.add_argument("--precision", choices=get_args(PrecisionName), default="auto", help="default: %(default)s")
    machine.add_argument("--devices", type=int, default=1, help="devices (or CPU processes) on each machine")
    machine.add_argument(
        "--nodes",
        type=int,
        default=1,
        help="machines; start the same command on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK set",
    )
    machine.add_argument("--accumulate", type=int, default=1, help="batches whose gradients are summed before a step")
    machine.add_argument("--workers", type=int, default=2, help="processes that prepare scans, default: %(default)s")

    bundle = parser.add_argument_group("what the bundle says of itself")
    bundle.add_argument("--name", help="default: the name of --output")
    bundle.add_argument("--trained-on", help="the data in a few words; default: their number and the manifest's name")
    bundle.add_argument("--licence", default="not stated", help="terms that the weights are given under")
    return parser


def _add_recipe_option(group: Any, name: str, help_text: str, default: Any) -> None:
    values = ", ".join(f"{getattr(recipe, name)} in {recipe.name}" for recipe in RECIPES.values())
    options: dict[str, Any] = {"help": f"{help_text} ({values})".replace("%", "%%"), "default": None}
    if isinstance(default, bool):
        options["action"] = argparse.BooleanOptionalAction
    else:
        options |= {"type": type(default), "metavar": "N" if isinstance(default, int) else "X"}
    group.add_argument(f"--{name.replace('_', '-')}", **options)


def chosen_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that was asked for, with the options that were given beside it."""
    recipe = RECIPES[options.recipe]
    given = {option.name: getattr(options, option.name) for option in OPTIONS if getattr(options, option.name) is not None}
    return replace(recipe, **given)


def chosen_settings(options: argparse.Namespace, manifest: Manifest, network: NetworkConfig, recipe: Recipe) -> RunSettings:
    """Settle everything that was left to `auto`.

    Raises:
        InputError: a device that cannot be had, or a bundle that cannot be read.
    """
    device, notes = choose_device(options.device)
    for note in notes:
        print(note)
    if device.type == "cuda" and options.devices > torch.cuda.device_count():
        raise InputError("--devices", f"{options.devices} are asked for", f"at most the {torch.cuda.device_count()} GPUs here")
    precision = str(choose_precision(options.precision, device)).removeprefix("torch.")
    if (device.type, precision) == ("cpu", "float16"):
        raise InputError("--precision float16", "it needs a GPU", "bfloat16 or float32 on a CPU")
    cases = ", ".join(f"{len(manifest.of(split))} {split}" for split in ("train", "validation"))
    if options.simulate:
        cases += f", and {options.simulate} new simulated ones an epoch"
    return RunSettings(
        manifest=str(options.manifest),
        manifest_sha256=manifest.sha256,
        network=network,
        recipe=recipe,
        profile=options.profile,
        input_shape=tuple(options.input_shape),
        supervision=options.supervision,
        tile=options.tile and tuple(options.tile),
        tiles_per_scan=options.tiles_per_scan,
        slab=options.slab,
        weak_batch=options.weak_batch or recipe.batch,
        weak_every=options.weak_every,
        simulate=options.simulate,
        simulated_pool=options.simulated_pool or options.simulate,
        monitor=options.monitor,
        init_sha256=None if options.init is None else read_bundle(locate_bundle(options.init)).sha256,
        frozen_statistics=options.freeze_statistics,
        head_alone=options.head_alone,
        average=options.average,
        seed=options.seed,
        precision=precision,
        device=device.type,
        devices=options.devices,
        nodes=options.nodes,
        accumulate=options.accumulate,
        augmented=options.augment,
        trained_on=options.trained_on or f"{options.manifest.name} ({cases})",
        licence=options.licence,
    )


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, NetworkConfig, Recipe]:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not options.export_only and options.manifest is None:
        parser.error("--manifest is needed")
    for name in ("devices", "nodes", "accumulate", "tiles_per_scan", "weak_batch", "weak_every"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected 1 or more")
    if options.workers < 0 or options.seed < 0:
        parser.error("--workers and --seed are 0 or more")
    if options.simulate < 0 or (options.simulate and options.supervision != "voxels"):
        parser.error("--simulate N is 0 or more, and goes with --supervision voxels")
    if options.simulated_pool is not None and options.simulated_pool < max(options.simulate, 1):
        parser.error("--simulated-pool goes with --simulate N, and is N or more")
    if options.supervision == "voxels" and options.strategy != "regression":
        parser.error("--supervision voxels goes with --strategy regression")
    if not 0 <= options.average < 1:
        parser.error(f"--average is {options.average:g}, expected 0 to less than 1")
    if options.freeze_statistics and not options.init:
        parser.error("--freeze-statistics goes with --init")
    if options.head_alone and not options.init:
        parser.error("--head-alone goes with --init")
    if options.tile and options.supervision != "voxels":
        parser.error("--tile goes with --supervision voxels")
    if options.tiles_per_scan > 1 and not options.tile:
        parser.error("--tiles-per-scan goes with --tile")
    try:
        check_input_shape(tuple(options.input_shape))
        if options.slab is not None:
            check_tile_shape((options.slab, *options.input_shape[1:]), tuple(options.input_shape))
        if options.tile:
            check_tile_shape(tuple(options.tile), tuple(options.input_shape))
        return options, NetworkConfig(options.backbone, options.strategy, options.base_width), chosen_recipe(options)
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    options, network, recipe = _parsed(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*when logging on epoch level in distributed setting.*")  # every process knows
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning's own
    bundle: Path | None
    try:
        if options.export_only:
            from model.training.export import export_run

            bundle = export_run(options.output, options.name)
        else:
            manifest = read_manifest(
                options.manifest, with_truth=options.supervision == "voxels", needs_training=not options.simulate
            )
            settings = chosen_settings(options, manifest, network, recipe)
            # Lightning takes seconds to import; a bad manifest shall not have to wait for it.
            from model.training.run import train

            bundle = train(
                settings,
                manifest,
                options.output,
                name=options.name,
                cache=options.cache or options.manifest.parent / "cache",
                workers=options.workers,
                init=options.init,
                resume=options.resume,
            )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if bundle is not None:
        print(f"bundle: {bundle}")
    return 0


if __name__ == "__main__":
    code = main()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Everything is written. Taking a process group down after a peer has gone was seen to wait for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
