"""Subscribers whose sockets are read by their own loop: what comes, wherever they go on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import offloop.redis as aioredis
import pytest
from certificates import Certificates
from child import quiet, run_child
from driving import until, within
from secured import SecuredServer
from servers import Server

LARGE = 100_000


def _loans(client: Any) -> int:
    return int(client.stats()["loans"])


async def _next(pubsub: Any) -> Any:
    """The next message of others; None for a subscription's."""
    return await within(pubsub.get_message(ignore_subscribe_messages=True, timeout=30))


async def _get_lent(client: Any, pubsub: Any, number: int) -> int:
    """Messages, one after the other, until the loop reads them; the next number."""
    before = _loans(client)
    while _loans(client) == before:
        heard = asyncio.create_task(_next(pubsub))
        await asyncio.sleep(0)
        await client.publish("c", number)
        assert (await heard)["data"] == b"%d" % number
        number += 1
    return number


async def _exchange(client: Any) -> None:
    """Small messages and large ones, one by one and by the hundred."""
    heard: list[bytes] = []

    async def listen(pubsub: Any) -> None:
        async for message in pubsub.listen():
            heard.append(message["data"])

    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("c")
        task = asyncio.create_task(listen(pubsub))
        sent: list[bytes] = []
        rounds = 0
        # On a busy machine a worker may be first now and then.
        while _loans(client) < 3 or rounds < 100:
            rounds += 1
            assert rounds < 5000, client.stats()
            text = b"%d" % rounds
            batch = [text + b"x" * LARGE] if rounds % 20 == 0 else [text]
            if rounds % 30 == 0:
                batch = [b"%d of %d" % (i, rounds) for i in range(300)]
            for text in batch:
                sent.append(text)
                if len(batch) == 1:
                    await client.publish("c", text)
            if len(batch) > 1:
                await asyncio.gather(*(client.publish("c", text) for text in batch))
            await until(lambda: len(heard) >= len(sent))
        assert heard == sent
        assert client.stats()["inline_reads"] > 10
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("transport", ["tcp", "path"])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_small_and_large(server: Server, transport: str, protocol: int) -> None:
    options = server.tcp if transport == "tcp" else {"unix_socket_path": server.path}
    async with aioredis.Redis(**options, protocol=protocol) as client:
        await _exchange(client)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_over_tls(tmp_path: Path, version: str) -> None:
    with SecuredServer(Certificates(tmp_path), tls_protocols=version) as secured:
        async with aioredis.Redis(**secured.tls) as client:
            await _exchange(client)


async def test_who_stops_waiting_costs_nothing(server: Server) -> None:
    """Messages that nobody waits for, while the socket is the loop's."""
    async with aioredis.Redis(**server.tcp) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        assert (await within(pubsub.get_message(timeout=30)))["type"] == "subscribe"
        number = await _get_lent(client, pubsub, 0)
        for more in range(200):
            await client.publish("c", number + more)
        for more in range(200):
            assert (await _next(pubsub))["data"] == b"%d" % (number + more)
        number = await _get_lent(client, pubsub, number + 200)
        waiting = asyncio.create_task(pubsub.get_message(timeout=30))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await client.publish("c", "kept")
        assert (await _next(pubsub))["data"] == b"kept"
        assert await pubsub.get_message(timeout=0.01) is None


@pytest.mark.parametrize("place", ["this thread", "another"])
def test_in_another_loop(server: Server, place: str) -> None:
    client = aioredis.Redis(**server.tcp)
    pubsub = client.pubsub()

    async def begin() -> int:
        await pubsub.subscribe("c")
        assert (await within(pubsub.get_message(timeout=30)))["type"] == "subscribe"
        return await _get_lent(client, pubsub, 0)

    async def go_on(number: int) -> int:
        heard = asyncio.create_task(_next(pubsub))
        await asyncio.sleep(0)
        await client.publish("c", number)
        assert (await heard)["data"] == b"%d" % number
        return await _get_lent(client, pubsub, number + 1)

    async def close() -> None:
        await pubsub.aclose()
        await client.aclose()

    number = asyncio.run(begin())
    for _ in range(3):
        if place == "another":
            found: list[int] = []
            thread = threading.Thread(
                target=lambda last, out: out.append(asyncio.run(go_on(last))), args=(number, found)
            )
            thread.start()
            thread.join(120)
            assert found
            number = found[0]
        else:
            number = asyncio.run(go_on(number))
    asyncio.run(close())


def test_a_loop_that_is_stopped_meanwhile(server: Server) -> None:
    """Two loops by turns, neither of them closed: the first is not looked at any more."""
    client = aioredis.Redis(**server.tcp)
    pubsub = client.pubsub()
    loops = [asyncio.new_event_loop() for _ in range(2)]

    async def begin() -> None:
        await pubsub.subscribe("c")
        assert (await within(pubsub.get_message(timeout=30)))["type"] == "subscribe"

    loops[0].run_until_complete(begin())
    number = 0
    for turn in range(6):
        number = loops[turn % 2].run_until_complete(_get_lent(client, pubsub, number))
    loops[0].run_until_complete(pubsub.aclose())
    loops[1].run_until_complete(client.aclose())
    for loop in loops:
        loop.close()


def test_fork(server: Server) -> None:
    quiet(
        run_child(
            """
            import asyncio, os, sys, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            import offloop.redis as aioredis

            client = aioredis.Redis(unix_socket_path=sys.argv[1])
            pubsub = client.pubsub()

            async def get_lent():
                before = client.stats()["loans"]
                while client.stats()["loans"] == before:
                    heard = asyncio.ensure_future(pubsub.get_message(timeout=30))
                    await asyncio.sleep(0)
                    await client.publish("c", "x")
                    assert (await heard)["data"] in (1, b"x")

            async def in_child():
                other = client.pubsub()
                await other.subscribe("c")
                assert (await other.get_message(timeout=30))["type"] == "subscribe"
                assert await client.publish("c", "x") == 2
                assert (await other.get_message(timeout=30))["data"] == b"x"
                await other.aclose()
                await client.aclose()

            async def go_on():
                assert (await pubsub.get_message(timeout=30))["data"] == b"x"
                await client.publish("c", "x")
                assert (await pubsub.get_message(timeout=30))["data"] == b"x"
                await pubsub.aclose()
                await client.aclose()

            loop = asyncio.new_event_loop()
            loop.run_until_complete(pubsub.subscribe("c"))
            loop.run_until_complete(get_lent())
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    asyncio.run(in_child())
                    code = 0
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
            loop.run_until_complete(go_on())
            loop.close()
            """,
            server.path,
        )
    )


async def test_a_killed_connection(server: Server) -> None:
    """Its loop notices, and it is subscribed again."""
    async with aioredis.Redis(**server.tcp) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        assert (await within(pubsub.get_message(timeout=30)))["type"] == "subscribe"
        number = await _get_lent(client, pubsub, 0)
        heard = asyncio.create_task(within(pubsub.get_message(timeout=30)))
        await asyncio.sleep(0)
        assert await client.client_kill_filter(_type="pubsub") == 1
        assert (await heard)["type"] == "subscribe"
        await _get_lent(client, pubsub, number)
