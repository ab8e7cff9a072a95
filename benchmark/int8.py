"""The network in 8-bit integers on the CPU: its time against bfloat16, and what one layer takes in several engines.

Usage: python benchmark/int8.py layer [--threads 1] [--runs 7]
       python benchmark/int8.py time [--base-width 64] [--input-shape 128 224 288] [--threads 1] [--runs 3] [--engines ...]

OpenVINO's network is quantized as `python -m model.training.quantize` does, which also says how near it is to float32. ONNX
Runtime is here for comparison, and needs packages that nothing else does: pip install onnxruntime onnx onnxscript

`layer` prints the rate of a 3 x 3 x 3 convolution of layer3 (256 to 256 channels, dilation 2, 16 x 28 x 36). `time` prints CPU
seconds of one pass of the network, the engines in turn, medians of the runs; the weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import checking, script_parser
from model.command_line import exit_code, whole_number
from model.eight_bit import compiled
from model.errors import InputError
from model.network import EmphysemaNetwork, NetworkConfig, fold_batch_normalisation
from model.preprocessing import PAPER_INPUT_SHAPE, Shape, check_input_shape
from model.subtyping import place_network
from model.training.quantize import OneOutput, openvino_model, quantized
from model.weights import untrained_bundle

WIDTH, LAYER_SHAPE = 256, (16, 28, 36)

Network = Callable[[Tensor], Any]


def in_onnx_runtime(network: EmphysemaNetwork, image: np.ndarray, threads: int) -> Network:
    """ONNX Runtime's quantized network, with the same layers in floating point."""
    try:
        import onnx
        import onnxruntime
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise InputError("--engines onnxruntime", str(error), "onnx, onnxruntime and onnxscript to be installed") from error

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


def engines(names: list[str], base_width: int, shape: Shape, threads: int) -> Iterator[tuple[str, Network]]:
    """The networks to time, by name; bfloat16 as process.py runs it comes first."""
    network, _ = untrained_bundle(base_width, seed=0)
    image = np.random.default_rng(0).random((1, 1, *shape), np.float32)
    folded = fold_batch_normalisation(network)
    placed = fold_batch_normalisation(network)
    place_network(placed, torch.device("cpu"), torch.bfloat16)
    yield "torch bfloat16", lambda inputs: placed(inputs.to(torch.bfloat16, memory_format=torch.channels_last_3d))
    if "openvino" in names:
        model = openvino_model(folded, shape)
        in_bfloat16 = compiled(model, threads)
        yield "openvino bfloat16", lambda inputs: in_bfloat16(inputs.numpy())
        in_int8 = compiled(quantized(model, [image], correct_biases=False), threads)
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
    network = compiled(nncf.quantize(model, nncf.Dataset([image.numpy()]), subset_size=1), threads)
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
    """CPU seconds and seconds on the clock of each engine, in turn.

    Raises:
        InputError: there is no network of this width, or input of this shape.
    """
    with checking("--base-width"):
        NetworkConfig("resnet34", "regression", options.base_width)
    with checking("--input-shape"):
        check_input_shape(tuple(options.input_shape))
    z, y, x = options.input_shape
    image = torch.rand(1, 1, z, y, x, generator=torch.Generator().manual_seed(1))
    networks = dict(engines(options.engines, options.base_width, (z, y, x), options.threads))
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    commands = parser.add_subparsers(required=True)
    layer = commands.add_parser("layer")
    layer.set_defaults(run=print_layers)
    layer.add_argument("--runs", type=whole_number(1), default=7)
    timing = commands.add_parser("time")
    timing.set_defaults(run=print_times)
    timing.add_argument("--base-width", type=whole_number(2), default=64)
    timing.add_argument("--input-shape", type=whole_number(1), nargs=3, default=PAPER_INPUT_SHAPE, metavar=("Z", "Y", "X"))
    timing.add_argument("--runs", type=whole_number(1), default=3)
    timing.add_argument("--engines", nargs="+", choices=("openvino", "onnxruntime"), default=["openvino"])
    for command in (layer, timing):
        command.add_argument("--threads", type=whole_number(1), default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    return exit_code(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
