"""Training of the networks in plain torch: strong augmentation, AdamW with a one-cycle rate, averaged weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import CLASSES
from .augmentation import applied, draw
from .dataset import Slices, Split
from .inputs import channels, shrunk
from .lung_networks import LungNetwork, ResidualNetwork
from .metrics import CurvePoint

WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05
WARM_UP = 0.2
"""Share of the steps in which the learning rate rises (Smith and Topin, 2019)."""

MEASURED_EVERY = 3
"""Epochs between two points of the learning curve."""


@dataclass(frozen=True)
class LungSettings:
    """How to train.

    Attributes:
        learning_rate: the highest of the cycle.
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
    rng = np.random.default_rng([settings.seed, fold])
    network = ResidualNetwork()
    network = network.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    size = min(settings.batch_size, len(split.train))
    steps = len(split.train) // size
    optimizer = torch.optim.AdamW(_groups(network), lr=settings.learning_rate)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * steps, pct_start=WARM_UP
    )
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
            pixels = shrunk(channels(*applied(levels, lungs, draw(len(chosen), rng).to(settings.device))))
            with torch.autocast(settings.device, dtype=torch.bfloat16):
                logits = network(pixels)
            loss = criterion(logits.float(), labels[chosen].to(settings.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            step += 1
            _follow(average, network, min(settings.average, (1 + step) / (10 + step)))
            losses.append(loss.detach())  # a number would wait for the GPU
        if epoch % MEASURED_EVERY == 0 or epoch == settings.epochs:
            curve.append(_measured(average, slices, split, epoch, sum(map(float, losses)) / steps))
    return Fitted(average.eval(), curve)


def _groups(network: nn.Module) -> list[dict[str, object]]:
    """Weights decay; biases and normalisations do not."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


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
def both_ways(network: LungNetwork, slices: Slices, indices: npt.NDArray[np.int64], batch_size: int = 16) -> Tensor:
    """Logits of slices as they are and mirrored, averaged: N x 4."""
    network.eval()
    device = next(network.parameters()).device.type
    results = []
    for start in range(0, len(indices), batch_size):
        pixels = slices.pixels(indices[start : start + batch_size], device)
        with torch.autocast(device, dtype=torch.bfloat16):
            results.append(((network(pixels) + network(pixels.flip(3))) / 2).float())
    return torch.cat(results).cpu()
