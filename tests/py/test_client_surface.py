"""What programs lean on in the client class besides sending commands."""

from __future__ import annotations

import inspect
import threading
from typing import Any
from unittest.mock import AsyncMock, create_autospec, patch

import offloop.redis as aioredis
import pytest
import redis.asyncio as reference
from driving import outcomes, run, settle, until
from leaks import descriptors, native_threads
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.lock import Lock
from servers import Server

# --- opening and closing ----------------------------------------------------------------


async def test_await_the_client(server: Server) -> None:
    client = await aioredis.Redis(**server.unix)
    assert await client.ping() is True
    await client.aclose()


async def test_initialize_without_a_server_is_no_error() -> None:
    client = aioredis.Redis(host="127.0.0.1", port=1)
    assert await client is client
    assert await client.initialize() is client
    await client.aclose()


async def test_aclose_twice_and_disconnect_after_it(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    await client.ping()
    for _ in range(3):
        await client.aclose()
    await client.connection_pool.disconnect()
    await client.aclose(close_connection_pool=True)
    assert not settle(server.clients)


async def test_a_closed_client_that_is_kept_holds_nothing(server: Server) -> None:
    before = descriptors()
    kept = []
    for _ in range(3):
        client = aioredis.Redis(**server.unix)
        await client.ping()
        await client.aclose()
        kept.append(client)
    await until(lambda: not {fd for fd in descriptors() if fd not in before})
    await until(lambda: not native_threads())
    assert [await client.ping() for client in kept] == [True] * 3  # and opens anew
    for client in kept:
        await client.aclose()


async def test_close_without_use() -> None:
    for _ in range(3):
        client = aioredis.Redis()
        await client.aclose()
        await client.aclose()


async def test_close_is_aclose(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    await client.ping()
    with pytest.warns(DeprecationWarning):
        await client.close()
    assert not settle(server.clients)


async def test_nested_async_with(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    async with client:
        async with client:
            await client.set("k", "v")
        assert await client.get("k") == b"v"
    assert not settle(server.clients)


async def test_auto_close_connection_pool_set_later(server: Server) -> None:
    pool = aioredis.ConnectionPool.from_url(server.url)
    client = aioredis.Redis(connection_pool=pool)
    assert client.auto_close_connection_pool is False
    client.auto_close_connection_pool = True
    await client.ping()
    await client.aclose()
    assert not settle(server.clients)


async def test_from_pool_owns_it(server: Server) -> None:
    client = aioredis.Redis.from_pool(aioredis.ConnectionPool.from_url(server.url))
    await client.ping()
    await client.aclose()
    assert not settle(server.clients)


# --- the connection pool holds the state ---------------------------------------------------


@pytest.mark.parametrize("kind", ["ConnectionPool", "BlockingConnectionPool"])
async def test_clients_of_one_connection_pool_share_the_connection(
    server: Server, kind: str
) -> None:
    async with getattr(aioredis, kind).from_url(server.url) as shared:
        for number in range(50):
            async with aioredis.Redis(connection_pool=shared) as client:
                assert await client.incr("n") == number + 1
        clients = [aioredis.Redis(connection_pool=shared) for _ in range(10)]
        await outcomes([client.incr("n") for client in clients])
        assert clients[0].stats()["connections"] == 1
        assert clients[3].stats()["connects"] == 1
        assert len(server.clients()) == 1
    assert not settle(server.clients)


async def test_waiting_is_the_contract_of_a_blocking_pool(server: Server) -> None:
    pool = aioredis.BlockingConnectionPool.from_url(server.url, max_connections=1, timeout=20)
    async with aioredis.Redis.from_pool(pool) as client:
        values = await outcomes([client.incr("n") for _ in range(300)])
        assert sorted(values) == list(range(1, 301))
        assert len(server.clients()) == 1


async def test_reached_by_path(server: Server) -> None:
    async with aioredis.Redis.from_url(server.url, db=2) as client:
        assert client.connection_pool.connection_kwargs["db"] in (0, 2)
        assert client.get_connection_kwargs() is client.connection_pool.connection_kwargs
        assert client.get_encoder().encode("x") == b"x"
        assert isinstance(client.lock("l"), Lock)
        assert client.response_callbacks is client.response_callbacks
        assert isinstance(client.connection_pool, reference.ConnectionPool)
        assert parse_url(server.url)["port"] == server.port
        assert (client.get_retry() is None) == (reference.from_url(server.url).get_retry() is None)
        assert client.client().connection_pool is client.connection_pool


async def test_pool_get_connection_is_a_redis_py_connection(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        connection = await client.connection_pool.get_connection()
        await connection.send_command("CLIENT", "SETNAME", "by-hand")
        assert await connection.read_response() in (b"OK", "OK")
        await client.connection_pool.release(connection)
        assert sorted(row["name"] for row in server.clients()) == ["", "by-hand"]
        (mine,) = [row for row in server.clients() if row["name"] == ""]
        assert str(await client.client_id()) == mine["id"]


# --- subclasses, patches, mocks -------------------------------------------------------------


async def test_a_subclass_sees_every_command(server: Server) -> None:
    class Counting(aioredis.Redis):
        def __init__(self, tag: str, **options: Any) -> None:
            super().__init__(**options)
            self.seen: list[str] = []
            self.tag = tag

        async def execute_command(self, *args: Any, **options: Any) -> Any:
            self.seen.append(args[0])
            return await super().execute_command(*args, **options)

    client = Counting("tag", **server.unix)
    async with client:
        await client.set("k", "v")
        assert await client.get("k") == b"v"
        await client.hset("h", "f", "v")
        assert await client.hget("h", "f") == b"v"
        await client.mget("k", "l")
        await client.incr("n")
        await client.delete("k")
        await client.exists("k")
        await client.register_script("return 5")()
        assert [key async for key in client.scan_iter("n*")] == [b"n"]
        expected = ["SET", "GET", "HSET", "HGET", "MGET", "INCRBY", "DEL", "EXISTS"]
        assert client.seen[:8] == expected
        assert {"EVALSHA", "SCAN"} <= set(client.seen[8:])


async def test_a_subclass_may_override_synchronously(server: Server) -> None:
    class Prefixed(aioredis.Redis):
        def execute_command(self, *args: Any, **options: Any) -> Any:
            return super().execute_command(args[0], f"pre:{args[1]}", *args[2:], **options)

    async with Prefixed(**server.unix) as client:
        await client.set("k", "v")
        assert await client.get("k") == b"v"
        assert server.cmd("GET", "pre:k") == "v"


async def test_an_instance_may_override(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        client.execute_command = AsyncMock(return_value=b"mocked")  # type: ignore[method-assign]
        assert await client.get("k") == b"mocked"
        assert client.execute_command.call_args.args == ("GET", "k")


@pytest.mark.parametrize("name", ["get", "set", "hget", "incr", "xack"])
async def test_methods_patched_on_the_class(server: Server, name: str) -> None:
    calls = []
    original = getattr(aioredis.Redis, name)

    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(args)
        return original(self, *args, **options)

    arguments = {"get": ("k",), "set": ("k", "1"), "hget": ("h", "f"), "incr": ("n",),
                 "xack": ("s", "g", "1-1")}[name]  # fmt: skip
    async with aioredis.Redis(**server.unix) as client:
        with patch.object(aioredis.Redis, name, wrapper):
            await getattr(client, name)(*arguments)
        await getattr(client, name)(*arguments)
    assert calls == [arguments]


def test_autospec_and_signatures() -> None:
    mock = create_autospec(aioredis.Redis, instance=True)
    mock.pipeline()
    assert list(inspect.signature(mock.get).parameters) == ["name"]
    with pytest.raises(TypeError):
        mock.get()
    for name in dir(aioredis.Redis):
        thing = inspect.getattr_static(aioredis.Redis, name)
        if inspect.isfunction(thing) or (callable(thing) and not name.startswith("__")):
            inspect.signature(getattr(aioredis.Redis, name))
    client = aioredis.Redis()
    for name in dir(client):
        getattr(client, name)  # no property may raise


@pytest.mark.parametrize("name", ["get", "set", "hset", "execute_command", "zadd", "from_url"])
def test_methods_keep_their_parameters(name: str) -> None:
    ours = inspect.signature(getattr(aioredis.Redis, name)).parameters
    theirs = inspect.signature(getattr(reference.Redis, name)).parameters
    for parameter in theirs:
        assert parameter in ours, f"{name}: {parameter}"


async def test_a_connection_class_of_the_programs_own_is_used(server: Server) -> None:
    made: list[Connection] = []

    class Own(Connection):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    pool = aioredis.ConnectionPool(
        connection_class=Own, host="127.0.0.1", port=server.port, client_name="own"
    )
    async with aioredis.Redis.from_pool(pool) as client:
        assert await client.set("k", "v") is True
        assert await client.get("k") == b"v"
        assert len(made) == 1
        assert made[0].is_connected
        assert [row["name"] for row in server.clients()] == ["own"]


async def test_redis_connect_func_is_used(server: Server) -> None:
    seen = []

    async def connected(connection: Any) -> None:
        seen.append(connection)
        await connection.on_connect()

    async with aioredis.Redis(**server.tcp, redis_connect_func=connected) as client:
        assert await client.ping() is True
        assert len(seen) == 1


async def test_a_redis_py_pool_given_to_our_client(server: Server) -> None:
    async with reference.ConnectionPool.from_url(server.url) as pool:
        client = aioredis.Redis(connection_pool=pool)
        await client.set("k", "v")
        assert await client.get("k") == b"v"
        await client.aclose()
        assert await reference.Redis(connection_pool=pool).get("k") == b"v"


# --- loops and threads ----------------------------------------------------------------------


def test_made_without_a_loop_used_from_two_loops_in_turn(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    script = client.register_script("return ARGV[1]")

    async def turn(number: int) -> None:
        assert await client.incr("n") == number
        assert await script(args=[number]) == str(number).encode()

    for number in (1, 2, 3):
        run(turn(number))
    run(client.aclose())


def test_used_from_loops_in_several_threads_at_once(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    wrong: list[Any] = []

    async def work(base: int) -> None:
        for start in range(base, base + 2000, 100):
            numbers = range(start, start + 100)
            values = await outcomes([client.echo(str(number)) for number in numbers])
            if values != [str(number).encode() for number in numbers]:
                wrong.append(values)

    def thread(base: int) -> None:
        try:
            run(work(base))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=thread, args=(base * 10_000,)) for base in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert client.stats()["connections"] == 1
    run(client.aclose())


async def test_first_sent_first_served(server: Server) -> None:
    """Of several concurrent SET NX on one client, the first one sent wins."""
    async with aioredis.Redis(**server.unix) as client:
        for number in range(50):
            calls = [client.set(f"lock{number}", i, nx=True) for i in range(20)]
            assert await outcomes(calls) == [True] + [None] * 19
            assert await client.get(f"lock{number}") == b"0"


async def test_dropped_without_closing(server: Server) -> None:
    """`del client` lets go of its connection and its threads without a word."""
    for _ in range(5):
        client = aioredis.Redis(**server.unix)
        assert await client.ping() is True
        del client
    await until(lambda: not server.clients())


async def test_dropped_with_commands_under_way(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    calls = [client.incr("n") for _ in range(200)]
    del client
    # A call holds on to what it needs: it ends, one way or the other.
    values = await outcomes(calls)
    assert all(isinstance(value, (int, aioredis.ConnectionError)) for value in values)
