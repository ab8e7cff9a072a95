"""What the paper's text says about training, what the published code does instead, and every difference as an option."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _option(help_text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the paper's text ("Algorithm training").

    Every field but the name is an option of `train.py` under its own name.

    Raises:
        ValueError: a number that no training can use.
    """

    name: str = "paper"
    epochs: int = _option("epochs at most", 200)
    patience: int = _option("epochs without improvement on the validation set after which training stops", 10)
    batch: int = _option("cases in a batch, on each device", 4)
    learning_rate: float = _option("of Adam, in the first epoch", 1e-5)
    decay: float = _option("what the learning rate is multiplied by after each epoch", 0.9)
    interval_weight: float = _option("weight of the interval loss (equation 1)", 1.0)
    percentage_scale: float = _option("fractions p become SCALE * p^EXPONENT before the interval loss", 1.0)
    percentage_exponent: float = _option("see --percentage-scale; below 1, low grades count more", 1.0)
    class_weighted_intervals: bool = _option(
        "weigh the interval loss by class: balanced weights, normalised, clipped to 0.2-0.8", False
    )
    leading_weight: float = _option("weight of the loss for cases of which only the leading subtype is known", 0.5)
    absent_is_zero: bool = _option("score 0 means 0 % exactly, instead of 0 to 1 %", False)
    overlap_weight: float = _option("weight of the overlap loss (equation 2)", 1.0)
    overlap_in_lung: bool = _option("the overlap loss counts voxels inside the lung only", False)
    smoothness: float = _option("the factor s of the segmentation loss (equation 3); the paper gives no value", 1.0)
    empty_target_if_absent: bool = _option("no low-attenuation target for scans that score 0 on both subtypes", False)
    uniform_centrilobular: bool = _option("draw training cases so that every centrilobular score is as likely", False)
    initial_activation: float = _option("what untrained regression maps start near, 0 to 1; neither source says", 0.05)

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch", "learning_rate", "decay", "percentage_scale", "percentage_exponent"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0")
        for name in ("interval_weight", "leading_weight", "overlap_weight", "smoothness"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not 0 < self.initial_activation < 1:
            raise ValueError(f"initial_activation is {self.initial_activation}, expected a number between 0 and 1")


PAPER_RECIPE = Recipe()
"""The text of the paper."""

RELEASED_RECIPE = Recipe(
    name="released",
    decay=0.95,
    interval_weight=10.0,
    percentage_scale=0.7338,
    percentage_exponent=0.2578,
    class_weighted_intervals=True,
    absent_is_zero=True,
    overlap_weight=2.0,
    overlap_in_lung=True,
    smoothness=0.85,
    empty_target_if_absent=True,
    uniform_centrilobular=True,
)
"""What the code that the authors published does, where it departs from the text."""

RECIPES = {recipe.name: recipe for recipe in (PAPER_RECIPE, RELEASED_RECIPE)}

OPTIONS = tuple(option for option in fields(Recipe) if option.name != "name")
"""The fields that are options of the command line."""
