"""Connections of their own, asked for from several loops at the same time."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import run
from offloop.redis.locks import LoopsCondition, LoopsLock
from servers import Server

LOOPS = 3


@pytest.fixture(autouse=True)
def _often() -> Iterator[None]:
    """Threads take turns as often as they can, in the middle of anything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_loops(work: Callable[[int], Awaitable[None]]) -> None:
    """The same in a loop of each of some threads."""
    failures: list[BaseException] = []

    async def all_of(number: int) -> None:
        await asyncio.gather(*(work(number * 100 + i) for i in range(8)))

    def drive(number: int) -> None:
        try:
            run(all_of(number), limit=30)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(LOOPS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


async def count_up(client: aioredis.Redis, rounds: int) -> None:
    """By reading, on a connection of its own."""
    for _ in range(rounds):

        async def up(pipe: Any) -> None:
            value = int(await pipe.get("count") or 0)
            pipe.multi()
            pipe.set("count", value + 1)

        await client.transaction(up, "count")


def test_a_connection_pool(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    in_loops(lambda _: count_up(client, 10))
    assert server.cmd("GET", "count") == str(LOOPS * 8 * 10)
    run(client.aclose())


def test_a_blocking_connection_pool(server: Server) -> None:
    """Who waits for a connection is told by whoever gives one back, in any loop."""
    pool = aioredis.BlockingConnectionPool.from_url(server.unix_url, max_connections=2, timeout=90)
    client = aioredis.Redis(connection_pool=pool)
    in_loops(lambda _: count_up(client, 10))
    assert server.cmd("GET", "count") == str(LOOPS * 8 * 10)
    run(pool.aclose())


def test_a_client_of_a_single_connection(server: Server) -> None:
    client = aioredis.Redis(**server.unix, single_connection_client=True)
    wrong: list[Any] = []

    async def ask(number: int) -> None:
        async with client:
            for i in range(20):
                if (found := await client.echo(f"{number}.{i}")) != b"%d.%d" % (number, i):
                    wrong.append(found)

    async def main(number: int) -> None:
        await ask(number)

    run(client.initialize())
    client._usage_counter += 1  # who leaves its `async with` last would close it
    in_loops(main)
    client._usage_counter -= 1
    run(client.aclose())
    assert wrong == []


def test_one_at_a_time_whoever_is_cancelled() -> None:
    lock, inside = LoopsLock(), [0]
    wrong: list[int] = []

    async def once(pause: bool) -> None:
        async with lock:
            inside[0] += 1
            if inside[0] != 1:
                wrong.append(inside[0])
            try:
                if pause:
                    await asyncio.sleep(0)
            finally:
                inside[0] -= 1

    async def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(60):
            task = asyncio.ensure_future(once(chance.random() < 0.5))
            if chance.random() < 0.3:
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    in_loops(work)
    assert wrong == []
    assert not lock.locked()


def test_whoever_is_told_goes_on() -> None:
    """As many go through as there are things to take, with cancels among those who wait."""
    condition, things = LoopsCondition(), [0]

    async def take() -> None:
        async with condition:
            await condition.wait_for(lambda: things[0] > 0)
            things[0] -= 1

    async def give() -> None:
        async with condition:
            things[0] += 1
            condition.notify()

    async def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(40):
            task = asyncio.ensure_future(take())
            await asyncio.sleep(0)
            cancelled = chance.random() < 0.3
            if cancelled:
                task.cancel()
            else:
                await give()
            (end,) = await asyncio.gather(task, return_exceptions=True)
            if cancelled and end is None:  # it had taken another's
                await give()

    in_loops(work)
    assert things == [0]
    assert not condition.locked()


async def test_a_loop_that_is_gone_keeps_nobody_waiting() -> None:
    lock = LoopsLock()
    await lock.acquire()
    loop = asyncio.new_event_loop()
    coroutine = lock.acquire()

    def elsewhere() -> None:
        task = loop.create_task(coroutine)
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    waiting = asyncio.create_task(lock.acquire())
    await asyncio.sleep(0)
    lock.release()
    assert await asyncio.wait_for(waiting, 30) is True
    coroutine.close()
    lock.release()


async def test_it_is_an_error_to_release_what_nobody_has() -> None:
    with pytest.raises(RuntimeError, match="not acquired"):
        LoopsLock().release()
