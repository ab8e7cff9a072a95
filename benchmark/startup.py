"""Time process.py on the example case from process start to exit, and its imports alone.

Usage: python benchmark/startup.py [--runs 5] [--against TREE]

TREE is another checkout of this repository, such as one of an earlier commit, whose runs alternate with this one's. Seconds are
medians: `wall` on the clock, `cpu` those of all cores together, which other work on the machine disturbs less.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import script_parser, timed_process
from model.command_line import exit_code, whole_number
from model.errors import InputError

IMPORTS = """
from model.container.command import scored
try:
    scored([], None, None, None)
except AttributeError as error:
    if error.name != "weights":
        raise
"""
"""Raises once everything is imported: there are no options to take the weights from."""


def run(runs: int, against: Path | None) -> None:
    """Time both commands in each checkout, in turn, and print the table.

    Raises:
        InputError: `against` is no checkout.
        ChildProcessError: a command failed.
    """
    if against is not None and not (against / "process.py").is_file():
        raise InputError(against, "there is no process.py", "a checkout of this repository")
    trees = [ROOT, *([against.resolve()] if against else [])]
    found: dict[tuple[str, Path], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as output:
        commands = {
            "example case": ["process.py", f"--input={ROOT / 'test' / 'input'}", f"--output={output}"],
            "imports": ["-c", IMPORTS],
        }
        for _ in range(runs):
            for name, command in commands.items():
                for tree in trees:
                    process = timed_process(command, tree)
                    found.setdefault((name, tree), []).append((process.seconds, process.core_seconds))
    print("| what | checkout | wall (s) | cpu (s) |\n| --- | --- | --- | --- |")
    for (name, tree), figures in found.items():
        wall, cpu = map(statistics.median, zip(*figures, strict=True))
        print(f"| {name} | {'this one' if tree == ROOT else tree} | {wall:.2f} | {cpu:.2f} |")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--runs", type=whole_number(1), default=5)
    parser.add_argument("--against", type=Path, metavar="TREE", help="another checkout of this repository")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options.runs, options.against))


if __name__ == "__main__":
    sys.exit(main())
