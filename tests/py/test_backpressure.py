"""The queue is bounded: callers wait when it is full, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
from driving import outcome, outcomes, run, until, within
from servers import Server


def resident_bytes() -> int:
    """What of this process is in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("limit", [1, 2, 16, 100])
async def test_a_small_queue_loses_nothing(server: Server, limit: int) -> None:
    async with offloop.Pool(workers=2, queue=limit) as pool:
        assert pool.stats()["queue_limit"] == limit
        async with aioredis.Redis(**server.unix, pool=pool) as client:
            calls = [client.incr("n") for _ in range(5000)]
            assert sorted(await outcomes(calls)) == list(range(1, 5001))
            assert server.cmd("GET", "n") == "5000"
            tasks = [asyncio.create_task(client.echo(str(i))) for i in range(5000)]
            assert await outcomes(tasks) == [str(i).encode() for i in range(5000)]
            assert pool.stats()["queue_high_water"] <= limit
            assert pool.stats()["queue_depth"] == 0


async def test_a_full_queue_does_not_block_the_loop(own_server: Server) -> None:
    async with (
        offloop.Pool(workers=1, queue=10) as pool,
        aioredis.Redis(**own_server.unix, pool=pool, socket_timeout=40) as client,
    ):
        await client.ping()
        own_server.pause()
        calls = [client.incr("n") for _ in range(3000)]
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            for _ in range(20):
                await asyncio.sleep(0.005)
                ticks += 1

        await within(tick())
        assert ticks == 20
        own_server.resume()
        assert sorted(await outcomes(calls)) == list(range(1, 3001))


async def test_waiting_callers_may_be_cancelled(own_server: Server) -> None:
    async with (
        offloop.Pool(workers=1, queue=10) as pool,
        aioredis.Redis(**own_server.unix, pool=pool, socket_timeout=40) as client,
    ):
        await client.ping()
        own_server.pause()
        kept = [client.incr("kept") for _ in range(500)]
        dropped = [client.incr("dropped") for _ in range(500)]
        also_kept = [client.incr("kept") for _ in range(500)]
        for call in dropped:
            call.cancel()
        own_server.resume()
        values = await outcomes([*kept, *also_kept])
        assert sorted(values) == list(range(1, 1001))
        assert all(isinstance(value, asyncio.CancelledError) for value in await outcomes(dropped))
        # Those that had to wait for a place had not been sent.
        assert int(await client.get("dropped") or 0) < 500
        assert await client.get("kept") == b"1000"


async def test_order_is_kept_by_those_who_wait(server: Server) -> None:
    async with (
        offloop.Pool(workers=2, queue=4) as pool,
        aioredis.Redis(**server.unix, pool=pool) as client,
    ):
        calls = [client.rpush("l", i) for i in range(2000)]
        await outcomes(calls)
        assert await client.lrange("l", 0, -1) == [str(i).encode() for i in range(2000)]


def test_loops_in_threads_share_a_small_queue(server: Server) -> None:
    pool = offloop.Pool(workers=2, queue=8)
    client = aioredis.Redis(**server.unix, pool=pool)
    wrong: list[Any] = []

    async def work(base: int) -> None:
        values = await outcomes([client.echo(str(base + i)) for i in range(3000)])
        if values != [str(base + i).encode() for i in range(3000)]:
            wrong.append(values)

    threads = [threading.Thread(target=lambda n=n: run(work(n * 10_000))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

    async def close() -> None:
        await client.aclose()
        await pool.aclose()

    run(close())


async def test_closing_with_waiting_callers(own_server: Server) -> None:
    pool = offloop.Pool(workers=1, queue=5)
    client = aioredis.Redis(**own_server.unix, pool=pool)
    await client.ping()
    own_server.pause()
    calls = [client.incr("n") for _ in range(300)]
    closing = asyncio.create_task(pool.aclose(timeout=0.5))
    await within(closing)
    values = await outcomes(calls)
    assert all(isinstance(value, (aioredis.RedisError, RuntimeError)) for value in values)
    own_server.resume()
    unsent = sum("may have run" not in str(value) for value in values)
    await until(lambda: own_server.cmd("PING") == "PONG")
    assert int(own_server.cmd("GET", "n") or 0) <= 300 - unsent
    await client.aclose()


async def test_memory_in_flight_is_bounded(own_server: Server) -> None:
    """50,000 commands under way cost a bounded amount each, and give it back."""
    async with aioredis.Redis(**own_server.unix, socket_timeout=40) as client:
        await outcomes([client.get("k") for _ in range(50_000)])
        own_server.pause()
        before = resident_bytes()
        calls = [client.get("k") for _ in range(50_000)]
        await asyncio.sleep(0.1)
        cost = (resident_bytes() - before) / len(calls)
        own_server.resume()
        assert await outcomes(calls) == [None] * 50_000
        assert cost < 2000, f"{cost:.0f} bytes each"


async def test_values_under_way_are_released(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.set("big", b"x" * 1_000_000)
        for _ in range(3):
            await outcomes([client.get("big") for _ in range(20)])
        before = resident_bytes()
        for _ in range(30):
            await outcomes([client.get("big") for _ in range(20)])
        assert resident_bytes() - before < 60_000_000


@pytest.mark.parametrize("limit", [0, -1, True, "10", 1.5, 10**30])
def test_a_queue_limit_is_checked(limit: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="queue"):
        offloop.Pool(queue=limit)


async def test_errors_do_not_use_up_places(server: Server) -> None:
    async with (
        offloop.Pool(workers=1, queue=4) as pool,
        aioredis.Redis(**server.unix, pool=pool) as client,
    ):
        for _ in range(200):
            assert isinstance(
                await outcome(client.execute_command("NOSUCH")), aioredis.ResponseError
            )
            cancelled = client.get("k")
            cancelled.cancel()
        assert await outcomes([client.ping() for _ in range(100)]) == [True] * 100
        assert pool.stats()["queue_depth"] == 0
