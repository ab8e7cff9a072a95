"""The documents agree with the repository: links, anchors, paths, modules, options and the table of scores."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.simulation.__main__ import build_parser
from model.training.recipes import OPTIONS
from test.conftest import ROOT

DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmark" / "README.md", ROOT / "weights" / "README.md"}
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)

FOLDERS = ("model", "test", "docs", "benchmark", "requirements", ".ci")
"""A word in code that begins with one of these names something in the repository."""
FILE_SUFFIXES = (".py", ".sh", ".md", ".toml", ".lock")
"""So does a word under `weights/`, or one without a folder, that ends with one of these."""
WRITTEN = {"tables.md"}
"""What commands write, and documents name."""

by_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, by GitHub's rule: lower case, hyphens for spaces, no other punctuation."""
    found: set[str] = set()
    times: Counter[str] = Counter()
    for heading in HEADING.findall(FENCE.sub("", text_of(document))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{times[slug]}" if times[slug] else slug)
        times[slug] += 1
    return found


def repository_paths(text: str) -> Iterator[str]:
    """Words in code, inline and fenced, that name a file or folder of the repository."""
    code = [*CODE.findall(FENCE.sub("", text)), *FENCE.findall(text)]
    for word in re.findall(r"(?<![\w/$.<-])[\w.*][\w./*-]*", "\n".join(code)):
        path = word.removeprefix("./").rstrip(".")
        folder = path.partition("/")[0]
        is_file = path.endswith(FILE_SUFFIXES) and (folder == "weights" or "/" not in path)
        if ("/" in path and folder in FOLDERS) or (is_file and path not in WRITTEN):
            yield path


@by_document
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", text_of(document))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not (path.is_relative_to(ROOT) and path.exists()) or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


@by_document
def test_every_path_in_code_exists(document: Path) -> None:
    places = (ROOT, document.parent, ROOT / "model")
    paths = set(repository_paths(text_of(document)))
    assert [path for path in sorted(paths) if not any(any(place.glob(path)) for place in places)] == []


@by_document
def test_every_module_that_a_command_runs_exists(document: Path) -> None:
    modules = set(re.findall(r"-m (model[\w.]*\w)", text_of(document)))
    paths = [ROOT.joinpath(*name.split(".")) for name in sorted(modules)]
    assert [path for path in paths if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file()] == []


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(text_of(index))}
    assert set(DOCUMENTS) - linked <= {index, ROOT / "README.md"}


@by_document
def test_every_page_says_that_this_is_no_medical_device(document: Path) -> None:
    assert "Research software, not a medical device." in text_of(document)


def test_the_table_of_options_lists_those_of_the_command() -> None:
    command = [sys.executable, "process.py", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    rows = re.findall(r"^\| `(--[\w-]+)` \| `(\w+)(?:=1)?` \|", text_of(ROOT / "docs" / "options.md"), re.MULTILINE)
    assert {option for option, _ in rows} == set(re.findall(r"^  (--[\w-]+)", shown, re.MULTILINE)) - {"--version"}
    assert [variable for _, variable in rows] == [f"EMPHYSEMA_{option[2:].replace('-', '_').upper()}" for option, _ in rows]


def test_the_table_of_the_simulators_options_lists_those_of_its_command() -> None:
    rows = re.findall(r"^\| (`--[^|]+) \|", text_of(ROOT / "docs" / "simulation.md"), re.MULTILINE)
    options = {option for action in build_parser()._actions for option in action.option_strings}
    assert set(re.findall(r"--[\w-]+", " ".join(rows))) == options - {"-h", "--help"}


def test_the_table_of_recipes_lists_every_option_of_a_recipe() -> None:
    page = text_of(ROOT / "docs" / "training.md")
    rows = re.findall(r"^\| (`--[^|]+) \|", page[: page.index("## Other sources")], re.MULTILINE)
    assert set(re.findall(r"--[\w-]+", " ".join(rows))) == {f"--{option.name.replace('_', '-')}" for option in OPTIONS}


def test_every_benchmark_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+\.(?:py|sh))", text_of(ROOT / "benchmark" / "README.md"), re.MULTILINE)
    assert set(listed) == {path.name for path in (ROOT / "benchmark").iterdir() if path.suffix in (".py", ".sh")}


def test_the_table_of_scores_is_the_scoring_system() -> None:
    pattern = r"^\| (\d) \| ([\w ]+?) \| (\d+)\u2013(\d+) \|(?: ([\w ]+?) \| (\d+)\u2013(\d+) \|)?"
    rows = re.findall(pattern, text_of(ROOT / "README.md"), re.MULTILINE)
    assert [(int(score), name, float(lower), float(upper)) for score, name, lower, upper, *_ in rows] == [
        (grade.score, grade.severity, grade.lower, grade.upper) for grade in CENTRILOBULAR.grades
    ]
    assert [(int(row[0]), row[4], float(row[5]), float(row[6])) for row in rows if row[4]] == [
        (grade.score, grade.severity, grade.lower, grade.upper) for grade in PARASEPTAL.grades
    ]
