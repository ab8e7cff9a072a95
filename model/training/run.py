"""A whole training run: from checked options and a manifest to the bundle of the best epoch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from ..cohort.manifest import Manifest, TrainingCase
from ..errors import InputError
from ..fleischner import CENTRILOBULAR, SUBTYPES, Subtype
from ..network import EmphysemaNetwork, build_network
from ..preprocessing import Profile
from ..weights import Bundle, locate_bundle, read_bundle, read_metadata
from ..whole_files import is_free
from .augmentation import RANGES
from .cache import cache_path, prepare_cohort, read_figures
from .dataset import UNKNOWN, Batch, CohortDataset, ConsecutiveBatches, Draw, EpochBatches, EpochSampler, stacked, turns_for
from .distributed import ProcessPlace
from .export import export_run, finished_epochs
from .fresh import FRESH_FOLDER, CasePool, FreshCases
from .initialisation import draw_kaiming_fan_out
from .loop import Anchor, EmphysemaTraining, Reference, build_trainer
from .options import RunOptions, resumable_checkpoint
from .performance import known_presence
from .planes import PlaneNetwork
from .strategies import ClassificationStrategy, RegressionStrategy, Strategy, VoxelStrategy, score_counts
from .tiles import PLANE

LEAST_BFLOAT16_DEPTH = 24
"""Slices of the input below which oneDNN (torch 2.13, CPU) gives wrong bfloat16 gradients of 3 x 3 x 3 convolutions: at an
eighth of the depth two slices are left. Found by comparing with float32: errors of 60 to 90 %, and some without bounds."""

PICTURED_CASES = 3
_POLL_SECONDS = 1.0


def train(
    options: RunOptions,
    manifest: Manifest,
    output: Path,
    *,
    resume: bool = False,
) -> Path | None:
    """Train a network and export its best epoch.

    Args:
        options: of the run, settled.
        manifest: the cohort; its `test` cases are left alone.
        output: the run's folder; new, or with `resume` one that a run was started in.
        resume: whether to go on from the last finished epoch.

    Returns:
        The bundle's folder; None in all but the first of several processes.

    Raises:
        InputError: the output folder, the checkpoint, a scan or the bundle cannot be used; nothing was written to `output`.
    """
    _check_depth(options)
    place = ProcessPlace.here()
    if not resume:
        for note in check_subtypes(options, manifest):
            if place.is_first:
                print(note)
    output = output.resolve()  # Lightning's checkpoints store this path
    if place.is_first:
        _check_output(options, output, resume)
    resumed = resumable_checkpoint(output) if resume else None
    first_epoch = 0 if resumed is None else finished_epochs(resumed)
    network = _initial_network(options, with_init=resumed is None)
    anchor = _anchor(options)
    profile, cache, workers = options.preprocessing, options.cache_folder, options.workers
    training, validation = manifest.of("train"), manifest.of("validation")
    _fill_cache(manifest, profile, cache, workers, place)
    if place.is_first:
        output.mkdir(parents=True, exist_ok=True)
        options.write(output)

    strategy = _strategy(options, training)
    pool = None
    if options.simulate:
        folder = output / FRESH_FOLDER
        shares = options.simulate_panlobular, options.simulate_first_look
        pool = CasePool(folder, options.seed, options.simulate, options.pool_size, *shares)
    fresh = None if pool is None else FreshCases(pool, profile, max(workers, 1), makes=place.is_first_of_machine)
    if options.init is None:
        strategy.initialise(network)
    if options.processes > 1:  # before planes take the network's layers; Lightning would do it after
        network = cast(EmphysemaNetwork, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    reference = _reference(validation, profile, cache, options.only)
    seed_everything(options.seed, workers=True, verbose=False)
    module = EmphysemaTraining(
        network,
        strategy,
        options.recipe,
        reference,
        _pictured(reference),
        output,
        frozen_statistics=options.freeze_statistics or options.head_alone,
        planes=PlaneNetwork(network) if options.slab == PLANE else None,
        anchor=anchor,
    )
    ranges = RANGES[options.recipe.augmentation] if options.augment else None
    learnt = CohortDataset(
        training,
        profile,
        cache,
        seed=options.seed,
        ranges=ranges,
        with_truth=options.needs_truth,
        tile=options.tile,
        tile_scores=options.tile_scores,
        tiles_anywhere=options.tiles_anywhere,
        slab=options.slab,
        simulated=pool,
    )
    # On planes, validation takes a hundredth of the time. Where maps count by a mask of the whole scan, there are none.
    flat = PLANE if options.slab == PLANE and profile.suspect_below_hu is None else None
    judged = CohortDataset(validation, profile, cache, with_truth=options.strategy == "voxels", slab=flat)
    steps = len(_training_batches(options, learnt, training, 0))
    callbacks = (
        [] if fresh is None else [LambdaCallback(on_train_epoch_start=lambda trainer, _: fresh.ready(trainer.current_epoch))]
    )
    trainer = build_trainer(options, output, steps, callbacks)
    if options.resident:
        for dataset in (learnt, judged):
            dataset.keep_on(trainer.strategy.root_device)
    rank = trainer.global_rank
    training_batches = _training_batches(options, learnt, training, rank)
    # The loop sets it, but only after it has begun to fetch the first batches.
    training_batches.set_epoch(first_epoch)
    validation_orders = [
        EpochSampler(places, shuffled=False, rank=rank, processes=options.processes) for places in judged.groups()
    ]
    try:
        if fresh is not None:
            fresh.ready(first_epoch)
        trainer.fit(
            module,
            _loader(learnt, options, training_batches),
            _loader(judged, options, ConsecutiveBatches(validation_orders, options.recipe.batch)),
            ckpt_path=resumed,
            weights_only=True,
        )
    finally:
        if fresh is not None:
            fresh.close()
    return export_run(output, options.name) if trainer.is_global_zero else None


def _training_batches(options: RunOptions, learnt: CohortDataset, training: Sequence[TrainingCase], rank: int) -> EpochBatches:
    """The batches of an epoch for one process: those of the first group of `learnt`, and of the others in between."""
    main, *others = learnt.groups()
    processes = options.processes
    strata = None
    if options.recipe.uniform_centrilobular:
        strata = [UNKNOWN if score is None else score for score in (training[place].scores.centrilobular for place in main)]
    turns = options.tiles_per_scan
    order = EpochSampler(
        main,
        turns=turns,
        seed=options.seed,
        strata=strata,
        draws_per_stratum=options.recipe.draws_per_score,
        rank=rank,
        processes=processes,
    )
    batches = -(-len(order) // options.recipe.batch) // options.weak_every
    other_orders = [
        EpochSampler(
            places,
            turns=turns_for(-(-batches // len(others)), options.other_batch, len(places), processes),
            seed=options.seed,
            rank=rank,
            processes=processes,
        )
        for places in others
    ]
    return EpochBatches(order, options.recipe.batch, other_orders, options.other_batch, options.weak_every)


def _check_output(options: RunOptions, output: Path, resume: bool) -> None:
    if resume:
        RunOptions.read(output).check_resumable(options, output)
    elif not is_free(output):
        raise InputError(output, "it already holds something", "a new folder, or --resume to go on with the run in it")


def _check_depth(options: RunOptions) -> None:
    if (options.device, options.precision) != ("cpu", "bfloat16"):
        return
    tile = options.tile[0] if options.tile else None
    for option, depth in (("--slab", options.slab), ("--tile", tile), ("--input-shape", options.input_shape[0])):
        if depth is not None and depth < LEAST_BFLOAT16_DEPTH:
            expected = f"at least {LEAST_BFLOAT16_DEPTH} slices in bfloat16 on a CPU, or --precision float32"
            raise InputError(option, f"{depth} slices", expected)


def check_subtypes(options: RunOptions, manifest: Manifest) -> list[str]:
    """Check that there is something to learn of each subtype, and validation scans to judge it by; return notes for the user.

    Raises:
        InputError: nothing is known of a subtype of any training scan, nor to the weights to start from, and `--only` does not
            say so; or the validation scans lack what `--monitor` follows.
    """
    training = manifest.of("train")
    learnt = list(SUBTYPES) if options.simulate else _known(options, training, with_truth=options.needs_truth)
    if not learnt:
        if options.network.head == "classification":
            found, expected = "no training scan has a score", "scores, or --strategy regression, which learns from bounds too"
        else:
            found, expected = "no training scan has a score or bounds", "either, or --strategy voxels for truth maps"
        raise InputError(f"--strategy {options.strategy}", found, expected)
    notes = []
    if options.slab is not None and not any(case.uniform_slices for case in training):
        notes.append("--slab changes nothing: no training scan has uniform_slices in the manifest")
    if options.anchor is not None and options.needs_truth and all(case.truth is not None for case in training):
        notes.append("--anchor changes nothing: every training scan has truth maps")
    for subtype in SUBTYPES:
        is_known = subtype in learnt or (options.init is not None and _was_known(options.init, subtype))
        is_wanted = options.only in (None, subtype.name)
        if is_known and not is_wanted:
            source = "simulated scans" if options.simulate else "training scans" if subtype in learnt else options.init
            found = f"{subtype.name} emphysema is known to {source}"
            raise InputError(f"--only {options.only}", found, "scans and weights that know nothing of it")
        if is_wanted and not is_known:
            way_on = [f"--only {other.name}" for other in learnt if options.only is None]
            expected = ", or ".join([f"{_what_teaches(options)} of it", *way_on])
            raise InputError(manifest.path, f"no training scan says anything of {subtype.name} emphysema", expected)
        if is_known and subtype not in learnt:
            notes.append(f"no training scan says anything of {subtype.name} emphysema: only the weights of --init know it")
    return notes + _check_monitor(options, manifest.of("validation"), learnt)


def _known(options: RunOptions, cases: Sequence[TrainingCase], *, with_truth: bool) -> list[Subtype]:
    """The subtypes that cases say something of that the network's head can learn."""

    def says(case: TrainingCase, place: int) -> bool:
        if case.scores[place] is not None:
            return True
        more = case.intervals[place] is not None or case.leading is not None or (with_truth and case.truth is not None)
        return more and options.network.head == "regression"

    return [subtype for place, subtype in enumerate(SUBTYPES) if any(says(case, place) for case in cases)]


def _what_teaches(options: RunOptions) -> str:
    if options.network.head == "classification":
        return "scores"
    return "scores, bounds or truth maps" if options.needs_truth else "scores or bounds"


def _was_known(bundle: Path, subtype: Subtype) -> bool:
    """Whether a bundle does not say that nothing was known of a subtype."""
    training = read_metadata(locate_bundle(bundle)).performance.get("training")
    return not isinstance(training, dict) or training.get("only") in (None, subtype.name)


def _check_monitor(options: RunOptions, validation: Sequence[TrainingCase], learnt: Sequence[Subtype]) -> list[str]:
    """Check that the validation scans have what `--monitor` follows, of a subtype that is learnt; return notes."""
    monitor = options.recipe.monitor
    names = " or ".join(subtype.name for subtype in learnt)
    if monitor == "kappa":
        places = [SUBTYPES.index(subtype) for subtype in learnt]
        unscored = [SUBTYPES[place].name for place in places if all(case.scores[place] is None for case in validation)]
        if len(unscored) == len(learnt):
            found, expected = f"no validation scan has a {names} score", "scores, or --monitor loss or separation"
            raise InputError("--monitor kappa", found, expected)
        return [f"--monitor kappa: no validation scan has a {name} score; its kappa counts as 0" for name in unscored]
    known = _known(options, validation, with_truth=options.strategy == "voxels")
    if monitor == "loss" and not any(subtype in known for subtype in learnt):
        found = f"no validation scan says anything of {names} emphysema"
        raise InputError("--monitor loss", found, f"{_what_teaches(options)} of what is learnt")
    bounds = _bounds(validation)
    presence = [known_presence(subtype, bounds[:, SUBTYPES.index(subtype)]) for subtype in learnt]
    if monitor == "separation" and not any(present.any() and absent.any() for present, absent in presence):
        expected = "validation scans with bounds, some that must have a subtype and some that cannot"
        raise InputError("--monitor separation", "the manifest has no such validation scans", expected)
    return []


def _bounds(cases: Sequence[TrainingCase]) -> npt.NDArray[np.float64]:
    """Bounds of each case, N x 2 x 2, percent of the lung; nan where they are not known."""
    unknown = (np.nan, np.nan)
    return np.array([[interval or unknown for interval in case.intervals] for case in cases], np.float64)


def _initial_network(options: RunOptions, *, with_init: bool) -> EmphysemaNetwork:
    init = options.init if with_init else None
    if init is None:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(options.seed)
            network = build_network(options.network)
            if options.recipe.kaiming_fan_out:
                draw_kaiming_fan_out(network)
    else:
        bundle = _read_prepared_alike(init, options)
        if bundle.metadata.network != options.network:
            raise InputError(init, f"its network is {bundle.metadata.network}", f"{options.network}")
        network = bundle.network.train()
    if options.head_alone:
        network.requires_grad_(False)
        network.head.requires_grad_(True)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _read_prepared_alike(path: Path, options: RunOptions) -> Bundle:
    """Read a bundle whose input is prepared as that of the run.

    Raises:
        InputError: it cannot be read, or has another profile.
    """
    bundle = read_bundle(path)
    if bundle.metadata.profile != options.profile:
        raise InputError(path, f"its profile is {bundle.metadata.profile}", f"one with the profile {options.profile}")
    return bundle


def _anchor(options: RunOptions) -> Anchor | None:
    """The network whose maps are kept.

    Raises:
        InputError: its bundle cannot be read, or its maps are not those of the network that is trained.
    """
    if options.anchor is None:
        return None
    bundle = _read_prepared_alike(options.anchor, options)
    if bundle.metadata.network.head != "regression":
        raise InputError(options.anchor, "a classification network", "a regression network: maps are kept")
    return Anchor(bundle.network, planes=options.slab == PLANE)


def _fill_cache(manifest: Manifest, profile: Profile, cache: Path, workers: int, place: ProcessPlace) -> None:
    """Prepare what is missing; the other processes of a machine wait for its first one."""
    cases = (*manifest.of("train"), *manifest.of("validation"))
    if place.is_first_of_machine:
        with tqdm(total=len(cases), desc="preparing", unit="scan", disable=None) as bar:
            for ready in prepare_cohort(cases, profile, cache, workers, manifest=manifest.path):
                bar.update(ready - bar.n)
        return
    while not all(cache_path(case, profile, cache).is_file() for case in cases):
        time.sleep(_POLL_SECONDS)


def _strategy(options: RunOptions, training: Sequence[TrainingCase]) -> Strategy:
    counts = score_counts([case.scores for case in training])
    match options.strategy:
        case "classification" | "slices-lstm":
            return ClassificationStrategy(options.recipe, counts)
        case "voxels":
            return VoxelStrategy(options.recipe, counts)
        case "regression":
            return RegressionStrategy(options.recipe, counts)


def _reference(cases: Sequence[TrainingCase], profile: Profile, cache: Path, only: str | None = None) -> Reference:
    """What is known of the cases; where one subtype alone is learnt, nothing of the other."""
    figures = [read_figures(cache_path(case, profile, cache)) for case in cases]
    unknown = (np.nan, np.nan)
    scores = np.array([[UNKNOWN if score is None else score for score in case.scores] for case in cases], np.int64)
    bounds = _bounds(cases)
    percentages = np.array([figure.percentages or unknown for figure in figures], np.float64)
    for place, subtype in enumerate(SUBTYPES):
        if only not in (None, subtype.name):
            scores[:, place], bounds[:, place], percentages[:, place] = UNKNOWN, np.nan, np.nan
    return Reference(
        entities=[case.entity for case in cases],
        scores=scores,
        bounds=bounds,
        percentages=percentages,
        low_attenuation=np.array([figure.low_attenuation_percentage for figure in figures], np.float64),
    )


def _pictured(reference: Reference) -> list[int]:
    """The validation cases to draw: the mildest, one from the middle, and the worst."""
    order = np.argsort(reference.scores @ np.array([1, len(CENTRILOBULAR.grades)]), kind="stable")
    count = min(PICTURED_CASES, len(order))
    return [int(order[place]) for place in np.linspace(0, len(order) - 1, count).round().astype(int)]


def _loader(dataset: CohortDataset, options: RunOptions, batches: Sampler[list[Draw]]) -> DataLoader[Batch]:
    workers = 0 if options.resident else options.workers
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=stacked,
        pin_memory=options.device == "cuda" and not options.resident,
        persistent_workers=workers > 0,
    )
