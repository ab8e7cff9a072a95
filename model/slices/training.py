"""Training as the paper has it: augmentation, batches of 32, Adam, categorical cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import CLASSES, ArchitectureName
from .dataset import Slices, Split
from .networks import SliceNetwork, build_network, probabilities

ROTATION_DEGREES = 15.0
SHIFT = 0.1
SHEAR = 0.1
ZOOM = 0.1
"""Largest values of the augmentation, the last three in shares of the picture; the paper names the kinds and no numbers."""


@dataclass(frozen=True)
class Settings:
    """How to train; what the paper gives is the default, but for the epochs and the learning rate, which it does not give."""

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-3
    scratch_learning_rate: float = 3e-4
    seed: int = 0


def draw_transforms(count: int, rng: np.random.Generator) -> Tensor:
    """Draw rotation, shear, zoom, horizontal flip and shift for each of `count` pictures.

    Returns:
        count x 2 x 3, float32: where a place of the new picture comes from in the old one, x and y from -1 to 1.
    """
    angle = np.radians(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES, count))
    shear = rng.uniform(-SHEAR, SHEAR, count)
    zoom_x, zoom_y = rng.uniform(1 - ZOOM, 1 + ZOOM, (2, count))
    flip = rng.choice([-1.0, 1.0], count)
    shift_x, shift_y = 2 * rng.uniform(-SHIFT, SHIFT, (2, count))
    cosine, sine = np.cos(angle), np.sin(angle)
    across = flip * zoom_x
    rows = [
        [across * cosine, zoom_y * (across * cosine * shear - sine), shift_x],
        [across * sine, zoom_y * (across * sine * shear + cosine), shift_y],
    ]
    return torch.from_numpy(np.moveaxis(np.array(rows), 2, 0).astype(np.float32))


def transformed(pixels: Tensor, transforms: Tensor) -> Tensor:
    """Apply one transform to each of N x rows x columns x 3 pixels; what lies beyond a picture is its edge.

    One interpolation does all of it. Keras has a layer for each kind, which take a hundred times as long on torch.
    """
    pictures = pixels.permute(0, 3, 1, 2)
    grid = torch.nn.functional.affine_grid(transforms, list(pictures.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1)


def rescaled(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """0 to 255 to 0 to 1."""
    return np.asarray(pictures / np.float32(255), np.float32)


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Shuffled batches, augmented anew in each epoch."""

    def __init__(self, slices: Slices, split: Split, settings: Settings) -> None:
        super().__init__(workers=0)
        self._slices = slices
        self._settings = settings
        self._rng = np.random.default_rng(settings.seed)
        self._order = self._rng.permutation(split.train)

    def __len__(self) -> int:
        return -(-len(self._order) // self._settings.batch_size)

    def __getitem__(self, index: int) -> tuple[Tensor, npt.NDArray[np.float32]]:
        size = self._settings.batch_size
        chosen = self._order[index * size : (index + 1) * size]
        pixels = torch.from_numpy(rescaled(self._slices.pictures[chosen]))
        pixels = transformed(pixels, draw_transforms(len(chosen), self._rng)).contiguous()
        return pixels, np.eye(len(CLASSES), dtype=np.float32)[self._slices.labels[chosen]]

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(self._order)


def train(
    architecture: ArchitectureName,
    slices: Slices,
    split: Split,
    settings: Settings,
    base_weights: Path | str | None = None,
    verbose: bool = True,
) -> SliceNetwork:
    """Train a network on the split's training slices.

    With base weights only the head learns; without them all of it does, at a smaller learning rate. The slices set aside are
    not looked at, not even to stop.
    """
    keras.utils.set_random_seed(settings.seed)
    network = build_network(architecture, base_weights)
    rate = settings.learning_rate if base_weights is not None else settings.scratch_learning_rate
    network.whole.compile(optimizer=keras.optimizers.Adam(rate), loss="categorical_crossentropy", metrics=["accuracy"])
    network.whole.fit(_Batches(slices, split, settings), epochs=settings.epochs, verbose=2 if verbose else 0)
    return network


def predict(network: SliceNetwork, pictures: npt.NDArray[np.uint8], batch_size: int = 32) -> npt.NDArray[np.float32]:
    """Probabilities, N x 4, for N x 224 x 224 x 3 pictures."""
    batches = (pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size))
    return np.concatenate([probabilities(network, torch.from_numpy(rescaled(batch))).numpy() for batch in batches])
