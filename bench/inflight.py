"""Many commands in flight from one task, in a process of its own.

``memory`` holds the server back (CLIENT PAUSE) while n commands are made, and
divides the growth of the resident memory by n. ``window`` keeps n commands in
flight: whenever the oldest is answered, one more is sent.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import redis
from apart import apart
from offloop import Pool
from offloop import redis as offloop_redis
from offloop.bench.options import BenchError
from offloop.bench.workload import KEY, VALUE

_PAUSE_MS = 3000
_SETTLE_SECS = 0.5
_WORKERS = 4
_WARMUP = 1000

Get = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Flight:
    """``kind`` is memory (bytes per command) or window (commands per second)."""

    kind: str
    url: str
    commands: int
    secs: float


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _check(reply: object) -> None:
    if reply != VALUE:
        raise BenchError(f"GET answered {reply!r}")


async def _memory(flight: Flight, get: Get) -> float:
    with redis.Redis.from_url(flight.url) as control:
        control.execute_command("CLIENT", "PAUSE", _PAUSE_MS, "ALL")
    paused = time.monotonic()
    gc.collect()
    before = _resident_bytes()
    flying = [get() for _ in range(flight.commands)]
    await asyncio.sleep(_SETTLE_SECS)
    grown = _resident_bytes() - before
    if time.monotonic() - paused > _PAUSE_MS / 1000:
        raise BenchError("the server went on before the memory was read")
    for one in flying:
        _check(await one)
    return grown / flight.commands


async def _window(flight: Flight, get: Get) -> float:
    clock = time.perf_counter
    flying = deque(get() for _ in range(flight.commands))
    done = 0
    began = clock()
    end = began + flight.secs
    while clock() < end:
        for _ in range(100):
            oldest = flying.popleft()
            flying.append(get())
            _check(await oldest)
        done += 100
    took = clock() - began
    for one in flying:
        _check(await one)
    return done / took


async def _fly(flight: Flight) -> float:
    pool = Pool(workers=_WORKERS, queue=max(65536, 2 * flight.commands))
    client = offloop_redis.from_url(flight.url, pool=pool)
    get: Get = partial(client.get, KEY)
    try:
        for one in [get() for _ in range(_WARMUP)]:
            _check(await one)
        kind = _memory if flight.kind == "memory" else _window
        return await kind(flight, get)
    finally:
        await client.aclose()
        await pool.aclose()


def fly(flight: Flight) -> float:
    """Run ``flight`` in a new process. Raises BenchError."""
    what = f"{flight.kind} with {flight.commands} in flight"
    return float(apart(__file__, flight, flight.secs * 4 + 120, what))


if __name__ == "__main__":
    print(asyncio.run(_fly(Flight(**json.loads(sys.stdin.read())))))
