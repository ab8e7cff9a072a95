"""The command `python -m model.training.patches_cohort`: volumes to train on, of labelled patches of real CT.

    python -m model.training.patches_cohort PATCHES LUNGS OUTPUT [--half first] [--rounds 20] [--seed 0] [--slices 2] [--truth]

PATCHES is a NumPy archive of 31 x 31 pixels of HU a patch, one array for each of six classes that a reader gave (from COPDGene:
acil-bwh/ChestImagingPlatform, Mendoza et al., ISBI 2012). LUNGS is a lung mask, for its outline. A patch is too small to be
scored, so patches are sewn into lungs:

- the lungs of one slice are filled with patches of one class, in random order, each in one of its eight positions;
- patches that touch the pleura are laid along the costal pleura, turned so that their chest wall faces outwards.

Each such slice becomes a CT of the same slice many times, a lung mask, and a row of OUTPUT/manifest.csv, all to train on. A
class becomes bounds of the percentages (`BOUNDS`). They are wide: the reader said which grade a patch has, not which share.

With --truth, it becomes voxel maps as well. What is emphysema follows from attenuation, as in the paper's segmentation loss
(below -950 HU); which subtype it is follows from the class of the patch: panlobular counts as centrilobular, and in normal
patches there is none.
"""

from __future__ import annotations

import argparse
import csv
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from numpy.lib import format as npy
from scipy import ndimage
from tqdm import tqdm

from ..cohort.manifest import BOUND_COLUMNS, LEADING_COLUMN, MANIFEST_FILE, TRUTH_COLUMNS, UNIFORM_COLUMN
from ..command_line import OneLineParser, exit_code, module_command, whole_number
from ..errors import InputError, reason
from ..fleischner import CENTRILOBULAR, PARASEPTAL
from ..imaging.readers import read_volume
from ..lungs.densitometry import LOW_ATTENUATION_HU
from ..whole_files import check_free, make_folder, whole_file
from .slices_cohort import SLICES, repeated, repeated_mask, volume_files, write_image, write_volume

Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Point = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""A place on the pleura (y, x in pixels), and the direction out of the lung (unit vector)."""

CLASSES = (
    "normal",
    "paraseptal",
    "panlobular",
    "mild_centrilobular",
    "moderate_centrilobular",
    "severe_centrilobular",
)
SIZE, SPACING_MM = 31, 0.65
"""Pixels of a patch along both axes, and their size; the real size is 0.6 to 0.8 mm and was not recorded."""

BOUNDS: Mapping[str, tuple[str, str, str, str]] = {
    "normal": ("0", "0.5", "0", "0.5"),
    "mild_centrilobular": ("0.5", "15", "0", "1"),
    "moderate_centrilobular": ("10", "60", "0", "1"),
    "severe_centrilobular": ("30", "", "0", "1"),
    "panlobular": ("5", "", "0", "1"),
}
"""Of lungs filled with a class: lower and upper bound in percent of the lung, centrilobular and paraseptal.

As for single slices, panlobular is at least 5 % centrilobular and says no more of it."""

PARASEPTAL_RIM = ("4", "40")
"""Bounds of paraseptal emphysema where paraseptal patches lie along the pleura."""
BESIDE_PARASEPTAL = "1"
"""Upper bound of centrilobular emphysema there, if normal patches fill the lungs."""
BEHIND_RIM = 0.7
"""Share of the lung that is left to the filling where patches lie along the pleura: 0.65 to 0.75."""

FILLINGS = ("normal", "mild_centrilobular", "moderate_centrilobular", "severe_centrilobular", "panlobular")
Kinds = Sequence[tuple[str, str | None]]
KINDS: Kinds = (
    *((filling, None) for filling in FILLINGS),
    ("normal", "normal"),
    ("normal", "paraseptal"),
    ("mild_centrilobular", "paraseptal"),
    ("moderate_centrilobular", "normal"),
)
"""What fills the lungs, and what is laid along the pleura, of the volumes of a round."""


def name_of(filling: str, rim: str | None) -> str:
    """The name of a kind, such as normal-paraseptal."""
    return f"{filling}-{rim or 'alone'}"


STEP = 25
"""Pixels between the middles of patches: neighbours overlap."""
RADIUS = SIZE // 2
LEAST_WALL = 0.02
"""Share of chest wall from which on a patch touches the pleura."""
WALL_HU, AIR_HU = 45.0, -1000.0
WALL_PIXELS = 30
"""How thick the chest wall is."""
LEAST_WALL_PIXELS = 40
"""Smaller bright parts are vessels."""
SMOOTHING_MM = 0.65
"""Standard deviation of the Gaussian filter inside the lungs, before pixels are compared with -950 HU: against noise."""
_TISSUE_HU = -550.0
_FEWEST = 2
_EXPECTED = f"a .npz with arrays {', '.join(CLASSES)}, each N x {SIZE} x {SIZE} HU (integers)"


def read_class_patches(path: Path, half: str) -> dict[str, npt.NDArray[np.int16]]:
    """One half of the patches of each class, N x 31 x 31 HU, in the file's order: neighbours may be of one patient.

    Args:
        path: a .npz.
        half: first or second.

    Raises:
        InputError: the file cannot be read, or is none of patches.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            patches = {name: _array(archive, name) for name in CLASSES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(path, f"it cannot be read ({reason(error)})", _EXPECTED) from error
    for name, values in patches.items():
        if values.ndim != 3 or values.shape[1:] != (SIZE, SIZE) or len(values) < _FEWEST or values.dtype.kind not in "iu":
            raise InputError(path, f"{name} is {' x '.join(map(str, values.shape))} of {values.dtype}", _EXPECTED)
    return {
        name: values[: len(values) // 2] if half == "first" else values[len(values) // 2 :] for name, values in patches.items()
    }


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[np.int16]:
    """An array of a .npz, which never unpickles."""
    with archive.open(f"{name}.npy") as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


def chest_wall(patch: npt.NDArray[np.floating]) -> Mask:
    """Chest wall and mediastinum: large bright parts that touch the patch's border."""
    parts, count = ndimage.label(patch > _TISSUE_HU)
    if count == 0:
        return np.zeros(patch.shape, bool)
    border = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    sizes = np.bincount(parts.ravel())
    large = [k for k in border if k > 0 and sizes[k] >= LEAST_WALL_PIXELS]
    return np.isin(parts, large)


@dataclass(frozen=True)
class Kit:
    """The patches of one class that are sewn into lungs, and those that are laid along the pleura."""

    inner: list[Plane]
    pleural: list[Plane]

    @classmethod
    def of(cls, patches: npt.NDArray[np.int16]) -> Kit:
        inner: list[Plane] = []
        pleural: list[Plane] = []
        for patch in patches.astype(np.float32):
            (pleural if chest_wall(patch).mean() > LEAST_WALL else inner).append(patch)
        return cls(inner, pleural)


@dataclass(frozen=True)
class Chest:
    """One slice through a chest: lungs, and lungs with the tissue around and between them; Y x X, pixels of 0.65 mm."""

    lungs: Mask
    body: Mask


@dataclass(frozen=True)
class LungMask:
    """Lungs (Z x Y x X, axial slices), and the size of their pixels along y and x in mm."""

    lungs: Mask
    pixel_mm: tuple[float, float]

    @classmethod
    def read(cls, path: Path) -> LungMask:
        """Read a lung mask in any orientation.

        Raises:
            InputError: the file cannot be read, or has no lungs.
        """
        mask = sitk.DICOMOrient(read_volume(path).image, "LPS")
        lungs = sitk.GetArrayViewFromImage(mask) > 0
        if not lungs.any():
            raise InputError(path, "every voxel is 0", "a lung mask")
        x, y, _ = mask.GetSpacing()
        return cls(lungs, (y, x))


def outline(mask: LungMask, level: float | None = None, scale: float = 1.0) -> Chest:
    """One slice of a lung mask, with a chest wall of 20 mm.

    Args:
        mask: of the lungs.
        level: of the slice, as a share of the lungs' height from their first slice; None for the slice with most lung.
        scale: how much wider the lungs become.
    """
    areas = np.count_nonzero(mask.lungs, axis=(1, 2))
    levels = np.flatnonzero(areas)
    number = int(np.argmax(areas)) if level is None else int(levels[round(level * (len(levels) - 1))])
    factors = [scale * pixel / SPACING_MM for pixel in mask.pixel_mm]
    plane = ndimage.zoom(mask.lungs[number].astype(np.float32), factors, order=1) > 0.5
    rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
    plane = np.pad(plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 3 * WALL_PIXELS)
    closed = ndimage.binary_fill_holes(ndimage.distance_transform_edt(~plane) <= 2 * WALL_PIXELS)
    return Chest(plane, ndimage.distance_transform_edt(closed) > WALL_PIXELS)


def _shuffled(patches: Sequence[Plane], rng: np.random.Generator) -> Iterator[Plane]:
    """Patches in random order without an end: each once before one comes again."""
    while True:
        for number in rng.permutation(len(patches))[::-1]:
            yield patches[number]


def sewn(patches: Sequence[Plane], shape: tuple[int, ...], rng: np.random.Generator) -> Plane:
    """A plane of patches in random order, each in a random one of its eight positions."""
    ramp = np.minimum(np.arange(1, SIZE + 1), np.arange(SIZE, 0, -1)).clip(max=SIZE - STEP)
    weight = np.outer(ramp, ramp).astype(np.float32) ** 4  # a narrow seam: where two patches are averaged, noise is less
    total = np.zeros([n + 2 * SIZE for n in shape], np.float32)
    weights = np.zeros_like(total)
    shuffled = _shuffled(patches, rng)
    for y in range(0, total.shape[0] - SIZE + 1, STEP):
        for x in range(0, total.shape[1] - SIZE + 1, STEP):
            patch: Plane = np.rot90(next(shuffled), int(rng.integers(4)))
            total[y : y + SIZE, x : x + SIZE] += weight * (patch[:, ::-1] if rng.random() < 0.5 else patch)
            weights[y : y + SIZE, x : x + SIZE] += weight
    inside = tuple(slice(RADIUS, RADIUS + n) for n in shape)
    return np.asarray(total[inside] / weights[inside])


def costal_pleura(chest: Chest, rng: np.random.Generator) -> list[Point]:
    """Points of the lungs' outline at least `STEP` pixels apart, where the chest wall lies behind it."""
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(chest.lungs.astype(np.float64), SIZE / 6))
    to_air = ndimage.distance_transform_edt(chest.body)
    edge = chest.lungs & ~ndimage.binary_erosion(chest.lungs) & (to_air <= 1.3 * WALL_PIXELS)
    points: list[Point] = []
    for place in rng.permutation(np.argwhere(edge)):
        if all(np.hypot(*(place - other)) >= STEP for other, _ in points):
            outwards = -np.array([slope_y[tuple(place)], slope_x[tuple(place)]])
            points.append((place.astype(np.float64), outwards / max(float(np.hypot(*outwards)), 1e-9)))
    return points


@dataclass(frozen=True)
class Sewn:
    """One slice of patches, Y x X: HU, lungs, and the patches that were laid along the pleura."""

    hounsfield: Plane
    lungs: Mask
    rim: Mask


def lay(slice_: Sewn, patch: Plane, point: Point) -> None:
    """Put the disc in a patch's middle onto the pleura, its chest wall outwards: the slice is changed there."""
    place, outwards = point
    wall = chest_wall(patch)
    grid = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    to_wall = np.array([grid[axis][wall].mean() for axis in (0, 1)])
    to_wall /= max(float(np.hypot(*to_wall)), 1e-9)
    ray = np.rint(np.arange(RADIUS + 1)[:, None] * to_wall).astype(int) + RADIUS
    reached = np.flatnonzero(wall[ray[:, 0], ray[:, 1]])
    depth = int(reached[0]) if len(reached) else RADIUS
    offsets = np.argwhere(np.hypot(*grid) <= RADIUS) - RADIUS
    turn = np.arctan2(to_wall[0], to_wall[1]) - np.arctan2(outwards[0], outwards[1])
    turned = offsets @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    source = np.rint(turned).astype(int).clip(-RADIUS, RADIUS) + RADIUS
    target = offsets + np.rint(place - depth * outwards).astype(int)
    there, taken = (target[:, 0], target[:, 1]), (source[:, 0], source[:, 1])
    slice_.hounsfield[there] = patch[taken]
    slice_.lungs[there] = ~wall[taken]
    slice_.rim[there] = True


def sew(chest: Chest, filling: Kit, rim: Kit | None, rng: np.random.Generator) -> Sewn:
    """A slice whose lungs are filled with one kit, and whose pleura is covered with another."""
    around = np.where(chest.body, WALL_HU, AIR_HU).astype(np.float32)
    plane = np.where(chest.lungs, sewn(filling.inner, chest.lungs.shape, rng), around)
    slice_ = Sewn(plane, chest.lungs.copy(), np.zeros(plane.shape, bool))
    if rim is not None:
        for point, patch in zip(costal_pleura(chest, rng), _shuffled(rim.pleural, rng), strict=False):
            lay(slice_, patch, point)
    return slice_


def truth_of(slice_: Sewn, filling: str, rim: str | None) -> tuple[Mask, Mask]:
    """Where a slice shows centrilobular and paraseptal emphysema, Y x X: low attenuation in patches of its class."""
    lungs, width = slice_.lungs.astype(np.float32), SMOOTHING_MM / SPACING_MM
    summed, weights = (ndimage.gaussian_filter(values, width) for values in (slice_.hounsfield * lungs, lungs))
    low = slice_.lungs & (summed < LOW_ATTENUATION_HU * weights)
    nowhere = np.zeros_like(low)
    inside = nowhere if filling == "normal" else low & ~slice_.rim
    return inside, low & slice_.rim if rim == PARASEPTAL.name else nowhere


def bounds_of(filling: str, rim: str | None) -> tuple[str, str, str, str]:
    """Lower and upper bound, centrilobular and paraseptal, in percent of the lung."""
    lower, upper, *paraseptal = BOUNDS[filling]
    if rim is not None and filling != "normal":
        lower, upper = (f"{BEHIND_RIM * float(bound):g}" if bound else "" for bound in (lower, upper))
    if rim == PARASEPTAL.name:
        return lower, BESIDE_PARASEPTAL if filling == "normal" else upper, *PARASEPTAL_RIM
    return lower, upper, paraseptal[0], paraseptal[1]


def _leading(filling: str, rim: str | None) -> str:
    if rim == PARASEPTAL.name:
        return PARASEPTAL.name if filling == "normal" else ""
    return "" if filling in ("normal", "panlobular") else CENTRILOBULAR.name


def truth_files(entity: str) -> tuple[str, str]:
    """Names of the voxel maps of a volume."""
    return f"{entity}_{CENTRILOBULAR.name}.mha", f"{entity}_{PARASEPTAL.name}.mha"


def _sewn_slices(
    kits: Mapping[str, Kit], lungs: LungMask, rounds: int, seed: int, kinds: Kinds
) -> Iterator[tuple[str, str, str | None, Sewn]]:
    """Entity, filling, rim and the slice; each round has lungs of another height and width."""
    for number in range(rounds):
        rng = np.random.default_rng((seed, number))
        chest = outline(lungs, float(rng.uniform(0.3, 0.85)), float(rng.uniform(0.85, 1.15)))
        for filling, rim in kinds:
            slice_ = sew(chest, kits[filling], kits[rim] if rim else None, rng)
            yield f"{name_of(filling, rim)}-{number:03d}", filling, rim, slice_


def write_cohort(
    kits: Mapping[str, Kit],
    lungs: LungMask,
    output: Path,
    rounds: int,
    seed: int,
    slices: int,
    *,
    kinds: Kinds = KINDS,
    with_truth: bool = False,
) -> Path:
    """Write the volumes of some rounds and their manifest into a folder that is there; the manifest comes last, and whole."""
    path = output / MANIFEST_FILE
    columns = (*BOUND_COLUMNS[CENTRILOBULAR.name], *BOUND_COLUMNS[PARASEPTAL.name])
    with whole_file(path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        truth_columns = TRUTH_COLUMNS if with_truth else ()
        writer.writerow(("entity", "ct", "lung_mask", *columns, LEADING_COLUMN, UNIFORM_COLUMN, "split", *truth_columns))
        cases = _sewn_slices(kits, lungs, rounds, seed, kinds)
        for entity, filling, rim, slice_ in tqdm(cases, total=rounds * len(kinds), desc="writing", disable=None):
            write_volume(repeated(slice_.hounsfield, slice_.lungs, SPACING_MM, slices), output, entity)
            maps = dict(zip(truth_files(entity), truth_of(slice_, filling, rim), strict=True)) if with_truth else {}
            for name, mask in maps.items():
                write_image(repeated_mask(mask, SPACING_MM, slices), output / name)
            known = (*bounds_of(filling, rim), _leading(filling, rim), "yes", "train")
            writer.writerow((entity, *volume_files(entity), *known, *maps))
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog=module_command("training.patches_cohort"), description="Volumes to train on, of patches.")
    parser.add_argument("patches", type=Path, metavar="PATCHES", help=_EXPECTED)
    parser.add_argument("lungs", type=Path, metavar="LUNGS", help="a lung mask, for its outline")
    parser.add_argument("output", type=Path, help="a new or empty folder")
    parser.add_argument("--half", choices=("first", "second"), default="first", help="of each class; default: %(default)s")
    names = [name_of(*kind) for kind in KINDS]
    parser.add_argument("--rounds", type=int, default=20, help="volumes of each kind; default: %(default)s")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=names,
        default=names,
        metavar="KIND",
        help=f"what fills the lungs, and what lies along the pleura: some of {', '.join(names)}; default: all",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--slices", type=int, default=SLICES, help="times that a slice is repeated; default: %(default)s")
    parser.add_argument("--truth", action="store_true", help="also write voxel maps: low attenuation in patches of a class")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, expected 1 or more")
    if options.slices < 2:
        parser.error(f"--slices is {options.slices}, expected 2 or more")
    return exit_code(lambda: _run(options), options.output)


def _run(options: argparse.Namespace) -> None:
    kits = {name: Kit.of(values) for name, values in read_class_patches(options.patches, options.half).items()}
    kinds = [kind for kind in KINDS if name_of(*kind) in options.kinds]
    used = [(filling, kits[filling].inner) for filling, _ in kinds] + [(rim, kits[rim].pleural) for _, rim in kinds if rim]
    for name, parts in used:
        if not parts:
            raise InputError(options.patches, f"no patch of class {name} can be used", _EXPECTED)
    check_free(options.output)
    lungs = LungMask.read(options.lungs)
    make_folder(options.output)
    path = write_cohort(
        kits, lungs, options.output, options.rounds, options.seed, options.slices, kinds=kinds, with_truth=options.truth
    )
    print(f"{path}: {options.rounds * len(kinds)} volumes of the {options.half} half of each class")


if __name__ == "__main__":
    sys.exit(main())
