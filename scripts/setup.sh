#!/bin/sh
# Finds a Python that the pinned packages support and hands over to setup.py.
# Use: scripts/setup.sh [auto|cpu|cuda]; PYTHON=... chooses the interpreter.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
is_supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

try() {
    if "$1" -c "$is_supported" >/dev/null 2>&1; then
        interpreter=$1
        shift
        exec "$interpreter" -I "$here/setup.py" "$@"
    fi
}

if [ -n "${PYTHON:-}" ]; then
    try "$PYTHON" "$@"
    found=$("$PYTHON" --version 2>&1) || found="does not run"
    echo "set-up: PYTHON=$PYTHON ($found) cannot be used: the pinned packages need Python 3.11, 3.12 or 3.13." >&2
else
    for candidate in python3 python3.11 python3.12 python3.13 python; do
        try "$candidate" "$@"
    done
    found=$(python3 --version 2>&1) || found="no python3 that runs"
    echo "set-up: no Python 3.11, 3.12 or 3.13 on PATH (found: $found); the pinned packages need one of them." >&2
fi
echo "  Ways out:" >&2
echo "  - install one: sudo apt install python3 python3-venv (Debian 12, Ubuntu 24.04 or later), sudo dnf install python3.12" >&2
echo "  - without root: uv python install 3.12, pyenv install 3.12 or conda create -n py312 python=3.12" >&2
echo "  - name one that is not on PATH: make setup PYTHON=/path/to/python3.12" >&2
exit 2
