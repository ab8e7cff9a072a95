"""Damaged and hostile inputs, by seed: each ends with a result or with exit code 2 and one line, and touches nothing else.

`./test.sh -m slow -k fuzz` runs them all; a failing test's name tells family and seed, which make the same input again.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from model.weights import METADATA_FILE
from test.imaging.series import write_dicom_series
from test.phantom import Phantom, make_phantom
from test.test_weights import released_state
from test.trust import mutations
from test.trust.mutations import PATIENT, one_of
from test.trust.worker import Outcome, Worker

pytestmark = pytest.mark.slow

SECONDS = 60
MEMORY = 384 << 20
"""Far above what a run on these small scans takes (the network's grid is coarse, too), far below what headers may ask for."""

OUTCOMES: Counter[tuple[str, int | None]] = Counter()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(SECONDS)
    yield worker
    worker.stop()


@dataclasses.dataclass(frozen=True)
class Originals:
    """Whole inputs in every format, to be damaged; all headers that can hold text hold the patient's name."""

    folder: Path
    bundle: Path
    phantom: Phantom

    def bytes_of(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Originals:
    folder = tmp_path_factory.mktemp("originals")
    phantom = make_phantom((16, 20, 26), (16.0, 13.0, 12.5))
    name = PATIENT.decode()
    images = dict(zip(("ct", "mask"), phantom.images(), strict=True))
    for stem, image in images.items():
        for key in ("PatientName", "PatientID", "Comment"):
            image.SetMetaData(key, name)
        for suffix in (".mha", ".nrrd", ".nii"):
            sitk.WriteImage(image, str(folder / f"{stem}{suffix}"))
        sitk.WriteImage(image, str(folder / f"{stem}-compressed.mha"), useCompression=True)
        sitk.WriteImage(image, str(folder / f"{stem}-compressed.nrrd"), useCompression=True)
        header = bytearray((folder / f"{stem}.nii").read_bytes())
        for place in (14, 148, 228, 328):  # db_name, descrip, aux_file, intent_name
            header[place : place + 16] = PATIENT[:16]
        (folder / f"{stem}.nii").write_bytes(header)
        (folder / f"{stem}.nii.gz").write_bytes(gzip.compress(bytes(header), 1, mtime=0))
    personal = dict.fromkeys(("0010|0010", "0010|0020", "0008|0090", "0008|0080", "0008|0050"), name)
    write_dicom_series(images["ct"], folder / "series", tags=lambda _: personal)
    return Originals(folder, bundle, phantom)


def set_out(folder: Path, ct: tuple[str, bytes], mask: tuple[str, bytes]) -> None:
    for place, (name, data) in (("ct", ct), ("lung-mask", mask)):
        (folder / "input/images" / place).mkdir(parents=True)
        (folder / "input/images" / place / name).write_bytes(data)


def process_arguments(folder: Path, bundle: Path) -> list[str]:
    return ["--input", str(folder / "input"), "--output", str(folder / "output"), "--weights", str(bundle), "--preview"]


# A maker lays out one damaged input in a folder and returns the worker's command and arguments.
Maker = Callable[[np.random.Generator, Originals, Path], tuple[str, list[str]]]


def file_family(names: tuple[str, ...], mutation: mutations.Mutation) -> Maker:
    """The CT or its mask is damaged, in one of several layouts of a format."""

    def make(rng: np.random.Generator, originals: Originals, folder: Path) -> tuple[str, list[str]]:
        name = one_of(rng, names)
        files = {stem: originals.bytes_of(f"{stem}{name}") for stem in ("ct", "mask")}
        stem = "ct" if rng.random() < 0.7 else "mask"
        files[stem] = mutation(rng, files[stem])
        suffix = name.removeprefix("-compressed")
        set_out(folder, (f"scan{suffix}", files["ct"]), (f"scan{suffix}", files["mask"]))
        return "process", process_arguments(folder, originals.bundle)

    return make


def dicom_family(rng: np.random.Generator, originals: Originals, folder: Path) -> tuple[str, list[str]]:
    """Some or all slices of a series are damaged; or files are missing, repeated, exchanged or of another kind."""
    set_out(folder, ("unused", b""), ("scan.mha", originals.bytes_of("mask.mha")))
    shutil.rmtree(folder / "input/images/ct")
    series = folder / "input/images/ct/series" if rng.random() < 0.5 else folder / "input/images/ct"
    shutil.copytree(originals.folder / "series", series)
    paths = sorted(series.iterdir())
    if rng.random() < 0.75:
        chosen = paths if rng.random() < 0.4 else [one_of(rng, paths) for _ in range(int(rng.integers(1, 3)))]
        state = int(rng.integers(2**31))
        for path in chosen:  # the same damage to each
            path.write_bytes(mutations.dicom(np.random.default_rng(state), path.read_bytes()))
        return "process", process_arguments(folder, originals.bundle)
    first, second = one_of(rng, paths), one_of(rng, paths)
    match int(rng.integers(6)):
        case 0:
            first.unlink()
        case 1:
            shutil.copyfile(first, series / "copy.dcm")
        case 2:
            content = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(content)
        case 3:
            (series / "extra.dcm").write_bytes(
                one_of(rng, (b"", b"x" * 500, bytes(128) + b"DICM", originals.bytes_of("ct.mha")))
            )
        case 4:
            first.rename(series / one_of(rng, ("Größe 患者.dcm", "line\nbreak.dcm", "-rf", "%s%n", "." + "n" * 200)))
        case _:
            first.unlink()
            first.symlink_to(one_of(rng, ("/dev/zero", "nowhere", str(second), "/etc/passwd", str(series))))
    return "process", process_arguments(folder, originals.bundle)


NAMES = (
    *(
        "scan.mha",
        "a b  c.mha",
        "Größe 患者 №1.mha",
        "-rf.mha",
        "%s%n{x}.mha",
        "..mha",
        "...mha",
        "a\nb.mha",
        "\x1b[31mred.mha",
    ),
    *("con.mha", "'; rm -rf $HOME; '.mha", "n" * 251 + ".mha", "scan.MHA", "scan.mha.mha", "results.json.mha", "\u202egnp.mha"),
    *(".hidden.mha", "scan", "scan.dcm", "scan.txt", "~.mha", "scan.nii.gz"),
)


def layout_family(rng: np.random.Generator, originals: Originals, folder: Path) -> tuple[str, list[str]]:
    """Odd names, links and pipes, and damaged lists of inputs."""
    name, mask_name = one_of(rng, NAMES), one_of(rng, NAMES)
    set_out(folder, (name, originals.bytes_of("ct.mha")), (mask_name, originals.bytes_of("mask.mha")))
    images = folder / "input/images"
    if rng.random() < 0.5:
        entries = [
            {"interface": {"slug": slug, "relative_path": f"images/{slug}"}, "image": {"name": f"{PATIENT.decode()}.mha"}}
            for slug in ("ct", "lung-mask")
        ]
        (folder / "input/inputs.json").write_bytes(mutations.json_document(rng, json.dumps(entries).encode()))
    match int(rng.integers(8)):
        case 0:
            (images / "ct" / name).unlink()
            (images / "ct" / name).symlink_to(one_of(rng, ("/dev/zero", "/dev/stdin", "nowhere", "/etc/passwd", name, "/")))
        case 1:
            os.mkfifo(images / "ct" / "pipe.mha")
        case 2:
            other = os.fsencode(images / "ct") + b"/" + one_of(rng, (b"\xff\xfe.mha", b"a\xe9.nii", b"\x80"))
            (images / "ct" / name).rename(os.fsdecode(other))
        case 3:
            (images / "ct" / name).rename(images / "moved")
            shutil.rmtree(images / "ct")
            (images / "ct").symlink_to(one_of(rng, (".", "..", "/", "lung-mask", "ct", "/proc/self")))
        case 4:
            (images / one_of(rng, ("pulmonary-lobes", "lungs", "ct/series"))).mkdir()
        case 5:
            (images / "ct" / f"2{one_of(rng, NAMES)}"[-255:]).write_bytes(originals.bytes_of("ct.mha"))
        case _:
            pass
    return "process", process_arguments(folder, originals.bundle)


def voxel_family(rng: np.random.Generator, originals: Originals, folder: Path) -> tuple[str, list[str]]:
    """Whole files of other types, with extreme values, or of which one lies elsewhere."""
    images = dict(zip(("ct", "lung-mask"), originals.phantom.images(), strict=True))
    for _ in range(int(rng.integers(1, 3))):
        place = "ct" if rng.random() < 0.7 else "lung-mask"
        image = images[place]
        changed = sitk.GetImageFromArray(mutations.hostile_voxels(rng, sitk.GetArrayFromImage(image)))
        changed.CopyInformation(image)
        if rng.random() < 0.3:
            changed.SetSpacing([float(value) for value in rng.choice([0.02, 0.5, 12.0, 99.0], 3)])
        if rng.random() < 0.3:
            changed.SetOrigin([float(value) for value in rng.choice([-1e6, 0.0, 13.0, 1e30], 3)])
        if rng.random() < 0.2:
            changed = changed[: int(rng.integers(2, 9)), :, ::2]
        images[place] = changed
    for place, image in images.items():
        (folder / "input/images" / place).mkdir(parents=True)
        sitk.WriteImage(image, str(folder / "input/images" / place / f"scan{one_of(rng, ('.mha', '.nrrd', '.nii.gz'))}"))
    return "process", process_arguments(folder, originals.bundle)


def bundle_family(rng: np.random.Generator, originals: Originals, folder: Path) -> tuple[str, list[str]]:
    """Damaged metadata or tensors; half of the time, whoever damaged the tensors has listed their new sha256."""
    set_out(folder, ("scan.mha", originals.bytes_of("ct.mha")), ("scan.mha", originals.bytes_of("mask.mha")))
    bundle = folder / "bundle"
    shutil.copytree(originals.bundle, bundle)
    metadata = bundle / METADATA_FILE
    if rng.random() < 0.5:
        metadata.write_bytes(mutations.json_document(rng, metadata.read_bytes()))
    else:
        tensors = next(bundle.glob("*.safetensors"))
        tensors.write_bytes(mutations.safetensors(rng, tensors.read_bytes()))
        if rng.random() < 0.8:
            document = json.loads(metadata.read_text())
            document["files"] = {tensors.name: hashlib.sha256(tensors.read_bytes()).hexdigest()}
            metadata.write_text(json.dumps(document))
    return "process", process_arguments(folder, bundle)


def checkpoint_family(rng: np.random.Generator, _: Originals, folder: Path) -> tuple[str, list[str]]:
    """A damaged checkpoint, given to `convert`."""
    path = folder / "some.ckpt"
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        state = released_state("resnet18")
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=bool(rng.random() < 0.7))
    data = path.read_bytes()
    places = [(0, None), (0, 4096), (data.find(b"data.pkl"), data.find(b"data.pkl") + 60000), (len(data) - 4096, None)]
    start, stop = one_of(rng, places)
    path.write_bytes(mutations.damaged(rng, data, max(start, 0), stop))
    return "weights", ["convert", str(path), str(folder / "output" / "bundle")]


def manifest_family(rng: np.random.Generator, originals: Originals, folder: Path) -> tuple[str, list[str]]:
    """A damaged list of scans for training."""
    for name in ("ct.mha", "mask.mha"):
        shutil.copyfile(originals.folder / name, folder / name)
    rows = [b"entity,ct,lung_mask,centrilobular,paraseptal,split"]
    rows += [b"case%d,ct.mha,mask.mha,%d,%d,%s" % (k, k % 6, k % 3, (b"train", b"validation")[k % 2]) for k in range(4)]
    (folder / "manifest.csv").write_bytes(mutations.csv(rng, b"\n".join(rows)))
    return "manifest", [str(folder / "manifest.csv")]


FAMILIES: dict[str, tuple[int, Maker]] = {
    "metaimage": (140, file_family((".mha", "-compressed.mha"), mutations.metaimage)),
    "nifti": (100, file_family((".nii", ".nii.gz"), mutations.nifti)),
    "nrrd": (60, file_family((".nrrd", "-compressed.nrrd"), mutations.nrrd)),
    "dicom": (120, dicom_family),
    "layout": (80, layout_family),
    "voxels": (50, voxel_family),
    "bundle": (80, bundle_family),
    "checkpoint": (50, checkpoint_family),
    "manifest": (60, manifest_family),
}
"""How many inputs of each kind: 740 in all."""

INPUTS = [(family, seed) for family, (count, _) in FAMILIES.items() for seed in range(count)]


def snapshot(folder: Path, without: Path) -> dict[str, tuple[int, ...]]:
    """Every file, folder and link below a folder but one, with size and time of the last change."""
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.rglob("*"):
        if path != without and not path.is_relative_to(without):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.parametrize(("family", "seed"), INPUTS, ids=[f"{family}-{seed}" for family, seed in INPUTS])
def test_fuzz(family: str, seed: int, originals: Originals, worker: Worker, tmp_path: Path) -> None:
    rng = np.random.default_rng([seed, *family.encode()])
    watched = tmp_path / "watched"
    sandbox = watched / "deep" / "er"
    for folder in (sandbox / "cwd", sandbox / "output", tmp_path / "logs"):
        folder.mkdir(parents=True)
    command, arguments = FAMILIES[family][1](rng, originals, sandbox)
    before = snapshot(watched, sandbox / "output")
    outcome = worker.run(command, arguments, sandbox / "cwd", tmp_path / "logs")
    OUTCOMES[family, outcome.code] += 1
    assert outcome.code in (0, 2), outcome
    assert outcome.memory < MEMORY
    assert snapshot(watched, sandbox / "output") == before
    assert "Traceback" not in outcome.stdout
    if family not in ("bundle", "manifest"):  # these are the operator's own words
        check_nothing_leaks(outcome, sandbox / "output")
    lines = outcome.stderr.splitlines()
    if outcome.code == 2:
        check_refusal(command, lines, sandbox / "output")
    else:
        assert lines == []
        if command == "process":
            check_result(sandbox / "output")


def check_nothing_leaks(outcome: Outcome, output: Path) -> None:
    """The patient's name is in no text and no file; neither is any part of it that a damaged header may have left."""
    for name in (PATIENT.decode(), *PATIENT.decode().split("^")):
        assert name not in outcome.stdout + outcome.stderr
        for path in output.rglob("*"):
            assert name not in path.name
            assert not path.is_file() or name.encode() not in path.read_bytes()


def check_refusal(command: str, lines: list[str], output: Path) -> None:
    """One line (one for each case of several), which results.json repeats, and nothing but results.json."""
    assert lines
    assert all("; expected " in line and line.isprintable() for line in lines)
    written = sorted(path.name for path in output.rglob("*") if path.is_file())
    if command != "process":
        assert (len(lines), written) == (1, [])
        return
    results = json.loads((output / "results.json").read_text())
    assert [result["error_messages"] for result in results if result["error_messages"]] == [[line] for line in lines]
    if len(results) == 1:
        assert written == ["results.json"]


def check_result(output: Path) -> None:
    """A whole result: maps on a common grid, scores that follow from percentages between 0 and 100."""
    results = json.loads((output / "results.json").read_text())
    assert results
    for result in results:
        assert 0 <= result["metrics"]["cle_percentage"] <= 100
        assert 0 <= result["metrics"]["pse_percentage"] <= 100
        maps = list(output.glob(f"images/*/{glob_escape(result['entity'])}.mha"))
        assert len(maps) == 2
        assert len({sitk.ReadImage(str(path)).GetSize() for path in maps}) == 1
    assert not [path for path in output.rglob("*") if ".partial-" in path.name]


def glob_escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def test_the_damage_is_neither_harmless_nor_all_fatal() -> None:
    """A family whose every member fails at once, or passes, would test one line of code many times."""
    ran = Counter(family for family, _ in OUTCOMES.elements())
    if any(ran[family] < count for family, (count, _) in FAMILIES.items()):
        pytest.skip("counts only when all of test_fuzz has run")
    for family, (count, _) in FAMILIES.items():
        assert OUTCOMES[family, 2] >= 0.2 * count, (family, OUTCOMES)
        assert OUTCOMES[family, 0] >= 0.04 * count or family == "manifest", (family, OUTCOMES)
