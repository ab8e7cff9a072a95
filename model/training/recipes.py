"""What the paper's text says about training, what the published code does instead, and every difference as an option."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

Monitor = Literal["kappa", "loss", "separation", "training-loss"]
MONITORS = {
    "kappa": ("validation/kappa", "max"),
    "loss": ("validation/loss", "min"),
    "separation": ("validation/separation", "max"),
    "training-loss": ("train/loss", "min"),
}
"""The logged figure that early stopping and the best checkpoint follow, and which way is better."""

AugmentationName = Literal["paper", "released"]
"""A key of `model.training.augmentation.RANGES`."""


def _help(text: str) -> dict[str, str]:
    return {"help": text}


def _option(help_text: str, default: Any) -> Any:
    return field(default=default, metadata=_help(help_text))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the paper's text ("Algorithm training").

    Every field but the name is an option of `train.py` under its own name. Where a field names no equation, the paper's value
    is the one that changes nothing.

    Raises:
        ValueError: a number that no training can use.
    """

    name: str = "paper"
    epochs: int = _option("epochs at most", 200)
    patience: int = _option("epochs without improvement of --monitor after which training stops", 10)
    monitor: Monitor = field(
        default="kappa",
        metadata=_help(
            "what early stopping and the best epoch follow: on the validation set mean linear weighted kappa, loss, or how "
            "well percentages separate cases that must have a subtype from cases that cannot; or the loss on the training set"
        ),
    )
    batch: int = _option("cases in a batch, on each device", 4)
    learning_rate: float = _option("of Adam, in the first epoch", 1e-5)
    decay: float = _option("what the learning rate is multiplied by after each epoch", 0.9)
    weight_decay: float = _option("of Adam (L2)", 0.0)
    kaiming_fan_out: bool = _option("draw the first weights of convolutions from Kaiming's normal distribution, fan-out", False)
    initial_activation: float = _option(
        "what untrained regression maps start near, above 0 to below 1; 0: left to chance; the paper does not say", 0.05
    )
    interval_weight: float = _option("weight of the interval loss (equation 1)", 1.0)
    sum_intervals: bool = _option("interval losses are summed over the cases of a batch, instead of averaged", False)
    percentage_scale: float = _option("fractions p become SCALE * p^EXPONENT before the interval loss", 1.0)
    percentage_exponent: float = _option("see --percentage-scale; below 1, low grades count more", 1.0)
    class_weighted_intervals: bool = _option(
        "weigh the interval loss by class: balanced weights, normalised, clipped to 0.2-0.8", False
    )
    leading_weight: float = _option(
        "weight of the loss for scans with a leading cell: its percentage has to be at least twice the other's", 0.5
    )
    absent_weight: float = _option(
        "weight of the cross-entropy of voxels where a subtype is absent from the lung (at most 1 %): each is without it",
        0.0,
    )
    anchor_weight: float = _option(
        "weight of the divergence of the maps from those of --anchor: mean over the lung, of both subtypes",
        10.0,
    )
    absent_is_zero: bool = _option("score 0 means 0 % exactly, instead of 0 to 1 %", False)
    overlap_weight: float = _option("weight of the overlap loss (equation 2)", 1.0)
    overlap_in_lung: bool = _option("the overlap loss counts voxels inside the lung only", False)
    smoothness: float = _option("the factor s of the segmentation loss (equation 3); the paper gives no value", 1.0)
    smoothness_in_lung: bool = _option("the factor s holds inside the lung only; outside it is 1", False)
    segmentation_foreground: float = _option(
        "weight of low-attenuation voxels in the segmentation loss, 0 to 1; the other voxels have 1 less that", 0.5
    )
    label_smoothing: float = _option(
        "share of the segmentation loss's target that is spread evenly over both answers (Szegedy et al. 2016, which the paper "
        "cites for equation 3 but does not print)",
        0.0,
    )
    empty_target_if_absent: bool = _option("no low-attenuation target for scans that score 0 on both subtypes", False)
    clipped_class_weights: bool = _option(
        "class weights of classification start at those of --class-weighted-intervals, instead of the inverse class frequency",
        False,
    )
    cumulative_class_weights: bool = _option(
        "multiply class weights by 1 - accuracy after each epoch, so that epochs add up, instead of starting from the first "
        "weights each time",
        False,
    )
    divide_class_weights: bool = _option(
        "divide class-weighted losses by the sum of the batch's weights, as torch does: in a batch of one, weights vanish",
        False,
    )
    uniform_centrilobular: bool = _option("draw training cases so that every centrilobular score is as likely", False)
    draws_per_score: int = _option(
        "draws of an epoch for each centrilobular score, with --uniform-centrilobular; 0: as many draws in all as cases",
        0,
    )
    augmentation: AugmentationName = field(
        default="paper",
        metadata=_help(
            "random changes of training scans: all kinds that the paper names and sharpening, or those of the published code"
        ),
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch", "learning_rate", "decay", "percentage_scale", "percentage_exponent"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0")
        for name in (
            "interval_weight",
            "leading_weight",
            "absent_weight",
            "anchor_weight",
            "overlap_weight",
            "smoothness",
            "weight_decay",
            "draws_per_score",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("initial_activation", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to below 1")
        if not 0 < self.segmentation_foreground < 1:
            raise ValueError(f"segmentation_foreground is {self.segmentation_foreground}, expected a number between 0 and 1")


PAPER_RECIPE = Recipe()
"""The text of the paper."""

RELEASED_RECIPE = Recipe(
    name="released",
    epochs=120,
    patience=120,  # it has no early stopping
    monitor="training-loss",
    batch=1,
    learning_rate=1e-4,
    decay=0.95,
    kaiming_fan_out=True,
    initial_activation=0.0,
    interval_weight=10.0,
    sum_intervals=True,
    percentage_scale=0.7338,
    percentage_exponent=0.2578,
    class_weighted_intervals=True,
    absent_is_zero=True,
    overlap_weight=2.0,
    overlap_in_lung=True,
    smoothness=0.85,
    smoothness_in_lung=True,
    segmentation_foreground=0.3,
    empty_target_if_absent=True,
    clipped_class_weights=True,
    cumulative_class_weights=True,
    divide_class_weights=True,
    uniform_centrilobular=True,
    draws_per_score=128,
    augmentation="released",
)
"""What the code that the authors published does, where it departs from the text.

It reads a weight decay of 1e-5 from its command line and hands none to Adam, so that it is 0 here too. The weight of
low-attenuation voxels is clamp(1 - sum of targets / cases, 0.3, 0.7) there: 0.3 as soon as a scan has one such voxel.
"""

RECIPES = {recipe.name: recipe for recipe in (PAPER_RECIPE, RELEASED_RECIPE)}

OPTIONS = tuple(option for option in fields(Recipe) if option.name != "name")
"""The fields that are options of the command line."""
