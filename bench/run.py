"""The benchmark suite: ``make bench``, or ``python bench/run.py --help``.

Prints a row for each target with what was seen and ``ok`` or ``MISS``. All of
a row's numbers come from one run on one private redis-server with one value;
they are medians over interleaved rounds. The exit status is 0 whatever was
seen: a machine with other work to do must not fail a build.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import redis
from native import build_delay_proxy, build_with_hiredis
from offloop.bench.cli import FAILED, INTERRUPTED, terminate_cleanly
from offloop.bench.compare import machine, prepared
from offloop.bench.options import BenchError
from offloop.bench.server import PrivateServer
from offloop.bench.workload import VALUE
from rows import Report
from sections import SECTIONS, Bench

#: The key that redis-benchmark reads when no -r is given.
_BENCHMARK_KEY = "key:__rand_int__"
_QUICK = ("get", "round_trip", "heartbeat")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="The benchmark suite.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument(
        "--secs", type=float, default=1.0, metavar="S", help="seconds of each measurement"
    )
    parser.add_argument(
        "--only", choices=SECTIONS, nargs="+", metavar="SECTION", help=", ".join(SECTIONS)
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"half a second each, only {', '.join(_QUICK)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    found = parser.parse_args()
    if found.rounds < 1 or not 0.05 <= found.secs <= 60:
        parser.error("--rounds is at least 1 and --secs within 0.05 to 60")
    if found.json is not None and not found.json.absolute().parent.is_dir():
        parser.error(f"no directory {found.json.parent}")
    if found.quick:
        found.secs = min(found.secs, 0.5)
        found.only = found.only or list(_QUICK)
    return found


def _suite(found: argparse.Namespace) -> None:
    if importlib.util.find_spec("hiredis") is None:
        raise BenchError("redis.asyncio needs its hiredis parser here: pip install hiredis")
    names = ("c_loop", "c_window", "c_consumers")
    loop_program, window_program, consumers_program = map(build_with_hiredis, names)
    proxy_program = build_delay_proxy()
    report = Report()
    began = time.monotonic()
    with PrivateServer() as server, prepared(server.url) as version:
        with redis.Redis.from_url(server.url) as client:
            client.set(_BENCHMARK_KEY, VALUE)
        where = machine(version)
        print(where)
        print(f"medians of {found.rounds} interleaved rounds of {found.secs:g} s", flush=True)
        bench = Bench(
            server.url,
            server.port,
            found.rounds,
            found.secs,
            loop_program,
            window_program,
            consumers_program,
            proxy_program,
            report,
        )
        for name in found.only or SECTIONS:
            SECTIONS[name](bench)
    judged = [row for row in report.rows if row.ok is not None]
    missed = [row for row in judged if not row.ok]
    took = time.monotonic() - began
    print(f"\n{len(judged) - len(missed)} of {len(judged)} targets reached, {took:.0f} s")
    for row in missed:
        print(f"  {row}")
    if found.json is not None:
        rows = [asdict(row) for row in report.rows]
        content = {"machine": asdict(where), "rows": rows, "numbers": report.numbers}
        found.json.write_text(json.dumps(content, indent=2) + "\n")
        print(f"JSON: {found.json.resolve()}")


def main() -> int:
    """Run the suite; returns the exit status."""
    found = _arguments()
    terminate_cleanly()
    try:
        _suite(found)
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
