from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.network import NetworkConfig, build_network
from model.training.loop import EarlyStopping, EmphysemaTraining, ModelCheckpoint, Reference, freeze_statistics
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


def test_a_copied_run_knows_its_best_epoch(tmp_path: Path) -> None:
    started = ModelCheckpoint(tmp_path / "first", filename="best", monitor="validation/loss")
    best = str(tmp_path / "first" / "best.ckpt")
    started.best_model_path = started.kth_best_model_path = best
    started.best_model_score = started.kth_value = score = torch.tensor(0.162)
    started.best_k_models = {best: score}
    resumed = ModelCheckpoint(tmp_path / "copy", filename="best", monitor="validation/loss")
    resumed.load_state_dict(started.state_dict())
    there = str(tmp_path / "copy" / "best.ckpt")
    assert (resumed.best_model_path, resumed.best_model_score, resumed.best_k_models) == (there, score, {there: score})
    assert resumed.last_model_path == ""
    assert (resumed.kth_best_model_path, resumed.kth_value) == (there, score)


def test_a_resumed_run_has_the_patience_that_it_is_given() -> None:
    started = EarlyStopping("validation/loss", patience=2)
    started.wait_count = 2
    resumed = EarlyStopping("validation/loss", patience=6)
    resumed.load_state_dict(started.state_dict())
    assert (resumed.patience, resumed.wait_count) == (6, 2)


def test_checkpoints_store_callbacks_under_the_names_of_lightning() -> None:
    """So that runs from before can be resumed."""
    assert ModelCheckpoint(monitor="loss").state_key.startswith("ModelCheckpoint{")
    assert EarlyStopping("loss").state_key.startswith("EarlyStopping{")
