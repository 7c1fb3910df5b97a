"""Ten thousand who wait: each costs little, all are woken in order, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import offloop.redis as aioredis
import pytest
from driving import outcome, until, within
from redis.exceptions import ConnectionError
from servers import Server
from test_blocking import blocked

MANY = 10_000
_SPARE = 300  # descriptors of the test's own


@pytest.fixture
def many() -> Iterator[int]:
    """As many as the hard limit allows; the soft one is raised for the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(MANY, hard - _SPARE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
async def test_many_blocked_pops(many: int) -> None:
    options = {"maxclients": str(many + 50), "tcp-backlog": "511"}
    with Server(**options) as server:
        async with aioredis.Redis(
            **server.tcp, max_connections=many, socket_timeout=None, workers=4
        ) as client:
            await client.ping()
            gc.collect()
            before, files = resident(), len(os.listdir("/proc/self/fd"))
            calls = [asyncio.ensure_future(client.blpop(f"l{n}", timeout=0)) for n in range(many)]
            await until(lambda: blocked(server) == many, 200)
            assert client.stats()["leases"] == many
            # The call's future and the job are in it as well.
            assert (resident() - before) / many < 8192
            assert await client.set("k", "v") is True

            woken: list[int] = []
            for number, call in enumerate(calls):
                call.add_done_callback(lambda _, number=number: woken.append(number))
            order = [(n * 7919) % many for n in range(many)]
            assert len(set(order)) == many
            for n in order:
                await client.rpush(f"l{n}", n)
            replies = await within(asyncio.gather(*calls), 100)
            assert replies == [(f"l{n}".encode(), str(n).encode()) for n in range(many)]
            # Each push is answered before the next, so each pop was served before it, too;
            # the poller may see those of one turn in the order in which it watches them, and a
            # machine may stop a worker with one in its hands.
            late = sum(abs(place - woken.index(n)) > 64 for place, n in enumerate(order[:2000]))
            assert late <= 20
            assert client.stats()["leases_idle"] == many

            again = [asyncio.ensure_future(client.blpop("l", timeout=0)) for _ in range(many)]
            await until(lambda: blocked(server) == many, 200)
            for call in again:
                call.cancel()
            await asyncio.wait({asyncio.ensure_future(outcome_of(call)) for call in again})
            await until(lambda: client.stats()["leases"] == 0)
            await until(lambda: blocked(server) == 0)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= files)
            await until(lambda: client.stats()["pool"]["queue_depth"] == 0)
            assert client.stats()["leases_opened"] == many  # none twice


async def outcome_of(call: asyncio.Future[object]) -> None:
    try:
        await call
    except asyncio.CancelledError:
        assert call.cancelled()


async def test_out_of_descriptors_fails_that_call_alone(server: Server) -> None:
    async with aioredis.Redis(**server.tcp, retry=None, socket_timeout=None) as client:
        await client.ping()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        # Fill what is free below, so that the limit says how many there may be.
        fillers = []
        while (fd := os.open("/dev/null", os.O_RDONLY)) < highest:
            fillers.append(fd)
        os.close(fd)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 3, hard))
            calls = [asyncio.ensure_future(client.blpop("l", timeout=0)) for _ in range(10)]
            await until(lambda: sum(call.done() for call in calls) == 7)
            failed = [await outcome(call) for call in calls if call.done()]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
        assert all(isinstance(error, ConnectionError) for error in failed)
        assert all("Too many open files" in str(error) for error in failed)
        waiting = [call for call in calls if not call.done()]
        await client.rpush("l", 1, 2, 3)  # the others have noticed nothing
        assert len(await within(asyncio.gather(*waiting))) == 3
