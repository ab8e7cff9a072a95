"""The network against the paper's Table 5, the released tensor names, and hand calculations."""

from __future__ import annotations

import json
import sys
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from benchmark import complexity
from benchmark.complexity import TABLE_5, measure
from model.network import (
    BackboneName,
    DenseLogits,
    HeadName,
    NetworkConfig,
    build_network,
    class_activation_map,
    class_probabilities,
    fold_batch_normalisation,
    lung_mean,
)


@pytest.mark.parametrize("backbone", get_args(BackboneName))
@pytest.mark.parametrize("head", get_args(HeadName))
def test_parameters_and_gmacs_are_those_of_table_5(backbone: BackboneName, head: HeadName) -> None:
    measured = measure(NetworkConfig(backbone, head))
    parameters, gmacs = TABLE_5[backbone, head]
    assert measured.parameters / 1e6 == pytest.approx(parameters, abs=0.005)
    assert measured.gmacs == pytest.approx(gmacs, rel=0.002)


def test_the_complexity_script_prints_json_that_other_programs_can_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["complexity.py", "--json"])
    complexity.main()
    rows = json.loads(capsys.readouterr().out)
    assert {(row["backbone"], row["head"]) for row in rows} == set(TABLE_5)
    assert all(row.keys() == {"backbone", "head", "parameters", "gmacs"} for row in rows)


@pytest.mark.parametrize("backbone", get_args(BackboneName))
@pytest.mark.parametrize(("head", "channels"), [("regression", (1, 1)), ("classification", (6, 3))])
def test_logits_have_half_of_the_inputs_resolution(backbone: BackboneName, head: HeadName, channels: tuple[int, int]) -> None:
    network = build_network(NetworkConfig(backbone, head, base_width=2)).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, 1, 16, 24, 32))
    assert [tuple(dense.shape) for dense in logits] == [(2, count, 8, 12, 16) for count in channels]


def test_a_shortcut_subsamples_and_pads_channels_with_zeros() -> None:
    network = build_network(NetworkConfig(base_width=2))
    block = network.backbone.layer2[0]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    features = torch.rand(1, 2, 6, 6, 6)
    with torch.no_grad():
        result = block(features)
    assert torch.equal(result[:, :2], features[:, :, ::2, ::2, ::2])
    assert torch.equal(result[:, 2:], torch.zeros(1, 2, 3, 3, 3))


@pytest.mark.parametrize("backbone", get_args(BackboneName))
def test_folding_normalisation_keeps_the_function_and_the_network_it_is_given(backbone: BackboneName) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(backbone, base_width=2)).eval()
    count = batch_normalisations(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean = torch.randn_like(module.running_mean)  # type: ignore[arg-type]
            module.running_var = torch.rand_like(module.running_var) + 0.5  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected: DenseLogits = network(image)
        folded = fold_batch_normalisation(network)
        found: DenseLogits = folded(image)
        again: DenseLogits = network(image)
    assert batch_normalisations(folded) == 0
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)

    assert batch_normalisations(network) == count > 20
    assert all(parameter.requires_grad for parameter in network.parameters())
    for before, after in zip(expected, again, strict=True):
        assert torch.equal(after, before)
    ours, theirs = ({tensor.data_ptr() for tensor in part.state_dict().values()} for part in (folded, network))
    assert not ours & theirs


def batch_normalisations(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())


def test_the_head_computes_in_float32_where_autocast_has_the_rest_in_bfloat16() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(base_width=2)).eval()
    nn.init.constant_(network.head.centrilobular.bias, 1000.0)  # type: ignore[arg-type]  # bfloat16 has steps of 4 there
    seen = []
    network.reconstruction.register_forward_hook(lambda _, __, features: seen.append(features.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits: DenseLogits = network(torch.rand(1, 1, 16, 16, 16))
    assert seen == [torch.bfloat16]
    assert logits.centrilobular.dtype == torch.float32
    assert len(logits.centrilobular.unique()) > 100


def test_lung_mean_counts_the_lung_alone_and_each_case_by_itself() -> None:
    maps = torch.tensor([[0.2, 0.4, 0.9], [1.0, 0.0, 0.5]]).reshape(2, 1, 1, 1, 3)
    lung = torch.tensor([[1, 1, 0], [0, 0, 1]]).reshape(2, 1, 1, 1, 3)
    torch.testing.assert_close(lung_mean(maps, lung), torch.tensor([[0.3], [0.5]]))


def test_class_probabilities_are_the_softmax_of_the_mean() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0]]).reshape(1, 2, 1, 1, 2)  # means 1 and 2
    expected = torch.tensor([[1.0, torch.e]]) / (1 + torch.e)
    torch.testing.assert_close(class_probabilities(logits), expected)


def test_the_class_activation_map_sums_rectified_grades_above_0_and_scales_inside_the_lung() -> None:
    grades: list[list[float]] = [[9, 9, 9, 9], [1, -5, 2, 8], [1, 3, -1, 8]]  # absent, and two grades; four voxels
    logits = torch.tensor(grades).reshape(1, 3, 1, 1, 4)
    lung = torch.tensor([1, 1, 1, 0]).reshape(1, 1, 1, 1, 4)
    expected = torch.tensor([2 / 3, 1.0, 2 / 3, 0.0]).reshape(1, 1, 1, 1, 4)
    torch.testing.assert_close(class_activation_map(logits, lung), expected)


def test_a_class_activation_map_without_positive_channels_is_0() -> None:
    activation: Tensor = class_activation_map(-torch.ones(1, 3, 2, 2, 2), torch.ones(1, 1, 2, 2, 2))
    assert torch.equal(activation, torch.zeros(1, 1, 2, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet101"}, "backbone is 'resnet101'"),
        ({"head": "detection"}, "head is 'detection'"),
        ({"base_width": 3}, "base width is 3"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**arguments)  # type: ignore[arg-type]
