"""The command line: `python -m model.slices simulate|train|compare|predict|evaluate`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tqdm import tqdm

from .. import SHIPPED_WEIGHTS
from ..command_line import LARGEST_SEED, DeviceName, OneLineParser, exit_code, module_command, whole_number
from ..errors import InputError, encodable
from ..whole_files import try_folder
from . import ARCHITECTURES, CLASS_NAMES, CLASSES, LUNG_ARCHITECTURES, PAPER_ARCHITECTURES, PART_NAMES, LungArchitecture
from .settings import Settings

# Keras and torch take seconds to import: commands that need them import them themselves.
if TYPE_CHECKING:
    from .dataset import Slices, SplitName

SHIPPED_BUNDLE = SHIPPED_WEIGHTS / "slices"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=module_command("slices"), description="Classify single CT slices as CLE, PLE, PSE or NT.")
    commands = parser.add_subparsers(dest="command", required=True)

    simulate = commands.add_parser("simulate", help="make labelled slices of simulated patients")
    simulate.add_argument("--images", type=whole_number(len(CLASSES)), required=True, metavar="N", help="447 as the paper has")
    simulate.add_argument("--seed", type=whole_number(0), required=True, metavar="S", help="same seed, same slices")
    simulate.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="a new or empty folder; it appears whole at the end"
    )
    simulate.add_argument(
        "--slices-per-patient", type=whole_number(1), default=8, metavar="K", help="at most; default: %(default)s"
    )
    simulate.add_argument("--workers", type=whole_number(1), default=1, metavar="K", help="processes; the result is the same")

    train = commands.add_parser("train", help="train one architecture, and write it as a bundle")
    train.add_argument("--architecture", choices=ARCHITECTURES, default="texture", help="default: %(default)s")
    train.add_argument("--output", type=Path, required=True, metavar="BUNDLE")
    train.add_argument(
        "--split",
        choices=("image", "patient"),
        help="of the paper's architectures: what is set aside to measure on, patients where they are known (default), or "
        "images, as the paper does; the others are measured in five folds by patient",
    )
    train.add_argument("--name", default=None, help="what the slices are, for the bundle; default: the folder's name")
    train.add_argument("--report", type=Path, metavar="DIR", help="of the added networks: write the report and diagrams there")
    compare = commands.add_parser("compare", help="train all architectures, and print a table like the paper's Table I")
    compare.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=[*PAPER_ARCHITECTURES, "texture"])
    compare.add_argument(
        "--folds", type=whole_number(1), default=5, help="of the split by patient, at most five; default: %(default)s"
    )
    compare.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the report and diagrams there too, and each network's answers as soon as it is trained: the same command "
        "goes on where it was stopped",
    )
    compare.add_argument(
        "--parts",
        nargs="+",
        choices=PART_NAMES,
        default=PART_NAMES,
        metavar="PART",
        help=f"train these now, of {', '.join(PART_NAMES)}: several commands with one --output share the work",
    )
    for command, weights in (
        (train, "a .h5 file of base weights (.pth for texture)"),
        (compare, "a folder of such files"),
    ):
        command.add_argument(
            "--data", type=Path, required=True, metavar="DIR", help=f"a folder a class ({', '.join(CLASSES)}); patients.csv"
        )
        command.add_argument("--base-weights", metavar="WEIGHTS", help=f"{weights}, or `imagenet` to download; default: none")
        command.add_argument(
            "--fine-tune", action="store_true", help="of texture: its blocks learn too, as in the included one; hours on a CPU"
        )
        command.add_argument(
            "--epochs", type=whole_number(1), help="at most; default: 20 for the paper's, 40 for residual, 24 with --fine-tune"
        )
        command.add_argument(
            "--patience", type=whole_number(1), help="of the paper's: stop after so many epochs without improvement"
        )
        command.add_argument("--batch-size", type=whole_number(1), default=32, help="of the paper's; default: %(default)s")
        command.add_argument(
            "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="of initial weights and augmentation"
        )
        command.add_argument("--device", choices=get_args(DeviceName), default="auto", help="default: a GPU if there is one")

    predict = commands.add_parser("predict", help="classify slices")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a picture, one DICOM file, or a volume")
    predict.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="default: the included one")
    predict.add_argument("--slice", type=whole_number(1), metavar="N", help="of volumes, the axial slice, from 1 at the base")
    predict.add_argument("--json", action="store_true", help="print a list of objects")

    evaluate = commands.add_parser("evaluate", help="report how a bundle does on a folder of labelled slices")
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR", help=f"a folder a class ({', '.join(CLASSES)})")
    evaluate.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="default: the included one")
    evaluate.add_argument("--windows", action="store_true", help="also show each slice in ten windows: does it keep its class?")
    evaluate.add_argument("--output", type=Path, metavar="DIR", help="write report.json, report.md and two diagrams there too")
    return parser


def _simulate(options: argparse.Namespace) -> None:
    from .dataset import PATIENTS_FILE
    from .simulated import make_slices

    names = make_slices(options.images, options.seed, options.output, options.slices_per_patient, options.workers)
    for _ in tqdm(names, total=options.images, unit="slice", desc="simulating", disable=None):
        pass
    print(options.output / PATIENTS_FILE)


def _settings(options: argparse.Namespace) -> Settings:
    from ..subtyping import choose_device

    device, notes = choose_device(options.device)
    _say(notes)
    return Settings(
        epochs=options.epochs,
        patience=options.patience,
        batch_size=options.batch_size,
        seed=options.seed,
        device=device.type,
        fine_tune=options.fine_tune,
    )


def _read(folder: Path) -> Slices:
    from .dataset import read_slices

    slices = read_slices(folder, lambda files: tqdm(files, unit="slice", desc="reading", disable=None))
    for file, _, why in slices.refused:
        print(f"{file} is left out: {why}", file=sys.stderr)
    if slices.passed_over:
        others = f"{len(slices.passed_over)} in the folders of the classes are no PNG, JPEG or DICOM slices and are left out"
        print(f"{others}: {', '.join(slices.passed_over[:3])}{', …' if slices.passed_over[3:] else ''}", file=sys.stderr)
    return slices


def _train(options: argparse.Namespace) -> None:
    from .bundle import SliceMetadata, check_bundle_place, write_bundle
    from .comparison import Trial, check_base, class_table, table
    from .metrics import measure
    from .parts import notes_on_validation, splits_of

    if options.report and options.report.resolve().is_relative_to(options.output.resolve()):
        raise InputError("--report", f"{options.report} lies in the bundle's folder", "a folder outside of --output")
    check_base(options.architecture, options.base_weights)
    check_bundle_place(options.output)
    if options.fine_tune and options.architecture != "texture":
        raise InputError("--fine-tune", f"cannot be used for {options.architecture}", "--architecture texture")
    if options.report and options.architecture in LUNG_ARCHITECTURES:
        try_folder(options.report)  # before hours of training, not behind them
    slices = _read(options.data)
    _say_what_is_missing(options.base_weights, slices.patients is not None)
    if options.architecture in LUNG_ARCHITECTURES:
        _train_folds(options, slices)
        return
    name: SplitName = options.split or ("image" if slices.patients is None else "patient")
    splits = splits_of(slices, folds=1, kinds=[name])
    if name not in splits:
        raise InputError(options.data, "the patients are not known", "patients.csv in it, or --split image")
    (split,) = splits[name]
    if options.patience is not None:
        _say(notes_on_validation(slices, [split]))
    from .training import predict, train  # Keras takes seconds to import

    network, curve = train(options.architecture, slices, split, _settings(options), options.base_weights)
    patients = None if slices.patients is None else slices.patients[split.test]
    answers = predict(network, slices, split.test).argmax(axis=1)
    trial = Trial(options.architecture, name, measure(slices.labels[split.test], answers, patients), (len(curve),))
    metadata = SliceMetadata(
        architecture=options.architecture,
        trained_on=options.name or options.data.resolve().name,
        base_weights=_described(options.base_weights),
        training={
            "slices": len(split.train),
            "split": name,
            "epochs": len(curve),
            "seed": options.seed,
            "curve": [asdict(point) for point in curve],
        },
        performance=trial.performance.as_json(),
    )
    write_bundle(options.output, network, metadata)
    print(f"{table([trial])}\n\n{class_table([trial])}\n\n{options.output}")


def _train_folds(options: argparse.Namespace, slices: Slices) -> None:
    """Five networks, each without a fifth of the patients: what they say of those gives figures, temperature and threshold."""
    from .bundle import SliceMetadata, write_bundle
    from .cross_validation import together, train_folds
    from .parts import splits_of
    from .report import report, summed_up, write_report

    architecture: LungArchitecture = options.architecture
    splits = splits_of(slices, folds=5, kinds=["patient"])
    if "patient" not in splits:
        raise InputError(options.data, "the patients are not known", "patients.csv in it")
    weights = None if options.base_weights is None else Path(options.base_weights)
    folds, networks = train_folds(
        architecture, slices, splits["patient"], _settings(options), weights, lambda text: print(text, file=sys.stderr)
    )
    result = together(slices, folds)
    metadata = SliceMetadata(
        architecture=architecture,
        trained_on=options.name or options.data.resolve().name,
        base_weights=_described(options.base_weights),
        members=len(networks),
        temperature=result.temperature,
        uncertain_below=result.uncertain_below,
        training={
            "slices": len(slices.labels),
            "split": "patient, five folds",
            "seed": options.seed,
            "fine_tuned": options.fine_tune,
            "folds": result.by_fold(slices),
        },
        performance=result.performance.as_json(),
    )
    write_bundle(options.output, networks, metadata)
    evaluation = summed_up(result.probabilities, slices, result.uncertain_below)
    text = report(evaluation, metadata, f"{metadata.trained_on}, each answered by the fold without its patient")
    if options.report:
        write_report(options.report, text, evaluation, metadata)
    print(f"{text}\n\n{options.output}")


def _compare(options: argparse.Namespace) -> None:
    from .comparison import (
        base_file,
        check_base,
        class_table,
        compare,
        confusion_table,
        reliability_table,
        table,
        try_base,
        write_comparison,
    )
    from .parts import KeptParts, notes_on_validation, parts_of

    settings = _settings(options)
    if options.output:  # before hours of training, not behind them
        try_folder(options.output)
    files = {architecture: base_file(options.base_weights, architecture) for architecture in options.architectures}
    for check in (check_base, try_base):  # first what takes no time
        for architecture, file in files.items():
            check(architecture, file)
    slices = _read(options.data)
    notes = _say_what_is_missing(options.base_weights, slices.patients is not None)
    if options.fine_tune:
        notes.append("the texture network's blocks are trained too")
    if options.patience is not None and set(options.architectures) & set(PAPER_ARCHITECTURES):
        on_validation = notes_on_validation(
            slices, [part.split for part in parts_of(slices, options.folds) if part.name in options.parts]
        )
        _say(on_validation)
        notes += on_validation
    kept = None
    if options.output:
        kept = KeptParts(options.output, slices, settings, {name: _described(file) for name, file in files.items()})
        kept.make_folder()
    trials = []
    for trial in compare(slices, options.architectures, settings, files, options.folds, kept, options.parts):
        trials.append(trial)
        print(f"{trial.architecture}, split by {trial.split}: accuracy {trial.performance.accuracy}", file=sys.stderr)
    text = "\n\n".join(part(trials) for part in (table, class_table, confusion_table, reliability_table)) + "\n"
    print(text)
    if options.output:
        write_comparison(options.output, text, trials, {"slices": len(slices.labels), "seed": options.seed, "notes": notes})


def _evaluate(options: argparse.Namespace) -> None:
    from .bundle import SliceClassifier
    from .report import evaluate, report, write_report

    classifier = SliceClassifier.from_bundle(options.bundle)
    if options.output:
        try_folder(options.output)
    slices = _read(options.data)
    indices = tqdm(range(len(slices.labels)), unit="slice", desc="answering", disable=None)
    evaluation = evaluate(classifier, slices, options.data if options.windows else None, indices)
    text = report(evaluation, classifier.metadata, options.data.resolve().name)
    print(text)
    if options.output:
        write_report(options.output, text, evaluation, classifier.metadata)


def _say_what_is_missing(base_weights: str | None, patients_known: bool) -> list[str]:
    notes = []
    if base_weights is None:
        notes.append("no --base-weights: every network is trained from scratch, not by transfer learning")
    if not patients_known:
        notes.append("the patients are not known: slices of one patient may be trained on and measured on, which flatters")
    _say(notes)
    return notes


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr)


def _described(base_weights: Path | str | None) -> str | None:
    if base_weights is None or not Path(base_weights).is_file():
        return None if base_weights is None else str(base_weights)
    return f"{Path(base_weights).name}, sha256 {hashlib.sha256(Path(base_weights).read_bytes()).hexdigest()}"


def _predict(options: argparse.Namespace) -> None:
    from .bundle import SliceClassifier
    from .images import read_slice

    levels = [read_slice(path, options.slice) for path in options.images]
    classifier = SliceClassifier.from_bundle(options.bundle)
    answers = []
    for path, level in zip(options.images, levels, strict=True):
        try:
            answers.append(classifier.predict(level))
        except InputError as error:
            raise InputError(path, error.found, error.expected) from error
    if options.json:
        rows = [
            {"image": str(path), "class": answer.label, "likeliest": answer.likeliest, "probabilities": answer.probabilities}
            for path, answer in zip(options.images, answers, strict=True)
        ]
        print(json.dumps(rows, indent=2))
        return
    for path, answer in zip(options.images, answers, strict=True):
        shares = ", ".join(f"{label} {100 * share:.1f} %" for label, share in answer.probabilities.items())
        name = f"no class reaches {100 * classifier.metadata.uncertain_below:.0f} %"
        print(f"{encodable(str(path))}: {answer.label} ({name if answer.uncertain else CLASS_NAMES[answer.label]}); {shares}")
    print(f"network: {classifier.metadata.summary}")


COMMANDS = {
    "simulate": _simulate,
    "train": _train,
    "compare": _compare,
    "predict": _predict,
    "evaluate": _evaluate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: as of `exit_code`."""
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: COMMANDS[options.command](options), getattr(options, "output", None))


if __name__ == "__main__":
    sys.exit(main())
