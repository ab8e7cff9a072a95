#!/usr/bin/env bash
# Build the inference image and write what is uploaded to grand-challenge into dist/: the image and its weights as tarballs,
# with version and date in their names, beside them the image's software bill of materials (CycloneDX) and the sha256 sums.
# `./export.sh --model-only FILE` writes the weights of the image that is there to FILE, and nothing else.
set -euo pipefail
cd "$(dirname "$0")"
source requirements/container.sh
find_container_engine

# The platform unpacks model.tar.gz to /opt/ml/model, so the bundle's files lie at its root.
export_model() {
    "$CONTAINER_ENGINE" run --rm --network none --entrypoint sh "$IMAGE:inference" -c \
        'set -- /opt/app/weights/*/bundle.json; [ $# -eq 1 ] && tar -C "$(dirname "$1")" -cz --owner 0 --group 0 .' >"$1.partial"
    mv "$1.partial" "$1"
}

if [ "${1:-}" = --model-only ]; then
    export_model "$2"
    exit
fi

./build.sh inference
stamp=$VERSION-$(date +%Y%m%d)
image_file=$IMAGE-$stamp.tar.gz
model_file=model-$stamp.tar.gz
bill_file=$IMAGE-$stamp.cdx.json
mkdir -p dist
echo "Writing dist/$image_file, dist/$model_file and dist/$bill_file"
"$CONTAINER_ENGINE" save "$IMAGE:inference" | gzip >"dist/$image_file.partial"
mv "dist/$image_file.partial" "dist/$image_file"
export_model "dist/$model_file"
./build.sh bill-of-materials
"$CONTAINER_ENGINE" run --rm --network none --entrypoint cat "$IMAGE:bill-of-materials" /bill-of-materials.cdx.json \
    >"dist/$bill_file.partial"
mv "dist/$bill_file.partial" "dist/$bill_file"
(cd dist && sha256sum "$image_file" "$model_file" "$bill_file" | tee "sha256sums-$stamp.txt")
