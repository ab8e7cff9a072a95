"""The four architectures, their base weights, their augmentation, and where they look."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import keras
import numpy as np
import pytest
import torch
from keras.src.legacy.saving import legacy_h5_format

from model.errors import InputError
from model.slices import PAPER_ARCHITECTURES, PaperArchitecture, networks, training
from model.slices.augmentation import applied, draw
from model.slices.comparison import base_file
from model.slices.dataset import read_slices, split_by_patient
from model.slices.inputs import channels, shrunk
from model.slices.lung_networks import build_lung_network
from model.slices.networks import FusedNormalization, SliceNetwork, build_network
from model.slices.settings import Settings
from model.slices.training import SHIFT, ZOOM, draw_transforms, predict, train, transformed

BASE_PARAMETERS = {"inception_v3": 21_802_784, "resnet50": 23_587_712, "efficientnet": 4_049_571}
"""What the published networks have without their top layer."""

FEATURES = {"inception_v3": (5, 5, 2048), "resnet50": (7, 7, 2048), "efficientnet": (7, 7, 1280), "simple_cnn": (7, 7, 128)}


@pytest.fixture(scope="module")
def efficientnet_file(random_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random base weights in the layout of the published ones, which is that of Keras 2."""
    path = tmp_path_factory.mktemp("base") / "efficientnetb0_notop.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, random_base)
    return path


@pytest.fixture(scope="module")
def random_base() -> Any:
    """A base whose every weight is random, those of its normalisation too."""
    base = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(224, 224, 3))
    rng = np.random.default_rng(0)
    base.set_weights([rng.random(weight.shape, np.float32) for weight in base.get_weights()])
    return base


@pytest.mark.parametrize("architecture", PAPER_ARCHITECTURES)
def test_each_network_is_the_published_base_under_the_papers_head(architecture: PaperArchitecture) -> None:
    network = build_network(architecture)
    rows, columns, channels = FEATURES[architecture]
    assert network.base.output_shape[1:] == FEATURES[architecture]
    head = (rows * columns * channels + 1) * 128 + (128 + 1) * 4
    assert network.head.count_params() == head
    assert network.base.trainable_variables, "without base weights all of it learns"
    if architecture in BASE_PARAMETERS:
        assert network.base.count_params() == BASE_PARAMETERS[architecture]
    shares = network.probabilities(torch.rand(1, 3, 224, 224))
    assert shares.shape == (1, 4)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [True, False])
def test_fused_normalisation_is_that_of_keras(scale: bool) -> None:
    torch.manual_seed(0)
    pixels = 3 * torch.randn(32, 16, 16, 7) + 2
    found = []
    for kind in (keras.layers.BatchNormalization, FusedNormalization):
        layer = kind(momentum=0.9, scale=scale)
        layer.build(pixels.shape)
        layer.beta.assign(np.arange(7.0))
        if scale:
            layer.gamma.assign(np.arange(1.0, 8.0))
        inputs = pixels.clone().requires_grad_()
        outputs = layer(inputs, training=True)
        (outputs**3).mean().backward()
        learnt = [variable.value.grad for variable in layer.trainable_variables]
        found.append([outputs.detach(), inputs.grad, *learnt, layer.moving_mean.value.detach(), layer(pixels, training=False)])
        variance = layer.moving_variance.value
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # 8192 values: n against n - 1 in the variance
    torch.testing.assert_close(variance, 0.9 + 0.1 * pixels.var(dim=(0, 1, 2)))


def test_a_base_from_scratch_is_keras_own_with_fused_normalisations() -> None:
    base = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(224, 224, 3))
    copied = next(layer for layer in build_network("efficientnet").base.layers if isinstance(layer, keras.Model))
    kinds = [type(layer) for layer in copied.layers]
    assert keras.layers.BatchNormalization not in kinds
    assert kinds.count(FusedNormalization) == 49
    copied.set_weights(base.get_weights())
    pixels = torch.rand(1, 224, 224, 3)
    torch.testing.assert_close(copied(pixels, training=False), base(pixels, training=False), rtol=1e-4, atol=1e-5)


def test_bases_get_pixels_as_their_published_weights_expect_them() -> None:
    black, white = torch.zeros(1, 2, 2, 3), torch.ones(1, 2, 2, 3)
    ranges = {name: (base.prepare(black), base.prepare(white)) for name, base in networks._BASES.items()}
    assert [float(end[0, 0, 0, 0]) for end in ranges["inception_v3"]] == [-1, 1]
    assert [float(end[0, 0, 0, 0]) for end in ranges["efficientnet"]] == [0, 255]
    # Blue, green, red, less ImageNet's means.
    assert np.asarray(ranges["resnet50"][0][0, 0, 0]) == pytest.approx([-103.939, -116.779, -123.68], abs=1e-3)


@pytest.mark.parametrize("layout", ["Keras 2", "Keras 3"])
def test_base_weights_are_loaded_and_frozen(efficientnet_file: Path, random_base: Any, tmp_path: Path, layout: str) -> None:
    file = efficientnet_file
    if layout == "Keras 3":
        file = tmp_path / "efficientnetb0.weights.h5"
        random_base.save_weights(file)
    network = build_network("efficientnet", file)
    (base,) = (layer for layer in network.base.layers if isinstance(layer, keras.Model))
    for loaded, expected in zip(base.get_weights(), random_base.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, expected)
    assert not base.trainable_variables
    assert len(network.whole.trainable_variables) == 4


def test_weights_of_another_architecture_or_none_are_refused_by_name(efficientnet_file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no weights")
    for architecture, path, message in (
        ("resnet50", efficientnet_file, f"{efficientnet_file.name}: not the weights of this base"),
        ("efficientnet", tmp_path / "text.h5", "text.h5: not the weights of this base"),
        ("efficientnet", tmp_path / "absent.h5", "absent.h5: no such file"),
        ("simple_cnn", efficientnet_file, "the simple network has no base"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as refusal:
            build_network(architecture, path)  # type: ignore[arg-type]
        assert "\n" not in str(refusal.value)


def test_a_folder_of_base_weights_gives_each_architecture_its_file(efficientnet_file: Path) -> None:
    assert base_file(efficientnet_file.parent, "efficientnet") == efficientnet_file
    assert base_file(efficientnet_file.parent, "simple_cnn") is None
    assert base_file("imagenet", "resnet50") == "imagenet"
    with pytest.raises(InputError, match=r"0 files resnet50\*"):
        base_file(efficientnet_file.parent, "resnet50")


def bright_spot_network() -> SliceNetwork:
    """The simple network with weights set by hand: bright pixels speak for class 1, and nothing for any other."""
    network = build_network("simple_cnn")
    for layer in network.base.layers:
        if layer.weights:
            kernel, bias = (np.zeros(weight.shape, np.float32) for weight in layer.weights)
            kernel[1, 1, 0, 0] = 1
            layer.set_weights([kernel, bias])
    hidden, last = (layer for layer in network.head.layers if layer.weights)
    kernel = np.zeros(hidden.weights[0].shape, np.float32)
    kernel[::128, 0] = 1  # channel 0 of each of the 7 x 7 places
    hidden.set_weights([kernel, np.zeros(128, np.float32)])
    kernel = np.zeros(last.weights[0].shape, np.float32)
    kernel[0, 1] = 1
    last.set_weights([kernel, np.zeros(4, np.float32)])
    return network


def test_attention_lies_where_the_evidence_is() -> None:
    network = bright_spot_network()
    pixels = torch.zeros(1, 3, 224, 224)
    pixels[0, :, 40:50, 170:180] = 1  # the second row and the sixth column of 7 x 7
    assert int(network.probabilities(pixels).argmax()) == 1
    seen = network.attention(pixels, 1)
    assert seen.shape == (7, 7)
    assert divmod(int(seen.argmax()), 7) == (1, 5)
    assert float(seen.max()) == 1
    assert float(seen.sum()) == pytest.approx(1), "nothing else speaks for the class"


def test_the_transform_that_does_nothing_changes_nothing_and_a_flip_mirrors() -> None:
    pixels = torch.rand(2, 3, 16, 16)
    nothing, flip = (torch.tensor([[[sign, 0, 0], [0, 1, 0]]] * 2, dtype=torch.float32) for sign in (1.0, -1.0))
    torch.testing.assert_close(transformed(pixels, nothing), pixels)
    torch.testing.assert_close(transformed(pixels, flip), pixels.flip(3))


def test_transforms_stay_within_their_ranges_and_flip_half_of_the_pictures() -> None:
    drawn = draw_transforms(2000, np.random.default_rng(0)).numpy()
    assert abs(drawn[:, :, 2]).max() <= 2 * SHIFT
    # Zoom is the area of the picture that is seen: rotation and shear leave it as it is.
    area = np.linalg.det(drawn[:, :, :2])
    assert (1 - ZOOM) ** 2 <= abs(area).min() < abs(area).max() <= (1 + ZOOM) ** 2
    assert np.mean(area < 0) == pytest.approx(0.5, abs=0.05)
    turn = np.degrees(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0] * np.sign(area)) * np.sign(area))
    assert 14 < abs(np.where(abs(turn) > 90, 180 - abs(turn), turn)).max() <= 15.01
    np.testing.assert_array_equal(drawn[:5], draw_transforms(2000, np.random.default_rng(0)).numpy()[:5])


@pytest.mark.slow
def test_training_stops_when_validation_no_longer_improves_and_the_curve_says_so(slices_folder: Path) -> None:
    slices = read_slices(slices_folder)
    settings = Settings(epochs=6, patience=1, batch_size=8, scratch_learning_rate=0.1)  # so large that it gets worse at once
    network, curve = train("simple_cnn", slices, split_by_patient(slices), settings, verbose=False)
    losses = [point.validation_loss for point in curve]
    assert None not in losses
    best = int(np.argmin(np.array(losses, float)))
    assert len(curve) == min(best + 2, 6), "one epoch without improvement is waited for"
    assert predict(network, slices, np.arange(3)).shape == (3, 4)


@pytest.mark.slow
def test_a_network_that_is_sure_and_wrong_goes_on_learning(slices_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sure(*arguments: Any) -> SliceNetwork:
        network = build_network(*arguments)
        last = network.head.layers[-1]
        last.set_weights([np.zeros_like(last.get_weights()[0]), np.array([0, 0, 0, 50], np.float32)])
        return network

    monkeypatch.setattr(training, "build_network", sure)
    slices = read_slices(slices_folder)
    split = split_by_patient(slices)
    network, curve = train("simple_cnn", slices, split, Settings(epochs=1, batch_size=16), verbose=False)
    assert curve[0].loss > 30
    assert network.head.layers[-1].get_weights()[1][3] < 50 - 1e-4
    shares = predict(network, slices, split.test)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert shares.min() >= 0, "it answers probabilities again"


@pytest.mark.parametrize("architecture", ["simple_cnn", "residual", "texture"])
def test_training_keeps_to_one_device(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device without contents: a tensor that is made on the CPU would meet those that are not."""
    device = torch.device("meta")
    randn = torch.randn
    monkeypatch.setattr(torch, "Generator", Mock())  # there is none of this device
    monkeypatch.setattr(torch, "randn", lambda size, device, **_: randn(size, device=device))
    hounsfield, lungs = torch.empty(2, 2, 336, 336, device=device)
    changes = draw(2, np.random.default_rng(0)).to("meta")
    pixels = channels(*applied(hounsfield, lungs, changes))
    if architecture == "simple_cnn":
        with keras.device("meta"):
            moved = transformed(shrunk(pixels), draw_transforms(2, np.random.default_rng(0)).to(device))
            answer = build_network("simple_cnn").whole(moved.permute(0, 2, 3, 1), training=True)
    else:
        with device:
            network = build_lung_network(architecture)  # type: ignore[arg-type]
        answer = network(pixels)
    assert answer.device == device
    assert answer.shape == (2, 4)
