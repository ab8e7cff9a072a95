"""The command `python -m model.training.quantize`: add a network in 8-bit integers to a bundle, for `--precision int8`.

    python -m model.training.quantize BUNDLE --output BUNDLE2 [--calibration 8] [--check 100] [--scans FOLDER ...]

Post-training quantization with NNCF, weights per channel, with bias correction on simulated scans. The first convolution, the
last two of the reconstruction network, and the heads stay in floating point: they are a seventh of the work, and a large part
of the error comes from there. An offset of each subtype's logits then makes percentages agree on average. Other simulated
scans, and those in FOLDER, are scored in float32 and in 8-bit integers. The bundle is written only if no percentage differs by
more than `LARGEST_DIFFERENCE` points, and no score whose float32 percentage is farther than that from a threshold.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor, nn
from tqdm import tqdm

from ..command_line import OneLineParser, exit_code, module_command, whole_number
from ..container.grand_challenge import Case, find_cases
from ..errors import InputError
from ..fleischner import SUBTYPES, Subtype
from ..imaging.scan import Scan
from ..lungs.regions import Regions
from ..network import EmphysemaNetwork, fold_batch_normalisation
from ..preprocessing import NetworkInput, Profile, Shape, labels_on_map_grid, prepare
from ..simulation.case import draw_parameters, simulate
from ..simulation.disease import NoRoomError
from ..subtyping import EmphysemaSubtyper
from ..weights import Bundle, EightBitBundle, locate_bundle, read_bundle, write_bundle
from .fresh import scan_of

LARGEST_DIFFERENCE = 0.2
"""In percentage points, between float32 and 8-bit integers."""

IN_FLOATING_POINT = (1, 4)
"""Convolutions that are not quantized: the first, and the last four, of which two are the heads."""


class OneOutput(nn.Module):
    """A network whose dense logits of both subtypes are the channels of one output."""

    def __init__(self, network: EmphysemaNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat(tuple(self.network(image)), dim=1)


@dataclass(frozen=True)
class Comparison:
    """Percentages of one scan and subtype in float32 and in 8-bit integers."""

    scan: str
    subtype: Subtype
    exact: float
    found: float

    @property
    def difference(self) -> float:
        return abs(self.found - self.exact)

    @property
    def score_changed(self) -> bool:
        return self.subtype.score(self.found) != self.subtype.score(self.exact)

    @property
    def near_threshold(self) -> bool:
        """Whether float32 lies so near to a threshold that the score may change."""
        return any(abs(self.exact - grade.upper) <= LARGEST_DIFFERENCE for grade in self.subtype.grades[:-1])

    @property
    def is_kept(self) -> bool:
        """Whether the promise of `--precision int8` holds."""
        return self.difference <= LARGEST_DIFFERENCE and (self.near_threshold or not self.score_changed)


def openvino_model(network: EmphysemaNetwork, shape: Shape) -> Any:
    """OpenVINO's model, in float32, of a network with folded normalisations, for images of one shape (z, y, x)."""
    import openvino

    with warnings.catch_warnings(action="ignore"):
        exported = torch.export.export(OneOutput(network).eval(), (torch.zeros(1, 1, *shape),))
        model = openvino.convert_model(exported)
    model.reshape([1, 1, *shape])
    return model


def quantized(model: Any, images: Sequence[np.ndarray], *, correct_biases: bool = True) -> Any:
    """An OpenVINO model in 8-bit integers but for `IN_FLOATING_POINT`.

    Args:
        model: from `openvino_model`; it is used up.
        images: 1 x 1 x Z x Y x X, to calibrate on.
        correct_biases: layer after layer, on the images, which takes most of the time; otherwise by NNCF's fast estimate.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    convolutions = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    first, last = IN_FLOATING_POINT
    return nncf.quantize(
        model,
        nncf.Dataset(list(images)),
        subset_size=len(images),
        fast_bias_correction=not correct_biases,
        ignored_scope=nncf.IgnoredScope(names=[*convolutions[:first], *convolutions[-last:]]),
    )


def in_eight_bits(bundle: Bundle, images: Sequence[np.ndarray], *, correct_biases: bool = True) -> EightBitBundle:
    """Quantize the network of a bundle, without offsets; `images` and `correct_biases` as in `quantized`."""
    import nncf
    import openvino

    model = openvino_model(fold_batch_normalisation(bundle.network), bundle.metadata.input_shape)
    model = quantized(model, images, correct_biases=correct_biases)
    with tempfile.TemporaryDirectory() as name:
        openvino.save_model(model, Path(name) / "int8.xml", compress_to_fp16=False)
        layers, numbers = ((Path(name) / f"int8.{ending}").read_bytes() for ending in ("xml", "bin"))
    made_with = f"openvino {openvino.__version__}, nncf {nncf.__version__}"
    return EightBitBundle(bundle.metadata, bundle.sha256, layers, numbers, (0.0, 0.0), {"made_with": made_with})


def with_offsets(bundle: Bundle, eight_bit: EightBitBundle, inputs: Sequence[NetworkInput]) -> EightBitBundle:
    """An 8-bit network whose mean activation inside the lungs of `inputs` is that of float32, each input counting alike."""
    exactly, roughly = EmphysemaSubtyper(bundle, "cpu", "float32"), EmphysemaSubtyper(eight_bit)
    inside: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in SUBTYPES]
    for prepared in inputs:
        lung = labels_on_map_grid(prepared.labels) > 0
        both = zip(exactly.logits(prepared.image), roughly.logits(prepared.image), strict=True)
        for found, logits in zip(inside, both, strict=True):
            exact, rough = (dense[0, 0].numpy()[lung].astype(np.float64) for dense in logits)
            found.append((exact, rough))
    centrilobular, paraseptal = map(logit_offset, inside)
    return replace(eight_bit, offsets=(round(centrilobular, 6), round(paraseptal, 6)))


def logit_offset(scans: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """What to add to the second logits of each pair for the mean activation of the first, averaged over the pairs."""
    wanted = float(np.mean([expit(exact).mean() for exact, _ in scans]))

    def excess(offset: float) -> float:
        return float(np.mean([expit(rough + offset).mean() for _, rough in scans])) - wanted

    return float(brentq(excess, -5.0, 5.0)) if excess(-5.0) < 0 < excess(5.0) else 0.0


def simulated_scans(seed: int, first: int, count: int) -> Iterator[tuple[str, Scan]]:
    """Simulated scans at the network's resolution, with their names; those whose lungs have no room for what was drawn are
    left out."""
    for number in range(first, first + count):
        try:
            case = simulate(draw_parameters(np.random.SeedSequence(seed, spawn_key=(number,))))
        except NoRoomError:
            continue
        yield f"simulated-{seed}-{number}", scan_of(case)


def read_scans(cases: Iterable[Case]) -> Iterator[tuple[str, Scan]]:
    """The scans of cases, with their names."""
    for case in cases:
        yield case.entity, Scan.read(*case.files)


def network_inputs(scans: Iterable[tuple[str, Scan]], profile: Profile) -> list[NetworkInput]:
    """What the network sees of scans."""
    return [prepare(scan, Regions.of(scan), profile) for _, scan in scans]


def compare(bundle: Bundle, eight_bit: EightBitBundle, scans: Iterable[tuple[str, Scan]]) -> Iterator[tuple[Comparison, ...]]:
    """Score scans in float32 and in 8-bit integers, both subtypes of a scan at a time."""
    exactly, roughly = EmphysemaSubtyper(bundle, "cpu", "float32"), EmphysemaSubtyper(eight_bit)
    for name, scan in scans:
        pairs = zip(exactly.predict(scan).findings, roughly.predict(scan).findings, strict=True)
        yield tuple(Comparison(name, one.subtype, one.percentage or 0.0, other.percentage or 0.0) for one, other in pairs)


def summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What the bundle says of the comparison."""
    scores = [comparison for comparison in comparisons if comparison.score_changed]
    return {
        "scans": len({comparison.scan for comparison in comparisons}),
        "largest_difference": round(max(comparison.difference for comparison in comparisons), 4),
        "median_difference": round(float(np.median([comparison.difference for comparison in comparisons])), 4),
        "scores_changed": len(scores),
        "scores_changed_away_from_a_threshold": sum(not comparison.near_threshold for comparison in scores),
    }


def check(bundle: Path, comparisons: Sequence[Comparison]) -> None:
    """Refuse what breaks the promise of `--precision int8`.

    Raises:
        InputError: a percentage or a score differs too much; the worst is named.
    """
    broken = [comparison for comparison in comparisons if not comparison.is_kept]
    if not broken:
        return
    worst = max(broken, key=lambda comparison: comparison.difference)
    raise InputError(
        bundle,
        f"in 8-bit integers, {len(broken)} of {len(comparisons)} percentages are too far from float32; the worst is "
        f"{worst.subtype.name} of {worst.scan}, {worst.found:.2f} instead of {worst.exact:.2f} %",
        f"differences of at most {LARGEST_DIFFERENCE} points, and no other score unless float32 is as near to a threshold",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog=module_command("training.quantize"), description="Add a network in 8-bit integers, for CPUs, to a weight bundle."
    )
    parser.add_argument("bundle", type=Path, help="with a regression network")
    parser.add_argument("--output", type=Path, required=True, help="the same bundle with the 8-bit network, a new folder")
    parser.add_argument("--calibration", type=int, default=8, metavar="N", help="simulated scans, default: %(default)s")
    parser.add_argument("--check", type=int, default=100, metavar="N", help="further simulated scans, default: %(default)s")
    parser.add_argument("--scans", type=Path, nargs="*", default=[], metavar="FOLDER", help="scans to check on as well")
    parser.add_argument("--seed", type=whole_number(0), default=20, help="of the simulated scans, default: %(default)s")
    options = parser.parse_args(arguments)
    if options.calibration < 1 or options.check < 1:
        parser.error("--calibration and --check: expected at least one scan each")
    return exit_code(lambda: _run(options), options.output)


def _run(options: argparse.Namespace) -> None:
    if options.output.exists():
        raise InputError(options.output, "it exists", "a new folder")
    place = locate_bundle(options.bundle)
    bundle = read_bundle(place)
    if bundle.metadata.network.head != "regression":
        raise InputError(place, f"its network is for {bundle.metadata.network.head}", "a regression network")
    made = _made_and_checked(place, bundle, options)
    write_bundle(options.output, bundle.network, bundle.metadata, made)
    print(f"bundle: {options.output}")


def _made_and_checked(place: Path, bundle: Bundle, options: argparse.Namespace) -> EightBitBundle:
    cases = [case for folder in options.scans for case in find_cases(folder)]
    calibration = simulated_scans(options.seed, 0, options.calibration)
    inputs = network_inputs(tqdm(calibration, "simulating", options.calibration, disable=None), bundle.metadata.preprocessing)
    if not inputs:
        raise InputError(f"--seed {options.seed}", "no scan could be simulated", "another seed or more scans")
    made = with_offsets(bundle, in_eight_bits(bundle, [prepared.image.numpy() for prepared in inputs]), inputs)
    record = {**made.record, "calibration": {"simulated_scans": len(inputs), "seed": options.seed}}
    del inputs
    found: list[Comparison] = []
    print("| scan | " + " | ".join(f"{subtype.name}, float32 | int8" for subtype in SUBTYPES) + " |")
    print(f"|{' --- |' * (1 + 2 * len(SUBTYPES))}")
    simulated = simulated_scans(options.seed, options.calibration, options.check)
    for both in compare(bundle, made, chain(read_scans(cases), simulated)):
        found += both
        cells = (f"{comparison.exact:.2f} | {comparison.found:.2f}" for comparison in both)
        print(f"| {both[0].scan} | {' | '.join(cells)} |", flush=True)
    if not found:
        raise InputError(f"--check {options.check}", "none of these scans could be simulated", "more scans")
    check(place, found)
    result = summary(found)
    print("; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in result.items()))
    return replace(made, record={**record, "check": result})


if __name__ == "__main__":
    sys.exit(main())
