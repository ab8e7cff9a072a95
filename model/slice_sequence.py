"""Parts of the network that the paper compares itself with: a convolutional network over axial slices, and an LSTM over them.

Humphries et al., Radiology 2020 (doi 10.1148/radiol.2019191022), and the workshop paper before it (RAMBO 2018, doi
10.1007/978-3-030-00946-5_32). What is published, as far as it could be found: a convolutional network and a long short-term
memory are trained on visual scores of whole scans and give the six Fleischner scores of centrilobular emphysema. Neither code
nor weights are published. Guesses, each of which may differ from theirs:

- the number of slices, `SLICES`, and that they are spaced evenly from the first to the last slice of the lungs' bounding box;
- that slices are prepared as the profile prepares scans: cropped to the lungs, windowed, of the network's input size in plane;
- the layers: four times one 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max pooling, with 16, 32, 64 and 128 filters
  at base width 64; then the mean over the slice;
- one LSTM layer that reads from the diaphragm to the apex, with 128 units at base width 64, and one linear layer on its last
  state;
- class activation by gradients;
- paraseptal scores, by a second linear layer on the same state: theirs has none, but results hold both subtypes.

Loss, optimiser and the rest are those of the recipe.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .fleischner import SUBTYPES

SLICES = 25
"""Slices that are looked at, or all of them if there are fewer."""

_LEVELS = 4


def slice_places(depth: int) -> list[int]:
    """Which of `depth` slices are looked at: evenly spaced, the first and the last among them."""
    return np.rint(np.linspace(0, depth - 1, min(SLICES, depth))).astype(int).tolist()


class SliceFeatures(nn.Module):
    """The convolutional network: it sees single slices, as kernels are 1 voxel deep."""

    def __init__(self, base_width: int) -> None:
        super().__init__()
        widths = [1, *(max(base_width * 2**level // 4, 2) for level in range(_LEVELS))]
        self.convolutions = nn.ModuleList(
            nn.Conv3d(inputs, filters, (1, 3, 3), padding=(0, 1, 1), bias=False) for inputs, filters in pairwise(widths)
        )
        self.normalisations = nn.ModuleList(nn.BatchNorm3d(filters) for filters in widths[1:])
        self.channels = widths[-1]

    def forward(self, image: Tensor) -> Tensor:
        """Map B x 1 x Z x Y x X to B x C x S x Y/16 x X/16 (rounded up): S slices, see `slice_places`."""
        features = image[:, :, slice_places(image.shape[2])]
        for convolution, normalisation in zip(self.convolutions, self.normalisations, strict=True):
            features = functional.relu(normalisation(convolution(features)), inplace=True)
            features = functional.max_pool3d(features, (1, 2, 2), ceil_mode=True)
        return features


class SliceSequenceHead(nn.Module):
    """The LSTM over the slices' features and a linear layer for each subtype."""

    def __init__(self, channels: int, base_width: int) -> None:
        super().__init__()
        self.sequence = nn.LSTM(channels, 2 * base_width, batch_first=True)
        self.centrilobular, self.paraseptal = (nn.Linear(2 * base_width, len(subtype.grades)) for subtype in SUBTYPES)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits, B x 6 and B x 3, of features that are averaged over each slice, B x S x C."""
        _, (state, _) = self.sequence(pooled)
        return self.centrilobular(state[-1]), self.paraseptal(state[-1])

    def activations(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits as maps: B x 6 and B x 3 x S x Y/16 x X/16, whose means are the logits.

        A voxel's share of a logit is its features times the logit's slope by the slice's mean features (Selvaraju et al. 2017,
        without rectification), times the number of slices. For a linear layer on the mean over a volume this is the class
        activation map. Here the LSTM comes between, and what the shares leave of the logit is spread evenly.

        Args:
            features: B x C x S x Y/16 x X/16, of the head's own type.
        """
        with torch.inference_mode(False), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            pooled = features.detach().clone().mean((3, 4)).transpose(1, 2).requires_grad_()
            return tuple(self._activations(features, pooled, logits) for logits in self(pooled))  # type: ignore[return-value]

    def _activations(self, features: Tensor, pooled: Tensor, logits: Tensor) -> Tensor:
        maps = []
        for logit in logits.unbind(1):
            (slopes,) = torch.autograd.grad(logit.sum(), pooled, retain_graph=True)  # B x S x C
            with torch.no_grad():
                shares = pooled.shape[1] * (features * slopes.transpose(1, 2)[..., None, None]).sum(1)
                rest = logit - shares.mean((1, 2, 3))
                maps.append(shares + rest[:, None, None, None])
        return torch.stack(maps, 1)


def on_map_grid(maps: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bring maps of slices (B x K x S x h x w) to the grid of dense maps, by linear interpolation; means are kept.

    Args:
        maps: as `SliceSequenceHead.activations` returns them.
        shape: of the dense maps, z, y, x.
    """
    means = maps.mean((2, 3, 4), keepdim=True)
    # A pooled voxel lies in the middle of what it was pooled from; the slices reach from the first to the last one.
    plane = functional.interpolate(maps.flatten(0, 1), shape[1:], mode="bilinear", align_corners=False)
    dense = functional.interpolate(plane.unflatten(0, maps.shape[:2]), shape, mode="trilinear", align_corners=True)
    return dense - dense.mean((2, 3, 4), keepdim=True) + means
