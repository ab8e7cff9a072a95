"""One training on several devices and machines: which of them this process is, and what processes exchange."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class ProcessPlace:
    """Where this process stands among those that train together, before they have found one another.

    Attributes:
        is_first: whether it is the one that writes the run's files.
        is_first_of_machine: whether it is the one that fills the cache.
    """

    is_first: bool
    is_first_of_machine: bool

    @classmethod
    def here(cls) -> ProcessPlace:
        """Read it off the environment, as Lightning, torchrun and SLURM set it."""
        local = _number("LOCAL_RANK", "SLURM_LOCALID")
        overall = _number("RANK", "SLURM_PROCID")
        is_first = overall == 0 if overall is not None else not local and not _number("NODE_RANK")
        return cls(is_first, not local)


def _number(*names: str) -> int | None:
    return next((int(os.environ[name]) for name in names if name in os.environ), None)


def is_shared() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without a gradient; every process must call this, with an equal shape."""
    total = values.detach().clone()
    if is_shared():
        torch.distributed.all_reduce(total)
    return total


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes below one another; every process must call this, with an equal shape."""
    if not is_shared():
        return rows
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
