#!/usr/bin/env bash
# Check every package of every lock against known vulnerabilities, and print what is found: requirements/audit.sh [seconds]
# Advisory: the exit code is always 0. Without a network, or when it takes longer than that (default 300), it says so in one line.
set -uo pipefail
cd "$(dirname "$0")"
seconds=${1:-300}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

not_audited() {
    echo "The locks were not audited: $1"
    exit 0
}

{ python3 -m venv "$work/venv" \
    && timeout "$seconds" "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r audit.txt; } >"$work/log" 2>&1 \
    || not_audited "pip-audit could not be installed"
grep -hoE '^[A-Za-z0-9._-]+==[^ ;]+' ./*.lock | sort -u >"$work/pins.txt"
# pip-audit ends with 1 both when it finds something and when it cannot ask; only in the first case there is a report.
timeout "$seconds" "$work/venv/bin/pip-audit" --requirement "$work/pins.txt" --no-deps --disable-pip --vulnerability-service osv \
    --timeout 15 --progress-spinner off --desc off --format markdown --output "$work/report.md" >"$work/log" 2>&1
[ -e "$work/report.md" ] || not_audited "the vulnerability service could not be asked ($(grep . "$work/log" | tail -1 | cut -d: -f1))"
echo "Known vulnerabilities in $(wc -l <"$work/pins.txt") packages of the locks (advisory):"
grep . "$work/report.md" || echo "none"
