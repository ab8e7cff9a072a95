"""`results.csv`, as a spreadsheet reads it."""

from __future__ import annotations

import csv
import dataclasses

from model.container.results import CaseResult, Metrics, Provenance, Quality, RegionMetrics, failed_result
from model.container.table import results_table

RESULT = CaseResult(
    "scan",
    Metrics(
        cle_severity_score=3,
        cle_severity="moderate",
        cle_percentage=14.2,
        pse_severity_score=1,
        pse_severity="mild",
        pse_percentage=None,
        pse_probabilities=(0.25, 0.5, 0.25),
        laa950_percentage=16.9,
        perc15_hu=-957,
        lung_volume_ml=5266,
        regions={"right": RegionMetrics(15.5, None, 17.25, -960, 2800)},
    ),
    Provenance(bundle="dark", sha256="ab", trained_on="nothing, or little", version="1"),
    warnings=("one; odd", "two"),
    quality=Quality(20.4, 1.06, 0.84, 5.0, None, 0.02, -815.0),
)


def rows(*results: CaseResult) -> list[dict[str, str]]:
    text = results_table(results).decode("utf-8-sig")
    assert text.endswith("\r\n")
    return list(csv.DictReader(text.splitlines()))


def test_a_case_is_a_row_with_a_column_for_each_field_of_each_region() -> None:
    (row,) = rows(RESULT)
    assert row["entity"] == "scan"
    assert (row["cle_severity_score"], row["cle_severity"], row["cle_percentage"]) == ("3", "moderate", "14.2")
    assert (row["pse_percentage"], row["pse_probabilities"]) == ("", "0.25 0.5 0.25")
    assert (row["right_cle_percentage"], row["right_perc15_hu"], row["right_volume_ml"]) == ("15.5", "-960", "2800")
    assert (row["bundle"], row["trained_on"]) == ("dark", "nothing, or little")
    assert (row["noise_hu"], row["edge_width_mm"], row["slice_thickness_mm"]) == ("20.4", "1.06", "")
    assert row["warnings"] == "one; odd; two"


def test_what_the_weights_were_validated_on_is_a_column_where_a_case_has_it() -> None:
    assert RESULT.provenance is not None
    validated = dataclasses.replace(RESULT, provenance=dataclasses.replace(RESULT.provenance, validated_on="500 scans"))
    assert [row["validated_on"] for row in rows(RESULT, validated)] == ["", "500 scans"]


def test_a_case_that_failed_is_a_row_with_its_error() -> None:
    good, failed = rows(RESULT, failed_result("b.mha: the file is empty", "b"))
    assert list(good)[-2:] == ["warnings", "error_messages"]
    assert failed["error_messages"] == "b.mha: the file is empty"
    assert failed["cle_severity_score"] == ""


def test_a_name_is_no_formula_and_keeps_its_letters() -> None:
    for name, cell in {"=cmd|' /C calc'!A0": "'=cmd|' /C calc'!A0", "+1": "'+1", "Größe 患者": "Größe 患者"}.items():
        assert rows(dataclasses.replace(RESULT, entity=name))[0]["entity"] == cell
