from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from model.cohort.readings import Reading, Readings, read_pairs, read_predictions, read_reference
from model.cohort.tables import Extent
from model.errors import InputError
from test.evaluation.results import result, write_predictions, write_results, write_simulated_reference


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def scores(readings: Readings) -> dict[str, tuple[int | None, ...]]:
    return {entity: tuple(extent.score for extent in reading.extents) for entity, reading in readings.cases.items()}


@pytest.mark.parametrize(
    "text",
    [
        "entity,centrilobular,paraseptal\na,3,1\nb,0,\n",
        "\ufeffentity , centrilobular,paraseptal,extra\r\na, 3 ,1,x\r\nb,0.0,,y\r\n",
        "sid\tCT_Visual_Emph_Severity_P1\tgender\tCT_Visual_Emph_Paraseptal_P1\na\t3\t1\t1.0\nb\t0\t2\t\n",
        "entity,cle_score,pse_score\na,3,1\nb,0,\n",
        "entity,centrilobular,paraseptal\n\na,3,1\nb,0\n",
    ],
    ids=["our names", "spaces, a byte order mark and more columns", "COPDGene", "simulated cohort", "a short row"],
)
def test_visual_scores_are_read_by_the_names_that_tables_use(tmp_path: Path, text: str) -> None:
    assert scores(read_reference(write(tmp_path / "reference.csv", text))) == {"a": (3, 1), "b": (0, None)}


def test_a_simulated_cohorts_reference_brings_its_percentages(tmp_path: Path) -> None:
    readings = read_reference(write_simulated_reference(tmp_path / "reference.csv", {"a": (14.25, 0.5)}))
    assert readings.cases == {"a": Reading((Extent(3, 14.25), Extent(0, 0.5)))}


def test_a_row_without_any_score_is_no_reference(tmp_path: Path) -> None:
    readings = read_reference(write(tmp_path / "reference.csv", "entity,centrilobular,paraseptal\na,,\nb,1,1\n"))
    assert list(readings.cases) == ["b"]


def test_one_error_lists_everything_that_is_wrong_with_a_table(tmp_path: Path) -> None:
    rows = ["a,6,0", "b,-1,3", "c,1.5,1", "d,two,1", "e,1,1", "e,1,1", ",1,1", "f,nan,0", "g,inf,0", "h,3,1"]
    path = write(tmp_path / "reference.csv", "\n".join(["entity,centrilobular,paraseptal", *rows, ""]))
    with pytest.raises(InputError) as caught:
        read_reference(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: 9 that cannot be used: ")
    for problem in (
        "a: centrilobular score '6'",
        "b: centrilobular score '-1'",
        "b: paraseptal score '3'",
        "c: centrilobular score '1.5'",
        "d: centrilobular score 'two'",
        "e: 2 times",
        "1 without an entity",
        "f: centrilobular score 'nan'",
        "g: centrilobular score 'inf'",
    ):
        assert problem in message
    assert " h: " not in message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("entity,centrilobular\na,1\n", "missing columns: paraseptal"),
        ("entity;centrilobular;paraseptal\na;1;1\n", "missing columns.*, separated by commas or tabs$"),
        ("sep=,\nentity,centrilobular,paraseptal\na,1,1\n", "missing columns.*, separated by commas or tabs$"),
        ("entity,centrilobular,cle_score,paraseptal\na,1,1,1\n", "several columns for centrilobular"),
        ("entity,centrilobular,paraseptal,centrilobular\na,1,1,2\n", "several columns for centrilobular"),
        ("entity,centrilobular,paraseptal\n", "no rows"),
        ("", "not a table"),
        ("entity,centrilobular,paraseptal\na,1,1,1,1\n", "not a table"),
        ("entity,cle_score,pse_score,cle_percentage\na,1,1,101\n", "centrilobular percentage '101'"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(InputError, match=found) as caught:
        read_reference(write(tmp_path / "reference.csv", text))
    assert "\n" not in str(caught.value)


def test_bytes_and_missing_files_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    for name in ("bytes.csv", "nothing.csv"):
        with pytest.raises(InputError, match=name):
            read_reference(tmp_path / name)


def test_a_table_of_both_sides_may_have_empty_cells(tmp_path: Path) -> None:
    text = "entity,cle_reference,cle_predicted,pse_reference,pse_predicted\na,3,2,1,1\nb,,,2,0\nc,4,5,,1\n"
    reference, predictions = read_pairs(write(tmp_path / "scores.csv", text))
    assert scores(reference) == {"a": (3, 1), "b": (None, 2), "c": (4, None)}
    assert scores(predictions) == {"a": (2, 1), "b": (None, 0), "c": (5, 1)}


def test_a_row_without_any_score_of_one_side_is_no_case_of_that_side(tmp_path: Path) -> None:
    text = "entity,cle_reference,cle_predicted,pse_reference,pse_predicted\na,3,2,1,1\nb,4,,1,\nc,,4,,1\n"
    reference, predictions = read_pairs(write(tmp_path / "scores.csv", text))
    assert (list(reference.cases), list(predictions.cases)) == (["a", "b"], ["a", "c"])


def test_a_table_of_both_sides_says_which_side_is_wrong(tmp_path: Path) -> None:
    text = "entity,cle_reference,cle_predicted,pse_reference,pse_predicted\na,3,7,4,1\n"
    with pytest.raises(InputError, match=r"reference paraseptal score '4'.*predicted centrilobular score '7'"):
        read_pairs(write(tmp_path / "scores.csv", text))


def test_results_are_read_from_a_folder_a_case_and_from_one_file_alike(tmp_path: Path) -> None:
    percentages = {"a": (14.2, 3.1), "b": (0.0, 7.0)}
    apart = read_predictions(write_predictions(tmp_path / "apart", percentages))
    together = read_predictions(write_results(tmp_path / "together", [result(e, *p) for e, p in percentages.items()]))
    file = read_predictions(tmp_path / "together" / "results.json")
    assert scores(apart) == scores(together) == scores(file) == {"a": (3, 1), "b": (0, 2)}
    assert apart.name == "tested"
    assert apart.cases["a"].maps[1] == tmp_path / "apart/a/images/paraseptal-emphysema-heatmap/a.mha"
    assert together.cases["a"].maps[0] == tmp_path / "together/images/centrilobular-emphysema-heatmap/a.mha"


def test_a_classification_networks_results_have_no_percentages(tmp_path: Path) -> None:
    folder = write_results(tmp_path, [result("a", 14.2, 3.1, cle_percentage=None, pse_percentage=None)])
    assert read_predictions(folder).cases["a"].extents == (Extent(3), Extent(1))


def test_cases_that_were_not_scored_are_failures_with_their_reason(tmp_path: Path) -> None:
    write_predictions(tmp_path, {"a": (1.0, 1.0)})
    write_results(tmp_path / "b", [{"entity": "b", "error_messages": ["b.mha: the file is empty"]}])
    write_results(tmp_path / "run", [{"entity": None, "error_messages": ["weights: no bundle"]}])
    assert read_predictions(tmp_path).failures == {"b": "b.mha: the file is empty", "run": "weights: no bundle"}


def test_names_are_one_however_their_accents_are_encoded(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    write_results(tmp_path / "run", [result(decomposed, 14.2, 3.1)])
    reading = read_predictions(tmp_path / "run").cases[composed]
    assert {path.stem for path in reading.maps} == {decomposed}, "as the files are named"
    table = tmp_path / "scores.csv"
    table.write_text(f"entity,cle_score,pse_score\n{decomposed},3,1\n", encoding="utf-8")
    assert list(read_reference(table).cases) == [composed]


def test_the_table_of_a_run_is_not_taken_for_its_results(tmp_path: Path) -> None:
    table = write(tmp_path / "results.csv", "entity,cle_severity_score\na,3\n")
    with pytest.raises(InputError, match="not the table of cases that cohort"):
        read_predictions(table)


@pytest.mark.parametrize("content", ['{"entity": "a"}', "[1]", "not json", '[{"entity": "a", "metrics": 3}]'])
def test_a_results_file_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path / "results.json", content)
    with pytest.raises(InputError, match=r"results\.json"):
        read_predictions(tmp_path)


def test_results_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    write_results(tmp_path / "1", [result("a", 1.0, 1.0), result("b", 1.0, 1.0, cle_severity_score=9)])
    write_results(tmp_path / "2", [result("a", 1.0, 1.0), {"entity": "c", "metrics": {"score": 3}}])
    with pytest.raises(InputError) as caught:
        read_predictions(tmp_path)
    for problem in (
        "b: metrics.cle_severity_score is 9, expected integer, minimum 0, maximum 5",
        "a: 2 times",
        "c: metrics.cle_severity_score is missing",
    ):
        assert problem in str(caught.value)


def test_a_folder_without_results_says_what_was_expected(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"expected a folder that holds results\.json"):
            read_predictions(path)
