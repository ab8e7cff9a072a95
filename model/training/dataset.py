"""Batches for the network: prepared cases, augmented, blanked and stacked; and the order that they come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..cohort.manifest import TrainingCase
from ..preprocessing import Profile, labels_on_map_grid
from .augmentation import (
    AVERAGED_LATTICE,
    PICKED_LATTICE,
    Augmentation,
    AugmentationRanges,
    Tile,
    draw_augmentation,
    moved,
    spatial_map,
    with_changed_intensities,
)
from .cache import LEVELS, TRUTH_LEVELS, PreparedCase, cache_path, read_case
from .tiles import draw_tile

WITHOUT_CHANGE = Augmentation()


class Batch(NamedTuple):
    """What one step of training or validation sees; B cases, or without that axis a single one.

    Z, Y, X are the profile's `input_shape`; where tiles are trained on, they are a tile's.

    Attributes:
        image: B x 1 x Z x Y x X, float32: the network's input.
        lung: B x 1 x Z/2 x Y/2 x X/2, bool: inside the lung, on the maps' grid.
        low_attenuation: B x 1 x Z/2 x Y/2 x X/2, bool: below -950 HU inside the lung.
        truth: B x 2 x Z/2 x Y/2 x X/2, float32: share of the voxel that is centrilobular and paraseptal emphysema; None
            where no voxel maps are asked for.
        suspect: B x 1 x Z x Y x X, bool: where maps count; None in training and for profiles without such a mask.
        input_lung: likewise: the lung that `suspect` lies in.
        scores: B x 2, int64: centrilobular and paraseptal.
        place: B, int64: of each case in the dataset.
    """

    image: Tensor
    lung: Tensor
    low_attenuation: Tensor
    truth: Tensor | None
    suspect: Tensor | None
    input_lung: Tensor | None
    scores: Tensor
    place: Tensor


class Draw(NamedTuple):
    """One turn of a case: its place in the dataset, the epoch, and how often it has come up in that epoch before."""

    place: int
    epoch: int
    occurrence: int


def assemble(
    prepared: PreparedCase,
    scores: tuple[int, int],
    place: int,
    profile: Profile,
    augmentation: Augmentation,
    *,
    with_truth: bool,
    with_suspect: bool,
    tile: Tile | None = None,
) -> Batch:
    """Turn a prepared case, or one tile of it, into one sample of a `Batch`: augment, blank outside the lung, bring targets
    to the maps' grid."""
    extent = prepared.extent_mm
    image = moved(prepared.image[None], augmentation, extent, tile=tile)[0] / LEVELS
    image = with_changed_intensities(image, augmentation)
    image = image.mul_(prepared.brightest - prepared.darkest).add_(prepared.darkest)
    lung = moved(prepared.lung[None], augmentation, extent, tile=tile)
    if profile.blank_outside:
        image *= lung[0]
    low_attenuation = moved(prepared.low_attenuation[None], augmentation, extent, target=PICKED_LATTICE, tile=tile)
    truth = None
    if with_truth:
        assert prepared.truth is not None, "the manifest was checked for truth maps"
        truth = moved(prepared.truth, augmentation, extent, AVERAGED_LATTICE, AVERAGED_LATTICE, tile) / TRUTH_LEVELS
    suspect = prepared.suspect if with_suspect else None
    return Batch(
        image=image[None],
        lung=torch.from_numpy(labels_on_map_grid(lung.numpy())),
        low_attenuation=low_attenuation,
        truth=truth,
        suspect=None if suspect is None else suspect[None],
        input_lung=None if suspect is None else lung,
        scores=torch.tensor(scores),
        place=torch.tensor(place),
    )


def stacked(samples: Sequence[Batch]) -> Batch:
    """Stack single samples."""
    columns = (None if parts[0] is None else torch.stack(parts) for parts in zip(*samples, strict=True))
    return Batch(*columns)  # type: ignore[arg-type]  # None only where a batch may hold it


class CohortDataset(Dataset[Batch]):
    """Cases of one split, read from the cache; an item is asked for by a `Draw`, and so does not depend on any worker's past.

    Args:
        cases: the split.
        profile: how the network's input is prepared; the cache holds every case by it.
        folder: the cache.
        seed: of the run.
        ranges: of the augmentation; None: no augmentation, and the mask of places where maps count is handed over.
        with_truth: whether truth maps are.
        tile: size of the tiles that are handed over in place of whole scans, z y x; needs truth maps. None: whole scans.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        profile: Profile,
        folder: Path,
        *,
        seed: int = 0,
        ranges: AugmentationRanges | None = None,
        with_truth: bool = False,
        tile: tuple[int, int, int] | None = None,
    ) -> None:
        self.cases = tuple(cases)
        self._profile = profile
        self._paths = [cache_path(case, profile, folder) for case in cases]
        self._seed = seed
        self._ranges = ranges
        self._with_truth = with_truth
        self._tile = tile

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, draw: Draw) -> Batch:
        case = self.cases[draw.place]
        augmentation = WITHOUT_CHANGE
        if self._ranges is not None:
            augmentation = draw_augmentation(self._ranges, self._seed, draw.epoch, case.entity, draw.occurrence)
        prepared = read_case(self._paths[draw.place])
        tile = None
        if self._tile is not None:
            tile = draw_tile(
                self._tile,
                prepared,
                spatial_map(augmentation, self._profile.input_shape, prepared.extent_mm),
                seed=self._seed,
                epoch=draw.epoch,
                entity=case.entity,
                occurrence=draw.occurrence,
            )
        return assemble(
            prepared,
            case.scores,
            draw.place,
            self._profile,
            augmentation,
            with_truth=self._with_truth,
            with_suspect=self._ranges is None and tile is None,
            tile=tile,
        )

    def prepared(self, place: int) -> PreparedCase:
        """A case as the cache holds it."""
        return read_case(self._paths[place])


class EpochSampler(Sampler[Draw]):
    """The order of one epoch, which follows from seed and epoch alone; each of several processes takes every n-th turn.

    A global batch so holds the same cases however many processes share it. The order is filled up with its own beginning
    until all processes have as many turns.

    Args:
        count: cases in the dataset.
        turns: how often each case comes up in an epoch (where there are no strata), each time with another draw.
        seed: of the run.
        shuffled: whether the order changes from epoch to epoch.
        strata: a stratum for each case: turns are drawn so that every stratum is as likely, with cases coming up again;
            None: every case comes up equally often.
        rank: of this process.
        processes: that share the epoch.
    """

    def __init__(
        self,
        count: int,
        *,
        turns: int = 1,
        seed: int = 0,
        shuffled: bool = True,
        strata: Sequence[int] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._count = count
        self._turns = turns
        self._seed = seed
        self._shuffled = shuffled
        self._strata = None if strata is None else np.asarray(strata)
        self._rank = rank
        self._processes = processes
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loop before each epoch."""
        self._epoch = epoch

    def order(self) -> list[int]:
        """The epoch's order for all processes together, before it is filled up."""
        if not self._shuffled:
            return self._turns * list(range(self._count))
        generator = np.random.default_rng((self._seed, self._epoch))
        if self._strata is None:
            return [int(index) for _ in range(self._turns) for index in generator.permutation(self._count)]
        groups = [np.flatnonzero(self._strata == stratum) for stratum in np.unique(self._strata)]
        return [
            int(generator.choice(groups[group])) for group in generator.integers(len(groups), size=self._turns * self._count)
        ]

    def __iter__(self) -> Iterator[Draw]:
        order = self.order()
        missing = -len(order) % self._processes
        order += (order * (missing // len(order) + 1))[:missing]
        seen: Counter[int] = Counter()
        draws = []
        for place in order:
            draws.append(Draw(place, self._epoch, seen[place]))
            seen[place] += 1
        return iter(draws[self._rank :: self._processes])

    def __len__(self) -> int:
        return -(-self._turns * self._count // self._processes)
