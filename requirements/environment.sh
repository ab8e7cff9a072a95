# Source this, then call `ensure_environment NAME`: makes .venv hold what requirements/NAME.lock lists.
# A copy of each installed lock lies in .venv, with those of torch beside it; when one has changed since, .venv is made anew.

ensure_environment() {
    local root lock locks stamp python candidate
    if [ -z "${BASH_VERSION:-}" ]; then
        echo "requirements/environment.sh: the shell is another one; expected bash" >&2
        return 1
    fi
    root=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd) || return
    lock=$root/requirements/$1.lock
    stamp=$root/.venv/$1.lock
    locks=$(cat "$lock" "$root/requirements/torch.lock" "$root/requirements/cuda.lock") || return
    [ -e "$stamp" ] && [ "$locks" = "$(cat "$stamp")" ] && return
    if [ -e "$stamp" ] || ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$root/.venv"
        python=
        for candidate in python3.11 python3; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
                python=$candidate
                break
            fi
        done
        if [ -z "$python" ]; then
            echo "python3.11: not found; expected Python 3.11 on the PATH" >&2
            return 1
        fi
        if ! "$python" -m venv "$root/.venv"; then
            echo "$python: cannot make a virtual environment; expected its venv module (Debian: python3.11-venv)" >&2
            return 1
        fi
    fi
    echo "Installing requirements/$1.lock into .venv (the first time takes some minutes)"
    "$root/requirements/install.sh" "$root/.venv/bin/python" "$lock" --quiet || return
    printf '%s\n' "$locks" >"$stamp"
}
