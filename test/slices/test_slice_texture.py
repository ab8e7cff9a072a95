"""The texture network: regions, pooling, its heads, where it looks; and published base weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from model.errors import InputError
from model.slices import texture
from model.slices.bundle import SliceClassifier, SliceMetadata, write_bundle
from model.slices.dataset import Slices, Split
from model.slices.efficientnet_lite import EfficientNetLite0
from model.slices.inputs import LungCrop, channels
from model.slices.lung_training import LungSettings, fit
from model.slices.texture import LEVELS, LungView, TextureNetwork, pooled, regions
from model.slices.texture_training import (
    FINE_TUNING,
    STANDARD_VIEWS,
    TextureSettings,
    features_of,
    fine_tune,
    fit_heads,
    load_base,
    logits_of,
)
from test.slices.chest import LUNGS, chest


def crops(count: int = 8) -> Slices:
    """Crops of a chest; those with odd labels have low attenuation areas at the lungs' edge."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 4
    found = []
    for label in labels:
        hounsfield = chest()
        if label % 2:
            depth = ndimage.distance_transform_edt(LUNGS)
            hounsfield[LUNGS & (depth < 9)] = -985
        if label > 1:
            hounsfield[LUNGS] += 60 * (np.indices(LUNGS.shape)[0] // 4 % 2)[LUNGS]
        found.append(LungCrop.find((hounsfield + rng.normal(0, 5, LUNGS.shape)).astype(np.float32)))
    return Slices(np.stack([crop.hounsfield for crop in found]), np.stack([crop.lungs for crop in found]), labels, None)


@pytest.fixture(scope="module")
def slices() -> Slices:
    return crops()


@pytest.fixture(scope="module")
def network() -> TextureNetwork:
    torch.manual_seed(0)
    return TextureNetwork().eval()


def test_erosion_and_opening_are_those_of_scipy() -> None:
    mask = ndimage.binary_closing(np.random.default_rng(0).random((60, 80)) > 0.3, iterations=2)
    tensor = torch.from_numpy(mask[None, None].astype(np.float32))
    np.testing.assert_array_equal(
        texture._eroded(tensor, 3, 2)[0, 0].numpy() > 0, ndimage.binary_erosion(mask, np.ones((7, 5)))
    )
    inside = np.s_[8:-8, 8:-8]  # beyond the edge there is no mask, for scipy neither
    opened = texture._opened(tensor, 2)[0, 0].numpy() > 0
    np.testing.assert_array_equal(opened[inside], ndimage.binary_opening(mask, np.ones((5, 5)))[inside])


def test_regions_divide_the_lungs_by_depth(slices: Slices) -> None:
    pixels = slices.pixels(np.array([0, 1]))
    rim, behind, core, low = regions(pixels).unbind(1)
    lungs = (pixels[:, 2] > 0.5).float()
    torch.testing.assert_close(rim + behind + core, lungs)
    assert 0.05 < float(rim[0].sum() / lungs[0].sum()) < float((rim + behind)[0].sum() / lungs[0].sum()) < 0.75
    assert float(low[1].sum()) > 3 * float(low[0].sum())
    assert float((low * rim)[1].sum() / low[1].sum()) > 0.6, "the low attenuation areas of the second crop are at the edge"


def test_pooling_gives_mean_and_deviation_of_each_region() -> None:
    maps, weights = torch.rand(1, 2, 6, 6), torch.zeros(1, 2, 6, 6)
    weights[0, 0, :3], weights[0, 1, 4] = 1, 1
    mean, deviation = pooled(maps, weights)
    upper, row = maps[0, :, :3].flatten(1), maps[0, :, 4]
    expected = torch.stack([upper.mean(1), row.mean(1)], dim=1).flatten()
    torch.testing.assert_close(mean[0], expected)
    spread = torch.stack([upper.std(1, correction=0), row.std(1, correction=0)], dim=1).flatten()
    torch.testing.assert_close(deviation[0], spread, atol=1e-3, rtol=1e-2)


@pytest.mark.slow
def test_the_heads_learn_the_classes_and_the_network_answers_as_they_do(slices: Slices, network: TextureNetwork) -> None:
    views = [features_of(network, slices, view) for view in (0, 1, 2)]
    assert views[0].shape == (8, network.features)
    everything = np.arange(8)
    trained = fit_heads(network, views, slices.labels, everything, TextureSettings(rounds=30, batch_size=8))
    assert logits_of(trained, views, everything).argmax(axis=1).tolist() == slices.labels.tolist()
    with torch.no_grad():
        whole = trained(slices.pixels(everything)).numpy()
        alone = trained.answer(torch.from_numpy(views[0])).numpy()
    np.testing.assert_allclose(whole, alone, atol=0.6)  # bfloat16 against float32
    assert whole.argmax(axis=1).tolist() == slices.labels.tolist()
    again = fit_heads(network, views, slices.labels, everything, TextureSettings(rounds=30, batch_size=8))
    np.testing.assert_array_equal(logits_of(again, views, everything), logits_of(trained, views, everything))


@pytest.mark.slow
def test_fine_tuning_trains_a_copy_of_the_blocks_and_leaves_their_statistics(
    slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texture, "BLOCKS", 3)  # of eleven: the others would take most of the time
    monkeypatch.setattr(texture, "LEVELS", (0, 2))
    network = TextureNetwork()
    before = copy.deepcopy(network.state_dict())
    views = [features_of(network, slices, view) for view in STANDARD_VIEWS]
    split = Split(np.arange(8), np.array([0, 1]))
    settings = replace(FINE_TUNING, epochs=2, batch_size=4)
    fitted = fine_tune(network, views, slices, split, settings)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of the network that it started from"
    tuned = fitted.network.state_dict()
    assert not torch.equal(tuned["stem.convolution.weight"], before["stem.convolution.weight"])
    assert not torch.equal(tuned["blocks.2.project.convolution.weight"], before["blocks.2.project.convolution.weight"])
    statistics = [name for name in tuned if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(statistics) == 3 * 9
    assert all(torch.equal(tuned[name], before[name]) for name in statistics)
    torch.testing.assert_close(
        tuned["heads.0.mean"], torch.from_numpy(np.concatenate(views).mean(axis=0)), atol=1e-3, rtol=1e-3
    )
    assert [point.epoch for point in fitted.curve] == [2]
    again = fine_tune(network, views, slices, split, settings).network.state_dict()
    assert all(torch.equal(tuned[name], again[name]) for name in tuned), "the same seed gives the same network"


@pytest.mark.slow
def test_a_training_of_five_steps_has_a_warm_up(slices: Slices) -> None:
    """A fifth of it is one step, by which torch's schedule divides by zero."""
    fitted = fit(slices, Split(np.arange(8), np.array([0, 1])), LungSettings(epochs=5, batch_size=8))
    assert [point.epoch for point in fitted.curve][-1] == 5
    assert all(torch.isfinite(value).all() for value in fitted.network.state_dict().values())


def test_members_of_a_bundle_have_blocks_of_their_own(slices: Slices, network: TextureNetwork, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = TextureNetwork().eval()
    metadata = SliceMetadata("texture", "chests", None, members=2, temperature=0.5)
    write_bundle(tmp_path / "bundle", [network, other], metadata)
    classifier = SliceClassifier.from_bundle(tmp_path / "bundle")
    pixels = slices.pixels(np.array([0, 3]))
    with torch.no_grad():
        both = [(member(pixels) + member(pixels.flip(3))) / 2 for member in (network, other)]
    expected = torch.stack([(2 * logits).softmax(dim=1) for logits in both]).mean(dim=0)
    torch.testing.assert_close(classifier.network.probabilities(pixels, 0.5), expected, atol=1e-3, rtol=0)  # half precision
    for member, written in zip(classifier.network.members, (network, other), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(member.state_dict(), written.state_dict(), atol=1e-3, rtol=1e-3)


def test_a_class_without_slices_cannot_be_learnt(slices: Slices, network: TextureNetwork) -> None:
    views = [np.zeros((8, network.features), np.float32)]
    with pytest.raises(ValueError, match="a class has no slice"):
        fit_heads(network, views, slices.labels, np.flatnonzero(slices.labels < 3), TextureSettings())


def test_attention_lies_where_the_evidence_is(slices: Slices) -> None:
    """Heads that read the mean of the stem's first map over the rim look at the rim alone."""
    alone = TextureNetwork().eval()
    densities = alone.features // texture.REGIONS - 2 * (32 + sum((16, 24, 40, 80, 112)))
    with torch.no_grad():
        alone.stem.state_dict()["convolution.weight"][0] = 1.0
        for head in alone.heads:
            for parameter in head.parameters():
                parameter.zero_()
            head.state_dict()["linear.weight"][1, texture.REGIONS * densities] = 1.0
    pixels = slices.pixels(np.array([1]))
    seen = alone.attention(LungView(pixels), 1)
    rim = torch.nn.functional.adaptive_max_pool2d(regions(pixels)[:, :1], (seen.shape[0], seen.shape[1]))
    near = torch.nn.functional.max_pool2d(rim, 9, 1, 4)[0, 0] > 0
    assert float(seen.max()) == 1
    assert float(seen[near].sum() / seen.sum()) > 0.98


def test_published_weights_are_loaded_into_the_blocks_that_are_kept(tmp_path: Path) -> None:
    whole = EfficientNetLite0()
    names = {"stem.convolution": "_conv_stem", "stem.norm": "_bn0", "head.convolution": "_conv_head", "head.norm": "_bn1"}
    layers = {"expand.convolution": "_expand_conv", "expand.norm": "_bn0", "depthwise.convolution": "_depthwise_conv"}
    layers |= {"depthwise.norm": "_bn1", "project.convolution": "_project_conv", "project.norm": "_bn2"}
    published = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    for name, tensor in whole.state_dict().items():
        place, leaf = name.rsplit(".", 1)
        if place.startswith("blocks."):
            _, number, layer = place.split(".", 2)
            published[f"_blocks.{number}.{layers[layer]}.{leaf}"] = tensor
        else:
            published[f"{names[place]}.{leaf}"] = tensor
    torch.save(published, tmp_path / "efficientnet-lite0.pth")
    network = TextureNetwork()
    load_base(network, tmp_path / "efficientnet-lite0.pth")
    torch.testing.assert_close(network.stem.state_dict()["convolution.weight"], whole.stem.state_dict()["convolution.weight"])
    for mine, theirs in zip(network.blocks.state_dict().values(), whole.blocks.state_dict().values(), strict=False):
        torch.testing.assert_close(mine, theirs)
    assert sum(parameter.numel() for parameter in whole.parameters()) == 3_371_008, "4.65 million less the 1,000 answers"

    (tmp_path / "text.pth").write_text("nothing")
    for name, message in (("text.pth", "not such weights"), ("absent.pth", "no such file")):
        with pytest.raises(InputError, match=message):
            load_base(network, tmp_path / name)


def test_a_slice_beyond_the_crop_is_air_and_the_attention_returns_to_its_place() -> None:
    hounsfield = np.full((100, 120), 40, np.float32)
    lungs = np.zeros((100, 120), bool)
    lungs[10:40, 0:50] = True
    hounsfield[lungs] = -860
    crop = LungCrop.of(hounsfield, lungs)
    assert crop.crop.left < 0
    assert float(crop.hounsfield[168, 0]) == -1024
    assert crop.crop.width / crop.crop.height == pytest.approx(4 / 3)
    seen = crop.on_slice(np.where(crop.lungs > 0, 1, 0).astype(np.float32), (100, 120))
    assert np.abs(seen - lungs).mean() < 0.02


def test_channels_are_two_windows_and_the_lungs() -> None:
    levels = torch.tensor([[[-1024.0, -885.0, 176.0]]])
    wide, narrow, lungs = channels(levels, torch.tensor([[[0.0, 1.0, 0.0]]]))[0, :, 0].tolist()
    assert wide == pytest.approx([0, 139 / 1200, 1])
    assert narrow == pytest.approx([0, 0.5, 1])
    assert lungs == [0, 1, 0]


def test_levels_are_blocks_that_are_kept() -> None:
    assert max(LEVELS) == texture.BLOCKS - 1
