"""From a run's best checkpoint to a weight bundle that inference can use, with its provenance and validation figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, reason
from ..fleischner import SUBTYPES
from ..network import EmphysemaNetwork, build_network
from ..weights import BundleMetadata, write_bundle
from .options import BEST, CHECKPOINT_FOLDER, RunOptions
from .recipes import MONITORS

BUNDLE_FOLDER = "bundle"
NETWORK_PREFIX = "network."
EXPECTED_CHECKPOINT = "a whole checkpoint, as train.py writes it"


def export_run(folder: Path, name: str | None = None) -> Path:
    """Write the bundle of a run, finished or interrupted, from its best checkpoint so far.

    Args:
        folder: of the run.
        name: of the bundle; None: the folder's.

    Returns:
        The bundle's folder, inside the run's.

    Raises:
        InputError: the folder holds no run, or one that has not finished an epoch, or its checkpoint is damaged.
    """
    options = RunOptions.read(folder)
    path = folder / CHECKPOINT_FOLDER / f"{BEST}.ckpt"
    if not path.is_file():
        raise InputError(folder, "no epoch of the run is finished: there is no best checkpoint", "a run with a checkpoint")
    checkpoint = read_checkpoint(path)
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    bundle = folder / BUNDLE_FOLDER
    try:
        metadata = bundle_metadata(options, checkpoint, name or folder.resolve().name, sha256)
        network = network_of(options, checkpoint["state_dict"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(path, f"not a checkpoint of this run ({type(error).__name__})", EXPECTED_CHECKPOINT) from error
    write_bundle(bundle, network, metadata)
    return bundle


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a run that has finished an epoch.

    Args:
        path: the file.
        mapped: whether tensors are read only when they are used.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file may look like anything to the unpickler
        raise InputError(path, f"it cannot be read ({reason(error).splitlines()[0]})", EXPECTED_CHECKPOINT) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("finished_epochs"), int):
        raise InputError(path, "not a checkpoint of a run", EXPECTED_CHECKPOINT)
    return checkpoint


def finished_epochs(checkpoint: Path) -> int:
    """How many epochs a run had finished when it wrote a checkpoint.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    return int(read_checkpoint(checkpoint, mapped=True)["finished_epochs"])


def network_of(options: RunOptions, state: Mapping[str, Tensor]) -> EmphysemaNetwork:
    """Build the network of a checkpoint, whose tensors are named `network.…`."""
    network = build_network(options.network)
    network.load_state_dict(
        {key.removeprefix(NETWORK_PREFIX): value for key, value in state.items() if key.startswith(NETWORK_PREFIX)}
    )
    return network.eval()


def bundle_metadata(options: RunOptions, checkpoint: Mapping[str, Any], name: str, sha256: str) -> BundleMetadata:
    """What a bundle says of the run that it comes from."""
    epoch = int(checkpoint["finished_epochs"])
    start = f"weights of the bundle with sha256 {options.init_sha256}" if options.init_sha256 else "random weights"
    learnt_from = {
        "regression": "scores or bounds alone",
        "classification": "scores alone",
        "slices-lstm": "scores alone",
        "voxels": "voxel truth maps, and scores or bounds where there are none",
    }[options.strategy]
    if options.tile_scores:
        learnt_from = "scores that tiles have by voxel truth maps, and scores or bounds of scans where there are none"
    monitor = MONITORS[options.recipe.monitor][0].replace("/", " ")
    origin = (
        f"trained by train.py, recipe {options.recipe.name}, from {learnt_from}, starting with {start}; best of its epochs by "
        f"{monitor}: number {epoch}; seed {options.seed}; manifest sha256 {options.manifest_sha256}"
    )
    run = {
        "epoch": epoch,
        "steps": int(checkpoint["global_step"]),
        "batch": options.total_batch,
        **options.provenance(),
    }
    unknown = [subtype.name for subtype in SUBTYPES if options.only not in (None, subtype.name)]
    trained_on = [options.trained_on or "not stated", *(f"nothing was known of {name} emphysema" for name in unknown)]
    return BundleMetadata(
        name=name,
        network=options.network,
        profile=options.profile,
        input_shape=options.input_shape,
        # Targets are picked from every second voxel, except truth maps, which are averaged; profiles with a suspect mask bring
        # maps to the input's grid themselves.
        map_placement="corners" if options.strategy == "voxels" or options.preprocessing.suspect_below_hu else "even",
        origin=origin,
        trained_on="; ".join(trained_on),
        licence=options.licence,
        source_sha256=sha256,
        performance={"validation": checkpoint.get("validation"), "training": run},
    )
