#!/bin/sh
# Build and test on the other interpreters of this machine, 3.10 to 3.13.
#
#     .ci/others.sh PYTHON      (the one that was tested in full already)
#
# Each has an environment of its own under .venvs and runs the tests of the
# awaitable, which depends on the version most, and some of the client's. One that cannot make an environment or build an
# extension is named and left out.
set -eu

done_already=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
probe='if 1:
    import ensurepip, os, sys, sysconfig
    os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))
    print("%d.%d" % sys.version_info[:2])'
failed=

for version in 3.10 3.11 3.12 3.13; do
    [ "$version" != "$done_already" ] || continue
    found=
    seen=
    for python in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python; do
        command -v "$python" >/dev/null 2>&1 || continue
        seen=$python
        if [ "$("$python" -c "$probe" 2>/dev/null)" = "$version" ]; then
            found=$python
            break
        fi
    done
    if [ -z "$found" ]; then
        [ -z "$seen" ] || echo "offloop: Python $version left out: $seen has no ensurepip or no headers"
        continue
    fi
    echo "offloop: the shorter tests on Python $version"
    PYTHON=$found .ci/venv.sh ".venvs/$version" test
    ".venvs/$version/bin/python" -m pytest -q -n 4 -m 'not slow and not soak' \
        tests/py/test_future_*.py tests/py/test_awaitable_redis.py \
        tests/py/test_contract_cancel.py tests/py/test_oracle.py \
        tests/py/test_call.py tests/py/test_executor.py tests/py/test_executor_cpython.py \
        tests/py/test_lane.py tests/py/test_call_oracle.py \
        tests/py/test_dbapi.py tests/py/test_dbapi_pool.py </dev/null || failed="$failed $version"
done

[ -z "$failed" ] || { echo "offloop: the tests failed on Python$failed" >&2; exit 1; }
