from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from model.network import NetworkConfig, build_network
from model.training.loop import (
    EarlyStopping,
    EmphysemaTraining,
    ModelCheckpoint,
    Reference,
    WholeCheckpoints,
    build_trainer,
    freeze_statistics,
)
from model.training.options import RunOptions
from model.training.recipes import PAPER_RECIPE, RELEASED_RECIPE, Recipe
from model.training.strategies import RegressionStrategy


def test_statistics_are_frozen_also_where_several_gpus_share_them() -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(build_network(NetworkConfig("resnet18", "regression", 2))).train()
    freeze_statistics(network)
    shared = [module for module in network.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert shared
    assert not any(module.training for module in shared)


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


class Stagnant(LightningModule):
    """Its validation loss is the same after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).square().mean()
        return loss

    def validation_step(self, _batch: list[Tensor], _: int) -> None:
        self.log("validation/loss", 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Plateau(Stagnant):
    """Its kappa and its validation loss follow a list, epoch by epoch."""

    def __init__(self, figures: list[tuple[float, float]]) -> None:
        super().__init__()
        self.figures = figures

    def validation_step(self, _batch: list[Tensor], _: int) -> None:
        kappa, loss = self.figures[self.current_epoch]
        self.log("validation/kappa", kappa)
        self.log("validation/loss", loss)


def best_and_last(folder: Path, figures: list[tuple[float, float]], patience: int, epochs: int, *, resumed: bool) -> list[int]:
    """The best and the last epoch, from 0, of a run that has ended."""
    loader = DataLoader(TensorDataset(torch.ones(2, 1)))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[
            EarlyStopping("validation/kappa", mode="max", patience=patience, check_on_train_epoch_end=True),
            ModelCheckpoint(
                folder,
                filename="best",
                monitor="validation/kappa",
                mode="max",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
            ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
        ],
    )
    trainer.fit(Plateau(figures), loader, loader, ckpt_path=folder / "last.ckpt" if resumed else None, weights_only=True)
    return [int(torch.load(folder / f"{name}.ckpt", weights_only=True)["epoch"]) for name in ("best", "last")]


@pytest.mark.filterwarnings("ignore")
def test_of_epochs_with_the_same_figure_the_one_with_the_lowest_loss_is_the_best_and_keeps_the_run_going(
    tmp_path: Path,
) -> None:
    figures = [(0.0, 3.0), (0.0, 2.0), (0.0, 2.5), (0.0, 1.0), (0.0, 1.5), (0.0, 1.2), (0.0, 1.1), (0.0, 0.5)]
    assert best_and_last(tmp_path / "whole", figures, 3, 8, resumed=False) == [3, 6]
    assert best_and_last(tmp_path / "parts", figures, 3, 3, resumed=False) == [1, 2]
    assert best_and_last(tmp_path / "parts", figures, 3, 8, resumed=True) == [3, 6]
    better = [(0.5, 3.0), (0.4, 1.0), (0.5, 3.0), (0.5, 2.0), (0.6, 9.0)]  # the loss decides nothing else
    assert best_and_last(tmp_path / "figure", better, 9, 4, resumed=False) == [3, 3]
    assert best_and_last(tmp_path / "figure", better, 9, 5, resumed=True) == [4, 4]


def epochs_after(folder: Path, patience: int, *, resumed: bool) -> int:
    """How many epochs a run has had when it has ended."""
    loader = DataLoader(TensorDataset(torch.ones(2, 1)))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=20,
        num_sanity_val_steps=0,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[
            EarlyStopping("validation/loss", patience=patience, check_on_train_epoch_end=True),
            ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
        ],
    )
    trainer.fit(Stagnant(), loader, loader, ckpt_path=folder / "last.ckpt" if resumed else None, weights_only=True)
    return int(torch.load(folder / "last.ckpt", weights_only=True)["epoch"]) + 1


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_early_stopping_has_ended_is_not_trained_further_unless_it_gets_more_patience(tmp_path: Path) -> None:
    assert epochs_after(tmp_path, 2, resumed=False) == 3
    assert [epochs_after(tmp_path, patience, resumed=True) for patience in (2, 2, 1, 4, 4)] == [3, 3, 3, 5, 5]


def test_a_checkpoint_is_written_beside_its_place_and_an_old_one_stays_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = build_trainer(RunOptions(device="cpu", precision="float32"), tmp_path, 1).strategy.checkpoint_io
    assert isinstance(plugin, WholeCheckpoints)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no folder for temporary files"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    plugin.save_checkpoint({"epoch": 1}, path)
    written = path.read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as on a disk that becomes full
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            plugin.save_checkpoint({"epoch": 2, "weights": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == written
    assert plugin.load_checkpoint(path, weights_only=True) == {"epoch": 1}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_checkpoints_store_callbacks_under_the_names_of_lightning() -> None:
    """So that runs from before can be resumed."""
    assert ModelCheckpoint(monitor="loss").state_key.startswith("ModelCheckpoint{")
    assert EarlyStopping("loss").state_key.startswith("EarlyStopping{")
