"""The first weights of a network, where a recipe asks for others than torch's own."""

from __future__ import annotations

from torch import nn


def draw_kaiming_fan_out(network: nn.Module) -> None:
    """Draw the weights of all convolutions as the published code does, from torch's generator.

    Kaiming's normal distribution with fan-out: mean 0, standard deviation sqrt(2 / (filters x voxels of the kernel)). Biases
    stay as they are; normalisations start at 1 and 0 in torch too.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
