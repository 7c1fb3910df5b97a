"""Large reads known as such go beside the shared connection, and nobody's reply is another's."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import offloop.redis as aioredis
import pytest
from certificates import Certificates
from child import quiet, run_child
from driving import in_time, outcomes, patiently, run, until, was_sent, within
from fakeserver import Close, FakeServer, Peer, bulk, greet
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError, TimeoutError
from secured import SecuredServer
from servers import Server
from test_client_auth import AsyncProvider, Provider
from test_compat_class import Token
from test_contract_fork import fork

LARGE = 300_000  # over the 256 KB from which on a reply is large
MIDDLE = 200_000  # neither large nor small: what is aside stays there
SMALL = 100

Read = Callable[[], Awaitable[Any]]


def content(key: str, version: int = 0, size: int = LARGE) -> bytes:
    """A value that says everywhere whose it is."""
    word = f"{key}:{version};".encode()
    return (word * (size // len(word) + 1))[:size]


def aside(client: aioredis.Redis) -> int:
    """How many commands went aside."""
    return int(client.stats()["large_reads_aside"])


def connections(client: aioredis.Redis) -> int:
    return int(client.stats()["connections"])


async def go_aside(client: aioredis.Redis, read: Read, wanted: Any) -> None:
    """Repeat a read until it goes aside; the value is right each time."""
    before = aside(client)
    give_up = time.monotonic() + 60
    while aside(client) == before:
        assert time.monotonic() < give_up, f"it does not go aside: {client.stats()}"
        assert await within(read()) == wanted
        await asyncio.sleep(0.002)


def reader(client: aioredis.Redis, key: str) -> Read:
    return lambda: client.get(key)


async def second_id(server: Server, client: aioredis.Redis) -> str:
    """The id of the connection beside the shared one."""
    shared = str(await client.client_id())
    (row,) = [row for row in server.clients() if row["id"] != shared]
    return row["id"]


# --- what goes aside -------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", ["get", "lrange", "hgetall"])
async def test_a_large_read_that_is_repeated(
    server: Server, kind: str, protocol: int, decode: bool
) -> None:
    def said(data: bytes) -> Any:
        return data.decode() if decode else data

    items = [content(f"item{i}", size=SMALL) for i in range(LARGE // SMALL)]
    async with aioredis.Redis(**server.unix, protocol=protocol, decode_responses=decode) as client:
        await client.set("small", "s")
        read: Read
        if kind == "get":
            await client.set("large", content("large"))
            read, wanted = lambda: client.get("large"), said(content("large"))
        elif kind == "lrange":
            await client.rpush("large", *items)
            read, wanted = lambda: client.lrange("large", 0, -1), [said(item) for item in items]
        else:
            names = {f"field{i}": item for i, item in enumerate(items)}
            await client.hset("large", mapping=dict(names))  # type: ignore[arg-type]
            read = lambda: client.hgetall("large")  # noqa: E731
            wanted = {said(name.encode()): said(item) for name, item in names.items()}
        assert await read() == wanted
        assert (aside(client), connections(client)) == (0, 1), "the first one could not be known"
        await go_aside(client, read, wanted)
        assert connections(client) == client.stats()["connects"] == 2
        before = aside(client)
        for i in range(20):
            assert await within(read()) == wanted
            assert await client.get("small") == said(b"s")
            assert aside(client) == before + i + 1
        large: list[Any] = [read() for _ in range(10)]
        small: list[Any] = [client.get("small") for _ in range(100)]
        assert await outcomes(large) == [wanted] * 10
        assert await outcomes(small) == [said(b"s")] * 100
        assert aside(client) == before + 30
        stats = client.stats()
        assert (stats["queue_depth"], stats["losses"], stats["connects"]) == (0, 0, 2)


async def test_what_never_goes_aside(server: Server) -> None:
    """One that is not large, one that is not repeated, one too long to be remembered."""
    long = "k" * 2000
    async with aioredis.Redis(**server.unix) as client:
        await client.set("middle", content("middle", size=MIDDLE))
        await client.set(long, content("long"))
        for i in range(10):
            await client.set(f"large{i}", content(f"large{i}"))
        for _ in range(10):
            assert await client.get("middle") == content("middle", size=MIDDLE)
            assert await client.get(long) == content("long")
        for i in range(10):
            assert await client.get(f"large{i}") == content(f"large{i}")
        assert (aside(client), client.stats()["connects"]) == (0, 1)
        await go_aside(client, lambda: client.get("large0"), content("large0"))


async def test_writes_pipelines_and_transactions_never_go_aside(server: Server) -> None:
    value = content("large")
    async with aioredis.Redis(**server.unix) as client:
        await client.set("large", value)
        await go_aside(client, lambda: client.get("large"), value)
        before = aside(client)
        for _ in range(5):
            assert await client.getset("large", value) == value
            assert await client.set("large", value, get=True) == value
            assert await client.getex("large", persist=True) == value
            assert await client.getdel("large") == value
            await client.set("large", value)
            assert await client.eval("return redis.call('get', KEYS[1])", 1, "large") == value
            for transaction in (False, True):
                async with client.pipeline(transaction=transaction) as pipe:
                    pipe.get("large")
                    pipe.get("large")
                    assert await pipe.execute() == [value, value]
                async with client.pipeline(transaction=transaction) as pipe:
                    pipe.get("large")
                    assert await pipe.execute() == [value]
            async with client.pipeline() as pipe:
                await pipe.watch("large")
                assert await pipe.get("large") == value
                pipe.multi()
                pipe.get("large")
                assert await pipe.execute() == [value]
        assert aside(client) == before
        assert await client.get("large") == value
        assert aside(client) == before + 1


async def test_what_has_become_small_goes_back(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", content("k"))
        await go_aside(client, lambda: client.get("k"), content("k"))
        for version in range(1, 6):
            small = content("k", version, SMALL)
            before = aside(client)
            await client.set("k", small)
            assert await client.get("k") == small
            assert aside(client) == before + 1
            for _ in range(5):
                assert await client.get("k") == small
            assert aside(client) == before + 1
            large = content("k", version)
            await client.set("k", large)
            assert await client.get("k") == large
            assert aside(client) == before + 1
            assert await client.get("k") == large
            assert aside(client) == before + 2
        before = aside(client)
        middle = content("k", 9, MIDDLE)
        await client.set("k", middle)
        for i in range(5):
            assert await client.get("k") == middle
            assert aside(client) == before + i + 1
        await client.delete("k")
        assert await client.get("k") is None
        await client.rpush("k", "not a string")
        for _ in range(3):
            with pytest.raises(aioredis.ResponseError, match="WRONGTYPE"):
                await client.get("k")
        assert aside(client) == before + 6
        assert client.stats()["connects"] == 2


async def test_what_was_written_before_is_read(server: Server) -> None:
    """Once a write is awaited, a read on the other connection sees it."""
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", content("k"))
        await go_aside(client, lambda: client.get("k"), content("k"))
        before = aside(client)
        for version in range(100):
            await client.set("k", content("k", version))
            assert await client.get("k") == content("k", version)
        assert aside(client) == before + 100


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_second_connection_is_as_the_shared_one(server: Server, protocol: int) -> None:
    async with aioredis.Redis(
        **server.unix, protocol=protocol, db=3, client_name="twins", health_check_interval=1
    ) as client:
        await client.set("k", content("k"))
        await go_aside(client, lambda: client.get("k"), content("k"))
        rows = server.clients()
        same = ("db", "name", "user", "resp", "lib-name", "lib-ver")
        assert len(rows) == 2
        assert [rows[0].get(field) for field in same] == [rows[1].get(field) for field in same]
        assert (rows[0]["db"], rows[0]["name"]) == ("3", "twins")


# --- who waits for whom ----------------------------------------------------------------------


class Withheld:
    """A script: the reply to a GET of `large` on the second connection waits until told.

    `begun`: so many bytes of it do not.
    """

    def __init__(self, begun: int = 0) -> None:
        self.begun = begun
        self.asked = threading.Event()
        self.told = threading.Event()

    def __call__(self, peer: Peer, args: list[bytes]) -> None:
        if args[-1] != b"large":
            peer.send(bulk(args[-1]))
            return
        data = bulk(content("large"))
        if peer.number == 2:
            peer.send(data[: self.begun])
            self.asked.set()
            while not self.told.is_set():
                if peer.server.closing.wait(0.002):
                    raise Close
            data = data[self.begun :]
        peer.send(data)


async def _open_second(client: aioredis.Redis) -> None:
    """Two large reads, of which the second one is not small, and has it opened."""
    assert await in_time(client.get("large")) == content("large")
    assert await in_time(client.get("large")) == content("large")
    await until(lambda: connections(client) == 2)
    assert aside(client) == 0


@pytest.mark.parametrize("begun", [0, 5, LARGE - 100])
async def test_a_small_one_does_not_wait_for_a_large_one(begun: int) -> None:
    script = Withheld(begun)
    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            await _open_second(client)
            large: list[Any] = [client.get("large") for _ in range(3)]
            await until(script.asked.is_set)
            for i in range(50):
                assert await within(client.get(f"small{i}")) == b"small%d" % i
            assert client.stats()["queue_depth"] == 3
            assert not any(call.done() for call in large)
            script.told.set()
            assert await outcomes(large) == [content("large")] * 3
            assert (aside(client), client.stats()["queue_depth"]) == (3, 0)


async def test_a_large_one_whose_time_is_over() -> None:
    """It may have run, and says so; the others are not concerned."""

    async def attempt(secs: float) -> None:
        script = Withheld()
        with FakeServer(script) as fake:
            async with aioredis.Redis(
                host="127.0.0.1", port=fake.port, socket_timeout=secs, retry=None
            ) as client:
                await _open_second(client)
                values = await outcomes([client.get("large") for _ in range(3)])
                assert aside(client) == 3
                for value in map(was_sent, values):
                    assert type(value) is TimeoutError, value
                    assert "may have run" in str(value)
                    assert f"127.0.0.1:{fake.port}" in str(value)
                assert client.stats()["timeouts"] == 3
                # Beside a connection that owes three replies, and after it was given up.
                for i in range(10):
                    assert await in_time(client.get(f"small{i}")) == b"small%d" % i
                await until(lambda: connections(client) == 1)
                assert await in_time(client.get("small")) == b"small"
                script.told.set()
                assert client.stats()["queue_depth"] == 0

    await patiently(attempt, 0.2)


async def test_cancelled_at_any_moment(server: Server) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    keys = [f"key{i}" for i in range(6)]
    answered = 0

    async def work(client: aioredis.Redis) -> None:
        nonlocal answered
        for _ in range(60):
            size = LARGE if chance.random() < 0.7 else SMALL
            key = f"{chance.choice(keys)}:{size}"
            call: Any = client.get(key)
            way = chance.randrange(4)
            if way == 0:
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                call.cancel()
            elif way == 1:
                asyncio.get_running_loop().call_later(chance.random() * 0.005, call.cancel)
            value = (await outcomes([call]))[0]
            if not isinstance(value, asyncio.CancelledError):
                assert value == content(key, size=size), f"{key}: {value!r:.80}"
                answered += 1

    async with aioredis.Redis(**server.unix) as client:
        for key in keys:
            for size in (LARGE, SMALL):
                await client.set(f"{key}:{size}", content(f"{key}:{size}", size=size))
        await go_aside(client, lambda: client.get(f"key0:{LARGE}"), content(f"key0:{LARGE}"))
        await within(asyncio.gather(*(work(client) for _ in range(10))))
        await until(lambda: client.stats()["queue_depth"] == 0)
        stats = client.stats()
        assert (stats["losses"], stats["connects"], stats["connections"]) == (0, 2, 2)
        assert stats["large_reads_aside"] > 50
        assert answered > 200
        for key in keys:
            assert await client.get(f"{key}:{LARGE}") == content(f"{key}:{LARGE}")


def test_several_loops(server: Server) -> None:
    """A client that threads share: each loop gets its own replies."""
    client = aioredis.Redis(**server.unix, workers=2)
    failures: list[BaseException] = []

    async def main(number: int) -> None:
        key = f"key{number}"
        await client.set(key, content(key))
        await go_aside(client, lambda: client.get(key), content(key))
        for _ in range(20):
            assert await outcomes([client.get(key) for _ in range(3)]) == [content(key)] * 3
            assert await client.echo(key) == key.encode()
        # Left behind with the loop.
        left: list[Any] = [client.get(key) for _ in range(3)]
        for call in left:
            call.add_done_callback(lambda done: done.cancelled() or done.exception())

    def drive(number: int) -> None:
        try:
            for _ in range(2):
                run(main(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert aside(client) > 100
    assert client.stats()["connects"] == 2

    async def close() -> None:
        await until(lambda: client.stats()["queue_depth"] == 0)
        await client.aclose()

    run(close())


# --- when there is no second connection, or no longer ----------------------------------------


class Unwilling:
    """A greeting that has one client alone; the others it refuses, drops or does not hear."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, peer: Peer, args: list[bytes]) -> bool:
        if peer.number == 1:
            return greet(peer, args)
        if self.how == "silent":
            return True
        if self.how == "refused":
            peer.send(b"-ERR max number of clients reached\r\n")
        if self.how == "no auth":
            peer.send(b"-NOAUTH Authentication required.\r\n")
            return True
        raise Close


async def _read_beside(client: aioredis.Redis, script_sends: Callable[[str], bytes]) -> None:
    """200 large reads and as many small ones, a part of them at once: none fails."""
    for i in range(50):
        calls = [client.get("large") for _ in range(4)]
        calls += [client.get(f"small{k}") for k in range(4)]
        values = await outcomes(calls)
        assert values == [script_sends("large")] * 4 + [
            script_sends(f"small{k}") for k in range(4)
        ], (i, [f"{value!r:.80}" for value in values])


@pytest.mark.parametrize("retry", ["default", "none"])
@pytest.mark.parametrize("how", ["refused", "closed", "silent", "no auth"])
async def test_a_server_that_takes_no_second_one(how: str, retry: str) -> None:
    def value(key: str) -> bytes:
        return content("large") if key == "large" else key.encode()

    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(bulk(value(args[-1].decode())))

    options: dict[str, Any] = {"retry": None} if retry == "none" else {}
    with FakeServer(script, greeting=Unwilling(how)) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, client_name="greets", **options
        ) as client:
            await _read_beside(client, value)
            await until(lambda: fake.connections > 1)
            await _read_beside(client, value)
            assert (aside(client), connections(client)) == (0, 1)
            stats = client.stats()
            assert (stats["losses"], stats["errors"], stats["queue_depth"]) == (0, 0, 0)
            await within(client.aclose(), 5)


async def test_a_real_server_that_is_full(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix, retry=None) as client:

        def value(key: str) -> bytes:
            return content(key, size=LARGE if key == "large" else SMALL)

        for key in ("large", *(f"small{k}" for k in range(4))):
            await client.set(key, value(key))
        await client.config_set("maxclients", 1)
        await _read_beside(client, value)
        await until(lambda: client.stats()["connect_failures"] > 0)
        await _read_beside(client, value)
        assert (aside(client), connections(client)) == (0, 1)
        await client.config_set("maxclients", 100)
        await go_aside(client, lambda: client.get("large"), content("large"))


async def test_lost_with_reads_under_way() -> None:
    """redis-py's default Retry: they are sent again, over the shared one, and none fails."""
    lost = threading.Event()

    def script(peer: Peer, args: list[bytes]) -> None:
        if peer.number == 2:
            while not lost.is_set():
                if peer.server.closing.wait(0.002):
                    break
            raise Close
        peer.send(bulk(content("large") if args[-1] == b"large" else args[-1]))

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            await _open_second(client)
            calls = [client.get("large") for _ in range(20)]
            await until(lambda: len(fake.peers[1].commands) > 0)
            assert (aside(client), client.stats()["queue_depth"]) == (20, 20)
            lost.set()
            assert await within(client.get("small")) == b"small"
            assert await outcomes(calls) == [content("large")] * 20
            assert client.stats()["losses"] == 1
            await go_aside(client, lambda: client.get("large"), content("large"))
            assert fake.connections == 3


async def test_lost_without_a_retry() -> None:
    """Whoever was sent may have run; nobody else is concerned."""

    def script(peer: Peer, args: list[bytes]) -> None:
        if peer.number == 2:
            peer.send(b"$%d\r\nx" % LARGE)
            raise Close
        peer.send(bulk(content("large") if args[-1] == b"large" else args[-1]))

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, retry=None) as client:
            await _open_second(client)
            large = client.get("large")
            small = [client.get(f"small{i}") for i in range(20)]
            with pytest.raises(ConnectionError, match="may have run"):
                await within(large)
            assert await outcomes(small) == [b"small%d" % i for i in range(20)]
            assert await within(client.get("large")) == content("large")


async def test_what_was_not_sent_joins_the_others() -> None:
    """Lost, and not to be made anew: what is left over does not fail, and runs once."""
    name = "large".ljust(900, "x")  # so that many do not fit into the sockets
    count = 12_000
    blocked, told = threading.Event(), threading.Event()

    def greeting(peer: Peer, args: list[bytes]) -> bool:
        if peer.number > 2:
            raise Close
        return greet(peer, args)

    def script(peer: Peer, args: list[bytes]) -> None:
        if peer.number == 2:
            blocked.set()
            while not told.is_set():
                if peer.server.closing.wait(0.002):
                    break
            raise Close
        peer.send(bulk(b"now small" if blocked.is_set() else content("large")))

    with FakeServer(script, greeting=greeting) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, client_name="greets", retry=None
        ) as client:
            for _ in range(2):
                assert await client.get(name) == content("large")
            await until(lambda: connections(client) == 2)
            calls = [client.get(name) for _ in range(count)]
            await until(blocked.is_set)
            told.set()
            values = await outcomes(calls)
            lost = [value for value in values if isinstance(value, ConnectionError)]
            assert all("may have run" in str(error) for error in lost)
            assert 0 < len(lost) < count, "everything fitted into the sockets"
            # In the order of the calls: what was sent, then what was not.
            assert values[len(lost) :] == [b"now small"] * (count - len(lost))
            assert aside(client) == count
            stats = client.stats()
            assert stats["retained_unsent"] == count - len(lost)
            assert (stats["queue_depth"], stats["losses"]) == (0, 1)
            assert len([words for words in fake.peers[0].commands if words[0] == b"GET"]) == (
                2 + count - len(lost)
            )


async def test_killed_again_and_again(server: Server) -> None:
    over = False

    async with aioredis.Redis(**server.unix, retry=Retry(ConstantBackoff(0.001), 9)) as client:

        async def work(key: str) -> int:
            count = 0
            while not over:
                assert await client.get(key) == content(key)
                assert await client.echo(f"{key}:{count}") == f"{key}:{count}".encode()
                count += 1
            return count

        for i in range(8):
            await client.set(f"key{i}", content(f"key{i}"))
        tasks = [asyncio.create_task(work(f"key{i}")) for i in range(8)]
        await until(lambda: aside(client) > 20)
        while client.stats()["losses"] < 5:
            before = aside(client) + client.stats()["connects"]
            # Not by this thread: then nothing would be under way.
            await asyncio.to_thread(server.kill_clients)
            await until(lambda b=before: aside(client) + client.stats()["connects"] > b)  # type: ignore[misc]
        before = aside(client)
        await until(lambda: aside(client) > before + 20)
        over = True
        assert min(await within(asyncio.gather(*tasks))) > 0
        assert client.stats()["queue_depth"] == 0


# --- closing, and who is logged in -----------------------------------------------------------


async def test_disconnect(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", content("k"))
        await go_aside(client, lambda: client.get("k"), content("k"))
        assert len(server.clients()) == 2
        await client.connection_pool.disconnect()
        await until(lambda: connections(client) == 0)
        await until(lambda: not server.clients())
        assert await client.get("k") == content("k")
        await go_aside(client, lambda: client.get("k"), content("k"))
        assert len(server.clients()) == 2


async def test_disconnect_with_a_read_under_way() -> None:
    """It is finished first; what is read meanwhile goes over a new shared one."""
    script = Withheld(LARGE // 2)
    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            await _open_second(client)
            large: Any = client.get("large")
            await until(script.asked.is_set)
            await client.connection_pool.disconnect()
            await until(lambda: connections(client) == 1)
            assert await within(client.get("large")) == content("large")
            assert await within(client.get("small")) == b"small"
            assert (aside(client), fake.connections) == (1, 3)
            assert not large.done()
            script.told.set()
            assert await within(large) == content("large")
            await until(lambda: connections(client) == 1)
            await until(lambda: not fake.threads[1].is_alive())
            assert client.stats()["losses"] == 0


async def test_disconnect_while_it_is_opened() -> None:
    """Nobody waits for it: it does not come into being afterwards."""
    opened, told = threading.Event(), threading.Event()

    def greeting(peer: Peer, args: list[bytes]) -> bool:
        if peer.number == 2:
            opened.set()
            while not told.is_set():
                if peer.server.closing.wait(0.002):
                    raise Close
        return greet(peer, args)

    with FakeServer(Withheld(), greeting=greeting) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, client_name="greets") as client:
            for _ in range(2):
                assert await client.get("large") == content("large")
            await until(opened.is_set)
            await client.connection_pool.disconnect()
            await until(lambda: connections(client) == 0)
            told.set()
            await until(lambda: not fake.threads[1].is_alive(), 5)
            assert (connections(client), client.stats()["losses"]) == (0, 0)


async def test_it_ends_with_the_shared_one(server: Server) -> None:
    """The next server of that name may be another, and both are to be the same one's."""
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", content("k"))
        await go_aside(client, lambda: client.get("k"), content("k"))
        server.cmd("CLIENT", "KILL", "ID", str(await client.client_id()))
        await until(lambda: connections(client) == 0)
        await go_aside(client, lambda: client.get("k"), content("k"))
        assert (connections(client), client.stats()["connects"]) == (2, 4)


async def test_aclose(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    await client.set("k", content("k"))
    await go_aside(client, lambda: client.get("k"), content("k"))
    calls = [client.get("k") for _ in range(10)]
    await client.aclose()
    assert await outcomes(calls) == [content("k")] * 10
    await until(lambda: not server.clients())
    assert connections(client) == 0
    # As with redis-py, it may be used again.
    await go_aside(client, lambda: client.get("k"), content("k"))
    assert connections(client) == 2
    await client.aclose()
    await until(lambda: not server.clients())


async def test_aclose_while_it_is_opened() -> None:
    """A connection that never becomes ready, and that nobody waits for, holds up nothing."""
    opened = threading.Event()

    def greeting(peer: Peer, args: list[bytes]) -> bool:
        if peer.number == 1:
            return greet(peer, args)
        opened.set()
        return True

    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(bulk(content("k")))

    with FakeServer(script, greeting=greeting) as fake:
        client = aioredis.Redis(host="127.0.0.1", port=fake.port, client_name="greets")
        for _ in range(3):
            assert await client.get("k") == content("k")
        await until(opened.is_set)
        await within(client.aclose(), 5)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_auth_is_for_both(server: Server, protocol: int) -> None:
    server.cmd("ACL", "SETUSER", "alice", "on", ">secret", "~*", "&*", "+@all")
    try:
        async with aioredis.Redis(**server.tcp, protocol=protocol) as client:
            await client.set("k", content("k"))
            await go_aside(client, lambda: client.get("k"), content("k"))
            assert [row["user"] for row in server.clients()] == ["default", "default"]
            identity = await second_id(server, client)
            assert await client.auth("secret", "alice") is True
            await go_aside(client, lambda: client.get("k"), content("k"))
            rows = {row["id"]: row["user"] for row in server.clients()}
            assert set(rows.values()) == {"alice"} and len(rows) == 2
            assert identity not in rows
    finally:
        server.cmd("ACL", "DELUSER", "alice")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_auth_while_it_is_opened(protocol: int) -> None:
    """What was greeted as somebody else is not used once another has logged in."""
    greeted, told = threading.Event(), threading.Event()
    wrong: list[int] = []

    def greeting(peer: Peer, args: list[bytes]) -> bool:
        if peer.number == 2 and not told.is_set():
            greeted.set()
            while not told.is_set():
                if peer.server.closing.wait(0.002):
                    raise Close
        return greet(peer, args)

    def script(peer: Peer, args: list[bytes]) -> None:
        said = [word for command in peer.commands for word in command]
        if told.is_set() and b"alice" not in said:
            wrong.append(peer.number)
        peer.send(bulk(content("k")))

    with FakeServer(script, greeting=greeting) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, protocol=protocol, client_name="greets"
        ) as client:
            for _ in range(2):
                assert await client.get("k") == content("k")
            await until(greeted.is_set)
            assert await client.auth("secret", "alice") is True
            told.set()
            await go_aside(client, lambda: client.get("k"), content("k"))
            assert not wrong, f"a connection that is not alice's was used: {wrong}"


@pytest.mark.parametrize("kind", [Provider, AsyncProvider])
async def test_with_a_credential_provider(server: Server, kind: type[Provider]) -> None:
    """It is asked for each of the two."""
    provider = kind("default", "any")
    async with aioredis.Redis(**server.tcp, credential_provider=provider) as client:
        await client.set("k", content("k"))
        await go_aside(client, lambda: client.get("k"), content("k"))
        assert (connections(client), client.stats()["connects"], provider.asked) == (2, 2, 2)


class Unsteady(AsyncProvider):
    """Gives what is right once, and then fails in one way or another until it is well."""

    def __init__(self, how: str, *credentials: str) -> None:
        super().__init__(*credentials)
        self.how = how

    async def get_credentials_async(self) -> Any:
        credentials = await super().get_credentials_async()
        if self.asked == 1 or self.how == "well":
            return credentials
        if self.how == "raises":
            raise LookupError("vault is sealed")
        if self.how == "never":
            await asyncio.Event().wait()
        return ("wrong",)


@pytest.mark.parametrize("how", ["raises", "wrong", "never"])
def test_a_credential_provider_that_fails_the_second_time(own_server: Server, how: str) -> None:
    """No command does; and what is better in the next loop is taken up."""
    own_server.cmd("CONFIG", "SET", "requirepass", "secret")
    own_server.password = "secret"
    provider = Unsteady(how, "default", "secret")
    client = aioredis.Redis(
        host="127.0.0.1", port=own_server.port, credential_provider=provider, retry=None
    )

    async def fails() -> None:
        await client.set("k", content("k"))
        for _ in range(2):
            for _ in range(20):
                calls = [client.get("k") for _ in range(3)]
                assert await outcomes(calls) == [content("k")] * 3
            await until(lambda: provider.asked > 1)
        assert (aside(client), connections(client)) == (0, 1)

    async def goes_on() -> None:
        provider.how = "well"
        await go_aside(client, lambda: client.get("k"), content("k"))
        await client.aclose()

    run(fails())
    run(goes_on())


async def test_a_new_token_is_for_both(server: Server) -> None:
    server.cmd("ACL", "SETUSER", "alice", "on", ">secret", "~*", "&*", "+@all")
    try:
        provider = Provider("default", "any")
        async with aioredis.Redis(**server.tcp, credential_provider=provider) as client:
            await client.set("k", content("k"))
            await go_aside(client, lambda: client.get("k"), content("k"))
            provider.credentials = ("alice", "secret")
            await client.connection_pool.re_auth_callback(Token("alice", "secret"))
            await go_aside(client, lambda: client.get("k"), content("k"))
            assert [row["user"] for row in server.clients()] == ["alice", "alice"]
    finally:
        server.cmd("ACL", "DELUSER", "alice")


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_over_tls(tmp_path: Path, version: str) -> None:
    secured = SecuredServer(Certificates(tmp_path), tls_protocols=version)
    with secured:
        async with aioredis.Redis(**secured.tls) as client:
            for i in range(3):
                await client.set(f"key{i}", content(f"key{i}"))
                await go_aside(client, reader(client, f"key{i}"), content(f"key{i}"))
            for _ in range(10):
                calls = [client.get(f"key{i % 3}") for i in range(9)]
                calls += [client.echo(f"{i}") for i in range(20)]
                wanted = [content(f"key{i % 3}") for i in range(9)]
                assert await outcomes(calls) == wanted + [b"%d" % i for i in range(20)]
            stats = client.stats()
            assert (stats["connections"], stats["connects"], stats["tls_handshakes"]) == (2, 2, 2)
            assert stats["losses"] == 0


# --- fork and exit ---------------------------------------------------------------------------

# In a program: both connections in use, and `storm()` for more.
_ASIDE = """
import asyncio, os, sys
async def go_aside():
    before = client.stats()["large_reads_aside"]
    while client.stats()["large_reads_aside"] == before:
        assert await client.get("large") == LARGE
        await asyncio.sleep(0.002)

async def begin():
    global LARGE
    LARGE = b"".join(b"%d;" % i for i in range(60_000))
    await client.set("large", LARGE)
    await go_aside()

async def storm(number):
    while True:
        assert await client.get("large") == LARGE
        assert await client.echo(str(number)) == str(number).encode()
"""


def test_fork(server: Server) -> None:
    """The child reads by connections of its own; the parent's two are as they were."""
    fork(
        server,
        _ASIDE
        + """
import redis
def sockets():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass  # the descriptor of the listing itself
    return {name for name in found if name.startswith("socket:")}

client = make()
others = sockets()
asyncio.run(begin())
theirs = sockets() - others
assert len(theirs) == 2, theirs
admin = redis.Redis(unix_socket_path=path, client_name="observer")
def there():
    return {row["id"] for row in admin.client_list() if row["name"] != "observer"}
before = there()
assert len(before) == 2, before

def child():
    async def main():
        assert await client.get("large") == LARGE
        await go_aside()
        admin = redis.Redis(unix_socket_path=path, client_name="observer")
        mine = {row["id"] for row in admin.client_list() if row["name"] != "observer"} - before
        assert len(mine) == 2, mine
        assert not theirs & sockets(), "the parent's connections are open in the child"
        admin.close()
        await client.aclose()
    asyncio.run(main())

wait(in_child(child))
wait(in_child(lambda: asyncio.run(go_aside())))
wait(in_child(lambda: None))
assert there() == before, "the parent's connections were touched"
asyncio.run(go_aside())

async def under_way():
    calls = [client.get("large") for _ in range(20)]
    await asyncio.sleep(0)
    pid = in_child(lambda: in_thread(child))
    await asyncio.get_running_loop().run_in_executor(None, wait, pid)
    assert await asyncio.gather(*calls) == [LARGE] * 20
asyncio.run(under_way())
assert there() == before
stats = client.stats()
assert (stats["connects"], stats["losses"]) == (2, 0), stats
admin.close()
asyncio.run(client.aclose())
""",
    )


@pytest.mark.parametrize(
    "way", ["sys.exit(5)", "os._exit(5)", "return 5", "del", "aclose", "disconnect", "left"]
)
def test_exit_with_reads_under_way(server: Server, way: str) -> None:
    line = {
        "del": "globals().pop('client'); return 5",
        "aclose": "await client.aclose(); return 5",
        "disconnect": "await client.connection_pool.disconnect(); return 5",
        "left": "sys.calls = [client.get('large') for _ in range(50)]; return 5",
    }.get(way, way)
    done = run_child(
        "import offloop.redis as aioredis\n"
        + _ASIDE
        + f"""
client = aioredis.Redis(unix_socket_path=sys.argv[1], workers=2)
async def main():
    await begin()
    assert client.stats()["connections"] == 2
    if {way in ("sys.exit(5)", "os._exit(5)", "return 5")}:
        tasks = [asyncio.create_task(storm(i)) for i in range(20)]
        await asyncio.sleep(0.05)
    calls = [client.get("large") for _ in range(20)]
    await asyncio.sleep(0)
    {line}
sys.exit(asyncio.run(main()))
""",
        server.path,
    )
    quiet(done, 5)


# --- everything at once ----------------------------------------------------------------------


class Book:
    """What one key can hold: the versions written, those that are sure, those that are not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.written = 0
        self.sure = 0
        self.unsure: set[int] = set()  # given up: they may be there at any time from then on
        self.sizes: dict[int, int] = {}

    def next(self, size: int) -> bytes:
        self.written += 1
        self.sizes[self.written] = size
        self.unsure.add(self.written)
        return content(self.name, self.written, size)

    def acknowledged(self, version: int) -> None:
        self.sure = version
        self.unsure.discard(version)

    def fault(self, value: Any, sure: int) -> str | None:
        """What is wrong with a value of this key, asked for when `sure` was there."""
        if value is None:
            return None if sure == 0 else f"{self.name}: nothing, not even {sure}"
        head = value[: value.find(b";")].decode(errors="replace")
        name, _, version = head.partition(":")
        if name != self.name or not version.isdigit() or int(version) not in self.sizes:
            return f"{self.name}: got {value!r:.60}"
        number = int(version)
        if number < sure and number not in self.unsure:
            return f"{self.name}: {number}, though {sure} was acknowledged"
        if value != content(self.name, number, self.sizes[number]):
            return f"{self.name}: {number} is not whole"
        return None


class Readers:
    """Tasks that each write keys of their own and read everybody's, and give up now and then."""

    def __init__(self, client: aioredis.Redis, seed: int, tasks: int) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.books = [[Book(f"key{i}-{k}") for k in range(2)] for i in range(tasks)]
        self.wrong: list[str] = []
        self.seen: Counter[str] = Counter()

    async def _drive(self, call: Any, what: str) -> Any:
        """Its value, or the exception that it ended in; a part is given up."""
        way = self.random.randrange(12)
        if way == 0:
            for _ in range(self.random.randrange(3)):
                await asyncio.sleep(0)
            call.cancel()
        elif way == 1:
            asyncio.get_running_loop().call_later(self.random.random() * 0.01, call.cancel)
        value = (await outcomes([asyncio.wait_for(call, 0.005) if way == 2 else call]))[0]
        self.seen[what if not isinstance(value, BaseException) else type(value).__name__] += 1
        if isinstance(value, BaseException) and not isinstance(
            value, (ConnectionError, TimeoutError, asyncio.TimeoutError, asyncio.CancelledError)
        ):
            self.wrong.append(f"{what} ended in {value!r}")
        return value

    async def work(self, number: int, count: int) -> None:
        for _ in range(count):
            dice = self.random.random()
            if dice < 0.1:
                book = self.random.choice(self.books[number])
                size = LARGE if self.random.random() < 0.8 else SMALL
                data = book.next(size)
                version = book.written
                if await self._drive(self.client.set(book.name, data), "written") is True:
                    book.acknowledged(version)
            elif dice < 0.3:
                book = self.random.choice(self.books[self.random.randrange(len(self.books))])
                sure = book.sure
                value = await self._drive(self.client.get(book.name), "read")
                if not isinstance(value, BaseException):
                    fault = book.fault(value, sure)
                    if fault is not None:
                        self.wrong.append(fault)
            else:
                word = f"{number}:{self.random.random()}"
                value = await self._drive(self.client.echo(word), "echoed")
                if not isinstance(value, BaseException) and value != word.encode():
                    self.wrong.append(f"{word}: got {value!r:.60}")


@pytest.mark.parametrize("options", [{}, {"socket_timeout": 0.02}])
async def test_whatever_happens_each_reply_is_its_own(
    server: Server, options: dict[str, Any]
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    async with aioredis.Redis(
        **server.unix, retry=Retry(ConstantBackoff(0.001), 1), **options
    ) as client:
        readers = Readers(client, seed, 20)
        tasks = [asyncio.create_task(readers.work(i, 300)) for i in range(20)]
        killed = 0
        while not all(task.done() for task in tasks):
            seen = readers.seen.total()
            await until(
                lambda seen=seen: (  # type: ignore[misc]
                    readers.seen.total() > seen + 1000 or all(task.done() for task in tasks)
                )
            )
            # Not by this thread: then nothing would be under way.
            killed += await asyncio.to_thread(server.kill_clients)
        await within(asyncio.gather(*tasks))
        print(readers.seen, killed, client.stats())
        assert not readers.wrong, f"{len(readers.wrong)} wrong: {readers.wrong[:10]}"
        await until(lambda: client.stats()["queue_depth"] == 0)
        assert readers.seen["read"] > 300 and readers.seen["written"] > 100
        assert aside(client) > 50 and killed > 3
        for books in readers.books:
            for book in books:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    assert book.fault(await client.get(book.name), book.sure) is None


def test_the_books_see_what_is_wrong() -> None:
    book = Book("k")
    first = book.next(LARGE)
    book.acknowledged(1)
    second = book.next(SMALL)
    assert book.fault(first, 1) is None and book.fault(second, 1) is None
    book.acknowledged(2)
    assert book.fault(second, 2) is None
    assert book.fault(first, 2) is not None
    assert book.fault(None, 2) is not None
    assert book.fault(content("other", 2, SMALL), 2) is not None
    assert book.fault(content("k", 2, SMALL)[:-1] + b"!", 2) is not None
