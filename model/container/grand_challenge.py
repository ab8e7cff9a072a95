"""The platform's folders: which files are which case, and what is written where. No other module knows these names.

Input: `/input/inputs.json` if the platform wrote one, else folders under `/input/images/`. Output: the score files, the
activation maps, `results.json` and `results.csv` (written anew after each case), and what options ask for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import SimpleITK as sitk

from .. import SHIPPED_WEIGHTS
from ..errors import InputError, printable
from ..imaging.dicom import is_slice, may_be_dicom
from ..imaging.native import captured_stderr
from ..imaging.readers import FILE_SUFFIXES, FORMATS, is_image_file
from ..imaging.writing import write_image
from ..whole_files import WholeFiles
from .results import CaseResult, LungMaskSource, SubtypeScore, read_results, results_text, score_text
from .resume import FinishedCase, Record, note_text, read_note, read_records, records_text
from .table import results_table

if TYPE_CHECKING:
    from ..dicom_output.derived import DerivedObjects

logger = logging.getLogger("process")

INPUT_FOLDER = Path("/input")
OUTPUT_FOLDER = Path("/output")
MODEL_FOLDER = Path("/opt/ml/model")

INPUTS_FILE = "inputs.json"
LARGEST_INPUTS_FILE = 1 << 20
CT_FOLDER = "images/ct"
MASK_FOLDERS = ("images/lung-mask", "images/pulmonary-lobes", "images/lungs")
LOBES_FOLDER = "images/pulmonary-lobes"
"""The one folder whose labels mean lobes."""

RESULTS_FILE = "results.json"
RECORDS_FILE = ".resume.json"
"""What a later run needs to know of each scored case; see `resume`."""
NOTES_FOLDER = ".finished"
"""Notes of cases that are not in `results.json` yet."""
RESULTS_TABLE = "results.csv"
SCORE_FILES = {
    "centrilobular": "centrilobular-emphysema-score.json",
    "paraseptal": "paraseptal-emphysema-score.json",
}
MAP_FOLDERS = {
    "centrilobular": "images/centrilobular-emphysema-heatmap",
    "paraseptal": "images/paraseptal-emphysema-heatmap",
}
LUNG_MASK_FOLDER = MASK_FOLDERS[0]
"""In an output folder: the lungs that were scored."""
PREVIEW_FOLDER = "preview"
REPORT_FOLDER = "report"
DICOM_FOLDERS = {"activation_maps": "dicom/activation-maps", "lungs": "dicom/lungs", "report": "dicom/report"}
"""By the names of `DerivedObjects`."""
WRITTEN_FOLDERS = (*MAP_FOLDERS.values(), LUNG_MASK_FOLDER, PREVIEW_FOLDER, REPORT_FOLDER, *DICOM_FOLDERS.values())
LONGEST_ENTITY = 255 - len(".html")
"""In bytes: what file systems take."""

PREDICTIONS_FILE = "predictions.json"
"""What a challenge's evaluation finds in its input: the jobs, whose outputs lie in `JOB/output`."""
JOB_OUTPUT_FOLDER = "output"
METRICS_FILE = "metrics.json"
GROUND_TRUTH_FOLDER = Path("/opt/ml/input/data/ground_truth")


@dataclass(frozen=True)
class Case:
    """The files of one scan.

    Attributes:
        entity: the CT's stem; outputs are named after it.
        ct: a file, or a folder that holds one DICOM series.
        lung_mask: likewise; None where there is none for this CT.
        lobes: whether the mask's labels mean lobes.
        segment_lungs: whether the lungs are to be found in the CT itself where there is no mask.
    """

    entity: str
    ct: Path
    lung_mask: Path | None
    lobes: bool = False
    segment_lungs: bool = False

    @classmethod
    def of(cls, ct: Path, lung_mask: Path | None) -> Case:
        """A case given by its paths; the mask's labels mean lobes if its folder is named so; without one, lungs are found."""
        if lung_mask is None:
            return cls(stem_of(ct), ct, None, segment_lungs=True)
        return cls(stem_of(ct), ct, lung_mask, lobes=lung_mask.absolute().parent.name == Path(LOBES_FOLDER).name)

    @property
    def is_dicom(self) -> bool:
        """Whether the CT is a DICOM series, or one DICOM object that holds it all."""
        return self.ct.is_dir() or not is_image_file(self.ct.name)

    @property
    def lung_mask_source(self) -> LungMaskSource:
        """What results say of the mask."""
        return "given" if self.lung_mask else "automatic"

    @property
    def files(self) -> tuple[Path, ...]:
        """CT and lung mask, or the CT alone if its lungs are to be found.

        Raises:
            InputError: there is no mask for this CT, or its name leaves no room for a suffix.
        """
        if self.lung_mask is None and not self.segment_lungs:
            raise InputError(self.ct, "no lung mask has the same name", f"{self.entity}.mha beside the other masks")
        if len(os.fsencode(self.entity)) > LONGEST_ENTITY:
            raise InputError(
                self.ct, "the name is too long to name results after", f"at most {LONGEST_ENTITY} bytes before the suffix"
            )
        return (self.ct, self.lung_mask) if self.lung_mask else (self.ct,)


def bundle_places(given: Path | None) -> tuple[Path, ...]:
    """Where a weight bundle is looked for, in this order: the given one alone, else the platform's and the included one."""
    return (given,) if given is not None else (MODEL_FOLDER, SHIPPED_WEIGHTS)


def stem_of(path: Path) -> str:
    """File name without the suffix of an image format; the name of a folder as it is."""
    name = path.name if path.name not in ("", "..") else path.resolve().name
    suffix = next((suffix for suffix in FILE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] or name


def composed(name: str) -> str:
    """A file name in composed letters (NFC): macOS writes those with accents decomposed."""
    return unicodedata.normalize("NFC", name)


def find_cases(folder: Path, segment_lungs: bool = False) -> list[Case]:
    """Find the cases under `folder`, sorted by file name.

    One CT and one mask are a case whatever their names (the platform renames files); several pair by equal stem. Of several
    masks of one CT, that of the first folder of `MASK_FOLDERS` is used. How many masks belong to no CT is logged.

    Args:
        segment_lungs: take CTs without a mask, too, as cases whose lungs are to be found.

    Raises:
        InputError: no such folder, no CT, no mask, several CTs of which none has a mask of its name or two have the same,
            two masks of one CT in the folder where it is found, or an `inputs.json` that is none.
    """
    try:
        return _cases_in(folder, segment_lungs)
    except OSError as error:
        raise InputError(folder, f"it cannot be read ({error.strerror})", "a folder that can be read") from error


def _cases_in(folder: Path, segment_lungs: bool) -> list[Case]:
    if not folder.is_dir():
        raise InputError(folder, "no such folder", f"a folder with {CT_FOLDER} and {MASK_FOLDERS[0]}")
    listed = _listed_folders(folder / INPUTS_FILE)
    scans = _images_in(folder / CT_FOLDER) if CT_FOLDER in listed else []
    if not scans:
        raise InputError(folder / CT_FOLDER, "there is no CT", FORMATS)
    masks_by_folder = {name: _images_in(folder / name) for name in MASK_FOLDERS if name in listed}
    mask_folder, masks = next(((name, images) for name, images in masks_by_folder.items() if images), (None, []))
    if mask_folder is None and not segment_lungs:
        raise InputError(folder, "there is no lung mask", f"one in {', '.join(MASK_FOLDERS)}")
    _check_names(folder, "CTs", scans)
    keys = {scan.key for scan in scans}
    by_key: dict[str, tuple[Path, bool]] = {}
    for name, images in masks_by_folder.items():
        _check_names(folder, "masks", [image for image in images if image.key in keys - by_key.keys()])
        for image in images:
            by_key.setdefault(image.key, (image.path, name == LOBES_FOLDER))
    paired = [scan for scan in scans if scan.key in by_key]
    if not paired and len(scans) == 1 and mask_folder:
        _check_names(folder, "masks", masks)
        if len(masks) == 1:
            return [Case(scans[0].stem, scans[0].path, masks[0].path, mask_folder == LOBES_FOLDER)]
    if by_key and not paired:
        found = f"{len(scans)} CTs and {len(by_key)} masks, no two of one name"
        raise InputError(folder, found, "pairs of equal names, upper and lower case included")
    _log_masks_of_no_ct(scans, {key: path for key, (path, _) in by_key.items()})
    cases = []
    for scan in scans:
        mask, lobes = by_key.get(scan.key, (None, False))
        cases.append(Case(scan.stem, scan.path, mask, lobes, segment_lungs))
    return cases


def _check_names(folder: Path, kind: str, images: Iterable[_Image]) -> None:
    """Check that images have names that differ.

    Raises:
        InputError: two have the same, which it names.
    """
    by_key: dict[str, Path] = {}
    for image in images:
        if image.key in by_key:
            first, second = (path.relative_to(folder) for path in (by_key[image.key], image.path))
            raise InputError(folder, f"two {kind} have the same name, {first} and {second}", "names that differ")
        by_key[image.key] = image.path


def _log_masks_of_no_ct(scans: Iterable[_Image], masks: Mapping[str, Path]) -> None:
    """Log how many masks (by key) belong to no CT, with the one whose name differs in case alone from a CT without a mask."""
    cts = {scan.key for scan in scans}
    spare = {key: path for key, path in masks.items() if key not in cts}
    if not spare:
        return
    without = {scan.key.casefold(): scan.path.name for scan in scans if scan.key not in masks}
    alike = next((key for key in spare if key.casefold() in without), None)
    example = printable(str(spare[alike or next(iter(spare))]))
    if alike:
        example += f", whose name differs in case from that of {printable(without[alike.casefold()])}"
    if len(spare) == 1:
        logger.info("a lung mask belongs to no CT: %s", example)
    else:
        logger.info("%d lung masks belong to no CT, such as %s", len(spare), example)


def _listed_folders(inputs: Path) -> tuple[str, ...]:
    """The folders that `inputs.json` lists, or all that may be there where the platform wrote none.

    The platform calls what it lists an interface or, later, a socket.
    """
    if not inputs.exists() and not inputs.is_symlink():
        return (CT_FOLDER, *MASK_FOLDERS)
    if not inputs.is_file() or inputs.stat().st_size > LARGEST_INPUTS_FILE:
        raise InputError(inputs, "no file, or one too large to be the platform's list of inputs", "a small JSON file")
    try:
        entries = json.loads(inputs.read_text(encoding="utf-8"))
        return tuple((entry.get("interface") or entry["socket"])["relative_path"].strip("/") for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found = f"not the platform's list of inputs ({type(error).__name__}: {error})"
        raise InputError(inputs, found, "a list of objects with interface.relative_path") from error


@dataclass(frozen=True)
class _Image:
    """A file, or the folder of a DICOM series.

    Attributes:
        path: of the file or folder.
        stem: what it is named after; of a series in nested folders, the outermost.
    """

    path: Path
    stem: str

    @property
    def key(self) -> str:
        """What CT and mask are paired by."""
        return composed(self.stem)


def _images_in(folder: Path) -> list[_Image]:
    """Image files, and subfolders that hold a DICOM series; and the folder itself, if the files of one lie in it."""
    if not folder.is_dir():
        return []
    visible = _visible(folder)
    images = []
    for path in visible:
        if path.is_dir():
            series = _series_folder(path, {folder.resolve()})
            if series:
                images.append(_Image(series, stem_of(path)))
            else:
                logger.info("%s: passed over: it holds no DICOM file", printable(str(path)))
        elif is_image_file(path.name):
            images.append(_Image(path, stem_of(path)))
    files = [path for path in visible if not path.is_dir()]
    if any(is_image_file(path.name) for path in files):
        loose = next((path for path in files if may_be_dicom(path.name) and is_slice(path)), None)
        if loose is not None:
            raise InputError(loose, "a DICOM slice beside image files", "each DICOM series in a folder of its own")
        return images
    if any(is_slice(path) for path in files) or (not images and any(may_be_dicom(path.name) for path in files)):
        images.insert(0, _Image(folder, stem_of(folder)))
    return images


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and what macOS adds to archives."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")


def _series_folder(folder: Path, seen: set[Path]) -> Path | None:
    """The folder of a DICOM series: this one, or the only one in it, in any depth; None if there is no file of a series.

    A folder that holds several is returned, and reading it fails, as does one with image files, and one that cannot be read or
    has nothing but files that cannot: none of these is passed over.

    Args:
        seen: folders that are not looked into (again); this one is added.
    """
    if folder.resolve() in seen:
        return None
    seen.add(folder.resolve())
    try:
        entries = _visible(folder)
        folders = [path for path in entries if path.is_dir()]
    except OSError:
        return folder
    files = [path for path in entries if path not in folders]
    if any(is_image_file(path.name) or is_slice(path) for path in files):
        return folder
    inner = [series for path in folders if (series := _series_folder(path, seen))]
    if len(inner) == 1:
        return inner[0]
    return folder if inner or any(is_slice(path, unreadable=True) for path in files) else None


def map_path(folder: Path, subtype: str, entity: str) -> Path:
    """Where the activation map of one subtype lies in an output folder."""
    return folder / MAP_FOLDERS[subtype] / f"{entity}.mha"


def lung_mask_path(folder: Path, entity: str) -> Path:
    """Where the lungs that were scored lie in an output folder, if they were written."""
    return folder / LUNG_MASK_FOLDER / f"{entity}.mha"


def preview_path(folder: Path, entity: str) -> Path:
    """Where the preview picture lies in an output folder, if it was asked for."""
    return folder / PREVIEW_FOLDER / f"{entity}.png"


def report_path(folder: Path, entity: str, suffix: Literal[".pdf", ".html"]) -> Path:
    """Where the printable report lies in an output folder, if it was asked for."""
    return folder / REPORT_FOLDER / f"{entity}{suffix}"


def finished_cases(folder: Path) -> dict[str, FinishedCase]:
    """What runs into an output folder have scored and noted, by entity, where all that was written of the case is there."""
    try:
        results = {result.entity: result for result in read_results(folder / RESULTS_FILE) if result.metrics}
    except InputError:
        results = {}
    records = read_records(folder / RECORDS_FILE)
    noted = {entity: FinishedCase(results[entity], record) for entity, record in records.items() if entity in results}
    return {
        entity: finished
        for entity, finished in (noted | _notes(folder)).items()
        if all(_is_inside(folder, name) and (folder / name).is_file() for name in finished.record.files)
    }


def _notes(folder: Path) -> dict[str, FinishedCase]:
    """By entity, the notes of cases that `results.json` may not hold yet."""
    notes = [read_note(path) for path in sorted((folder / NOTES_FOLDER).glob("[!.]*.json"))]
    return {note.result.entity: note for note in notes if note is not None and note.result.entity}


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a file that was noted lies in an output folder, whatever links lead to."""
    place = (folder / name).parent.resolve()
    return ".." not in Path(name).parts and place.is_relative_to(folder.resolve())


class OutputFolder(WholeFiles):
    """Writes what the platform expects to find; files of one `with` block appear together when it ends, or not at all."""

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        """Make the folder if need be, and remove an earlier run's results, so that they cannot be taken for this one's.

        Args:
            keep: leave an earlier run's results, which this one continues.

        Raises:
            InputError: it cannot be written, or another run is writing there.
        """
        super().__init__(folder, (NOTES_FOLDER, *WRITTEN_FOLDERS))
        try:
            if not keep:
                self.remove_scores()
                for name in (RESULTS_FILE, RESULTS_TABLE):
                    (folder / name).unlink(missing_ok=True)
        except OSError as error:
            self.close()
            raise InputError(folder, f"an earlier run's results cannot be removed ({error.strerror})", "a folder") from error

    def check_apart(self, cases: Iterable[Case]) -> None:
        """Check that no file of a case lies where this folder's maps and masks are removed and written.

        Raises:
            InputError: one does, as where the output folder is that of the case.
        """
        places = [(self.folder / name).resolve() for name in WRITTEN_FOLDERS]
        for path in (path for case in cases for path in (case.ct, case.lung_mask) if path is not None):
            real = {path.resolve(), path.parent.resolve() / path.name}
            if any(name.is_relative_to(place) for name in real for place in places):
                raise InputError(path, f"the output folder {self.folder} would replace this input", "another output folder")

    @property
    def has_results(self) -> bool:
        """Whether there is a `results.json`."""
        return (self.folder / RESULTS_FILE).exists()

    def earlier_results(self) -> dict[str, FinishedCase]:
        """Results of the cases that earlier runs have scored and noted, by entity, where all that was written is there."""
        return finished_cases(self.folder)

    def remove_others(self, entities: Collection[str]) -> list[Path]:
        """Remove what earlier runs have noted to have written of other cases than these; return maps that nobody noted.

        The latter are those of runs that were killed before they could, or of versions that did not.
        """
        noted = read_records(self.folder / RECORDS_FILE) | {
            entity: finished.record for entity, finished in _notes(self.folder).items()
        }
        kept = {name for entity in entities if entity in noted for name in noted[entity].files}
        for name in {name for record in noted.values() for name in record.files} - kept:
            if _is_inside(self.folder, name):
                (self.folder / name).unlink(missing_ok=True)
        maps = [path for folder in MAP_FOLDERS.values() for path in sorted((self.folder / folder).glob("[!.]*.mha"))]
        return [path for path in maps if str(path.relative_to(self.folder)) not in kept]

    def discard(self, entity: str) -> None:
        """Remove what an earlier run wrote of this entity: maps, lung mask, preview, report and DICOM objects."""
        if len(os.fsencode(entity)) > LONGEST_ENTITY:
            return  # no run can have written them
        for path in (
            *(map_path(self.folder, name, entity) for name in MAP_FOLDERS),
            lung_mask_path(self.folder, entity),
            preview_path(self.folder, entity),
            report_path(self.folder, entity, ".pdf"),
            report_path(self.folder, entity, ".html"),
            *(self._dicom(entity, kind) for kind in DICOM_FOLDERS),
        ):
            path.unlink(missing_ok=True)

    def write_maps(self, entity: str, images: dict[str, sitk.Image]) -> None:
        """Write the activation maps of all subtypes, by name, as compressed .mha; all at once."""
        finals = [map_path(self.folder, subtype, entity) for subtype in images]
        partials = [self.partial(final) for final in finals]
        with captured_stderr(), ThreadPoolExecutor(len(images)) as beside:
            for _ in beside.map(write_image, images.values(), partials, finals):
                pass

    def write_lung_mask(self, entity: str, image: sitk.Image) -> None:
        """Write the lungs that were scored as compressed .mha."""
        final = lung_mask_path(self.folder, entity)
        with captured_stderr():
            write_image(image, self.partial(final), final)

    def write_preview(self, entity: str, png: bytes) -> None:
        """Write the preview picture."""
        self.partial(preview_path(self.folder, entity)).write_bytes(png)

    def write_report(self, entity: str, pdf: bytes, html: str) -> None:
        """Write the printable report, in both formats."""
        self.partial(report_path(self.folder, entity, ".pdf")).write_bytes(pdf)
        self.partial(report_path(self.folder, entity, ".html")).write_text(html, encoding="utf-8")

    def write_dicom(self, entity: str, objects: DerivedObjects) -> None:
        """Write the DICOM objects, each into the folder of its kind."""
        for kind in DICOM_FOLDERS:
            objects.write(kind, self.partial(self._dicom(entity, kind)))

    def remove_scores(self) -> None:
        """Remove the score files of an earlier run."""
        for name in SCORE_FILES.values():
            (self.folder / name).unlink(missing_ok=True)

    def write_score(self, subtype: str, score: SubtypeScore) -> None:
        """Write the score file of one subtype."""
        self._write_text(SCORE_FILES[subtype], score_text(score))

    def write_results(self, results: Sequence[CaseResult]) -> None:
        """Write `results.json`, and before it the same as a table if a case was scored."""
        if any(result.metrics is not None for result in results):
            self.partial(self.folder / RESULTS_TABLE).write_bytes(results_table(results))
        else:
            (self.folder / RESULTS_TABLE).unlink(missing_ok=True)
        self._write_text(RESULTS_FILE, results_text(results))

    def write_records(self, records: Mapping[str, Record]) -> None:
        """Write what a later run needs to know of the scored cases, by entity."""
        self._write_text(RECORDS_FILE, records_text(records))

    def write_note(self, entity: str, finished: FinishedCase) -> None:
        """Write the note of a case that `write_results` has not written yet."""
        self._write_text(f"{NOTES_FOLDER}/{entity}.json", note_text(finished))

    def remove_notes(self) -> None:
        """Remove the notes of all cases, which `write_results` has written."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder / NOTES_FOLDER)

    def _write_text(self, name: str, text: str) -> None:
        self.partial(self.folder / name).write_text(text, encoding="utf-8")

    def _dicom(self, entity: str, kind: str) -> Path:
        return self.folder / DICOM_FOLDERS[kind] / f"{entity}.dcm"
