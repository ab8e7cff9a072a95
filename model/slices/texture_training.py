"""Training of the texture network: its heads alone, on pooled features of slices and of augmented views; or its blocks too."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..errors import InputError
from . import CLASSES
from .augmentation import applied, draw
from .dataset import Slices, Split
from .efficientnet_lite import translated
from .inputs import channels
from .lung_training import Fitted, LungSettings, groups_of, learn
from .texture import Head, TextureNetwork

Features = npt.NDArray[np.float32]

BATCH_SIZE = 8

FINE_TUNING = LungSettings(epochs=24, batch_size=32, learning_rate=3e-4)
"""Of blocks and heads together."""

HEADS_RATE = 3e-3
BLOCKS_DECAY, HEADS_DECAY = 0.05, 0.1
"""In fine-tuning: new heads learn faster than blocks that have learnt from ImageNet."""

STANDARD_VIEWS = (0, 2)
"""In fine-tuning: views that give the mean and deviation of features: slices as they are, and changed at random."""


@dataclass(frozen=True)
class TextureSettings:
    """How to train heads alone. They are so small that they learn on the CPU.

    Attributes:
        views: of each slice: as it is, mirrored, and changed at random.
        rounds: each of as many slices as there are to train on, in one view each.
        learning_rate: the highest of the cycle.
    """

    views: int = 6
    rounds: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    label_smoothing: float = 0.05
    seed: int = 0


def load_base(network: TextureNetwork, path: Path) -> None:
    """ImageNet weights of EfficientNet-Lite0 into a network's blocks, from a file of tensors (`.pth`).

    Raises:
        InputError: the file holds something else.
    """
    expected = "the published tensors of EfficientNet-Lite0 (.pth)"
    if not path.is_file():
        raise InputError(path, "no such file", expected)
    try:
        published = translated(torch.load(path, map_location="cpu", weights_only=True))
        wanted = {name for name in network.state_dict() if not name.startswith("heads.")}
        network.load_state_dict({name: published[name] for name in wanted}, strict=False)
    except Exception as error:  # whatever a foreign file leads to
        raise InputError(path, f"not such weights ({type(error).__name__})", expected) from error


def features_of(network: TextureNetwork, slices: Slices, view: int, seed: int = 0, device: str = "cpu") -> Features:
    """What the heads would see of every slice.

    Args:
        view: 0 as they are, 1 mirrored, above changed at random.

    Returns:
        N x features.
    """
    network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rng = np.random.default_rng([seed, view])
    found = []
    for start in range(0, len(slices.labels), BATCH_SIZE):
        levels, lungs = slices.crops(np.arange(start, min(start + BATCH_SIZE, len(slices.labels))), device)
        if view == 1:
            levels, lungs = levels.flip(2), lungs.flip(2)
        elif view > 1:
            levels, lungs = applied(levels, lungs, draw(len(levels), rng).to(device))
        pixels = channels(levels, lungs)
        with torch.no_grad():
            found.append(network.mixed_features(pixels).cpu().numpy())
    network.cpu()
    return np.concatenate(found).astype(np.float32)


def fit_heads(
    network: TextureNetwork,
    views: Sequence[Features],
    labels: npt.NDArray[np.int64],
    train: npt.NDArray[np.int64],
    settings: TextureSettings,
) -> TextureNetwork:
    """A copy of the network whose heads are trained on some slices in all views; classes weigh the same.

    Raises:
        ValueError: a class has no slice to train on.
    """
    counts = torch.bincount(torch.from_numpy(labels[train]), minlength=len(CLASSES))
    if (counts == 0).any():
        raise ValueError("a class has no slice to train on")
    criterion = nn.CrossEntropyLoss(weight=len(train) / len(CLASSES) / counts, label_smoothing=settings.label_smoothing)
    inputs = torch.from_numpy(np.stack([view[train] for view in views]))
    targets = torch.from_numpy(labels[train])
    result = copy.deepcopy(network)
    for number in range(len(result.heads)):
        torch.manual_seed(10 * settings.seed + number)
        head = _new_head(inputs)
        optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        steps = settings.rounds * (len(train) // settings.batch_size + 1)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(train), (settings.batch_size,))
            shown = torch.randint(len(views), (settings.batch_size,))
            loss = criterion(head(inputs[shown, chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        result.heads[number] = head
    return result.eval()


def _new_head(inputs: torch.Tensor) -> Head:
    """An untrained head for features like these: views x N x features."""
    head = Head(inputs.shape[2])
    head.mean, head.deviation = inputs.mean(dim=(0, 1)), inputs.std(dim=(0, 1)) + 1e-6
    return head


def fine_tune(
    network: TextureNetwork, views: Sequence[Features], slices: Slices, split: Split, settings: LungSettings, fold: int = 0
) -> Fitted:
    """Train the blocks of a copy of the network, and new heads on them, for a number of epochs that is fixed before.

    Args:
        views: features of all slices in `STANDARD_VIEWS`.
        fold: its number, which goes into the random numbers.
    """
    torch.manual_seed(1000 + settings.seed * 10 + fold)
    tuned = copy.deepcopy(network)
    inputs = torch.from_numpy(np.stack([view[split.train] for view in views]))
    for number in range(len(tuned.heads)):
        tuned.heads[number] = _new_head(inputs)
    blocks = [tuned.stem, tuned.blocks]
    groups = groups_of(blocks, settings.learning_rate, BLOCKS_DECAY) + groups_of([tuned.heads], HEADS_RATE, HEADS_DECAY)
    return learn(tuned, groups, slices, split, settings, fold, clipped=blocks)


def logits_of(network: TextureNetwork, views: Sequence[Features], indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Logits of some slices as they are and mirrored, averaged: N x 4."""
    with torch.no_grad():
        both = [network.answer(torch.from_numpy(view[indices])).numpy() for view in views[:2]]
    return np.mean(both, axis=0).astype(np.float64)
