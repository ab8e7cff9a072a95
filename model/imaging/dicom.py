"""DICOM series: which files of a folder are its slices, and whether these make one scan.

The structure of the files and the tags that matter are checked here, before the library's reader opens them. That reader was
observed to leave out a damaged file at the end of a series; to read slices of another patient or orientation; to assume 1 for
a pixel spacing or rescale slope that is missing or unreadable; to allocate gigabytes for a damaged length field in a small
file; to fill missing pixels with uninitialised memory; to take frames of one file in the order in which they are stored, with
a spacing of 1 where their distances differ; and to ignore a Modality LUT and to negate inverted grey levels.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .geometry import ImageGeometry

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".ima")

SERIES, INSTANCE = "0020|000e", "0008|0018"
MODALITY, IMAGE_TYPE, NUMBER_OF_FRAMES = "0008|0060", "0008|0008", "0028|0008"
CT_MODALITIES = ("", "CT", "OT")
"""Of images that may be a CT: not said, CT, and other, as SimpleITK writes images of its own."""
LOCALISERS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
"""Values of the image type (0008,0008); the first is the standard's."""
_IDENTITY = (SERIES, INSTANCE, MODALITY, IMAGE_TYPE, NUMBER_OF_FRAMES)
_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_INTERCEPT, _SLOPE = "0028|1052", "0028|1053"
_THICKNESS, _SPACING_BETWEEN_SLICES = "0018|0050", "0018|0088"
_ROWS, _COLUMNS = "0028|0010", "0028|0011"
_CLASS, _PHOTOMETRIC_INTERPRETATION, _MODALITY_LUT, _STACK = "0008|0016", "0028|0004", "0028|3000", "0020|9056"
_ONE_SCAN = {"0010|0020": "patient", "0020|000d": "study", "0020|0052": "frame of reference"}
_TAGS = (
    *(SERIES, MODALITY, IMAGE_TYPE, NUMBER_OF_FRAMES, _CLASS, _PHOTOMETRIC_INTERPRETATION, _MODALITY_LUT, _ROWS, _COLUMNS),
    *(_POSITION, _ORIENTATION, _PIXEL_SPACING, _INTERCEPT, _SLOPE, _THICKNESS, _SPACING_BETWEEN_SLICES, *_ONE_SCAN),
)

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT and Legacy Converted Enhanced CT: of these, the library's reader applies slope and intercept of the frames."""

_GROUPS = {
    _POSITION: ("PlanePositionSequence", "ImagePositionPatient"),
    _ORIENTATION: ("PlaneOrientationSequence", "ImageOrientationPatient"),
    _PIXEL_SPACING: ("PixelMeasuresSequence", "PixelSpacing"),
    _THICKNESS: ("PixelMeasuresSequence", "SliceThickness"),
    _SLOPE: ("PixelValueTransformationSequence", "RescaleSlope"),
    _INTERCEPT: ("PixelValueTransformationSequence", "RescaleIntercept"),
    _STACK: ("FrameContentSequence", "StackID"),
}
"""Where a file with several frames holds their tags: functional groups (DICOM PS3.3, section C.7.6.16)."""

# Values that a message may repeat: a damaged tag may hold anything, and so the patient's name.
_MODALITIES = ("CT", "CR", "DX", "MG", "MR", "NM", "OT", "PT", "RF", "RTDOSE", "SC", "SEG", "US", "XA")
_PHOTOMETRIC_INTERPRETATIONS = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

_ONE_AT_A_TIME = threading.RLock()

_TILT_DEGREES = 0.5
LARGEST_THICKNESS_MM = 100.0
BLANK = "empty, or its beginning is damaged"
_WHOLE = "complete slices of one DICOM series"
_FRAMES_WITH_POSITIONS = "one stack of frames, each with its position (functional groups)"


def may_be_dicom(name: str) -> bool:
    """Whether a file may be DICOM, by its name alone; many are named by their identifiers, as 1.2.840.10008.1."""
    suffix = Path(name).suffix.lower()
    return suffix in ("", *SUFFIXES) or suffix[1:].isdigit()


def may_be_slice(name: str) -> bool:
    """Whether a file may be one slice of many, by its name alone: it may be DICOM, and has a number; LOCKFILE has none."""
    return may_be_dicom(name) and re.search(r"\d", name) is not None


def is_slice(path: Path, *, unreadable: bool = False) -> bool:
    """Whether a file is DICOM by its suffix or its beginning, be it damaged or not; the index of an export is no slice.

    Args:
        unreadable: what is returned for a file that may be DICOM by its name and cannot be read.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        return path.name != "DICOMDIR" and path.is_file() and read_identity(path) is not None
    except InputError:  # a damaged one
        return True
    except OSError:
        return unreadable and may_be_dicom(path.name)


Tags = Mapping[str, str]
"""The tags of one file that are checked, by group and element as `0020|0032`, without those that the file does not have."""


@dataclass(frozen=True)
class Series:
    """The files of one series in the order of their slices.

    Attributes:
        files: one for each slice, or one that holds all slices.
        warnings: one sentence each.
        slice_thickness_mm: None where the files do not have it, or not one that can be.
        geometry: of a file with several frames, whose order is kept; None where the library's reader finds the grid.
        modality: such as CT; empty where the files do not have it, `unknown` where it is no common one.
    """

    files: tuple[Path, ...]
    warnings: tuple[str, ...] = ()
    slice_thickness_mm: float | None = None
    geometry: ImageGeometry | None = None
    modality: str = ""


def read_series(folder: Path) -> Series:
    """Find the one series in a folder, sort its files, and check that they make one evenly spaced scan in HU.

    A single file is assumed to hold all slices (see `read_file`).

    Raises:
        InputError: the folder holds no series or several, a file is damaged or no image that can be used, or `check_slices`
            refuses the slices.
    """
    found: dict[Path, Tags] = {}
    others: list[Path] = []
    blank: list[Path] = []
    for path in sorted(folder.iterdir()):
        if not path.is_file() and not path.is_dir():  # a reader would block on a pipe and never finish a device
            raise InputError(path, "not a file, or a broken link", _WHOLE)
        if path.name.startswith(".") or path.name in ("DICOMDIR", "__MACOSX"):
            continue
        tags = None if path.is_dir() else read_tags(path)
        if tags is not None:
            found[path] = tags
        elif path.suffix.lower() in SUFFIXES and not path.is_dir():
            raise InputError(path, "not a DICOM file, or its beginning is damaged", _WHOLE)
        else:
            others.append(path)
            blank += [path] if is_blank_slice(path) else []
    if found and blank:
        raise InputError(blank[0], BLANK, _WHOLE)
    if others and not found:
        raise InputError(folder, f"the folder holds no DICOM file but {_listed(others)}", "one DICOM series")
    series = {tags.get(SERIES, "") for tags in found.values()}
    if len(series) != 1:
        raise InputError(folder, f"the folder holds {len(series) or 'no'} DICOM series", "one DICOM series")
    (uid,) = series
    for other in others:
        if other.is_dir():
            _check_holds_none_of(uid, other)
    for path, tags in found.items():
        _check_image(path, tags)
        if len(found) == 1:
            return _single(path, tags)
        if _has_frames(tags):
            raise InputError(path, "several frames in one of several files", "one frame in each file, or one file")
    heights = _heights(folder, list(found.values()))
    order = [list(found)[place] for place in np.argsort(heights, kind="stable")]
    slices = [found[path] for path in order]
    tilt = check_slices(folder, slices)
    return Series(tuple(order), tuple(tilt), _thickness(slices[0]), modality=modality_of(slices[0]))


def is_blank_slice(path: Path) -> bool:
    """Whether a file that may be a slice by its name is empty or begins with zeros alone, as an interrupted copy leaves it.

    Raises:
        OSError: the file cannot be read.
    """
    if not may_be_slice(path.name) or not path.is_file():
        return False
    with path.open("rb") as stream:
        return not any(stream.read(132))


def _check_holds_none_of(uid: str, folder: Path) -> None:
    """Check that no file in a subfolder, in any depth, belongs to the series beside it.

    Raises:
        InputError: one does.
    """
    for path in sorted(folder.rglob("*")):
        tags = None
        if path.is_file() and may_be_dicom(path.name):
            with contextlib.suppress(InputError, OSError):  # of another series, as far as is known
                tags = read_identity(path)
        if tags is not None and tags.get(SERIES, "") == uid:
            raise InputError(
                path, f"of the same series as the files in {folder.parent}", "all slices of a series in one folder"
            )


def _listed(paths: Sequence[Path]) -> str:
    """How many folders and files there are, with the name of the first file."""
    files = [path.name for path in paths if not path.is_dir()]
    folders = len(paths) - len(files)
    texts = [f"{folders} folder{'s' if folders > 1 else ''}"] if folders else []
    if files:
        texts.append(f"{len(files)} files, such as {files[0]}" if len(files) > 1 else files[0])
    return " and ".join(texts)


def read_file(path: Path) -> Series | None:
    """Check one DICOM file that holds all slices; None for any other file.

    Raises:
        InputError: the file is damaged or no image that can be used, its frames have no positions, or they are not one stack
            in order, from one end to the other, that `check_slices` accepts.
    """
    tags = read_tags(path)
    if tags is None:
        return None
    _check_image(path, tags)
    return _single(path, tags)


def _check_image(path: Path, tags: Tags) -> None:
    """Check that a file holds grey levels that the library's reader turns into HU, or into labels."""
    if tags.get(_CLASS) in _SEGMENTATIONS or tags.get(MODALITY) == "SEG":
        raise InputError(path, "a DICOM segmentation", "the lung mask as .mha, .mhd, .nii, .nii.gz or .nrrd")
    interpretation = tags.get(_PHOTOMETRIC_INTERPRETATION) or "MONOCHROME2"  # which the reader assumes
    if interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        named = interpretation if interpretation in _PHOTOMETRIC_INTERPRETATIONS else "that is unknown"
        raise InputError(path, f"a photometric interpretation {named}", "MONOCHROME2")
    check_grey_levels(path, tags)
    if _is_zero(tags.get(_SPACING_BETWEEN_SLICES, "")):
        raise InputError(path, "a spacing between slices (0018,0088) of 0", "the distance of the slices, or no such tag")


def check_grey_levels(path: Path, tags: Tags) -> None:
    """Check that the library's reader gives HU: it negates inverted grey levels, and applies no Modality LUT.

    Raises:
        InputError: it does not.
    """
    if tags.get(_PHOTOMETRIC_INTERPRETATION) == "MONOCHROME1":
        raise InputError(path, "a photometric interpretation MONOCHROME1", "MONOCHROME2")
    if _MODALITY_LUT in tags and not tags.get(_SLOPE):
        raise InputError(path, "a Modality LUT (0028,3000), which is not applied", "a rescale slope and intercept")


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def _has_frames(tags: Tags) -> bool:
    return tags.get(NUMBER_OF_FRAMES, "") not in ("", "0", "1")


def modality_of(tags: Tags) -> str:
    """The first value of the modality, in capitals: empty where the file has none, `unknown` where it is no common one."""
    found = tags.get(MODALITY, "").partition("\\")[0].strip().upper()
    return found if found in ("", *_MODALITIES) else "unknown"


def is_localiser(tags: Tags) -> bool:
    """Whether a value of the image type says that a file is a localiser."""
    return any(kind.strip().upper() in LOCALISERS for kind in tags.get(IMAGE_TYPE, "").split("\\"))


def _single(path: Path, tags: Tags) -> Series:
    """One file as a series: a slice, or frames in their order."""
    if not _has_frames(tags):
        return Series((path,), modality=modality_of(tags))
    frames = _frames(path, tags)
    if len({frame[_STACK] for frame in frames}) > 1:
        raise InputError(path, "frames of more than one stack", "the frames of one stack")
    normal = _normal(path, frames)
    positions = _numbers(path, frames, _POSITION, 3, "position")
    steps = np.diff(positions @ normal)
    if steps.min() < 0 < steps.max():
        raise InputError(path, "frames that are not in the order of their positions", "one stack from one end to the other")
    tilt = check_slices(path, frames)
    if tags.get(_CLASS) not in _ENHANCED_CT:
        for tag, default in ((_SLOPE, "1"), (_INTERCEPT, "0")):
            stated, applied = _numbers(path, (frames[0], tags), tag, 1, "rescale slope or intercept", default)
            if stated != applied:
                found = "frames with a rescale slope or intercept of their own, which is not applied to this class of image"
                raise InputError(path, found, "an Enhanced CT, or slope and intercept of the file")
    step = float(steps.mean())
    between_rows, between_columns = _shared(path, frames, _PIXEL_SPACING, 2, "pixel spacing")
    axes = np.column_stack([*_shared(path, frames, _ORIENTATION, 6, "orientation").reshape(2, 3), np.sign(step) * normal])
    size = (int(_numbers(path, [tags], tag, 1, "number of rows or columns")[0, 0]) for tag in (_COLUMNS, _ROWS))
    geometry = ImageGeometry(
        size=(*size, len(frames)),
        spacing=(float(between_columns), float(between_rows), abs(step)),
        origin=tuple(positions[0].tolist()),
        direction=tuple(axes.ravel().tolist()),
    )
    return Series((path,), tuple(tilt), _thickness(frames[0]), geometry, modality_of(tags))


def _frames(path: Path, tags: Tags) -> list[Tags]:
    """The tags of each frame of a file, from the functional groups of the frame, or those that all share."""
    import pydicom  # takes most of a second

    sequences = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    try:
        with silent("pydicom"):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(sequences))
            shared, own = (list(header.get(keyword) or []) for keyword in sequences)
            common, *frames = [
                {tag: _group_value(groups, *place) for tag, place in _GROUPS.items()}
                for groups in (shared, *([one] for one in own))
            ]
    except (OSError, MemoryError):
        raise
    except Exception:  # of many kinds; their texts quote the file
        raise InputError(path, "its functional groups cannot be read", _FRAMES_WITH_POSITIONS) from None
    if str(len(frames)) != tags[NUMBER_OF_FRAMES]:
        found = f"several frames, and the positions of {len(frames)}" if frames else "several frames without their positions"
        raise InputError(path, found, _FRAMES_WITH_POSITIONS)
    rescale = (_SLOPE, _INTERCEPT)
    if any(frame[tag] and common[tag] and frame[tag] != common[tag] for frame in frames for tag in rescale):
        raise InputError(path, "frames with another rescale slope or intercept than all frames share", "one for all frames")
    common |= {tag: common[tag] or tags.get(tag, "") for tag in rescale}
    return [{tag: text or common[tag] for tag, text in frame.items()} for frame in frames]


@contextlib.contextmanager
def silent(*libraries: str) -> Iterator[None]:
    """Silence Python libraries during the block: what they warn of and complain about may quote the patient's name.

    The process has one level of each log, and one list of warnings to ignore: a block in another thread waits.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings(action="ignore"):
        levels = {logging.getLogger(name): logging.getLogger(name).level for name in libraries}
        for logger in levels:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)


def _group_value(groups: Sequence[Dataset], sequence: str, keyword: str) -> str:
    """The text of a value in functional groups; empty where they do not have it."""
    for group in groups:
        for item in group.get(sequence) or ():
            value = item.get(keyword)
            if value is not None:
                return "\\".join(map(str, [value] if isinstance(value, str | float) else value))
    return ""


def _thickness(tags: Tags) -> float | None:
    try:
        value = float(tags.get(_THICKNESS, ""))
    except ValueError:
        return None
    return value if 0 < value <= LARGEST_THICKNESS_MM else None


def check_slices(folder: Path, slices: Sequence[Tags]) -> list[str]:
    """Check that sorted slices make one evenly spaced scan in HU; return warnings, one sentence each.

    Raises:
        InputError: a tag is missing or unreadable, the slices differ in size or in a tag that they must share, or their
            distances differ by more than a tenth.
    """
    for tag, name in _ONE_SCAN.items():
        if len({section.get(tag, "") for section in slices}) > 1:
            raise InputError(folder, f"slices of more than one {name}", "the slices of one scan")
    sizes = list(dict.fromkeys(f"{section.get(_ROWS)} x {section.get(_COLUMNS)}" for section in slices))
    if len(sizes) > 1:
        raise InputError(folder, f"slices of {sizes[0]} and of {sizes[1]} pixels (rows x columns)", "slices of one size")
    _shared(folder, slices, _PIXEL_SPACING, 2, "pixel spacing")
    if _shared(folder, slices, _SLOPE, 1, "rescale slope", default="1")[0] == 0:
        raise InputError(folder, "a rescale slope of 0", "one that turns stored values into HU")
    _shared(folder, slices, _INTERCEPT, 1, "rescale intercept", default="0")
    normal = _normal(folder, slices)
    steps = np.diff(_numbers(folder, slices, _POSITION, 3, "position"), axis=0)
    gaps = steps @ normal
    if np.ptp(gaps) > 0.1 * abs(np.median(gaps)) or not np.median(gaps):
        found = f"slice distances from {np.abs(gaps).min():.2f} to {np.abs(gaps).max():.2f} mm"
        raise InputError(folder, found, "evenly spaced slices")
    aside = np.linalg.norm(steps.sum(axis=0) - gaps.sum() * normal)
    tilt = np.rad2deg(np.arctan2(aside, abs(gaps.sum())))
    if tilt > _TILT_DEGREES:
        return [
            f"the slices are tilted by {tilt:.1f} degrees (gantry tilt), which is not corrected: volumes and maps are skewed"
        ]
    return []


def _heights(folder: Path, slices: Sequence[Tags]) -> npt.NDArray[np.float64]:
    """Positions of the slices along the normal of the first, in mm."""
    return _numbers(folder, slices, _POSITION, 3, "position") @ _normal(folder, slices[:1])


def _normal(folder: Path, slices: Sequence[Tags]) -> npt.NDArray[np.float64]:
    """The unit vector perpendicular to the slices, which must have one orientation."""
    row, column = _shared(folder, slices, _ORIENTATION, 6, "orientation").reshape(2, 3)
    normal: npt.NDArray[np.float64] = np.cross(row, column)
    if abs(np.linalg.norm(normal) - 1) > 0.01:
        raise InputError(folder, "an orientation whose axes are not at right angles", "rows and columns at right angles")
    return normal


def _shared(
    folder: Path, slices: Sequence[Tags], tag: str, count: int, name: str, default: str = ""
) -> npt.NDArray[np.float64]:
    """The `count` numbers of a tag that must be the same in every slice."""
    numbers = _numbers(folder, slices, tag, count, name, default)
    if np.ptp(numbers, axis=0).max() > 1e-4 * np.abs(numbers).max():  # tags may be rounded
        raise InputError(folder, f"slices that differ in their {name}", f"one {name} for all slices")
    return numbers[0]


def _numbers(
    folder: Path, slices: Sequence[Tags], tag: str, count: int, name: str, default: str = ""
) -> npt.NDArray[np.float64]:
    """The numbers of a tag, one row per slice; `default` replaces a tag that is missing or empty."""
    texts = [section.get(tag, "") or default for section in slices]
    try:
        numbers = np.array([[float(part) for part in text.split("\\")] for text in texts])
    except ValueError:
        numbers = np.empty((0, 0))
    if numbers.shape != (len(slices), count) or not (np.abs(numbers) < 1e9).all():
        raise InputError(folder, f"slices whose {name} is missing or cannot be read", f"DICOM slices with their {name}")
    return numbers


# The structure of a file (DICOM PS3.5 and PS3.10, section 7): each element has a tag, a type (unless the encoding is implicit),
# a length and a value.

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_TRANSFER_SYNTAX, _PIXEL_DATA = (0x0002, 0x0010), (0x7FE0, 0x0010)
_FRAMES = (0x0028, 0x0008)
_PIXEL_COUNTS = ((0x0028, 0x0002), (0x0028, 0x0010), (0x0028, 0x0011), (0x0028, 0x0100))
"""Samples per pixel, rows, columns, and bits allocated per sample."""

_LONG_TYPES = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_LONGEST_VALUE = 1024
_BEGINNING = 1 << 13
"""Bytes that are read at once where only the beginning of a file is of interest."""
_DEEPEST = 16
_FIRST_ELEMENTS = 0x0018
"""A data set begins with one of the elements up to this, of group 8."""
_NEXT_GROUPS = (0x10, 0x18, 0x20, 0x28)
"""Patient, acquisition, relationship, image: what follows group 8 where this has one element."""


@dataclass(frozen=True)
class _Encoding:
    order: str
    explicit: bool


_EXPLICIT = _Encoding("<", True)
_IMPLICIT = _Encoding("<", False)
_ENCODINGS = {"1.2.840.10008.1.2": _IMPLICIT, "1.2.840.10008.1.2.2": _Encoding(">", True)}
"""All other transfer syntaxes are explicit and little endian, except the one that compresses the whole data set."""

_DEFLATED = "1.2.840.10008.1.2.1.99"


class _DamagedError(Exception):
    """The structure of a file is damaged."""


def read_tags(path: Path) -> Tags | None:
    """Parse the elements of a DICOM file; return the tags that are checked, or None for any other file.

    Raises:
        InputError: an element is longer than the file, there are fewer pixels than rows and columns require, or the structure
            is damaged otherwise.
    """
    tags: dict[str, str] = {}
    with path.open("rb") as stream:
        if not _has_preamble(stream, path):
            return None
        end = stream.seek(0, os.SEEK_END)
        stream.seek(132)
        try:
            data_set = _walk_meta_information(stream, end)
            _walk(stream, end, data_set, tags)
        except (_DamagedError, struct.error, ValueError) as error:
            raise InputError(path, "the file is damaged or cut off", _WHOLE) from error
    return tags


def read_identity(path: Path) -> Tags | None:
    """Parse the elements that tell which series a DICOM file belongs to and what kind of image it is; None for any other file.

    The rest of the file is neither parsed nor checked.

    Raises:
        InputError: the structure of what is parsed is damaged.
    """
    tags: dict[str, str] = {}
    with path.open("rb", buffering=_BEGINNING) as stream:
        if not _has_preamble(stream, path):
            return None
        end = os.fstat(stream.fileno()).st_size
        try:
            data_set = _walk_meta_information(stream, end)
            _walk(stream, end, data_set, tags, _IDENTITY, _FRAMES)
        except (_DamagedError, struct.error, ValueError) as error:
            raise InputError(path, "the file is damaged or cut off", _WHOLE) from error
    return tags


def _has_preamble(stream: BinaryIO, path: Path) -> bool:
    """Whether a file begins as a DICOM file does; the stream is then behind that.

    Raises:
        InputError: it begins as a data set does: with an element of group 2 or 8 and a short value, and, where no types are
            stated, with a second element that may follow.
    """
    start = stream.read(132)
    if start[128:] == b"DICM":
        return True
    if len(start) == 132:
        group, element, length = struct.unpack("<HHI", start[:8])
        is_explicit = start[4:6].isalpha() and start[4:6].isupper()
        if group in (2, 8) and element <= _FIRST_ELEMENTS and (is_explicit or _is_implicit(stream, group, element, length)):
            raise InputError(path, "a DICOM data set without the preamble of a file", "DICOM files (PS3.10, section 7.1)")
    return False


def _is_implicit(stream: BinaryIO, group: int, element: int, length: int) -> bool:
    """Whether a file may be a data set of implicit types, by its first element and the two lengths and tag that must fit.

    Integers at the beginning of any file may look like an element: the value 8, as an element (0008,0000), which has 4 bytes.
    """
    if length > _LONGEST_VALUE or (element == 0 and length != 4):
        return False
    stream.seek(8 + length)
    second = stream.read(8)
    if len(second) < 8:
        return False
    next_group, next_element, next_length = struct.unpack("<HHI", second)
    follows = (next_group == group and next_element > element) or next_group in _NEXT_GROUPS
    size = os.fstat(stream.fileno()).st_size
    return follows and (next_length == _UNDEFINED or (next_length % 2 == 0 and next_length <= size - stream.tell()))


def _walk_meta_information(stream: BinaryIO, end: int) -> _Encoding:
    """Parse the group before the data set; return the encoding of the data set, which it states."""
    syntax = ""
    while _peeked_tag(stream, _EXPLICIT)[0] == _TRANSFER_SYNTAX[0]:
        tag, _, length = _element(stream, end, _EXPLICIT)
        value = stream.read(length)
        if tag == _TRANSFER_SYNTAX:
            syntax = _text(value)
    if syntax == _DEFLATED:
        raise InputError(Path(stream.name), "its data set is deflated, which is not read", "another transfer syntax")
    return _ENCODINGS.get(syntax, _EXPLICIT)


def _walk(
    stream: BinaryIO,
    end: int,
    encoding: _Encoding,
    tags: dict[str, str],
    wanted: Collection[str] = _TAGS,
    last: tuple[int, int] = (0xFFFF, 0xFFFF),
) -> None:
    """Parse the data set up to and including its pixels, which only padding follows, or up to the tag `last`.

    Its elements are sorted by tag; those that are `wanted` are added to `tags`.
    """
    needed = 1  # bits of the pixels, if they are not compressed
    while stream.tell() < end:
        tag, kind, length = _element(stream, end, encoding)
        if tag > last:
            return
        start = stream.tell()
        key = f"{tag[0]:04x}|{tag[1]:04x}"
        if key in wanted:
            tags[key] = "" if length == _UNDEFINED else _text(stream.read(min(length, _LONGEST_VALUE)))
            stream.seek(start)
        if tag in _PIXEL_COUNTS:
            if length != 2:
                raise _DamagedError
            (count,) = _unpacked(stream, f"{encoding.order}H")
            stream.seek(start)
            needed *= count
            if key in wanted:
                tags[key] = str(count)
        elif tag == _FRAMES and length <= _LONGEST_VALUE:
            needed *= int(_text(stream.read(length)) or "1")
            stream.seek(start)
        _skip_value(stream, end, encoding, tag, kind, length, 0)
        if tag == _PIXEL_DATA:
            if 8 * length < needed:  # an undefined length, of compressed pixels, is the largest number
                raise _DamagedError
            return


def _skip_value(
    stream: BinaryIO, end: int, encoding: _Encoding, tag: tuple[int, ...], kind: bytes, length: int, depth: int
) -> None:
    """Move to the end of an element's value; parse every item of a sequence."""
    start = stream.tell()
    inner = _IMPLICIT if kind == b"UN" else encoding
    if length == _UNDEFINED and tag == _PIXEL_DATA:
        _skip_fragments(stream, end, encoding)
    elif length == _UNDEFINED:
        _walk_items(stream, end, inner, depth, delimited=True)
    else:
        if kind == b"SQ" or (kind in (b"", b"UN") and length >= 8 and _peeked_tag(stream, inner) == _ITEM):
            _walk_items(stream, start + length, inner, depth, delimited=False)
        stream.seek(start + length)


def _walk_items(stream: BinaryIO, end: int, encoding: _Encoding, depth: int, *, delimited: bool) -> None:
    """Parse the items of a sequence, up to its delimiter or to `end`."""
    if depth > _DEEPEST:
        raise _DamagedError
    while delimited or stream.tell() < end:
        tag, length = _item(stream, end, encoding)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM:
            raise _DamagedError
        item_end = end if length == _UNDEFINED else stream.tell() + length
        while length == _UNDEFINED or stream.tell() < item_end:
            if length == _UNDEFINED and _peeked_tag(stream, encoding) == _ITEM_END:
                _item(stream, end, encoding)
                break
            inner_tag, kind, inner_length = _element(stream, item_end, encoding)
            _skip_value(stream, item_end, encoding, inner_tag, kind, inner_length, depth + 1)


def _skip_fragments(stream: BinaryIO, end: int, encoding: _Encoding) -> None:
    """Move to the end of compressed pixels, which are stored in fragments."""
    while True:
        tag, length = _item(stream, end, encoding)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM or length == _UNDEFINED:
            raise _DamagedError
        stream.seek(length, os.SEEK_CUR)


def _element(stream: BinaryIO, end: int, encoding: _Encoding) -> tuple[tuple[int, ...], bytes, int]:
    """Read an element's tag, its type (empty if implicit) and the length of its value, which must end before `end`."""
    tag = _unpacked(stream, f"{encoding.order}HH")
    kind = stream.read(2) if encoding.explicit else b""
    if kind and not (kind.isalpha() and kind.isupper()):
        raise _DamagedError
    layout = "I" if not encoding.explicit else "2xI" if kind in _LONG_TYPES else "H"
    (length,) = _unpacked(stream, f"{encoding.order}{layout}")
    if length != _UNDEFINED and length > end - stream.tell():
        raise _DamagedError
    return tag, kind, length


def _item(stream: BinaryIO, end: int, encoding: _Encoding) -> tuple[tuple[int, ...], int]:
    """Read the tag and length of an item or delimiter."""
    *tag, length = _unpacked(stream, f"{encoding.order}HHI")
    if length != _UNDEFINED and length > end - stream.tell():
        raise _DamagedError
    return tuple(tag), length


def _unpacked(stream: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _peeked_tag(stream: BinaryIO, encoding: _Encoding) -> tuple[int, ...]:
    start = stream.tell()
    tag = _unpacked(stream, f"{encoding.order}HH")
    stream.seek(start)
    return tag


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")
