"""A cohort of simulated cases on disk: laid out as the platform does, with the truth and a table of what was drawn.

The layout is that of `model.cohort.layout`; `truth` holds `panlobular.mha` too where it was asked for. Until the last case is
made, the folder also holds `unfinished.jsonl`, by which the same command goes on where it was stopped.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import __version__
from ..cohort.layout import REFERENCE_FILE, ct_path, lung_mask_path, truth_path
from ..cohort.processes import process_pool
from ..cohort.tables import GRID_COLUMN, Extent, reference_row
from ..errors import InputError, reason
from ..imaging.writing import write_image
from ..whole_files import FolderInUseError, check_free, locked, try_folder, whole_file, whole_folder
from .case import Look, SimulatedCase, draw_parameters, simulate
from .disease import NoRoomError
from .scanner import GridName
from .shapes import LungShape

Row = dict[str, Any]

UNFINISHED_FILE = "unfinished.jsonl"
"""Of a cohort that is not finished: a line with what it is made of, then the row of each case that is there."""


@dataclass(frozen=True)
class CohortParameters:
    """What a cohort is made of; with the number of a case it decides that case entirely.

    Attributes:
        seed: of the cohort. Case k is the same however many cases are made, and by however many workers.
        lungs: lung masks; cases take them in turn. None: parametric lungs.
        centrilobular_score, paraseptal_score: of every case; None: as in the development set of Table 1.
        panlobular: percentage of the lung with panlobular emphysema, in every case.
        shifted_scanner, shifted_disease: draw from beyond the trained range.
        look: as of `draw_parameters`.
    """

    seed: int
    grid: GridName = "network"
    lungs: tuple[Path, ...] = ()
    centrilobular_score: int | None = None
    paraseptal_score: int | None = None
    panlobular: float = 0.0
    shifted_scanner: bool = False
    shifted_disease: bool = False
    look: Look = "measured"

    def entity(self, number: int) -> str:
        """Name of case `number`, from 0."""
        return f"simulated-{self.seed}-{number:05d}"


@lru_cache(maxsize=8)
def read_lungs(path: Path) -> LungShape:
    """`LungShape.read`, once for each file in each worker."""
    return LungShape.read(path)


def make_case(cohort: CohortParameters, number: int) -> tuple[SimulatedCase, Row]:
    """Make case `number` and its row of the reference table.

    Raises:
        InputError: its lungs have no room for the emphysema that was drawn.
    """
    source = cohort.lungs[number % len(cohort.lungs)] if cohort.lungs else None
    lungs = read_lungs(source) if source else None
    parameters = draw_parameters(
        np.random.SeedSequence(cohort.seed, spawn_key=(number,)),
        cohort.centrilobular_score,
        cohort.paraseptal_score,
        panlobular=cohort.panlobular,
        shifted_scanner=cohort.shifted_scanner,
        shifted_disease=cohort.shifted_disease,
        lungs=lungs,
        look=cohort.look,
    )
    try:
        case = simulate(parameters, cohort.grid, lungs)
    except NoRoomError as error:
        raise InputError(cohort.entity(number), str(error), "another seed, lower scores or other lungs") from error
    extents = [
        Extent(case.centrilobular_score, case.centrilobular_percentage),
        Extent(case.paraseptal_score, case.paraseptal_percentage),
    ]
    row: Row = {
        **reference_row(cohort.entity(number), extents),
        "panlobular_percentage": f"{case.panlobular_percentage:.4f}",
        GRID_COLUMN: cohort.grid,
        "lungs": source.name if source else "",
    }
    hints = get_type_hints(type(parameters))
    for part in fields(parameters):
        row.update(_flat(part.name, getattr(parameters, part.name), hints[part.name]))
    return case, row


def _flat(name: str, value: Any, kind: Any = None) -> Row:
    """Numbers in nested dataclasses by dotted names, as text that does not lose digits that matter.

    None is empty text, in each column of the dataclass that `kind` allows in its place: all cases of a cohort have the same
    columns.
    """
    if value is None:
        kinds = [part for part in get_args(kind) if is_dataclass(part)]
        return {f"{name}.{part.name}": "" for part in fields(kinds[0])} if kinds else {name: ""}
    if is_dataclass(value):
        nested: Row = {}
        hints = get_type_hints(type(value))
        for part in fields(value):
            nested.update(_flat(f"{name}.{part.name}", getattr(value, part.name), hints[part.name]))
        return nested
    if isinstance(value, tuple):
        return {f"{name}.{k}": f"{part:.6g}" for k, part in enumerate(value)}
    return {name: str(value) if isinstance(value, int) else f"{value:.6g}"}


def write_case(case: SimulatedCase, entity: str, output: Path, with_panlobular: bool) -> None:
    """Write a case into `output / entity`, which appears whole or not at all."""
    truth = {"centrilobular": case.centrilobular, "paraseptal": case.paraseptal}
    if with_panlobular:
        truth["panlobular"] = case.panlobular
    with whole_folder(output / entity) as folder:
        arrays: dict[Path, npt.NDArray[Any]] = {
            ct_path(folder, entity): case.hounsfield,
            lung_mask_path(folder, entity): (case.lungs > 0).astype(np.uint8),
            **{truth_path(folder, name): voxels.astype(np.uint8) for name, voxels in truth.items()},
        }
        for path, array in arrays.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(case.spacing[::-1])
            image.SetOrigin(case.origin[::-1])
            write_image(image, path, output / entity / path.relative_to(folder))


def _make_and_write(cohort: CohortParameters, number: int, output: Path) -> Row:
    case, row = make_case(cohort, number)
    write_case(case, cohort.entity(number), output, cohort.panlobular > 0)
    return row


def make_cohort(cohort: CohortParameters, cases: int, output: Path, workers: int = 1) -> Iterator[Row]:
    """Make and write `cases` cases; yields each one's row in order, and writes the table after the last.

    A cohort that was stopped goes on: cases whose rows are in `unfinished.jsonl`, of the same parameters, are not made again.

    Raises:
        InputError: a lung mask cannot be used, or `output` cannot be written, already holds something else, or the beginning of
            another cohort. Nothing has been written then. While the rows are taken: another run is writing there, or as
            `make_case`.
    """
    origin = _origin(cohort, cases)
    if not (output / UNFINISHED_FILE).exists():
        check_free(output)
    try_folder(output)
    _begun(output, origin)
    return _locked_rows(cohort, cases, output, workers, origin)


def _origin(cohort: CohortParameters, cases: int) -> Row:
    """What the rows and files of a cohort depend on."""
    lungs = []
    for path in cohort.lungs:
        shape = read_lungs(path)
        lungs.append(f"{path.name}, sha256 {hashlib.sha256(shape.right.tobytes() + shape.left.tobytes()).hexdigest()}")
    return {"version": __version__, "cases": cases, **asdict(cohort), "lungs": lungs}


def _begun(output: Path, origin: Row) -> dict[str, Row]:
    """The row of each case that an earlier run has written; a line that was cut off counts as none.

    Raises:
        InputError: the earlier run was of another cohort, or its file cannot be read.
    """
    path = output / UNFINISHED_FILE
    if not path.exists():
        return {}
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        earlier = json.loads(first)
        differing = [name for name, value in origin.items() if earlier.get(name) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(path, f"cannot be read ({reason(error)})", f"another --output, or no folder {output}") from error
    if differing:
        found = f"an unfinished cohort that was made otherwise ({', '.join(differing)})"
        raise InputError(output, found, "the options it was begun with, another --output, or this folder deleted")
    rows: dict[str, Row] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if (output / row["entity"]).is_dir():
            rows[row["entity"]] = row
    return rows


def _locked_rows(cohort: CohortParameters, cases: int, output: Path, workers: int, origin: Row) -> Iterator[Row]:
    try:
        with locked(output):
            yield from _rows(cohort, cases, output, workers, origin)
    except BlockingIOError:
        raise FolderInUseError(output, "another run is writing into this folder", "a folder for each run") from None


def _rows(cohort: CohortParameters, cases: int, output: Path, workers: int, origin: Row) -> Iterator[Row]:
    begun = _begun(output, origin)
    unfinished = output / UNFINISHED_FILE
    with whole_file(unfinished) as partial:
        partial.write_text("".join(f"{json.dumps(line)}\n" for line in (origin, *begun.values())), encoding="utf-8")
    missing = [number for number in range(cases) if cohort.entity(number) not in begun]
    made = _made(cohort, missing, output, workers)
    rows: list[Row] = []
    with unfinished.open("a", encoding="utf-8") as journal:
        for number in range(cases):
            row = begun.get(cohort.entity(number))
            if row is None:
                row = next(made)
                journal.write(f"{json.dumps(row)}\n")
                journal.flush()
            rows.append(row)
            yield row
    _write_reference(rows, output / REFERENCE_FILE)
    unfinished.unlink()


def _made(cohort: CohortParameters, numbers: Sequence[int], output: Path, workers: int) -> Iterator[Row]:
    if workers == 1:
        for number in numbers:
            yield _make_and_write(cohort, number, output)
    else:
        with process_pool(workers) as pool:
            yield from pool.map(_make_and_write, [cohort] * len(numbers), numbers, [output] * len(numbers))


def _write_reference(rows: Sequence[Row], path: Path) -> None:
    with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
