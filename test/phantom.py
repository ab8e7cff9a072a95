"""A small chest whose every voxel is known, and a network that answers to low attenuation: what the tests score."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from torch import nn

from model.network import EmphysemaNetwork, NetworkConfig, build_network
from model.preprocessing import PAPER_INPUT_SHAPE, MapPlacement, Shape
from model.weights import BundleMetadata, write_bundle

HALF_INPUT = (64, 112, 144)
COARSE_INPUT = (32, 56, 72)
"""Sizes of the network's input for tests that do not need the paper's 128 x 224 x 288: an eighth and a 64th of the work."""

LUNG_HU = -860
LESION_HU = -1000
BODY_HU = 40


@dataclass(frozen=True)
class Phantom:
    """A body with two ellipsoid lungs, z, y, x in the patient's frame; right lung (label 1) at low x, left lung label 2."""

    hounsfield: npt.NDArray[np.int16]
    lungs: npt.NDArray[np.uint8]
    spacing: tuple[float, float, float]

    def with_lesion(self, centre_mm: tuple[float, float, float], radius_mm: float) -> tuple[Phantom, npt.NDArray[np.bool_]]:
        """The phantom with a spherical lesion around a point (z, y, x; mm from the first voxel), and where that is."""
        grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(self.lungs.shape, self.spacing, strict=True)), indexing="ij")
        lesion = sum((axis - centre) ** 2 for axis, centre in zip(grid, centre_mm, strict=True)) <= radius_mm**2
        hounsfield = np.where(lesion, LESION_HU, self.hounsfield).astype(np.int16)
        return Phantom(hounsfield, self.lungs, self.spacing), np.asarray(lesion)

    def images(
        self, orientation: str = "LPS", rotation: npt.NDArray[np.float64] | None = None
    ) -> tuple[sitk.Image, sitk.Image]:
        """CT and mask stored with axes in another order or direction (such as RAS or PIR), then rotated in space."""
        return (
            _stored(self.hounsfield, self.spacing, orientation, rotation),
            _stored(self.lungs, self.spacing, orientation, rotation),
        )


def make_phantom(shape: tuple[int, int, int] = (50, 64, 80), spacing: tuple[float, float, float] = (5.0, 4.0, 4.0)) -> Phantom:
    """Lungs of about 1.2 l each in a body of soft tissue; air around the body."""
    z, y, x = np.meshgrid(*(np.arange(n) * s - (n - 1) * s / 2 for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    hounsfield = np.where((y / 120) ** 2 + (x / 150) ** 2 <= 1, BODY_HU, -1000).astype(np.int16)
    lungs = np.zeros(shape, np.uint8)
    for label, side in ((1, -1), (2, 1)):
        lungs[(z / 105) ** 2 + (y / 70) ** 2 + ((x - side * 65) / 42) ** 2 <= 1] = label
    hounsfield[lungs > 0] = LUNG_HU
    return Phantom(hounsfield, lungs, spacing)


def _stored(
    array: np.ndarray, spacing: tuple[float, float, float], orientation: str, rotation: npt.NDArray[np.float64] | None
) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((-150.0, -120.0, 700.0))
    image = sitk.DICOMOrient(image, orientation)
    if rotation is not None:
        image.SetDirection((rotation @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
        image.SetOrigin((rotation @ np.array(image.GetOrigin())).tolist())
    return image


def write_case(folder: Path, ct: sitk.Image, mask: sitk.Image, stem: str = "scan", mask_folder: str = "lung-mask") -> Path:
    """Lay a case out as the platform does, and return `folder`."""
    for name, image in (("ct", ct), (mask_folder, mask)):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(folder / "images" / name / f"{stem}.mha"), useCompression=True)
    return folder


def dark_detector(head: str = "regression") -> EmphysemaNetwork:
    """A network of base width 2 with weights set by hand: centrilobular activation where the input is dark, else nothing.

    The input's negative passes conv1 (centre tap), the skip connection, and the second upsampling layer; all other weights
    are 0. With the paper's profile, activation is above a half below about -930 HU: (-930 + 1150) / 850 = 0.26.
    """
    network = build_network(NetworkConfig(head=head, base_width=2))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.weight.fill_(1 / math.sqrt(1 / (1 + module.eps)))
        network.backbone.conv1.weight[0, 0, 3, 3, 3] = -1.0
        network.backbone.norm1.bias[0] = 1.0  # 1 - intensity
        second = network.reconstruction.us2
        second.block1.convolution.weight[0, 2, 1, 1, 1] = 1.0  # channels 0 and 1 come from below, 2 and 3 from conv1
        second.block2.convolution.weight[0, 0, 1, 1, 1] = 1.0
        network.reconstruction.us3.convolution.weight[0, 0, 1, 1, 1] = 1.0
        network.head.centrilobular.weight[-1, 0] = 60.0
        state = network.state_dict()
        state["head.centrilobular.bias"][-1] = -60.0 * (1 - 0.26)
        state["head.paraseptal.bias"][0] = -9.0
    return network


def write_dark_detector(
    folder: Path,
    *,
    profile: str = "paper",
    head: str = "regression",
    input_shape: Shape = PAPER_INPUT_SHAPE,
    map_placement: MapPlacement = "corners",
) -> Path:
    """Write `dark_detector` as a bundle, and return its folder."""
    network = dark_detector(head)
    config = NetworkConfig(head=head, base_width=2)  # type: ignore[arg-type]
    metadata = BundleMetadata("dark-detector", config, profile, "set by hand", "nothing", "Apache-2.0", input_shape=input_shape)
    write_bundle(folder, network, replace(metadata, map_placement=map_placement))
    return folder
