"""Making a client: options, URLs, the worker count, and what `stats()` shows."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
import redis.asyncio as reference
from driving import outcomes
from leaks import native_threads
from redis.exceptions import ConnectionError
from servers import Server

# --- what the package offers --------------------------------------------------------


def test_everything_redis_asyncio_exports_is_here() -> None:
    missing = [name for name in reference.__all__ if not hasattr(aioredis, name)]
    assert not missing
    assert set(reference.__all__) <= set(aioredis.__all__)


def test_the_client_is_redis_pys_client() -> None:
    assert issubclass(aioredis.Redis, reference.Redis)
    assert aioredis.Redis is not reference.Redis
    assert issubclass(aioredis.ConnectionPool, reference.ConnectionPool)
    assert issubclass(aioredis.BlockingConnectionPool, reference.BlockingConnectionPool)
    assert aioredis.ConnectionError is reference.ConnectionError


def test_signatures_are_redis_pys_and_more() -> None:
    ours = set(inspect.signature(aioredis.Redis.__init__).parameters)
    theirs = set(inspect.signature(reference.Redis.__init__).parameters)
    assert theirs <= ours | {"kwargs"} or "kwargs" in ours or "options" in ours
    assert inspect.signature(aioredis.Redis.get) == inspect.signature(reference.Redis.get)


# --- where to connect to --------------------------------------------------------------


@pytest.mark.parametrize("how", ["tcp", "unix", "url", "unix url", "module url", "ipv6 name"])
async def test_ways_to_name_the_server(server: Server, how: str) -> None:
    makers: dict[str, Any] = {
        "tcp": lambda: aioredis.Redis(**server.tcp),
        "unix": lambda: aioredis.Redis(**server.unix),
        "url": lambda: aioredis.Redis.from_url(server.url),
        "unix url": lambda: aioredis.Redis.from_url(server.unix_url),
        "module url": lambda: aioredis.from_url(server.url),
        "ipv6 name": lambda: aioredis.Redis(host="localhost", port=server.port),
    }
    async with makers[how]() as client:
        assert isinstance(client, aioredis.Redis)
        assert await client.set("k", how)
        assert await client.get("k") == how.encode()
        assert client.stats()["connections"] == 1
        assert server.cmd("GET", "k") == how


async def test_url_options(server: Server) -> None:
    url = f"redis://127.0.0.1:{server.port}/3?decode_responses=yes&client_name=from-url"
    async with aioredis.Redis.from_url(url, protocol=2) as client:
        await client.set("k", "v")
        assert server.cmd("GET", "k", db=3) == "v"
        (row,) = server.clients()
        assert (row["name"], row["db"]) == ("from-url", "3")


@pytest.mark.parametrize("db", [0, 5, "5"])
async def test_db(server: Server, db: Any) -> None:
    async with aioredis.Redis(**server.unix, db=db) as client:
        await client.set("k", "v")
        assert server.cmd("GET", "k", db=int(db)) == "v"
        assert {row["db"] for row in server.clients()} == {str(db)}


async def test_a_db_that_is_not_there(server: Server) -> None:
    async with aioredis.Redis(**server.unix, db=99) as client:
        with pytest.raises(aioredis.RedisError, match="(?i)DB index|Invalid Database"):
            await client.ping()


async def test_client_name_and_library(server: Server) -> None:
    async with aioredis.Redis(**server.tcp, client_name="me") as client:
        assert await client.client_getname() in ("me", b"me")
        assert [row["name"] for row in server.clients()] == ["me"]


@pytest.mark.parametrize("protocol", [2, 3, None])
async def test_protocol_on_the_wire(server: Server, protocol: int | None) -> None:
    async with aioredis.Redis(**server.unix, protocol=protocol) as client:
        await client.ping()
        (row,) = server.clients()
        assert row["resp"] == ("2" if protocol == 2 else "3")


@pytest.mark.parametrize("port", [-1, 0, 65_536, 10**9])
async def test_port_out_of_range(port: int) -> None:
    """Refused where the client is made, or at the first command; never a hang or a crash."""
    with pytest.raises((ValueError, OverflowError, ConnectionError)) as raised:
        async with aioredis.Redis(host="127.0.0.1", port=port) as client:
            await client.ping()
    assert str(raised.value)


async def test_no_host_is_this_machine(server: Server) -> None:
    """As with redis.asyncio."""
    for module in (reference, aioredis):
        options: dict[str, Any] = {"host": None, "port": server.port}
        async with module.Redis(**options) as client:
            assert await client.ping() is True


async def test_an_unknown_host_is_a_connection_error() -> None:
    async with aioredis.Redis(
        # A machine without a name server that answers takes its time to say so.
        host="no-such-host.invalid",
        port=1,
        retry=None,
        socket_timeout=90,
        socket_connect_timeout=90,
    ) as client:
        with pytest.raises(ConnectionError, match="no-such-host.invalid"):
            await client.ping()


async def test_no_socket_there(tmp_path: Path) -> None:
    async with aioredis.Redis(unix_socket_path=str(tmp_path / "absent"), retry=None) as client:
        with pytest.raises(ConnectionError, match="absent"):
            await client.ping()


async def test_a_socket_path_that_is_too_long(tmp_path: Path) -> None:
    async with aioredis.Redis(unix_socket_path="/tmp/" + "x" * 300) as client:
        with pytest.raises(ConnectionError):
            await client.ping()


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        aioredis.Redis(no_such_option=1)


async def test_an_unknown_url_option_is_an_error(server: Server) -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        async with aioredis.Redis.from_url(server.url + "?no_such_option=1") as client:
            await client.ping()


@pytest.mark.parametrize(
    "options",
    [{"health_check_interval": 1}, {"socket_keepalive": False}, {"socket_keepalive": True},
     {"socket_timeout": None}, {"socket_timeout": 3.5, "socket_connect_timeout": 2},
     {"max_connections": 3}, {"single_connection_client": True}, {"socket_read_size": 100},
     {"retry_on_error": [ConnectionError]}, {"encoding": "ascii"}],
    ids=str,
)  # fmt: skip
async def test_options_that_only_tune(server: Server, options: dict[str, Any]) -> None:
    async with aioredis.Redis(**server.tcp, **options) as client:
        values = await outcomes([client.incr("n") for _ in range(100)])
        assert sorted(values) == list(range(1, 101))


@pytest.mark.parametrize("protocol", [1, 4, "x"])
async def test_a_protocol_that_is_none(server: Server, protocol: Any) -> None:
    with pytest.raises((ConnectionError, ValueError)):
        async with aioredis.Redis(**server.unix, protocol=protocol) as client:
            await client.ping()


# --- the worker count -------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 7])
async def test_workers_option(server: Server, workers: int) -> None:
    async with aioredis.Redis(**server.unix, workers=workers) as client:
        await client.ping()
        assert client.stats()["workers"] == workers
        assert client.stats()["pool"]["workers"] == workers
        assert len(client.stats()["pool"]["per_worker"]) == workers


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
async def test_workers_in_the_url(server: Server, scheme: str) -> None:
    url = f"{server.url}?workers=3" if scheme == "tcp" else f"{server.unix_url}&workers=3"
    async with aioredis.Redis.from_url(url) as client:
        await client.ping()
        assert client.stats()["workers"] == 3
    async with aioredis.from_url(server.url, workers=2) as client:
        await client.ping()
        assert client.stats()["workers"] == 2


@pytest.mark.parametrize("workers", [0, -1, 1025, 10**30])
def test_workers_out_of_range(workers: int) -> None:
    for make in (offloop.Pool, lambda workers: aioredis.Redis(workers=workers)):
        with pytest.raises(ValueError, match="(?i)workers.*1024"):
            make(workers=workers)


@pytest.mark.parametrize("workers", [True, False, "4", 2.0, b"4", [4]])
def test_workers_of_another_type(workers: Any) -> None:
    for make in (offloop.Pool, lambda workers: aioredis.Redis(workers=workers)):
        with pytest.raises(TypeError, match="workers"):
            make(workers=workers)


@pytest.mark.parametrize("text", ["0", "1025", "many", "-3", "2.5"])
def test_workers_in_the_url_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match="workers"):
        aioredis.Redis.from_url(f"redis://localhost/?workers={text}")


async def test_one_of_workers_and_pool(server: Server) -> None:
    pool = offloop.Pool(workers=2)
    with pytest.raises(ValueError, match="(?s)workers.*pool|pool.*workers"):
        aioredis.Redis(workers=2, pool=pool)
    with pytest.raises(ValueError, match="(?s)workers.*pool|pool.*workers"):
        aioredis.Redis.from_url(server.url, workers=2, pool=pool)
    with pytest.raises(TypeError, match="pool"):
        aioredis.Redis(pool=4)
    await pool.aclose()


async def test_clients_share_a_pool(server: Server) -> None:
    async with offloop.Pool(workers=2) as pool:
        assert pool.workers == 2
        async with aioredis.Redis(**server.unix, pool=pool) as first:
            async with aioredis.Redis.from_url(server.unix_url[:-1] + "1", pool=pool) as second:
                await first.set("k", "0")
                await second.set("k", "1")
                assert (await first.get("k"), await second.get("k")) == (b"0", b"1")
            # Closing a client leaves a pool alone that is not its own.
            assert await first.get("k") == b"0"
            assert first.stats()["workers"] == 2
        assert pool.stats()["commands"] >= 5


async def test_workers_start_at_first_use(server: Server) -> None:
    before = len(native_threads())
    client = aioredis.Redis(**server.unix, workers=5)
    assert len(native_threads()) == before
    assert client.stats()["pool"]["started"] in (False, 0)
    await client.ping()
    names = sorted(native_threads().values())
    assert 1 <= len(names) - before <= 5
    assert all(name.startswith("offloop-w") for name in names)
    await client.aclose()
