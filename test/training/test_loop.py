from __future__ import annotations

import torch

from model.network import NetworkConfig, build_network
from model.training.loop import freeze_statistics


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
