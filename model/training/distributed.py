"""One training on several devices and machines: which of them this process is, and batch normalisation over all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn


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


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total


def _sum_over_processes(values: Tensor) -> Tensor:
    total: Tensor = SumOverProcesses.apply(values)
    return total


class ProcessGroupBatchNorm(nn.BatchNorm3d):
    """Batch normalisation over the batches of all processes, on any device.

    torch's own `SyncBatchNorm` refuses to run on a CPU. This one needs no kernel of its own: mean and variance are summed over
    the processes by differentiable collectives, so that gradients are those of one process with the whole batch.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not (self.training and is_shared()):
            return super().forward(features)
        values = features.float()
        axes = (0, 2, 3, 4)
        count = torch.tensor(values.numel() / values.shape[1], device=values.device)
        total = _sum_over_processes(torch.cat((values.sum(axes), count[None])))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean.view(1, -1, 1, 1, 1)
        variance = _sum_over_processes(centred.square().sum(axes)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        normalised = centred * scale.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)
        return normalised.to(features.dtype)


class CpuBatchNormSync(LayerSync):
    """Lightning's plug for `ProcessGroupBatchNorm`; names and tensors of the network stay the same."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Make every batch normalisation one over all processes, in place."""
        return self._with_class(model, nn.BatchNorm3d, ProcessGroupBatchNorm)

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo `apply`, in place."""
        return self._with_class(model, ProcessGroupBatchNorm, nn.BatchNorm3d)

    @staticmethod
    def _with_class(model: nn.Module, present: type[nn.Module], wanted: type[nn.Module]) -> nn.Module:
        for module in model.modules():
            if type(module) is present:
                module.__class__ = wanted
        return model
