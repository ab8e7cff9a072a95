"""Every expected value here is worked out by hand from the paper's equations; the numbers are in the comments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.training import losses


def volume(*values: float) -> Tensor:
    """One case of 1 x 1 x 1 x n voxels."""
    return torch.tensor(values).view(1, 1, 1, 1, -1)


def test_intervals_are_those_of_table_1_as_fractions() -> None:
    expected = torch.tensor([[0, 0.01], [0.01, 0.05], [0.05, 0.1], [0.1, 0.2], [0.2, 0.3], [0.3, 1]])
    torch.testing.assert_close(losses.percentage_intervals(CENTRILOBULAR), expected)
    torch.testing.assert_close(losses.percentage_intervals(PARASEPTAL), torch.tensor([[0, 0.01], [0.01, 0.05], [0.05, 1]]))


def test_absent_can_mean_exactly_zero() -> None:
    intervals = losses.percentage_intervals(CENTRILOBULAR, absent_is_zero=True)
    assert intervals[0].tolist() == [0, 0]
    torch.testing.assert_close(intervals[1:], losses.percentage_intervals(CENTRILOBULAR)[1:])


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.15, 0.0),  # the middle
        (0.10, 0.0),  # an end: (0.10 - 0.15)^2 = K = 0.0025
        (0.30, 0.02),  # 0.15^2 - 0.0025
        (0.00, 0.02),
        (0.20, 0.0),
        (0.21, 0.0011),  # 0.06^2 - 0.0025
    ],
)
def test_equation_1_is_zero_inside_the_interval_and_quadratic_outside(fraction: float, expected: float) -> None:
    loss = losses.interval_loss(torch.tensor([fraction]), torch.tensor([0.1]), torch.tensor([0.2]))
    assert loss.tolist() == pytest.approx([expected], abs=1e-7)


def test_equation_1_pulls_from_both_sides_and_only_from_outside() -> None:
    fraction = torch.tensor([0.05, 0.15, 0.30], requires_grad=True)
    losses.interval_loss(fraction, torch.full((3,), 0.1), torch.full((3,), 0.2)).sum().backward()
    assert fraction.grad is not None
    assert fraction.grad.tolist() == pytest.approx([-0.2, 0.0, 0.3])  # 2 (p - 0.15) outside


def test_power_law_spreads_low_grades_and_keeps_zero() -> None:
    raised = losses.power_law(torch.tensor([0.0, 0.01, 1.0]), 0.7338, 0.2578)
    # 0.01^0.2578 = 10^-0.5156 = 0.30507; times 0.7338
    assert raised.tolist() == pytest.approx([0.0, 0.22386, 0.7338], abs=1e-5)


def test_power_law_has_a_finite_slope_at_zero() -> None:
    fraction = torch.tensor([0.0, 1e-9], requires_grad=True)
    losses.power_law(fraction, 0.7338, 0.2578).sum().backward()
    assert fraction.grad is not None
    assert torch.isfinite(fraction.grad).all()


def test_power_law_of_one_changes_nothing() -> None:
    fraction = torch.tensor([0.0, 0.3])
    assert losses.power_law(fraction, 1.0, 1.0) is fraction


def test_equation_2_is_the_soft_dice_of_both_maps() -> None:
    # 2 (0.5 * 0.2 + 1 * 0.6) / (0.5 + 1 + 0.2 + 0.6) = 1.4 / 2.3
    loss = losses.overlap_loss(volume(0.5, 1.0), volume(0.2, 0.6))
    assert loss.tolist() == pytest.approx([1.4 / 2.3])


def test_equation_2_inside_the_lung_only() -> None:
    # of the first voxel alone: 2 * 0.1 / 0.7
    loss = losses.overlap_loss(volume(0.5, 1.0), volume(0.2, 0.6), volume(1.0, 0.0))
    assert loss.tolist() == pytest.approx([0.2 / 0.7])


def test_equation_2_of_two_empty_maps_is_zero_with_a_finite_gradient() -> None:
    centrilobular = volume(0.0, 0.0).requires_grad_()
    loss = losses.overlap_loss(centrilobular, volume(0.0, 0.0))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert centrilobular.grad is not None
    assert torch.isfinite(centrilobular.grad).all()


def test_equation_3_is_the_cross_entropy_of_the_union_and_a_mean_over_voxels() -> None:
    # unions 0.7, 0.3 and 1 (0.8 + 0.6 is clamped); targets 1, 0 and 1: -(ln 0.7 + ln 0.7 + ln 1) / 3
    loss = losses.segmentation_loss(volume(0.5, 0.1, 0.8), volume(0.2, 0.2, 0.6), volume(1.0, 0.0, 1.0), 1.0)
    assert loss.tolist() == pytest.approx([-2 * math.log(0.7) / 3])


def test_equation_3_scales_with_the_smoothness_factor() -> None:
    loss = losses.segmentation_loss(volume(0.5), volume(0.2), volume(1.0), 0.85)
    assert loss.tolist() == pytest.approx([-0.85 * math.log(0.7)])


def test_voxels_of_the_target_can_have_another_weight_and_the_sum_of_weights_is_divided_out() -> None:
    # likelihoods 0.7 (target 1) and 0.8 (target 0): -(0.3 ln 0.7 + 0.7 ln 0.8) / (0.3 + 0.7)
    loss = losses.segmentation_loss(volume(0.5, 0.2), volume(0.2, 0.0), volume(1.0, 0.0), 1.0, foreground=0.3)
    assert loss.tolist() == pytest.approx([-0.3 * math.log(0.7) - 0.7 * math.log(0.8)])
    # one voxel in four is target: -(0.3 ln 0.7 + 2.1 ln 0.8) / 2.4
    maps = volume(0.5, 0.2, 0.2, 0.2), volume(0.2, 0.0, 0.0, 0.0), volume(1.0, 0.0, 0.0, 0.0)
    expected = -(0.3 * math.log(0.7) + 2.1 * math.log(0.8)) / 2.4
    assert losses.segmentation_loss(*maps, 1.0, foreground=0.3).tolist() == pytest.approx([expected])


def test_the_smoothness_factor_can_hold_in_the_lung_alone() -> None:
    loss = losses.segmentation_loss(volume(0.5, 0.2), volume(0.2, 0.0), volume(1.0, 0.0), 0.85, lung=volume(1.0, 0.0))
    assert loss.tolist() == pytest.approx([-(0.85 * math.log(0.7) + math.log(0.8)) / 2])


def test_label_smoothing_moves_the_target_and_its_best_union_is_the_moved_target() -> None:
    """Szegedy et al.: targets 1 and 0 become 0.95 and 0.05; the loss is least there, and the scale s moves no minimum."""
    smoothed = [
        losses.segmentation_loss(volume(p), volume(0.0), volume(1.0), 1.0, label_smoothing=0.1).item()
        for p in (0.9, 0.95, 0.99)
    ]
    assert smoothed[1] == pytest.approx(-0.95 * math.log(0.95) - 0.05 * math.log(0.05))
    assert smoothed[1] == min(smoothed)
    scaled = [losses.segmentation_loss(volume(p), volume(0.0), volume(1.0), 0.85).item() for p in (0.9, 0.95, 0.99)]
    assert scaled[2] == min(scaled)


def test_equation_3_is_finite_where_the_union_contradicts_the_target() -> None:
    loss = losses.segmentation_loss(volume(1.0, 0.0), volume(1.0, 0.0), volume(0.0, 1.0), 1.0)
    assert loss.tolist() == pytest.approx([-math.log(1e-6)])  # both voxels at the floor of the logarithm


def test_equation_3_teaches_both_maps_alike_and_nothing_where_their_sum_exceeds_one() -> None:
    centrilobular, paraseptal = volume(0.5, 0.8).requires_grad_(), volume(0.2, 0.6).requires_grad_()
    losses.segmentation_loss(centrilobular, paraseptal, volume(1.0, 0.0), 1.0).sum().backward()
    for maps in (centrilobular, paraseptal):
        assert maps.grad is not None
        assert maps.grad.flatten().tolist() == pytest.approx([-0.5 / 0.7, 0.0])  # d(-ln p) / 2 voxels


def test_losses_are_means_over_each_case_and_not_over_the_batch() -> None:
    """A case with much emphysema does not change what another case of the batch costs."""
    first, second = torch.rand(2, 1, 2, 3, 4), torch.rand(2, 1, 2, 3, 4)
    target = (torch.rand(2, 1, 2, 3, 4) > 0.5).float()
    region = (torch.rand(2, 1, 2, 3, 4) > 0.3).float()
    for loss in (
        lambda rows: losses.overlap_loss(first[rows], second[rows], region[rows]),
        lambda rows: losses.segmentation_loss(first[rows], second[rows], target[rows], 0.85),
        lambda rows: losses.voxel_cross_entropy(first[rows], target[rows], region[rows]),
        lambda rows: losses.voxel_dice_loss(first[rows], target[rows], region[rows]),
    ):
        together = loss(slice(0, 2))
        assert together.shape == (2,)
        torch.testing.assert_close(together, torch.cat((loss(slice(0, 1)), loss(slice(1, 2)))))


def test_voxel_cross_entropy_counts_the_region_only() -> None:
    # logit 0 is 0.5: ln 2 whatever the truth; the second voxel, badly wrong, lies outside
    loss = losses.voxel_cross_entropy(volume(0.0, 50.0), volume(1.0, 0.0), volume(1.0, 0.0))
    assert loss.tolist() == pytest.approx([math.log(2)])


def test_voxel_dice_loss_by_hand() -> None:
    # 1 - (2 (0.5 * 1) + 1) / (0.5 + 0.2 + 1 + 1) = 1 - 2 / 2.7
    loss = losses.voxel_dice_loss(volume(0.5, 0.2), volume(1.0, 0.0), volume(1.0, 1.0), smooth=1.0)
    assert loss.tolist() == pytest.approx([1 - 2 / 2.7])


def test_weighted_cross_entropy_keeps_the_weight_in_a_batch_of_one() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])  # probabilities 1/4 and 3/4
    weights = torch.tensor([2.0, 0.5])
    assert losses.weighted_cross_entropy(logits, torch.tensor([0]), weights).tolist() == pytest.approx([2 * math.log(4)])
    assert losses.weighted_cross_entropy(logits, torch.tensor([1]), weights).tolist() == pytest.approx([0.5 * math.log(4 / 3)])


def test_weighted_cross_entropy_divided_by_its_weights_is_torch_s_own_mean() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [1.0, 0.0]])
    scores, weights = torch.tensor([0, 1, 0]), torch.tensor([2.0, 0.5])
    expected = torch.nn.functional.cross_entropy(logits, scores, weight=weights)
    found = losses.weighted_cross_entropy(logits, scores, weights, divided=True).mean()
    torch.testing.assert_close(found, expected)
    counted = torch.tensor([True, True, False])
    expected = torch.nn.functional.cross_entropy(logits[:2], scores[:2], weight=weights)
    found = losses.weighted_cross_entropy(logits, scores, weights, counted=counted, divided=True).mean()
    torch.testing.assert_close(found, expected)


def test_accumulated_class_weights_by_hand() -> None:
    # 0.5 * 0.25 : 0.3 * 0.5 : 0.2 * 1 = 0.125 : 0.15 : 0.2
    weights = losses.accumulated_class_weights(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.75, 0.5, math.nan]))
    assert weights.tolist() == pytest.approx([0.125 / 0.475, 0.15 / 0.475, 0.2 / 0.475])
    # a class that was right throughout has no weight any more, unless all were
    assert losses.accumulated_class_weights(weights, torch.tensor([1.0, 0.5, 0.5]))[0] == 0
    assert losses.accumulated_class_weights(weights, torch.ones(3)).tolist() == weights.tolist()


def test_class_weights_start_at_the_inverse_frequency() -> None:
    weights = losses.inverse_frequency_weights(torch.tensor([6, 3, 0, 1]))
    # N = 10 cases in 3 classes that occur: 10 / (3 * 6), 10 / (3 * 3), none, 10 / 3
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 0.0, 10 / 3])
    # no scores at all: nothing counts
    assert losses.inverse_frequency_weights(torch.zeros(3)).tolist() == [0, 0, 0]


def test_class_weights_rise_for_classes_with_low_accuracy() -> None:
    initial = torch.tensor([1.0, 1.0, 2.0])
    updated = losses.updated_class_weights(initial, torch.tensor([0.75, 0.25, 0.5]))
    # 0.25, 0.75, 1.0, scaled to the initial sum of 4
    assert updated.tolist() == pytest.approx([0.5, 1.5, 2.0])


def test_class_weights_never_vanish_and_survive_classes_without_a_case() -> None:
    updated = losses.updated_class_weights(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, math.nan]))
    # errors 0.05 (the least) and 1, scaled to 2
    assert updated.tolist() == pytest.approx([0.1 / 1.05, 2 / 1.05, 0.0])


def test_a_class_without_a_case_in_an_epoch_counts_as_one_that_is_not_learnt() -> None:
    updated = losses.updated_class_weights(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.5, 0.0, math.nan]))
    # 0.5, 1 and 2, scaled to 4
    assert updated.tolist() == pytest.approx([2 / 3.5, 4 / 3.5, 8 / 3.5])


def test_balanced_weights_of_the_interval_loss_are_normalised_and_clipped() -> None:
    weights = losses.clipped_balanced_weights(torch.tensor([90, 9, 1]))
    # inverse frequencies 1/90 : 1/9 : 1 = 0.0099, 0.0990, 0.8911 of their sum; clipped
    assert weights.tolist() == pytest.approx([0.2, 0.2, 0.8])
    assert losses.clipped_balanced_weights(torch.tensor([1, 1, 1])).tolist() == pytest.approx([1 / 3] * 3)
