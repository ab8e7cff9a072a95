from __future__ import annotations

import numpy as np
import pytest
import torch

from model.network import NetworkConfig, build_network
from model.training.loop import EmphysemaTraining, Reference, freeze_statistics
from model.training.recipes import PAPER_RECIPE, RELEASED_RECIPE, Recipe
from model.training.strategies import RegressionStrategy


@pytest.mark.parametrize(
    ("recipe", "first", "third"), [(PAPER_RECIPE, 1e-5, 0.81e-5), (RELEASED_RECIPE, 1e-4, 0.9025e-4)], ids=["paper", "released"]
)
def test_the_learning_rate_starts_and_decays_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, first: float, third: float
) -> None:
    """From 1e-5 by 0.9 in the paper's Methods, "training"; from 1e-4 by 0.95 in the published code."""
    counts = (torch.ones(6), torch.ones(3))
    reference = Reference([], np.empty((0, 2), np.int64), np.empty((0, 2, 2)), np.empty((0, 2)), np.empty(0))
    network = build_network(NetworkConfig("resnet18", "regression", 2))
    module = EmphysemaTraining(network, RegressionStrategy(recipe, counts), recipe, reference)
    optimiser = module.configure_optimizers()
    monkeypatch.setattr(module, "optimizers", lambda: optimiser)
    for epoch, expected in ((0, first), (2, third)):
        monkeypatch.setattr(EmphysemaTraining, "current_epoch", epoch)
        module.on_train_epoch_start()
        assert [group["lr"] for group in optimiser.param_groups] == [pytest.approx(expected)]


def test_frozen_statistics_are_used_and_left_alone_while_weights_get_gradients() -> None:
    network = build_network(NetworkConfig("resnet18", "regression", 2))
    image = torch.rand(2, 1, 16, 16, 16) + 5
    network(image)
    before = {name: value.clone() for name, value in network.named_buffers()}
    freeze_statistics(network)
    found = network(image)
    torch.stack([part.sum() for part in found]).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert network.backbone.conv1.weight.grad is not None
    assert network.backbone.norm1.weight.grad is not None
    with torch.no_grad():
        expected = network.eval()(image)
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part.detach(), other)
