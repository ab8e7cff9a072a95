"""The training loop: a thin Lightning module around a network and a strategy, and the trainer that runs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from ..fleischner import SUBTYPES
from ..network import DenseLogits, EmphysemaNetwork
from ..whole_files import whole_file
from .dataset import UNKNOWN, Batch
from .distributed import gathered, summed
from .options import BEST, CHECKPOINT_FOLDER, LAST, RunOptions
from .performance import Performance, measure
from .pictures import figure, png
from .planes import PlaneNetwork
from .recipes import MONITORS, Recipe
from .strategies import PercentageStrategy, Strategy
from .tiles import PLANE

PICTURE_FOLDER = "pictures"

LOSS = "validation/loss"
"""The logged figure that decides between epochs whose monitored figure is the same."""

LIGHTNING_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


class Reference(NamedTuple):
    """What is known of the validation set, case by case: names (N), scores (N x 2, `UNKNOWN` if not known), bounds where there
    is no score (N x 2 x 2) and percentages (N x 2), both nan if not known, and LAA-950 (N), in percent of the lung."""

    entities: list[str]
    scores: np.ndarray
    bounds: np.ndarray
    percentages: np.ndarray
    low_attenuation: np.ndarray


# Both are named as Lightning names them: a checkpoint stores what they know under the names of their classes.
class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but of epochs with the same figure the one with the lowest validation loss is the best. A resumed run has
    the patience that it is given, not the one that it was started with; if that is used up, it trains no further epoch."""

    best_loss = math.nan

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figure, loss = (float(trainer.callback_metrics[name]) for name in (self.monitor, LOSS))
        if figure == float(self.best_score) and loss < self.best_loss:
            self.best_score = torch.tensor(math.inf if self.mode == "min" else -math.inf)  # so that this epoch is better
        super().on_train_epoch_end(trainer, pl_module)
        if self.wait_count == 0:
            self.best_loss = loss

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
        self.best_loss = state_dict.get("best_loss", math.nan)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class ModelCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's, but of epochs with the same figure the one with the lowest validation loss is the best. The best epoch is
    known in a copy of a run, too: there, the next epoch would count as the best one."""

    best_loss = math.nan

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        loss = float(trainer.callback_metrics[LOSS])
        is_best = super().check_monitor_top_k(trainer, current)
        if not is_best and current is not None and self.best_model_score is not None:
            is_best = float(current) == float(self.best_model_score) and loss < self.best_loss
        if is_best:
            self.best_loss = loss
        return is_best

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})
        self.best_loss = state_dict.get("best_loss", math.nan)


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's, but a checkpoint is written beside its place and renamed: Lightning moves it from the folder for temporary
    files, and from another file system it would be copied over the old one."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,  # noqa: ARG002 (Lightning names it)
    ) -> None:
        with whole_file(Path(path)) as partial, partial.open("wb") as stream:
            try:
                torch.save(checkpoint, stream)
            except (OSError, RuntimeError) as error:  # torch covers that of a full disk with its own
                cause = error if isinstance(error, OSError) else error.__context__
                if not isinstance(cause, OSError):
                    raise
                raise OSError(cause.errno, cause.strerror, str(path)) from error


def freeze_statistics(network: nn.Module) -> None:
    """Let every batch normalisation use its running statistics and leave them be, as in inference; its weights still learn."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d | nn.SyncBatchNorm):  # the latter with several GPUs
            module.eval()


class EpochTally:
    """Sums over one epoch of training: the terms of the loss, and for each score how many cases were right and were seen."""

    def __init__(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._cases = 0
        self._right = [torch.zeros(len(subtype.grades)) for subtype in SUBTYPES]
        self._seen = [torch.zeros(len(subtype.grades)) for subtype in SUBTYPES]

    def add(self, terms: dict[str, Tensor], scores: Tensor | None, truth: Tensor) -> None:
        """Add a batch.

        Args:
            terms: of the loss; B each.
            scores: that were found, B x 2; None if the strategy has no use for them.
            truth: the true scores, B x 2, `UNKNOWN` where they are not known.
        """
        self._cases += len(truth)
        for name, term in terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros((), device=term.device)) + term.sum()
        if scores is None:
            return
        found, expected = scores.cpu(), truth.cpu()
        for place, (right, seen) in enumerate(zip(self._right, self._seen, strict=True)):
            scored = expected[:, place] != UNKNOWN
            hits = (found[:, place] == expected[:, place])[scored].float()
            right.index_add_(0, expected[scored, place], hits)
            seen.index_add_(0, expected[scored, place], torch.ones_like(hits))

    def totals(self, device: torch.device) -> tuple[dict[str, float], list[Tensor], list[Tensor]]:
        """Over all processes: means of the terms and of the loss, and how many cases of each score were right and were seen."""
        names = list(self._terms)
        sums = torch.stack([self._terms[name] for name in names] + [torch.tensor(float(self._cases), device=device)])
        *totals, cases = summed(sums.double()).tolist()
        means = {name: total / cases for name, total in zip(names, totals, strict=True)}
        right, seen = ([summed(counts.to(device)) for counts in part] for part in (self._right, self._seen))
        return {"loss": sum(means.values()), **means}, right, seen


class Anchor:
    """A network whose maps are kept; it learns nothing, and is no part of a checkpoint.

    Args:
        network: with a regression head.
        planes: whether batches may be planes.
    """

    def __init__(self, network: EmphysemaNetwork, *, planes: bool) -> None:
        self._network = network.eval().requires_grad_(False)
        self._planes = PlaneNetwork(self._network) if planes else None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> DenseLogits:
        """Dense logits of a batch, wherever the batch is."""
        self._network.to(image.device)
        return _fitting(self._network, self._planes, image)(image)


def _fitting(network: EmphysemaNetwork, planes: PlaneNetwork | None, image: Tensor) -> EmphysemaNetwork | PlaneNetwork:
    return planes if planes is not None and image.shape[2] == PLANE else network


class EmphysemaTraining(LightningModule):
    """Steps, epochs and figures; what is learnt and how is in `network`, `strategy` and `recipe`.

    Args:
        network: what is trained.
        strategy: its losses and the reading of its scores.
        recipe: learning rate and its decay.
        reference: what is known of the validation set.
        pictured: places of the validation cases that pictures are drawn of after every epoch.
        folder: where pictures go; None: nowhere.
        frozen_statistics: whether normalisation uses the statistics that the network came with.
        planes: the network for batches of planes; None if there are none.
        anchor: another network whose maps are kept; needs a `PercentageStrategy`. None: there is none.
    """

    def __init__(
        self,
        network: EmphysemaNetwork,
        strategy: Strategy,
        recipe: Recipe,
        reference: Reference,
        pictured: Sequence[int] = (),
        folder: Path | None = None,
        *,
        frozen_statistics: bool = False,
        planes: PlaneNetwork | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.strategy = strategy
        self._planes = planes
        self._anchor = anchor
        self.performance: Performance | None = None
        self._finished_epochs = 0
        self._recipe = recipe
        self._reference = reference
        self._pictured = frozenset(pictured)
        self._folder = folder
        self._frozen_statistics = frozen_statistics
        self._validated: list[Tensor] = []
        self._validated_planes = False
        self._tally = EpochTally()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipe = self._recipe
        return torch.optim.Adam(self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def on_train_epoch_start(self) -> None:
        # A function of the epoch alone, and no scheduler: nothing to store, and nothing to lose when a run is resumed.
        for group in cast(torch.optim.Optimizer, self.optimizers()).param_groups:
            group["lr"] = self._recipe.learning_rate * self._recipe.decay**self.current_epoch
        if self._frozen_statistics:
            freeze_statistics(self.network)
        self._tally = EpochTally()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        logits = self._logits(batch)
        terms = self.strategy.terms(logits, batch)
        if self._anchor is not None:
            # Nothing is kept in cases with truth maps: tiles are spared the second forward pass.
            kept = logits if bool(batch.has_truth.all()) else self._anchor(batch.image)
            terms |= cast(PercentageStrategy, self.strategy).anchor_terms(logits, kept, batch)
        loss = torch.stack(list(terms.values())).sum(dim=0).mean()
        if not torch.isfinite(loss):
            found = ", ".join(f"{name} {float(term.detach().mean()):.4g}" for name, term in terms.items())
            raise FloatingPointError(f"the loss is not finite in epoch {self.current_epoch}, step {self.global_step}: {found}")
        self.log("train/step_loss", loss.detach(), prog_bar=True)
        scores = self.strategy.training_scores(logits)
        self._tally.add({name: term.detach() for name, term in terms.items()}, scores, batch.scores)
        return loss

    def _logits(self, batch: Batch) -> DenseLogits:
        return _fitting(self.network, self._planes, batch.image)(batch.image)

    def validation_step(self, batch: Batch, _: int) -> None:
        logits = self._logits(batch)
        self._validated_planes |= batch.image.shape[2] == PLANE
        terms = self.strategy.validation_terms(logits, batch)
        losses = torch.stack(list(terms.values())).sum(dim=0)
        scores, percentages = self.strategy.predictions(logits, batch)
        columns = (batch.place[:, None].cpu(), losses[:, None].cpu(), scores, percentages)
        self._validated.append(torch.cat([column.double() for column in columns], dim=1))
        for row, place in enumerate(batch.place.tolist()):
            if place in self._pictured:
                self._draw(batch, logits, row, self._reference.entities[place])

    def _draw(self, batch: Batch, logits: DenseLogits, row: int, entity: str) -> None:
        activations = self.strategy.activations(logits, batch.lung)
        pixels = figure(batch.image[row, 0].float(), activations[row], batch.lung[row, 0])
        if self._folder is not None:
            path = self._folder / PICTURE_FOLDER / f"epoch-{self.current_epoch:03d}-{entity}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            png(pixels).save(path)
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
                logger.experiment.add_image(entity, pixels, self.current_epoch, dataformats="HWC")

    def on_validation_epoch_end(self) -> None:
        # Validation ends an epoch. What processes exchange, they exchange here: Lightning's own hooks at the end of training
        # epochs run in another order on the process that shows the progress bar.
        self._finish_training_epoch()
        rows = self._gathered(torch.cat(self._validated))
        self._validated.clear()
        self._finished_epochs = self.current_epoch + 1
        places = rows[:, 0].astype(np.int64)
        reference = self._reference
        performance = measure(
            rows[:, 2:4].astype(np.int64),
            rows[:, 4:6],
            reference.scores[places],
            reference.percentages[places],
            reference.low_attenuation[places],
            reference.bounds[places],
        )
        self.performance = performance
        self.log(LOSS, float(rows[:, 1].mean()), prog_bar=True)
        self.log("validation/kappa", performance.kappa, prog_bar=True)
        for subtype, agreement in zip(SUBTYPES, (performance.centrilobular, performance.paraseptal), strict=True):
            for name in ("accuracy", "kappa", "percentage_error", "separation"):
                value = getattr(agreement, name)
                if value is not None:
                    self.log(f"validation/{name}_{subtype.name}", value)
        if performance.separation is not None:
            self.log("validation/separation", performance.separation)

    def _finish_training_epoch(self) -> None:
        means, right, seen = self._tally.totals(self.device)
        for name, mean in means.items():
            self.log(f"train/{name}", mean)
        self.log("learning_rate", cast(torch.optim.Optimizer, self.optimizers()).param_groups[0]["lr"])
        self.strategy.finish_epoch(right, seen)

    def _gathered(self, rows: Tensor) -> np.ndarray:
        """The rows of all processes, one a case, by place: where cases do not divide evenly, some were seen twice."""
        everywhere = gathered(rows.to(self.device)).cpu().numpy()
        _, first = np.unique(everywhere[:, 0], return_index=True)
        return everywhere[first]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.performance is not None:
            checkpoint["validation"] = self.performance.as_document()
            if self._validated_planes:
                checkpoint["validation"]["uniform_slices"] = "planes"
            checkpoint["finished_epochs"] = self._finished_epochs


def build_trainer(options: RunOptions, folder: Path, steps: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    """A trainer that writes checkpoints, logs and pictures below `folder`.

    Args:
        options: of the run.
        folder: the run's.
        steps: batches in an epoch.
        callbacks: what else is called.
    """
    monitor, mode = MONITORS[options.recipe.monitor]
    return Trainer(
        accelerator="cpu" if options.device == "cpu" else "gpu",
        devices=options.devices,
        num_nodes=options.nodes,
        strategy=DDPStrategy(process_group_backend="nccl") if options.processes > 1 else "auto",
        sync_batchnorm=options.processes > 1,
        precision=cast(Any, LIGHTNING_PRECISIONS[options.precision]),
        max_epochs=options.recipe.epochs,
        accumulate_grad_batches=options.accumulate,
        use_distributed_sampler=False,  # `EpochSampler` shares the epoch itself
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, steps),
        enable_model_summary=False,
        plugins=[WholeCheckpoints()],
        logger=[CSVLogger(folder, name="log"), TensorBoardLogger(folder, name="tensorboard", version="")],
        callbacks=[
            *callbacks,
            *([EMAWeightAveraging(decay=options.average)] if options.average else []),
            TQDMProgressBar(),
            EarlyStopping(monitor, mode=mode, patience=options.recipe.patience, check_on_train_epoch_end=True),
            ModelCheckpoint(
                folder / CHECKPOINT_FOLDER,
                filename=BEST,
                monitor=monitor,
                mode=mode,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
            # Another one, since `save_last` skips the epochs that are not the best; it comes after, to hold the other's state.
            ModelCheckpoint(
                folder / CHECKPOINT_FOLDER, filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False
            ),
        ],
    )
