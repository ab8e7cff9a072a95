"""A network that reads the lungs' texture where it lies: early ImageNet features, averaged near the pleura and away from it.

Subtypes of emphysema differ in texture and in where it is. The first blocks of EfficientNet-Lite0 see texture; their feature
maps are pooled, as mean and standard deviation, over the lungs' rim, what lies behind it, the core, and the areas of low
attenuation. Two kinds of maps that densitometry knows are pooled beside them: bins of HU, and low attenuation areas by size.
The blocks start from their ImageNet weights. They keep them, as the bases of the paper do, or learn together with the heads on
the pooled features (`model.slices.texture_training`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import CLASSES
from .efficientnet_lite import STEM_WIDTH, WIDTHS, EfficientNetLite0
from .inputs import ASPECT, NARROW_WINDOW, WIDE_WINDOW

BLOCKS = 11
LEVELS = (0, 2, 4, 7, 10)
"""Blocks that are kept, and those whose outputs are pooled, after the stem's."""

RIM, BEHIND = 0.027, 0.066
"""Depth of the lungs' rim and of what lies behind it, in shares of the crop's width: about 8 and 20 mm."""

LOW_ATTENUATION_HU = -940.0
BINS_HU = (-2000.0, -1000.0, -980.0, -960.0, -940.0, -920.0, -900.0, -880.0, -850.0, -800.0, -700.0, -500.0, 2000.0)
OPENINGS = (1, 2, 4, 7, 12)
"""Radii, in pixels, of the openings that low attenuation areas must withstand."""

REGIONS = 4

HIDDEN = 64
HEADS = 5
"""Heads whose logits are averaged; they differ in what they started from."""

FARTHEST = 6.0
"""Standard deviations from the mean of the training slices, beyond which a feature counts as that."""


def _eroded(mask: Tensor, rows: int, columns: int, beyond: float = 0.0) -> Tensor:
    """N x 1 x rows x columns, 0 or 1: what lies further from the mask's surface than so many pixels, along each axis.

    Sums over windows come from running sums: a maximum over so large a window takes twenty times as long.
    """
    for dimension, radius in ((2, rows), (3, columns)):
        edges = (0, 0, radius + 1, radius) if dimension == 2 else (radius + 1, radius, 0, 0)
        sums = functional.pad(mask, edges, value=beyond).cumsum(dimension)
        size, span = mask.shape[dimension], 2 * radius + 1
        mask = (sums.narrow(dimension, span, size) - sums.narrow(dimension, 0, size) > span - 0.5).float()
    return mask


def _opened(mask: Tensor, radius: int) -> Tensor:
    return 1 - _eroded(1 - _eroded(mask, radius, radius), radius, radius, beyond=1.0)


def regions(pixels: Tensor) -> Tensor:
    """The lungs' rim, what lies behind it, the core, and areas of low attenuation: N x 4 x rows x columns, 0 or 1.

    Args:
        pixels: N x 3 x rows x columns (see `model.slices.inputs.channels`).
    """
    lungs = (pixels[:, 2:] > 0.5).float()
    width = pixels.shape[3]  # a pixel is `ASPECT` times as wide as it is high
    inner = [_eroded(lungs, round(depth * width * ASPECT), round(depth * width)) for depth in (RIM, BEHIND)]
    low, high = NARROW_WINDOW
    smooth = functional.avg_pool2d(pixels[:, 1:2], 3, 1, 1)
    low_attenuation = lungs * (smooth < (LOW_ATTENUATION_HU - low) / (high - low)).float()
    return torch.cat([lungs - inner[0], inner[0] - inner[1], inner[1], low_attenuation], dim=1)


def density(pixels: Tensor, low_attenuation: Tensor) -> Tensor:
    """What densitometry sees: a map of each bin of HU, and of low attenuation areas that are of some size; 0 or 1."""
    low, high = WIDE_WINDOW
    hounsfield = low + (high - low) * pixels[:, :1]
    bins = [(hounsfield >= first) & (hounsfield < last) for first, last in pairwise(BINS_HU)]
    opened = [_opened(low_attenuation, radius) for radius in OPENINGS]
    return torch.cat([*(one.float() for one in bins), low_attenuation, *opened], dim=1)


@dataclass(frozen=True)
class LungView:
    """Slices as networks see them, and what is measured in them, once for all members of an ensemble.

    Attributes:
        pixels: N x 3 x rows x columns (see `model.slices.inputs.channels`).
    """

    pixels: Tensor

    @cached_property
    def regions(self) -> Tensor:
        """See `regions`."""
        return regions(self.pixels)

    @cached_property
    def densities(self) -> Tensor:
        """Share of each region in each map of `density`: N x (maps x regions)."""
        return pooled(density(self.pixels, self.regions[:, 3:]), self.regions)[0]


def pooled(maps: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of maps over regions.

    Args:
        maps: N x channels x rows x columns.
        weights: N x regions x rows x columns, at least 0.

    Returns:
        both N x (channels x regions); 0 over an empty region.
    """
    count = weights.sum(dim=(2, 3)).clamp_min(1e-3)
    share = (weights / count[:, :, None, None]).flatten(2)
    flat = maps.float().permute(0, 2, 3, 1).flatten(1, 2)  # maps lie channels last in memory: no copy
    mean = share @ flat
    variance = share @ flat**2 - mean**2
    deviation = (variance.clamp_min(0) + 1e-6).sqrt()
    return mean.transpose(1, 2).flatten(1), deviation.transpose(1, 2).flatten(1)


class Head(nn.Module):
    """N x features to N x 4 logits: a linear layer, and beside it one with a hidden layer."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.linear = nn.Linear(features, len(CLASSES))
        self.hidden = nn.Linear(features, HIDDEN)
        self.answer = nn.Linear(HIDDEN, len(CLASSES))
        self.drop_features, self.drop_hidden = nn.Dropout(0.3), nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        standard = ((features - self.mean) / self.deviation).clamp(-FARTHEST, FARTHEST) * (4 / features.shape[1] ** 0.5)
        kept = self.drop_features(standard)
        result: Tensor = self.linear(kept) + self.answer(self.drop_hidden(functional.gelu(self.hidden(kept))))
        return result


class TextureNetwork(nn.Module):
    """N x 3 x rows x columns (0 to 1, see `model.slices.inputs.channels`) to N x 4 logits."""

    architecture = "texture"

    def __init__(self) -> None:
        super().__init__()
        whole = EfficientNetLite0()
        self.stem, self.blocks = whole.stem, nn.Sequential(*list(whole.blocks)[:BLOCKS])
        widths = [STEM_WIDTH, *(WIDTHS[level] for level in LEVELS)]
        densities = len(BINS_HU) - 1 + 1 + len(OPENINGS)
        self.features = REGIONS * (densities + 2 * sum(widths))
        self.heads = nn.ModuleList(Head(self.features) for _ in range(HEADS))

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of the stem and of each of `LEVELS`."""
        features: Tensor = self.stem((255 * pixels - 127) / 128)
        found = [features]
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in LEVELS:
                found.append(features)
        return found

    def train(self, mode: bool = True) -> TextureNetwork:
        """As torch has it, but normalisations keep ImageNet's statistics: a batch is too small to measure them."""
        super().train(mode)
        self.stem.eval()
        self.blocks.eval()
        return self

    def answers(self, features: Tensor) -> Tensor:
        """Pooled features to the logits of each head: heads x N x 4."""
        return torch.stack([head(features) for head in self.heads])

    def answer(self, features: Tensor) -> Tensor:
        """Pooled features to logits: N x 4."""
        return self.answers(features).mean(dim=0)

    def pool(self, view: LungView, maps: list[Tensor]) -> Tensor:
        """What the heads see: N x features."""
        parts = [view.densities]
        for level in maps:
            parts += pooled(level, functional.adaptive_avg_pool2d(view.regions, (level.shape[2], level.shape[3])))
        return torch.cat(parts, dim=1)

    def mixed_features(self, pixels: Tensor) -> Tensor:
        """What the heads see, from maps in bfloat16: N x features, as in training."""
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
            maps = self.maps(pixels)
        return self.pool(LungView(pixels), maps)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits(LungView(pixels))

    def logits(self, view: LungView) -> Tensor:
        """N x 4."""
        return self.answer(self.pool(view, self.maps(view.pixels)).float())

    def attention(self, view: LungView, class_index: int) -> Tensor:
        """What speaks for a class, rows x columns, 0 to 1.

        Grad-CAM with the gradient of each place in place of its mean (HiResCAM, Draelos and Carin, 2020), since what a place
        means depends on its region; summed over the levels. Explained is the class's logit less the mean of all.

        Args:
            view: of one slice.
        """
        with torch.no_grad():
            maps = self.maps(view.pixels)
        maps = [level.detach().float().requires_grad_() for level in maps]
        with torch.enable_grad():
            logits = self.answer(self.pool(view, maps))[0]
            gradients = torch.autograd.grad(logits[class_index] - logits.mean(), maps)
        size = maps[1].shape[2:]
        speaks = torch.zeros(size)
        for level, gradient in zip(maps, gradients, strict=True):
            one = (level * gradient).sum(dim=1, keepdim=True).detach()
            scale = one.shape[2] * one.shape[3] / (size[0] * size[1])  # the sum over places stays
            speaks += scale * functional.interpolate(one, size, mode="area" if scale > 1 else "bilinear")[0, 0]
        speaks = functional.avg_pool2d(speaks[None, None], 9, 1, 4)[0, 0].clamp_min(0)
        return speaks / speaks.max() if speaks.max() > 0 else speaks
