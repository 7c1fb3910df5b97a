"""Calls of Python functions, one measurement in a process of its own.

``run_in_executor`` with a ThreadPoolExecutor beside ``Pool.call`` with as many
threads: functions that do nothing, functions that compute for a millisecond while a
timer of the loop is watched, and GETs of a client whose pool has sleeping calls.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from apart import apart
from offloop import Pool
from offloop import redis as offloop_redis
from offloop.bench.measure import closed_loop
from offloop.bench.options import BenchError
from offloop.bench.workload import KEY, VALUE
from rows import Numbers

WORKERS = 4
_COMPUTE = 20_000  # turns of a loop, about a millisecond
_SLEEP = 1.0
_CLOSING = 10.0


@dataclass(frozen=True)
class Setting:
    """``peer`` is offloop, lane, batch or executor; ``work`` noop, compute or sleepers."""

    peer: str
    work: str
    tasks: int
    secs: float
    url: str = ""


def nothing() -> None:
    """What is left is the cost of the call."""


def compute() -> int:
    """Hold the interpreter for about a millisecond."""
    total = 0
    for number in range(_COMPUTE):
        total += number
    return total


async def _calls(setting: Setting, pool: Pool) -> Numbers:
    work = nothing if setting.work == "noop" else compute
    share = 1
    with ThreadPoolExecutor(WORKERS) as executor:
        if setting.peer == "executor":
            loop = asyncio.get_running_loop()
            command: Callable[[], Awaitable[object]] = partial(loop.run_in_executor, executor, work)
        elif setting.peer == "batch":
            share = 100
            command = partial(_batch, pool, [work] * share)
        else:
            way = pool.lane() if setting.peer == "lane" else pool
            command = partial(way.call, work)
        sample = await closed_loop(
            command,
            tasks=setting.tasks,
            secs=setting.secs,
            warmup=min(0.5, setting.secs / 4),
            heartbeat=setting.work == "compute",
        )
    found = {
        "ops_per_s": sample.ops_per_s * share,
        "p50_us": sample.p50_us,
        "p99_us": sample.p99_us,
        "cpu_us": sample.cpu_us / share,
    }
    if sample.lateness is not None:
        found["late_p99_ms"] = sample.lateness.p99_ms
        found["late_p50_ms"] = sample.lateness.p50_ms
    return found


async def _batch(pool: Pool, work: list[Callable[[], object]]) -> object:
    return await pool.call_many(work)


async def _gets(setting: Setting, pool: Pool) -> Numbers:
    """GETs beside so many calls that sleep, in the same pool."""

    async def sleeper() -> None:
        while True:
            await pool.call(time.sleep, _SLEEP)

    client = offloop_redis.from_url(setting.url, pool=pool)
    sleepers = [asyncio.create_task(sleeper()) for _ in range(WORKERS)]
    try:
        if await client.get(KEY) != VALUE:
            raise BenchError("GET answered something else")
        sample = await closed_loop(
            partial(client.get, KEY), tasks=setting.tasks, secs=setting.secs, warmup=0.2
        )
        return {"ops_per_s": sample.ops_per_s, "p50_us": sample.p50_us, "p99_us": sample.p99_us}
    finally:
        for task in sleepers:
            task.cancel()
        await asyncio.gather(*sleepers, return_exceptions=True)
        await client.aclose()


async def _measured(setting: Setting) -> Numbers:
    pool = Pool(WORKERS)
    try:
        kind = _gets if setting.work == "sleepers" else _calls
        return await kind(setting, pool)
    finally:
        await pool.aclose(_CLOSING)


def measure(setting: Setting) -> Numbers:
    """Run ``setting`` in a new process. Raises BenchError."""
    what = f"{setting.peer}, {setting.work}"
    found: Numbers = apart(__file__, setting, setting.secs * 4 + 120, what)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measured(Setting(**json.loads(sys.stdin.read()))))))
