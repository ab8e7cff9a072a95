#!/usr/bin/env bash
# Write requirements/NAME.lock: every package, with its version and the sha256 of its files, that NAME's requirements need.
# Usage: requirements/lock.sh [--upgrade] torch inference int8 training evaluation cohort viewer development bill_of_materials
# Packages keep the versions that the locks have; with --upgrade they get the newest that the requirements allow.
#
# torch's CPU and CUDA builds share a version number. torch.lock lists the files of both, and every lock that needs torch includes
# it. What the CUDA build needs besides is in cuda.lock, which requirements/install.sh installs beside that build alone. The name
# `torch` writes both files. It takes the build that pip's indexes offer and downloads its packages, some gigabytes; the CPU
# builds' wheels in the folders of PIP_FIND_LINKS are added.
set -euo pipefail
cd "$(dirname "$0")/.."

upgrade=
if [ "${1:-}" = --upgrade ]; then
    upgrade=--upgrade
    shift
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check pip==23.2.1 pip-tools==7.6.2

# pins NAME: what a lock holds, without the locks that it includes
pins() { if [ -e "requirements/$1.lock" ]; then grep -oE '^[A-Za-z0-9][^ ;]*==[^ ;]+' "requirements/$1.lock"; fi; }

# compiled SOURCE LOCK...: pip-compile's output for SOURCE. It starts from the pins of the locks.
compiled() {
    local source=$1 name
    shift
    : >"$work/compiled"
    for name in "$@"; do pins "$name" >>"$work/compiled"; done
    "$work/tools/bin/pip-compile" --quiet --allow-unsafe --strip-extras --no-header --no-emit-options --no-emit-index-url \
        --no-emit-find-links --annotation-style line $upgrade -c "$work/constraints" \
        --output-file "$work/compiled" "$source" >&2
    cat "$work/compiled"
}

for name in "$@"; do
    source=requirements/$name.txt
    : >"$work/constraints"
    case $name in
        torch)
            source=requirements.txt
            PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS='' compiled "$source" inference cuda >"$work/all"
            ;;
        inference)
            source=requirements.txt
            compiled "$source" inference >"$work/all"
            ;;
        bill_of_materials) compiled "$source" "$name" >"$work/all" ;; # an environment of its own
        *)
            pins inference >"$work/constraints"
            compiled "$source" "$name" >"$work/all"
            ;;
    esac
    "$work/tools/bin/python" requirements/lock.py "$name" "$source" <"$work/all"
done
