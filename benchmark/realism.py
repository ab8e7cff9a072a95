"""Hold the simulator to real lungs: simulated patches beside the labelled patches of COPDGene.

Usage: python benchmark/realism.py --patches patches.npz [--half second] [--cases 24] [--look measured] [--picture DIR]

Real patches are 31 x 31 pixels of HU, six classes (acil-bwh/ChestImagingPlatform, Mendoza et al., ISBI 2012). The file's
first half of each class is for choosing the simulator's numbers, the second for reporting. Simulated patches are cut from
slabs of simulated scans, each labelled by what its middle shows and how much of it disease takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.command_line import OneLineParser, exit_code, whole_number
from model.errors import InputError
from model.simulation import CaseParameters, draw_parameters, simulate
from model.simulation.case import Look, SimulatedCase
from model.simulation.scanner import Slab
from model.training.patches_cohort import CLASSES, LEAST_WALL_PIXELS, SIZE, SPACING_MM, chest_wall, read_class_patches
from model.whole_files import try_folder, whole_file

Floats = npt.NDArray[np.float64]
Patches = npt.NDArray[np.int16]

FOUR = {name: name.split("_")[-1] for name in CLASSES}
"""Classes of the transfer: the three grades of centrilobular emphysema are one."""

SLAB_SLICES, SLAB_INCREMENT_MM = 27, 0.75
TAKEN_SLICES = (4, 13, 22)
PATCHES_A_SLICE = 5

BLOCKS = 6
"""Parts of each class of the real patches, of neighbours in the file, which may be of one patient."""

DISEASES: tuple[tuple[int, int, float], ...] = (
    (0, 0, 0.0),
    (1, 0, 0.0),
    (2, 2, 0.0),
    (3, 1, 0.0),
    (4, 2, 0.0),
    (5, 0, 0.0),
    (0, 2, 0.0),
    (0, 0, 45.0),
    (1, 0, 45.0),
    (0, 0, 60.0),
)
"""CLE score, PSE score and percentage of panlobular emphysema of the cases, in turn, so that each class is met."""

LUNG_HU = -700.0
EMPHYSEMA_HU = -950.0


# ---------------------------------------------------------------------------------------------------- simulated patches


def patch_parameters(number: int, seed: int, look: Look) -> CaseParameters:
    """Case `number`, in the protocol of COPDGene: slices of 0.6 to 0.9 mm, smooth kernels, full dose (Regan et al. 2010)."""
    cle, pse, panlobular = DISEASES[number % len(DISEASES)]
    sequence = np.random.SeedSequence(seed, spawn_key=(number,))
    parameters = draw_parameters(sequence, cle, pse, panlobular=panlobular, look=look)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, 1)))
    scanner = parameters.scanner
    thickness = float(rng.uniform(0.6, 0.9))
    scanner = replace(parameters.scanner, slice_thickness=thickness, slice_increment=thickness)
    if look == "measured":
        sharpness = float(rng.uniform(0, 0.4))
        scanner = replace(
            scanner, sharpness=sharpness, mtf50=(0.32 + 0.25 * sharpness) * rng.uniform(0.9, 1.2), enhancement=0.0
        )
        seen = min(parameters.scanner.noise_hu, float(rng.uniform(12, 31)))
        scanner = replace(scanner, noise=scanner.noise * seen / scanner.noise_hu)
    return replace(parameters, scanner=scanner, mask=None)


def cut_patches(case: SimulatedCase, rng: np.random.Generator) -> Iterator[tuple[str, Patches]]:
    """Patches of every class that a slab shows, a few a slice and class, as a reader would label their middles."""
    half = SIZE // 2
    for z in TAKEN_SLICES:
        lung = case.lungs[z] > 0
        cle, pse, pan = (truth[z] for truth in (case.centrilobular, case.paraseptal, case.panlobular))
        shares = [_share(truth, lung) for truth in (cle, pse, pan)]
        inside = ndimage.uniform_filter(lung.astype(np.float32), SIZE)
        near_cle = ndimage.binary_dilation(cle, iterations=2)
        in_pse = ndimage.binary_erosion(pse, iterations=1)
        margin = np.zeros_like(lung)
        margin[half:-half, half:-half] = True
        distance = ndimage.distance_transform_edt(lung, sampling=SPACING_MM)
        tissue = ndimage.uniform_filter(case.hounsfield[z].astype(np.float32), 3) < LUNG_HU
        away, peripheral = tissue & (distance > 4), distance < 22
        c, p, q = shares
        rest = (p < 0.03) & (q < 0.03)
        places = {
            "normal": lung & away & peripheral & (c + p + q < 0.002) & (inside > 0.85),
            "paraseptal": in_pse & (p > 0.04) & (p < 0.95) & (c < 0.1) & (inside > 0.25) & (inside < 0.99),
            "panlobular": pan & away & (q > 0.85) & (inside > 0.93),
            "mild_centrilobular": near_cle & away & rest & (c > 0.01) & (c < 0.08) & (inside > 0.9),
            "moderate_centrilobular": away & lung & rest & (c > 0.14) & (c < 0.55) & (inside > 0.9),
            "severe_centrilobular": away & lung & rest & (c > 0.7) & (inside > 0.9),
        }
        for name, where in places.items():
            rows, columns = np.nonzero(where & margin)
            if not len(rows):
                continue
            taken: list[tuple[int, int]] = []
            for k in rng.permutation(len(rows))[:200]:
                y, x = int(rows[k]), int(columns[k])
                if all(abs(y - a) > half or abs(x - b) > half for a, b in taken):
                    taken.append((y, x))
                    yield name, case.hounsfield[z, y - half : y + half + 1, x - half : x + half + 1]
                if len(taken) == PATCHES_A_SLICE:
                    break


def _share(truth: npt.NDArray[np.bool_], lung: npt.NDArray[np.bool_]) -> Floats:
    """Share of the lung within a patch around each pixel that `truth` takes."""
    part, whole = (ndimage.uniform_filter(mask.astype(np.float64), SIZE) for mask in (truth & lung, lung))
    return np.asarray(part / np.maximum(whole, 1e-3))


@dataclass(frozen=True)
class LabelledPatches:
    """N patches (N x 31 x 31, HU), their classes, and what they were taken from (one number a case or block)."""

    patches: Patches
    labels: npt.NDArray[np.str_]
    sources: npt.NDArray[np.int64]

    def of(self, name: str) -> Patches:
        return self.patches[self.labels == name]

    @cached_property
    def textures(self) -> Floats:
        """The `features` of all patches, N x F."""
        return features(self.patches)


def simulate_patches(cases: int, seed: int, look: Look) -> LabelledPatches:
    """Cut patches from `cases` simulated slabs.

    Raises:
        InputError: the slabs show no patch of a class.
    """
    patches, labels, sources = [], [], []
    for number in tqdm(range(cases), unit="slab", desc="simulating", disable=None):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, 2)))
        parameters = patch_parameters(number, seed, look)
        slab = Slab(float(rng.uniform(0.3, 0.92)), SLAB_SLICES, SLAB_INCREMENT_MM, SPACING_MM)
        for name, patch in cut_patches(simulate(parameters, slab), rng):
            patches.append(patch)
            labels.append(name)
            sources.append(number)
    missing = [name for name in CLASSES if name not in labels]
    if missing:
        raise InputError("--cases", f"{cases} slabs show no patch of {', '.join(missing)}", "more slabs")
    return LabelledPatches(np.stack(patches), np.array(labels), np.array(sources))


def read_patches(path: Path, half: str) -> LabelledPatches:
    """One half of each class of the real patches; neighbours in the file may be of one patient and stay in one block."""
    patches, labels, sources = [], [], []
    for name, part in read_class_patches(path, half).items():
        patches.append(part)
        labels += [name] * len(part)
        sources.append(np.arange(len(part)) * BLOCKS // len(part))
    return LabelledPatches(np.concatenate(patches), np.array(labels), np.concatenate(sources))


# -------------------------------------------------------------------------------------------------------------- measures


def homogeneous_noise(patch: Floats) -> float:
    """Standard deviation (HU) where the patch is most even: the tenth percentile over windows of 5 x 5 pixels."""
    mean = ndimage.uniform_filter(patch, 5)
    variance = ndimage.uniform_filter(patch**2, 5) - mean**2
    inner = np.sqrt(np.maximum(variance, 0))[2:-2, 2:-2]
    return float(np.quantile(inner, 0.1))


def fine_detail(patch: Floats) -> Floats:
    """What is finer than about 3 mm, vessels cut off."""
    return np.asarray(np.clip(patch - ndimage.gaussian_filter(patch, 2.0), -45, 45))


def directionality(patch: Floats) -> float:
    """How far the fine detail runs one way: 0 even to 1 all stripes (second circular moment of its power spectrum)."""
    window = np.outer(np.hanning(SIZE), np.hanning(SIZE))
    power = np.abs(np.fft.fft2(fine_detail(patch) * window)) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(SIZE, SPACING_MM), np.fft.fftfreq(SIZE, SPACING_MM), indexing="ij")
    f = np.hypot(fy, fx)
    power = np.where((f > 0.12) & (f < 0.6), power, 0)
    return float(np.abs((power * np.exp(2j * np.arctan2(fy, fx))).sum()) / max(power.sum(), 1e-9))


def radial_power(patches: Patches) -> tuple[Floats, Floats]:
    """Frequencies (1 / mm) and mean power of patches clipped to [-1024, -700] HU."""
    window = np.outer(np.hanning(SIZE), np.hanning(SIZE))
    clipped = np.clip(patches.astype(float), -1024, LUNG_HU)
    clipped -= clipped.mean((1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(clipped * window)) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(SIZE, SPACING_MM)[:, None], np.fft.fftfreq(SIZE, SPACING_MM)[None, :])
    return f.ravel(), power.ravel()


def _band(patches: Patches, low: float, high: float) -> float:
    f, power = radial_power(patches)
    return float(power[(f >= low) & (f < high)].mean())


def ridges(patch: Floats) -> Floats:
    """Height (HU) of thin bright lines: the curvature across them, of the patch clipped to vessels and smoothed a little."""
    smooth = ndimage.gaussian_filter(np.clip(patch, -1024, -780), 0.7)
    yy = ndimage.correlate1d(smooth, [1, -2, 1], axis=0)
    xx = ndimage.correlate1d(smooth, [1, -2, 1], axis=1)
    yx = ndimage.correlate1d(ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=0), [-0.5, 0, 0.5], axis=1)
    root = np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    across, along = (yy + xx) / 2 - root, (yy + xx) / 2 + root
    return np.asarray(np.where(across < -np.abs(along) * 1.5, -across, 0))


def wall_crests(patches: Patches) -> float:
    """Pixels a hundred on the crest of a thin wall: bright lines of at most -840 HU that are not vessels."""
    crest = [(ridges(p) > 14) & (p > -940) & (p < -820) for p in patches.astype(float)]
    return 100 * float(np.mean(crest))


def strands(patches: Patches) -> float:
    """Percent of pixels in thin bright strands: connected crests of at least 6 pixels."""
    total = 0.0
    for p in patches.astype(float):
        parts, count = ndimage.label((ridges(p) > 10) & (p > -950), np.ones((3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        sizes[0] = 0
        total += sizes[sizes >= 6].sum() / p.size
    return 100 * total / len(patches)


def _lung(patches: Patches) -> list[Floats]:
    return [p[~chest_wall(p)] for p in patches.astype(float)]


def dark_component(patch: Floats) -> float:
    """Diameter (mm, of the circle of that area) of the largest region below -930 HU after slight smoothing."""
    parts, count = ndimage.label(ndimage.gaussian_filter(patch, 0.7) < -930)
    if count == 0:
        return 0.0
    return float(2 * np.sqrt(np.bincount(parts.ravel())[1:].max() / np.pi) * SPACING_MM)


def under_pleura(patch: Floats) -> Floats:
    """HU between 1 and 2 mm under the pleura, where the patch shows it."""
    wall = chest_wall(patch)
    if wall.sum() < LEAST_WALL_PIXELS:
        return np.empty(0)
    distance = ndimage.distance_transform_edt(~wall, sampling=SPACING_MM)
    return np.asarray(patch[(distance >= 1) & (distance < 2)])


def table(data: LabelledPatches) -> dict[str, float]:
    """The rows of the comparison, by name."""
    rows: dict[str, float] = {}
    pieces = {name: _lung(data.of(name)) for name in CLASSES}
    lung = {name: np.concatenate(parts) for name, parts in pieces.items()}
    for name in CLASSES:
        rows[f"{name}: median (HU)"] = float(np.median(lung[name]))
    for name in CLASSES:
        rows[f"{name}: above -700 HU (%)"] = 100 * float(np.mean(lung[name] > LUNG_HU))
    for name in CLASSES:
        rows[f"{name}: below -950 HU (%)"] = 100 * float(np.mean(lung[name] < EMPHYSEMA_HU))
    pse = data.of("paraseptal").astype(float)
    middle = SIZE // 2
    rows["paraseptal: middle (HU)"] = float(np.median(pse[:, middle, middle]))
    rows["paraseptal: dark component, 90th percentile (mm)"] = float(np.quantile([dark_component(p) for p in pse], 0.9))
    rows["paraseptal: 1-2 mm under the pleura (HU)"] = float(np.median(np.concatenate([under_pleura(p) for p in pse])))
    for name in ("moderate_centrilobular", "severe_centrilobular"):
        rows[f"{name}: wall crests a 100 pixels"] = wall_crests(data.of(name))
        rows[f"{name}: thin bright strands (%)"] = strands(data.of(name))
    every = data.patches.astype(float)
    noise = np.array([homogeneous_noise(p) for p in every])
    rows["noise where even, median (HU)"] = float(np.median(noise))
    rows["noise where even, 10th percentile (HU)"] = float(np.quantile(noise, 0.1))
    rows["noise where even, 90th percentile (HU)"] = float(np.quantile(noise, 0.9))
    even = np.isin(data.labels, ("normal", "panlobular"))
    rows["directional noise, normal and panlobular (%)"] = 100 * float(np.mean([directionality(p) > 0.3 for p in every[even]]))
    for low, high in ((0.04, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.7)):
        rows[f"moderate_centrilobular: root power at {low}-{high} /mm"] = float(
            np.sqrt(_band(data.of("moderate_centrilobular"), low, high))
        )
    return rows


def features(patches: Patches) -> Floats:
    """Texture of each patch: histogram, detail by scale, gradients, ridges, local binary patterns, low attenuation."""
    rows = []
    for patch in patches.astype(float):
        p = np.clip(patch, -1024, -500)
        row = list(np.quantile(p, (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)))
        row += [float(np.mean(p < t)) for t in (-970, -950, -930, -910, -880, -800, -700)]
        row += [float(np.mean(patch > -550))]
        previous = p
        for sigma in (0.6, 1.0, 1.7, 3.0, 5.0):
            smooth = ndimage.gaussian_filter(p, sigma)
            detail = previous - smooth
            row += [float(detail.std()), *np.quantile(detail, (0.05, 0.5, 0.95))]
            previous = smooth
        middle = ndimage.gaussian_filter(p, 1.0)
        gradient = np.hypot(*np.gradient(middle))
        row += list(np.quantile(gradient, (0.1, 0.5, 0.9)))
        row += list(np.quantile(ridges(patch), (0.5, 0.8, 0.95)))
        row += [homogeneous_noise(p), directionality(p), dark_component(p)]
        parts, count = ndimage.label(middle < EMPHYSEMA_HU)
        row += [float(count), float(np.bincount(parts.ravel())[1:].max(initial=0))]
        around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
        centre = p[1:-1, 1:-1]
        bits = [p[1 + y : SIZE - 1 + y, 1 + x : SIZE - 1 + x] > centre for y, x in around]
        ones = np.sum(bits, axis=0)
        changes = np.sum([bits[k] != bits[k - 1] for k in range(8)], axis=0)
        pattern = np.where(changes <= 2, ones, 9)
        row += list(np.bincount(pattern.ravel(), minlength=10) / pattern.size)
        rows.append(row)
    return np.asarray(rows)


def transfer(train: LabelledPatches, test: LabelledPatches) -> tuple[float, dict[str, float]]:
    """Balanced accuracy (4 classes) of a forest of textures trained on one and tested on the other, and recall by class."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(400, class_weight="balanced_subsample", min_samples_leaf=2, random_state=0)
    forest.fit(train.textures, [FOUR[name] for name in train.labels])
    found, true = forest.predict(test.textures), np.array([FOUR[name] for name in test.labels])
    recall = {name: float(np.mean(found[true == name] == name)) for name in np.unique(true)}
    return float(np.mean(list(recall.values()))), recall


def told_apart(real: LabelledPatches, others: LabelledPatches) -> dict[str, float]:
    """AUC, by class, of a forest of textures that tells the patches of one from the other's, in cross-validation by source."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    result = {}
    for name in CLASSES:
        mine, theirs = real.labels == name, others.labels == name
        x = np.concatenate([real.textures[mine], others.textures[theirs]])
        y = np.repeat([1, 0], [np.count_nonzero(mine), np.count_nonzero(theirs)])
        groups = np.concatenate([real.sources[mine], 1000 + others.sources[theirs]])
        forest = RandomForestClassifier(300, class_weight="balanced", min_samples_leaf=2, random_state=0)
        folds = GroupKFold(5, shuffle=True, random_state=0)
        scores = cross_val_predict(forest, x, y, groups=groups, cv=folds, method="predict_proba")[:, 1]
        result[name] = float(roc_auc_score(y, scores))
    return result


def write_pictures(real: LabelledPatches, simulated: LabelledPatches, folder: Path) -> None:
    """One PNG a class: real patches on the left, simulated ones on the right, window -1050 to -650 HU."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        sides = []
        for data in (real, simulated):
            chosen = data.of(name)
            chosen = chosen[np.sort(rng.choice(len(chosen), min(20, len(chosen)), replace=False))]
            grey = np.clip((chosen.astype(float) + 1050) / 400 * 255, 0, 255).astype(np.uint8)
            tiles = [np.pad(np.kron(tile, np.ones((4, 4), np.uint8)), 2, constant_values=128) for tile in grey]
            tiles += [np.zeros_like(tiles[0])] * (20 - len(tiles))
            sides.append(np.vstack([np.hstack(tiles[k : k + 4]) for k in range(0, 20, 4)]))
        gap = np.full((len(sides[0]), 12), 255, np.uint8)
        with whole_file(folder / f"{name}.png") as partial:
            Image.fromarray(np.hstack([sides[0], gap, sides[1]])).save(partial, format="PNG")


def run(options: argparse.Namespace) -> None:
    """Simulate, compare and print.

    Raises:
        InputError: the patches cannot be read, the folder of the pictures cannot be written, or there are too few slabs.
    """
    if options.picture:
        try_folder(options.picture)
    real = read_patches(options.patches, options.half)
    simulated = simulate_patches(options.cases, options.seed, options.look)
    counts = {name: f"{len(real.of(name))} / {len(simulated.of(name))}" for name in CLASSES}
    print("patches, real / simulated: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    ours, theirs = table(simulated), table(real)
    print(f"| {'':58} | {'real':>7} | {'simulated':>9} |\n| --- | --- | --- |")
    for name, value in theirs.items():
        print(f"| {name:58} | {value:7.1f} | {ours[name]:9.1f} |")
    if options.picture:
        write_pictures(real, simulated, options.picture)
    if options.table_alone:
        return
    accuracy, recall = transfer(simulated, real)
    print(f"transfer, balanced accuracy of 4 classes: {accuracy:.3f} ({', '.join(f'{k} {v:.2f}' for k, v in recall.items())})")
    other = read_patches(options.patches, "first" if options.half == "second" else "second")
    print(f"the same, trained on the other real half: {transfer(other, real)[0]:.3f}")
    for title, others in (("real against simulated", simulated), ("real against the other real half", other)):
        auc = told_apart(real, others)
        each = ", ".join(f"{name} {value:.2f}" for name, value in auc.items())
        print(f"{title}, AUC: mean {np.mean(list(auc.values())):.3f} ({each})")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="benchmark/realism.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=Path, required=True, metavar="NPZ", help="the labelled patches")
    parser.add_argument("--half", choices=("first", "second"), default="second", help="first: choose numbers; second: report")
    parser.add_argument("--cases", type=whole_number(1), default=24, help="simulated slabs (about 3 s each)")
    parser.add_argument("--seed", type=whole_number(0), default=1)
    parser.add_argument("--look", choices=get_args(Look), default="measured")
    parser.add_argument("--picture", type=Path, metavar="DIR", help="write a picture a class; they hold real patches")
    parser.add_argument("--table-alone", action="store_true", help="no forests")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
