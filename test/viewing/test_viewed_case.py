"""Cases as the page shows them: scored from uploads, or opened from a finished output folder."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from model.container.schema import to_json
from model.errors import InputError
from model.imaging.scan import AIR_HU, PADDING_HU
from model.stages import Stage, observed_by
from model.subtyping import EmphysemaSubtyper
from model.viewing import case as viewed
from model.viewing.case import finished_cases, finished_run, open_finished, score_uploads, unpacked_output
from model.viewing.page import _STAGES
from model.viewing.uploads import Upload
from test.phantom import Phantom
from test.viewing.conftest import write_finished_case


@pytest.fixture(scope="module")
def finished(lesioned: Phantom, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `input` and the `output` of process.py."""
    folder = tmp_path_factory.mktemp("finished")
    options = ("--precision", "float32", "--preview", "--report", "--save-lung-mask")
    write_finished_case(folder, lesioned, bundle, "case", *options)
    return folder


def uploads(finished: Path, kind: str) -> list[Upload]:
    return [Upload("DOE_JANE.mha", (finished / "input/images" / kind / "case.mha").read_bytes())]


def test_an_upload_is_scored_as_process_py_scores_it(finished: Path, bundle: Path) -> None:
    subtyper = EmphysemaSubtyper.from_bundle(bundle, precision="float32")
    case = score_uploads(subtyper, uploads(finished, "ct"), uploads(finished, "lung-mask"))
    (expected,) = json.loads((finished / "output/results.json").read_text())
    assert to_json(case.result) == expected | {"entity": "scan"}
    assert "DOE" not in json.dumps(to_json(case.result))
    files = case.files
    assert files.overview is not None
    assert files.overview.startswith(b"\x89PNG")
    assert files.report_pdf is not None
    assert files.report_pdf.startswith(b"%PDF")
    assert files.report_html is not None
    assert b"Case: <b>scan</b>" in files.report_html


def test_without_a_mask_the_lungs_are_found_and_the_result_says_so(finished: Path, bundle: Path) -> None:
    case = score_uploads(EmphysemaSubtyper.from_bundle(bundle), uploads(finished, "ct"), [])
    result = to_json(case.result)
    assert result["provenance"]["lung_mask_source"] == "automatic"
    assert result["metrics"]["cle_severity_score"] == 3


def test_downloaded_maps_and_mask_are_those_of_process_py(finished: Path, bundle: Path, tmp_path: Path) -> None:
    subtyper = EmphysemaSubtyper.from_bundle(bundle, precision="float32")
    case = score_uploads(subtyper, uploads(finished, "ct"), uploads(finished, "lung-mask"))
    contents = {f"{subtype}-emphysema-heatmap": content for subtype, content in case.files.maps.items()}
    assert case.files.lung_mask is not None
    for folder, content in {**contents, "lung-mask": case.files.lung_mask}.items():
        (tmp_path / "image.mha").write_bytes(content)
        image = sitk.ReadImage(str(tmp_path / "image.mha"))
        expected = sitk.ReadImage(str(finished / f"output/images/{folder}/case.mha"))
        assert image.GetDirection() == expected.GetDirection()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))


def test_a_finished_output_is_opened_with_its_ct_in_the_patients_frame(finished: Path, lesioned: Phantom) -> None:
    results = finished_cases(finished / "output")
    case = open_finished(finished / "output", results["case"], finished / "input")
    assert case.hounsfield is not None
    np.testing.assert_array_equal(case.hounsfield, lesioned.hounsfield)
    assert case.spacing == pytest.approx(lesioned.spacing)
    lesion = (lesioned.hounsfield == -1000) & (lesioned.lungs == 1)
    assert case.maps["centrilobular"][lesion].mean() > 200


def test_a_finished_output_without_its_ct_still_shows_its_maps(finished: Path) -> None:
    results = finished_cases(finished / "output")
    case = open_finished(finished / "output", results["case"], None)
    assert case.hounsfield is None
    assert case.lung is not None, "the lungs that were scored are in the output"


def test_a_finished_output_has_the_files_that_process_py_wrote(finished: Path) -> None:
    files = open_finished(finished / "output", finished_cases(finished / "output")["case"], None).files
    assert files.overview == (finished / "output/preview/case.png").read_bytes()
    assert files.report_pdf == (finished / "output/report/case.pdf").read_bytes()
    assert files.report_html == (finished / "output/report/case.html").read_bytes()


@pytest.mark.parametrize("entity", ["../case", "/etc/case", "a\\b"])
def test_a_result_cannot_name_a_file_elsewhere(finished: Path, entity: str) -> None:
    result = dataclasses.replace(finished_cases(finished / "output")["case"], entity=entity)
    with pytest.raises(InputError, match="expected the name of a file"):
        open_finished(finished / "output", result, None)


def test_linked_planes_are_ready_when_a_case_was_scored_or_opened(
    finished: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_finished(finished / "output", finished_cases(finished / "output")["case"], finished / "input")
    subtyper = EmphysemaSubtyper.from_bundle(bundle, precision="float32")
    scored = score_uploads(subtyper, uploads(finished, "ct"), uploads(finished, "lung-mask"))

    def late(_: object) -> None:
        raise AssertionError("made while the page waits")

    monkeypatch.setattr(viewed, "levels", late)
    monkeypatch.setattr(viewed, "start_mm", late)
    for case in (opened, scored):
        assert {name for level in case.browser_volumes for name in level} == {"ct", "centrilobular", "paraseptal", "contour"}
        assert len(case.start_mm) == 3


def test_percent_by_height_and_histogram_are_of_the_lung_alone(finished: Path, lesioned: Phantom) -> None:
    case = open_finished(finished / "output", finished_cases(finished / "output")["case"], finished / "input")
    np.testing.assert_array_equal(case.lung, lesioned.lungs > 0)
    percent = case.percent_by_height["centrilobular"]
    areas = np.count_nonzero(lesioned.lungs, axis=(1, 2))
    inside = areas >= 0.05 * areas.max()
    assert 0 < np.count_nonzero(areas) > np.count_nonzero(inside), "a few voxels at the apex or the base say nothing"
    np.testing.assert_array_equal(np.isnan(percent), ~inside)
    assert percent[45:60].min() > 30, "the right lung is emphysema there"
    assert percent[inside][:10].max() < 5
    assert 42 <= case.most_affected_level < 62
    assert case.histogram is not None
    bounds, shares = case.histogram
    sick = np.count_nonzero((lesioned.hounsfield == -1000) & (lesioned.lungs > 0)) / np.count_nonzero(lesioned.lungs)
    assert shares[bounds == -1000] == pytest.approx(100 * sick)
    assert shares[bounds == -860] == pytest.approx(100 * (1 - sick))


def archive_of(folder: Path, top: str, *outside: str) -> Upload:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{top}{path.relative_to(folder)}")
        for name in outside:
            archive.writestr(name, "text")
    return Upload("DOE_JANE.zip", buffer.getvalue())


@pytest.mark.parametrize("top", ["", "DOE_JANE/output/"])
def test_a_zip_of_an_output_is_opened_and_leaves_nothing(finished: Path, top: str) -> None:
    with unpacked_output(archive_of(finished / "output", top)) as folder:
        results = finished_cases(folder)
        case = open_finished(folder, results["case"], None)
    assert not folder.exists()
    assert case.maps["centrilobular"].max() > 200
    assert case.lung is not None
    assert case.files.report_html is not None


def test_a_zip_of_several_outputs_is_refused(finished: Path) -> None:
    buffer = io.BytesIO(archive_of(finished / "output", "one/").content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("two/results.json", "[]")
    with (
        pytest.raises(InputError, match=r"several results\.json in the \.zip"),
        unpacked_output(Upload("x.zip", buffer.getvalue())),
    ):
        pass


def test_cases_that_were_not_scored_are_named_with_the_reason(finished: Path, tmp_path: Path) -> None:
    results = json.loads((finished / "output/results.json").read_text())
    failed = {"entity": "a", "error_messages": ["a.mha: the file is empty"]}
    (tmp_path / "results.json").write_text(json.dumps([failed, *results]))
    scored, not_scored = finished_run(tmp_path)
    assert list(scored) == ["case"]
    assert not_scored == ["a: a.mha: the file is empty"]


def test_a_ct_with_padding_and_voxels_that_are_no_numbers_is_shown_as_it_was_scored(
    lesioned: Phantom, bundle: Path, tmp_path: Path
) -> None:
    hounsfield: Any = lesioned.hounsfield.astype(np.float32)
    inside = tuple(np.argwhere(lesioned.lungs > 0)[100])
    hounsfield[inside], hounsfield[0, 0, 0] = np.nan, 63536
    write_finished_case(tmp_path, dataclasses.replace(lesioned, hounsfield=hounsfield), bundle, "case")
    case = open_finished(tmp_path / "output", finished_cases(tmp_path / "output")["case"], tmp_path / "input")
    assert case.hounsfield is not None
    assert case.hounsfield[inside] == AIR_HU
    assert case.hounsfield[0, 0, 0] == PADDING_HU
    assert case.histogram is not None


def test_a_zip_that_is_no_output_or_reaches_outside_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(upload: Upload) -> str:
        with pytest.raises(InputError) as refused, unpacked_output(upload):
            pass
        return str(refused.value)

    assert refusal(Upload("DOE.zip", b"nonsense")).startswith("upload: the .zip cannot be unpacked (BadZipFile)")
    assert refusal(archive_of(finished / "input", "")).startswith("upload: no results.json in the .zip")
    assert "lies outside of it" in refusal(archive_of(finished / "output", "", "images/../../evil.mha"))
    monkeypatch.setattr(viewed, "available_memory", lambda: 1000)
    assert "the .zip unpacks to" in refusal(archive_of(finished / "output", ""))


def test_a_folder_that_is_no_output_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no results\.json in it"):
        finished_cases(tmp_path)
    (tmp_path / "results.json").write_text("[{")
    with pytest.raises(InputError, match=r"results\.json: it cannot be read"):
        finished_cases(tmp_path)
    (tmp_path / "results.json").write_text('[{"entity": "a", "error_messages": ["no"]}]')
    with pytest.raises(InputError, match="no case in it was scored"):
        finished_cases(tmp_path)


def test_the_bar_of_progress_has_the_stages_of_scoring_in_their_order(finished: Path, bundle: Path) -> None:
    ended: list[Stage] = []
    with observed_by(lambda stage, _: ended.append(stage)):
        score_uploads(EmphysemaSubtyper.from_bundle(bundle), uploads(finished, "ct"), [])
    assert ended == list(_STAGES)


def test_without_activation_the_middle_of_the_lungs_is_the_most_affected_level(finished: Path) -> None:
    case = open_finished(finished / "output", finished_cases(finished / "output")["case"], finished / "input")
    assert case.lung is not None
    lung = np.zeros_like(case.lung)
    lung[3:10, 20:30, 20:30] = True
    maps = {name: np.zeros_like(activation) for name, activation in case.maps.items()}
    assert dataclasses.replace(case, lung=lung, maps=maps).most_affected_level == 6


def test_a_map_that_cannot_be_written_is_an_error_of_the_system_without_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Reason: No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(OSError, match=r"^map\.mha: the image cannot be written \(No space left on device\)$"):
        viewed._mha(sitk.Image(4, 4, 4, sitk.sitkUInt8))
