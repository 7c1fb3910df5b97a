"""The command API gives what redis.asyncio gives, value by value, on the same server."""

from __future__ import annotations

import asyncio
import enum
import math
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio as reference
from command_table import GROUPS, Call
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import DataError, ResponseError
from servers import Server


def plain(value: Any) -> Any:
    """The value with its types spelled out, so that 1, 1.0 and True differ."""
    if isinstance(value, BaseException):
        return (type(value).__name__, str(value))
    if isinstance(value, dict):
        rows = [(plain(key), plain(item)) for key, item in value.items()]
        return (type(value).__name__, sorted(rows, key=repr))
    if isinstance(value, (set, frozenset)):
        return (type(value).__name__, sorted(map(plain, value), key=repr))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, list(map(plain, value)))
    if isinstance(value, float) and math.isnan(value):
        return ("float", "nan")
    return (type(value).__name__, value)


async def ask(client: Any, call: Call) -> Any:
    try:
        return await getattr(client, call.method)(*call.args, **call.options)
    except Exception as error:
        return error


def comparable(value: Any, call: Call) -> Any:
    if call.compare == "type" and not isinstance(value, BaseException):
        return type(value).__name__
    if call.compare == "unordered" and isinstance(value, list):
        return sorted(map(plain, value), key=repr)
    return plain(value)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "str"])
@pytest.mark.parametrize("protocol", [2, 3], ids=["resp2", "resp3"])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
async def test_same_as_redis_asyncio(
    server: Server, group: str, transport: str, protocol: int, decode: bool
) -> None:
    where = server.tcp if transport == "tcp" else server.unix
    options: dict[str, Any] = {**where, "protocol": protocol, "decode_responses": decode}
    seen: list[list[Any]] = []
    for module in (reference, aioredis):
        server.cmd("FLUSHALL")
        server.cmd("FUNCTION", "FLUSH")
        async with module.Redis(**options) as client:
            seen.append([await ask(client, call) for call in GROUPS[group]])
    for call, expected, value in zip(GROUPS[group], *seen, strict=True):
        assert comparable(value, call) == comparable(expected, call), call


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("protocol", [None, 2, 3])
async def test_the_protocol_and_shape_of_replies_follow_redis_py(
    server: Server, protocol: int | None, legacy: bool
) -> None:
    seen = []
    for module in (reference, aioredis):
        server.cmd("FLUSHALL")
        async with module.Redis(
            **server.unix, protocol=protocol, legacy_responses=legacy
        ) as client:
            seen.append(
                plain(
                    [
                        await client.zadd("z", {"a": 1, "b": 2}),
                        await client.zrange("z", 0, -1, withscores=True),
                        await client.hset("h", mapping={"a": 1}),
                        await client.hgetall("h"),
                        await client.config_get("databases"),
                        await client.execute_command("ZSCORE", "z", "a"),
                    ]
                )
            )
    assert seen[0] == seen[1]


@pytest.mark.parametrize("decode", [False, True])
async def test_every_resp3_type(server: Server, decode: bool) -> None:
    kinds = ["string", "integer", "double", "null", "array", "set", "map", "verbatim",
             "true", "false"]  # fmt: skip
    seen = []
    for module in (reference, aioredis):
        async with module.Redis(
            **server.tcp, protocol=3, decode_responses=decode, legacy_responses=False
        ) as client:
            seen.append(
                [plain(await client.execute_command("DEBUG", "PROTOCOL", kind)) for kind in kinds]
            )
    assert dict(zip(kinds, seen[1], strict=True)) == dict(zip(kinds, seen[0], strict=True))


async def test_big_numbers(server: Server) -> None:
    """An int, as redis-py's own parser gives (with hiredis-py it gives the digits)."""
    async with aioredis.Redis(**server.tcp, protocol=3) as client:
        value = await client.execute_command("DEBUG", "PROTOCOL", "bignum")
        assert value == 1234567999999999999999999999999999999
        assert type(value) is int


async def test_an_attribute_before_a_reply_is_no_reply(server: Server) -> None:
    async with aioredis.Redis(**server.tcp, protocol=3) as client:
        # hiredis and redis-py's parsers drop the attribute; the value follows it.
        first = await client.execute_command("DEBUG", "PROTOCOL", "attrib")
        assert first == b"Some real reply following the attribute"
        assert await client.echo("after") == b"after"


# --- options of execute_command ---------------------------------------------------


async def test_never_decode(server: Server) -> None:
    async with aioredis.Redis(**server.unix, decode_responses=True) as client:
        await client.set("k", b"\xff\xfe")
        assert await client.execute_command("GET", "k", **{NEVER_DECODE: []}) == b"\xff\xfe"
        await client.set("k", "text")
        assert await client.execute_command("GET", "k", **{NEVER_DECODE: []}) == b"text"
        assert await client.get("k") == "text"
        dump = await client.dump("k")
        assert isinstance(dump, bytes)
        assert await client.restore("copy", 0, dump) == "OK"
        assert await client.get("copy") == "text"


async def test_a_value_that_does_not_decode_fails_alone(server: Server) -> None:
    async with aioredis.Redis(**server.unix, decode_responses=True) as client:
        await client.set("bad", b"\xff")
        await client.set("good", "g")
        bad, good = client.get("bad"), client.get("good")
        with pytest.raises(UnicodeDecodeError):
            await bad
        assert await good == "g"
        assert await client.get("good") == "g"


async def test_empty_response(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.rpush("l", "x")
        fallback = {EMPTY_RESPONSE: "fallback"}
        assert await client.execute_command("GET", "l", **fallback) == "fallback"
        assert await client.execute_command("LLEN", "l", **fallback) == 1
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await client.execute_command("GET", "l")


async def test_keys_is_an_option_not_an_argument(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        seen: dict[str, Any] = {}
        client.set_response_callback("GET", lambda response, **options: seen.update(options))
        await client.execute_command("GET", "k", keys=["k"], withscores=True)
        assert seen == {"withscores": True}


# --- response callbacks -----------------------------------------------------------


async def test_own_response_callbacks(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", "v")
        client.set_response_callback("GET", lambda response, **options: ("sync", response))
        assert await client.get("k") == ("sync", b"v")

        async def later(response: Any, **options: Any) -> Any:
            return ("async", response, await client.strlen("k"))

        client.set_response_callback("GET", later)
        assert await client.get("k") == ("async", b"v", 1)
        client.response_callbacks["STRLEN"] = lambda response, **options: -response
        assert await client.strlen("k") == -1
        del client.response_callbacks["GET"]
        assert await client.get("k") == b"v"


async def test_a_callback_sees_the_options_of_its_call(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        client.set_response_callback("ECHO", lambda response, **options: (response, options))
        assert await client.execute_command("ECHO", "x", a=1, b=2) == (b"x", {"a": 1, "b": 2})
        assert await client.execute_command("ECHO", "y") == (b"y", {})


async def test_a_callback_that_raises_fails_its_call_alone(server: Server) -> None:
    class Odd(Exception):
        pass

    def broken(response: Any, **options: Any) -> Any:
        raise Odd(response)

    async def broken_later(response: Any, **options: Any) -> Any:
        raise Odd(response)

    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", "v")
        for callback in (broken, broken_later):
            client.set_response_callback("GET", callback)
            before, bad, after = client.strlen("k"), client.get("k"), client.strlen("k")
            with pytest.raises(Odd):
                await bad
            assert (await before, await after) == (1, 1)


def test_a_callback_that_interrupts_ends_the_run_not_the_client(server: Server) -> None:
    client = aioredis.Redis(**server.unix)

    def interrupt(response: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    async def main() -> None:
        client.set_response_callback("STRLEN", interrupt)
        await asyncio.gather(client.get("k"), client.strlen("k"), client.get("k"))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())

    async def after() -> None:
        values = await asyncio.gather(*(client.echo(str(i)) for i in range(100)))
        assert values == [str(i).encode() for i in range(100)]
        await client.aclose()

    asyncio.run(after())


async def test_callbacks_find_the_command_in_any_case(server: Server) -> None:
    async with aioredis.Redis(**server.unix, protocol=2) as client:
        await client.hset("h", "f", "v")
        async with reference.Redis(**server.unix, protocol=2) as other:
            for name in ("HGETALL", "hgetall", "HgetAll"):
                expected = plain(await other.execute_command(name, "h"))
                assert plain(await client.execute_command(name, "h")) == expected, name


# --- encodings and arguments ------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252"])
async def test_encodings(server: Server, encoding: str) -> None:
    async with (
        aioredis.Redis(**server.unix, encoding=encoding, decode_responses=True) as client,
        aioredis.Redis(**server.unix) as raw,
    ):
        await client.set("k\xe9", "sch\xf6n")
        assert await client.get("k\xe9") == "sch\xf6n"
        assert await raw.get("k\xe9".encode(encoding)) == "sch\xf6n".encode(encoding)


async def test_encoding_errors_as_asked(server: Server) -> None:
    async with aioredis.Redis(
        **server.unix, encoding="ascii", encoding_errors="replace", decode_responses=True
    ) as client:
        await client.set("k", "sch\xf6n")
        assert await client.get("k") == "sch?n"
        await client.set("b", b"\xff")
        assert await client.get("b") == "\ufffd"


class Text(str):
    pass


class Colour(str, enum.Enum):
    RED = "red"


class Number(int):
    def __repr__(self) -> str:
        return "42"


class Blob(bytes):
    pass


@pytest.mark.parametrize(
    "value",
    [Text("sub"), Colour.RED, Number(7), Blob(b"blob"), memoryview(b"abcdef")[1:4],
     memoryview(bytearray(b"rw")), bytearray(b""), 0, -1, 2**63, 2**200, 1e-7, -0.0],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
async def test_argument_types_are_sent_as_redis_py_sends_them(server: Server, value: Any) -> None:
    seen = []
    for module in (reference, aioredis):
        async with module.Redis(**server.unix) as client:
            try:
                seen.append(plain(await client.execute_command("ECHO", value)))
            except Exception as error:
                seen.append(type(error).__name__)
    assert seen[0] == seen[1]


async def test_what_a_caller_changes_after_the_call_is_not_sent(server: Server) -> None:
    value = bytearray(b"before")
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        futures = [client.set(f"k{i}", value) for i in range(50)]
        value[:] = b"AFTER!"
        for future in futures:
            await future
        assert set(await client.mget([f"k{i}" for i in range(50)])) == {b"before"}


async def test_mget_of_a_generator(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.mset({"a": "1", "b": "2"})
        assert await client.mget(name for name in ("a", "b", "c")) == [b"1", b"2", None]


async def test_many_arguments_and_large_values(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        names = {f"key:{i}": str(i) for i in range(20_000)}
        await client.mset(names)
        assert await client.mget(list(names)) == [value.encode() for value in names.values()]
        for size in (0, 1, 127, 128, 4095, 4096, 65_535, 65_536, 1_000_003, 20_000_000):
            value = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            await client.set("big", value)
            assert await client.get("big") == value
            small = client.get("key:7")
            again = client.get("big")
            assert (await small, len(await again)) == (b"7", size)


async def test_data_errors_come_at_the_await_and_send_nothing(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        before = server.calls("set")
        for value in (None, True, [], {}, object(), {"a"}):
            with pytest.raises(DataError):
                await client.set("k", value)
        assert server.calls("set") == before
        assert await client.ping() is True
