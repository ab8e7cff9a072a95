"""`EmphysemaSubtyper`, the class that users touch: a scan in, scores, percentages and activation maps out."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from . import SHIPPED_WEIGHTS
from .command_line import DeviceName, InferencePrecisionName, MapType, PrecisionName
from .eight_bit import EightBitRuntime
from .errors import InputError
from .fleischner import CENTRILOBULAR, PARASEPTAL, Subtype
from .imaging.scan import Scan
from .lungs.plausibility import MaskFigures, mask_warnings
from .lungs.quality import ImageQuality, quality_warnings
from .lungs.regions import Regions
from .network import DenseLogits, EmphysemaNetwork, class_activation_map, class_probabilities, fold_batch_normalisation
from .preprocessing import (
    ActivationMaps,
    NetworkInput,
    finish,
    labels_on_map_grid,
    map_on_scan,
    prepare,
)
from .stages import Stage, timed
from .weights import Bundle, EightBitBundle, read_bundle, read_eight_bit

CPU = torch.device("cpu")

PERCENTAGE_DECIMALS = 4
"""Percentages are rounded to this and then graded, so that a reported score always follows from the reported percentage."""

_SETTING_THREADS = threading.Lock()


@dataclass(frozen=True)
class Finding:
    """What was found of one subtype.

    Attributes:
        subtype: centrilobular or paraseptal emphysema.
        score: Fleischner score, 0 to 5 or 0 to 2.
        percentage: percent of the lung, 0 to 100; None from a classification network.
        region_percentages: the same for each region, in percent of that region.
        probabilities: of each score, from a classification network; None from a regression network.
        activation_map: z, y, x on the scan's grid, in the patient's frame; uint8 (255 is activation 1) or float32 (0 to
            1), 0 outside the lung.
    """

    subtype: Subtype
    score: int
    percentage: float | None
    region_percentages: dict[str, float | None]
    probabilities: tuple[float, ...] | None
    activation_map: np.ndarray

    @property
    def severity(self) -> str:
        """The name of the score in the Fleischner system."""
        return self.subtype.grades[self.score].severity


@dataclass(frozen=True)
class Subtyping:
    """The result of one scan.

    Attributes:
        centrilobular: the finding of this subtype.
        paraseptal: likewise.
        regions: those that the findings' `region_percentages` speak of.
        quality: noise, sharpness and voxels of the scan.
        warnings: about the mask (see `model.lungs.plausibility` and `model.lungs.regions`), the image quality (see
            `model.lungs.quality`) and the run, one sentence each; those about the files are in `Scan.warnings`.
    """

    centrilobular: Finding
    paraseptal: Finding
    regions: Regions
    quality: ImageQuality
    warnings: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, Finding]:
        """Both, centrilobular first."""
        return self.centrilobular, self.paraseptal


class EmphysemaSubtyper:
    """Scores emphysema subtypes on chest CT with the network of one weight bundle.

    Example:
        >>> subtyper = EmphysemaSubtyper.from_bundle()
        >>> result = subtyper.predict(Scan.read("ct.mha", "lung.mha"))
        >>> print(result.centrilobular.score, result.centrilobular.percentage, result.paraseptal.severity)

    Attributes:
        metadata: what the bundle says of itself.
        bundle_sha256: sha256 of the bundle's metadata file, which lists those of its tensor files.
        device: where the network runs; it becomes the CPU when a GPU that `auto` took runs out of memory.
        precision: what it computes in; `torch.int8` for the bundle's 8-bit network.
        notes: why `auto` did not take what a user may have expected (a GPU that cannot be used); one sentence each.
    """

    def __init__(
        self, bundle: Bundle | EightBitBundle, device: DeviceName = "auto", precision: InferencePrecisionName = "auto"
    ) -> None:
        _check_choice("device", device, DeviceName)
        _check_choice("precision", precision, InferencePrecisionName)
        self.metadata = bundle.metadata
        self.bundle_sha256 = bundle.sha256
        self._profile = bundle.metadata.preprocessing
        self._eight_bit: EightBitRuntime | None = None
        if isinstance(bundle, EightBitBundle):
            if device == "cuda" or precision not in ("auto", "int8"):
                raise InputError(f"--device {device} --precision {precision}", "8-bit integers are for CPUs", "--device cpu")
            self.device, self.precision = CPU, torch.int8
            self.notes: tuple[str, ...] = ()
            self._eight_bit = EightBitRuntime(bundle, torch.get_num_threads())
            return
        if precision == "int8":
            raise InputError(f"weights {bundle.metadata.name}", "read in floating point", "what read_eight_bit returns")
        self.device, self.notes = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.notes += precision_notes(self.precision, self.device)
        self._network = fold_batch_normalisation(bundle.network)
        self._for_cpu: tuple[EmphysemaNetwork, torch.dtype] | None = None
        if device == "auto" and self.device != CPU:
            self._for_cpu = copy.deepcopy(self._network), choose_precision(precision, CPU)
        try:
            self._place_network()
        except torch.OutOfMemoryError:
            if self._for_cpu is None:
                raise
            self.notes = (*self.notes, self._fall_back(self._for_cpu))

    def _place_network(self) -> None:
        place_network(self._network, self.device, self.precision)

    def _fall_back(self, for_cpu: tuple[EmphysemaNetwork, torch.dtype]) -> str:
        """Move to the CPU for good, and return a sentence that says so."""
        self._network, self.precision = for_cpu
        self.device, self._for_cpu = CPU, None
        self._place_network()
        notes = (f"the GPU ran out of memory; the network was computed on the CPU in {self.precision}",)
        return "; ".join((*notes, *precision_notes(self.precision, CPU)))

    @classmethod
    def from_bundle(
        cls, path: Path | str = SHIPPED_WEIGHTS, device: DeviceName = "auto", precision: InferencePrecisionName = "auto"
    ) -> EmphysemaSubtyper:
        """Load a verified bundle.

        Args:
            path: a bundle's folder, or a folder that holds exactly one; by default the bundle that comes with the code.
            device: `auto` takes a GPU if CUDA works and else the CPU.
            precision: `auto` takes bfloat16 where the hardware computes it natively, else float16 on a GPU and float32 on
                a CPU. `int8` takes the bundle's 8-bit network, on the CPU.

        Raises:
            InputError: the bundle is missing, damaged or of another kind; device or precision is none of those above, or the
                device cannot be had; for `int8`, the bundle has no such network, OpenVINO is not installed, or a GPU is asked
                for.
        """
        return cls(read_eight_bit(path) if precision == "int8" else read_bundle(path), device, precision)

    def predict(self, scan: Scan, map_type: MapType = "uint8") -> Subtyping:
        """Score one scan.

        Args:
            scan: a CT and its lung mask.
            map_type: type of the activation maps: uint8 (255 is activation 1, rounded) or float32 (0 to 1).

        Raises:
            InputError: another type of map, or as `logits`.
        """
        _check_choice("map_type", map_type, MapType)
        with timed(Stage.PLAUSIBILITY):
            warnings = mask_warnings(MaskFigures.of(scan))
        with timed(Stage.QUALITY):
            quality = ImageQuality.of(scan)
            warnings += quality_warnings(quality, self.metadata.validated_range)
        with timed(Stage.REGIONS):
            regions = Regions.of(scan)
            warnings += regions.warnings
        with timed(Stage.PREPARE):
            prepared = prepare(scan, regions, self._profile)
        with timed(Stage.NETWORK):
            logits, notes = self._logits_or_fall_back(prepared.image)
        with timed(Stage.MAPS):
            maps, probabilities = self._activations(logits, prepared)

            def finding(subtype: Subtype, activation: Tensor) -> Finding:
                return _finding(subtype, activation, probabilities, maps, regions, scan, map_type)

            with _two_threads() as both:
                centrilobular = both.submit(finding, CENTRILOBULAR, maps.centrilobular)
                paraseptal = both.submit(finding, PARASEPTAL, maps.paraseptal)
            return Subtyping(centrilobular.result(), paraseptal.result(), regions, quality, (*warnings, *notes))

    def logits(self, image: Tensor) -> DenseLogits:
        """Run the network on the subtyper's device and in its precision.

        Args:
            image: 1 x 1 x Z x Y x X, float32, prepared by the bundle's profile and of its `input_shape`.

        Returns:
            Dense logits, float32 on the CPU. The last convolution is computed in float32 whatever the precision, but for the
            8-bit network.

        Raises:
            InputError: a value is not finite, as when float16 overflows or the weights are far from any that training gives.
        """
        if self._eight_bit is not None:
            logits = self._eight_bit(image)
        else:
            with torch.inference_mode():
                image = image.to(self.device, self.precision, memory_format=torch.channels_last_3d)
                logits = DenseLogits(*(dense.cpu() for dense in self._network(image)))
        if not all(torch.isfinite(dense).all() for dense in logits):
            raise InputError(
                f"weights {self.metadata.name}",
                f"the network's output is not finite in {self.precision}",
                "finite numbers (--precision float32 may help)",
            )
        return logits

    def _logits_or_fall_back(self, image: Tensor) -> tuple[DenseLogits, tuple[str, ...]]:
        """Run the network; where a GPU that `auto` took runs out of memory, once more on the CPU, and say so."""
        try:
            return self.logits(image), ()
        except torch.OutOfMemoryError:
            if self._for_cpu is None:
                raise
            for_cpu = self._for_cpu
        note = self._fall_back(for_cpu)  # behind the handler, where what the failed run held is free
        return self.logits(image), (note,)

    def _activations(
        self, logits: DenseLogits, prepared: NetworkInput
    ) -> tuple[ActivationMaps, dict[Subtype, tuple[float, ...]]]:
        """Activation maps, and from a classification network the probabilities of each subtype's scores."""
        if self.metadata.network.head == "regression":
            return finish(logits.centrilobular.sigmoid(), logits.paraseptal.sigmoid(), prepared), {}
        labels = labels_on_map_grid(prepared.labels)
        lung = torch.from_numpy(labels > 0)[None, None]
        cle, pse = (class_activation_map(dense, lung)[0, 0] for dense in logits)
        probabilities = {
            subtype: tuple(class_probabilities(dense)[0].tolist())
            for subtype, dense in zip((CENTRILOBULAR, PARASEPTAL), logits, strict=True)
        }
        return ActivationMaps(cle, pse, labels, prepared.box, prepared.placement), probabilities


@contextmanager
def _two_threads() -> Iterator[ThreadPoolExecutor]:
    """Two threads in which torch uses one core each.

    The number that a thread sets becomes that of all threads that start later, too: it is set back at once.
    """
    both_have_begun = threading.Barrier(2)

    def begin() -> None:
        torch.set_num_threads(1)
        both_have_begun.wait()

    with ThreadPoolExecutor(2) as both:
        with _SETTING_THREADS:
            threads = torch.get_num_threads()
            for begun in [both.submit(begin) for _ in range(2)]:
                begun.result()
            torch.set_num_threads(threads)
        yield both


def _finding(
    subtype: Subtype,
    activation: Tensor,
    probabilities: dict[Subtype, tuple[float, ...]],
    maps: ActivationMaps,
    regions: Regions,
    scan: Scan,
    map_type: MapType,
) -> Finding:
    activation_map = map_on_scan(activation, maps.box, scan, map_type, maps.placement)
    if subtype in probabilities:
        score = int(np.argmax(probabilities[subtype]))
        no_percentages = dict.fromkeys(regions.members)
        return Finding(subtype, score, None, no_percentages, probabilities[subtype], activation_map)
    percentage, parts = _percentages(activation.numpy(), maps.labels, regions)
    return Finding(subtype, subtype.score(percentage), percentage, parts, None, activation_map)


def _percentages(activation: np.ndarray, labels: np.ndarray, regions: Regions) -> tuple[float, dict[str, float | None]]:
    """Mean activation inside the lung and inside each region, in percent; None for a region too small for the map's grid."""
    rows = max(max(members) for members in regions.members.values()) + 1
    sums = np.bincount(labels.ravel(), activation.ravel(), rows)
    counts = np.bincount(labels.ravel(), minlength=rows)

    def mean(members: list[int]) -> float | None:
        count = counts[members].sum()
        return round(float(100 * sums[members].sum() / count), PERCENTAGE_DECIMALS) if count else None

    whole = mean(list(range(1, rows)))
    assert whole is not None, "prepare() lets no scan pass whose lung vanishes on the map's grid"
    return whole, {name: mean(list(members)) for name, members in regions.members.items()}


def place_network(network: EmphysemaNetwork, device: torch.device, precision: torch.dtype) -> None:
    """Move a network in place to where inference computes it; its last convolution stays in float32."""
    for part in (network.backbone, network.reconstruction):
        part.to(device, precision, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    network.head.to(device)


def _check_choice(option: str, value: object, choices: Any) -> None:
    """Raise `InputError` where an option is none of the values of a `Literal`."""
    if value not in get_args(choices):
        raise InputError(option, f"it is {value!r}", f"one of {', '.join(get_args(choices))}")


def choose_device(name: DeviceName) -> tuple[torch.device, tuple[str, ...]]:
    """Return the device to run on, and why a GPU that is there is not taken.

    Raises:
        InputError: the name is unknown, or `cuda` is asked for and cannot be used.
    """
    _check_choice("device", name, DeviceName)
    if name == "cpu":
        return torch.device("cpu"), ()
    reason = _why_no_cuda()
    if reason is None:
        return torch.device("cuda"), ()
    if name == "cuda":
        raise InputError("--device cuda", f"the GPU cannot be used: {reason}", "a GPU that CUDA works on, or --device cpu")
    present = Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia").exists()
    return torch.device("cpu"), ((f"there is a GPU, but it cannot be used: {reason}; going on on the CPU",) if present else ())


def _why_no_cuda() -> str | None:
    """Try CUDA for real: an old driver or a GPU that this build has no code for shows only when something runs."""
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if not torch.cuda.is_available():
                return str(caught[0].message).splitlines()[0] if caught else "no GPU was found"
            torch.nn.functional.conv3d(torch.ones(1, 1, 3, 3, 3, device="cuda"), torch.ones(1, 1, 3, 3, 3, device="cuda"))
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return None


_HALF_PRECISION_FEATURES = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""What `torch.cpu.get_capabilities` calls the instructions, on x86 and on Arm."""


def choose_precision(name: PrecisionName, device: torch.device) -> torch.dtype:
    """Return the type to compute in; `auto` takes bfloat16 where it is native, else float16 on a GPU and float32 on a CPU.

    Raises:
        InputError: the name is unknown.
    """
    _check_choice("precision", name, PrecisionName)
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if _native_on_this_cpu(torch.bfloat16) else torch.float32


def precision_notes(precision: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """Say in a sentence that this CPU emulates a half precision: without AVX-512, a hundred times as slow as float32."""
    if device.type != "cpu" or precision == torch.float32 or _native_on_this_cpu(precision):
        return ()
    return (f"this CPU does not compute {str(precision).removeprefix('torch.')} natively: it can take far longer than float32",)


def _native_on_this_cpu(precision: torch.dtype) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature) for feature in _HALF_PRECISION_FEATURES[precision])
