"""Arbitrary values there and back: what is put in comes out, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import offloop.redis as aioredis
import pytest
from servers import Server

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# Short ones of every kind; long ones (over a read, over a socket's buffer) repeat.
blobs = st.binary(max_size=60) | st.builds(
    lambda part, count: part * count, st.binary(min_size=1, max_size=20), st.integers(1, 3000)
)
texts = st.text(max_size=60)  # no surrogates: they cannot be encoded
plain = st.one_of(
    blobs,
    blobs.map(bytearray),
    blobs.map(memoryview),
    texts,
    st.integers(),
    st.floats(allow_nan=False),
)


def sent(value: Any, encoding: str = "utf-8") -> bytes:
    """The bytes redis-py's encoder would send for it."""
    if isinstance(value, str):
        return value.encode(encoding)
    if isinstance(value, (int, float)):
        return repr(value).encode()
    return bytes(value)


def check(
    server: Server,
    strategy: Any,
    body: Callable[[aioredis.Redis, Any], Coroutine[Any, Any, None]],
    examples: int = 100,
    **options: Any,
) -> None:
    """Run the body for each example, all over one client and one loop."""
    loop = asyncio.new_event_loop()
    client = aioredis.Redis(**server.unix, **options)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(strategy)
    def examine(value: Any) -> None:
        loop.run_until_complete(asyncio.wait_for(body(client, value), 60))

    try:
        examine()
        assert client.stats()["connects"] == 1
    finally:
        loop.run_until_complete(client.aclose())
        loop.close()


def test_set_and_get(server: Server) -> None:
    async def body(client: aioredis.Redis, pair: tuple[Any, Any]) -> None:
        key, value = pair
        assert await client.set(key, value) is True
        assert await client.get(key) == sent(value)

    check(server, st.tuples(plain, plain), body)


def test_text_when_decoding(server: Server) -> None:
    async def body(client: aioredis.Redis, pair: tuple[str, str]) -> None:
        assert await client.set(*pair) is True
        assert await client.get(pair[0]) == pair[1]

    check(server, st.tuples(texts, texts), body, decode_responses=True)


@pytest.mark.parametrize("protocol", [2, 3])
def test_lists(server: Server, protocol: int) -> None:
    async def body(client: aioredis.Redis, values: list[Any]) -> None:
        await client.delete("l")
        assert await client.rpush("l", *values) == len(values)
        assert await client.lrange("l", 0, -1) == [sent(value) for value in values]

    check(server, st.lists(plain, min_size=1, max_size=30), body, protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 3])
def test_hashes(server: Server, protocol: int) -> None:
    async def body(client: aioredis.Redis, mapping: dict[bytes, Any]) -> None:
        await client.delete("h")
        assert await client.hset("h", mapping=mapping) == len(mapping)
        expected = {key: sent(value) for key, value in mapping.items()}
        assert await client.hgetall("h") == expected

    check(
        server,
        st.dictionaries(st.binary(max_size=50), plain, min_size=1, max_size=20),
        body,
        protocol=protocol,
    )


@pytest.mark.parametrize("protocol", [2, 3])
def test_sets(server: Server, protocol: int) -> None:
    async def body(client: aioredis.Redis, members: set[bytes]) -> None:
        await client.delete("s")
        await client.sadd("s", *members)
        assert await client.smembers("s") == members

    check(server, st.sets(blobs, min_size=1, max_size=20), body, protocol=protocol)


# Numbers of Redis replies are 64 bits; of Lua's, whole ones up to 2^53.
leaves = st.integers(-(2**53), 2**53) | st.binary(max_size=40)
nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=6), max_leaves=40)


def lua(value: Any) -> str:
    """The value as a Lua expression."""
    if isinstance(value, bytes):
        return '"' + "".join(f"\\{byte:03d}" for byte in value) + '"'
    if isinstance(value, list):
        return "{" + ",".join(map(lua, value)) + "}"
    return str(value)


@pytest.mark.parametrize("protocol", [2, 3])
def test_nested_replies(server: Server, protocol: int) -> None:
    async def body(client: aioredis.Redis, value: Any) -> None:
        assert await client.eval(f"return {lua(value)}", 0) == value
        assert await client.eval(f"return {{{lua(value)}, {lua(value)}}}", 0) == [value, value]

    check(server, nested, body, protocol=protocol)
    server.cmd("SCRIPT", "FLUSH")


def test_doubles(server: Server) -> None:
    async def body(client: aioredis.Redis, score: float) -> None:
        await client.zadd("z", {"m": score})
        assert await client.zscore("z", "m") == score

    for protocol in (2, 3):
        check(server, st.floats(allow_nan=False), body, protocol=protocol)


def test_integers(server: Server) -> None:
    async def body(client: aioredis.Redis, number: int) -> None:
        await client.set("n", number)
        assert await client.incr("n", 0) == number

    check(server, st.integers(-(2**63), 2**63 - 1), body)


def test_many_at_once(server: Server) -> None:
    """Whatever their sizes, replies of one batch are told apart."""

    async def body(client: aioredis.Redis, values: list[Any]) -> None:
        got = await asyncio.gather(*(client.echo(value) for value in values))
        assert got == [sent(value) for value in values]

    check(server, st.lists(plain, min_size=1, max_size=40), body)
