"""Computes a bundle's 8-bit network on a CPU, with OpenVINO (`--precision int8`).

`model.training.quantize` makes and checks such networks. OpenVINO is imported when one is used: requirements/int8.txt.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, printable
from .network import DenseLogits
from .weights import EIGHT_BIT_FILES, EightBitBundle

FLOATING_POINT = "bf16"
"""What OpenVINO computes the layers in that are not in 8-bit integers; float32 where the CPU has no bfloat16."""


class EightBitRuntime:
    """An 8-bit network, compiled for this CPU. Threads may share it; it computes one image at a time.

    Args:
        bundle: from `model.weights.read_eight_bit`.
        threads: of the CPU.

    Raises:
        InputError: OpenVINO is not installed, or cannot read the network.
    """

    def __init__(self, bundle: EightBitBundle, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise InputError(
                "--precision int8", "the package openvino is not installed", "what requirements/int8.lock lists"
            ) from error
        network = "the 8-bit network" if bundle.folder is None else bundle.folder / EIGHT_BIT_FILES[0]
        try:
            self._compiled = compiled(openvino.Core().read_model(bundle.model, bundle.weights), threads)
            self._offsets = bundle.offsets
            self._one_at_a_time = threading.Lock()
        except RuntimeError as error:
            reason = printable(str(error).strip().splitlines()[-1])
            raise InputError(network, f"OpenVINO cannot use it ({reason})", "one of this version") from error
        shape = tuple(self._compiled.input(0).shape)
        expected = (1, 1, *bundle.metadata.input_shape)
        if shape != expected or len(self._compiled.outputs) != 1:
            raise InputError(network, f"its input is {shape}", f"the bundle's, {expected}")

    def __call__(self, image: Tensor) -> DenseLogits:
        """Dense logits, float32, of an image of 1 x 1 x Z x Y x X."""
        with self._one_at_a_time:  # all calls go through one inference request of OpenVINO, which holds one output
            output = self._compiled(image.numpy())[0]  # a copy
        both = torch.from_numpy(output).split(1, dim=1)
        return DenseLogits(*(logits + offset for logits, offset in zip(both, self._offsets, strict=True)))


def compiled(model: Any, threads: int) -> Any:
    """An OpenVINO model for this CPU."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": FLOATING_POINT}
    return openvino.Core().compile_model(model, "CPU", options)
