"""Cancellation: what was queued is never sent; what was sent is read and dropped."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import outcome, outcomes, until, within
from fakeserver import FakeServer, Peer, bulk, greet
from proxy import Proxy
from servers import Server


class Gate:
    """A greeting that keeps every connection waiting until it is opened: commands queue."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, peer: Peer, args: list[bytes]) -> bool:
        while not self.open.is_set():
            if peer.server.closing.wait(0.005):
                return True
        return greet(peer, args)


def echoing(peer: Peer, args: list[bytes]) -> None:
    peer.send(bulk(args[-1]))


@pytest.mark.parametrize("protocol", [2, 3])
async def test_cancelled_while_queued_is_never_sent(protocol: int) -> None:
    gate = Gate()
    with FakeServer(echoing, greeting=gate) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, protocol=protocol, client_name="makes-it-wait"
        ) as client:
            calls = [client.execute_command("ECHO", f"word{i}") for i in range(200)]
            await until(lambda: fake.connections == 1)
            for call in calls[::2]:
                assert call.cancel() is True
            gate.open.set()
            values = await outcomes(calls)
            assert values[1::2] == [f"word{i}".encode() for i in range(1, 200, 2)]
            assert all(isinstance(value, asyncio.CancelledError) for value in values[::2])
            sent = [args[1].decode() for args in fake.commands(b"ECHO")]
            assert sent == [f"word{i}" for i in range(1, 200, 2)]
            assert client.stats()["cancelled"] == 100
            assert client.stats()["connects"] == 1


async def test_cancelled_tasks_that_wait_in_the_queue() -> None:
    gate = Gate()
    with FakeServer(echoing, greeting=gate) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, protocol=3, client_name="makes-it-wait"
        ) as client:
            tasks = [asyncio.create_task(client.echo(f"w{i}")) for i in range(100)]
            await asyncio.sleep(0)  # every task waits for its call now
            await until(lambda: fake.connections == 1)
            for task in tasks[10:]:
                task.cancel()
            await asyncio.sleep(0)
            gate.open.set()
            values = await outcomes(tasks)
            assert values[:10] == [f"w{i}".encode() for i in range(10)]
            assert all(isinstance(value, asyncio.CancelledError) for value in values[10:])
            assert len(fake.commands(b"ECHO")) == 10


async def test_cancelled_behind_a_full_socket_is_never_sent(server: Server) -> None:
    """The proxy stops reading: what does not fit into the socket stays queued."""
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(host="127.0.0.1", port=proxy.port, socket_timeout=40) as client:
            await client.ping()
            proxy.deafen(True)
            large = b"x" * 1_000_000
            filling = [client.set("filling", large) for _ in range(20)]
            await asyncio.sleep(0.1)
            queued = [client.incr("n") for _ in range(100)]
            await asyncio.sleep(0.1)
            for call in queued[:90]:
                assert call.cancel()
            proxy.deafen(False)
            assert await outcomes(filling) == [True] * 20
            assert await outcomes(queued[90:]) == list(range(1, 11))
            assert server.cmd("GET", "n") == "10"
            assert client.stats()["connects"] == 1


async def test_cancelled_after_sending_ends_at_once_and_the_connection_lives(
    own_server: Server,
) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        identity = await client.client_id()
        own_server.pause()
        calls = [client.incr("n") for _ in range(50)]
        tasks = [asyncio.create_task(client.incr("m")) for _ in range(50)]
        await asyncio.sleep(0.1)  # the worker has written them
        for call in [*calls, *tasks]:
            call.cancel()
        # The server is still stopped: nobody waited for a reply.
        values = await within(asyncio.gather(*calls, *tasks, return_exceptions=True))
        assert all(isinstance(value, asyncio.CancelledError) for value in values)
        following = client.echo("following")
        own_server.resume()
        assert await within(following) == b"following"
        assert await client.client_id() == identity
        assert client.stats()["connects"] == 1
        assert client.stats()["cancelled"] == 100
        # Sent means executed: the replies came and were dropped.
        assert client.stats()["dropped_replies"] == own_server.calls("incrby")


async def test_replies_of_cancelled_calls_reach_nobody(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        await client.ping()
        for round_number in range(20):
            own_server.pause()
            calls = [client.echo(f"{round_number}:{i}") for i in range(40)]
            await asyncio.sleep(0.005)
            cancelled = set(random.Random(round_number).sample(range(40), 13))
            for index in cancelled:
                calls[index].cancel()
            own_server.resume()
            for index, value in enumerate(await outcomes(calls)):
                if index in cancelled:
                    assert isinstance(value, asyncio.CancelledError)
                else:
                    assert value == f"{round_number}:{index}".encode()
        assert client.stats()["connects"] == 1


async def test_cancelled_error_is_never_swallowed(server: Server) -> None:
    """Once `Task.cancel()` said True, the task ends cancelled, whenever it was said."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with aioredis.Redis(**server.unix) as client:

        async def work() -> None:
            while True:
                await client.echo("x")

        for _ in range(300):
            tasks = [asyncio.create_task(work()) for _ in range(10)]
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                await client.ping()
            said = [task.cancel() for task in tasks]
            values = await outcomes(tasks)
            assert all(said)
            assert all(isinstance(value, asyncio.CancelledError) for value in values)
        assert client.stats()["connects"] == 1


async def test_cancel_message(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        await client.ping()
        own_server.pause()
        call = client.get("k")
        call.cancel("because")
        with pytest.raises(asyncio.CancelledError, match="because"):
            await call
        assert call.cancelled()
        assert call.cancel() is False
        own_server.resume()
        assert await client.ping() is True


async def test_cancel_from_a_callback_and_in_a_done_callback(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        calls: list[Any] = [client.echo(str(i)) for i in range(100)]

        def cancel_the_rest(_: Any) -> None:
            for call in calls[50:]:
                call.cancel()

        calls[0].add_done_callback(cancel_the_rest)
        values = await outcomes(calls)
        for index, value in enumerate(values):
            assert value == str(index).encode() or (
                index >= 50 and isinstance(value, asyncio.CancelledError)
            )
        assert await client.echo("after") == b"after"


async def test_a_task_that_wakes_cancels_others_of_the_same_batch(own_server: Server) -> None:
    """Replies that came together: the first task woken cancels those not yet woken."""
    async with aioredis.Redis(**own_server.unix) as client:

        async def first(others: list[asyncio.Task[Any]]) -> None:
            await client.echo("first")
            for task in others[1:]:
                task.cancel()

        async def other(number: int) -> bytes:
            return await client.echo(str(number))

        await client.ping()
        for _ in range(20):
            own_server.pause()
            tasks: list[asyncio.Task[Any]] = []
            tasks.append(asyncio.create_task(first(tasks)))
            tasks += [asyncio.create_task(other(i)) for i in range(30)]
            await asyncio.sleep(0.005)
            own_server.resume()
            values = await outcomes(tasks)
            assert values[0] is None
            for number, value in enumerate(values[1:]):
                assert value == str(number).encode() or isinstance(value, asyncio.CancelledError)
            assert await client.echo("after") == b"after"
        assert client.stats()["connects"] == 1


async def test_cancelled_while_the_server_is_away() -> None:
    async with aioredis.Redis(host="127.0.0.1", port=1, retry=None) as client:
        task = asyncio.create_task(client.get("k"))
        await asyncio.sleep(0)
        task.cancel()
        value = await within(outcome_of(task))
        assert isinstance(value, (asyncio.CancelledError, aioredis.ConnectionError))


async def outcome_of(task: asyncio.Task[Any]) -> Any:
    (value,) = await asyncio.gather(task, return_exceptions=True)
    return value


async def test_a_client_closed_under_cancelled_calls(own_server: Server) -> None:
    client = aioredis.Redis(**own_server.unix)
    await client.ping()
    own_server.pause()
    calls = [client.incr("n") for _ in range(20)]
    for call in calls:
        call.cancel()
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0.02)
    own_server.resume()
    await within(closing)
    assert all(isinstance(value, asyncio.CancelledError) for value in await outcomes(calls))
    assert await outcome(asyncio.sleep(0)) is None
