"""Commands that are tried again: reads by default, writes only with the program's own Retry."""

from __future__ import annotations

import asyncio
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio
from driving import in_time, outcome, outcomes, patiently, until, was_sent, within
from fakeserver import Close, FakeServer, Peer, bulk
from offloop.redis.retries import READS
from proxy import Proxy
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, ReadOnlyError, TimeoutError
from servers import Server


def over(proxy: Proxy, **options: Any) -> aioredis.Redis:
    """A client through the proxy."""
    return aioredis.Redis(host="127.0.0.1", port=proxy.port, socket_timeout=20, **options)


async def lose(proxy: Proxy, server: Server, client: aioredis.Redis, *command: Any) -> Any:
    """Send a command, let the server run it, and lose its reply with the connection."""
    await client.ping()
    server.cmd("CONFIG", "RESETSTAT")
    proxy.hold(True)
    call = client.execute_command(*command)
    await until(lambda: server.calls(command[0]) == 1)
    proxy.cut()
    proxy.hold(False)
    return await within(outcome(call))


async def test_a_read_is_tried_again(server: Server, proxy: Proxy) -> None:
    async with over(proxy) as client:
        await client.set("k", "v")
        assert await lose(proxy, server, client, "GET", "k") == b"v"
        assert server.calls("GET") == 2


async def test_a_native_method_is_tried_again(server: Server, proxy: Proxy) -> None:
    async with over(proxy, decode_responses=True) as client:
        await client.hset("h", "a", "1")
        server.cmd("CONFIG", "RESETSTAT")
        proxy.hold(True)
        calls = [client.hgetall("h"), client.hget("h", "a"), client.hgetall("h")]
        await until(lambda: server.calls("HGETALL") == 2)
        proxy.cut()
        proxy.hold(False)
        # The response callback and the decoding are those of the call.
        assert await outcomes(calls) == [{"a": "1"}, "1", {"a": "1"}]
        assert server.calls("HGETALL") == 4


async def test_a_write_may_have_run_and_is_left(server: Server, proxy: Proxy) -> None:
    async with over(proxy) as client:
        value = await lose(proxy, server, client, "INCR", "n")
        assert isinstance(value, ConnectionError)
        assert "may have run" in str(value)
        assert server.calls("INCR") == 1
        assert await client.get("n") == b"1"


async def test_redis_asyncio_counts_twice(server: Server, proxy: Proxy) -> None:
    """What the rule is for: the same with redis-py's default."""
    client = redis.asyncio.Redis(host="127.0.0.1", port=proxy.port, socket_timeout=20)
    await client.ping()
    server.cmd("CONFIG", "RESETSTAT")
    proxy.hold(True)
    call = asyncio.create_task(client.execute_command("INCR", "n"))
    await until(lambda: server.calls("INCR") == 1)
    proxy.cut()
    proxy.hold(False)
    assert await within(call) == 2
    await client.aclose()


@pytest.mark.parametrize("how", ["retry=", "set_retry", "pool", "pool.set_retry"])
async def test_a_write_is_tried_again_if_the_program_says_so(
    server: Server, proxy: Proxy, how: str
) -> None:
    retry = Retry(NoBackoff(), 3)
    if how == "retry=":
        client = over(proxy, retry=retry)
    elif how == "pool":
        url = f"redis://127.0.0.1:{proxy.port}"
        client = aioredis.Redis.from_pool(aioredis.ConnectionPool.from_url(url, retry=retry))
    else:
        client = over(proxy)
        await client.ping()
        client.set_retry(retry) if how == "set_retry" else client.connection_pool.set_retry(retry)
    async with client:
        assert await lose(proxy, server, client, "INCR", "n") == 2
        assert server.calls("INCR") == 2


@pytest.mark.parametrize("how", ["retry=None", "none", "from_url"])
async def test_without_a_retry_nothing_is_tried_again(
    server: Server, proxy: Proxy, how: str
) -> None:
    if how == "retry=None":
        client = over(proxy, retry=None)
    elif how == "none":
        client = over(proxy, retry=Retry(NoBackoff(), 0))
    else:  # as in redis-py, where only the client's constructor has a default Retry
        client = aioredis.Redis.from_url(f"redis://127.0.0.1:{proxy.port}")
    async with client:
        assert isinstance(await lose(proxy, server, client, "GET", "k"), ConnectionError)
        assert server.calls("GET") == 1


@pytest.mark.parametrize("tries", [1, 4])
async def test_as_often_as_the_retry_says(tries: int) -> None:
    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] in (b"GET", b"SET"):
            raise Close

    with FakeServer(script) as fake:
        retry = Retry(NoBackoff(), tries)
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, retry=retry) as client:
            for name, rest in (("GET", ()), ("SET", ("v",))):
                value = await within(outcome(client.execute_command(name, "k", *rest)))
                assert isinstance(value, ConnectionError)
                assert len(fake.commands(name.encode())) == tries + 1


def busy(limit: int) -> Any:
    """A server that is loading for its first so many commands."""
    seen = [0]

    def script(peer: Peer, args: list[bytes]) -> None:
        seen[0] += 1
        if seen[0] <= limit:
            peer.send(b"-LOADING Redis is loading the dataset in memory\r\n")
        else:
            peer.send(bulk(b"v") if args[0] == b"GET" else b"+OK\r\n")

    return script


async def test_an_error_that_the_retry_names() -> None:
    """-LOADING is a ConnectionError to redis-py, and so one that is tried again."""
    with FakeServer(busy(3)) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            assert await within(client.get("k")) == b"v"
            assert len(fake.commands(b"GET")) == 4
    with FakeServer(busy(3)) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            with pytest.raises(BusyLoadingError):
                await within(client.set("k", 1))
            assert len(fake.commands(b"SET")) == 1
    with FakeServer(busy(3)) as fake:
        retry = Retry(NoBackoff(), 5)
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, retry=retry) as client:
            assert await within(client.set("k", 1)) is True
            assert len(fake.commands(b"SET")) == 4


@pytest.mark.parametrize("named", [True, False])
async def test_retry_on_error_adds_an_error(named: bool) -> None:
    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(b"-READONLY You can't write against a read only replica\r\n")

    with FakeServer(script) as fake:
        options: dict[str, Any] = {"retry_on_error": [ReadOnlyError]} if named else {}
        retry = Retry(NoBackoff(), 2)
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=retry, **options
        ) as client:
            with pytest.raises(ReadOnlyError):
                await within(client.get("k"))
            assert len(fake.commands(b"GET")) == (3 if named else 1)


async def test_a_timeout_of_a_read_is_tried_again() -> None:
    async def attempt(secs: float) -> None:
        def script(peer: Peer, args: list[bytes]) -> None:
            if len(fake.commands(b"GET")) > 1 and args[0] == b"GET":
                peer.send(b"$4\r\nlate\r\n$1\r\nv\r\n")  # the first one's reply, and its own

        with FakeServer(script) as fake:
            async with aioredis.Redis(
                host="127.0.0.1", port=fake.port, socket_timeout=secs
            ) as client:
                assert await in_time(client.get("k")) == b"v"
                value = was_sent(await within(outcome(client.execute_command("INCR", "n"))))
                assert isinstance(value, TimeoutError)
                assert "may have run" in str(value)
                assert len(fake.commands(b"INCR")) == 1

    await patiently(attempt, 0.3)


async def test_a_call_that_is_cancelled_is_not_tried_again() -> None:
    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"GET":
            raise Close
        peer.send(b"+PONG\r\n")

    with FakeServer(script) as fake:
        retry = Retry(ConstantBackoff(0.2), -1)
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, retry=retry) as client:
            call = asyncio.ensure_future(client.get("k"))
            await until(lambda: len(fake.commands(b"GET")) >= 2)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            before = len(fake.commands(b"GET"))
            await asyncio.sleep(0.5)
            assert len(fake.commands(b"GET")) == before
            assert await within(client.ping()) is True


async def test_closing_ends_what_waits_for_its_next_try() -> None:
    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"GET":
            raise Close

    with FakeServer(script) as fake:
        retry = Retry(ConstantBackoff(0.2), -1)
        client = aioredis.Redis(host="127.0.0.1", port=fake.port, retry=retry)
        calls = [client.get("k") for _ in range(10)]
        await until(lambda: len(fake.commands(b"GET")) >= 10)
        # A Retry without an end comes to one with its client.
        await client.aclose()
        await asyncio.sleep(0.5)
        before = len(fake.commands(b"GET"))
        client.connection_pool.set_retry(Retry(NoBackoff(), 0))
        for call in calls:
            call.cancel()
        await outcomes(calls)
        await asyncio.sleep(0.3)
        assert len(fake.commands(b"GET")) == before


def test_what_only_reads(server: Server) -> None:
    """Against the server's own flags: no command here is one that writes."""
    rows = server.cmd("COMMAND")
    writes = {str(row[0]).upper() for row in rows if "write" in row[2]}
    assert writes
    assert {name for name in READS if name.split()[0] in writes} == set()
