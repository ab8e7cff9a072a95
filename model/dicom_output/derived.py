"""The objects that go back to the PACS: activation maps, lungs and report of one case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..imaging.scan import Scan
from ..lungs.densitometry import Densitometry
from ..subtyping import Subtyping
from .segmentation import lungs_segmentation, maps_segmentation
from .software import Software
from .source import SourceSeries, quiet
from .structured_report import structured_report

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True)
class DerivedObjects:
    """DICOM objects of the study of a source series, each in a series of its own. They name the patient: `repr` does not.

    Attributes:
        folder: of the source series; for messages.
    """

    folder: Path
    activation_maps: Dataset = field(repr=False)
    lungs: Dataset = field(repr=False)
    report: Dataset = field(repr=False)

    @classmethod
    def of(
        cls,
        source: SourceSeries,
        scan: Scan,
        subtyping: Subtyping,
        density: tuple[Densitometry, dict[str, Densitometry]],
        software: Software,
        warnings: Sequence[str] = (),
    ) -> DerivedObjects:
        """Derive the objects of a case that was scored.

        Args:
            density: of the lungs and of each region, as `densitometry.measure` returns it.
            warnings: about the case, for the report.

        Raises:
            InputError: the headers of the source do not allow it.
        """
        with quiet(source.folder):
            maps = maps_segmentation(source, scan, subtyping.findings, software)
            lungs = lungs_segmentation(source, scan, subtyping.regions, software)
            report = structured_report(source, maps, lungs, subtyping, density, software, warnings)
            return cls(source.folder, maps, lungs, report)

    def write(self, name: str, path: Path) -> None:
        """Write the object of that attribute as a DICOM file.

        Raises:
            InputError: an attribute that was taken from the source cannot be written.
            OSError: the file cannot be written.
        """
        dataset: Dataset = getattr(self, name)
        with quiet(self.folder):
            dataset.save_as(path, enforce_file_format=True)
