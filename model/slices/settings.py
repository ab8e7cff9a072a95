"""What a user may set of training."""

from __future__ import annotations

from dataclasses import dataclass

EPOCHS = 20
"""Of the paper's networks, which does not say how many it took."""


@dataclass(frozen=True)
class Settings:
    """How to train; what the paper gives is the default, but for epochs, patience and learning rate, which it does not give.

    Attributes:
        epochs: at most; None for what suits the network.
        patience: of the paper's networks: epochs without improvement on the validation slices, a fifth of those to train on,
            after which training ends; the best weights are kept. None: all epochs, on all slices to train on.
        learning_rate: of the paper's networks on base weights.
        scratch_learning_rate: of the paper's networks without.
        device: `cpu` or `cuda`.
        fine_tune: of the texture network: its blocks learn too.
    """

    epochs: int | None = None
    patience: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    scratch_learning_rate: float = 3e-4
    seed: int = 0
    device: str = "cpu"
    fine_tune: bool = False
