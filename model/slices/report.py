"""How a bundle does on labelled slices: Table I's figures, confusion, reliability, and where it looked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from ..errors import InputError, encodable, reason
from ..whole_files import write_files
from . import CLASS_NAMES, CLASSES, TITLES
from .bundle import SliceClassifier, SliceMetadata
from .confidence import ReliabilityBin, calibration_error, reliability
from .dataset import Slices
from .images import Window, as_hounsfield, read_slice
from .inputs import ASPECT, INPUT_SIZE, LungCrop, channels
from .metrics import Performance, Rate, balanced_accuracy, by_patient, measure, wilson

if TYPE_CHECKING:  # only diagrams need it
    from matplotlib.figure import Figure

NEAR_PLEURA_MM = 15.0
LUNGS_WIDTH_MM = 270.0
"""Of both lungs together: pictures do not say how wide a pixel is, so that distances are taken from this."""

WINDOWS = (
    Window(-600, 1500),
    Window(-600, 1600),
    Window(-500, 1400),
    Window(-400, 1400),
    Window(-500, 1500),
    Window(-600, 1200),
    Window(-450, 1100),
    Window(-700, 1500),
    Window(-550, 1800),
    Window(-500, 2000),
)
"""Lung windows that are in use, and some that are wider or clip air or soft tissue."""


@dataclass(frozen=True)
class Evaluation:
    """What a bundle did on labelled slices.

    Attributes:
        performance: of all slices that can be read, uncertain or not.
        balanced: the mean recall of the classes, with the interval that resampling patients (or slices) gives, in percent.
        reliability: bars of the diagram.
        calibration_error: see `model.slices.confidence`.
        answered: share of the slices that got a class.
        right_of_answered: share of those that is right.
        near_pleura: of each class: percent of the attention within 15 mm of the pleura, and of the lungs' area that lies there.
        empty_attention: slices on which the network looked at nothing.
        refused: file, class, why.
        same_in_windows: share of the slices that keep their class over ten windows; None where that was not asked for.
    """

    performance: Performance
    balanced: Rate
    reliability: list[ReliabilityBin]
    calibration_error: float
    answered: Rate
    right_of_answered: Rate
    near_pleura: dict[str, tuple[float, float]]
    empty_attention: int
    refused: tuple[tuple[str, str, str], ...]
    same_in_windows: Rate | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    classifier: SliceClassifier, slices: Slices, folder: Path | None = None, progress: Iterable[int] | None = None
) -> Evaluation:
    """Answer every slice.

    Args:
        folder: where the slices' files are, to show them in other windows too; None to leave that out.
        progress: gives the slices' indices one by one, such as `tqdm`.
    """
    probabilities, near, empty, same = [], [], 0, []
    for index in progress if progress is not None else range(len(slices.labels)):
        pixels = slices.pixels(np.array([index]))
        found = classifier.network.probabilities(pixels, classifier.metadata.temperature)[0].numpy()
        seen = classifier.network.attention(pixels, int(found.argmax())).numpy()
        empty += not seen.any()
        near.append(near_pleura(seen, slices.lungs[index] > 0))
        probabilities.append(found)
        if folder is not None:
            same.append(keeps_class(classifier, as_hounsfield(read_slice(folder / slices.files[index]))))
    by_class = {
        label: (float(np.mean([near[k][0] for k in chosen])), float(np.mean([near[k][1] for k in chosen])))
        for number, label in enumerate(CLASSES)
        if (chosen := np.flatnonzero(slices.labels == number)).size
    }
    return replace(
        summed_up(np.array(probabilities, np.float64), slices, classifier.metadata.uncertain_below),
        near_pleura=by_class,
        empty_attention=empty,
        same_in_windows=wilson(sum(same), len(same)) if same else None,
    )


def summed_up(probabilities: npt.NDArray[np.float64], slices: Slices, uncertain_below: float) -> Evaluation:
    """What answers to slices come to, without where the network looked.

    Args:
        probabilities: N x 4.
    """
    answers = probabilities.argmax(axis=1)
    answered = probabilities.max(axis=1) >= uncertain_below
    right = answers == slices.labels
    owners = np.arange(len(answers)) if slices.patients is None else slices.patients
    bars = reliability(probabilities, slices.labels)
    return Evaluation(
        performance=measure(slices.labels, answers, slices.patients),
        balanced=by_patient(balanced_accuracy, slices.labels, answers, owners),
        reliability=bars,
        calibration_error=calibration_error(bars),
        answered=wilson(int(answered.sum()), len(answered)),
        right_of_answered=wilson(int((right & answered).sum()), int(answered.sum())),
        near_pleura={},
        empty_attention=0,
        refused=slices.refused,
        same_in_windows=None,
    )


def near_pleura(attention: npt.NDArray[np.float32], lungs: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """How much of what a network looked at lies near the lungs' surface.

    Args:
        attention: rows x columns on the crop's grid, of any resolution.
        lungs: 336 x 336, the crop's mask.

    Returns:
        percent of the attention within 15 mm of the lungs' surface, on either side; percent of the lungs' area there.
    """
    zoomed = torch.nn.functional.interpolate(
        torch.from_numpy(attention.astype(np.float32))[None, None], (INPUT_SIZE, INPUT_SIZE), mode="bilinear"
    )[0, 0].numpy()
    columns = np.flatnonzero(lungs.any(axis=0))
    column_mm = LUNGS_WIDTH_MM / (columns[-1] - columns[0] + 1)
    spacing = (column_mm / ASPECT, column_mm)
    distance = np.maximum(
        ndimage.distance_transform_edt(lungs, sampling=spacing), ndimage.distance_transform_edt(~lungs, sampling=spacing)
    )
    near = distance <= NEAR_PLEURA_MM
    total = float(zoomed.sum())
    return 100 * float(zoomed[near].sum()) / total if total > 0 else 0.0, 100 * float((near & lungs).sum() / lungs.sum())


def keeps_class(classifier: SliceClassifier, hounsfield: npt.NDArray[np.float32]) -> bool:
    """Whether a slice gets the same likeliest class in every window, as a grey picture; a refusal is another answer."""
    answers = set()
    for window in WINDOWS:
        try:
            crop = LungCrop.find(as_hounsfield(window.grey(hounsfield)))
        except InputError:
            return False
        pixels = channels(
            torch.from_numpy(crop.hounsfield.astype(np.float32))[None],
            torch.from_numpy(crop.lungs.astype(np.float32) / 255)[None],
        )
        answers.add(int(classifier.network.probabilities(pixels, classifier.metadata.temperature).argmax()))
    return len(answers) == 1


def report(evaluation: Evaluation, metadata: SliceMetadata, name: str) -> str:
    """The whole report, in Markdown; percent, with 95 % intervals."""
    return encodable("\n".join(_lines(evaluation, metadata, name)))


def write_report(folder: Path, text: str, evaluation: Evaluation, metadata: SliceMetadata) -> None:
    """The report, its figures as JSON, the reliability diagram, and the learning curves of networks that have some.

    Raises:
        InputError: a file cannot be written.
    """
    files = {
        "report.md": f"{encodable(text)}\n".encode(),
        "report.json": f"{json.dumps(evaluation.as_json(), indent=2)}\n".encode(),
        "reliability.png": png(reliability_figure(evaluation.reliability)),
    }
    folds = [fold for fold in metadata.training.get("folds", []) if fold["curve"]]
    if folds:
        files["learning-curves.png"] = png(curves_figure(folds))
    write_report_files(folder, files)


def write_report_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a report into its folder, each whole or not at all.

    Raises:
        InputError: one cannot be written.
    """
    try:
        write_files(folder, files)
    except OSError as error:
        raise InputError(
            folder, f"a file of the report cannot be written ({reason(error)})", "a folder with room for it"
        ) from error


def _lines(evaluation: Evaluation, metadata: SliceMetadata, name: str) -> Iterator[str]:
    result = evaluation.performance
    count = int(np.sum(result.confusion))
    yield f"{count} slices of {name}; {metadata.summary}. In percent, with 95 % intervals."
    yield ""
    yield "| architecture | accuracy | balanced accuracy | precision | recall |"
    yield "| --- | --- | --- | --- | --- |"
    yield (
        f"| {TITLES[metadata.architecture]} | {result.accuracy} | {evaluation.balanced} "
        f"| {result.precision:.1f} | {result.recall:.1f} |"
    )
    yield ""
    yield "| class | slices | recall | precision | " + " | ".join(f"called {label}" for label in CLASSES) + " |"
    yield "| --- " * (4 + len(CLASSES)) + "|"
    for label, row in zip(CLASSES, result.confusion, strict=True):
        recall, precision = result.class_recall[label], result.class_precision[label]
        cells = " | ".join(map(str, row))
        yield f"| {label}, {CLASS_NAMES[label]} | {sum(row)} | {recall} | {precision} | {cells} |"
    yield ""
    yield f"Answered with a class (probability of at least {metadata.uncertain_below:.3f}): {evaluation.answered};"
    yield f'right of those: {evaluation.right_of_answered}. The others are answered "uncertain".'
    yield ""
    error = 100 * evaluation.calibration_error
    yield f"Reliability (expected calibration error {error:.1f} points, temperature {metadata.temperature:.2f}):"
    yield ""
    yield "| probability of the likeliest class | slices | mean probability | right |"
    yield "| --- | --- | --- | --- |"
    for bar in evaluation.reliability:
        if bar.count:
            yield f"| {bar.low:.1f} to {bar.high:.1f} | {bar.count} | {100 * bar.confidence:.1f} | {100 * bar.accuracy:.1f} |"
    if evaluation.near_pleura:
        yield ""
        yield f"Grad-CAM within {NEAR_PLEURA_MM:.0f} mm of the lungs' surface, and the share of the lungs' area that lies there"
        yield f"(both lungs taken for {LUNGS_WIDTH_MM:.0f} mm wide; empty on {evaluation.empty_attention} slices):"
        yield ""
        yield "| class | of what the network looked at | of the lungs |"
        yield "| --- | --- | --- |"
        for label, (seen, area) in evaluation.near_pleura.items():
            yield f"| {label} | {seen:.0f} | {area:.0f} |"
    if evaluation.same_in_windows is not None:
        yield ""
        yield f"The same class in all of {len(WINDOWS)} windows: {evaluation.same_in_windows}."
    if evaluation.refused:
        yield ""
        yield f"Refused, and not counted above: {len(evaluation.refused)}."
        for file, _, why in evaluation.refused:
            yield f"- {file}: {why}"


def reliability_figure(bars: Sequence[ReliabilityBin]) -> Figure:
    """Accuracy against the probability of the likeliest class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    shown = [bar for bar in bars if bar.count]
    axes.bar(
        [bar.low for bar in shown],
        [bar.accuracy for bar in shown],
        1 / len(bars),
        align="edge",
        color="#9db8d6",
        edgecolor="white",
    )
    axes.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--")
    axes.plot([bar.confidence for bar in shown], [bar.accuracy for bar in shown], "o", color="#1f4e79", markersize=4)
    for bar in shown:
        axes.text(bar.low + 0.5 / len(bars), 0.02, str(bar.count), ha="center", fontsize=6)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the likeliest class", ylabel="share that is right")
    return figure


def curves_figure(folds: Sequence[dict[str, Any]]) -> Figure:
    """Learning curves: loss of training, and loss and accuracy of the slices set aside, a line each fold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, fold in enumerate(folds, start=1):
        colour = f"C{number - 1}"
        epochs = [point["epoch"] for point in fold["curve"]]
        left.plot(epochs, [point["loss"] for point in fold["curve"]], color=colour, linestyle=":", linewidth=1)
        measured = [point for point in fold["curve"] if point["validation_loss"] is not None]
        epochs = [point["epoch"] for point in measured]
        left.plot(epochs, [point["validation_loss"] for point in measured], color=colour, linewidth=1)
        right.plot(
            epochs,
            [100 * point["validation_accuracy"] for point in measured],
            color=colour,
            linewidth=1,
            label=f"fold {number}",
        )
    left.set(xlabel="epoch", ylabel="loss (dotted: training)")
    right.set(xlabel="epoch", ylabel="set aside, right (%)")
    right.legend(fontsize=7)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"font.size": 8}):
        figure.savefig(stream, format="png", dpi=200)
    return stream.getvalue()
