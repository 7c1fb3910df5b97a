"""Shutdown: refuse new, drain until the deadline, fail the rest, join; as often as you like."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
from driving import outcome, outcomes, run, settle, until, within
from fakeserver import FakeServer, Peer, bulk
from leaks import native_threads
from redis.exceptions import ConnectionError, RedisError
from servers import Server


async def test_aclose_drains(server: Server) -> None:
    for count in (1, 10, 5000):
        client = aioredis.Redis(**server.unix)
        server.cmd("DEL", "n")
        calls = [client.incr("n") for _ in range(count)]
        await within(client.aclose())
        assert await outcomes(calls) == list(range(1, count + 1))
        assert server.cmd("GET", "n") == str(count)
        assert not settle(server.clients)


async def test_aclose_of_a_pool_drains(server: Server) -> None:
    pool = offloop.Pool(workers=2)
    clients = [aioredis.Redis(**server.unix, pool=pool) for _ in range(3)]
    calls = [client.incr("n") for client in clients for _ in range(500)]
    await within(pool.aclose())
    assert sorted(await outcomes(calls)) == list(range(1, 1501))
    assert not settle(native_threads)
    for client in clients:
        await client.aclose()


async def test_aclose_is_idempotent_and_may_be_called_at_once(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    await client.ping()
    assert await outcomes([client.aclose() for _ in range(10)]) == [None] * 10
    await client.aclose()
    pool = offloop.Pool()
    await aioredis.Redis(**server.unix, pool=pool).ping()
    assert await outcomes([pool.aclose() for _ in range(10)]) == [None] * 10
    await pool.aclose()


async def test_a_closed_pool_refuses_with_a_clear_error(server: Server) -> None:
    pool = offloop.Pool(workers=1)
    client = aioredis.Redis(**server.unix, pool=pool)
    await client.ping()
    before = server.calls("incrby")
    await pool.aclose()
    for _ in range(3):
        value = await within(outcome(_incr(client)))
        assert isinstance(value, (RedisError, RuntimeError)), value
        assert "closed" in str(value)
    assert server.calls("incrby") == before
    await client.aclose()
    assert pool.stats()["queue_depth"] == 0
    with pytest.raises((RedisError, RuntimeError), match="closed"):
        await aioredis.Redis(**server.unix, pool=pool).ping()


async def _incr(client: aioredis.Redis) -> Any:
    return await client.incr("n")


async def test_calls_made_while_closing_end(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    await client.ping()
    results: list[Any] = []

    async def late() -> None:
        for _ in range(200):
            results.append(await outcome(_incr(client)))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(late()) for _ in range(10)]
    await asyncio.sleep(0.002)
    await within(client.aclose())
    await within(asyncio.gather(*tasks))
    await client.aclose()
    good = [value for value in results if isinstance(value, int)]
    bad = [value for value in results if not isinstance(value, int)]
    assert all(isinstance(value, (RedisError, RuntimeError)) for value in bad), bad[:3]
    assert server.cmd("GET", "n") == str(len(good))


@pytest.mark.parametrize("what", ["pool", "client"])
async def test_the_rest_is_failed_at_the_deadline(what: str) -> None:
    """A server that answers nothing: closing ends all the same, and so does every call."""

    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"ECHO":
            peer.send(bulk(args[1]))

    with FakeServer(script) as fake:
        pool = offloop.Pool(workers=2)
        client = aioredis.Redis(host="127.0.0.1", port=fake.port, pool=pool, socket_timeout=None)
        await client.echo("warm")
        calls = [client.get("silence") for _ in range(20)]
        await until(lambda: len(fake.commands(b"GET")) == 20)
        if what == "pool":
            await within(pool.aclose(timeout=0.3), 10)
        else:
            await within(client.aclose(), 20)
        values = await outcomes(calls)
        assert all(isinstance(value, ConnectionError) for value in values), values
        assert all("may have run" in str(value) for value in values)
        await client.aclose()
        await pool.aclose()


async def test_a_client_leaves_what_it_does_not_own(server: Server) -> None:
    async with offloop.Pool(workers=1) as pool:
        first, second = (aioredis.Redis(**server.unix, pool=pool) for _ in range(2))
        await first.ping()
        calls = [second.incr("n") for _ in range(100)]
        await first.aclose()
        assert await outcomes(calls) == list(range(1, 101))
        assert await second.ping() is True
        await second.aclose()


async def test_aclose_never_connected() -> None:
    client = aioredis.Redis(host="127.0.0.1", port=1, retry=None)
    value = await outcome(client.get("k"))
    assert isinstance(value, ConnectionError)
    await within(client.aclose())
    await within(offloop.Pool(workers=3).aclose())


def test_aclose_on_another_loop_and_thread(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    pool = offloop.Pool(workers=2)
    pooled = aioredis.Redis(**server.unix, pool=pool)

    async def use() -> None:
        assert await client.ping() is True
        assert await pooled.ping() is True

    async def close() -> None:
        await client.aclose()
        await pool.aclose()
        await pooled.aclose()

    run(use())
    thread = threading.Thread(target=lambda: run(close()))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


# --- loops that end --------------------------------------------------------------------


@pytest.mark.parametrize("moment", range(12))
def test_a_loop_that_closes_at_any_moment(server: Server, moment: int) -> None:
    """Calls in flight are dropped without a word; the client serves the next loop."""
    chance = random.Random(moment)
    client = aioredis.Redis(**server.unix)

    async def leave() -> None:
        client.echo("un-awaited")
        tasks = [asyncio.create_task(client.echo(str(i))) for i in range(100)]
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        if chance.random() < 0.5:
            await tasks[chance.randrange(100)]
        client.incr("n")

    async def after() -> None:
        values = await outcomes([client.echo(str(i)) for i in range(100)])
        assert values == [str(i).encode() for i in range(100)]

    for _ in range(10):
        asyncio.run(leave())
        loop = asyncio.new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        calls = [loop.run_until_complete(_make(client)) for _ in range(20)]
        loop.close()
        del calls
        run(after())
    assert client.stats()["connects"] == 1
    run(client.aclose())


async def _make(client: aioredis.Redis) -> list[Any]:
    return [client.get("k")]


def test_a_loop_stopped_and_started_again(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    loop = asyncio.new_event_loop()
    try:
        calls: list[Any] = loop.run_until_complete(_make_many(client))
        loop.run_until_complete(asyncio.sleep(0.01))

        async def gather() -> list[Any]:
            return await outcomes(calls)

        assert loop.run_until_complete(gather()) == list(range(1, 101))
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()


async def _make_many(client: aioredis.Redis) -> list[Any]:
    return [client.incr("n") for _ in range(100)]


def test_many_loops_leave_nothing(server: Server) -> None:
    client = aioredis.Redis(**server.unix)

    async def once(number: int) -> None:
        assert await client.echo(str(number)) == str(number).encode()

    for number in range(100):
        asyncio.run(once(number))
    assert client.stats()["pool"]["loops"] <= 2
    run(client.aclose())


def test_loops_that_come_and_go_in_threads(server: Server) -> None:
    """Loops close with calls in flight while others, in other threads, use the same client."""
    client = aioredis.Redis(**server.unix, workers=2)
    wrong: list[Any] = []

    async def once(number: int) -> None:
        client.echo("left behind")
        words = [f"{number}:{i}" for i in range(10)]
        values = await outcomes([client.echo(word) for word in words])
        if values != [word.encode() for word in words]:
            wrong.append(values)
        for word in words:
            client.echo(word)

    def work(base: int) -> None:
        try:
            for number in range(60):
                asyncio.run(once(base + number))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert client.stats()["connects"] == 1
    run(client.aclose())
