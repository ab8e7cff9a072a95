from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.cohort.readings import Reading, Readings, read_pairs, read_reference
from model.cohort.tables import Extent
from model.errors import InputError
from model.evaluation.pairing import match


def readings(name: str, *entities: str, failures: dict[str, str] | None = None) -> Readings:
    return Readings(Path(name), name, {entity: Reading((Extent(0), Extent(0))) for entity in entities}, failures or {})


def test_cases_on_one_side_alone_are_an_error_that_lists_them_all() -> None:
    predictions = readings("predictions", "a", "d", "e", failures={"c": "the file is empty", "f": "no mask"})
    with pytest.raises(InputError) as caught:
        match(readings("reference", "a", "b", "c"), predictions)
    assert str(caught.value) == (
        "predictions: no result for 2 scans: b, c (the file is empty); no result for 1 scan: f (no mask); "
        "not in reference: 2 scans: d, e; expected the same entities in both, or --allow-missing"
    )


def test_allow_missing_goes_on_with_the_cases_on_both_sides_and_counts_the_others() -> None:
    coverage = match(readings("reference", "a", "b", "c"), readings("predictions", "c", "d", "a"), allow_missing=True)
    document = coverage.as_document()
    assert json.loads(json.dumps(document)) == {"paired": 2, "not_predicted": ["b"], "not_in_reference": ["d"]}


def test_a_row_of_a_table_of_both_sides_without_a_prediction_is_missing(tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text("entity,cle_reference,cle_predicted,pse_reference,pse_predicted\na,3,2,1,1\nb,4,,1,\n")
    with pytest.raises(InputError, match="no result for 1 scan: b"):
        match(*read_pairs(table))
    coverage = match(*read_pairs(table), allow_missing=True)
    assert coverage.as_document() == {"paired": 1, "not_predicted": ["b"], "not_in_reference": []}


def test_a_row_of_the_reference_without_a_score_is_not_said_to_be_missing(tmp_path: Path) -> None:
    table = tmp_path / "reference.csv"
    columns = "entity,centrilobular,paraseptal,centrilobular_percentage,paraseptal_percentage"
    table.write_text(f"{columns}\na,3,1,,\nb,,,14.5,2\n")
    with pytest.raises(InputError) as caught:
        match(read_reference(table), readings("predictions", "a", "b", "c"))
    assert f"no score in {table}: 1 scan: b; not in {table}: 1 scan: c; " in str(caught.value)
    both = tmp_path / "scores.csv"
    both.write_text("entity,cle_reference,cle_predicted,pse_reference,pse_predicted\na,3,2,1,1\nb,,4,,1\n")
    with pytest.raises(InputError, match=r"no score in .*scores\.csv: 1 scan: b;"):
        match(*read_pairs(both))


def test_without_any_case_on_both_sides_there_is_nothing_to_allow() -> None:
    with pytest.raises(InputError, match=r"expected the same entities in both$"):
        match(readings("reference", "a"), readings("predictions", "b"), allow_missing=True)
