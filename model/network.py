"""The network of Xie et al. (Sci Rep 2023, Figures 1 and 2): a 3D ResNet, a reconstruction network, and one of two heads.

`EmphysemaNetwork` is three parts handed to its constructor; `build_network` composes them from a `NetworkConfig`, which is
what a weight bundle stores. One code path serves every backbone, head and base width.

All tensors are B x C x Z x Y x X. With base width 64 and the paper's input of 128 x 224 x 288:

    conv1   64 x 64 x 112 x 144         us1     64 x 32 x  56 x  72
    pool    64 x 32 x  56 x  72         us2     64 x 64 x 112 x 144
    layer1  64 x 32 x  56 x  72         us3     32 x 64 x 112 x 144
    layer2 128 x 16 x  28 x  36         head     2 x 64 x 112 x 144 (regression)
    layer3 256 x 16 x  28 x  36                  9 x 64 x 112 x 144 (classification)
    layer4 512 x 16 x  28 x  36
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from .fleischner import SUBTYPES
from .slice_sequence import SliceFeatures, SliceSequenceHead, on_map_grid

BackboneName = Literal["resnet18", "resnet34", "resnet50"]
ArchitectureName = Literal[BackboneName, "slices-lstm"]
"""The paper's networks by their backbones, and the one that it compares them with: see `model.slice_sequence`."""

HeadName = Literal["regression", "classification"]

WIDEST = 512
"""The largest base width that is built, far beyond the paper's 64: a bundle that asks for more is no bundle."""


@dataclass(frozen=True)
class NetworkConfig:
    """What it takes to build a network: backbone, head, and the number of filters of the first convolution.

    Raises:
        ValueError: an unknown backbone or head, or a base width that is not an even number from 2 to 512.
    """

    backbone: ArchitectureName = "resnet34"
    head: HeadName = "regression"
    base_width: int = 64

    def __post_init__(self) -> None:
        if self.backbone not in get_args(ArchitectureName):
            raise ValueError(f"backbone is {self.backbone!r}, expected one of {', '.join(get_args(ArchitectureName))}")
        if self.head not in get_args(HeadName):
            raise ValueError(f"head is {self.head!r}, expected one of {', '.join(get_args(HeadName))}")
        if (self.backbone, self.head) == ("slices-lstm", "regression"):
            raise ValueError("slices-lstm has no regression head, expected classification")
        if not isinstance(self.base_width, int) or not 2 <= self.base_width <= WIDEST or self.base_width % 2:
            raise ValueError(f"base width is {self.base_width!r}, expected an even number from 2 to {WIDEST}")


class DenseLogits(NamedTuple):
    """What the network computes before any activation: one tensor a subtype, B x C x Z/2 x Y/2 x X/2.

    C is 1 each for regression, and the number of grades (6 and 3) for classification.
    """

    centrilobular: Tensor
    paraseptal: Tensor


class BackboneFeatures(NamedTuple):
    """The features that the reconstruction network takes from the backbone."""

    half: Tensor  # conv1 after normalisation and ReLU, at a half of the input's resolution
    quarter: Tensor  # layer1, at a quarter
    eighth: Tensor  # layer4, at an eighth


def _convolution(inputs: int, filters: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv3d:
    padding = dilation * (kernel // 2)
    return nn.Conv3d(inputs, filters, kernel, stride, padding, dilation, bias=False)


class ResidualBlock(nn.Module):
    """Convolutions with normalisation, and a shortcut of type A: strided subsampling, zero-padded channels, no parameters.

    `stages` are (convolution, normalisation) pairs; ReLU follows each pair, and for the last one the addition.
    """

    def __init__(self, stages: list[tuple[nn.Conv3d, nn.BatchNorm3d]], stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convolutions = nn.ModuleList(convolution for convolution, _ in stages)
        self.normalisations = nn.ModuleList(normalisation for _, normalisation in stages)

    def forward(self, features: Tensor) -> Tensor:
        residual = features
        last = len(self.convolutions) - 1
        for index, (convolution, normalisation) in enumerate(zip(self.convolutions, self.normalisations, strict=True)):
            residual = normalisation(convolution(residual))
            if index < last:
                residual = functional.relu(residual, inplace=True)
        return functional.relu(residual + self._shortcut(features, residual.shape[1]), inplace=True)

    def _shortcut(self, features: Tensor, channels: int) -> Tensor:
        if self.stride > 1:
            features = features[:, :, :: self.stride, :: self.stride, :: self.stride]
        missing = channels - features.shape[1]
        return functional.pad(features, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else features


def _block_stages(
    kernels: tuple[int, ...], inputs: int, filters: tuple[int, ...], stride: int, dilation: int
) -> list[tuple[nn.Conv3d, nn.BatchNorm3d]]:
    """The first 3 x 3 x 3 convolution of a block carries the stride; every one of that size carries the dilation."""
    stages = []
    for kernel, width in zip(kernels, filters, strict=True):
        wide = kernel > 1
        convolution = _convolution(inputs, width, kernel, stride if wide else 1, dilation if wide else 1)
        stages.append((convolution, nn.BatchNorm3d(width)))
        inputs, stride = width, 1 if wide else stride
    return stages


@dataclass(frozen=True)
class _BackboneTable:
    blocks: tuple[int, int, int, int]
    kernels: tuple[int, ...]
    expansion: int


_BACKBONES: dict[str, _BackboneTable] = {
    "resnet18": _BackboneTable(blocks=(2, 2, 2, 2), kernels=(3, 3), expansion=1),
    "resnet34": _BackboneTable(blocks=(3, 4, 6, 3), kernels=(3, 3), expansion=1),
    "resnet50": _BackboneTable(blocks=(3, 4, 6, 3), kernels=(1, 3, 1), expansion=4),
}
_STRIDES = (1, 2, 1, 1)
_DILATIONS = (1, 1, 2, 4)


class ResNetBackbone(nn.Module):
    """3D ResNet whose third and fourth layers dilate instead of striding, so that features stay at an eighth (Figure 1)."""

    def __init__(self, name: BackboneName, base_width: int) -> None:
        super().__init__()
        table = _BACKBONES[name]
        self.conv1 = _convolution(1, base_width, kernel=7, stride=2)
        self.norm1 = nn.BatchNorm3d(base_width)
        self.pool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        layers = []
        inputs = base_width
        for level, (count, stride, dilation) in enumerate(zip(table.blocks, _STRIDES, _DILATIONS, strict=True)):
            width = base_width * 2**level
            filters = (width,) * (len(table.kernels) - 1) + (width * table.expansion,)
            blocks = []
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(ResidualBlock(_block_stages(table.kernels, inputs, filters, step, dilation), step))
                inputs = filters[-1]
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = (base_width, base_width * table.expansion, inputs)
        """Channels of the half, quarter and eighth resolution features."""

    def forward(self, image: Tensor) -> BackboneFeatures:
        """Map B x 1 x Z x Y x X (each a multiple of 8) to features at 1/2, 1/4 and 1/8 of that resolution."""
        half = functional.relu(self.norm1(self.conv1(image)), inplace=True)
        quarter = self.layer1(self.pool(half))
        return BackboneFeatures(half, quarter, self.layer4(self.layer3(self.layer2(quarter))))


class ConvolutionBlock(nn.Module):
    """3 x 3 x 3 convolution with bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, filters, kernel_size=3, padding=1)
        self.normalisation = nn.BatchNorm3d(filters)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.normalisation(self.convolution(features)), inplace=True)


class UpsamplingLayer(nn.Module):
    """Double the resolution (trilinear, corners aligned), append the skip connection, and convolve twice (Figure 2)."""

    def __init__(self, inputs: int, skipped: int, filters: int) -> None:
        super().__init__()
        self.block1 = ConvolutionBlock(inputs + skipped, filters)
        self.block2 = ConvolutionBlock(filters, filters)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        features = functional.interpolate(features, skip.shape[2:], mode="trilinear", align_corners=True)
        return cast(Tensor, self.block2(self.block1(torch.cat((features, skip), dim=1))))


class ReconstructionNetwork(nn.Module):
    """From the backbone's features to dense features at half of the input's resolution (Figure 2)."""

    def __init__(self, channels: tuple[int, int, int], base_width: int) -> None:
        super().__init__()
        half, quarter, eighth = channels
        self.us1 = UpsamplingLayer(eighth, quarter, base_width)
        self.us2 = UpsamplingLayer(base_width, half, base_width)
        self.us3 = ConvolutionBlock(base_width, base_width // 2)
        self.channels = base_width // 2

    def forward(self, features: BackboneFeatures) -> Tensor:
        """Map the backbone's features to B x base width / 2 x Z/2 x Y/2 x X/2."""
        return cast(Tensor, self.us3(self.us2(self.us1(features.eighth, features.quarter), features.half)))


class DenseHead(nn.Module):
    """One 1 x 1 x 1 convolution a subtype; its channels are what tells regression from classification."""

    def __init__(self, inputs: int, name: HeadName) -> None:
        super().__init__()
        counts = [len(subtype.grades) if name == "classification" else 1 for subtype in SUBTYPES]
        self.centrilobular, self.paraseptal = (nn.Conv3d(inputs, count, kernel_size=1) for count in counts)

    def forward(self, features: Tensor) -> DenseLogits:
        return DenseLogits(self.centrilobular(features), self.paraseptal(features))


class EmphysemaNetwork(nn.Module):
    """Backbone, reconstruction network and head in a row."""

    def __init__(self, backbone: ResNetBackbone, reconstruction: ReconstructionNetwork, head: DenseHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.reconstruction = reconstruction
        self.head = head

    def forward(self, image: Tensor) -> DenseLogits:
        """Compute the dense logits of both subtypes.

        Args:
            image: B x 1 x Z x Y x X, prepared by a profile of `model.preprocessing`; Z, Y and X are multiples of 8.

        Returns:
            Logits at half of the input's resolution; see `DenseLogits`. The head computes in the type of its own weights,
            also under autocast: where backbone and reconstruction network run in half precision, the head stays in float32.
        """
        features = self.reconstruction(self.backbone(image))
        with _without_autocast(features.device):
            return cast(DenseLogits, self.head(features.to(self.head.centrilobular.weight.dtype)))


class SliceSequenceNetwork(EmphysemaNetwork):
    """A convolutional network over slices and an LSTM, for comparison: see `model.slice_sequence`."""

    def __init__(self, base_width: int) -> None:
        backbone = SliceFeatures(base_width)
        head = SliceSequenceHead(backbone.channels, base_width)
        super().__init__(cast(Any, backbone), cast(Any, nn.Identity()), cast(Any, head))

    def forward(self, image: Tensor) -> DenseLogits:
        """Compute class logits as dense maps, whose means over the volume are the logits, as those of dense heads are.

        In training mode the maps are single voxels. Else they are class activation maps on half of the input's grid.

        Args:
            image: B x 1 x Z x Y x X, prepared by a profile of `model.preprocessing`.
        """
        head = cast(SliceSequenceHead, self.head)
        features = cast(Tensor, self.backbone(image))
        with _without_autocast(features.device):
            features = features.to(head.centrilobular.weight.dtype)
            if self.training:
                return DenseLogits(*(part[..., None, None, None] for part in head(features.mean((3, 4)).transpose(1, 2))))
            z, y, x = (size // 2 for size in image.shape[2:])
            return DenseLogits(*(on_map_grid(part, (z, y, x)) for part in head.activations(features)))


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Suspend autocast; devices that have none, such as `meta`, are left alone."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def build_network(config: NetworkConfig) -> EmphysemaNetwork:
    """Build a network with freshly drawn weights, in training mode."""
    if config.backbone == "slices-lstm":
        return SliceSequenceNetwork(config.base_width)
    backbone = ResNetBackbone(config.backbone, config.base_width)
    reconstruction = ReconstructionNetwork(backbone.channels, config.base_width)
    return EmphysemaNetwork(backbone, reconstruction, DenseHead(reconstruction.channels, config.head))


def lung_mean(maps: Tensor, lung: Tensor) -> Tensor:
    """Mean of dense maps inside the lung ("regression training"): the fraction of the lung that is emphysema.

    Args:
        maps: B x C x Z x Y x X, sigmoid-activated, 0 to 1.
        lung: B x 1 x Z x Y x X on the same grid, 1 inside the lung and 0 outside.

    Returns:
        B x C fractions, 0 to 1; 0 where a case has no lung voxel.
    """
    weight = lung.to(maps.dtype)
    return (maps * weight).sum(dim=(2, 3, 4)) / weight.sum(dim=(2, 3, 4)).clamp(min=1)


def class_probabilities(logits: Tensor) -> Tensor:
    """Average dense class logits (B x C x Z x Y x X) over the whole volume, then softmax: B x C ("classification training")."""
    return logits.mean(dim=(2, 3, 4)).softmax(dim=1)


def class_activation_map(logits: Tensor, lung: Tensor) -> Tensor:
    """Sum the rectified channels of every grade above 0, scaled so that the largest value inside the lung is 1.

    Args:
        logits: B x C x Z x Y x X dense class logits.
        lung: B x 1 x Z x Y x X on the same grid, 1 inside the lung and 0 outside.

    Returns:
        B x 1 x Z x Y x X, 0 to 1, 0 outside the lung and everywhere where no channel is positive.
    """
    activation = functional.relu(logits[:, 1:]).sum(dim=1, keepdim=True) * lung.to(logits.dtype)
    largest = activation.amax(dim=(1, 2, 3, 4), keepdim=True)
    return activation / torch.where(largest > 0, largest, torch.ones_like(largest))


def fold_batch_normalisation(network: EmphysemaNetwork) -> EmphysemaNetwork:
    """Fold every normalisation into the convolution before it: the same function in evaluation mode, with fewer steps.

    Args:
        network: it is left unchanged, and shares no tensor with the result.

    Returns:
        A network in evaluation mode without normalisation, for inference alone: it can neither be trained nor stored.
    """
    # The weights that are replaced below are not copied first: copies of large weights take longer than the rest.
    uncopied: dict[int, Any] = {
        id(convolution.weight): convolution.weight for convolution, _ in _normalised_convolutions(network)
    }
    folded = copy.deepcopy(network, uncopied).eval()
    for convolution, normalisation in _normalised_convolutions(folded):
        _fold(convolution, normalisation)
    for module in folded.modules():
        if isinstance(module, ResidualBlock):
            module.normalisations = nn.ModuleList(nn.Identity() for _ in module.normalisations)
        elif isinstance(module, ConvolutionBlock):
            module.normalisation = cast(nn.BatchNorm3d, nn.Identity())
        elif isinstance(module, SliceFeatures):
            module.normalisations = nn.ModuleList(nn.Identity() for _ in module.normalisations)
        elif isinstance(module, ResNetBackbone):
            module.norm1 = cast(nn.BatchNorm3d, nn.Identity())
    return folded.requires_grad_(False)


def _normalised_convolutions(network: EmphysemaNetwork) -> list[tuple[nn.Conv3d, nn.BatchNorm3d]]:
    """Every convolution that a normalisation follows, with that normalisation."""
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for module in network.modules():
        if isinstance(module, ResidualBlock | SliceFeatures):
            pairs += zip(module.convolutions, module.normalisations, strict=True)
        elif isinstance(module, ConvolutionBlock):
            pairs.append((module.convolution, module.normalisation))
        elif isinstance(module, ResNetBackbone):
            pairs.append((module.conv1, module.norm1))
    return cast(list[tuple[nn.Conv3d, nn.BatchNorm3d]], pairs)


def _fold(convolution: nn.Conv3d, normalisation: nn.BatchNorm3d) -> None:
    """Replace the weights of a convolution by those that include the normalisation, as torch's `fuse_conv_bn_eval` does."""
    assert normalisation.running_mean is not None
    assert normalisation.running_var is not None
    with torch.no_grad():
        scale = normalisation.weight * torch.rsqrt(normalisation.running_var + normalisation.eps)
        bias = -normalisation.running_mean if convolution.bias is None else convolution.bias - normalisation.running_mean
        convolution.weight = nn.Parameter(convolution.weight * scale.view(-1, 1, 1, 1, 1))
        convolution.bias = nn.Parameter(bias * scale + normalisation.bias)
