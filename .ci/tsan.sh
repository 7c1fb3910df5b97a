#!/bin/sh
# ThreadSanitizer: the C tests, then the Python tests whose threads have the most to
# do with each other. The GIL is a lock of libpthread's, which the tool sees.
#
#     .ci/tsan.sh PYTHON [pytest arguments]
set -eu

python=$1
shift
"$python" tests/c/run.py --variant tsan

echo "offloop: the Python tests under ThreadSanitizer"
mkdir -p build/tsan
rm -f build/tsan/report.*
# A report in a test's own process would be lost in its output, and ends no test: each
# process writes what it has seen to a file.
reports=$PWD/build/tsan/report
failed=0
TSAN_OPTIONS="log_path=$reports:exitcode=0:history_size=7:atexit_sleep_ms=100:ignore_noninstrumented_modules=1" \
    .ci/sanitized.sh "$python" tsan thread -n 2 "$@" \
    tests/py/test_call.py tests/py/test_call_oracle.py tests/py/test_lane.py \
    tests/py/test_busy_poll.py tests/py/test_room.py "tests/py/test_oracle.py::test_identity_under_fire[2]" \
    tests/py/test_read_through.py --deselect tests/py/test_read_through.py::test_fork \
    --deselect tests/py/test_room.py::test_the_process_ends_while_calls_wait || failed=1
for report in "$reports".*; do
    [ -e "$report" ] || continue
    cat "$report" >&2
    failed=1
done
exit "$failed"
