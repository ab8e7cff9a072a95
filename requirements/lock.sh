#!/usr/bin/env bash
# Write requirements/NAME.lock: every package, with its version, that a fresh environment gets from NAME's requirements.
# Usage: requirements/lock.sh inference training development
# torch's CPU and CUDA builds share one version number; what the CUDA build needs beyond it is pinned by torch itself.
set -euo pipefail
cd "$(dirname "$0")/.."

for name in "$@"; do
    source=requirements/$name.txt
    [ "$name" = inference ] && source=requirements.txt
    constraints=()
    [ "$name" != inference ] && constraints=(-c requirements/inference.lock)
    environment=$(mktemp -d)
    python3.11 -m venv "$environment"
    "$environment/bin/pip" install --quiet -r "$source" "${constraints[@]}"
    {
        echo "# Made by requirements/lock.sh from $source; do not edit."
        "$environment/bin/pip" freeze | sed -E 's/^(torch==[^+]+)\+.*/\1/' | grep -viE '^(nvidia-|triton|cuda-)'
    } >"requirements/$name.lock"
    rm -rf "$environment"
done
