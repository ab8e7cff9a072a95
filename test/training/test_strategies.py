from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.cohort.manifest import Scores
from model.fleischner import SUBTYPES
from model.network import DenseLogits, NetworkConfig, build_network
from model.training.dataset import Batch
from model.training.initialisation import draw_kaiming_fan_out
from model.training.recipes import PAPER_RECIPE, RECIPES, RELEASED_RECIPE, Recipe
from model.training.strategies import ClassificationStrategy, RegressionStrategy, Strategy, VoxelStrategy, score_counts

COUNTS = (torch.tensor([2, 2, 2, 2, 2, 2]), torch.tensor([4, 4, 4]))
SHAPE = (2, 2, 4)
"""A small map; 16 voxels."""


def logits_of(centrilobular: float, paraseptal: float) -> DenseLogits:
    """Even maps of that activation, one case."""
    parts = (torch.full((1, 1, *SHAPE), math.log(p / (1 - p)), requires_grad=True) for p in (centrilobular, paraseptal))
    return DenseLogits(*parts)


NAN = math.nan
UNBOUND = torch.full((1, 2, 2), NAN)


def batch_of(
    scores: tuple[int, int], low_attenuation: float = 0.0, truth: Tensor | None = None, bounds: Tensor = UNBOUND
) -> Batch:
    """Half of the map is lung; `low_attenuation` is the target everywhere."""
    lung = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    lung[:, :, 0] = True
    target = torch.full((1, 1, *SHAPE), low_attenuation).bool()
    has_truth, place = torch.tensor([truth is not None]), torch.tensor([0])
    return Batch(torch.zeros(1, 1, 4, 4, 8), lung, target, truth, has_truth, None, None, torch.tensor([scores]), bounds, place)


def term(recipe: Recipe, name: str, maps: tuple[float, float], batch: Batch, counts: tuple[Tensor, Tensor] = COUNTS) -> float:
    return float(RegressionStrategy(recipe, counts).terms(logits_of(*maps), batch)[name].detach())


def test_the_released_recipe_s_loss_by_hand() -> None:
    """As the published training code computes it: maps of 0.3 and 0.2 where centrilobular score 3 and no paraseptal emphysema
    are true, all scores as frequent, and every voxel below -950 HU."""
    terms = RegressionStrategy(RELEASED_RECIPE, COUNTS).terms(logits_of(0.3, 0.2), batch_of((3, 0), low_attenuation=1))
    # 0.7338 p^0.2578 is 0.40530 of 0.1, 0.48460 of 0.2, 0.53800 of 0.3; balanced weights are 0.2 (of 1/6, clipped) and 1/3
    centrilobular = 10 * 0.2 * ((0.53800 - 0.44495) ** 2 - 0.03965**2)
    paraseptal = 10 / 3 * 0.48460**2  # against exactly 0
    # half of the map is lung, where s is 0.85; outside it is 1
    expected = [centrilobular, paraseptal, 2 * 0.24, (0.85 + 1) / 2 * math.log(2)]
    assert [float(value.detach()) for value in terms.values()] == pytest.approx(expected, rel=2e-3)
    absent = batch_of((0, 0), low_attenuation=1)  # its low attenuation is no emphysema: -ln(1 - 0.7)
    assert term(RELEASED_RECIPE, "segmentation", (0.3, 0.4), absent) == pytest.approx(-(0.85 + 1) / 2 * math.log(0.3), rel=1e-5)


def test_interval_losses_can_be_summed_over_the_batch() -> None:
    """The loop takes means over the batch: 0.02 and 0.04 of two cases have the mean 0.03 and the sum 0.06."""
    two = [batch_of((3, 0)), batch_of((2, 0))]
    both = Batch(*(None if a is None or b is None else torch.cat((a, b)) for a, b in zip(*two, strict=True)))  # type: ignore[arg-type]
    logits = DenseLogits(*(torch.cat((part, part)) for part in logits_of(0.3, 0.2)))
    found = {}
    for summed in (False, True):
        recipe = replace(PAPER_RECIPE, sum_intervals=summed)
        terms = RegressionStrategy(recipe, COUNTS).terms(logits, both)
        found[summed] = float(terms["interval_centrilobular"].mean().detach())
    # 0.3 against 0.1..0.2: 0.15^2 - 0.05^2; against 0.05..0.1: 0.225^2 - 0.025^2
    assert found[False] == pytest.approx((0.02 + 0.05) / 2)
    assert found[True] == pytest.approx(0.02 + 0.05)


@pytest.mark.parametrize(
    "change",
    [{"decay": 0.0}, {"epochs": 0}, {"smoothness": -1.0}, {"initial_activation": 1.0}, {"segmentation_foreground": 1.0}],
)
def test_a_recipe_refuses_numbers_that_no_training_can_use(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(PAPER_RECIPE, **change)  # type: ignore[arg-type]


def test_the_paper_loss_is_the_plain_sum_of_the_three_equations() -> None:
    terms = RegressionStrategy(PAPER_RECIPE, COUNTS).terms(logits_of(0.3, 0.2), batch_of((3, 0), low_attenuation=1))
    assert list(terms) == ["interval_centrilobular", "interval_paraseptal", "overlap", "segmentation"]
    # eq. 1: 0.3 against 0.1..0.2 is 0.15^2 - 0.05^2; 0.2 against 0..0.01 is 0.195^2 - 0.005^2
    # eq. 2: 2 * 0.06 / 0.5; eq. 3: -ln 0.5
    expected = [0.02, 0.038, 0.24, math.log(2)]
    assert [float(value.detach()) for value in terms.values()] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "name", "maps", "scores", "expected"),
    [
        # 0.2 against exactly 0
        ({"absent_is_zero": True}, "interval_paraseptal", (0.3, 0.2), (3, 0), 0.04),
        ({"interval_weight": 10.0}, "interval_centrilobular", (0.3, 0.2), (3, 0), 0.2),
        ({"overlap_weight": 2.0}, "overlap", (0.3, 0.2), (3, 0), 0.48),
        ({"smoothness": 0.85}, "segmentation", (0.3, 0.2), (3, 0), 0.85 * math.log(2)),
        # sqrt: 0.09 becomes 0.3; 0.01..0.05 becomes 0.1..0.2236: (0.3 - 0.1618)^2 - 0.0618^2
        ({"percentage_exponent": 0.5}, "interval_centrilobular", (0.09, 0.2), (1, 0), 0.015279),
        # half of the map is lung
        ({"smoothness": 0.5, "smoothness_in_lung": True}, "segmentation", (0.3, 0.2), (3, 0), 0.75 * math.log(2)),
        # the target 1 becomes 0.9: -(0.9 ln 0.7 + 0.1 ln 0.3)
        ({"label_smoothing": 0.2}, "segmentation", (0.3, 0.4), (3, 0), -0.9 * math.log(0.7) - 0.1 * math.log(0.3)),
        # an empty target: -ln(1 - 0.5), as before; with the maps 0.3 and 0.4 it is -ln 0.3 instead of -ln 0.7
        ({"empty_target_if_absent": True}, "segmentation", (0.3, 0.4), (0, 0), -math.log(0.3)),
        ({"empty_target_if_absent": True}, "segmentation", (0.3, 0.4), (0, 1), -math.log(0.7)),
    ],
)
def test_each_option_of_the_released_recipe_does_what_it_is_named_after(
    option: dict[str, float], name: str, maps: tuple[float, float], scores: tuple[int, int], expected: float
) -> None:
    recipe = replace(PAPER_RECIPE, **option)  # type: ignore[arg-type]
    assert term(recipe, name, maps, batch_of(scores, low_attenuation=1)) == pytest.approx(expected, abs=2e-6)


def test_class_weighted_intervals_use_the_weight_of_the_case_s_own_score() -> None:
    counts = (torch.tensor([90, 9, 1, 0, 0, 0]), torch.tensor([1, 1, 1]))
    recipe = replace(PAPER_RECIPE, class_weighted_intervals=True)
    plain = [term(PAPER_RECIPE, "interval_centrilobular", (0.5, 0.2), batch_of((score, 0)), counts) for score in (0, 2)]
    weighted = [term(recipe, "interval_centrilobular", (0.5, 0.2), batch_of((score, 0)), counts) for score in (0, 2)]
    # 0.0099 and 0.8911 of the sum of inverse frequencies, clipped to 0.2 and 0.8
    assert [b / a for a, b in zip(plain, weighted, strict=True)] == pytest.approx([0.2, 0.8])


def test_class_weighted_intervals_use_the_mean_weight_for_scans_with_bounds_only() -> None:
    counts = (torch.tensor([1, 1, 1, 1, 1, 1]), torch.tensor([90, 9, 1]))
    recipe = replace(PAPER_RECIPE, class_weighted_intervals=True)
    batch = batch_of((0, -1), bounds=torch.tensor([[[NAN, NAN], [0.0, 0.01]]]))
    plain, weighted = (term(which, "interval_paraseptal", (0.5, 0.2), batch, counts) for which in (PAPER_RECIPE, recipe))
    assert weighted / plain == pytest.approx((0.2 + 0.2 + 0.8) / 3)


def test_overlap_in_lung_ignores_what_lies_outside() -> None:
    centrilobular = torch.full((1, 1, *SHAPE), -30.0)
    centrilobular[:, :, 1] = 30.0  # active outside the lung only
    logits = DenseLogits(centrilobular, torch.full((1, 1, *SHAPE), 30.0))
    batch = batch_of((3, 1))
    whole = RegressionStrategy(PAPER_RECIPE, COUNTS).terms(logits, batch)["overlap"]
    inside = RegressionStrategy(replace(PAPER_RECIPE, overlap_in_lung=True), COUNTS).terms(logits, batch)["overlap"]
    assert float(whole) == pytest.approx(2 * 8 / (8 + 16))
    assert float(inside) == pytest.approx(0.0, abs=1e-6)


def test_percentages_are_means_inside_the_lung() -> None:
    logits = logits_of(0.9, 0.2)
    outside = torch.full((1, 1, *SHAPE), math.log(0.12 / 0.88))
    outside[:, :, 1] = 5.0
    prediction = RegressionStrategy(PAPER_RECIPE, COUNTS).predictions(DenseLogits(outside, logits.paraseptal), batch_of((0, 0)))
    assert prediction.percentages.tolist()[0] == pytest.approx([12.0, 20.0], abs=1e-4)
    assert prediction.scores.tolist() == [[3, 2]]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_the_interval_loss_reaches_the_lung_only_and_each_map_its_own(recipe: Recipe) -> None:
    logits = logits_of(0.5, 0.4)
    terms = RegressionStrategy(recipe, COUNTS).terms(logits, batch_of((1, 0)))
    terms["interval_centrilobular"].sum().backward()
    gradient = logits.centrilobular.grad
    assert gradient is not None
    assert (gradient[:, :, 0] > 0).all()
    assert (gradient[:, :, 1] == 0).all()
    assert logits.paraseptal.grad is None


def test_the_loss_reaches_every_parameter_of_the_network() -> None:
    network = build_network(NetworkConfig("resnet18", "regression", 2))
    logits = network(torch.rand(1, 1, 16, 16, 16))
    lung = torch.ones(1, 1, 8, 8, 8, dtype=torch.bool)
    scores, place = torch.tensor([[3, 1]]), torch.tensor([0])
    batch = Batch(torch.zeros(1), lung, lung, None, torch.tensor([False]), None, None, scores, UNBOUND, place)
    torch.stack(list(RegressionStrategy(PAPER_RECIPE, COUNTS).terms(logits, batch).values())).sum().backward()
    silent = [name for name, value in network.named_parameters() if value.grad is None]
    assert silent == []


def test_an_initial_activation_of_0_leaves_the_first_maps_to_chance() -> None:
    torch.manual_seed(1)
    network = build_network(NetworkConfig("resnet18", "regression", 2))
    assert network.head.centrilobular.bias is not None
    before = network.head.centrilobular.bias.clone()
    RegressionStrategy(RELEASED_RECIPE, COUNTS).initialise(network)
    assert torch.equal(network.head.centrilobular.bias, before)


def test_kaiming_weights_have_the_variance_of_their_fan_out() -> None:
    """Variance 2 / (filters x voxels of the kernel), whatever the number of inputs."""
    convolutions = nn.Sequential(nn.Conv3d(64, 16, 3), nn.Conv3d(4, 128, 3))
    biases = [layer.bias.clone() for layer in convolutions if isinstance(layer, nn.Conv3d) and layer.bias is not None]
    torch.manual_seed(0)
    draw_kaiming_fan_out(convolutions)
    for layer, filters, bias in zip(convolutions, (16, 128), biases, strict=True):
        assert isinstance(layer, nn.Conv3d)
        assert layer.weight.var().item() == pytest.approx(2 / (filters * 27), rel=0.05)
        assert layer.bias is not None
        assert torch.equal(layer.bias, bias)


def test_untrained_regression_maps_start_where_the_recipe_says() -> None:
    network = build_network(NetworkConfig("resnet18", "regression", 2))
    RegressionStrategy(replace(PAPER_RECIPE, initial_activation=0.1), COUNTS).initialise(network)
    assert network.head.centrilobular.bias is not None
    assert network.head.centrilobular.bias.sigmoid().item() == pytest.approx(0.1)


def test_supervision_by_voxels_takes_the_place_of_the_three_losses() -> None:
    truth = torch.zeros(1, 2, *SHAPE)
    truth[:, 0] = 1
    strategy = VoxelStrategy(replace(PAPER_RECIPE, interval_weight=3.0), COUNTS)
    terms = strategy.terms(logits_of(0.5, 0.25), batch_of((5, 0), truth=truth))
    assert {name.rsplit("_", 1)[0] for name in terms} == {"cross_entropy", "dice", "extent", "interval"}
    assert [float(terms[f"interval_{subtype.name}"].detach()) for subtype in SUBTYPES] == [0, 0]
    assert float(terms["extent_centrilobular"].detach()) == pytest.approx(3 * 0.5)
    assert float(terms["extent_paraseptal"].detach()) == pytest.approx(3 * 0.25)
    assert float(terms["cross_entropy_centrilobular"].detach()) == pytest.approx(-math.log(0.5))
    assert float(terms["cross_entropy_paraseptal"].detach()) == pytest.approx(-math.log(0.75))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        # eq. 1 for 0.3 and 0.2: at least 1 % of the lung is met, at most 1 % is not: 0.195^2 - 0.005^2
        ([[0.01, 1.0], [0.0, 0.01]], [0.0, 0.038]),
        # 0.3 against at least 50 %: 0.45^2 - 0.25^2
        ([[0.5, 1.0], [NAN, NAN]], [0.14, 0.0]),
        ([[NAN, NAN], [NAN, NAN]], [0.0, 0.0]),
    ],
)
def test_without_a_score_the_bounds_are_the_interval_and_nothing_known_teaches_nothing(
    bounds: list[list[float]], expected: list[float]
) -> None:
    logits = logits_of(0.3, 0.2)
    terms = RegressionStrategy(PAPER_RECIPE, COUNTS).terms(logits, batch_of((-1, -1), bounds=torch.tensor([bounds])))
    found = [terms[f"interval_{subtype.name}"] for subtype in SUBTYPES]
    assert [float(value.detach()) for value in found] == pytest.approx(expected, abs=1e-6)
    torch.stack(found).sum().backward()
    for part, value in zip(logits, expected, strict=True):
        assert part.grad is not None
        assert bool(part.grad.isfinite().all())
        assert bool(part.grad.any()) == (value > 0)


def test_a_score_counts_before_bounds() -> None:
    bounds = torch.tensor([[[0.9, 1.0], [0.9, 1.0]]])
    assert term(PAPER_RECIPE, "interval_centrilobular", (0.3, 0.2), batch_of((3, 2), bounds=bounds)) == pytest.approx(0.02)


def test_in_one_batch_cases_with_truth_learn_from_voxels_and_the_others_from_intervals() -> None:
    known = batch_of((5, 0), truth=torch.ones(1, 2, *SHAPE))
    weak = batch_of((5, 2), truth=torch.zeros(1, 2, *SHAPE))._replace(has_truth=torch.tensor([False]))
    both = Batch(*(None if a is None or b is None else torch.cat((a, b)) for a, b in zip(known, weak, strict=True)))  # type: ignore[arg-type]
    logits = DenseLogits(*(torch.cat((part, part)) for part in logits_of(0.1, 0.2)))
    terms = VoxelStrategy(PAPER_RECIPE, COUNTS).terms(logits, both)
    for name, term in terms.items():
        assert bool(term[1 if not name.startswith("interval") else 0] == 0), name
    # the weak case: 0.1 against 0.3..1 is 0.55^2 - 0.35^2; 0.2 lies in 0.05..1
    assert terms["interval_centrilobular"].tolist() == pytest.approx([0, 0.18], abs=1e-6)
    assert terms["interval_paraseptal"].tolist() == [0, 0]
    assert terms["cross_entropy_paraseptal"].tolist() == pytest.approx([-math.log(0.2), 0], abs=1e-5)


def class_logits(centrilobular: int, paraseptal: int) -> DenseLogits:
    """Logits that name these scores."""
    parts = []
    for score, subtype in zip((centrilobular, paraseptal), SUBTYPES, strict=True):
        part = torch.zeros(1, len(subtype.grades), *SHAPE)
        part[:, score] = 2.0
        parts.append(part)
    return DenseLogits(*parts)


def test_classification_pools_over_the_whole_volume_and_weighs_by_class() -> None:
    counts = (torch.tensor([1, 3, 0, 0, 0, 0]), torch.tensor([2, 2, 0]))
    terms = ClassificationStrategy(PAPER_RECIPE, counts).terms(class_logits(0, 1), batch_of((0, 1)))
    # weight of centrilobular 0: 4 cases / (2 classes * 1 case); cross-entropy ln(e^2 + 5) - 2 and ln(e^2 + 2) - 2
    expected = [2 * (math.log(math.e**2 + 5) - 2), math.log(math.e**2 + 2) - 2]
    assert [float(value) for value in terms.values()] == pytest.approx(expected)


def test_classification_skips_scores_that_are_not_known() -> None:
    logits = class_logits(0, 1)
    for part in logits:
        part.requires_grad_()
    terms = ClassificationStrategy(PAPER_RECIPE, COUNTS).terms(logits, batch_of((-1, 1)))
    torch.stack(list(terms.values())).sum().backward()
    assert terms["cross_entropy_centrilobular"].tolist() == [0]
    assert terms["cross_entropy_paraseptal"].tolist()[0] > 0
    assert logits.centrilobular.grad is None or not bool(logits.centrilobular.grad.any())


def test_class_weights_follow_the_accuracy_of_the_last_epoch_and_validation_does_not() -> None:
    strategy = ClassificationStrategy(PAPER_RECIPE, (torch.tensor([5, 5, 0, 0, 0, 0]), torch.tensor([5, 5, 0])))
    batch, logits = batch_of((1, 1)), class_logits(0, 0)
    before = strategy.terms(logits, batch)["cross_entropy_centrilobular"]
    validation = strategy.validation_terms(logits, batch)["cross_entropy_centrilobular"]
    right = [torch.tensor([4.0, 1.0, 0, 0, 0, 0]), torch.tensor([5.0, 5.0, 0])]
    seen = [torch.tensor([5.0, 5.0, 0, 0, 0, 0]), torch.tensor([5.0, 5.0, 0])]
    strategy.finish_epoch(right, seen)
    after = strategy.terms(logits, batch)["cross_entropy_centrilobular"]
    assert float(after / before) == pytest.approx(0.8 / 0.5)  # errors 0.2 and 0.8, on a mean of 1
    assert strategy.validation_terms(logits, batch)["cross_entropy_centrilobular"] == validation
    assert strategy.get_buffer("paraseptal_weights").tolist() == pytest.approx([1, 1, 0])


def test_the_released_classification_adds_epochs_up_and_divides_weights_out() -> None:
    strategy = ClassificationStrategy(RELEASED_RECIPE, (torch.tensor([90, 9, 1, 0, 0, 0]), torch.tensor([1, 1, 1])))
    # 1/90 : 1/9 : 1 normalised and clipped, 0.8 for classes without a case
    assert strategy.get_buffer("centrilobular_weights").tolist() == pytest.approx([0.2, 0.2, 0.8, 0.8, 0.8, 0.8])
    # in a batch of one the weight vanishes; the true score's logit is 0, that of score 0 is 2
    loss = strategy.terms(class_logits(0, 1), batch_of((2, 1)))["cross_entropy_centrilobular"]
    assert loss.tolist() == pytest.approx([math.log(math.e**2 + 5)])
    right = [torch.zeros(6), torch.tensor([5.0, 2.0, 5.0])]
    seen = [torch.zeros(6), torch.tensor([10.0, 10.0, 10.0])]
    strategy.finish_epoch(right, seen)
    strategy.finish_epoch(right, seen)
    # errors 0.5, 0.8, 0.5, twice: 0.25 : 0.64 : 0.25
    assert strategy.get_buffer("paraseptal_weights").tolist() == pytest.approx([0.25 / 1.14, 0.64 / 1.14, 0.25 / 1.14])


def test_class_weights_are_part_of_the_state() -> None:
    strategy: Strategy = ClassificationStrategy(PAPER_RECIPE, COUNTS)
    assert {"centrilobular_weights", "paraseptal_weights"} <= set(strategy.state_dict())


def test_scores_are_counted_for_each_subtype() -> None:
    centrilobular, paraseptal = score_counts([Scores(0, 2), Scores(5, 2), Scores(0, 0), Scores(None, None)])
    assert centrilobular.tolist() == [2, 0, 0, 0, 0, 1]
    assert paraseptal.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("leading", "expected"),
    [
        (0, 0.0),  # 0.3 is more than twice 0.1
        (1, math.log(0.301 / 0.101) + math.log(2)),
        (-1, 0.0),
    ],
)
def test_the_subtype_that_leads_has_to_exceed_twice_the_other(leading: int, expected: float) -> None:
    batch = batch_of((-1, -1))._replace(leading=torch.tensor([leading]))
    recipe = replace(PAPER_RECIPE, leading_weight=2.0)
    assert term(recipe, "leading", (0.3, 0.1), batch) == pytest.approx(2 * expected, abs=1e-5)


@pytest.mark.parametrize("strategy", [RegressionStrategy, VoxelStrategy])
@pytest.mark.parametrize(
    ("scores", "bounds", "expected"),
    [
        ((0, 2), UNBOUND, (-math.log(1 - 0.3), 0.0)),
        ((3, -1), torch.tensor([[[math.nan, math.nan], [0.0, 0.01]]]), (0.0, -math.log(1 - 0.1))),
        ((-1, -1), torch.tensor([[[0.0, 0.02], [math.nan, math.nan]]]), (0.0, 0.0)),  # up to 2 % may be there
    ],
)
def test_where_a_subtype_is_absent_each_voxel_of_the_lung_is_without_it(
    strategy: type[RegressionStrategy | VoxelStrategy], scores: tuple[int, int], bounds: Tensor, expected: tuple[float, float]
) -> None:
    recipe = replace(PAPER_RECIPE, absent_weight=2.0)
    terms = strategy(recipe, COUNTS).terms(logits_of(0.3, 0.1), _with_empty_truth(batch_of(scores, bounds=bounds)))
    found = [float(terms[f"absent_{name}"].detach()) for name in ("centrilobular", "paraseptal")]
    assert found == pytest.approx([2 * value for value in expected], abs=1e-5)
    assert not any(
        name.startswith("absent")
        for name in strategy(PAPER_RECIPE, COUNTS).terms(logits_of(0.3, 0.1), _with_empty_truth(batch_of(scores)))
    )


def test_a_surely_wrong_voxel_learns_of_its_absence_what_its_percentage_does_not_teach() -> None:
    """An eighth of the lung at a logit of 12: the sigmoid is flat there."""
    logits = logits_of(0.001, 0.001)
    with torch.no_grad():
        logits.centrilobular[0, 0, 0, 0, 0] = 12.0
    recipe = replace(PAPER_RECIPE, absent_weight=1.0)
    terms = RegressionStrategy(recipe, COUNTS).terms(logits, batch_of((0, 0)))
    slope = {
        name: torch.autograd.grad(terms[name].sum(), logits.centrilobular, retain_graph=True)[0][0, 0, 0, 0, 0]
        for name in ("absent_centrilobular", "interval_centrilobular")
    }
    assert slope["absent_centrilobular"] > 1000 * slope["interval_centrilobular"] >= 0


KEPT = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # Kullback-Leibler divergence of 0.5 from 0.75


@pytest.mark.parametrize("strategy", [RegressionStrategy, VoxelStrategy])
@pytest.mark.parametrize(
    ("scores", "bounds", "leading", "is_kept"),
    [
        ((-1, -1), UNBOUND, -1, True),
        ((5, 2), UNBOUND, -1, True),
        ((4, 2), UNBOUND, -1, False),  # 20 to 30 %, and the anchor has 75
        ((-1, -1), torch.tensor([[[NAN, NAN], [0.0, 0.1]]]), -1, False),
        ((-1, -1), torch.tensor([[[0.7, 1.0], [NAN, NAN]]]), 0, True),
        ((-1, -1), torch.tensor([[[0.8, 1.0], [NAN, NAN]]]), 0, False),
        ((-1, -1), UNBOUND, 1, False),
    ],
)
def test_the_maps_of_an_anchor_are_kept_where_it_agrees_with_all_that_is_known(
    strategy: type[RegressionStrategy | VoxelStrategy],
    scores: tuple[int, int],
    bounds: Tensor,
    leading: int,
    is_kept: bool,
) -> None:
    batch = _with_empty_truth(batch_of(scores, bounds=bounds))._replace(leading=torch.tensor([leading]))
    recipe = replace(PAPER_RECIPE, anchor_weight=2.0)
    terms = strategy(recipe, COUNTS).anchor_terms(logits_of(0.5, 0.2), logits_of(0.75, 0.2), batch)
    found = [float(terms[f"anchor_{name}"].detach()) for name in ("centrilobular", "paraseptal")]
    assert found == pytest.approx([2 * KEPT if is_kept else 0.0, 0.0], abs=1e-6)


def test_where_truth_maps_say_more_an_anchor_says_nothing() -> None:
    batch = batch_of((-1, -1), truth=torch.zeros(1, 2, *SHAPE))
    terms = VoxelStrategy(PAPER_RECIPE, COUNTS).anchor_terms(logits_of(0.5, 0.5), logits_of(0.75, 0.2), batch)
    assert [float(term.detach()) for term in terms.values()] == [0.0, 0.0]


def _with_empty_truth(batch: Batch) -> Batch:
    """A cohort with truth maps, in which this case has none."""
    return batch._replace(truth=torch.zeros(1, 2, *SHAPE))
