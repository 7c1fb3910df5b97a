#!/bin/sh
# One part of redis-py's own asyncio tests on offloop.redis: `make upstream` runs them all.
#
# Which server, protocol, transport and part it is goes round with the commits, so that a
# few days of work see the whole of it. A server that cannot be fetched from Debian is
# named, and the one that is installed takes its place.
set -eu

parts=16
turn=$(git rev-list --count HEAD 2>/dev/null || echo 0)
set -- "system 2 tcp" "system 3 unix" "valkey 3 tcp" "system 3 tcp" "8.0 3 unix" \
    "system 2 unix" "8.6 3 tcp" "system default tcp"
part=$((turn / $# % parts))/$parts
shift $((turn % $#))
IFS=' ' read -r server resp over <<EOF
$1
EOF
echo "offloop: redis-py's tests: server $server, RESP $resp over $over, part $part"
.ci/system.sh build test
.ci/venv.sh .venvs/upstream upstream
run() {
    .venvs/upstream/bin/python tests/upstream/run.py \
        --server "$1" --resp "$resp" --over "$over" --part "$part" </dev/null
}
code=0
run "$server" || code=$?
if [ "$code" = 3 ]; then
    echo "offloop: the server $server cannot be had: the installed one takes its place"
    code=0
    run system || code=$?
fi
if [ "$code" = 4 ]; then
    echo "offloop: redis-py's tests were left out here"
    code=0
fi
exit "$code"
