"""Networks on lung crops in plain torch: a small residual one, and ensembles of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import CLASSES, LungArchitecture
from .inputs import shrunk
from .texture import LungView, TextureNetwork

RESIDUAL_STEM = 16
RESIDUAL_WIDTHS = (32, 64, 128)
"""Of the small residual network: a convolution with stride 2, then two blocks of each width; 0.7 million parameters."""
DROPOUT = 0.2


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        )

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(features)) + self.shortcut(features))


class _ResidualBase(nn.Sequential):
    """N x 3 x 224 x 224 to N x 128 x 14 x 14."""

    def __init__(self) -> None:
        stem = nn.Conv2d(3, RESIDUAL_STEM, 5, 2, 2, bias=False)
        layers: list[nn.Module] = [stem, nn.BatchNorm2d(RESIDUAL_STEM), nn.ReLU()]
        for before, width in zip((RESIDUAL_STEM, *RESIDUAL_WIDTHS), RESIDUAL_WIDTHS, strict=False):
            layers += [_ResidualBlock(before, width, 2), _ResidualBlock(width, width, 1)]
        super().__init__(*layers)


class ResidualNetwork(nn.Module):
    """N x 3 x 336 x 336 (0 to 1, see `model.slices.inputs.channels`), of which it sees 224 x 224, to N x 4 logits."""

    architecture = "residual"

    def __init__(self) -> None:
        super().__init__()
        self.base = _ResidualBase()
        self.dropout = nn.Dropout(DROPOUT)
        self.answer = nn.Linear(RESIDUAL_WIDTHS[-1], len(CLASSES))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits(LungView(pixels))

    def logits(self, view: LungView) -> Tensor:
        """N x 4."""
        return self.head(self.base(shrunk(view.pixels)))

    def attention(self, view: LungView, class_index: int) -> Tensor:
        """What speaks for a class: Grad-CAM (Selvaraju et al., ICCV 2017) of the last feature maps, rows x columns, 0 to 1.

        What is explained is the class's logit less the mean of all: gradients of probabilities vanish where they near 1.

        Args:
            view: of one slice.
        """
        with torch.no_grad():
            features: Tensor = self.base(shrunk(view.pixels))
        features = features.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.head(features)[0]
            (gradient,) = torch.autograd.grad(logits[class_index] - logits.mean(), features)
        speaks = (features * gradient.mean(dim=(2, 3), keepdim=True)).sum(dim=1)[0].clamp_min(0).detach()
        return speaks / speaks.max() if speaks.max() > 0 else speaks

    def head(self, features: Tensor) -> Tensor:
        """Feature maps to logits."""
        result: Tensor = self.answer(self.dropout(features.mean(dim=(2, 3))))
        return result


LungNetwork = ResidualNetwork | TextureNetwork


def build_lung_network(architecture: LungArchitecture) -> LungNetwork:
    """A network in plain torch, untrained."""
    return TextureNetwork() if architecture == "texture" else ResidualNetwork()


class LungEnsemble:
    """Networks whose probabilities are averaged, each shown the slice as it is and mirrored."""

    def __init__(self, members: Sequence[LungNetwork]) -> None:
        self.members = [member.eval() for member in members]

    @torch.no_grad()
    def probabilities(self, pixels: Tensor, temperature: float = 1.0) -> Tensor:
        """N x 4 probabilities for N x 3 x 336 x 336."""
        views = (LungView(pixels), LungView(pixels.flip(3)))
        logits = [sum((member.logits(view) for view in views), torch.zeros(())) / len(views) for member in self.members]
        return torch.stack([(each / temperature).softmax(dim=1) for each in logits]).mean(dim=0)

    def attention(self, pixels: Tensor, class_index: int) -> Tensor:
        """The mean of the members' attention, rows x columns, 0 to 1."""
        view = LungView(pixels)
        seen = torch.stack([member.attention(view, class_index) for member in self.members]).mean(dim=0)
        return seen / seen.max() if seen.max() > 0 else seen
