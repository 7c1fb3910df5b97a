"""Time-outs: before sending they say "not executed", after it "may have run", and mean it."""

from __future__ import annotations

import asyncio
import time

import offloop.redis as aioredis
import pytest
from driving import (
    in_time,
    outcome,
    outcomes,
    patiently,
    until,
    until_good,
    was_sent,
    within,
)
from fakeserver import FakeServer, Peer, bulk, greet
from proxy import Proxy
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from servers import Server


async def test_before_sending(own_server: Server) -> None:
    """No connection comes about: nothing is executed, and the error says so."""
    own_server.pause()
    async with aioredis.Redis(
        **own_server.tcp, protocol=3, socket_timeout=0.3, socket_connect_timeout=0.3
    ) as client:
        values = await outcomes([client.incr("n") for _ in range(50)])
        assert all(isinstance(value, TimeoutError) for value in values), values
        for value in values:
            assert "not executed" in str(value)
            assert "may have run" not in str(value)
            assert f"127.0.0.1:{own_server.port}" in str(value)
        assert client.stats()["timeouts"] >= 50
        own_server.resume()
        await until_good(client)
        assert own_server.cmd("EXISTS", "n") == 0


async def test_after_sending(own_server: Server) -> None:
    async def attempt(secs: float) -> None:
        own_server.cmd("DEL", "n")
        async with aioredis.Redis(**own_server.unix, socket_timeout=secs) as client:
            await until_good(client)
            own_server.pause()
            values = await outcomes([client.incr("n") for _ in range(50)])
            own_server.resume()
            assert all(isinstance(value, TimeoutError) for value in values), values
            await until_good(client)
            sent = sum("not executed" not in str(value) for value in values)
            # And so they did.
            assert own_server.cmd("GET", "n") == (str(sent) if sent else None)
            for value in map(was_sent, values):
                assert "may have run" in str(value)
                assert own_server.path in str(value)

    await patiently(attempt, 0.3)


async def test_some_sent_and_some_not(server: Server) -> None:
    """The proxy stops reading: each call's error tells the truth about that call."""
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(
            host="127.0.0.1", port=proxy.port, socket_timeout=1.0, retry=None
        ) as client:
            await until_good(client)
            proxy.deafen(True)
            large = b"x" * 500_000
            values = await outcomes([client.set(f"k{i}", large) for i in range(60)])
            assert all(isinstance(value, TimeoutError) for value in values)
            texts = [str(value) for value in values]
            assert all(("not executed" in text) != ("may have run" in text) for text in texts)
            unsent = [i for i, text in enumerate(texts) if "not executed" in text]
            assert unsent, "everything fitted into the sockets"
            assert unsent[-1] == 59
            proxy.deafen(False)
            await asyncio.sleep(0.3)
            assert [i for i in unsent if server.cmd("EXISTS", f"k{i}")] == []
            await until_good(client)


async def test_a_late_reply_reaches_nobody(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix, socket_timeout=0.15, retry=None) as client:
        await until_good(client)
        for number in range(10):
            own_server.pause()
            # A ConnectionError when its connection is replaced for the one before it.
            value = await within(outcome(client.echo(f"late {number}")))
            assert isinstance(value, (TimeoutError, ConnectionError))
            own_server.resume()
            calls = [client.echo(f"{number}:{i}") for i in range(30)]
            for index, value in enumerate(await outcomes(calls)):
                assert value == f"{number}:{index}".encode() or isinstance(value, RedisError)
        await until_good(client)
        value = await within(outcome(client.echo("after")))
        assert value == b"after" or isinstance(value, TimeoutError)


async def test_a_stalled_loop_causes_no_false_timeout(server: Server) -> None:
    async def attempt(secs: float) -> None:
        async with aioredis.Redis(**server.unix, socket_timeout=secs, retry=None) as client:
            await until_good(client)
            before = client.stats()
            calls = [client.echo(str(i)) for i in range(20)]
            time.sleep(1.8 * secs)
            # A machine that itself stood still for so long gets more time: what a stalled
            # loop causes comes back with any.
            values = [await in_time(call) for call in calls]
            assert values == [str(i).encode() for i in range(20)]
            assert client.stats()["timeouts"] == before["timeouts"]
            assert client.stats()["connects"] == before["connects"]

    await patiently(attempt, 0.5)


async def test_a_task_that_computes_does_not_hold_up_what_it_sent(server: Server) -> None:
    """A command made by a task that a reply woke is on its way before the task yields."""
    async with aioredis.Redis(**server.unix, socket_timeout=60) as client:
        for number in range(20):
            await client.ping()
            calls = [client.incr(f"n{number}") for _ in range(1 + number % 3)]
            # This task blocks the loop and asks the server by another way meanwhile.
            give_up = time.monotonic() + 30
            while server.cmd("GET", f"n{number}") != str(len(calls)):
                assert time.monotonic() < give_up, "not sent while the task computes"
            assert await outcomes(calls) == list(range(1, len(calls) + 1))


async def test_none_waits(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix, socket_timeout=None) as client:
        await client.ping()
        own_server.pause()
        call = client.echo("x")
        await asyncio.sleep(1.0)
        assert not call.done()
        own_server.resume()
        assert await within(call) == b"x"


async def test_the_deadline_covers_the_connecting() -> None:
    """Half the time goes into the greeting; the whole does not become longer by it."""

    def greeting(peer: Peer, args: list[bytes]) -> bool:
        peer.server.closing.wait(0.25)
        return greet(peer, args)

    with FakeServer(lambda peer, args: None, greeting=greeting) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, protocol=3, socket_timeout=0.6
        ) as client:
            with pytest.raises(TimeoutError):
                await within(client.get("k"), 10)


async def test_other_calls_are_not_timed_out_with_one() -> None:
    """The slow command's time-out is its own: what was asked later still has its time."""

    async def attempt(secs: float) -> None:
        def script(peer: Peer, args: list[bytes]) -> None:
            if args[0] == b"GET" and args[1] == b"slow":
                peer.server.closing.wait(1.4 * secs)
            peer.send(bulk(args[-1]))

        with FakeServer(script) as fake:
            async with aioredis.Redis(
                host="127.0.0.1", port=fake.port, socket_timeout=secs, retry=None
            ) as client:
                await in_time(client.echo("warm"))
                slow = client.get("slow")
                await asyncio.sleep(0.8 * secs)
                later = client.get("later")
                value = was_sent(await within(outcome(slow)))
                assert isinstance(value, TimeoutError)
                assert "may have run" in str(value)
                value = was_sent(await within(outcome(later)))
                # Answered on this connection, or (were it replaced) failed as one that may
                # have run; in no case the other's reply.
                assert value == b"later" or "may have run" in str(value)
                assert await in_time(client.echo("after")) == b"after"

    await patiently(attempt, 0.5)


async def test_many_deadlines(own_server: Server) -> None:
    """Every call of many clients with different time-outs ends, each in its own time."""
    clients = [
        aioredis.Redis(**own_server.unix, socket_timeout=0.05 * (i + 1), workers=1)
        for i in range(8)
    ]
    for client in clients:
        await until_good(client)
    own_server.pause()
    calls = [client.incr("n") for client in clients for _ in range(20)]
    values = await outcomes(calls)
    assert all(isinstance(value, TimeoutError) for value in values)
    own_server.resume()
    # Those whose time was over before they were sent, on a slow machine, say so.
    sent = sum("may have run" in str(value) for value in values)
    assert sent + sum("not executed" in str(value) for value in values) == 160
    await until(lambda: own_server.cmd("GET", "n") == (str(sent) if sent else None))
    for client in clients:
        await client.aclose()


async def test_a_builtin_timeout_error_it_is_not(own_server: Server) -> None:
    """redis.exceptions.TimeoutError, as redis-py gives; a RedisError to whoever catches that."""
    async with aioredis.Redis(**own_server.unix, socket_timeout=0.1, retry=None) as client:
        await until_good(client)
        own_server.pause()
        value = await within(outcome(client.get("k")))
        assert type(value) is TimeoutError
        own_server.resume()
