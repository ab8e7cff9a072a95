"""Turn what pip-compile found into locks: `python requirements/lock.py NAME SOURCE <COMPILED`; requirements/lock.sh runs it.

COMPILED has one entry a package: its version, and in a comment the packages that need it. The sha256 of the packages' files are
those that pip's indexes state. Run it with a Python that has pip 23.2.1 and packaging.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

LEFT_OUT = {
    "evalutils": {"click", "cookiecutter", "pip-tools"},  # its command line alone imports them, which nothing here runs
    "openvino": {"openvino-telemetry"},  # sends usage to Intel; without it, a stub is imported that sends nothing
    "nncf": {"openvino-telemetry"},
}
"""Requirements of a package that are left out."""

ONLY_CUDA = re.compile(r"nvidia-|triton$|cuda-")
CUDA_PLATFORM = '; sys_platform == "linux"'


@dataclass(frozen=True)
class Package:
    """One package of a lock.

    Attributes:
        name, version: as pip-compile writes them; a version has no local part such as `+cpu`.
        hashes: sha256 of each of its files, in hexadecimal.
        parents: the packages that need it, and None where the requirements themselves name it.
    """

    name: str
    version: str
    hashes: frozenset[str]
    parents: frozenset[str | None]

    def entry(self, marker: str = "") -> str:
        """The package's lines in a lock."""
        hashes = [f"--hash=sha256:{one}" for one in sorted(self.hashes)]
        return " \\\n    ".join([f"{self.name}=={self.version}{marker}", *hashes])


def parse(text: str) -> list[Package]:
    """The packages of a compiled file or of a lock (which does not say what needs them), in its order."""
    packages = []
    for block in re.findall(r"^[A-Za-z0-9].*\n(?:[ ]+.*\n?)*", text, re.MULTILINE):
        name, version = re.match(r"([\w.-]+)==([^\s;+]+)", block).groups()  # type: ignore[union-attr]
        via = re.search(r"# via (.*)", block)
        hashes = re.findall(r"sha256:([0-9a-f]{64})", block)
        needed_by = [parent for parent in via[1].split(", ") if not parent.startswith("-c ")] if via else []
        parents = [None if parent.startswith("-r ") else parent for parent in needed_by]
        packages.append(Package(name, version, frozenset(hashes), frozenset(parents)))
    return packages


def needed(packages: Iterable[Package]) -> list[Package]:
    """Leave out what `LEFT_OUT` names, and what nothing else needs then."""
    kept = list(packages)
    while True:
        names = {None, *(package.name for package in kept)}
        now = [
            package
            for package in kept
            if any(parent in names and package.name not in LEFT_OUT.get(parent or "", ()) for parent in package.parents)
        ]
        if len(now) == len(kept):
            return kept
        kept = now


def stated_hashes(name: str, version: str, collector: Any) -> frozenset[str]:
    """The sha256 of all files of a version, for any platform, as pip's indexes state them."""
    from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename
    from packaging.version import InvalidVersion
    from pip._internal.index.collector import parse_links
    from pip._internal.models.link import Link

    hashes = set()
    for location in collector.search_scope.get_index_urls_locations(name):
        page = collector.fetch_response(Link(location))
        for link in parse_links(page) if page else ():
            parse_filename = parse_wheel_filename if link.is_wheel else parse_sdist_filename
            try:
                found = parse_filename(link.filename)[1]
            except (InvalidSdistFilename, InvalidVersion, InvalidWheelFilename):
                continue  # an egg, an installer, or a file from before names had rules
            if found.public == version and link.hash_name == "sha256":
                hashes.add(link.hash)
    return frozenset(hashes)


def with_hashes(packages: Iterable[Package]) -> list[Package]:
    """Ask pip's indexes, as its settings name them, for the hashes.

    Raises:
        LookupError: no index states one for a package.
    """
    from pip._internal.commands.install import InstallCommand

    command = InstallCommand("install", "")
    options, _ = command.parse_args([])
    collector = command._build_package_finder(options, command._build_session(options))._link_collector
    asked = [replace(package, hashes=stated_hashes(package.name, package.version, collector)) for package in packages]
    for package in asked:
        if not package.hashes:
            raise LookupError(f"{package.name} {package.version}: no index states the sha256 of a file")
    return asked


def cpu_wheels(version: str) -> frozenset[str]:
    """sha256 of the CPU build's wheels in the folders of PIP_FIND_LINKS."""
    folders = [Path(folder) for folder in os.environ.get("PIP_FIND_LINKS", "").split()]
    wheels = [wheel for folder in folders for wheel in folder.glob(f"torch-{version}+cpu-*.whl")]
    return frozenset(hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels)


def write(name: str, source: str, entries: Iterable[str]) -> None:
    """Write a lock."""
    text = "\n".join([f"# Made by requirements/lock.sh from {source}; do not edit.", *entries])
    (FOLDER / f"{name}.lock").write_text(text + "\n", encoding="utf-8")


def write_torch(source: str, packages: list[Package]) -> None:
    """Write torch.lock, where files of the same version that it has already stay listed, and cuda.lock."""
    (found,) = with_hashes(package for package in packages if package.name == "torch")
    hashes = found.hashes | cpu_wheels(found.version)
    lock = FOLDER / "torch.lock"
    for known in parse(lock.read_text(encoding="utf-8")) if lock.exists() else []:
        hashes |= known.hashes if known.version == found.version else frozenset()
    write("torch", source, [Package("torch", found.version, hashes, found.parents).entry()])
    cuda = with_hashes(package for package in packages if ONLY_CUDA.match(package.name))
    write("cuda", source, [package.entry(CUDA_PLATFORM) for package in cuda])


def main() -> None:
    name, source = sys.argv[1:]
    packages = parse(sys.stdin.read())
    if name == "torch":
        write_torch(source, packages)
        return
    includes = ["-r torch.lock"] if any(package.name == "torch" for package in packages) else []
    listed = [package for package in needed(packages) if package.name != "torch" and not ONLY_CUDA.match(package.name)]
    write(name, source, [*includes, *(package.entry() for package in with_hashes(listed))])


if __name__ == "__main__":
    main()
