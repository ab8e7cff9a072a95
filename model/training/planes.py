"""What a network sees inside a volume of equal slices, far from its ends, computed on one of them.

There, every feature is the same along z, so that a convolution adds up its kernel along z, and steps and pools along z change
nothing. A slab is not the same: it ends in zeros, which reach all of its slices, and a network learns to answer to them.
"""

from __future__ import annotations

import copy
from typing import cast

from torch import Tensor, nn
from torch.func import functional_call

from ..network import DenseLogits, EmphysemaNetwork


class PlaneNetwork:
    """The same weights as those of a network, for one slice of many equal ones; what is learnt through it, the network learns.

    Args:
        network: not the slice-sequence network, which is another one along z.
    """

    def __init__(self, network: EmphysemaNetwork) -> None:
        self._network = network
        self._flat = copy.deepcopy(network).to("meta")
        self._convolutions = []
        for name, module in self._flat.named_modules():
            if isinstance(module, nn.Conv3d):
                module.stride, module.dilation = (1, *module.stride[1:]), (1, *module.dilation[1:])
                module.padding = (0, *cast(tuple[int, ...], module.padding)[1:])
                self._convolutions.append(f"{name}.weight")

    def __call__(self, planes: Tensor) -> DenseLogits:
        """Compute the dense logits of both subtypes.

        Args:
            planes: B x 1 x 1 x Y x X, prepared as the network's input; Y and X are multiples of 8.

        Returns:
            Logits at half of the resolution along y and x: B x 1 x 1 x Y/2 x X/2 each.
        """
        for module, flat in zip(self._network.modules(), self._flat.modules(), strict=True):
            flat.training = module.training
        state = dict(self._network.named_parameters()) | dict(self._network.named_buffers())
        for name in self._convolutions:
            state[name] = state[name].sum(dim=2, keepdim=True)
        return cast(DenseLogits, functional_call(self._flat, state, (planes,)))
