"""The command line: `python -m model.slices simulate|train|compare|predict`."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tqdm import tqdm

from .. import SHIPPED_WEIGHTS
from ..command_line import OneLineParser, module_command
from ..errors import InputError
from . import ARCHITECTURES, CLASS_NAMES, CLASSES
from .dataset import PATIENTS_FILE, SplitName
from .images import FORMATS, LUNG_WINDOW, Window

# Keras and torch take seconds to import: commands that need them import them themselves.
if TYPE_CHECKING:
    from .training import Settings

SHIPPED_BUNDLE = SHIPPED_WEIGHTS / "slices"


def _whole(lowest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {lowest}")
        return int(text)

    return parse


def _hounsfield(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r}: expected HU")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=module_command("slices"), description="Classify single HRCT slices as CLE, PLE, PSE or NT.")
    commands = parser.add_subparsers(dest="command", required=True)

    simulate = commands.add_parser("simulate", help="make labelled slices of simulated patients")
    simulate.add_argument("--images", type=_whole(len(CLASSES)), required=True, metavar="N", help="447 as the paper has")
    simulate.add_argument("--seed", type=_whole(0), required=True, metavar="S", help="same seed, same slices")
    simulate.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    simulate.add_argument("--slices-per-patient", type=_whole(1), default=8, metavar="K", help="at most; default: %(default)s")
    simulate.add_argument("--workers", type=_whole(1), default=1, metavar="K", help="processes; the result is the same")

    train = commands.add_parser("train", help="train one architecture, and write it as a bundle")
    train.add_argument("--architecture", choices=ARCHITECTURES, default="inception_v3", help="default: %(default)s")
    train.add_argument("--output", type=Path, required=True, metavar="BUNDLE")
    train.add_argument(
        "--split",
        choices=get_args(SplitName),
        help="what is set aside to measure on: patients where they are known (default), or images, as the paper does",
    )
    train.add_argument("--name", default=None, help="what the slices are, for the bundle; default: the folder's name")
    compare = commands.add_parser("compare", help="train all architectures, and print a table like the paper's Table I")
    compare.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    compare.add_argument("--output", type=Path, metavar="DIR", help="write comparison.json and comparison.md there too")
    for command, weights in ((train, "a .h5 file of base weights"), (compare, "a folder with one such file an architecture")):
        command.add_argument(
            "--data", type=Path, required=True, metavar="DIR", help=f"a folder a class ({', '.join(CLASSES)}); {PATIENTS_FILE}"
        )
        command.add_argument("--base-weights", metavar="WEIGHTS", help=f"{weights}, or `imagenet` to download; default: none")
        command.add_argument("--epochs", type=_whole(1), default=20, help="default: %(default)s")
        command.add_argument("--batch-size", type=_whole(1), default=32, help="default: %(default)s")
        command.add_argument("--seed", type=_whole(0), default=0, help="of initial weights and augmentation")
        _add_window(command)

    predict = commands.add_parser("predict", help="classify slices")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help=FORMATS)
    predict.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="default: the included one")
    predict.add_argument("--slice", type=_whole(1), metavar="N", help="of volumes, the axial slice, from 1 at the base")
    predict.add_argument("--json", action="store_true", help="print a list of objects")
    _add_window(predict)
    return parser


def _add_window(command: argparse.ArgumentParser) -> None:
    for name, value in (("--window-centre", LUNG_WINDOW.centre), ("--window-width", LUNG_WINDOW.width)):
        command.add_argument(name, type=_hounsfield, default=value, metavar="HU", help="default: %(default)s")


def _window(options: argparse.Namespace) -> Window:
    try:
        return Window(options.window_centre, options.window_width)
    except ValueError as error:
        raise InputError("--window-width", str(error), "HU above 0") from error


def _simulate(options: argparse.Namespace) -> None:
    from .simulated import make_slices

    names = make_slices(options.images, options.seed, options.output, options.slices_per_patient, options.workers)
    for _ in tqdm(names, total=options.images, unit="slice", desc="simulating", disable=None):
        pass
    print(options.output / PATIENTS_FILE)


def _settings(options: argparse.Namespace) -> Settings:
    from .training import Settings

    return Settings(epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)


def _train(options: argparse.Namespace) -> None:
    from .bundle import SliceMetadata, check_bundle_place, write_bundle
    from .comparison import Trial, assess, class_table, splits_of, table
    from .dataset import read_slices
    from .training import train

    check_bundle_place(options.output)
    slices = read_slices(options.data, _window(options))
    splits = splits_of(slices)
    name: SplitName = options.split or ("patient" if "patient" in splits else "image")
    if name not in splits:
        raise InputError(options.data, "the patients are not known", f"{PATIENTS_FILE} in it, or --split image")
    _say_what_is_missing(options.base_weights, slices.patients is not None)
    network = train(options.architecture, slices, splits[name], _settings(options), options.base_weights)
    trial = Trial(options.architecture, name, assess(network, slices, splits[name]))
    metadata = SliceMetadata(
        architecture=options.architecture,
        trained_on=options.name or options.data.resolve().name,
        base_weights=_described(options.base_weights),
        training={"slices": len(splits[name].train), "split": name, "epochs": options.epochs, "seed": options.seed},
        performance=trial.performance.as_json(),
    )
    write_bundle(options.output, network, metadata)
    print(f"{table([trial])}\n\n{class_table([trial])}\n\n{options.output}")


def _compare(options: argparse.Namespace) -> None:
    from .comparison import class_table, compare, table
    from .dataset import read_slices

    if options.output:
        _make_report_folder(options.output)
    slices = read_slices(options.data, _window(options))
    notes = _say_what_is_missing(options.base_weights, slices.patients is not None)
    trials = []
    for trial in compare(slices, options.architectures, _settings(options), options.base_weights):
        trials.append(trial)
        print(f"{trial.architecture}, split by {trial.split}: accuracy {trial.performance.accuracy}", file=sys.stderr)
    text = f"{table(trials)}\n\n{class_table(trials)}\n"
    print(text)
    if options.output:
        rows = [{"architecture": t.architecture, "split": t.split, **t.performance.as_json()} for t in trials]
        document = {
            "slices": len(slices.labels),
            "epochs": options.epochs,
            "seed": options.seed,
            "notes": notes,
            "trials": rows,
        }
        (options.output / "comparison.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (options.output / "comparison.md").write_text(text, encoding="utf-8")


def _make_report_folder(folder: Path) -> None:
    """Make it before hours of training, not behind them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be created ({error.strerror})", "a folder that can be written") from error


def _say_what_is_missing(base_weights: str | None, patients_known: bool) -> list[str]:
    notes = []
    if base_weights is None:
        notes.append("no --base-weights: every network is trained from scratch, not by transfer learning")
    if not patients_known:
        notes.append("the patients are not known: slices of one patient may be trained on and measured on, which flatters")
    for note in notes:
        print(note, file=sys.stderr)
    return notes


def _described(base_weights: str | None) -> str | None:
    if base_weights is None or not Path(base_weights).is_file():
        return base_weights
    return f"{Path(base_weights).name}, sha256 {hashlib.sha256(Path(base_weights).read_bytes()).hexdigest()}"


def _predict(options: argparse.Namespace) -> None:
    from .bundle import SliceClassifier
    from .images import read_slice

    pictures = [read_slice(path, options.slice, _window(options)) for path in options.images]
    classifier = SliceClassifier.from_bundle(options.bundle)
    answers = [classifier.predict(picture) for picture in pictures]
    if options.json:
        rows = [
            {"image": str(path), "class": answer.label, "probabilities": answer.probabilities}
            for path, answer in zip(options.images, answers, strict=True)
        ]
        print(json.dumps(rows, indent=2))
        return
    for path, answer in zip(options.images, answers, strict=True):
        shares = ", ".join(f"{label} {100 * share:.1f} %" for label, share in answer.probabilities.items())
        print(f"{path}: {answer.label} ({CLASS_NAMES[answer.label]}); {shares}")
    print(f"network: {classifier.metadata.summary}")


COMMANDS = {"simulate": _simulate, "train": _train, "compare": _compare, "predict": _predict}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 for an argument or a file that cannot be used."""
    options = build_parser().parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
