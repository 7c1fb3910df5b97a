"""Bad arguments: a typed error, nothing sent, the client as good as before."""

from __future__ import annotations

from typing import Any

import offloop.redis as aioredis
import pytest
from driving import outcome, outcomes
from redis.exceptions import DataError, RedisError, ResponseError
from servers import Server

LIMIT = 512 * 1024 * 1024


async def still_good(client: aioredis.Redis) -> None:
    """The connection is the same and answers."""
    assert await client.echo("still good") == b"still good"
    assert client.stats()["connects"] == 1


@pytest.mark.parametrize(
    "value",
    [None, True, False, [], (), {}, set(), object(), 1j, range(3), Exception("x"), type],
    ids=lambda value: type(value).__name__,
)
async def test_types_that_cannot_be_sent(server: Server, value: Any) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        for args in (("SET", "k", value), ("SET", value, "v"), ("ECHO", "x", value, "y")):
            with pytest.raises(DataError):
                await client.execute_command(*args)
        await still_good(client)
        assert server.calls("set") == 0


async def test_an_argument_whose_conversion_raises(server: Server) -> None:
    class Broken(int):
        def __repr__(self) -> str:
            raise LookupError("no repr")

    class Wrong(int):
        def __repr__(self) -> Any:
            return 5

    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        with pytest.raises(LookupError):
            await client.execute_command("ECHO", Broken(1))
        with pytest.raises((TypeError, DataError)):
            await client.execute_command("ECHO", Wrong(1))
        await still_good(client)


@pytest.mark.parametrize("args", [(), ("",), (b"",), ("   ",), (b"  ",), (None,), (5,), (1.5,)])
async def test_an_empty_or_odd_command(server: Server, args: tuple[Any, ...]) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        value = await outcome(_execute(client, args))
        assert isinstance(value, (RedisError, TypeError, IndexError, ValueError)), value
        await still_good(client)


async def _execute(client: aioredis.Redis, args: tuple[Any, ...]) -> Any:
    return await client.execute_command(*args)


@pytest.mark.parametrize(
    "args",
    [("SET\r\nFLUSHALL", "k"), ("GET k\r\nFLUSHALL",), (b"\x00",), ("GET\x00", "k"),
     ("*1\r\n$8\r\nFLUSHALL\r\n",), ("\xe9\u65e5",)],
    ids=repr,
)  # fmt: skip
async def test_a_command_name_cannot_smuggle(server: Server, args: tuple[Any, ...]) -> None:
    server.cmd("SET", "witness", "here")
    async with aioredis.Redis(**server.unix) as client:
        # redis-py splits a name at white space; each part is one argument all the same.
        value = await outcome(_execute(client, args))
        assert value is True or value == b"OK" or isinstance(value, ResponseError)
        await still_good(client)
    assert server.cmd("GET", "witness") == "here"
    assert server.calls("flushall") == 0


async def test_nul_and_line_ends_in_arguments(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        for text in ("\x00", "a\x00b", "\r\n", "$5\r\nhello\r\n", "\x00" * 5000):
            assert await client.set(text, text) is True
            assert await client.get(text) == text.encode()
        await still_good(client)


@pytest.mark.parametrize("text", ["\ud800", "ok\udfff", "\udc80" * 100], ids=["one", "two", "many"])
async def test_a_surrogate_in_a_str(server: Server, text: str) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        for args in (("SET", "k", text), ("SET", text, "v")):
            with pytest.raises(DataError):
                await client.execute_command(*args)
        await still_good(client)
        assert server.calls("set") == 0
        assert await client.dbsize() == 0


async def test_what_the_encoding_lacks(server: Server) -> None:
    async with aioredis.Redis(**server.unix, encoding="ascii") as client:
        await client.ping()
        with pytest.raises(DataError):
            await client.set("k", "\xe9")
        await still_good(client)


async def test_an_encoding_that_does_not_exist(server: Server) -> None:
    with pytest.raises((LookupError, RedisError)):
        async with aioredis.Redis(**server.unix, encoding="no-such-encoding") as client:
            await client.set("k", "v")


async def test_a_released_or_strided_memoryview(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        view = memoryview(b"abc")
        view.release()
        with pytest.raises((ValueError, DataError)):
            await client.set("k", view)
        await client.ping()
        await still_good(client)


@pytest.mark.parametrize("count", [1, 100])
async def test_bad_among_good(server: Server, count: int) -> None:
    """Calls around a bad one, made in the same turn, are as if it were not there."""
    async with aioredis.Redis(**server.unix) as client:
        calls: list[Any] = []
        for number in range(count):
            calls.append(client.echo(str(number)))
            calls.append(outcome(_execute(client, ("SET", "k", None))))
            calls.append(outcome(_execute(client, ("NOSUCHCOMMAND",))))
            calls.append(client.echo(f"again {number}"))
        values = await outcomes(calls)
        assert values[0::4] == [str(i).encode() for i in range(count)]
        assert values[3::4] == [f"again {i}".encode() for i in range(count)]
        assert all(isinstance(value, DataError) for value in values[1::4])
        assert all(isinstance(value, ResponseError) for value in values[2::4])
        await still_good(client)


async def test_wrong_calls_of_the_python_methods(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        for make in (
            lambda: client.get(),  # type: ignore[call-arg]
            lambda: client.get("k", "l"),  # type: ignore[call-arg]
            lambda: client.get("k", no_such_option=1),  # type: ignore[call-arg]
            lambda: client.set("k"),  # type: ignore[call-arg]
        ):
            with pytest.raises(TypeError):
                await make()
        await client.ping()
        await still_good(client)


@pytest.mark.slow
async def test_an_argument_of_the_largest_size(server: Server) -> None:
    """512 MiB is what Redis takes (proto-max-bulk-len); a byte more is refused here."""
    value = bytes(LIMIT)
    async with aioredis.Redis(**server.unix, socket_timeout=120) as client:
        assert await client.set("k", value) is True
        assert await client.strlen("k") == LIMIT
        got = await client.get("k")
        assert len(got) == LIMIT
        assert got == value
        del got, value
        with pytest.raises(DataError):
            await client.set("k", bytes(LIMIT + 1))
        assert await client.ping() is True
        assert client.stats()["connects"] <= 2
        await client.delete("k")


@pytest.mark.slow
async def test_an_argument_that_is_too_large_is_refused_unsent(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        before = client.stats()["bytes_out"]
        value = bytes(LIMIT + 1)
        with pytest.raises(DataError):
            await client.set("k", value)
        with pytest.raises(DataError):
            await client.set("k", memoryview(value))
        assert client.stats()["bytes_out"] == before
        await still_good(client)
