"""Consumers that wait on the server, in a process of their own.

``stream``: a consumer group, each task in XREADGROUP BLOCK for one entry and its XACK.
``queue``: a job queue, each task in BLMOVE and then LREM of the job that is done.
What they take was put there before; what is counted are messages done.

``blocked``: many tasks in BLPOP, and GETs of some others beside them through the same
client: what a blocked one costs, and what the GETs notice.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from apart import apart
from fanout import make_room, raise_limit, resident_bytes, used_secs
from native import c_consumers
from offloop import redis as offloop_redis
from offloop.bench.options import BenchError
from offloop.bench.workload import KEY

_PEERS: dict[str, Any] = {"asyncio": redis.asyncio, "offloop": offloop_redis}
_STREAM, _GROUP, _TODO, _DOING = "bench:stream", "readers", "bench:todo", "bench:doing"
_PER_SEC = 250_000  # more than either can do
_BATCH = 10_000
_XADD = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'kind', 'order', 'number', i) end"
_LPUSH = "for i = 1, ARGV[1] do redis.call('LPUSH', KEYS[1], 'job ' .. i) end"
_GETTERS = 20
_WORKERS = 4


@dataclass(frozen=True)
class Setting:
    """``peer`` is asyncio, offloop, or c where it is the C program; ``kind`` is stream, queue
    or blocked."""

    peer: str
    kind: str
    url: str
    tasks: int
    secs: float


def _supply(setting: Setting) -> int:
    return int(_PER_SEC * setting.secs) // _BATCH * _BATCH


def _fill(setting: Setting) -> None:
    with redis.Redis.from_url(setting.url) as client:
        client.delete(_STREAM, _TODO, _DOING)
        if setting.kind == "stream":
            client.xgroup_create(_STREAM, _GROUP, id="0", mkstream=True)
        script, key = (_XADD, _STREAM) if setting.kind == "stream" else (_LPUSH, _TODO)
        for _ in range(_supply(setting) // _BATCH):
            client.eval(script, 1, key, str(_BATCH))


async def _read_stream(client: Any, name: str) -> None:
    wanted = {_STREAM: ">"}
    reply = await client.xreadgroup(_GROUP, name, wanted, count=1, block=5_000)
    entries = (reply[_STREAM.encode()] if isinstance(reply, dict) else reply[0][1])[0]
    ((entry, fields),) = entries if isinstance(entries, list) and entries else [entries]
    if fields[b"kind"] != b"order":
        raise BenchError(f"a wrong entry: {fields}")
    await client.xack(_STREAM, _GROUP, entry)


async def _take_job(client: Any, name: str) -> None:
    job = await client.blmove(_TODO, _DOING, 5, "RIGHT", "LEFT")
    if not job.startswith(b"job "):
        raise BenchError(f"a wrong job for {name}: {job}")
    await client.lrem(_DOING, 1, job)


async def _consume(setting: Setting) -> dict[str, float]:
    step: Callable[[Any, str], Awaitable[None]]
    step = _read_stream if setting.kind == "stream" else _take_job
    client = _PEERS[setting.peer].from_url(setting.url, socket_timeout=None)
    done = 0

    async def worker(name: str) -> None:
        nonlocal done
        while True:
            await step(client, name)
            done += 1

    tasks = [asyncio.create_task(worker(f"c{number}")) for number in range(setting.tasks)]
    await asyncio.sleep(setting.secs / 4)
    before, used, began = done, used_secs(), time.perf_counter()
    await asyncio.sleep(setting.secs)
    took, used, count = time.perf_counter() - began, used_secs() - used, done - before
    if done >= _supply(setting):
        raise BenchError(f"all {done} messages were taken before the time was over")
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()
    for error in ended:
        if not isinstance(error, asyncio.CancelledError):
            raise BenchError(f"a consumer stopped: {error!r}")
    return {"ops_per_s": count / took, "cpu_us": used / max(1, count) * 1e6}


async def _p99_of_gets(client: Any, secs: float) -> float:
    """In ms, of tasks that get one value after another."""
    times: list[float] = []
    end = time.perf_counter() + secs

    async def getter() -> None:
        while (began := time.perf_counter()) < end:
            await client.get(KEY)
            times.append(time.perf_counter() - began)
            await asyncio.sleep(0.001)

    await asyncio.gather(*[getter() for _ in range(_GETTERS)])
    return sorted(times)[int(len(times) * 0.99)] * 1e3


async def _blocked(setting: Setting) -> dict[str, float]:
    client = _PEERS[setting.peer].from_url(
        setting.url, workers=_WORKERS, max_connections=setting.tasks + 10, socket_timeout=None
    )
    await client.ping()
    await _p99_of_gets(client, setting.secs / 4)
    alone = await _p99_of_gets(client, setting.secs)
    gc.collect()
    before = resident_bytes()
    waiting = [
        asyncio.ensure_future(client.blpop(f"absent:{number}", 0))
        for number in range(setting.tasks)
    ]
    while client.stats()["leases"] < setting.tasks:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    cost = (resident_bytes() - before) / setting.tasks
    beside = await _p99_of_gets(client, setting.secs)
    for future in waiting:
        future.cancel()
    for future in waiting:
        with suppress(asyncio.CancelledError):
            await future
    await client.aclose()
    return {"bytes": cost, "alone_ms": alone, "beside_ms": beside}


def consume(setting: Setting) -> dict[str, float]:
    """Run it in a new process. Raises BenchError."""
    if setting.kind == "blocked":
        make_room(setting.url, setting.tasks)
    else:
        _fill(setting)
    what = f"{setting.kind} of {setting.tasks} tasks of {setting.peer}"
    found: dict[str, float] = apart(__file__, setting, setting.secs * 8 + 120, what)
    return found


def consume_in_c(program: Path, port: int, setting: Setting) -> dict[str, float]:
    """What a C program takes of the same messages. Raises BenchError."""
    _fill(setting)
    keys = (_STREAM, _GROUP) if setting.kind == "stream" else (_TODO, _DOING)
    found = c_consumers(program, port, setting.secs, setting.tasks, setting.kind, *keys)
    if found["ops_per_s"] * setting.secs >= _supply(setting):
        raise BenchError("all messages were taken before the time was over")
    return found


if __name__ == "__main__":
    asked = Setting(**json.loads(sys.stdin.read()))
    raise_limit(asked.tasks + 200)
    run = _blocked if asked.kind == "blocked" else _consume
    print(json.dumps(asyncio.run(run(asked))))
