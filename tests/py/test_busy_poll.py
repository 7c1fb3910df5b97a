"""Busy polling: a loop that waits for replies looks for them before it sleeps.

What it must not do is to keep anything else waiting: timers, sockets, other tasks. What
it gains is a matter of `bench/run.py --only get`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
from fakeserver import FakeServer, Peer
from servers import Server

two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="there is nobody to poll for on one CPU"
)


async def one_after_the_other(client: Any, count: int | None = None) -> None:
    """Commands with nothing in between; for ever without a count."""
    done = 0
    while count is None or done < count:
        await client.ping()
        done += 1


def polls(client: Any) -> tuple[int, int]:
    stats = client.stats()["pool"]
    return stats["busy_polls"], stats["busy_poll_hits"]


@two_cpus
async def test_replies_are_found_by_looking(server: Server) -> None:
    async with offloop.Pool(1) as pool, aioredis.Redis(**server.unix, pool=pool) as client:
        while polls(client)[1] < 5:  # not each time on a busy machine
            await one_after_the_other(client, 100)
        assert polls(client)[0] >= polls(client)[1]


async def test_zero_is_never(server: Server) -> None:
    pool = offloop.Pool(1, busy_poll=0)
    async with pool, aioredis.Redis(**server.unix, pool=pool) as client:
        await one_after_the_other(client, 300)
        assert polls(client) == (0, 0)


async def test_timers_sockets_and_tasks_have_their_turn(server: Server) -> None:
    loop = asyncio.get_running_loop()
    # So long that there is always a reply in time.
    pool = offloop.Pool(1, busy_poll=0.01)
    async with pool, aioredis.Redis(**server.unix, pool=pool) as client:
        busy = asyncio.create_task(one_after_the_other(client))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)

            async def others() -> None:
                for number in range(50):
                    await asyncio.sleep(0.0001)  # a timer
                    await asyncio.sleep(0)  # a turn
                    await loop.sock_sendall(ours, bytes([number]))
                    assert await loop.sock_recv(theirs, 1) == bytes([number])
                    await loop.run_in_executor(None, os.getpid)  # call_soon_threadsafe

            await asyncio.wait_for(others(), 60)
        assert not busy.done()
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy


async def test_a_server_far_away_is_seldom_polled_for() -> None:
    def script(peer: Peer, _args: list[bytes]) -> None:
        peer.server.closing.wait(0.003)
        peer.send(b"+x\r\n")

    with FakeServer(script) as fake:
        pool = offloop.Pool(1)
        async with pool, aioredis.Redis(host="127.0.0.1", port=fake.port, pool=pool) as client:
            for _ in range(300):
                assert await client.execute_command("GET", "k") == b"x"
            # 5 until it is given up, then two after 1, 2, 4 ... 64 others; and a few that
            # found something else to do, which do not count.
            assert polls(client)[0] <= 5 + 2 * 9 + 7


def worker_polls(pool: offloop.Pool) -> tuple[int, int]:
    workers = pool.stats()["per_worker"]
    return (
        sum(worker["busy_polls"] for worker in workers),
        sum(worker["busy_poll_hits"] for worker in workers),
    )


@two_cpus
@pytest.mark.parametrize("way", ["pool", "lane", "pinned"])
async def test_calls_and_their_results_are_found_by_looking(way: str) -> None:
    """The loop looks for the result, and the worker for the next call."""
    async with offloop.Pool(2) as pool:
        caller = pool if way == "pool" else pool.lane(pinned=way == "pinned")
        while pool.stats()["busy_poll_hits"] < 20 or worker_polls(pool)[1] < 20:
            for number in range(100):
                assert await caller.call(abs, -number) == number


async def test_zero_is_never_for_calls_too() -> None:
    async with offloop.Pool(2, busy_poll=0) as pool:
        for number in range(300):
            assert await pool.call(abs, -number) == number
        assert pool.stats()["busy_polls"] == 0
        assert worker_polls(pool) == (0, 0)


async def test_calls_that_take_long_are_seldom_looked_for() -> None:
    async with offloop.Pool(2) as pool:
        for _ in range(150):
            await pool.call(time.sleep, 0.002)
        # As above; the worker looks at most when the loop does.
        assert pool.stats()["busy_polls"] <= 30
        assert worker_polls(pool)[0] <= pool.stats()["busy_polls"]


async def test_beside_a_call_that_waits_commands_are_looked_for(server: Server) -> None:
    async with offloop.Pool(2) as pool, aioredis.Redis(**server.unix, pool=pool) as client:
        reader, writer = os.pipe()
        waits = pool.call(os.read, reader, 1)
        await one_after_the_other(client, 500)
        assert not waits.done()
        os.write(writer, b"x")
        assert await waits == b"x"
        os.close(reader)
        os.close(writer)


async def test_beside_calls_that_compute_timers_have_their_turn() -> None:
    """Each look lets go of the GIL; who computes takes it."""
    async with offloop.Pool(2, busy_poll=0.01) as pool:
        stop = False

        async def computing() -> None:
            while not stop:
                await pool.call(sum, range(20_000))

        tasks = [asyncio.create_task(computing()) for _ in range(3)]
        for _ in range(30):
            await asyncio.sleep(0.001)
        stop = True
        await asyncio.wait_for(asyncio.gather(*tasks), 60)


@pytest.mark.parametrize("wrong", [-1, 0.011, float("nan"), float("inf")])
def test_a_wrong_time_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="busy_poll must be between 0 and 0.01 seconds"):
        offloop.Pool(1, busy_poll=wrong)


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(TypeError):
        offloop.Pool(1, busy_poll="1")  # type: ignore[arg-type]


async def test_counts_of_a_loop_that_is_gone_are_kept(server: Server) -> None:
    pool = offloop.Pool(1)

    async def main() -> None:
        async with aioredis.Redis(**server.unix, pool=pool) as client:
            await one_after_the_other(client, 100)

    await asyncio.to_thread(asyncio.run, main())
    first = pool.stats()["busy_polls"]
    await asyncio.to_thread(asyncio.run, main())
    assert pool.stats()["busy_polls"] >= first
    await pool.aclose()
