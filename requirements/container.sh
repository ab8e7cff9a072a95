# Source this for what the container scripts share: the engine, the image's name, the project's version.
# CONTAINER_ENGINE (docker or podman), BASE_IMAGE and CONTAINER_BUILD_FLAGS may be set from outside.

find_container_engine() {
    local candidate
    for candidate in "${CONTAINER_ENGINE:-}" docker podman; do
        if [ -n "$candidate" ] && "$candidate" info >/dev/null 2>&1; then
            CONTAINER_ENGINE=$candidate
            return
        fi
    done
    echo "container engine: neither docker nor podman works here; expected one of them (or CONTAINER_ENGINE)" >&2
    return 77
}

IMAGE=emphysema-subtyping
VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' model/__init__.py)
