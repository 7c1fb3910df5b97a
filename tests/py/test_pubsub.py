"""Pub/sub over held leases: every message once, in order, whatever happens to who waits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio as peer
import redis.asyncio.connection as theirs
from driving import end, outcome, until, within
from proxy import Proxy
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import ConnectionError, PubSubError
from servers import Server

NO_RETRY = Retry(NoBackoff(), 0)


@pytest.fixture(autouse=True)
def _no_sockets(request: pytest.FixtureRequest) -> Iterator[None]:
    """redis-py's own connections must not be made, but by the tests that compare."""
    if "compared" in request.keywords:
        yield
        return

    async def refuse(self: Any) -> None:
        raise AssertionError(f"{self!r} connects by itself")

    with pytest.MonkeyPatch.context() as patch:
        for cls in (theirs.Connection, theirs.UnixDomainSocketConnection):
            patch.setattr(cls, "_connect", refuse)
        yield


async def _next(pubsub: Any, secs: float = 30.0) -> Any:
    """The next message; None after so many seconds."""
    return await within(pubsub.get_message(timeout=secs), secs + 10)


# ---- what a program sees ------------------------------------------------------------------


async def _story(module: Any, server: Server, **options: Any) -> list[Any]:
    """What a program of each kind of message gets to see."""
    seen: list[Any] = []

    async def handler(message: dict[str, Any]) -> None:
        seen.append(("async", message))

    def plain(message: dict[str, Any]) -> None:
        seen.append(("plain", message))

    async with module.Redis(**server.tcp, **options) as client, client.pubsub() as pubsub:
        seen.append(pubsub.subscribed)
        await pubsub.subscribe("a", b=handler)
        await pubsub.psubscribe("p*", **{"q*": plain})
        await pubsub.ssubscribe("s")
        for _ in range(5):
            seen.append(await _next(pubsub))
        for channel in ("a", "b", "p1", "q1"):
            seen.append(await client.publish(channel, f"to {channel}"))
            seen.append(await pubsub.get_message(timeout=30))
        await client.spublish("s", "to s")
        seen.append(await _next(pubsub))
        await pubsub.ping()
        seen.append(await _next(pubsub))
        await pubsub.ping("hello")
        seen.append(await _next(pubsub))
        await pubsub.unsubscribe("a")
        seen.append(await _next(pubsub))
        await pubsub.punsubscribe()
        seen.append(await _next(pubsub))
        seen.append(await _next(pubsub))
        await pubsub.sunsubscribe("s")
        seen.append(await _next(pubsub))
        seen.append((pubsub.channels.keys(), pubsub.patterns, pubsub.shard_channels))
        seen.append(await pubsub.get_message(timeout=0.01))
        seen.append(await pubsub.get_message())
        await pubsub.unsubscribe()
        await pubsub.subscribe("c")
        seen.append(await pubsub.get_message(ignore_subscribe_messages=True, timeout=30))
        seen.append(await pubsub.get_message(ignore_subscribe_messages=True, timeout=30))
        await client.publish("c", b"\xff\x00" if not options.get("decode_responses") else "x")
        async for message in pubsub.listen():
            seen.append(message)
            break
        seen.append(pubsub.subscribed)
    seen.append(pubsub.subscribed)
    return seen


@pytest.mark.compared
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_same_as_with_redis_py(server: Server, protocol: int, decode: bool) -> None:
    options = {"protocol": protocol, "decode_responses": decode}
    assert await _story(aioredis, server, **options) == await _story(peer, server, **options)


async def test_a_push_handler(server: Server) -> None:
    pushed: list[Any] = []

    async def on_push(push: list[Any]) -> list[Any]:
        pushed.append(push)
        return push

    async with aioredis.Redis(**server.tcp, protocol=3) as client:
        pubsub = client.pubsub(push_handler_func=on_push)
        await pubsub.subscribe("c")
        assert (await _next(pubsub))["type"] == "subscribe"
        await client.publish("c", "x")
        assert (await _next(pubsub))["data"] == b"x"
        assert pushed == [[b"subscribe", b"c", 1], [b"message", b"c", b"x"]]
        await pubsub.aclose()


async def test_run(server: Server) -> None:
    seen: list[Any] = []
    async with aioredis.Redis(**server.tcp) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("a")
        with pytest.raises(PubSubError):
            await pubsub.run()
        await pubsub.unsubscribe("a")
        await pubsub.subscribe(c=lambda message: seen.append(message["data"]))
        assert (await _next(pubsub))["type"] == "subscribe"
        assert (await _next(pubsub))["type"] == "unsubscribe"
        task = asyncio.create_task(pubsub.run(poll_timeout=0.05))
        for number in range(50):
            await client.publish("c", number)
        await until(lambda: len(seen) == 50)
        assert seen == [b"%d" % number for number in range(50)]
        await end([task])


class _Own(aioredis.client.PubSub):
    """What a subclass overrides is called."""

    async def handle_message(self, response: Any, ignore_subscribe_messages: bool = False) -> Any:
        message = await super().handle_message(response, ignore_subscribe_messages)
        return message and {**message, "mine": True}


async def test_a_subclass(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        pubsub = _Own(client.connection_pool)
        await pubsub.subscribe("c")
        assert (await _next(pubsub))["mine"] is True
        await client.publish("c", "x")
        assert (await _next(pubsub))["mine"] is True
        await client.publish("c", "x")
        async for message in pubsub.listen():
            assert message["mine"] is True
            break
        await pubsub.aclose()


async def test_keyspace_notifications(server: Server) -> None:
    server.cmd("CONFIG", "SET", "notify-keyspace-events", "KEA")
    try:
        async with aioredis.Redis(**server.tcp) as client, client.pubsub() as pubsub:
            await pubsub.psubscribe("__keyspace@0__:*")
            assert (await _next(pubsub))["type"] == "psubscribe"
            await client.set("k", 1)
            message = await _next(pubsub)
            assert (message["channel"], message["data"]) == (b"__keyspace@0__:k", b"set")
    finally:
        server.cmd("CONFIG", "SET", "notify-keyspace-events", "")


async def test_a_connection_of_its_own(server: Server) -> None:
    """One that stays: its identity can be asked for, and tracking redirected to it."""
    async with aioredis.Redis(**server.tcp, protocol=2) as client, client.pubsub() as pubsub:
        await pubsub.execute_command(b"CLIENT", b"ID")
        identity = await pubsub.parse_response()
        await pubsub.subscribe("__redis__:invalidate")
        assert (await _next(pubsub))["type"] == "subscribe"
        async with client.client() as single:
            await single.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", identity)
            await single.get("k")
            await client.set("k", 1)
            assert (await _next(pubsub))["data"] == [b"k"]
            await client.flushall()
            assert (await _next(pubsub))["data"] is None


# ---- nothing lost, nothing twice ----------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
async def test_waits_that_end_early(server: Server, protocol: int) -> None:
    """Cancelled and timed out at every moment: all messages come, once and in order."""
    count = 600
    rng = random.Random(protocol)
    async with aioredis.Redis(**server.tcp, protocol=protocol) as client:
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe("c")
        await pubsub.get_message(timeout=30)

        async def publish() -> None:
            for number in range(count):
                await client.publish("c", number)
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.random() / 1000)

        seen: list[int] = []

        async def read(timeout: float | None) -> None:
            message = await pubsub.get_message(timeout=timeout)
            if message is not None:
                seen.append(int(message["data"]))

        publisher = asyncio.create_task(publish())
        while len(seen) < count:
            task = asyncio.create_task(read(rng.choice([None, 0, 0.0005, 0.01, 30])))
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            if rng.random() < 0.7:
                await asyncio.wait([task], timeout=rng.random() / 500)
            task.cancel()
            await asyncio.wait([task])
        await publisher
        assert seen == list(range(count))
        assert client.stats()["held"] == 1
        await pubsub.aclose()


async def test_a_slow_subscriber(server: Server) -> None:
    """What nobody reads waits in the server, and all of it comes."""
    async with aioredis.Redis(**server.tcp) as client:
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe("c")
        await pubsub.get_message(timeout=30)
        async with client.pipeline(transaction=False) as pipe:
            for number in range(20_000):
                pipe.publish("c", number)
            assert set(await pipe.execute()) == {1}
        for number in range(20_000):
            message = await pubsub.get_message(timeout=10)
            assert int(message["data"]) == number
        await pubsub.aclose()


async def test_many_subscribers(server: Server) -> None:
    count, rounds = 200, 20
    async with aioredis.Redis(**server.tcp, max_connections=count) as client:
        pubsubs = [client.pubsub(ignore_subscribe_messages=True) for _ in range(count)]
        seen: list[list[int]] = [[] for _ in pubsubs]

        async def listen(number: int) -> None:
            async for message in pubsubs[number].listen():
                seen[number].append(int(message["data"]))

        for pubsub in pubsubs:
            await pubsub.subscribe("c")
        tasks = [asyncio.create_task(listen(number)) for number in range(count)]
        for number in range(rounds):
            assert await client.publish("c", number) == count
        await until(lambda: all(len(each) == rounds for each in seen))
        assert all(each == list(range(rounds)) for each in seen)
        await end(tasks)
        for pubsub in pubsubs:
            await pubsub.aclose()
        await until(lambda: client.stats()["leases"] == 0)


async def test_subscribe_and_close_while_another_waits(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        pubsub = client.pubsub()
        await pubsub.subscribe("a")
        await _next(pubsub)
        reader = asyncio.create_task(outcome(pubsub.get_message(timeout=None)))
        await asyncio.sleep(0.01)
        await pubsub.subscribe("b")
        assert (await within(reader))["channel"] == b"b"
        reader = asyncio.create_task(outcome(pubsub.get_message(timeout=None)))
        await asyncio.sleep(0.01)
        await pubsub.aclose()
        await end([reader])
        await client.connection_pool.disconnect()


async def test_listen_closed_in_the_middle(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        stream = pubsub.listen()
        assert (await within(stream.__anext__()))["type"] == "subscribe"
        await stream.aclose()
        await client.publish("c", "x")
        assert (await _next(pubsub))["data"] == b"x"


# ---- connections that break ---------------------------------------------------------------


async def test_subscribed_again(server: Server) -> None:
    retry = Retry(ConstantBackoff(0.01), 20)
    async with aioredis.Redis(**server.tcp, retry=retry) as client:
        pubsub = client.pubsub()
        await pubsub.subscribe("a", "b")
        await pubsub.psubscribe("p*")
        for _ in range(3):
            await _next(pubsub)
        for turn in range(5):
            reader = asyncio.create_task(pubsub.get_message(timeout=None))
            await asyncio.sleep(0.005 * (turn % 2))
            server.cmd("CLIENT", "KILL", "TYPE", "pubsub")
            kinds = [(await within(reader))["type"]]
            kinds += [(await _next(pubsub))["type"] for _ in range(2)]
            assert sorted(kinds) == ["psubscribe", "subscribe", "subscribe"]
            assert await client.publish("p1", turn) == 1
            assert (await _next(pubsub))["data"] == b"%d" % turn
        await pubsub.aclose()


async def test_a_server_that_is_gone(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix, retry=NO_RETRY) as client:
        pubsub = client.pubsub()
        await pubsub.subscribe("c")
        await _next(pubsub)
        reader = asyncio.create_task(outcome(pubsub.get_message(timeout=None)))
        await asyncio.sleep(0)
        own_server.kill()
        assert isinstance(await within(reader), ConnectionError)
        assert isinstance(await outcome(pubsub.get_message(timeout=1)), ConnectionError)
        own_server.start()
        await pubsub.connect()
        assert (await _next(pubsub))["type"] == "subscribe"
        await client.publish("c", "x")
        assert (await _next(pubsub))["data"] == b"x"
        await pubsub.aclose()


async def test_health_checks(server: Server) -> None:
    async with aioredis.Redis(**server.tcp, health_check_interval=0.02) as client:
        pubsub = client.pubsub()
        await pubsub.subscribe("c")
        assert (await _next(pubsub))["type"] == "subscribe"
        pings = server.calls("PING")
        for _ in range(10):
            assert await pubsub.get_message(timeout=0.02) is None
        assert server.calls("PING") > pings
        await client.publish("c", "x")
        for _ in range(1000):  # answers to its checks come between
            message = await pubsub.get_message(timeout=30)
            if message is not None:
                break
        assert message["data"] == b"x"
        await pubsub.aclose()


async def test_subscribed_when_it_says_so(server: Server) -> None:
    """What is published after subscribe() returned reaches the subscriber."""
    async with aioredis.Redis(**server.tcp) as client:
        await client.ping()
        for number in range(60):
            pubsub = client.pubsub()
            await pubsub.subscribe("c")
            assert await client.publish("c", number) == 1
            await pubsub.aclose()


# name: how to subscribe, to leave, and to publish there
KINDS = {
    "channel": ("subscribe", "unsubscribe", "publish"),
    "pattern": ("psubscribe", "punsubscribe", "publish"),
    "shard": ("ssubscribe", "sunsubscribe", "spublish"),
}


@pytest.mark.parametrize("broken", ["before it is sent", "before it is confirmed"])
@pytest.mark.parametrize("kind", KINDS)
async def test_unsubscribed_for_good(server: Server, proxy: Proxy, kind: str, broken: str) -> None:
    """Also when the connection breaks meanwhile: not subscribed to again with the others."""
    join, leave, publish = KINDS[kind]
    client = aioredis.Redis(host="127.0.0.1", port=proxy.port)
    pubsub = client.pubsub()

    async def until_said(what: str, channel: bytes) -> None:
        found: Any = {"type": None, "channel": None}
        while (found["type"], found["channel"]) != (what, channel):
            found = await _next(pubsub)
            assert found is not None, f"never: {what} {channel!r}"

    await getattr(pubsub, join)("a", "b")
    await until_said(join, b"b")
    if broken == "before it is sent":
        proxy.cut()
        await getattr(pubsub, leave)("a")
    else:
        proxy.hold(True)
        await getattr(pubsub, leave)("a")
        await until(lambda: server.calls(leave) > 0)
        proxy.cut()
        proxy.hold(False)
    await until_said(leave, b"a")
    for _ in range(2):
        assert server.cmd(publish, "a", "x") == 0
        proxy.cut()
        await until_said(join, b"b")
    assert server.cmd(publish, "b", "x") == 1
    assert (await _next(pubsub))["data"] == b"x"
    await pubsub.aclose()
    await client.aclose()
