"""DICOM objects as other programs read them: dcmqi, dciodvfy of dicom3tools, dsrdump of DCMTK, pydicom."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import subprocess
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.config import disable_value_validation

from model.dicom_output.derived import DerivedObjects
from model.dicom_output.software import Software
from model.dicom_output.source import SourceSeries, quiet
from model.errors import InputError
from model.imaging.geometry import ImageGeometry
from model.lungs import densitometry
from test.conftest import need
from test.dicom_output.cases import KINDS, OBLIQUE, SOFTWARE, WARNING, DerivedCase, dcmqi, derived_case
from test.imaging.series import IDENTIFIERS, SCANNER_TAGS
from test.phantom import make_phantom

SECRET = "Zweistein"

GRIDS = {"straight": ("LPS", None), "slices reversed": ("LPI", None), "sagittal": ("PIR", None), "oblique": ("LPS", OBLIQUE)}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> DerivedCase:
    return derived_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def lobar(tmp_path_factory: pytest.TempPathFactory) -> DerivedCase:
    return derived_case(tmp_path_factory.mktemp("lobar"), lobes=True)


def read_by_dcmqi(path: Path, like: sitk.Image) -> list[np.ndarray]:
    """The segments of a file, in their order, on the grid of an image; dcmqi leaves out slices at both ends that are empty."""
    dcmqi("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", path.parent, "--prefix", path.stem, "-t", "nrrd")
    files = sorted(path.parent.glob(f"{path.stem}-*.nrrd"), key=lambda file: int(file.stem.rpartition("-")[2]))
    nearest = sitk.sitkNearestNeighbor
    return [sitk.GetArrayFromImage(sitk.Resample(sitk.ReadImage(str(f)), like, sitk.Transform(), nearest)) for f in files]


@pytest.mark.parametrize("grid", GRIDS)
def test_dcmqi_reads_the_same_voxels_at_the_same_places(grid: str, tmp_path: Path) -> None:
    case = derived_case(tmp_path, *GRIDS[grid])
    wanted = [case.map_image(subtype) for subtype in ("centrilobular", "paraseptal")]
    found = read_by_dcmqi(case.files["activation_maps"], wanted[0])
    for segment, image in zip(found, wanted, strict=True):
        assert sitk.GetArrayFromImage(image).any()
        assert np.array_equal(segment, sitk.GetArrayFromImage(image))
    lungs = read_by_dcmqi(case.files["lungs"], wanted[0])
    labels = np.zeros(case.scan.shape, np.uint8)
    labels[case.subtyping.regions.box] = case.subtyping.regions.labels  # 1 is right, 2 is left
    for segment, mask in zip(lungs, (labels > 0, labels == 1, labels == 2), strict=True):
        on_grid = sitk.GetArrayFromImage(case.scan.to_file_grid(mask.astype(np.uint8)))
        assert np.array_equal(segment > 0, on_grid > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(kind: str, case: DerivedCase, lobar: DerivedCase) -> None:
    need(shutil.which("dciodvfy") is not None, "dciodvfy (Debian package dicom3tools)")
    for path in (case.files[kind], lobar.files[kind]):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60, check=False)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "<99EMPHYSUB>" not in line]
        assert done.returncode == 0
        assert said == [{"report": "EnhancedSR"}.get(kind, "Segmentation")]


def test_dsrdump_prints_the_report(case: DerivedCase) -> None:
    need(shutil.which("dsrdump") is not None, "dsrdump (Debian package dcmtk)")
    command = ["dsrdump", "+Pc", "+Pl", str(case.files["report"])]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for expected in (
        '(68328006,SCT,"Centrilobular emphysema")',
        '(31898008,SCT,"Paraseptal emphysema")',
        '(CLE-3,99EMPHYSUB,"moderate")',
        '(PSE-1,99EMPHYSUB,"mild")',
        '="14.2" (%,UCUM,"percent")',
        f"bundle_sha256={'ab' * 32}",
        "Research software, not a medical device.",
        WARNING,
        "Zweistein^Ottilie",
        "UNVERIFIED",
    ):
        assert expected in text


def measured_by_dcmqi(case: DerivedCase) -> dict[tuple[str, str], dict[str, tuple[float, str]]]:
    """What dcmqi reads from the report: by tracking identifier and finding site, each value with its unit."""
    table = case.files["report"].with_suffix(".json")
    dcmqi("tid1500reader", "--inputDICOM", case.files["report"], "--outputMetadata", table)
    groups: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
    for group in json.loads(table.read_text())["Measurements"]:
        items: list[Any] = group["measurementItems"]
        key = (group["TrackingIdentifier"], group["FindingSite"]["CodeValue"])
        groups[key] = {i["quantity"]["CodeValue"]: (float(i["value"]), i["units"]["CodeValue"]) for i in items}
    return groups


def test_dcmqi_reads_the_measurements_of_lungs_and_sides(case: DerivedCase) -> None:
    lungs, parts = densitometry.measure(case.scan, case.subtyping.regions)
    groups = measured_by_dcmqi(case)
    assert groups[("centrilobular emphysema", "39607008")] == {"FLEISCHNER-SCORE": (3, "{score}"), "CLE-PERCENT": (14.2, "%")}
    assert groups[("paraseptal emphysema", "39607008")] == {"FLEISCHNER-SCORE": (1, "{score}"), "PSE-PERCENT": (3.1, "%")}
    assert groups[("lungs", "39607008")]["118565006"] == (round(lungs.volume_ml), "ml")
    assert groups[("right", "3341006")] == {
        "118565006": (round(parts["right"].volume_ml), "ml"),
        "LAA950": (round(parts["right"].laa950_percentage, 4), "%"),
        "PERC15": (parts["right"].perc15_hu, "[hnsf'U]"),
        "CLE-PERCENT": (14.2, "%"),
        "PSE-PERCENT": (3.1, "%"),
    }
    assert groups[("left", "44029006")]["CLE-PERCENT"] == (15.2, "%")
    assert len(groups) == 5


def test_lobes_have_segments_and_measurements_of_their_own(lobar: DerivedCase) -> None:
    sites = {
        "right upper lobe": "42400003",
        "right lower lobe": "266005",
        "left upper lobe": "44714003",
        "left lower lobe": "41224006",
    }
    groups = measured_by_dcmqi(lobar)
    assert sites.items() <= dict(groups).keys()
    segments = pydicom.dcmread(lobar.files["lungs"]).SegmentSequence
    assert [segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in segments] == [
        *("39607008", "3341006", "44029006"),
        *("44714003", "41224006", "42400003", "266005"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_belongs_to_the_study_and_the_patient_of_its_source(kind: str, case: DerivedCase) -> None:
    source = pydicom.dcmread(min(case.series.iterdir()))
    derived = pydicom.dcmread(case.files[kind])
    for keyword in ("StudyInstanceUID", "StudyDate", "StudyTime"):
        assert derived[keyword].value == source[keyword].value
    for tag, value in IDENTIFIERS.items():
        assert derived[int(tag.replace("|", ""), 16)].value == value
    assert derived.SeriesInstanceUID != source.SeriesInstanceUID
    assert derived.SoftwareVersions
    assert derived.DeviceSerialNumber == "ab" * 32
    if kind != "report":
        assert derived.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert derived.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "emphysema-subtyping"
        assert derived.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_each_frame_refers_to_the_slice_at_its_place(case: DerivedCase) -> None:
    places = {}
    for path in case.series.iterdir():
        header = pydicom.dcmread(path)
        places[header.SOPInstanceUID] = header.ImagePositionPatient
    frames = pydicom.dcmread(case.files["activation_maps"]).PerFrameFunctionalGroupsSequence
    for frame in frames:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert frame.PlanePositionSequence[0].ImagePositionPatient == places[image.ReferencedSOPInstanceUID]
    assert 20 < len(frames) < 2 * case.scan.shape[0]  # those without activation are left out


def test_maps_without_any_activation_can_be_written(case: DerivedCase) -> None:
    empty = [dataclasses.replace(finding, activation_map=0 * finding.activation_map) for finding in case.subtyping.findings]
    subtyping = dataclasses.replace(case.subtyping, centrilobular=empty[0], paraseptal=empty[1])
    source = SourceSeries.read(case.series, case.scan.geometry)
    density = densitometry.measure(case.scan, subtyping.regions)
    derived = DerivedObjects.of(source, case.scan, subtyping, density, SOFTWARE)
    assert not derived.activation_maps.pixel_array.any()


@pytest.mark.parametrize(
    ("bundle", "model"),
    [(r"runs\first", "runs/first"), ("", "emphysema-subtyping"), (" ", "emphysema-subtyping"), ("a" * 70, "a" * 64)],
)
def test_a_bundle_s_name_is_one_value_of_the_equipment(bundle: str, model: str, case: DerivedCase, tmp_path: Path) -> None:
    source = SourceSeries.read(case.series, case.scan.geometry)
    density = densitometry.measure(case.scan, case.subtyping.regions)
    software = Software(bundle, "ab" * 32, "paper", "nothing")
    derived = DerivedObjects.of(source, case.scan, case.subtyping, density, software)
    for kind in KINDS:
        derived.write(kind, tmp_path / kind)
        assert pydicom.dcmread(tmp_path / kind).ManufacturerModelName == model


def test_activation_in_floating_point_is_rounded_to_the_nearest_level(case: DerivedCase) -> None:
    near = [
        dataclasses.replace(finding, activation_map=((finding.activation_map - 0.4).clip(0) / 255).astype(np.float32))
        for finding in case.subtyping.findings
    ]
    subtyping = dataclasses.replace(case.subtyping, centrilobular=near[0], paraseptal=near[1])
    source = SourceSeries.read(case.series, case.scan.geometry)
    density = densitometry.measure(case.scan, subtyping.regions)
    derived = DerivedObjects.of(source, case.scan, subtyping, density, SOFTWARE)
    written = pydicom.dcmread(case.files["activation_maps"])
    assert np.array_equal(derived.activation_maps.pixel_array, written.pixel_array)


def test_slices_may_lie_off_by_a_tenth_of_their_distance(case: DerivedCase) -> None:
    geometry = case.scan.geometry
    x, y, z = geometry.origin
    for share in (-0.09, 0.09):
        SourceSeries.read(case.series, dataclasses.replace(geometry, origin=(x, y, z + share * geometry.spacing[2])))
    for share in (-0.11, 0.11):
        with pytest.raises(InputError, match="slices that lie elsewhere than in the volume"):
            SourceSeries.read(case.series, dataclasses.replace(geometry, origin=(x, y, z + share * geometry.spacing[2])))


def test_a_series_that_cannot_be_referred_to_is_refused_without_naming_the_patient(tmp_path: Path) -> None:
    tags = {tag: value for tag, value in SCANNER_TAGS.items() if tag != "0020|0052"}
    with pytest.raises(InputError, match="series: slices without an identifier of their frame of reference") as refused:
        derived_case(tmp_path, tags=lambda _: tags)
    assert not any(value in str(refused.value) for value in IDENTIFIERS.values())


def test_a_series_without_what_may_be_missing_has_its_objects(tmp_path: Path) -> None:
    kept = {tag: SCANNER_TAGS[tag] for tag in ("0020|0052", "0008|0016")}
    derived = pydicom.dcmread(derived_case(tmp_path, tags=lambda _: kept).files["report"])
    assert (derived.PatientName, derived.AccessionNumber) == ("", "")


def changed_series(case: DerivedCase, folder: Path, **values: Any) -> Path:
    """A copy of a case's series with other values in each header, also such as the standard does not allow."""
    series = shutil.copytree(case.series, folder / "series")
    for path in series.iterdir():
        with warnings.catch_warnings(action="ignore"), disable_value_validation():
            header = pydicom.dcmread(path)
            for keyword, value in values.items():
                setattr(header, keyword, value)
            header.save_as(path)
    return series


def derived(case: DerivedCase, series: Path) -> DerivedObjects:
    source = SourceSeries.read(series, case.scan.geometry)
    density = densitometry.measure(case.scan, case.subtyping.regions)
    return DerivedObjects.of(source, case.scan, case.subtyping, density, SOFTWARE)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("PatientSex", ("U", "m", "female")),
        ("PatientBirthDate", ("19500000", "00000000", "1950", "19500230", "19500101-19510101")),
        ("StudyDate", ("20241301", "ANON")),
        ("StudyTime", ("246000", "101112.123456789")),
        ("PatientName", (r"Zweistein\Ottilie",)),
        ("ReferringPhysicianName", (r"Sankt\Nirgendwo",)),
    ],
)
def test_an_invalid_value_of_patient_or_study_is_left_empty(
    keyword: str, values: tuple[str, ...], case: DerivedCase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for value in values:
        caplog.clear()
        series = changed_series(case, tmp_path / value, **{keyword: value})
        source = SourceSeries.read(series, case.scan.geometry)
        assert not any(header[keyword].value for header in source.slices)
        assert caplog.messages == [f"{series}: left empty in the DICOM objects, because the value is invalid: {keyword}"]
    made = derived(case, series)
    for kind in KINDS:
        made.write(kind, tmp_path / kind)
        assert not pydicom.dcmread(tmp_path / kind)[keyword].value


def test_numbers_are_as_in_the_source_also_where_the_standard_does_not_allow_them(case: DerivedCase, tmp_path: Path) -> None:
    """A PACS that has the CT files the objects by them."""
    numbers = {"PatientID": "X" * 70, "AccessionNumber": "A" * 20, "StudyID": r"a\b"}
    made = derived(case, changed_series(case, tmp_path, **numbers))
    for kind in KINDS:
        made.write(kind, tmp_path / kind)
        with warnings.catch_warnings(action="ignore"):
            header = pydicom.dcmread(tmp_path / kind)
            assert (header.PatientID, header.AccessionNumber, header.StudyID) == ("X" * 70, "A" * 20, ["a", "b"])


def test_a_series_whose_slices_share_an_instance_uid_is_refused(case: DerivedCase, tmp_path: Path) -> None:
    series = changed_series(case, tmp_path)
    header = pydicom.dcmread(series / "0003.dcm")
    header.SOPInstanceUID = pydicom.dcmread(series / "0001.dcm").SOPInstanceUID
    header.save_as(series / "0003.dcm")
    with pytest.raises(InputError, match=r"0003\.dcm: a slice with the instance UID of 0001\.dcm; expected"):
        SourceSeries.read(series, case.scan.geometry)


def test_a_value_that_cannot_be_read_is_refused_with_the_name_of_its_attribute(case: DerivedCase, tmp_path: Path) -> None:
    series = shutil.copytree(case.series, tmp_path / "series")
    path = series / "0000.dcm"
    header = pydicom.dcmread(path)
    header.add_new("AcquisitionDuration", "LO", "Q" * 10)  # a number of 8 bytes; the file's syntax states no types
    header.save_as(path)
    assert header.file_meta.TransferSyntaxUID == pydicom.uid.ImplicitVRLittleEndian
    with pytest.raises(InputError, match=r"0000\.dcm: the value of AcquisitionDuration cannot be read; ") as refused:
        SourceSeries.read(series, case.scan.geometry)
    assert "QQ" not in str(refused.value)


def test_a_slice_thickness_that_is_no_number_is_the_distance_of_the_slices(case: DerivedCase, tmp_path: Path) -> None:
    series = shutil.copytree(case.series, tmp_path / "series")
    for path in series.iterdir():
        header = pydicom.dcmread(path)
        del header.SliceThickness
        header.add_new("SliceThickness", "LO", "thin")
        header.save_as(path)
    made = derived(case, series)
    (measures,) = made.lungs.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SliceThickness == pytest.approx(case.scan.geometry.spacing[2])


@pytest.mark.parametrize("character_set", ["ISO 2022 IR 87", "ISO 2022 IR 149"], ids=["Japanese", "Korean"])
def test_names_in_several_character_sets_are_kept(character_set: str, case: DerivedCase, tmp_path: Path) -> None:
    name = {"ISO 2022 IR 87": "Yamada^Tarou=山田^太郎", "ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동"}[character_set]
    series = shutil.copytree(case.series, tmp_path / "series")
    for path in series.iterdir():
        header = pydicom.dcmread(path)
        header.SpecificCharacterSet = ["", character_set]
        header.PatientName = name
        header.save_as(path)
    source = SourceSeries.read(series, case.scan.geometry)
    density = densitometry.measure(case.scan, case.subtyping.regions)
    derived = DerivedObjects.of(source, case.scan, case.subtyping, density, SOFTWARE)
    for kind in KINDS:
        getattr(derived, kind).save_as(tmp_path / kind)
        assert str(pydicom.dcmread(tmp_path / kind).PatientName) == name


def test_one_object_that_holds_all_slices_is_refused(tmp_path: Path) -> None:
    ct, _ = make_phantom().images()
    (tmp_path / "ct.dcm").touch()
    with pytest.raises(InputError, match=r"ct\.dcm: a DICOM object that holds several slices"):
        SourceSeries.read(tmp_path / "ct.dcm", ImageGeometry.of(ct))


def test_what_the_libraries_say_of_an_odd_header_is_not_repeated(
    case: DerivedCase, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    shutil.copytree(case.series, tmp_path / "series")
    for path in (tmp_path / "series").iterdir():
        header = pydicom.dcmread(path)
        del header.PatientBirthDate
        header.add_new("PatientBirthDate", "LO", f"{SECRET} of {SECRET}")
        header.add_new("StudyTime", "LO", SECRET)
        header.save_as(path)
    recwarn.clear()
    caplog.clear()
    with contextlib.suppress(InputError):
        source = SourceSeries.read(tmp_path / "series", case.scan.geometry)
        density = densitometry.measure(case.scan, case.subtyping.regions)
        DerivedObjects.of(source, case.scan, case.subtyping, density, SOFTWARE).write("report", tmp_path / "report.dcm")
    assert SECRET not in caplog.text
    assert not [warning for warning in recwarn if SECRET in str(warning.message)]
    with pytest.raises(InputError) as refused, quiet(tmp_path):
        raise ValueError(f"{SECRET} is no date")
    assert SECRET not in str(refused.value)
    assert SECRET not in caplog.text


def test_silence_in_several_threads_leaves_logs_and_warnings_as_they_were(tmp_path: Path) -> None:
    """The first block ends while the others are within."""
    libraries = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [library.level for library in libraries], list(warnings.filters)

    def hold(seconds: float) -> None:
        with quiet(tmp_path):
            time.sleep(seconds)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(hold, (0.1, 0.2, 0.3)))
    assert ([library.level for library in libraries], list(warnings.filters)) == before
