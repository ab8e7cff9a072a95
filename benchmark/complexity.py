"""Print the parameters and multiply-accumulate operations of every network beside the paper's Table 5.

Usage: python benchmark/complexity.py [--json]

Multiply-accumulates (GMACs) are counted for one input of 128 x 224 x 288. Nothing is run: the shapes are followed on
torch's meta device.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.command import script_parser
from model.network import BackboneName, HeadName, NetworkConfig, build_network
from model.preprocessing import PAPER_INPUT_SHAPE

TABLE_5 = {
    ("resnet18", "regression"): (34.48, 1147.81),
    ("resnet18", "classification"): (34.48, 1148.05),
    ("resnet34", "regression"): (64.79, 1661.72),
    ("resnet34", "classification"): (64.79, 1661.95),
    ("resnet50", "regression"): (47.86, 1702.45),
    ("resnet50", "classification"): (47.86, 1702.69),
}
"""Parameters in millions and GMACs as printed in the paper."""


@dataclass(frozen=True)
class Complexity:
    """Parameters (a count) and multiply-accumulates (in units of 1e9) of one network."""

    backbone: str
    head: str
    parameters: int
    gmacs: float


class MultiplyAccumulateCounter(TorchDispatchMode):
    """Counts multiply-accumulates as the paper's table must have: with these rules all six of its rows come out.

    A convolution counts its products and one for each output element that gets a bias; a normalisation counts two for each
    element, an activation and an upsampling one for each output element, a pooling one for each input element.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        output: Tensor = result[0] if isinstance(result, tuple) else result
        match operator.overloadpacket._qualified_op_name:
            case "aten::convolution":
                weight, bias = args[1], args[2]
                self.total += output.numel() * (weight[0].numel() + (bias is not None))
            case "aten::native_batch_norm":
                self.total += 2 * output.numel()
            case "aten::relu" | "aten::relu_" | "aten::upsample_trilinear3d":
                self.total += output.numel()
            case "aten::max_pool3d_with_indices":
                self.total += args[0].numel()
        return result


def measure(config: NetworkConfig) -> Complexity:
    """Count the parameters and multiply-accumulates of one network at the paper's input size."""
    with torch.device("meta"), torch.no_grad():
        network = build_network(config).eval()
        image = torch.empty(1, 1, *PAPER_INPUT_SHAPE)
        with MultiplyAccumulateCounter() as counter:
            network(image)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(config.backbone, config.head, parameters, counter.total / 1e9)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    options = parser.parse_args(arguments)
    rows = [measure(NetworkConfig(b, h)) for b in get_args(BackboneName) for h in get_args(HeadName)]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'backbone':<10} {'head':<15} {'parameters (M)':>15} {'Table 5':>9} {'GMACs':>10} {'Table 5':>9} {'off by':>8}")
    for row in rows:
        parameters, gmacs = TABLE_5[row.backbone, row.head]
        off = 100 * (row.gmacs / gmacs - 1)
        print(
            f"{row.backbone:<10} {row.head:<15} {row.parameters / 1e6:>15.2f} {parameters:>9.2f}"
            f" {row.gmacs:>10.2f} {gmacs:>9.2f} {off:>7.3f}%"
        )


if __name__ == "__main__":
    main()
