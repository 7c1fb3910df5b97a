#!/bin/sh
# Style, types, and the C code without a warning from gcc and from clang.
#
#     .ci/lint.sh PYTHON
set -u

python=$1
failed=
step() {
    echo "offloop: $*"
    "$@" </dev/null || failed="$failed
    $*"
}

step "$python" -m ruff check .
step "$python" -m ruff format --check .
step "$python" -m mypy
step "$python" -m basedpyright --pythonpath "$python"
if [ -f pkg/offloop/_core.pyi ]; then
    step "$python" -m mypy.stubtest offloop._core
fi
for cc in gcc clang; do
    step env CC=$cc OFFLOOP_WERROR=1 "$python" setup.py -q build --build-lib "build/lint/$cc"
    step env OFFLOOP_WERROR=1 "$python" tests/c/run.py --cc $cc --build-only
done

[ -z "$failed" ] || { echo "offloop: these failed:$failed" >&2; exit 1; }
