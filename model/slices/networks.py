"""The four architectures of the paper's Table I: an ImageNet base, or a small one of our own, under the paper's head.

They see the lungs as the other networks do (see `model.slices.inputs`), where the paper shows them a whole picture.

The paper rescales pixels to 0..1 for every architecture. The published ImageNet weights expect what they were trained on,
which differs: -1..1 for InceptionV3, mean-free BGR for ResNet50, 0..255 for EfficientNet (for which the paper reports 14 %,
less than chance). So a network here takes 0..1 and brings it to what its base expects.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import torch
from keras import layers
from torch import Tensor

from ..errors import InputError
from . import CLASSES, PaperArchitecture
from .inputs import PAPER_SIZE, shrunk

IMAGENET = "imagenet"
"""Given in place of a file of base weights: download them."""

SIMPLE_FILTERS = (16, 32, 64, 128, 128)
"""Of the simple network, which the paper does not describe: a 3 x 3 convolution and a maximum over 2 x 2 for each."""

HEAD_UNITS = 128
"""Section IV E of the paper."""

SCRATCH_MOMENTUM = 0.9
"""Of batch normalisation in a base without weights: Keras's 0.99 needs more steps than a few hundred slices give."""


@dataclass(frozen=True)
class SliceNetwork:
    """A network in two halves, which share their weights with the whole.

    Attributes:
        architecture: its name.
        whole: N x 224 x 224 x 3 (0 to 1) to N x 4 probabilities.
        base: the same to the last feature maps, N x rows x columns x channels.
        head: feature maps to probabilities.
    """

    architecture: PaperArchitecture
    whole: keras.Model
    base: keras.Model
    head: keras.Model

    @torch.no_grad()
    def probabilities(self, pixels: Tensor, temperature: float = 1.0) -> Tensor:
        """N x 4 probabilities for N x 3 x 336 x 336 pixels from 0 to 1."""
        shares: Tensor = self.whole(shrunk(pixels).permute(0, 2, 3, 1), training=False).cpu().float()
        return (shares.clamp_min(1e-12).log() / temperature).softmax(dim=1)

    def attention(self, pixels: Tensor, class_index: int) -> Tensor:
        """What speaks for a class: Grad-CAM (Selvaraju et al., ICCV 2017) of the last feature maps, rows x columns, 0 to 1.

        Each map is weighted by the mean gradient of the class's log probability; what speaks against the class counts as 0.

        Args:
            pixels: 1 x 3 x 336 x 336, 0 to 1.
        """
        with torch.no_grad():
            features: Tensor = self.base(shrunk(pixels).permute(0, 2, 3, 1), training=False)
        features = features.detach().requires_grad_()
        with torch.enable_grad():
            score = self.head(features, training=False)[0, class_index].clamp_min(1e-12).log()
            (gradient,) = torch.autograd.grad(score, features)
        speaks = (features * gradient.mean(dim=(1, 2), keepdim=True)).sum(dim=3)[0].clamp_min(0).detach().cpu()
        return speaks / speaks.max() if speaks.max() > 0 else speaks


@dataclass(frozen=True)
class _Base:
    """A base of `keras.applications`: how it is built, and what it expects of pixels from 0 to 1."""

    build: Callable[..., keras.Model]
    prepare: Callable[[Any], Any]


_BASES: dict[str, _Base] = {
    "inception_v3": _Base(keras.applications.InceptionV3, lambda pixels: 2 * pixels - 1),
    "resnet50": _Base(keras.applications.ResNet50, lambda pixels: keras.applications.resnet50.preprocess_input(255 * pixels)),
    "efficientnet": _Base(keras.applications.EfficientNetB0, lambda pixels: 255 * pixels),
}


def build_network(architecture: PaperArchitecture, base_weights: Path | str | None = None) -> SliceNetwork:
    """Build a network: flatten, dense 128 with ReLU, softmax over the four classes, on a base.

    Args:
        base_weights: ImageNet weights of the base without its top, as `keras.applications` publishes them: a file, or
            `imagenet` to download them. The base is then frozen. None: the base is trained from scratch.

    Raises:
        InputError: the weights cannot be had, or are of another architecture, or the architecture takes none.
    """
    pixels = keras.Input((PAPER_SIZE, PAPER_SIZE, 3))
    if architecture == "simple_cnn":
        if base_weights is not None:
            raise InputError("--base-weights", "the simple network has no base", "one of the other architectures")
        features = _simple_base(pixels)
    else:
        base = _BASES[architecture].build(include_top=False, weights=None, input_shape=(PAPER_SIZE, PAPER_SIZE, 3))
        if base_weights is not None:
            _load_base(base, architecture, base_weights)
            base.trainable = False
        else:
            base = _for_scratch(base)
        features = base(_BASES[architecture].prepare(pixels))
    maps = keras.Input(features.shape[1:])
    flat = layers.Flatten()(maps)
    hidden = layers.Dense(HEAD_UNITS, activation="relu")(flat)
    head = keras.Model(maps, layers.Dense(len(CLASSES), activation="softmax")(hidden))
    return SliceNetwork(architecture, keras.Model(pixels, head(features)), keras.Model(pixels, features), head)


def _simple_base(pixels: Any) -> Any:
    features = pixels
    for filters in SIMPLE_FILTERS:
        features = layers.Conv2D(filters, 3, padding="same", activation="relu")(features)
        features = layers.MaxPooling2D()(features)
    return features


class FusedNormalization(layers.BatchNormalization):  # type: ignore[misc]
    """Batch normalisation of the last axis, in training by torch's own function.

    Keras computes it in a dozen operations on torch, which take up to half the time of a training step. They differ in one
    point: the running variance is torch's, of a sample (n - 1).
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: None = None) -> Tensor:
        if not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        scale = self.gamma.value if self.scale else torch.ones_like(self.moving_mean.value)
        offset = self.beta.value if self.center else torch.zeros_like(self.moving_mean.value)
        statistics = self.moving_mean.value, self.moving_variance.value
        channels_first = inputs.permute(0, 3, 1, 2)
        normalised = torch.nn.functional.batch_norm(
            channels_first, *statistics, scale, offset, True, 1 - self.momentum, self.epsilon
        )
        return normalised.permute(0, 2, 3, 1)


def _for_scratch(base: keras.Model) -> keras.Model:
    """The base, untrained, as it learns fast from few slices."""

    def copied(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, layers.BatchNormalization):
            return FusedNormalization.from_config(layer.get_config() | {"momentum": SCRATCH_MOMENTUM})
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(base, clone_function=copied)


def _load_base(base: keras.Model, architecture: PaperArchitecture, weights: Path | str) -> None:
    expected = f"ImageNet weights of {architecture} without its top, as keras.applications publishes them (.h5)"
    if weights == IMAGENET:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                donor = _BASES[architecture].build(include_top=False, weights="imagenet", input_shape=base.input_shape[1:])
        except Exception as error:  # whatever the download fails with
            raise InputError("--base-weights imagenet", f"cannot be downloaded ({error})", f"a file: {expected}") from error
        base.set_weights(donor.get_weights())
        return
    if not Path(weights).is_file():
        raise InputError(weights, "no such file", expected)
    try:
        base.load_weights(str(weights))
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(weights, f"not the weights of this base ({reason})", expected) from error
