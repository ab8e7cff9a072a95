"""Try 8-bit integers on the CPU: the network's time against bfloat16, and what happens to percentages and scores.

Usage: python benchmark/int8.py layer [--threads 1] [--runs 7]
       python benchmark/int8.py time [--base-width 64] [--input-shape 128 224 288] [--threads 1] [--runs 3] [--engines ...]
       python benchmark/int8.py accuracy [--weights BUNDLE] [--calibration 8] [--cases 100] [--threads 1] [--real FOLDER ...]

Post-training quantization of backbone and reconstruction network with per-channel weights; the first convolution and the heads
stay in floating point. OpenVINO with NNCF, and ONNX Runtime, neither of which this software needs otherwise:
pip install openvino nncf onnxruntime onnx onnxscript

`layer` prints the rate of a 3 x 3 x 3 convolution of layer3 (256 to 256 channels, dilation 2, 16 x 28 x 36). `time` prints CPU
seconds of one pass of the network, the engines in turn, medians of the runs; the weights are random. `accuracy` calibrates
OpenVINO's network on simulated scans and compares real scans, in folders as process.py takes them, and other simulated ones
with float32: differences of percentages in points, and scores that changed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import SHIPPED_WEIGHTS
from model.container.grand_challenge import find_cases
from model.fleischner import SUBTYPES
from model.imaging.scan import Scan
from model.lungs.regions import Regions
from model.network import DenseLogits, EmphysemaNetwork, fold_batch_normalisation
from model.preprocessing import prepare
from model.simulation.case import draw_parameters, simulate
from model.subtyping import EmphysemaSubtyper, place_network
from model.weights import read_bundle, untrained_bundle

NEAR_EDGE = 0.2
"""In points: a score may change where float32 lies this near to the edge of an interval."""

WIDTH, LAYER_SHAPE = 256, (16, 28, 36)

Network = Callable[[Tensor], Any]


class OneOutput(nn.Module):
    """A network whose dense logits of both subtypes are the channels of one output."""

    def __init__(self, network: EmphysemaNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat(tuple(self.network(image)), dim=1)


class InOpenVino(EmphysemaSubtyper):
    """A subtyper whose network runs in OpenVINO."""

    compiled: Any

    def logits(self, image: Tensor) -> DenseLogits:
        return DenseLogits(*torch.from_numpy(self.compiled(image.numpy())[0]).split(1, dim=1))


def to_openvino(network: EmphysemaNetwork, shape: tuple[int, ...]) -> Any:
    """OpenVINO's model of a folded network, for images of one shape (z, y, x)."""
    import openvino

    exported = torch.export.export(OneOutput(network).eval(), (torch.zeros(1, 1, *shape),))
    return openvino.convert_model(exported)


def quantized(model: Any, images: list[np.ndarray]) -> Any:
    """An OpenVINO model in 8-bit integers but for its first convolution and its heads, the last two."""
    import nncf

    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    heads = [node for node in convolutions if node.get_output_partial_shape(0)[1].get_length() == 1]
    names = [node.get_friendly_name() for node in (convolutions[0], *heads)]
    ignored = nncf.IgnoredScope(names=names)
    return nncf.quantize(model, nncf.Dataset(images), subset_size=len(images), ignored_scope=ignored)


def compiled(model: Any, precision: str, threads: int) -> Any:
    """A model for this CPU; `precision` is that of what is not quantized."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    return openvino.Core().compile_model(model, "CPU", options)


def in_onnx_runtime(network: EmphysemaNetwork, image: np.ndarray, threads: int) -> Network:
    """ONNX Runtime's quantized network, with the same layers in floating point."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class OneImage(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter([{"image": image}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.images, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, whole = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(
            OneOutput(network), (torch.from_numpy(image),), plain, input_names=["image"], dynamo=True, external_data=False
        )
        nodes = [node for node in onnx.load(plain).graph.node if node.op_type == "Conv"]
        quantize_static(
            plain,
            whole,
            OneImage(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in (nodes[0], *nodes[-2:])],
        )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(whole), settings)
    return lambda inputs: session.run(None, {"image": inputs.numpy()})


def engines(names: list[str], base_width: int, shape: tuple[int, ...], threads: int) -> Iterator[tuple[str, Network]]:
    """The networks to time, by name; bfloat16 as process.py runs it comes first."""
    network, _ = untrained_bundle(base_width, seed=0)
    image = np.random.default_rng(0).random((1, 1, *shape), np.float32)
    folded = fold_batch_normalisation(network)
    placed = fold_batch_normalisation(network)
    place_network(placed, torch.device("cpu"), torch.bfloat16)
    yield "torch bfloat16", lambda inputs: placed(inputs.to(torch.bfloat16, memory_format=torch.channels_last_3d))
    if "openvino" in names:
        model = to_openvino(folded, shape)
        in_bfloat16 = compiled(model, "bf16", threads)
        yield "openvino bfloat16", lambda inputs: in_bfloat16(inputs.numpy())
        in_int8 = compiled(quantized(model, [image]), "bf16", threads)
        yield "openvino int8, the rest bfloat16", lambda inputs: in_int8(inputs.numpy())
    if "onnxruntime" in names:
        yield "onnxruntime int8, the rest float32", in_onnx_runtime(folded, image, threads)


def layer_engines(threads: int) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """One convolution in each engine, by name, with the number of convolutions that a call computes."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, WIDTH, *LAYER_SHAPE, generator=generator)
    weight = 0.02 * torch.randn(WIDTH, WIDTH, 3, 3, 3, generator=generator)
    last = torch.channels_last_3d
    half, half_weight = (tensor.to(torch.bfloat16, memory_format=last) for tensor in (image, weight))
    yield "torch bfloat16", lambda: functional.conv3d(half, half_weight, None, 1, 2, 2), 1

    torch.backends.quantized.engine = "onednn"
    levels = torch.quantize_per_tensor(image.contiguous(memory_format=last), 1 / 255, 0, torch.quint8)
    zeros = torch.zeros(WIDTH, dtype=torch.long)
    weights = torch.quantize_per_channel(weight, torch.full((WIDTH,), 0.001, dtype=torch.double), zeros, 0, torch.qint8)
    packed = torch.ops.quantized.conv3d_prepack(weights, None, [1] * 3, [2] * 3, [2] * 3, 1)
    yield "torch quantized::conv3d (oneDNN) int8", lambda: torch.ops.quantized.conv3d_relu(levels, packed, 0.05, 0), 1

    session = onnx_layer(weights.int_repr().numpy(), threads)
    yield "onnxruntime QLinearConv int8", lambda: session.run(None, {"x": levels.int_repr().numpy()}), 1

    convolutions = [nn.Conv3d(WIDTH, WIDTH, 3, 1, 2, 2) for _ in range(3)]
    three = nn.Sequential(*(module for convolution in convolutions for module in (convolution, nn.ReLU()))).eval()
    import nncf
    import openvino

    model = openvino.convert_model(torch.export.export(three, (image,)))
    network = compiled(nncf.quantize(model, nncf.Dataset([image.numpy()]), subset_size=1), "bf16", threads)
    yield "openvino int8", lambda: network(image.numpy()), 3


def onnx_layer(weight: np.ndarray, threads: int) -> Any:
    """ONNX Runtime's session of one quantized convolution."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    values = {
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "weight": weight,
        "scales": np.full(WIDTH, 0.001, np.float32),
        "zeros": np.zeros(WIDTH, np.int8),
        "output_scale": np.float32(0.05),
    }
    names = ["x", "scale", "zero", "weight", "scales", "zeros", "output_scale", "zero"]
    node = helper.make_node("QLinearConv", names, ["y"], pads=[2] * 6, dilations=[2] * 3)
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, WIDTH, *LAYER_SHAPE]) for name in "xy"]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), settings)


def print_layers(options: argparse.Namespace) -> None:
    """Milliseconds of CPU and operations a second of one convolution in each engine."""
    operations = 2 * WIDTH**2 * 27 * int(np.prod(LAYER_SHAPE))
    print("| engine | cpu (ms) | TOP/s a core |\n| --- | --- | --- |")
    with torch.inference_mode():
        for name, convolve, count in layer_engines(options.threads):
            convolve()
            seconds = []
            for _ in range(options.runs):
                start = time.process_time()
                convolve()
                seconds.append((time.process_time() - start) / count)
            middle = statistics.median(seconds)
            print(f"| {name} | {1000 * middle:.1f} | {operations / middle / 1e12:.2f} |", flush=True)


def print_times(options: argparse.Namespace) -> None:
    """CPU seconds and seconds on the clock of each engine, in turn."""
    shape = tuple(options.input_shape)
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    networks = dict(engines(options.engines, options.base_width, shape, options.threads))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
    with torch.inference_mode():
        for turn in range(options.runs + 1):
            for name, network in networks.items():
                wall, cpu = time.perf_counter(), time.process_time()
                network(image)
                if turn:  # the first pass compiles
                    found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print("| engine | cpu (s) | wall (s) | cpu / bfloat16's |\n| --- | --- | --- | --- |")
    first = statistics.median(cpu for _, cpu in found["torch bfloat16"])
    for name, runs in found.items():
        wall, cpu = (statistics.median(figures) for figures in zip(*runs, strict=True))
        print(f"| {name} | {cpu:.2f} | {wall:.2f} | {cpu / first:.2f} |")


def simulated_scan(seed: int, number: int) -> Scan:
    """A simulated scan at the network's resolution."""
    case = simulate(draw_parameters(np.random.SeedSequence(seed, spawn_key=(number,))))

    def image(voxels: np.ndarray) -> sitk.Image:
        made = sitk.GetImageFromArray(voxels)
        made.SetSpacing(case.spacing[::-1])
        made.SetOrigin(case.origin[::-1])
        return made

    return Scan.from_images(image(case.hounsfield), image((case.lungs > 0).astype(np.uint8)))


def scans(options: argparse.Namespace) -> Iterator[tuple[str, Scan]]:
    """The scans to compare on, with their names."""
    for folder in options.real:
        for case in find_cases(folder):
            yield case.entity, Scan.read(*case.files)
    for number in range(options.cases):
        try:
            yield f"simulated-{number}", simulated_scan(options.seed, options.calibration + number)
        except RuntimeError:  # what was drawn has no room in these lungs
            print(f"simulated-{number}: left out", flush=True)


def near_edge(percentage: float, index: int) -> bool:
    """Whether a percentage of a subtype lies near the edge of one of its intervals."""
    return any(abs(percentage - grade.upper) <= NEAR_EDGE for grade in SUBTYPES[index].grades[:-1])


def print_accuracy(options: argparse.Namespace) -> None:
    """Differences between float32, bfloat16 and int8."""
    torch.set_num_threads(options.threads)
    bundle = read_bundle(options.weights)
    profile = bundle.metadata.preprocessing
    calibration = []
    for number in range(options.calibration):
        scan = simulated_scan(options.seed, number)
        calibration.append(prepare(scan, Regions.of(scan), profile).image.numpy())
    subtypers = {
        "float32": EmphysemaSubtyper(bundle, "cpu", "float32"),
        "bfloat16": EmphysemaSubtyper(bundle, "cpu", "bfloat16"),
    }
    in_int8 = InOpenVino(bundle, "cpu", "float32")
    model = to_openvino(fold_batch_normalisation(bundle.network), profile.input_shape)
    in_int8.compiled = compiled(quantized(model, calibration), "bf16", options.threads)
    subtypers["int8"] = in_int8
    points: dict[str, list[float]] = {name: [] for name in subtypers}
    changed = {name: [0, 0] for name in subtypers}  # far from any edge, and near to one
    for name, scan in scans(options):
        found = {kind: subtyper.predict(scan).findings for kind, subtyper in subtypers.items()}
        cells = []
        for kind, findings in found.items():
            for index, (finding, exact) in enumerate(zip(findings, found["float32"], strict=True)):
                assert finding.percentage is not None
                assert exact.percentage is not None
                points[kind].append(abs(finding.percentage - exact.percentage))
                cells.append(f"{finding.percentage:.2f}")
                if finding.score != exact.score:
                    changed[kind][near_edge(exact.percentage, index)] += 1
        print(f"{name}: {' '.join(cells)}", flush=True)
    print("| precision | largest difference (points) | 95th percentile | median | over 0.2 | scores changed | near an edge |")
    print(f"|{' --- |' * 7}")
    for kind, values in points.items():
        over = sum(value > NEAR_EDGE for value in values)
        figures = f"{max(values):.3f} | {np.quantile(values, 0.95):.3f} | {np.median(values):.3f} | {over} of {len(values)}"
        print(f"| {kind} | {figures} | {sum(changed[kind])} | {changed[kind][1]} |")


def main() -> int:
    parser = argparse.ArgumentParser(description="Try 8-bit integers on the CPU.")
    commands = parser.add_subparsers(required=True)
    layer = commands.add_parser("layer")
    layer.set_defaults(run=print_layers)
    layer.add_argument("--runs", type=int, default=7)
    timing = commands.add_parser("time")
    timing.set_defaults(run=print_times)
    timing.add_argument("--base-width", type=int, default=64)
    timing.add_argument("--input-shape", type=int, nargs=3, default=(128, 224, 288), metavar=("Z", "Y", "X"))
    timing.add_argument("--runs", type=int, default=3)
    timing.add_argument("--engines", nargs="+", choices=("openvino", "onnxruntime"), default=["openvino", "onnxruntime"])
    accuracy = commands.add_parser("accuracy")
    accuracy.set_defaults(run=print_accuracy)
    accuracy.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS)
    accuracy.add_argument("--calibration", type=int, default=8, help="simulated scans to calibrate on; default: %(default)s")
    accuracy.add_argument("--cases", type=int, default=100, help="simulated scans to compare on; default: %(default)s")
    accuracy.add_argument("--seed", type=int, default=20)
    accuracy.add_argument("--real", type=Path, nargs="*", default=[], help="folders of real scans")
    for command in (layer, timing, accuracy):
        command.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
