#!/bin/sh
# Make or update a virtual environment with offloop in it, built in place.
#
#     .ci/venv.sh FOLDER EXTRA...
#
# PYTHON names the interpreter for a new environment. What each extra needs is
# installed once, and again when the metadata has changed; after that a call
# costs the look at which C files are newer than their objects.
set -eu

venv=$1
shift
python=${PYTHON:-python3}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

quietly() {
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        echo "offloop: this failed: $*" >&2
        exit 1
    fi
}

if ! "$venv/bin/python" -c '' 2>/dev/null; then
    "$python" -c 'if 1:
        import sys
        if sys.version_info < (3, 10):
            sys.exit("offloop: Python 3.10 or newer is needed; PYTHON=... names another one")'
    echo "offloop: making $venv with $("$python" --version)"
    rm -rf "$venv"
    quietly "$python" -m venv "$venv"
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1
metadata=$(cat setup.cfg pyproject.toml | cksum)
wanted=
for extra in base "$@"; do
    [ "$(cat "$venv/.has-$extra" 2>/dev/null)" = "$metadata" ] || wanted="$wanted $extra"
done
if [ -n "$wanted" ]; then
    list=$(echo "$@" | tr ' ' ',')
    echo "offloop: installing into $venv: offloop, built from here${list:+, and what its extras $list need}"
    quietly "$venv/bin/python" -m pip install 'setuptools>=70.1' wheel
    quietly "$venv/bin/python" -m pip install --no-build-isolation -e ".${list:+[$list]}"
    for extra in base "$@"; do echo "$metadata" >"$venv/.has-$extra"; done
fi
quietly "$venv/bin/python" setup.py -q build_ext --inplace
cat "$log"
