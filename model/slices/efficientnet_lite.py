"""EfficientNet-Lite0 (Tan and Le, ICML 2019, in the form without squeeze-and-excitation, with ReLU6), in plain torch."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional

STEM_WIDTH = 32
HEAD_WIDTH = 1280

STAGES = (
    # repeats, kernel, stride, expansion, width
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Table 1 of the paper; the Lite form keeps the stem's and the head's width."""

WIDTHS = tuple(width for repeats, _, _, _, width in STAGES for _ in range(repeats))
"""Of each block."""

_NAMES = {
    "_conv_stem": "stem.convolution",
    "_bn0": "stem.norm",
    "_conv_head": "head.convolution",
    "_bn1": "head.norm",
}
_BLOCK_NAMES = {
    "_expand_conv": "expand.convolution",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.convolution",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.convolution",
    "_bn2": "project.norm",
}


class _Convolution(nn.Module):
    """Convolution, normalisation and ReLU6; padded as TensorFlow does, on which the published weights were trained."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.05)
        self.active = active

    def forward(self, features: Tensor) -> Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        if stride > 1:
            missing = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in features.shape[2:]]
            rows, columns = missing
            features = functional.pad(features, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        features = self.norm(self.convolution(features))
        return functional.relu6(features) if self.active else features


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _Convolution(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = _Convolution(wide, outputs, active=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.project(self.depthwise(self.expand(features)))
        return result + features if self.residual else result


class EfficientNetLite0(nn.Module):
    """N x 3 x 224 x 224 (0 to 1) to N x 1280 x 7 x 7 feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, STEM_WIDTH, 3, 2)
        blocks, inputs = [], STEM_WIDTH
        for repeats, kernel, stride, expansion, width in STAGES:
            for index in range(repeats):
                blocks.append(_Block(inputs, width, kernel, stride if index == 0 else 1, expansion))
                inputs = width
        self.blocks: nn.Sequential = nn.Sequential(*blocks)
        self.head = _Convolution(inputs, HEAD_WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.stem((255 * pixels - 127) / 128)))
        return result


def translated(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under the names that they have here; the layer that answers ImageNet's classes is left out."""
    tensors = {}
    for name, tensor in published.items():
        if name.startswith("_fc."):
            continue
        block = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
        if block:
            tensors[f"blocks.{block[1]}.{_BLOCK_NAMES.get(block[2], block[2])}.{block[3]}"] = tensor
        else:
            layer, _, leaf = name.partition(".")
            tensors[f"{_NAMES.get(layer, layer)}.{leaf}"] = tensor
    return tensors
