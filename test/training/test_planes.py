"""A plane gives what a network says inside a volume of equal slices, and what is learnt on it the network learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from model.cohort.manifest import TrainingCase
from model.network import EmphysemaNetwork, NetworkConfig, build_network
from model.preprocessing import PAPER_PROFILE
from model.training.augmentation import PAPER_RANGES, Augmentation, within_slices
from model.training.cache import prepare_case, prepare_cohort
from model.training.dataset import CohortDataset, Draw, assemble
from model.training.loop import Anchor, freeze_statistics
from model.training.planes import PlaneNetwork
from model.weights import read_bundle
from test.training.cohort import row, write_manifest

DEPTH = 640
"""So many slices that the network does not see their ends from the middle."""


@pytest.fixture
def pair() -> tuple[EmphysemaNetwork, PlaneNetwork]:
    torch.manual_seed(3)
    network = build_network(NetworkConfig("resnet18", "regression", 8))
    for module in network.modules():  # statistics that change something
        if isinstance(module, torch.nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.05, 0.2)
    network.double()
    return network, PlaneNetwork(network)


def test_a_plane_gives_what_the_network_says_in_the_middle_of_equal_slices_and_learns_the_same(
    pair: tuple[EmphysemaNetwork, PlaneNetwork],
) -> None:
    network, planes = pair
    network.eval()
    image = torch.rand(1, 1, 1, 24, 32, dtype=torch.float64)
    middle = [part[:, :, DEPTH // 4] for part in network(image.expand(-1, -1, DEPTH, -1, -1))]
    flat = planes(image)
    for deep, plane in zip(middle, flat, strict=True):
        torch.testing.assert_close(plane[:, :, 0], deep, rtol=1e-9, atol=1e-9)
        assert plane.std() > 0.01, "all voxels alike: nothing was compared"
    weights = list(network.parameters())
    deep_gradients = torch.autograd.grad(torch.stack([part.square().sum() for part in middle]).sum(), weights)
    gradients = torch.autograd.grad(torch.stack([part.square().sum() for part in flat]).sum(), weights)
    for deep_gradient, gradient in zip(deep_gradients, gradients, strict=True):
        torch.testing.assert_close(_along_z(gradient), _along_z(deep_gradient), rtol=1e-6, atol=1e-6)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def _along_z(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.sum(dim=2) if gradient.ndim == 5 else gradient


def test_statistics_are_those_of_the_network_and_frozen_where_its_are(pair: tuple[EmphysemaNetwork, PlaneNetwork]) -> None:
    network, planes = pair
    before = {name: value.clone() for name, value in network.named_buffers()}
    network.train()
    freeze_statistics(network)
    planes(torch.rand(2, 1, 1, 24, 32, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    network.train()
    planes(torch.rand(2, 1, 1, 24, 32, dtype=torch.float64))
    changed = [name for name, value in network.named_buffers() if not torch.equal(value, before[name])]
    assert len(changed) == len(before)


def test_uniform_slices_are_handed_over_as_planes_and_tiles_as_they_were(lesioned: TrainingCase, tmp_path: Path) -> None:
    uniform = replace(lesioned, entity="u", truth=None, uniform_slices=True)
    list(prepare_cohort([lesioned, uniform], PAPER_PROFILE, tmp_path))
    dataset = CohortDataset(
        [lesioned, uniform], PAPER_PROFILE, tmp_path, ranges=PAPER_RANGES, with_truth=True, tile=(32, 48, 64), slab=1
    )
    assert dataset.groups() == [[0], [1]]
    tile, plane = dataset[Draw(0, 0, 0)], dataset[Draw(1, 0, 0)]
    assert tile.image.shape == (1, 32, 48, 64)
    _, y, x = PAPER_PROFILE.input_shape
    assert plane.image.shape == (1, 1, y, x)
    assert plane.truth is not None
    assert {part.shape for part in (plane.lung, plane.low_attenuation, plane.truth[:1])} == {(1, 1, y // 2, x // 2)}
    assert plane.lung.any()
    assert plane.image.abs().sum() > 0
    turned = [dataset[Draw(1, 0, turn)] for turn in range(8)]
    assert all(part.truth is not None and not part.truth.any() for part in turned), "nothing, however they are turned"
    assert len({float(part.image.sum()) for part in turned}) == 8


def test_an_anchor_sees_planes_and_volumes_as_its_network_does_and_learns_nothing(
    pair: tuple[EmphysemaNetwork, PlaneNetwork],
) -> None:
    network, planes = pair
    plane, volume = (torch.rand(1, 1, depth, 24, 32, dtype=torch.float64) for depth in (1, 16))
    network.eval()
    expected = [*planes(plane), *network(volume)]
    anchor = Anchor(network.train(), planes=True)
    found = [*anchor(plane), *anchor(volume)]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad


def test_a_plane_is_augmented_as_a_slice_of_the_volume_is(lesioned: TrainingCase) -> None:
    prepared = prepare_case(lesioned, PAPER_PROFILE)
    middle = PAPER_PROFILE.input_shape[0] // 2
    volume = replace(
        prepared,
        truth=None,
        **{
            name: getattr(prepared, name)[middle].expand(PAPER_PROFILE.input_shape)
            for name in ("image", "lung", "low_attenuation")
        },
    )
    drawn = Augmentation(
        flips=(True, False, True),
        degrees=(7.0, 0.0, 0.0),
        crop_start=(0.02, 0.03, 0.05),
        crop_size=(0.95, 0.94, 0.93),
        smoothing=(1.1, 0.6, 0.6),
        contrast=1.04,
        shift=0.01,
    )
    both = [
        assemble(case, (None, None), 0, PAPER_PROFILE, augmentation, with_truth=False, with_suspect=False)
        for case, augmentation in ((volume, drawn), (volume.thin(), within_slices(drawn)))
    ]
    whole, plane = both
    torch.testing.assert_close(plane.image[:, 0], whole.image[:, middle], rtol=0, atol=1e-4)
    assert plane.image.std() > 0.1
    for name in ("lung", "low_attenuation"):
        assert torch.equal(getattr(plane, name)[:, 0], getattr(whole, name)[:, middle // 2]), name
    tilted = within_slices(replace(drawn, degrees=(7.0, 3.0, -2.0)))
    assert tilted == within_slices(drawn)


@pytest.mark.slow
def test_a_run_with_planes_learns_from_them_and_its_network_is_an_ordinary_one(manifest: Path, tmp_path: Path) -> None:
    folder = manifest.parent
    rows = [
        row("c", "", "", "train"),
        row("b", "", "", "train", truth=False)
        | {"entity": "u", "centrilobular_lower": "60", "centrilobular_upper": "", "uniform_slices": "yes"},
        row("f", 2, 0, "validation"),
        row("e", 0, 0, "validation", truth=False) | {"entity": "v", "uniform_slices": "yes"},
    ]
    columns = dict.fromkeys(column for line in rows for column in line)
    path = write_manifest(folder / "planes.csv", [dict.fromkeys(columns, "") | line for line in rows])
    options = ["--manifest", str(path), "--strategy", "voxels", "--tile", "32", "48", "64", "--slab", "1", "--base-width", "2"]
    options += ["--epochs", "1", "--batch", "1", "--tiles-per-scan", "2", "--device", "cpu", "--precision", "float32"]
    assert train.main([*options, "--output", str(tmp_path / "run"), "--monitor", "loss"]) == 0
    bundle = read_bundle(tmp_path / "run" / "bundle")
    assert bundle.metadata.performance["training"]["slab"] == 1
    assert bundle.metadata.performance["validation"]["cases"] == 2, "a plane and a whole scan"
    with Image.open(tmp_path / "run" / "pictures" / "epoch-000-v.png") as picture:
        assert picture.width == PAPER_PROFILE.input_shape[2], "one slice"
    metrics = (tmp_path / "run" / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    place = metrics[0].split(",").index("train/interval_centrilobular")
    assert [float(line.split(",")[place]) > 0 for line in metrics[1:] if line.split(",")[place]] == [True]
