"""Compare what a container wrote for the example case with test/expected, and import the maps as the platform does.

Usage: python test/check_container_output.py OUTPUT [--write]

Scores must be equal, percentages within 0.1 points, and the maps' grid exactly the expected one. --write makes OUTPUT the
expectation instead, which is in order when the weights that ship, or the example case, have changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import panimg
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.container.grand_challenge import MAP_FOLDERS, RESULTS_FILE, SCORE_FILES
from model.container.results import read_results
from model.container.schema import to_json

EXPECTED = ROOT / "test" / "expected" / "example.json"
POINTS = 0.1


def described(output: Path) -> dict[str, Any]:
    """Return the scores, percentages and grids of one output folder, and which bundle they are of."""
    (result,) = read_results(output / RESULTS_FILE)
    assert result.provenance is not None, "the case was scored"
    grids = {}
    for subtype, folder in MAP_FOLDERS.items():
        (path,) = (output / folder).iterdir()
        image = sitk.ReadImage(str(path))
        grid = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        grids[subtype] = {"file": path.name, "type": image.GetPixelIDTypeAsString(), "grid": [list(part) for part in grid]}
    return {
        "bundle": {"bundle": result.provenance.bundle, "sha256": result.provenance.sha256},
        "scores": {subtype: json.loads((output / name).read_text()) for subtype, name in SCORE_FILES.items()},
        "metrics": to_json(result.metrics),
        "maps": grids,
    }


def differences(found: Any, expected: Any, place: str = "") -> list[str]:
    """List what differs; numbers of a field called percentage may differ by 0.1."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        return [line for key in expected for line in differences(found[key], expected[key], f"{place}/{key}")]
    if place.endswith("percentage") and isinstance(found, float | int) and isinstance(expected, float | int):
        return [] if abs(found - expected) <= POINTS else [f"{place}: {found}, expected {expected} within {POINTS}"]
    return [] if found == expected else [f"{place}: {found}, expected {expected}"]


def not_imported(output: Path) -> list[str]:
    """List the maps that the platform's own importer does not take as one image each."""
    lines = []
    for folder in MAP_FOLDERS.values():
        with tempfile.TemporaryDirectory() as target:
            imported = panimg.convert(input_directory=output / folder, output_directory=Path(target))
        if len(imported.new_images) != 1:
            lines.append(f"/{folder}: panimg makes {len(imported.new_images)} images of it: {imported.file_errors}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--write", action="store_true", help="make this output the expectation")
    options = parser.parse_args()
    found = described(options.output)
    if options.write:
        EXPECTED.parent.mkdir(exist_ok=True)
        EXPECTED.write_text(json.dumps(found, indent=2) + "\n")
    lines = differences(found, json.loads(EXPECTED.read_text())) + not_imported(options.output)
    for line in lines:
        print(f"{options.output}{line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
