#!/usr/bin/env bash
# Build the cohort image; in it, without a network and not as root, score the example case as a tree of scans: with a Ray of its own,
# then in parts without Ray, then once more, which must score nothing. Exits 77 where there is no container engine.
set -euo pipefail
cd "$(dirname "$0")/../.."
source requirements/container.sh
find_container_engine || exit $?
./build.sh cohort

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/scans/one" "$work/scans/two" "$work/results" "$work/parts"
cp -r test/input/images "$work/scans/one"
cp test/input/images/ct/example.mha "$work/scans/two/scan.mha"
cp test/input/images/lung-mask/example.mha "$work/scans/two/scan_mask.mha"
head -c 1000 test/input/images/ct/example.mha >"$work/scans/two/broken.mha"
cp test/input/images/lung-mask/example.mha "$work/scans/two/broken_mask.mha"
chmod -R a+rX "$work"
chmod 777 "$work/results" "$work/parts"

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

# inside OUTPUT [options of cohort.py]: the exit code into $code. Ray runs dozens of threads for each of its processes.
inside() {
    local output=$1
    shift
    code=0
    "$CONTAINER_ENGINE" run --rm --network none --cap-drop all --security-opt no-new-privileges --read-only --tmpfs /tmp \
        --pids-limit 2048 --memory 16g --shm-size 2g --volume "$work/scans:/data/scans:ro" --volume "$work/$output:/data/out" \
        "$IMAGE:cohort" --input /data/scans --output /data/out --precision float32 "$@" >"$work/stdout" 2>"$work/stderr" || code=$?
}

# states OUTPUT: entity and state of each row of its table.
states() {
    python3 -c 'import csv, sys
for row in csv.DictReader(open(sys.argv[1], encoding="utf-8-sig")): print(row["entity"], row["state"], row["cle_severity_score"])' \
        "$work/$1/cohort.csv" | tr '\n' ';'
}

score=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["scores"]["centrilobular"]["score"])' test/expected/example.json)
expected="one scored $score;two_broken failed ;two_scan scored $score;"

inside results
[ "$code" -eq 2 ] || fail "a tree with a broken scan: exit code $code, expected 2; $(head -3 "$work/stderr")"
[ "$(wc -l <"$work/stderr")" -eq 1 ] || fail "expected one line on stderr, for the broken scan: $(head -3 "$work/stderr")"
[ "$(states results)" = "$expected" ] || fail "the table says $(states results)"
for file in cohort.parquet regions.parquet regions.csv left-out.csv cases/one/results.json \
    cases/one/images/centrilobular-emphysema-heatmap/one.mha; do
    [ -s "$work/results/$file" ] || fail "$file was not written"
done

inside results
grep -q '2 of 3 cases were finished before' "$work/stdout" || fail "the second run scored what the first had: $(cat "$work/stdout")"

for part in 1/2 2/2; do
    inside parts --shard "$part"
done
[ "$(states parts)" = "$expected" ] || fail "the table of the parts says $(states parts)"
cmp "$work"/{results,parts}/cases/one/images/centrilobular-emphysema-heatmap/one.mha || fail "parts and Ray score unlike each other"

exposed=$(exposed_files cohort)
[ -z "$exposed" ] || fail "these files are setuid, or can be changed: ${exposed//$'\n'/ }"
[ -z "$(find "$work/results" "$work/parts" -mindepth 1 -user root -print -quit)" ] || fail "files belong to root"
echo "All checks of the cohort image passed"
