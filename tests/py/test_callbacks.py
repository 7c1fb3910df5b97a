"""Response callbacks that are redis-py's by name and ours in C: the same results.

A server answers with replies of every shape, those that Redis gives and those that it
never would, and the client's outcome is compared with what redis-py's function makes of
the same reply: a result, or an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio
from fakeserver import FakeServer, Peer, bulk
from redis._parsers import helpers
from servers import Server

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

NAMES = (
    "parse_stream_list",
    "parse_xread",
    "parse_xread_resp3",
    "parse_xread_unified",
    "parse_xread_resp3_to_resp2_legacy",
)

word = st.binary(max_size=6)
# As Redis has them, and nearly so.
fields = st.none() | st.lists(word, max_size=5)
more = st.lists(st.integers(0, 9), max_size=2)
entry = st.none() | st.builds(lambda name, pairs, rest: [name, pairs, *rest], word, fields, more)
entries = st.none() | st.lists(entry, max_size=3)
streams = st.one_of(
    entries,
    st.dictionaries(word, entries, max_size=3),
    st.lists(st.tuples(word, entries).map(list), max_size=3),
)
# Anything at all.
anything = st.recursive(
    st.none() | st.integers(-5, 5) | word | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(word, inner, max_size=3),
    max_leaves=12,
)


def resp(value: Any) -> bytes:
    """A reply in RESP3."""
    if value is None:
        return b"_\r\n"
    if isinstance(value, bool):
        return b"#t\r\n" if value else b"#f\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return bulk(value)
    if isinstance(value, dict):
        inner = b"".join(resp(key) + resp(item) for key, item in value.items())
        return b"%%%d\r\n" % len(value) + inner
    return b"*%d\r\n" % len(value) + b"".join(map(resp, value))


def outcome(function: Callable[..., Any], value: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """What it returns or raises."""
    try:
        return function(value, **options), None
    except Exception as error:
        return None, (type(error), str(error))


def typed(value: Any) -> Any:
    """With the types, which == does not look at, and the order of a dict."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, [(key, typed(item)) for key, item in value.items()]
    return type(value), value


@pytest.mark.parametrize("name", NAMES)
def test_same_as_redis_py_on_any_reply(name: str) -> None:
    function = getattr(helpers, name)
    reply = b""

    def script(peer: Peer, _args: list[bytes]) -> None:
        peer.send(reply)

    loop = asyncio.new_event_loop()
    with FakeServer(script) as fake:
        client = aioredis.Redis(host="127.0.0.1", port=fake.port, protocol=3, retry=None)
        client.set_response_callback("GET", function)

        async def ask(options: dict[str, Any]) -> tuple[Any, Any]:
            try:
                return await client.execute_command("GET", "k", **options), None
            except Exception as error:
                return None, (type(error), str(error))

        @settings(max_examples=200, deadline=None, database=None, print_blob=True)
        @given(
            value=streams | anything,
            options=st.sampled_from([{}, {"claim_min_idle_time": 1}, {"other": 1}]),
        )
        def examine(value: Any, options: dict[str, Any]) -> None:
            nonlocal reply
            reply = resp(value)
            found = loop.run_until_complete(asyncio.wait_for(ask(options), 60))
            assert typed(found) == typed(outcome(function, value, options))

        try:
            examine()
        finally:
            loop.run_until_complete(client.aclose())
            loop.close()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("legacy", [True, False])
async def test_streams_without_their_python_callbacks(
    server: Server, monkeypatch: pytest.MonkeyPatch, protocol: int, legacy: bool
) -> None:
    options = {**server.unix, "protocol": protocol, "legacy_responses": legacy}
    found = []
    for library in (redis.asyncio, aioredis):
        client = library.Redis(**options)
        try:
            await client.delete("s")
            await client.xadd("s", {"a": 1, "b": 2}, id="1-1")
            await client.xadd("s", {"a": 3}, id="1-2")
            await client.xgroup_create("s", "g", id="0")
            if library is aioredis:  # it does without

                def forbidden(*_args: Any, **_options: Any) -> Any:
                    raise AssertionError("redis-py's Python function ran")

                monkeypatch.setattr(helpers, "pairs_to_dict", forbidden)
            found.append(
                [
                    await client.xread({"s": "0"}),
                    await client.xread({"s": "9"}),
                    await client.xreadgroup("g", "c", {"s": ">"}, count=1),
                    await client.xreadgroup("g", "c", {"s": ">"}, block=5000),
                    await client.xrange("s"),
                    await client.xrevrange("s", count=1),
                    await client.pipeline().xrange("s").xread({"s": "0"}).execute(),
                ]
            )
            await client.delete("s")
        finally:
            await client.aclose()
    assert typed(found[0]) == typed(found[1])


async def test_what_a_user_sets_is_called(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    assert client.response_callbacks["XRANGE"] is helpers.parse_stream_list
    client.set_response_callback("XRANGE", lambda reply, **_: ("mine", reply))
    assert await client.xrange("absent") == ("mine", [])
    await client.aclose()
