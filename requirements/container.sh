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

# exposed_files TARGET: print what an image should not have: files that raise privileges, and files or folders, code above all, that
# its process could change, but for those that are there to be written.
exposed_files() {
    local find=("$CONTAINER_ENGINE" run --rm --network none --entrypoint find)
    "${find[@]}" --user 0 "$IMAGE:$1" / -xdev -type f -perm /6000 -print \
        && "${find[@]}" "$IMAGE:$1" / -xdev -type d '(' -not -readable -o -not -executable ')' -prune -o \
        -writable -not -type l -not -path /output -not -path /tmp -not -path /var/tmp -not -path /run/lock -print
}
