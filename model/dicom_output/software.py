"""Who made the derived objects: this software and the weights it ran with, as DICOM records it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import __version__
from . import codes

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.sr import AlgorithmIdentification

NAME = "emphysema-subtyping"
_LONGEST = 64
"""Characters of an attribute of the type LO."""


@dataclass(frozen=True)
class Software:
    """The bundle that scored a case.

    Attributes:
        bundle: its name.
        bundle_sha256: as in `results.json`.
        profile: how the network's input was prepared.
        trained_on: what the bundle says of its training data.
    """

    bundle: str
    bundle_sha256: str
    profile: str
    trained_on: str

    @property
    def parameters(self) -> dict[str, str]:
        """What identifies the algorithm beside its name and version."""
        return {
            "bundle": self.bundle,
            "bundle_sha256": self.bundle_sha256,
            "profile": self.profile,
            "trained_on": self.trained_on,
        }

    def equipment(self) -> dict[str, Any]:
        """Manufacturer's attributes (DICOM PS3.3, C.7.5); each has one value, of which a backslash would make two."""
        return {
            "manufacturer": NAME,
            "manufacturer_model_name": self.bundle.replace("\\", "/")[:_LONGEST].strip() or NAME,
            "software_versions": __version__,
            "device_serial_number": self.bundle_sha256[:_LONGEST],
        }

    def for_segments(self) -> AlgorithmIdentificationSequence:
        """Name, version and parameters for a segmentation."""
        from highdicom import AlgorithmIdentificationSequence

        return AlgorithmIdentificationSequence(
            NAME, codes.ARTIFICIAL_INTELLIGENCE.concept(), __version__, source=NAME, parameters=self.parameters
        )

    def for_measurements(self) -> AlgorithmIdentification:
        """Name, version and parameters for a report."""
        from highdicom.sr import AlgorithmIdentification

        return AlgorithmIdentification(
            NAME, __version__, parameters=[f"{name}={value}" for name, value in self.parameters.items()]
        )
