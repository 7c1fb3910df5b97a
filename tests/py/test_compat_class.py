"""The class as programs use it: mocks, patches, subclasses, attributes, logging in."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any
from unittest import mock

import offloop.redis as aioredis
import pytest
import redis.asyncio
from driving import until, within
from offloop.redis.connection import Connection
from redis.auth.token import TokenInterface
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError
from servers import Server

# --- what looks at the class sees redis-py's ---------------------------------------


def test_execute_command_is_an_async_function() -> None:
    for owner in (aioredis.Redis, aioredis.Redis()):
        assert asyncio.iscoroutinefunction(owner.execute_command)
        assert list(inspect.signature(owner.execute_command).parameters)[-2:] == [
            "args",
            "options",
        ]
        assert "command" in (inspect.getdoc(owner.execute_command) or "")
    assert inspect.iscoroutinefunction(aioredis.Redis.execute_command)
    assert aioredis.Redis.execute_command.__qualname__ == "Redis.execute_command"


@pytest.mark.parametrize(
    "make",
    [
        lambda: mock.Mock(spec=aioredis.Redis),
        lambda: mock.AsyncMock(spec=aioredis.Redis),
        lambda: mock.create_autospec(aioredis.Redis, instance=True),
    ],
)
async def test_mocks_of_the_class(make: Any) -> None:
    client = make()
    client.execute_command.return_value = "reply"
    assert await client.execute_command("GET", "k") == "reply"
    client.aclose.return_value = None
    await client.aclose()
    with pytest.raises(AttributeError):
        _ = client.no_such_method


@pytest.mark.parametrize("name", ["get", "zadd", "xack", "execute_command"])
async def test_a_method_patched_on_the_class(server: Server, name: str) -> None:
    seen: list[str] = []
    original = getattr(aioredis.Redis, name)

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(name)
        return original(self, *args, **kwargs)

    arguments: dict[str, tuple[Any, ...]] = {
        "get": ("k",),
        "zadd": ("z", {"a": 1}),
        "xack": ("s", "g", "1-0"),
        "execute_command": ("GET", "k"),
    }
    async with aioredis.Redis(**server.tcp) as client:
        await client.ping()
        with mock.patch.object(aioredis.Redis, name, wrapper):
            await getattr(client, name)(*arguments[name])
        await getattr(client, name)(*arguments[name])
    assert seen == [name]


async def test_called_through_the_class(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        await aioredis.Redis.execute_command(client, "SET", "k", "v")
        assert await aioredis.Redis.get(client, "k") == b"v"
        assert client.stats()["commands"] == 2


# --- subclasses ---------------------------------------------------------------------


class Prefixed(aioredis.Redis):
    """Another __init__, and every command goes through execute_command."""

    def __init__(self, prefix: str, connection_pool: Any) -> None:
        super().__init__(connection_pool=connection_pool)
        self.prefix = prefix
        self.seen: list[str] = []

    async def execute_command(self, command: Any, *args: Any, **options: Any) -> Any:
        self.seen.append(command)
        if args:
            args = (f"{self.prefix}{args[0]}", *args[1:])
        return await super().execute_command(command, *args, **options)


async def test_a_subclass_sees_every_command(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as plain:
        client = Prefixed("p:", plain.connection_pool)
        await client.set("k", "v")
        await client.incr("n")
        await client.hset("h", mapping={"a": 1})
        assert await client.get("k") == b"v"
        assert await client.exists("k", "k") == 1
        assert client.seen == ["SET", "INCRBY", "HSET", "GET", "EXISTS"]
        assert await plain.get("p:k") == b"v"
        script = client.register_script("return 1")
        client.prefix = ""
        assert await script() == 1
        assert client.seen[-3:] == ["EVALSHA", "SCRIPT LOAD", "EVALSHA"]


async def test_a_subclass_that_is_made_another_way(server: Server) -> None:
    """Nothing rebuilds a client by type(self)(...)."""
    async with aioredis.Redis(**server.tcp) as plain:
        client = Prefixed("", plain.connection_pool)
        async with client.pipeline() as pipe:
            pipe.set("k", 1)
            assert await pipe.execute() == [True]
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("c")
        async with client.lock("l", timeout=5):
            pass

        def read(pipe: Any) -> None:
            pipe.multi()
            pipe.get("k")

        assert await client.transaction(read, "k") == [b"1"]


class Initialized(aioredis.Redis):
    ready = 0

    async def initialize(self) -> Initialized:
        self.ready += 1
        return await super().initialize()


async def test_initialize_is_called(server: Server) -> None:
    client = await Initialized(**server.tcp)
    assert client.ready == 1
    async with client as entered:
        assert entered is client
        assert client.ready == 2
        assert await client.ping() is True


async def test_a_server_that_is_down_is_no_error_at_initialize() -> None:
    client = await aioredis.Redis(port=1, retry=None)
    with pytest.raises(aioredis.ConnectionError):
        await client.ping()
    await client.aclose()


class Answering(aioredis.Redis):
    """Replies are read by the program."""

    async def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        return "mine", await super().parse_response(connection, command_name, **options)


async def test_parse_response_overridden(server: Server) -> None:
    async with Answering(**server.tcp) as client:
        assert await client.get("k") == ("mine", None)


class Counted(Connection):
    """A connection class of the program's own."""

    made = 0

    async def connect(self) -> None:
        type(self).made += 1
        await super().connect()


async def test_a_connection_class_of_the_programs_own_is_used(server: Server) -> None:
    Counted.made = 0
    url = f"redis://127.0.0.1:{server.port}"
    pool = aioredis.ConnectionPool.from_url(url, connection_class=Counted)
    async with aioredis.Redis.from_pool(pool) as client:
        assert await client.set("k", 1) is True
        assert await client.get("k") == b"1"
    assert Counted.made > 0
    assert pool.connection_class is Counted


async def test_redis_pys_own_pool_is_used(server: Server) -> None:
    pool = redis.asyncio.ConnectionPool.from_url(server.url)
    async with aioredis.Redis.from_pool(pool) as client:
        assert await client.set("k", 1) is True
        assert len(pool._available_connections) == 1


# --- objects ---------------------------------------------------------------------------


async def test_a_client_for_every_call(server: Server) -> None:
    """Made and closed for each call on a shared pool: one connection, no new threads."""
    async with aioredis.ConnectionPool.from_url(server.url) as pool:
        for number in range(200):
            async with aioredis.Redis(connection_pool=pool) as client:
                assert await client.incr("n") == number + 1
        assert pool.stats()["connects"] == 1
        assert len(server.clients()) == 1


def test_a_client_and_a_script_made_with_no_loop(server: Server) -> None:
    client = aioredis.Redis(**server.tcp)
    script = client.register_script("return ARGV[1]")

    async def use() -> None:
        assert await script(args=["x"]) == b"x"
        assert await client.incr("n")

    for _ in range(3):
        asyncio.run(use())
    asyncio.run(client.aclose())


@pytest.mark.parametrize("module", [aioredis, redis.asyncio], ids=["offloop", "asyncio"])
async def test_what_was_changed_is_shown(server: Server, module: Any) -> None:
    """CLIENT INFO is about the connection that the task has changed, as with redis.asyncio."""
    async with module.Redis(**server.tcp, client_name="all") as client:
        assert (await client.client_info())["name"] == "all"
        assert await client.client_setname("mine") is True
        assert await client.client_no_evict("ON") in (b"OK", "OK", True)
        await client.get("k")
        found = [await client.client_info(), await client.execute_command("CLIENT INFO")]
        assert [(info["name"], info["flags"]) for info in found] == [("mine", "e")] * 2
        assert (await client.pipeline().client_info().execute())[0]["name"] == "mine"


async def test_the_connection_that_a_program_sets(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        await client.ping()
        native = client.stats()["commands"]
        connection = await client.connection_pool.get_connection()
        client.connection = connection
        assert client.connection is connection
        await client.client_setname("mine")
        assert await client.client_getname() in ("mine", b"mine")
        assert client.stats()["commands"] == native
        client.connection = None
        await client.connection_pool.release(connection)
        await client.ping()
        assert client.stats()["commands"] == native + 1


def test_from_url_warns_as_redis_py_does() -> None:
    with pytest.deprecated_call():
        client = aioredis.Redis.from_url("redis://h", auto_close_connection_pool=False)
    assert client.auto_close_connection_pool is False
    assert aioredis.Redis.from_url("redis://h").auto_close_connection_pool is True


# --- who is logged in ----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
async def test_auth_logs_the_client_in(server: Server, protocol: int) -> None:
    server.cmd("ACL", "SETUSER", "alice", "on", ">secret", "~*", "&*", "+@all")
    try:
        async with aioredis.Redis(**server.tcp, protocol=protocol) as client:
            assert await client.acl_whoami() in ("default", b"default")
            with pytest.raises(AuthenticationError) as refused:
                await client.auth("wrong", "alice")
            assert "wrong" not in str(refused.value)
            assert await client.acl_whoami() in ("default", b"default")
            assert await client.auth("secret", "alice") is True
            assert await client.acl_whoami() in ("alice", b"alice")
            # On what redis-py connects by itself, and after a reconnect.
            async with client.pipeline() as pipe:
                pipe.execute_command("ACL WHOAMI")
                assert await pipe.execute() in (["alice"], [b"alice"])
            server.kill_clients()
            await until(lambda: not server.clients())
            assert await client.acl_whoami() in ("alice", b"alice")
            assert "secret" not in repr(client)
    finally:
        server.cmd("ACL", "DELUSER", "alice")


@pytest.mark.parametrize("waiting", [True, False])
async def test_auth_reaches_blocking_commands(server: Server, waiting: bool) -> None:
    """A connection that is idle, or comes back later, is not used as who it was."""
    server.cmd("ACL", "SETUSER", "alice", "on", ">secret", "~*", "&*", "+@all")
    try:
        async with aioredis.Redis(**server.tcp) as client:
            await client.ping()
            call = client.blpop("list", 5)
            await until(lambda: len(server.clients()) == 2)
            if not waiting:
                await client.rpush("list", 1)
                await call
            assert await client.auth("secret", "alice") is True
            if waiting:
                await client.rpush("list", 1)
                await call
            call = client.blpop("list", 5)
            await until(lambda: any(row["cmd"] == "blpop" for row in server.clients()))
            (row,) = [row for row in server.clients() if row["cmd"] == "blpop"]
            assert row["user"] == "alice"
            await client.rpush("list", 2)
            assert list(await call) == [b"list", b"2"]
    finally:
        server.cmd("ACL", "DELUSER", "alice")


class Token(TokenInterface):
    def __init__(self, user: str, value: str) -> None:
        self.user, self.value = user, value

    def is_expired(self) -> bool:
        return False

    def ttl(self) -> float:
        return 1000.0

    def try_get(self, key: str) -> str:
        return self.user

    def get_value(self) -> str:
        return self.value

    def get_expires_at_ms(self) -> float:
        return 1e15

    def get_received_at_ms(self) -> float:
        return 0.0


class Rotating(CredentialProvider):
    credentials = ("first", "one")

    def get_credentials(self) -> tuple[str, str]:
        return self.credentials


async def test_a_new_token_reaches_the_shared_connection(server: Server) -> None:
    for user, password in (("first", "one"), ("second", "two")):
        server.cmd("ACL", "SETUSER", user, "on", f">{password}", "~*", "&*", "+@all")
    try:
        provider = Rotating()
        async with aioredis.Redis(**server.tcp, credential_provider=provider) as client:
            assert await client.acl_whoami() in ("first", b"first")
            identity = await client.client_id()
            calls = [client.incr("n") for _ in range(100)]
            provider.credentials = ("second", "two")
            await within(client.connection_pool.re_auth_callback(Token("second", "two")))
            assert await client.acl_whoami() in ("second", b"second")
            assert await client.client_id() == identity
            assert await asyncio.gather(*calls) == list(range(1, 101))
            # Those that are made later ask the provider.
            server.kill_clients()
            await until(lambda: not server.clients())
            assert await client.acl_whoami() in ("second", b"second")
    finally:
        server.cmd("ACL", "DELUSER", "first", "second")
