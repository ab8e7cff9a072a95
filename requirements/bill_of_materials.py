"""Write the software bill of materials of the inference image (CycloneDX 1.6, JSON) to stdout.

    python requirements/bill_of_materials.py VERSION ENVIRONMENT BUNDLE

ENVIRONMENT is the virtual environment that the image holds; its Python packages are listed with their licences by cyclonedx-py.
The operating system's packages (as dpkg knows them) and the weight bundle are added. What comes out is checked against
CycloneDX's own schema. Runs in the image's build, in an environment of its own (requirements/bill_of_materials.lock).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

SPECIFICATION = SchemaVersion.V1_6


def python_packages(environment: Path) -> dict[str, Any]:
    """A whole bill, of the environment's packages alone."""
    command = ["cyclonedx-py", "environment", "--spec-version", SPECIFICATION.to_version(), "--of", "JSON", str(environment)]
    tools = Path(sys.executable).parent
    listed = subprocess.run([str(tools / command[0]), *command[1:]], check=True, capture_output=True, text=True)
    bill: dict[str, Any] = json.loads(listed.stdout)
    return bill


def system_packages() -> list[dict[str, Any]]:
    """Components for Debian's packages; none on a system without dpkg."""
    template = "${Package}\t${Version}\t${Architecture}\n"
    try:
        listed = subprocess.run(
            ["dpkg-query", "--show", f"--showformat={template}"], check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        return []
    components = []
    for line in listed.stdout.splitlines():
        name, version, architecture = line.split("\t")
        purl = PackageURL("deb", "debian", name, version, {"arch": architecture}).to_string()
        components.append({"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl})
    return components


def bundle_component(bundle: Path) -> dict[str, Any]:
    """The weight bundle as a component; its sha256 is that of bundle.json, which lists those of its tensor files."""
    content = (bundle / "bundle.json").read_bytes()
    document = json.loads(content)
    return {
        "type": "machine-learning-model",
        "bom-ref": f"weights/{document['name']}",
        "name": document["name"],
        "description": document["origin"],
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
    }


def main() -> int:
    version, environment, bundle = sys.argv[1:]
    bill = python_packages(Path(environment))
    bill["metadata"]["component"] = {
        "type": "container",
        "bom-ref": "emphysema-subtyping",
        "name": "emphysema-subtyping",
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    bill["components"] += [*system_packages(), bundle_component(Path(bundle))]
    text = json.dumps(bill, indent=2)
    problem = JsonStrictValidator(SPECIFICATION).validate_str(text)
    if problem is not None:
        print(f"the bill of materials is not valid CycloneDX: {problem}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
