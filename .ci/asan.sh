#!/bin/sh
# AddressSanitizer and UBSan: the C tests, then the Python tests on an
# extension built with them; at last the shorter tests under Python's debug
# allocator and development mode.
#
#     .ci/asan.sh PYTHON [pytest arguments]
#
# Leaks are looked for in the C programs only: an interpreter keeps memory
# until its end by design.
set -eu

python=$1
shift
root=$PWD
"$python" tests/c/run.py --variant asan

lib=$root/build/asan/lib
rm -rf "$lib"
CC=gcc OFFLOOP_SANITIZE=address,undefined OFFLOOP_DEBUG=1 \
    "$python" setup.py -q build --build-lib "$lib"

# The interpreter is not instrumented, so the tool is loaded before it; and not
# into redis-server, which brings its own allocator.
preload=$(gcc -print-file-name=libasan.so)
cxx=$(gcc -print-file-name=libstdc++.so.6)
case $cxx in /*) preload="$preload $cxx" ;; esac
server=$root/build/asan/redis-server
printf '#!/bin/sh\nunset LD_PRELOAD\nexec %s "$@"\n' \
    "$(command -v "${REDIS_SERVER:-redis-server}")" >"$server"
chmod +x "$server"

echo "offloop: the Python tests under AddressSanitizer and UBSan"
env LD_PRELOAD="$preload" \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1 \
    UBSAN_OPTIONS=print_stacktrace=1 \
    PYTHONMALLOC=malloc PYTHONPATH="$lib" REDIS_SERVER="$server" \
    "$python" -m pytest -q -n 3 -p no:cacheprovider -m 'not slow and not soak' "$@" \
    tests/py/test_future_*.py $(cat .ci/shorter) </dev/null

echo "offloop: the Python tests under Python's debug allocator"
PYTHONMALLOC=debug "$python" -X dev -m pytest -q -n 3 -p no:cacheprovider -m 'not slow and not soak' "$@" \
    tests/py/test_future_life.py tests/py/test_future_batch.py tests/py/test_awaitable_redis.py \
    tests/py/test_bad_server.py tests/py/test_contract_cancel.py </dev/null
