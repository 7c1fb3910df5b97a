#!/bin/sh
# Python tests on an extension built with sanitizers.
#
#     .ci/sanitized.sh PYTHON TOOL SANITIZERS [pytest arguments]
#
# TOOL, asan or tsan, is the library that the interpreter is given: it is not
# instrumented itself, so the tool is loaded before it; and not into redis-server,
# which brings its own allocator.
set -eu

python=$1
tool=$2
sanitizers=$3
shift 3

folder=$PWD/build/$tool
rm -rf "$folder/lib"
CC=gcc OFFLOOP_SANITIZE=$sanitizers OFFLOOP_DEBUG=${OFFLOOP_DEBUG:-} \
    "$python" setup.py -q build --build-lib "$folder/lib"

preload=$(gcc -print-file-name="lib$tool.so")
cxx=$(gcc -print-file-name=libstdc++.so.6)
case $cxx in /*) preload="$preload $cxx" ;; esac
printf '#!/bin/sh\nunset LD_PRELOAD\nexec %s "$@"\n' \
    "$(command -v "${REDIS_SERVER:-redis-server}")" >"$folder/redis-server"
chmod +x "$folder/redis-server"

exec env LD_PRELOAD="$preload" PYTHONMALLOC=malloc PYTHONPATH="$folder/lib" \
    REDIS_SERVER="$folder/redis-server" \
    "$python" -m pytest -q -p no:cacheprovider -m 'not slow and not soak' "$@" </dev/null
