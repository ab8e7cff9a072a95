#!/usr/bin/env bash
# Write requirements/NAME.lock: every package, with its version, that a fresh environment gets from NAME's requirements.
# Usage: requirements/lock.sh inference cuda bill_of_materials training evaluation development
# torch's CPU and CUDA builds share one version number, and a lock serves both: what the CUDA build needs besides is listed in
# cuda.lock, which the other locks name as a constraint, so that it is installed only where it is needed. Make cuda.lock on a
# machine where pip takes the CUDA build.
set -euo pipefail
cd "$(dirname "$0")/.."

only_cuda='^(nvidia-|triton|cuda-)'

lock_cuda() {
    "$1/bin/pip" install --quiet --dry-run --report "$1/report.json" -r requirements.txt -c requirements/inference.lock
    "$1/bin/python" - "$1/report.json" <<'PYTHON' | grep -E "$only_cuda"
import json, sys
for package in sorted((entry["metadata"] for entry in json.load(open(sys.argv[1]))["install"]), key=lambda found: found["name"]):
    print(f"{package['name']}=={package['version']}")
PYTHON
}

lock_all() {
    "$1/bin/pip" install --quiet -r "$2" "${@:3}" >&2
    echo "-c cuda.lock"
    "$1/bin/pip" freeze | sed -E 's/^(torch==[^+]+)\+.*/\1/' | grep -viE "$only_cuda"
}

for name in "$@"; do
    environment=$(mktemp -d)
    python3.11 -m venv "$environment"
    source=requirements/$name.txt
    case $name in
        cuda) source=requirements.txt; packages=$(lock_cuda "$environment") ;;
        inference) source=requirements.txt; packages=$(lock_all "$environment" "$source") ;;
        bill_of_materials) packages=$(lock_all "$environment" "$source") ;;  # an environment of its own
        *) packages=$(lock_all "$environment" "$source" -c requirements/inference.lock) ;;
    esac
    printf '# Made by requirements/lock.sh from %s; do not edit.\n%s\n' "$source" "$packages" >"requirements/$name.lock"
    rm -rf "$environment"
done
