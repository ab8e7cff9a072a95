"""Time process.py on the example case from process start to exit, and its imports alone.

Usage: python benchmark/startup.py [--runs 5] [--against TREE]

TREE is another checkout of this repository, such as one of an earlier commit, whose runs alternate with this one's. Seconds are
medians: `wall` on the clock, `cpu` those of all cores together, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

IMPORTS = "from model.container import command; command.scored([], None, None, None)"
"""Ends with an error once everything is imported: there are no options."""


def seconds(command: list[str], tree: Path) -> tuple[float, float]:
    """Seconds of a process on the clock and on all cores."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description="Time process.py on the example case, and its imports alone.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="TREE", help="another checkout of this repository")
    options = parser.parse_args()
    trees = [ROOT, *([options.against.resolve()] if options.against else [])]
    with tempfile.TemporaryDirectory() as output:
        commands = {
            "example case": ["process.py", f"--input={ROOT / 'test' / 'input'}", f"--output={output}"],
            "imports": ["-c", IMPORTS],
        }
        found: dict[tuple[str, Path], list[tuple[float, float]]] = {}
        for _ in range(options.runs):
            for name, command in commands.items():
                for tree in trees:
                    found.setdefault((name, tree), []).append(seconds([sys.executable, *command], tree))
    print("| what | checkout | wall (s) | cpu (s) |\n| --- | --- | --- | --- |")
    for (name, tree), runs in found.items():
        wall, cpu = (statistics.median(figures) for figures in zip(*runs, strict=True))
        print(f"| {name} | {'this one' if tree == ROOT else tree} | {wall:.2f} | {cpu:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
