"""Training of the networks in plain torch: strong augmentation, AdamW with a one-cycle rate, averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import CLASSES
from .augmentation import applied, draw
from .dataset import Slices, Split
from .inputs import channels
from .lung_networks import LungNetwork, ResidualNetwork
from .metrics import CurvePoint
from .texture import TextureNetwork

ParameterGroup = dict[str, Any]
"""Parameters, highest learning rate and weight decay, as optimisers take them."""

WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05
WARM_UP = 0.2
"""Share of the steps in which the learning rate rises (Smith and Topin, 2019)."""

MEASURED_EVERY = 3
"""Epochs between two points of the learning curve."""

ANSWERED_AT_ONCE = 16
"""Slices in a batch of `both_ways`, which changes no answer."""


@dataclass(frozen=True)
class LungSettings:
    """How to train.

    Attributes:
        learning_rate: the highest of the cycle; of the texture network, that of its blocks.
        average: of the running average of the weights: how much of it stays at each step.
        device: `cpu` or `cuda`.
    """

    epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 4e-3
    average: float = 0.99
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Fitted:
    """A trained network, and how it came about.

    Attributes:
        network: with averaged weights, on the device.
        curve: measured, never used to choose an epoch.
    """

    network: LungNetwork
    curve: list[CurvePoint] = field(default_factory=list)


def fit(slices: Slices, split: Split, settings: LungSettings, fold: int = 0) -> Fitted:
    """Train a residual network on the split's training slices, for a number of epochs that is fixed before.

    Args:
        fold: its number, which goes into the random numbers.
    """
    torch.manual_seed(settings.seed * 10 + fold)
    network = ResidualNetwork()
    groups = groups_of([network], settings.learning_rate, WEIGHT_DECAY)
    return learn(network, groups, slices, split, settings, fold)


def learn(
    network: LungNetwork,
    groups: Sequence[ParameterGroup],
    slices: Slices,
    split: Split,
    settings: LungSettings,
    fold: int = 0,
    clipped: Sequence[nn.Module] = (),
) -> Fitted:
    """Train a network, which is changed, on the split's training slices.

    Args:
        groups: its parameters, each group with the highest learning rate of its cycle.
        fold: its number, which goes into the random numbers.
        clipped: parts whose gradient has at most the norm 1.
    """
    rng = np.random.default_rng([settings.seed, fold])
    network = network.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    size = min(settings.batch_size, len(split.train))
    steps = len(split.train) // size
    optimizer = torch.optim.AdamW(groups)
    total = settings.epochs * steps
    # torch divides by zero where the warm-up is one step.
    warm_up = WARM_UP if WARM_UP * total != 1 else 2 / total
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=total, pct_start=warm_up
    )
    held = [parameter for part in clipped for parameter in part.parameters()]
    labels = torch.from_numpy(slices.labels)
    counts = torch.bincount(labels[split.train], minlength=len(CLASSES))
    weight = (len(split.train) / len(CLASSES) / counts).to(settings.device)
    criterion = nn.CrossEntropyLoss(weight=weight, label_smoothing=LABEL_SMOOTHING)
    curve, step = [], 0
    for epoch in range(1, settings.epochs + 1):
        network.train()
        order, losses = rng.permutation(split.train), []
        for start in range(0, steps * size, size):
            chosen = order[start : start + size]
            levels, lungs = slices.crops(chosen, settings.device)
            answers = answers_of(network, channels(*applied(levels, lungs, draw(len(chosen), rng).to(settings.device))))
            targets = labels[chosen].to(settings.device)
            loss = torch.stack([criterion(logits, targets) for logits in answers]).mean()
            optimizer.zero_grad()
            loss.backward()
            if held:
                nn.utils.clip_grad_norm_(held, 1.0)
            optimizer.step()
            rate.step()
            step += 1
            _follow(average, network, min(settings.average, (1 + step) / (10 + step)))
            losses.append(loss.detach())  # a number would wait for the GPU
        if epoch % MEASURED_EVERY == 0 or epoch == settings.epochs:
            curve.append(_measured(average, slices, split, epoch, sum(map(float, losses)) / steps))
    return Fitted(average.eval(), curve)


def groups_of(parts: Sequence[nn.Module], learning_rate: float, weight_decay: float) -> list[ParameterGroup]:
    """Weights decay; biases and normalisations do not."""
    parameters = [parameter for part in parts for parameter in part.parameters()]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [
        {"params": weights, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": others, "lr": learning_rate, "weight_decay": 0.0},
    ]


def answers_of(network: LungNetwork, pixels: Tensor) -> Tensor:
    """Logits of each of a network's heads, its convolutions in bfloat16: heads x N x 4."""
    if isinstance(network, TextureNetwork):
        return network.answers(network.mixed_features(pixels))
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        logits: Tensor = network(pixels)
    return logits.float()[None]


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, kept: float) -> None:
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - kept)
        else:
            mean.copy_(now)


def _measured(network: LungNetwork, slices: Slices, split: Split, epoch: int, loss: float) -> CurvePoint:
    shares = both_ways(network, slices, split.test).softmax(dim=1).clamp_min(1e-6)
    labels = torch.from_numpy(slices.labels[split.test])
    right = (shares.argmax(dim=1) == labels).float().mean()
    return CurvePoint(epoch, loss, float(nn.functional.nll_loss(shares.log(), labels)), float(right))


@torch.no_grad()
def both_ways(network: LungNetwork, slices: Slices, indices: npt.NDArray[np.int64]) -> Tensor:
    """Logits of slices as they are and mirrored, averaged: N x 4."""
    network.eval()
    device = next(network.parameters()).device.type
    results = []
    for start in range(0, len(indices), ANSWERED_AT_ONCE):
        pixels = slices.pixels(indices[start : start + ANSWERED_AT_ONCE], device)
        both = [answers_of(network, view).mean(dim=0) for view in (pixels, pixels.flip(3))]
        results.append((both[0] + both[1]) / 2)
    return torch.cat(results).cpu()
