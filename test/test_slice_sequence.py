"""The network that the paper compares itself with: which slices it sees, and that its maps and scores belong together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.imaging.scan import Scan
from model.network import NetworkConfig, build_network, class_probabilities, fold_batch_normalisation
from model.slice_sequence import SliceSequenceHead, on_map_grid, slice_places
from model.subtyping import EmphysemaSubtyper
from model.weights import read_bundle, untrained_bundle, write_bundle
from test.phantom import COARSE_INPUT, Phantom

CONFIG = NetworkConfig("slices-lstm", "classification", 8)


def test_slices_are_spaced_evenly_from_the_first_to_the_last() -> None:
    places = slice_places(128)
    assert (len(places), places[0], places[12], places[24]) == (25, 0, 64, 127)  # 127 * 12 / 24 is 63.5, rounded to even
    assert set(np.diff(places)) == {5, 6}
    assert slice_places(16) == list(range(16))


def test_only_those_slices_count_and_their_order_matters() -> None:
    torch.manual_seed(0)
    network = build_network(CONFIG).eval()
    image = torch.rand(1, 1, 64, 16, 24)
    logits = [part.mean((2, 3, 4)) for part in network(image)]
    others = image.clone()
    others[:, :, sorted(set(range(64)) - set(slice_places(64)))] = 7.0
    upside_down = [part.mean((2, 3, 4)) for part in network(image.flip(2))]
    for part, same, flipped in zip(logits, network(others), upside_down, strict=True):
        torch.testing.assert_close(same.mean((2, 3, 4)), part)
        assert not torch.allclose(flipped, part, atol=1e-4)


def test_maps_average_to_the_class_logits() -> None:
    torch.manual_seed(0)
    network = build_network(CONFIG)
    image = torch.rand(2, 1, 32, 40, 56)
    network(image)  # normalisation takes up statistics
    dense = network.eval()(image)
    assert [part.shape for part in dense] == [(2, 6, 16, 20, 28), (2, 3, 16, 20, 28)]
    with torch.no_grad():
        features = network.backbone(image)
        expected = network.head(features.mean((3, 4)).transpose(1, 2))
    for part, logits in zip(dense, expected, strict=True):
        assert not part.requires_grad
        assert part.std(dim=(2, 3, 4)).min() > 0
        torch.testing.assert_close(part.mean((2, 3, 4)), logits)
        torch.testing.assert_close(class_probabilities(part), logits.softmax(1))


class _MeanHead(SliceSequenceHead):
    """A linear layer on the mean over all slices, without the LSTM."""

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.nn.functional.pad(pooled.mean(1), (0, self.centrilobular.in_features - pooled.shape[2]))
        return self.centrilobular(mean), self.paraseptal(mean)


def test_without_the_lstm_the_activation_is_the_class_activation_map() -> None:
    """Zhou et al. 2016: the weights of a class times the features, here with the bias added everywhere."""
    head = _MeanHead(3, 2)
    features = torch.rand(1, 3, 5, 2, 4)
    for maps, layer in zip(head.activations(features), (head.centrilobular, head.paraseptal), strict=True):
        expected = torch.einsum("kc,bcshw->bkshw", layer.weight[:, :3], features) + layer.bias.view(1, -1, 1, 1, 1)
        torch.testing.assert_close(maps, expected.detach())


def test_maps_come_to_the_map_grid_with_their_places_and_means() -> None:
    maps = torch.zeros(1, 1, 5, 4, 4)
    maps[0, 0, 2, 3, 0] = 1
    dense = on_map_grid(maps, (9, 32, 32))
    assert dense.shape == (1, 1, 9, 32, 32)
    assert dense.mean().item() == pytest.approx(1 / 80)
    place = np.unravel_index(int(dense[0, 0, :, :28, 4:].argmax()), (9, 28, 28))
    assert place[0] == 4  # the middle one of the slices
    assert place[1] >= 24  # rows 24 to 31
    assert place[2] <= 3  # columns 4 to 7 of 0 to 7


def test_folding_keeps_the_function() -> None:
    torch.manual_seed(1)
    network = build_network(CONFIG)
    image = torch.rand(2, 1, 16, 24, 32)
    for _ in range(3):
        network(image * 3)
    expected = network.eval()(image)
    for part, found in zip(expected, fold_batch_normalisation(network)(image), strict=True):
        torch.testing.assert_close(found, part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bundle_gives_scores_and_class_activation_and_no_percentages(
    tmp_path: Path, lesioned: Phantom, precision: str
) -> None:
    torch.manual_seed(0)
    network = build_network(CONFIG)
    _, metadata = untrained_bundle(base_width=2, seed=0)
    metadata = dataclasses.replace(metadata, network=CONFIG, input_shape=COARSE_INPUT, map_placement="even")
    write_bundle(tmp_path / "bundle", network, metadata)
    assert read_bundle(tmp_path / "bundle").metadata == metadata
    scan = Scan.from_images(*lesioned.images())
    result = EmphysemaSubtyper.from_bundle(tmp_path / "bundle", "cpu", precision).predict(scan)  # type: ignore[arg-type]
    for finding, count in ((result.centrilobular, 6), (result.paraseptal, 3)):
        assert finding.percentage is None
        assert finding.probabilities is not None
        assert len(finding.probabilities) == count
        assert finding.score == int(np.argmax(finding.probabilities))
        assert finding.activation_map.shape == scan.shape
        assert finding.activation_map[~scan.lung].max() == 0


def test_it_has_no_regression_head() -> None:
    with pytest.raises(ValueError, match="slices-lstm has no regression head"):
        NetworkConfig("slices-lstm", "regression", 8)
