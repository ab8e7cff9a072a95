"""The range of image quality of the scans that a bundle's weights were tested on; `process.py` warns of scans outside of it.

    python -m model.training.validated_range BUNDLE RESULTS...

takes the `results.json` of scans that the weights were tested on, without those that they were found wrong on, and writes the
range of each measure into `bundle.json`. That changes the sha256 of the bundle. It is no clinical validation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..command_line import OneLineParser, exit_code, module_command
from ..container.results import Quality, read_results
from ..errors import InputError
from ..lungs.quality import TERMS, Range
from ..weights import METADATA_FILE, locate_bundle, read_metadata
from ..whole_files import whole_file

LEFT_OUT = ("pixel_spacing_mm",)
"""The width of edges says it, and what is finer than the network's input makes no difference."""

BOTH_ENDS = ("edge_width_mm",)
"""Edges may be too sharp or too blurred; of every other measure, less is never worse."""

LEAST_UPPER_END = {"cut_off_percentage": 1.0}
"""Simulated scans are never cut off. A mask that touches the last slice of an image is no reason to warn."""

MARGIN = 0.05
"""The range goes beyond the smallest and the largest value by this share of them: the next scan of the same kind may."""


def validated_range(qualities: Sequence[Quality]) -> dict[str, Range]:
    """The range of each measure that is known of any scan, rounded to the decimals of warnings."""
    ranges: dict[str, Range] = {}
    for name, (_, _, decimals) in TERMS.items():
        values = [value for quality in qualities if (value := getattr(quality, name)) is not None]
        if values and name not in LEFT_OUT:
            low, high = min(values), max(values)
            low, high = low - MARGIN * abs(low), max(high + MARGIN * abs(high), LEAST_UPPER_END.get(name, high))
            ranges[name] = (round(low, decimals) if name in BOTH_ENDS else None, round(high, decimals))
    return ranges


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog=module_command("training.validated_range"), description="Store the range of image quality.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("results", type=Path, nargs="+", help="results.json of scans that the weights were tested on")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options.bundle, options.results), options.bundle)


def _run(bundle: Path, results: Sequence[Path]) -> None:
    folder = locate_bundle(bundle)
    read_metadata(folder)
    qualities = [result.quality for path in results for result in read_results(path) if result.quality]
    if not qualities:
        raise InputError(results[0], "no result has a quality", "results of process.py")
    ranges = validated_range(qualities)
    path = folder / METADATA_FILE
    document = json.loads(path.read_text(encoding="utf-8")) | {"validated_range": ranges}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"{folder}: {len(qualities)} scans: {json.dumps(ranges)}")


if __name__ == "__main__":
    sys.exit(main())
