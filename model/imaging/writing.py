"""Writes images; a disk that is full is an `OSError`, as for every other file (of NIfTI, its writer does not tell)."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk


def write_image(image: sitk.Image, path: Path, named: Path | None = None, *, level: int = -1) -> None:
    """Write an image in the format of the path's suffix, compressed.

    Args:
        named: the file that an error names, where `path` is only its name until it is whole.
        level: of compression, 1 (fast) to 9 (small); -1 is the format's own.

    Raises:
        OSError: it cannot be written; of a NIfTI file that is cut short, nothing is said.
    """
    try:
        sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=level)
    except RuntimeError as error:  # its last line says why; those before name source files and `path`
        why = str(error).strip().splitlines()[-1].removeprefix("Reason: ")
        raise OSError(f"{named or path}: the image cannot be written ({why})") from error
