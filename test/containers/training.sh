#!/usr/bin/env bash
# Build the training image; in it, without a network and not as root, simulate a small cohort, train a tiny network on it for one
# epoch, and score a case with the bundle that comes out. Exits 77 where there is no container engine.
set -euo pipefail
cd "$(dirname "$0")/../.."
source requirements/container.sh
find_container_engine || exit $?
./build.sh training

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 777 "$work"

inside() {
    "$CONTAINER_ENGINE" run --rm --network none --cap-drop all --security-opt no-new-privileges --read-only --tmpfs /tmp \
        --memory 16g --shm-size 2g --volume "$work:/data" "$IMAGE:training" "$@"
}

inside -m model.simulation --cases 4 --seed 9 --workers 2 --output /data/cohort
inside -m model.training.manifest /data/cohort --validation 0.25
inside train.py --manifest /data/cohort/manifest.csv --output /data/run --backbone resnet18 --base-width 2 --epochs 1 --batch 1 \
    --strategy voxels --tile 64 112 144 --workers 1
inside -m model.weights verify /data/run/bundle
entity=$(sed -n '2s/,.*//p' "$work/cohort/reference.csv")
inside process.py --input "/data/cohort/$entity" --output "/data/scored" --weights /data/run/bundle
for file in run/log/version_0/metrics.csv scored/results.json scored/centrilobular-emphysema-score.json; do
    [ -s "$work/$file" ] || { echo "FAILED: the training image did not write $file" >&2; exit 1; }
done
exposed=$(exposed_files training)
[ -z "$exposed" ] || { echo "FAILED: these files are setuid, or can be changed: ${exposed//$'\n'/ }" >&2; exit 1; }
[ -z "$(find "$work" -mindepth 1 -user root -print -quit)" ] || { echo "FAILED: files belong to root" >&2; exit 1; }
echo "All checks of the training image passed"
