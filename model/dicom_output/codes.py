"""The codes of what is reported: SNOMED CT, RadLex, UCUM and LOINC where they have one, else private ones.

`docs/pacs.md` names the source of each code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..fleischner import CENTRILOBULAR, PARASEPTAL, Subtype

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

PRIVATE_SCHEME = "99EMPHYSUB"
"""Names of private coding schemes begin with 99 (DICOM PS3.16, section 8)."""


@dataclass(frozen=True)
class Code:
    """A coded concept (DICOM PS3.3, section 8)."""

    value: str
    scheme: str
    meaning: str

    def concept(self) -> CodedConcept:
        """The same as highdicom takes it."""
        from highdicom.sr import CodedConcept

        return CodedConcept(self.value, self.scheme, self.meaning)


def _private(value: str, meaning: str) -> Code:
    return Code(value, PRIVATE_SCHEME, meaning)


CT_CHEST = Code("24627-2", "LN", "CT Chest")
ANATOMICAL_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
ALTERED_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
COMMENT = Code("121106", "DCM", "Comment")

EMPHYSEMA = Code("RID4799", "RADLEX", "emphysema")
SUBTYPES: dict[Subtype, Code] = {
    CENTRILOBULAR: Code("68328006", "SCT", "Centrilobular emphysema"),
    PARASEPTAL: Code("31898008", "SCT", "Paraseptal emphysema"),
}

LUNGS = Code("39607008", "SCT", "Lung")
REGIONS = {
    "both": LUNGS,
    "right": Code("3341006", "SCT", "Right lung"),
    "left": Code("44029006", "SCT", "Left lung"),
    "right_upper_lobe": Code("42400003", "SCT", "Upper lobe of right lung"),
    "right_middle_lobe": Code("72481006", "SCT", "Middle lobe of right lung"),
    "right_lower_lobe": Code("266005", "SCT", "Lower lobe of right lung"),
    "left_upper_lobe": Code("44714003", "SCT", "Upper lobe of left lung"),
    "left_lower_lobe": Code("41224006", "SCT", "Lower lobe of left lung"),
}
"""Those of `model.lungs.regions`."""

VOLUME = Code("118565006", "SCT", "Volume")
LAA950 = _private("LAA950", "Voxels below -950 HU")
PERC15 = _private("PERC15", "15th percentile of attenuation")
EXTENT = {
    CENTRILOBULAR: _private("CLE-PERCENT", "Extent of centrilobular emphysema"),
    PARASEPTAL: _private("PSE-PERCENT", "Extent of paraseptal emphysema"),
}
SCORE = _private("FLEISCHNER-SCORE", "Fleischner score")
SEVERITY = _private("FLEISCHNER-GRADE", "Fleischner grade")

PERCENT = Code("%", "UCUM", "percent")
MILLILITER = Code("ml", "UCUM", "milliliter")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
SCORE_UNIT = Code("{score}", "UCUM", "score")


def grade(subtype: Subtype, score: int) -> Code:
    """The private code of one grade, such as CLE-3, moderate."""
    return _private(f"{subtype.abbreviation.upper()}-{score}", subtype.grades[score].severity)
