"""Batches for the network: prepared cases, augmented, blanked and stacked; and the order that they come in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..cohort.manifest import Interval, Scores, TrainingCase
from ..fleischner import SUBTYPES
from ..network import lung_mean
from ..preprocessing import ON_MAP_GRID, Profile
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
    with_masked_boxes,
    within_slices,
)
from .cache import LEVELS, TRUTH_LEVELS, PreparedCase, cache_path, read_case
from .fresh import CasePool
from .tiles import PLANE, draw_slab, draw_tile

WITHOUT_CHANGE = Augmentation()

UNKNOWN = -1
"""What stands for a score that is not known in tensors."""


class Batch(NamedTuple):
    """What one step of training or validation sees; B cases, or without that axis a single one.

    Z, Y, X are the profile's `input_shape`; where tiles are trained on, they are a tile's. Of a plane, Z is 1, and so is Z/2.

    Attributes:
        image: B x 1 x Z x Y x X, float32: the network's input.
        lung: B x 1 x Z/2 x Y/2 x X/2, bool: inside the lung, on the maps' grid.
        low_attenuation: B x 1 x Z/2 x Y/2 x X/2, bool: below -950 HU inside the lung.
        truth: B x 2 x Z/2 x Y/2 x X/2, float32: share of the voxel that is centrilobular and paraseptal emphysema; None
            where no voxel maps are asked for. 0 in cases that have none.
        has_truth: B, bool: whether the case has truth maps, and they are asked for.
        suspect: B x 1 x Z x Y x X, bool: where maps count; None in training and for profiles without such a mask.
        input_lung: likewise: the lung that `suspect` lies in.
        scores: B x 2, int64: centrilobular and paraseptal; `UNKNOWN` where there is none.
        bounds: B x 2 x 2, float32: least and largest fraction of the lung for each subtype, where the manifest gives any in
            place of a score; nan elsewhere.
        place: B, int64: of each case in the dataset.
        leading: B, int64: the predominant subtype, 0 centrilobular or 1 paraseptal; `UNKNOWN` where that is not known; None: it
            is known of none.
    """

    image: Tensor
    lung: Tensor
    low_attenuation: Tensor
    truth: Tensor | None
    has_truth: Tensor
    suspect: Tensor | None
    input_lung: Tensor | None
    scores: Tensor
    bounds: Tensor
    place: Tensor
    leading: Tensor | None = None


class Draw(NamedTuple):
    """One turn of a case: its place in the dataset, the epoch, and how often it has come up in that epoch before."""

    place: int
    epoch: int
    occurrence: int


class Knowledge(NamedTuple):
    """What is known of a case without its voxels: name, scores, bounds in percent, whether all its slices are the same, and the
    predominant subtype (a place in `SUBTYPES`, or `UNKNOWN`)."""

    entity: str
    scores: Scores = Scores(None, None)
    intervals: tuple[Interval | None, Interval | None] = (None, None)
    uniform_slices: bool = False
    leading: int = UNKNOWN


def assemble(
    prepared: PreparedCase,
    scores: tuple[int | None, int | None],
    place: int,
    profile: Profile,
    augmentation: Augmentation,
    *,
    with_truth: bool,
    with_suspect: bool,
    tile: Tile | None = None,
    intervals: tuple[Interval | None, Interval | None] = (None, None),
    leading: int = UNKNOWN,
) -> Batch:
    """Turn a prepared case, or one tile of it, into one sample of a `Batch`: augment, blank outside the lung, bring targets
    to the maps' grid."""
    extent = prepared.extent_mm
    image = moved(prepared.image[None], augmentation, extent, tile=tile)[0] / LEVELS
    image = with_changed_intensities(image, augmentation)
    image = image.mul_(prepared.brightest - prepared.darkest).add_(prepared.darkest)
    image = with_masked_boxes(image, augmentation, profile.input_shape, tile)
    lung = moved(prepared.lung[None], augmentation, extent, tile=tile)
    if profile.blank_outside:
        image *= lung[0]
    low_attenuation = moved(prepared.low_attenuation[None], augmentation, extent, target=PICKED_LATTICE, tile=tile)
    truth = None
    if with_truth:
        maps = prepared.truth
        if maps is None:  # they cannot be left out: a batch may hold cases of both kinds
            shape = [size // 2 for size in prepared.image.shape]
            maps = torch.zeros(2, *shape, dtype=torch.uint8, device=prepared.image.device)
        truth = moved(maps, augmentation, extent, AVERAGED_LATTICE, AVERAGED_LATTICE, tile) / TRUTH_LEVELS
    suspect = prepared.suspect if with_suspect else None
    return Batch(
        image=image[None],
        lung=lung[ON_MAP_GRID].contiguous(),
        low_attenuation=low_attenuation,
        truth=truth,
        has_truth=torch.tensor(with_truth and prepared.truth is not None),
        suspect=None if suspect is None else suspect[None],
        input_lung=None if suspect is None else lung,
        scores=torch.tensor([UNKNOWN if score is None else score for score in scores]),
        leading=torch.tensor(leading),
        bounds=torch.tensor([(math.nan, math.nan) if bounds is None else bounds for bounds in intervals]) / 100,
        place=torch.tensor(place),
    )


def stacked(samples: Sequence[Batch]) -> Batch:
    """Stack single samples."""
    columns = (None if parts[0] is None else torch.stack(parts) for parts in zip(*samples, strict=True))
    return Batch(*columns)  # type: ignore[arg-type]  # None only where a batch may hold it


def with_own_scores(sample: Batch) -> Batch:
    """A single sample without its truth maps; where it has any, the scores by Table 1 of the percentages in them are all
    that is known of it. Where no voxel is lung, nothing is."""
    if sample.truth is None or not bool(sample.has_truth):
        return sample._replace(truth=None)
    percentages = (100 * lung_mean(sample.truth[None].double(), sample.lung[None])[0]).clamp(0, 100).tolist()
    scores = [UNKNOWN, UNKNOWN]
    if bool(sample.lung.any()):
        scores = [subtype.score(percentage) for subtype, percentage in zip(SUBTYPES, percentages, strict=True)]
    return sample._replace(
        truth=None,
        has_truth=torch.tensor(False),
        scores=torch.tensor(scores),
        bounds=torch.full_like(sample.bounds, math.nan),
        leading=torch.tensor(UNKNOWN),
    )


def first_plane(sample: Batch) -> Batch:
    """The first slice of a single sample whose slices are all the same."""
    truth = None if sample.truth is None else sample.truth[:, :PLANE]
    image, lung, low_attenuation = (part[:, :PLANE] for part in (sample.image, sample.lung, sample.low_attenuation))
    return sample._replace(image=image, lung=lung, low_attenuation=low_attenuation, truth=truth)


class CohortDataset(Dataset[Batch]):
    """Cases of one split, read from the cache; an item is asked for by a `Draw`, and so does not depend on any worker's past.

    Args:
        cases: the split.
        profile: how the network's input is prepared; the cache holds every case by it.
        folder: the cache.
        seed: of the run.
        ranges: of the augmentation; None: no augmentation, and the mask of places where maps count is handed over.
        with_truth: whether truth maps are handed over, of the cases that have them.
        tile: size of the tiles that are handed over in place of whole scans that have truth maps, z y x. None: whole scans.
        tile_scores: whether tiles are handed over with scores of their own in place of truth maps.
        tiles_anywhere: whether tiles lie anywhere in the lung, instead of around lesions more often.
        slab: slices of the slabs that are handed over in place of scans without truth maps whose slices are all the same; 1:
            planes; None: whole scans.
        simulated: further cases, which change with the epoch; their places follow those of `cases`.
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
        tile_scores: bool = False,
        tiles_anywhere: bool = False,
        slab: int | None = None,
        simulated: CasePool | None = None,
    ) -> None:
        self.cases = tuple(cases)
        self._profile = profile
        self._paths = [cache_path(case, profile, folder) for case in cases]
        self._seed = seed
        self._ranges = ranges
        self._with_truth = with_truth
        self._tile = tile
        self._tile_scores = tile_scores
        self._tiles_anywhere = tiles_anywhere
        self._slab = slab
        self._simulated = simulated
        self._device: torch.device | None = None
        self._resident: dict[Path, PreparedCase] = {}

    def keep_on(self, device: torch.device) -> None:
        """From the first reading on, keep cases in the memory of a device, and augment them there."""
        self._device = device

    def __len__(self) -> int:
        return len(self.cases) + (self._simulated.size if self._simulated else 0)

    def groups(self) -> list[list[int]]:
        """The places by the shape of their samples, as only equal shapes can be stacked: tiles, whole scans, slabs."""
        shapes: list[list[int]] = [[], [], []]
        for place in range(len(self)):
            uniform = place < len(self.cases) and self.cases[place].uniform_slices
            tiled, slabbed = self._is_cut(self._has_truth(place), uniform)
            shapes[0 if tiled else 2 if slabbed else 1].append(place)
        return [places for places in shapes if places]

    def _has_truth(self, place: int) -> bool:
        return self._with_truth and (place >= len(self.cases) or self.cases[place].truth is not None)

    def _is_cut(self, has_truth: bool, uniform_slices: bool) -> tuple[bool, bool]:
        """Whether a sample is a tile, and whether it is a slab."""
        return self._tile is not None and has_truth, self._slab is not None and uniform_slices and not has_truth

    def __getitem__(self, draw: Draw) -> Batch:
        known, path = self._case(draw)
        augmentation = WITHOUT_CHANGE
        if self._ranges is not None:
            augmentation = draw_augmentation(self._ranges, self._seed, draw.epoch, known.entity, draw.occurrence)
        prepared = self._read(path)
        is_plane = self._slab == PLANE and self._is_cut(self._has_truth(draw.place), known.uniform_slices)[1]
        if is_plane:
            prepared, augmentation, tile = prepared.thin(), within_slices(augmentation), None
        else:
            tile = self._drawn_tile(prepared, known, augmentation, draw)
        sample = assemble(
            prepared,
            known.scores,
            draw.place,
            self._profile,
            augmentation,
            with_truth=self._with_truth,
            with_suspect=self._ranges is None and tile is None,
            tile=tile,
            intervals=known.intervals,
            leading=known.leading,
        )
        if is_plane:
            sample = first_plane(sample)
        return with_own_scores(sample) if self._tile_scores else sample

    def _read(self, path: Path) -> PreparedCase:
        if self._device is None:
            return read_case(path)
        if path not in self._resident:
            for former in [former for former in self._resident if not former.is_file()]:
                del self._resident[former]  # simulated, and no longer of the pool
            self._resident[path] = read_case(path).on(self._device)
        return self._resident[path]

    def _case(self, draw: Draw) -> tuple[Knowledge, Path]:
        if draw.place < len(self.cases):
            case = self.cases[draw.place]
            leading = UNKNOWN if case.leading is None else SUBTYPES.index(case.leading)
            known = Knowledge(case.entity, case.scores, case.intervals, case.uniform_slices, leading)
            return known, self._paths[draw.place]
        assert self._simulated is not None
        number = self._simulated.number(draw.place - len(self.cases), draw.epoch)
        return Knowledge(self._simulated.entity(number)), self._simulated.path(number)

    def _drawn_tile(self, prepared: PreparedCase, known: Knowledge, augmentation: Augmentation, draw: Draw) -> Tile | None:
        tiled, slabbed = self._is_cut(self._has_truth(draw.place), known.uniform_slices)
        if tiled:
            assert self._tile is not None
            return draw_tile(
                self._tile,
                prepared,
                spatial_map(augmentation, self._profile.input_shape, prepared.extent_mm),
                anywhere=self._tiles_anywhere,
                seed=self._seed,
                epoch=draw.epoch,
                entity=known.entity,
                occurrence=draw.occurrence,
            )
        if slabbed:
            assert self._slab is not None
            return draw_slab(
                self._slab,
                self._profile.input_shape,
                seed=self._seed,
                epoch=draw.epoch,
                entity=known.entity,
                occurrence=draw.occurrence,
            )
        return None

    def prepared(self, place: int) -> PreparedCase:
        """A case as the cache holds it."""
        return read_case(self._paths[place])


class EpochSampler(Sampler[Draw]):
    """The order of one epoch, which follows from seed and epoch alone; each of several processes takes every n-th turn.

    A global batch so holds the same cases however many processes share it. The order is filled up with its own beginning
    until all processes have as many turns.

    Args:
        places: of the cases in the dataset; a number stands for that many from 0.
        turns: how often each case comes up in an epoch (where there are no strata), each time with another draw.
        seed: of the run.
        shuffled: whether the order changes from epoch to epoch.
        strata: a stratum for each of `places`: turns are drawn so that every stratum is as likely, with cases coming up again;
            None: every case comes up equally often.
        draws_per_stratum: how many turns an epoch has for each stratum; 0: as many turns in all as without strata.
        rank: of this process.
        processes: that share the epoch.
    """

    def __init__(
        self,
        places: int | Sequence[int],
        *,
        turns: int = 1,
        seed: int = 0,
        shuffled: bool = True,
        strata: Sequence[int] | None = None,
        draws_per_stratum: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._places = np.arange(places) if isinstance(places, int) else np.asarray(places)
        self._count = len(self._places)
        self._turns = turns
        self._seed = seed
        self._shuffled = shuffled
        self._strata = None if strata is None else np.asarray(strata)
        self._total = turns * self._count
        if self._strata is not None and draws_per_stratum:
            self._total = draws_per_stratum * len(np.unique(self._strata))
        self._rank = rank
        self._processes = processes
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loop before each epoch."""
        self._epoch = epoch

    def order(self) -> list[int]:
        """The epoch's order for all processes together, before it is filled up."""
        return [int(self._places[index]) for index in self._indices()]

    def _indices(self) -> list[int]:
        if not self._shuffled:
            return self._turns * list(range(self._count))
        generator = np.random.default_rng((self._seed, self._epoch))
        if self._strata is None:
            return [int(index) for _ in range(self._turns) for index in generator.permutation(self._count)]
        groups = [np.flatnonzero(self._strata == stratum) for stratum in np.unique(self._strata)]
        return [int(generator.choice(groups[group])) for group in generator.integers(len(groups), size=self._total)]

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
        return -(-self._total // self._processes)


class EpochBatches(Sampler[list[Draw]]):
    """The batches of one epoch, each of one group of cases: all of the first group, and batches of the others in between.

    Args:
        main: the order of the first group.
        batch: cases in its batches.
        others: the orders of the other groups, which take turns; each holds enough for an epoch.
        other_batch: cases in their batches.
        every: after so many batches of the first group comes one of the others.
    """

    def __init__(
        self, main: EpochSampler, batch: int, others: Sequence[EpochSampler] = (), other_batch: int = 1, every: int = 1
    ) -> None:
        self._main = main
        self._batch = batch
        self._others = tuple(others)
        self._other_batch = other_batch
        self._every = every

    @property
    def sampler(self) -> EpochBatches:
        """What the loop sets the epoch of."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by the loop before each epoch."""
        for order in (self._main, *self._others):
            order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Draw]]:
        others = [_chunks(list(order), self._other_batch) for order in self._others]
        for number, batch in enumerate(_chunks(list(self._main), self._batch)):
            yield batch
            turn, rest = divmod(number + 1, self._every)
            if others and not rest:
                yield next(others[(turn - 1) % len(others)])

    def __len__(self) -> int:
        batches = -(-len(self._main) // self._batch)
        return batches + (batches // self._every if self._others else 0)


class ConsecutiveBatches(Sampler[list[Draw]]):
    """Every case once, each batch of one group of cases: one group after the other.

    Args:
        orders: of the groups.
        batch: cases in a batch.
    """

    def __init__(self, orders: Sequence[EpochSampler], batch: int) -> None:
        self._orders = tuple(orders)
        self._batch = batch

    def __iter__(self) -> Iterator[list[Draw]]:
        for order in self._orders:
            yield from _chunks(list(order), self._batch)

    def __len__(self) -> int:
        return sum(-(-len(order) // self._batch) for order in self._orders)


def turns_for(batches: int, batch: int, cases: int, processes: int = 1) -> int:
    """How often each of `cases` has to come up in an epoch so that there are `batches` full batches for each process."""
    return max(-(-batches * batch * processes // cases), 1)


def _chunks(draws: Sequence[Draw], size: int) -> Iterator[list[Draw]]:
    for start in range(0, len(draws), size):
        yield list(draws[start : start + size])
