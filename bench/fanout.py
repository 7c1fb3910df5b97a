"""One publisher and many subscribers of one channel, in a process of its own.

Each subscriber is a task that listens on a PubSub of its own. The publisher keeps a few
messages under way: whenever the oldest has reached everybody, it sends one more. What is
counted are deliveries. ``memory`` is what a subscriber costs that listens.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import redis
import redis.asyncio
from apart import apart
from offloop import redis as offloop_redis

_CHANNEL = "fan-out"
_UNDER_WAY = 4
_WARMUP_SHARE = 0.25
_PEERS: dict[str, Any] = {"asyncio": redis.asyncio, "offloop": offloop_redis}


@dataclass(frozen=True)
class Fanout:
    """``peer`` is asyncio or offloop; ``kind`` is rate or memory."""

    peer: str
    kind: str
    url: str
    subscribers: int
    secs: float


class _Audience:
    """The subscribers: how many messages each has got."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left: dict[bytes, int] = {}
        self._all: dict[bytes, asyncio.Event] = {}
        self.deliveries = 0

    def expect(self, text: bytes) -> None:
        self._left[text] = self._size
        self._all[text] = asyncio.Event()

    async def everybody(self, text: bytes) -> None:
        """Wait until everybody has got it."""
        await self._all[text].wait()
        del self._all[text]

    async def listen(self, pubsub: Any) -> None:
        async for message in pubsub.listen():
            text = message["data"]
            self.deliveries += 1
            left = self._left[text] - 1
            self._left[text] = left
            if left == 0:
                del self._left[text]
                self._all[text].set()


@asynccontextmanager
async def _listening(fanout: Fanout, audience: _Audience) -> AsyncIterator[Any]:
    client = _PEERS[fanout.peer].from_url(
        fanout.url, max_connections=fanout.subscribers + 10, socket_timeout=None
    )
    await client.ping()
    tasks = []
    pubsubs = []
    gc.collect()
    try:
        for _ in range(fanout.subscribers):
            pubsub = client.pubsub(ignore_subscribe_messages=True)
            await pubsub.subscribe(_CHANNEL)
            pubsubs.append(pubsub)
            tasks.append(asyncio.create_task(audience.listen(pubsub)))
        await asyncio.sleep(0.2)
        yield client
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        for pubsub in pubsubs:
            await pubsub.aclose()
        await client.aclose()


async def _publish(client: Any, audience: _Audience, first: int, secs: float) -> int:
    """Keep messages under way for so long; the number of the next."""
    under_way: list[bytes] = []
    end = time.perf_counter() + secs
    while under_way or time.perf_counter() < end:
        if len(under_way) < _UNDER_WAY and time.perf_counter() < end:
            text = b"%d" % first
            first += 1
            audience.expect(text)
            await client.publish(_CHANNEL, text)
            under_way.append(text)
        else:
            await audience.everybody(under_way.pop(0))
    return first


def used_secs() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _rate(fanout: Fanout) -> dict[str, float]:
    audience = _Audience(fanout.subscribers)
    async with _listening(fanout, audience) as client:
        after = await _publish(client, audience, 0, fanout.secs * _WARMUP_SHARE)
        before, cpu, began = audience.deliveries, used_secs(), time.perf_counter()
        await _publish(client, audience, after, fanout.secs)
        took, used = time.perf_counter() - began, used_secs() - cpu
        count = audience.deliveries - before
    return {"ops_per_s": count / took, "cpu_us": used / count * 1e6}


def resident_bytes() -> int:
    """Of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _memory(fanout: Fanout) -> dict[str, float]:
    async with _listening(Fanout(**{**asdict(fanout), "subscribers": 10}), _Audience(10)):
        pass
    before = resident_bytes()
    async with _listening(fanout, _Audience(fanout.subscribers)):
        gc.collect()
        return {"bytes": (resident_bytes() - before) / fanout.subscribers}


def fan_out(fanout: Fanout) -> dict[str, float]:
    """Run it in a new process. Raises BenchError."""
    what = f"{fanout.subscribers} subscribers of {fanout.peer}"
    found: dict[str, float] = apart(__file__, fanout, fanout.secs * 4 + 300, what)
    return found


def make_room(url: str, clients: int) -> None:
    """Have the server take so many connections."""
    with redis.Redis.from_url(url) as control:
        control.config_set("maxclients", clients + 1000)


def raise_limit(descriptors: int) -> None:
    """Let this process open so many files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(descriptors, hard), hard))


if __name__ == "__main__":
    asked = Fanout(**json.loads(sys.stdin.read()))
    raise_limit(asked.subscribers + 200)
    print(json.dumps(asyncio.run({"rate": _rate, "memory": _memory}[asked.kind](asked))))
