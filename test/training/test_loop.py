from __future__ import annotations

import torch
from torch import nn

from model.network import NetworkConfig, build_network
from model.training.loop import average_statistics


def test_running_statistics_are_the_mean_over_the_epoch() -> None:
    network = build_network(NetworkConfig("resnet18", "regression", 2))
    normalisation = network.backbone.norm1
    network(torch.rand(1, 1, 16, 16, 16) + 5)  # an earlier epoch, to be forgotten
    average_statistics(network)
    batches = [torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed)) * (seed + 1) for seed in range(3)]
    means, variances = [], []
    for batch in batches:
        with torch.no_grad():
            convolved = network.backbone.conv1(batch)
        means.append(convolved.mean((0, 2, 3, 4)))
        variances.append(convolved.var((0, 2, 3, 4)))
        network(batch)
    assert normalisation.running_mean is not None
    assert normalisation.running_var is not None
    torch.testing.assert_close(normalisation.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(normalisation.running_var, torch.stack(variances).mean(0))
    assert all(module.momentum is None for module in network.modules() if isinstance(module, nn.BatchNorm3d))
