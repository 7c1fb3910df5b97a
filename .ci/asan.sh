#!/bin/sh
# AddressSanitizer and UBSan: the C tests, then the Python tests on an
# extension built with them; at last the shorter tests under Python's debug
# allocator and development mode.
#
#     .ci/asan.sh PYTHON [pytest arguments]
#
# Leaks are looked for in the C programs only: an interpreter keeps memory
# until its end by design. Nor is it watched how memory is allocated and freed: that
# would be the database drivers' own business.
set -eu

python=$1
shift
"$python" tests/c/run.py --variant asan

echo "offloop: the Python tests under AddressSanitizer and UBSan"
OFFLOOP_DEBUG=1 \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1:alloc_dealloc_mismatch=0 \
    UBSAN_OPTIONS=print_stacktrace=1 \
    .ci/sanitized.sh "$python" asan address,undefined -n 3 "$@" \
    tests/py/test_future_*.py tests/py/test_dbapi_drivers.py \
    --dist loadgroup $(cat .ci/shorter)

echo "offloop: the Python tests under Python's debug allocator"
PYTHONMALLOC=debug "$python" -X dev -m pytest -q -n 3 -p no:cacheprovider -m 'not slow and not soak' "$@" \
    tests/py/test_future_life.py tests/py/test_future_batch.py tests/py/test_awaitable_redis.py \
    tests/py/test_bad_server.py tests/py/test_contract_cancel.py </dev/null
