"""The command `python -m model.training.calibrate`: adjust the logits of a bundle to validation scans.

    python -m model.training.calibrate BUNDLE --manifest CSV --output BUNDLE2 [--cache DIR] [--only SUBTYPE] [--least-slope 1]

Each subtype's logits x become slope * x + offset. Slope and offset minimise the mean distance between the percentages of the
lung and what is known of the manifest's validation scans: a percentage, or the interval of a score or of bounds. They are
folded into the last convolution, so that inference needs no change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..cohort.manifest import TrainingCase, read_manifest
from ..command_line import DeviceName, OneLineParser, exit_code, module_command, whole_number
from ..errors import InputError
from ..fleischner import SUBTYPES, Subtype
from ..network import EmphysemaNetwork
from ..preprocessing import Profile
from ..subtyping import choose_device, choose_precision
from ..weights import Bundle, locate_bundle, read_bundle, write_bundle
from .cache import cache_path, prepare_cohort, read_figures
from .dataset import Batch, CohortDataset, Draw, stacked

BIN_WIDTH, FARTHEST_LOGIT = 0.02, 30.0
"""Logits are counted in bins of this width; the error of a percentage is below 0.002 points then."""

SLOPES = (0.2, 5.0)
LARGEST_OFFSET = 10.0
LEAST_GAIN = 0.01
"""Percentage points; less is no reason to change maps."""

_STARTS = ((1.0, 0.0), (2.0, 0.0), (1.0, -1.0), (1.0, 1.0), (0.5, 0.0))

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LogitCalibration:
    """What the logits of one subtype become, and what that did on the scans that it was chosen on.

    Attributes:
        slope: above 1, maps become sharper.
        offset: above 0, more is found.
        cases: scans whose percentage, score or bounds are known.
        error_before: mean distance of the percentage from what is known, in percentage points, as the bundle was.
        error_after: likewise, calibrated.
    """

    slope: float
    offset: float
    cases: int
    error_before: float
    error_after: float


def bin_centres() -> npt.NDArray[np.float64]:
    """The logits that the bins of `logit_counts` stand for."""
    return np.arange(-FARTHEST_LOGIT, FARTHEST_LOGIT + BIN_WIDTH / 2, BIN_WIDTH)


def logit_counts(logits: npt.NDArray[np.float32], lung: npt.NDArray[np.bool_]) -> Counts:
    """How many voxels of the lung have a logit near each of `bin_centres`; farther ones count in the first and last bin."""
    centres = bin_centres()
    places = np.rint((logits[lung].astype(np.float64) + FARTHEST_LOGIT) / BIN_WIDTH).astype(np.int64)
    return np.bincount(places.clip(0, len(centres) - 1), minlength=len(centres))


def known_interval(case: TrainingCase, place: int, percentages: tuple[float, float] | None) -> tuple[float, float] | None:
    """What is known of one subtype's percentage: its value twice, or the interval of its score, or its bounds, or nothing."""
    if percentages is not None:
        return percentages[place], percentages[place]
    score = case.scores[place]
    if score is not None:
        grade = SUBTYPES[place].grades[score]
        return grade.lower, grade.upper
    return case.intervals[place]


def fit_calibration(
    counts: Sequence[Counts], intervals: Sequence[tuple[float, float]], least_slope: float = SLOPES[0]
) -> LogitCalibration:
    """Find the slope and offset with the least mean distance between percentages and intervals.

    Distances are not squared: scans with much emphysema would decide alone. Without a gain of `LEAST_GAIN`, logits stay as
    they are.

    Args:
        counts: of each scan, see `logit_counts`.
        intervals: of the percentage of each scan, 0 to 100.
        least_slope: from 0.2 to 5; a slope below 1 makes maps less sharp.

    Raises:
        ValueError: there are no scans, or a scan without lung.
    """
    if not counts or not all(part.any() for part in counts):
        raise ValueError("there is no scan, or one without lung")
    centres = bin_centres()
    shares = np.stack([part / part.sum() for part in counts])
    lower, upper = np.array(intervals, np.float64).T

    def error(parameters: npt.NDArray[np.float64]) -> float:
        slope, offset = parameters
        with np.errstate(over="ignore"):
            percentages = 100 * shares @ (1 / (1 + np.exp(-(slope * centres + offset))))
        return float(np.maximum(np.maximum(lower - percentages, percentages - upper), 0).mean())

    bounds = ((least_slope, SLOPES[1]), (-LARGEST_OFFSET, LARGEST_OFFSET))
    before = error(np.array([1.0, 0.0]))
    starts = [(max(slope, least_slope), offset) for slope, offset in _STARTS]
    found = [minimize(error, start, method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-4}) for start in starts]
    best = min(found, key=lambda result: result.fun)
    if best.fun > before - LEAST_GAIN:
        return LogitCalibration(1.0, 0.0, len(counts), before, before)
    slope, offset = (float(value) for value in best.x)
    return LogitCalibration(slope, offset, len(counts), before, float(best.fun))


def fold(network: EmphysemaNetwork, calibrations: Mapping[str, LogitCalibration]) -> None:
    """Make `network` compute the calibrated logits of the subtypes named, by changing its last convolution in place."""
    with torch.no_grad():
        for name, calibration in calibrations.items():
            part = getattr(network.head, name)
            assert part.bias is not None
            part.weight.mul_(calibration.slope)
            part.bias.mul_(calibration.slope).add_(calibration.offset)


def count_logits(
    network: EmphysemaNetwork,
    cases: Sequence[TrainingCase],
    profile: Profile,
    cache: Path,
    device: torch.device,
    workers: int,
    on_case: Callable[[], object] = lambda: None,
) -> list[tuple[Counts, Counts]]:
    """The logits of both subtypes inside the lung, counted, of each case; every case is in the cache."""
    dataset = CohortDataset(cases, profile, cache)
    draws = [[Draw(place, 0, 0)] for place in range(len(cases))]
    loader: DataLoader[Batch] = DataLoader(dataset, batch_sampler=draws, num_workers=workers, collate_fn=stacked)
    precision = choose_precision("auto", device)
    network = network.to(device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
    found = []
    for batch in loader:
        with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = network(batch.image.to(device))
        lung = batch.lung[0, 0].numpy()
        centrilobular, paraseptal = (logit_counts(part[0, 0].float().cpu().numpy(), lung) for part in logits)
        found.append((centrilobular, paraseptal))
        on_case()
    return found


def calibrated_bundle(
    bundle: Bundle,
    cases: Sequence[TrainingCase],
    profile: Profile,
    cache: Path,
    device: torch.device,
    workers: int,
    subtypes: Sequence[Subtype] = SUBTYPES,
    least_slope: float = SLOPES[0],
    *,
    manifest: Path | str = "manifest",
) -> dict[str, LogitCalibration]:
    """Calibrate subtypes of a bundle's network, in place, on cases that the cache holds; what was found, by name. `manifest` is
    the file with the cases, for messages.

    Raises:
        InputError: nothing is known of one of the subtypes.
    """
    with tqdm(total=len(cases), desc="measuring", unit="scan", disable=None) as bar:
        counts = count_logits(bundle.network, cases, profile, cache, device, workers, bar.update)
    calibrations = {}
    figures = [read_figures(cache_path(case, profile, cache)).percentages for case in cases]
    for subtype in subtypes:
        place = SUBTYPES.index(subtype)
        known = [
            (counted[place], interval)
            for case, percentages, counted in zip(cases, figures, counts, strict=True)
            if (interval := known_interval(case, place, percentages)) is not None and counted[place].any()
        ]
        if not known:
            found = f"nothing is known of {subtype.name} emphysema of any validation scan"
            raise InputError(manifest, found, "percentages, scores or bounds")
        parts, intervals = [part for part, _ in known], [interval for _, interval in known]
        calibrations[subtype.name] = fit_calibration(parts, intervals, least_slope)
    bundle.network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    fold(bundle.network, calibrations)
    return calibrations


def _rounded(calibration: LogitCalibration) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(calibration).items()}


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog=module_command("training.calibrate"), description="Calibrate the logits of a weight bundle.")
    parser.add_argument("bundle", type=Path, help="with a regression network")
    parser.add_argument("--manifest", type=Path, required=True, help="its validation scans are used")
    parser.add_argument("--output", type=Path, required=True, help="the calibrated bundle, a new folder")
    parser.add_argument("--cache", type=Path, help="prepared scans; default: a folder cache beside the manifest")
    parser.add_argument("--only", choices=[subtype.name for subtype in SUBTYPES], help="leave the other subtype as it is")
    parser.add_argument(
        "--least-slope",
        type=float,
        default=SLOPES[0],
        metavar="SLOPE",
        help="slopes below 1 make maps less sharp: 1 forbids them; default: %(default)s",
    )
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto", help="default: %(default)s")
    parser.add_argument("--workers", type=whole_number(0), default=2, help="processes that prepare scans, default: %(default)s")
    options = parser.parse_args(arguments)
    if not SLOPES[0] <= options.least_slope <= SLOPES[1]:
        parser.error(f"--least-slope is {options.least_slope:g}, expected {SLOPES[0]:g} to {SLOPES[1]:g}")
    return exit_code(lambda: _run(options), options.output)


def _run(options: argparse.Namespace) -> None:
    if options.output.exists():
        raise InputError(options.output, "it exists", "a new folder")
    cache = options.cache or options.manifest.parent / "cache"
    bundle = read_bundle(locate_bundle(options.bundle))
    metadata = bundle.metadata
    profile = metadata.preprocessing
    if metadata.network.head != "regression":
        raise InputError(options.bundle, f"its network is for {metadata.network.head}", "a regression network")
    if profile.suspect_below_hu is not None:
        raise InputError(options.bundle, f"its profile is {profile.name}", "one whose maps count everywhere in the lung")
    manifest = read_manifest(options.manifest, needs_training=False)
    cases = manifest.of("validation")
    prepared = prepare_cohort(cases, profile, cache, options.workers, manifest=manifest.path)
    for _ in tqdm(prepared, desc="preparing", unit="scan", disable=None):
        pass
    device, _ = choose_device(options.device)
    subtypes = [subtype for subtype in SUBTYPES if options.only in (None, subtype.name)]
    calibrations = calibrated_bundle(
        bundle,
        cases,
        profile,
        cache,
        device,
        options.workers,
        subtypes,
        options.least_slope,
        manifest=manifest.path,
    )
    notes: dict[str, Any] = {
        "manifest_sha256": manifest.sha256,
        "bundle_sha256": bundle.sha256,
        **{name: _rounded(part) for name, part in calibrations.items()},
    }
    former = metadata.performance.get("calibration", [])
    former = former if isinstance(former, list) else [former]
    write_bundle(
        options.output,
        bundle.network,
        replace(
            metadata,
            name=options.output.name,
            validated_on=None,  # that was with other logits
            validated_range={},  # likewise
            origin="; ".join(
                [metadata.origin]
                + [f"{name} logits calibrated on {part.cases} validation scans" for name, part in calibrations.items()]
            ),
            performance=metadata.performance | {"calibration": [*former, notes]},
        ),
    )
    for name, part in calibrations.items():
        print(
            f"{name}: slope {part.slope:.3f}, offset {part.offset:+.3f}; {part.cases} scans, "
            f"error {part.error_before:.2f} -> {part.error_after:.2f} percentage points"
        )
    print(f"bundle: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
