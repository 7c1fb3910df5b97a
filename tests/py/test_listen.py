"""listen(): an iterator that is no generator, and behaves as redis-py's does."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio as peer
from driving import until, within
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError
from servers import Server

BOTH = pytest.mark.parametrize("module", [aioredis, peer], ids=["offloop", "asyncio"])
pytestmark = pytest.mark.compared


@asynccontextmanager
async def _subscribed(module: Any, server: Server, **options: Any) -> AsyncIterator[Any]:
    """A client, and a PubSub that is subscribed to "c" and was told so."""
    async with module.Redis(**server.tcp, **options) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        assert (await within(pubsub.get_message(timeout=30)))["type"] == "subscribe"
        yield client, pubsub


@BOTH
async def test_it_ends_with_the_subscriptions(module: Any, server: Server) -> None:
    async with _subscribed(module, server) as (client, pubsub):
        stream = pubsub.listen()
        await client.publish("c", "x")
        assert (await within(stream.__anext__()))["data"] == b"x"
        await pubsub.unsubscribe()
        assert [message["type"] async for message in stream] == ["unsubscribe"]
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await stream.__anext__()
        await pubsub.psubscribe("p*")
        async for message in pubsub.listen():
            assert message["type"] == "psubscribe"
            break


@BOTH
async def test_one_task_at_a_time(module: Any, server: Server) -> None:
    async with _subscribed(module, server) as (client, pubsub):
        stream = pubsub.listen()
        first = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError):
            await stream.__anext__()
        with pytest.raises(RuntimeError):
            await stream.aclose()
        await client.publish("c", "x")
        assert (await within(first))["data"] == b"x"
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()


@BOTH
async def test_a_step_is_awaited_once(module: Any, server: Server) -> None:
    async with _subscribed(module, server) as (client, pubsub):
        await client.publish("c", "x")
        await client.publish("c", "y")
        stream = pubsub.listen()
        step = stream.__anext__()
        assert (await within(step))["data"] == b"x"
        with pytest.raises(RuntimeError, match="already awaited"):
            await step
        assert (await within(stream.__anext__()))["data"] == b"y"


@BOTH
async def test_an_error_ends_it(module: Any, server: Server) -> None:
    retry = Retry(NoBackoff(), 0)
    async with _subscribed(module, server, retry=retry) as (client, pubsub):
        stream = pubsub.listen()
        waiting = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0.01)
        await client.client_kill_filter(_type="pubsub")
        with pytest.raises(ConnectionError):
            await within(waiting)
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()
        await client.publish("c", "lost")
        again = asyncio.ensure_future(pubsub.listen().__anext__())
        assert (await within(again))["type"] == "subscribe"


async def test_an_error_of_a_handler_ends_it(server: Server) -> None:
    def handler(message: Any) -> None:
        raise ZeroDivisionError(message["data"])

    async with _subscribed(aioredis, server) as (client, pubsub):
        await pubsub.subscribe(d=handler)
        stream = pubsub.listen()
        assert (await within(stream.__anext__()))["type"] == "subscribe"
        await client.publish("d", "x")
        with pytest.raises(ZeroDivisionError):
            await within(stream.__anext__())
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()


@BOTH
async def test_a_handler_that_waits_is_cancelled(module: Any, server: Server) -> None:
    """It is the handler that gets it; what it makes of it counts."""
    entered = asyncio.Event()
    seen: list[Any] = []

    async def handler(message: Any) -> None:
        try:
            entered.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(message["data"])
            await asyncio.sleep(0.01)
            if message["data"] != b"kept":
                raise

    async def read(stream: Any) -> Any:
        return await stream.__anext__()

    async with _subscribed(module, server) as (client, pubsub):
        await pubsub.subscribe(d=handler)
        stream = pubsub.listen()
        assert (await within(stream.__anext__()))["type"] == "subscribe"
        reader = asyncio.create_task(read(stream))
        await client.publish("d", "kept")
        await within(entered.wait())
        reader.cancel()
        await until(lambda: seen == [b"kept"])
        await client.publish("c", "y")
        assert (await within(reader))["data"] == b"y"
        entered.clear()
        reader = asyncio.create_task(read(stream))
        await client.publish("d", "dropped")
        await within(entered.wait())
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert seen == [b"kept", b"dropped"]


async def test_cancelled_at_every_moment(server: Server) -> None:
    """All messages come, once and in order."""
    count = 400
    rng = random.Random(7)
    seen: list[int] = []

    async def read(pubsub: Any) -> None:
        async for message in pubsub.listen():
            seen.append(int(message["data"]))

    async with _subscribed(aioredis, server) as (client, pubsub):

        async def publish() -> None:
            for number in range(count):
                await client.publish("c", number)
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.random() / 1000)

        publisher = asyncio.create_task(publish())
        while len(seen) < count:
            task = asyncio.create_task(read(pubsub))
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            if rng.random() < 0.7:
                await asyncio.wait([task], timeout=rng.random() / 500)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await publisher
        assert seen == list(range(count))


@BOTH
async def test_closed_by_a_with_block(module: Any, server: Server) -> None:
    async with _subscribed(module, server) as (client, pubsub):
        await client.publish("c", "x")
        async with aclosing(pubsub.listen()) as stream:
            async for message in stream:
                assert message["data"] == b"x"
                break
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()


# ---- what somebody puts of his own into redis-py's way --------------------------------------


def _marking(handle: Any) -> Any:
    async def handle_message(*args: Any, **kwargs: Any) -> Any:
        return {**await handle(*args, **kwargs), "mine": True}

    return handle_message


@pytest.fixture
def _log() -> Iterator[list[str]]:
    """What redis-py writes of pushes from now on."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, handler = logging.getLogger("push_response"), Lines()
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


@pytest.mark.parametrize("place", ["object", "class"])
async def test_a_method_that_is_replaced_meanwhile(
    server: Server, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _subscribed(aioredis, server) as (client, pubsub):
        stream = pubsub.listen()
        for mine in (False, True, False):
            if mine and place == "object":
                monkeypatch.setattr(pubsub, "handle_message", _marking(pubsub.handle_message))
            elif mine:
                whole = type(pubsub).handle_message
                monkeypatch.setattr(type(pubsub), "handle_message", _marking(whole))
            else:
                monkeypatch.undo()
            for _ in range(3):
                await client.publish("c", "x")
                assert ("mine" in await within(stream.__anext__())) == mine


async def test_the_log_is_switched_on_meanwhile(server: Server, _log: list[str]) -> None:
    async with _subscribed(aioredis, server, protocol=3) as (client, pubsub):
        stream = pubsub.listen()
        for level, lines in ((logging.NOTSET, 0), (logging.DEBUG, 3), (logging.INFO, 0)):
            logging.getLogger("push_response").setLevel(level)
            _log.clear()
            for _ in range(3):
                await client.publish("c", "x")
                assert (await within(stream.__anext__()))["data"] == b"x"
            assert len(_log) == lines


async def test_a_connection_that_is_read_by_another_meanwhile(server: Server) -> None:
    """That is noticed, if not with the next message."""
    async with _subscribed(aioredis, server) as (client, pubsub):
        stream = pubsub.listen()
        await client.publish("c", "x")
        await within(stream.__anext__())
        read, calls = pubsub.connection.read_response, []

        async def read_response(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return await read(*args, **kwargs)

        pubsub.connection.read_response = read_response
        for number in range(200):
            await client.publish("c", number)
            assert (await within(stream.__anext__()))["data"] == b"%d" % number
        assert len(calls) > 100


# ---- nothing is kept -------------------------------------------------------------------------


async def test_nothing_is_kept(server: Server) -> None:
    """Also of one that is in a cycle with its PubSub, in the middle of a step."""
    async with aioredis.Redis(**server.tcp) as client:
        gone = []
        for _ in range(3):
            pubsub = client.pubsub()
            await pubsub.subscribe("c")
            pubsub.mine = pubsub.listen()  # type: ignore[attr-defined]
            for _ in range(100):
                await client.publish("c", "x")
                await within(pubsub.mine.__anext__())  # type: ignore[attr-defined]
            pubsub.step = pubsub.mine.__anext__()  # type: ignore[attr-defined]
            await pubsub.aclose()
            gone.append(weakref.ref(pubsub))
            del pubsub
        gc.collect()
        assert [ref() for ref in gone] == [None] * 3
