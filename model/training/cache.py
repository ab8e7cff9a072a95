"""Scans that are prepared once for training and kept on disk, one file a case.

A file's name holds the entity and two digests: of what is asked for (profile, input size, files, percentages), and of the
state of the files. After a change of either the case is prepared again. Only what was prepared for the same request from files
that have changed since is removed: runs with other options or manifests may share a cache. Files appear whole: several
processes may prepare the same cohort.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from ..cohort.manifest import TrainingCase
from ..cohort.processes import process_pool
from ..errors import InputError
from ..imaging.readers import files_behind, read_volume
from ..imaging.scan import Scan
from ..lungs.densitometry import LOW_ATTENUATION_HU
from ..lungs.regions import Regions
from ..preprocessing import WINDOW_HU, Profile, Shape, prepare
from ..whole_files import whole_file

FORMAT = 1
LEVELS = 255
TRUTH_LEVELS = 255
DIGEST_LENGTH = 16

_STRIDE = 4
"""Of every so many voxels of the input, one is known as a tile's centre."""


@dataclass(frozen=True)
class PreparedCase:
    """A scan as the cache holds it, before augmentation. Nothing is blanked outside the lung yet, whatever the profile:
    interpolation and smoothing at the pleura must see the chest wall that a real input has there.

    Attributes:
        image: Z x Y x X (the profile's `input_shape`), uint8: intensities from `darkest` (0) to `brightest` (255), rounded.
        darkest: what 0 stands for in the network's input.
        brightest: what 255 stands for.
        lung: Z x Y x X, bool.
        suspect: Z x Y x X, bool: where maps count; None where the profile knows no such mask.
        low_attenuation: Z x Y x X, bool: the CT itself is below -950 HU there, inside the lung; by nearest neighbour.
        truth: 2 x Z/2 x Y/2 x X/2, uint8: share of the voxel that is centrilobular and paraseptal emphysema, times 255;
            None without truth maps.
        extent_mm: z, y, x size of the crop, from the middle of its first voxel to that of its last.
        low_attenuation_percentage: LAA-950 of the scan at its own resolution, 0 to 100.
        percentages: centrilobular and paraseptal emphysema at the scan's own resolution, 0 to 100; None if not known.
    """

    image: Tensor
    darkest: float
    brightest: float
    lung: Tensor
    suspect: Tensor | None
    low_attenuation: Tensor
    truth: Tensor | None
    extent_mm: tuple[float, float, float]
    low_attenuation_percentage: float
    percentages: tuple[float, float] | None

    def on(self, device: torch.device) -> PreparedCase:
        """The case with its tensors on a device: 27 MB, or hardly any where all slices are the same."""

        def moved(part: Tensor) -> Tensor:
            first = part[:1]
            same = torch.equal(part, first.expand_as(part))
            return first.to(device).expand_as(part) if same else part.to(device)

        tensors: dict[str, Any] = {name: moved(part) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **tensors)

    def thin(self) -> PreparedCase:
        """Four slices of a case whose slices are all the same, without `suspect` and `truth`. Two would be a single one of the
        maps, and nothing can be interpolated in that."""
        image, lung, low_attenuation = (part[:4] for part in (self.image, self.lung, self.low_attenuation))
        return replace(self, image=image, lung=lung, low_attenuation=low_attenuation, suspect=None, truth=None)

    @cached_property
    def tile_centres(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Voxels that tiles are drawn around, each N x 3, z y x: some of the lung, and those where centrilobular and where
        paraseptal emphysema fills at least half of a voxel of the maps."""
        assert self.truth is not None, "the manifest was checked for truth maps"
        masks = [self.lung[::_STRIDE, ::_STRIDE, ::_STRIDE]]
        masks += [part[:: _STRIDE // 2, :: _STRIDE // 2, :: _STRIDE // 2] > TRUTH_LEVELS // 2 for part in self.truth]
        return tuple(_STRIDE * np.argwhere(mask.cpu().numpy()) for mask in masks)


def cache_path(case: TrainingCase, profile: Profile, folder: Path) -> Path:
    """Where `case`, prepared by `profile`, lies in the cache, if it is there.

    A file counts as changed when its size or time of modification did.
    """
    request = {
        "format": FORMAT,
        "profile": _profile_state(profile),
        "files": [str(path.resolve()) for path in case.files],
        "percentages": case.percentages,
    }
    state = [_file_state(path) for path in case.files]
    return folder / profile.name / f"{case.entity}.{_digest(request)}.{_digest(state)}.safetensors"


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]


def _profile_state(profile: Profile) -> dict[str, Any]:
    """Every number of a profile that concerns the input, and of the code it calls that may change; an interpolation is known by
    its type."""
    state = {option.name: getattr(profile, option.name) for option in fields(Profile) if option.name != "map_placement"}
    state["interpolation"] = type(profile.interpolation).__name__
    return state | {"window": WINDOW_HU, "low_attenuation": LOW_ATTENUATION_HU}


def _file_state(path: Path) -> list[int]:
    states = [file.stat() for file in files_behind(path)]
    return [number for state in states for number in (state.st_size, state.st_mtime_ns)]


def prepare_case(case: TrainingCase, profile: Profile) -> PreparedCase:
    """Read a scan and prepare it as inference does, with what training needs beside.

    Raises:
        InputError: the scan, its mask or a truth map cannot be used.
    """
    scan = Scan.read(case.ct, case.lung_mask)
    truth = None if case.truth is None else [read_truth(path, scan) for path in case.truth]
    return prepare_scan(scan, profile, truth, case.percentages)


def prepare_scan(
    scan: Scan,
    profile: Profile,
    truth: Sequence[npt.NDArray[np.float32]] | None,
    percentages: tuple[float, float] | None = None,
) -> PreparedCase:
    """Prepare a scan as inference does, with what training needs beside.

    Args:
        scan: CT and lung.
        profile: how the network's input is prepared.
        truth: centrilobular and paraseptal emphysema on the scan's grid, 0 to 1; None where it is not known.
        percentages: of the lung, 0 to 100; None: those of `truth`, if it is known.

    Raises:
        InputError: nothing of the lung mask is left at the network's resolution.
    """
    box = scan.lung_box()
    regions = Regions(scan.lung[box].astype(np.uint8), {"both": (1,)}, box)
    prepared = prepare(scan, regions, replace(profile, blank_outside=False))
    image = prepared.image[0, 0]
    darkest, brightest = float(image.min()), float(image.max())
    lung = prepared.labels > 0
    crop = scan.hounsfield[prepared.box]
    low = crop[np.ix_(*profile.interpolation.nearest(crop.shape, profile.input_shape))] < LOW_ATTENUATION_HU
    if truth is not None and percentages is None:
        centrilobular, paraseptal = (float(100 * part[scan.lung].mean(dtype=np.float64)) for part in truth)
        percentages = centrilobular, paraseptal
    z, y, x = ((size - 1) * spacing for size, spacing in zip(crop.shape, scan.spacing, strict=True))
    return PreparedCase(
        image=((image - darkest) * (LEVELS / max(brightest - darkest, 1e-6))).round().to(torch.uint8),
        darkest=darkest,
        brightest=brightest,
        lung=torch.from_numpy(lung),
        suspect=None if prepared.suspect is None else torch.from_numpy(prepared.suspect),
        low_attenuation=torch.from_numpy(low & lung),
        truth=None if truth is None else torch.cat([_on_map_grid(part[prepared.box], profile.map_shape) for part in truth]),
        extent_mm=(z, y, x),
        low_attenuation_percentage=float(100 * (scan.hounsfield[scan.lung] < LOW_ATTENUATION_HU).mean()),
        percentages=percentages,
    )


def read_truth(path: Path, scan: Scan) -> npt.NDArray[np.float32]:
    """A truth map in the patient's frame: 0 to 1; whole numbers above 0 count as 1."""
    volume = read_volume(path)
    if not volume.geometry.same_grid(scan.geometry):
        raise InputError(path, "the truth map lies on another grid than the CT", "a map on the CT's grid")
    values = scan.orientation.to_patient(sitk.GetArrayFromImage(volume.image))
    return np.clip(values if values.dtype.kind == "f" else values > 0, 0, 1).astype(np.float32)


def _on_map_grid(truth: npt.NDArray[np.float32], shape: Shape) -> Tensor:
    """Mean of a crop of a truth map over each voxel of the maps' grid: 1 x `shape`, uint8."""
    volume = torch.from_numpy(np.ascontiguousarray(truth))[None, None]
    return (TRUTH_LEVELS * functional.interpolate(volume, shape, mode="area")[0]).round().to(torch.uint8)


def write_case(prepared: PreparedCase, path: Path) -> None:
    """Write a prepared case, whole or not at all: 8 MB of image, 1 MB of bits for each mask, 2 MB of truth."""
    tensors = {"image": prepared.image, "lung": _packed(prepared.lung), "low_attenuation": _packed(prepared.low_attenuation)}
    if prepared.suspect is not None:
        tensors["suspect"] = _packed(prepared.suspect)
    if prepared.truth is not None:
        tensors["truth"] = prepared.truth
    numbers = {
        "darkest": prepared.darkest,
        "brightest": prepared.brightest,
        "extent_mm": prepared.extent_mm,
        "low_attenuation_percentage": prepared.low_attenuation_percentage,
        "percentages": prepared.percentages,
    }
    with whole_file(path) as unfinished:
        unfinished.write_bytes(save(tensors, {"numbers": json.dumps(numbers)}))  # save_file would shut other users out
    for other in path.parent.glob(f"{_escaped(path.name.rsplit('.', 2)[0])}.{'?' * DIGEST_LENGTH}.safetensors"):
        if other != path:
            other.unlink(missing_ok=True)  # prepared from files that have changed since


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def read_case(path: Path) -> PreparedCase:
    """Read a prepared case, about 10 ms from the page cache."""
    with safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors file is no mapping)
    shape = tensors["image"].shape
    return PreparedCase(
        image=tensors["image"],
        darkest=numbers["darkest"],
        brightest=numbers["brightest"],
        lung=_unpacked(tensors["lung"], shape),
        suspect=_unpacked(tensors["suspect"], shape) if "suspect" in tensors else None,
        low_attenuation=_unpacked(tensors["low_attenuation"], shape),
        truth=tensors.get("truth"),
        extent_mm=tuple(numbers["extent_mm"]),
        low_attenuation_percentage=numbers["low_attenuation_percentage"],
        percentages=None if numbers["percentages"] is None else tuple(numbers["percentages"]),
    )


class CaseFigures(NamedTuple):
    """The figures of a prepared case, in percent of the lung; see `PreparedCase`."""

    low_attenuation_percentage: float
    percentages: tuple[float, float] | None


def read_figures(path: Path) -> CaseFigures:
    """Read the figures of a prepared case without its voxels."""
    with safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
    percentages = numbers["percentages"]
    return CaseFigures(numbers["low_attenuation_percentage"], None if percentages is None else (percentages[0], percentages[1]))


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy(), axis=None))


def _unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy()).view(np.bool_)).reshape(shape)


def prepare_cohort(
    cases: Sequence[TrainingCase], profile: Profile, folder: Path, workers: int = 0, *, manifest: Path | str = "manifest"
) -> Iterator[int]:
    """Prepare every case that the cache does not hold yet.

    Args:
        cases: rows of a manifest.
        profile: how the network's input is prepared.
        folder: the cache.
        workers: processes that work beside this one; 0: none.
        manifest: the file with the rows, for messages.

    Yields:
        How many cases are ready, after each.

    Raises:
        InputError: scans cannot be used: one error, after the last case, that lists every one of them.
    """
    missing = [case for case in cases if not cache_path(case, profile, folder).is_file()]
    ready = len(cases) - len(missing)
    yield ready
    problems = []
    for problem in _prepared(missing, profile, folder, workers):
        if problem:
            problems.append(problem)
        ready += 1
        yield ready
    if problems:
        found = f"{len(problems)} scan{'s' if len(problems) > 1 else ''} cannot be used: {'; '.join(problems)}"
        raise InputError(manifest, found, "chest CTs in HU with masks of their lungs")


def _prepared(cases: list[TrainingCase], profile: Profile, folder: Path, workers: int) -> Iterable[str | None]:
    task = partial(_prepare_and_write, profile=profile, folder=folder)
    if not workers or len(cases) < 2:
        yield from map(task, cases)
        return
    with process_pool(min(workers, len(cases)), partial(torch.set_num_threads, 1)) as pool:
        yield from pool.map(task, cases)


def _prepare_and_write(case: TrainingCase, profile: Profile, folder: Path) -> str | None:
    """Prepare one case; what is wrong with it comes back as text, so that the others go on."""
    try:
        path = cache_path(case, profile, folder)
        write_case(prepare_case(case, profile), path)
    except InputError as error:
        return f"{case.entity}: {error}"
    return None
