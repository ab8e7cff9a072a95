"""Training of the paper's networks as the paper has it: augmentation, batches of 32, Adam, categorical cross-entropy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..subtyping import choose_precision
from . import CLASSES, PaperArchitecture
from .dataset import Slices, Split, part_of
from .inputs import shrunk
from .metrics import CurvePoint
from .networks import SliceNetwork, build_network
from .settings import EPOCHS, Settings

ROTATION_DEGREES = 15.0
SHIFT = 0.1
SHEAR = 0.1
ZOOM = 0.1
"""Largest values of the augmentation, the last three in shares of the picture; the paper names the kinds and no numbers."""

ANSWERED_AT_ONCE = 32
"""Slices in a batch of `predict`, which changes no answer."""


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
    """Apply one transform to each of N x 3 x rows x columns pixels; what lies beyond a picture is its edge.

    One interpolation does all of it. Keras has a layer for each kind, which take a hundred times as long on torch.
    """
    grid = torch.nn.functional.affine_grid(transforms, list(pixels.shape), align_corners=False)
    return torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Shuffled batches, augmented anew in each epoch; or, for validation, as they are."""

    def __init__(self, slices: Slices, indices: npt.NDArray[np.int64], settings: Settings, augment: bool = True) -> None:
        super().__init__(workers=0)
        self._slices = slices
        self._settings = settings
        self._augment = augment
        self._rng = np.random.default_rng(settings.seed)
        self._order = self._rng.permutation(indices)

    def __len__(self) -> int:
        return -(-len(self._order) // self._settings.batch_size)

    def __getitem__(self, index: int) -> tuple[Tensor, npt.NDArray[np.float32]]:
        size = self._settings.batch_size
        chosen = self._order[index * size : (index + 1) * size]
        device = self._settings.device
        pixels = shrunk(self._slices.pixels(chosen, device))
        if self._augment:
            with torch.autocast(device, enabled=False):  # in bfloat16, places would be off by half a pixel
                pixels = transformed(pixels, draw_transforms(len(chosen), self._rng).to(device))
        return pixels.permute(0, 2, 3, 1).contiguous(), np.eye(len(CLASSES), dtype=np.float32)[self._slices.labels[chosen]]

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(self._order)


@contextlib.contextmanager
def _on(device: str) -> Iterator[None]:
    """Keras on a device, in mixed precision where bfloat16 is native; cached weights would be those of the step before."""
    native = choose_precision("auto", torch.device(device)) == torch.bfloat16
    mixed = torch.autocast(device, torch.bfloat16, enabled=native, cache_enabled=False)
    with keras.device(device), mixed:
        yield


@contextlib.contextmanager
def _as_logits(network: SliceNetwork) -> Iterator[None]:
    """The network without its softmax.

    Keras cuts probabilities off at 1e-7, and their gradient with them: a network that is sure and wrong would learn no more.
    The first steps of Adam lead there, since the head has as many as a hundred thousand inputs.
    """
    last = network.head.layers[-1]
    last.activation = keras.activations.linear
    try:
        yield
    finally:
        last.activation = keras.activations.softmax


def train(
    architecture: PaperArchitecture,
    slices: Slices,
    split: Split,
    settings: Settings,
    base_weights: Path | str | None = None,
    verbose: bool = True,
) -> tuple[SliceNetwork, list[CurvePoint]]:
    """Train a network on the split's training slices.

    With base weights only the head learns; without them all of it does, at a smaller learning rate. The slices set aside are
    not looked at, not even to stop. Where bfloat16 is native, convolutions and products are computed in it.

    Returns:
        the network, and a point of the learning curve for each epoch.
    """
    keras.utils.set_random_seed(settings.seed)
    validation: dict[str, Any] = {}
    inner = split
    if settings.patience is not None:
        inner = part_of(slices, split.train)
        stop = keras.callbacks.EarlyStopping("val_loss", patience=settings.patience, restore_best_weights=True)
        validation = {"validation_data": _Batches(slices, inner.test, settings, augment=False), "callbacks": [stop]}
    with _on(settings.device):
        network = build_network(architecture, base_weights)
        rate = settings.learning_rate if base_weights is not None else settings.scratch_learning_rate
        batches = _Batches(slices, inner.train, settings)
        with _as_logits(network):
            loss = keras.losses.CategoricalCrossentropy(from_logits=True)
            network.whole.compile(optimizer=keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])
            history = network.whole.fit(
                batches, epochs=settings.epochs or EPOCHS, verbose=2 if verbose else 0, **validation
            ).history
    missing = [None] * len(history["loss"])
    curve = zip(history["loss"], history.get("val_loss", missing), history.get("val_accuracy", missing), strict=True)
    return network, [CurvePoint(epoch, *measured) for epoch, measured in enumerate(curve, start=1)]


def predict(network: SliceNetwork, slices: Slices, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Probabilities of slices, N x 4."""
    batches = (indices[start : start + ANSWERED_AT_ONCE] for start in range(0, len(indices), ANSWERED_AT_ONCE))
    device = network.whole.variables[0].value.device.type
    with _on(device):
        shares = [network.probabilities(slices.pixels(batch, device)).numpy() for batch in batches]
    return np.concatenate(shares).astype(np.float64)
