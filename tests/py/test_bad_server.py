"""A server that answers nonsense: a typed error, that connection replaced, nothing else
touched, nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
import redis.asyncio as reference
from driving import in_time, outcome, outcomes, patiently, until, was_sent, within
from fakeserver import Close, FakeServer, Peer, bulk, greet
from redis.exceptions import (
    ConnectionError,
    InvalidResponse,
    RedisError,
    ResponseError,
    TimeoutError,
)
from servers import Server

# A reply nobody can make sense of, or that claims what no memory holds.
GARBAGE: dict[str, bytes] = {
    "no RESP at all": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "bytes of every kind": bytes(range(256)) * 4,
    "no number": b":12x4\r\n",
    "a huge number": b":99999999999999999999999999\r\n",
    "no length": b"$abc\r\nabc\r\n",
    "length -2": b"$-2\r\n",
    "length 2^62": b"$4611686018427387904\r\n",
    "length 2^64": b"$18446744073709551616\r\n",
    "length 2^62 and bytes": b"$4611686018427387904\r\n" + b"x" * 100_000,
    "array of 2^62": b"*4611686018427387904\r\n",
    "array of 2^62 and some": b"*4611686018427387904\r\n" + b":1\r\n" * 1000,
    "array of 2^31": b"*2147483648\r\n:1\r\n",
    "map of 2^62": b"%4611686018427387904\r\n",
    "set of 2^62": b"~4611686018427387904\r\n",
    "array of -2": b"*-2\r\n",
    "10,000 nested arrays": b"*1\r\n" * 10_000 + b":1\r\n",
    "10,000 nested maps": b"%1\r\n:1\r\n" * 10_000 + b":1\r\n",
    "no end": b"$3\r\nabcdefgh\r\n",
    "no bool": b"#x\r\n",
    "no double": b",1.2.3\r\n",
    "no null": b"_x\r\n",
    "no big number": b"(12a\r\n",
    "no verbatim string": b"=3\r\nabc\r\n",
    "garbage inside an array": b"*3\r\n:1\r\n?\r\n:3\r\n",
    "an endless line": b"+" + b"x" * 3_000_000,
}


def answering(reply: bytes) -> Callable[[Peer, list[bytes]], None]:
    """ECHO is answered rightly, GET with these bytes; anything else with nothing."""

    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"ECHO":
            peer.send(bulk(args[1]))
        elif args[0] == b"GET":
            peer.send(reply)

    return script


async def good_again(client: aioredis.Redis) -> None:
    """The client answers rightly, within some tries on a new connection."""
    for number in range(20):
        value = await within(outcome(client.echo(f"again {number}")))
        if value == f"again {number}".encode():
            return
        assert isinstance(value, (ConnectionError, TimeoutError, InvalidResponse)), value
    raise AssertionError("the client did not recover")


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_garbage(server: Server, name: str, protocol: int) -> None:
    async def attempt(secs: float) -> None:
        with FakeServer(answering(GARBAGE[name])) as fake:
            async with (
                aioredis.Redis(
                    host="127.0.0.1",
                    port=fake.port,
                    retry=None,
                    protocol=protocol,
                    socket_timeout=secs,
                ) as client,
                aioredis.Redis(**server.unix) as other,
            ):
                assert await in_time(client.echo("before")) == b"before"
                quiet = client.stats()["connects"]
                other_calls = [other.echo(str(i)) for i in range(20)]
                call, behind = client.get("k"), client.echo("behind")
                value = was_sent(await within(outcome(call)))
                assert isinstance(value, (InvalidResponse, ConnectionError, TimeoutError)), value
                assert "127.0.0.1" in str(value)
                # What was sent behind it on that connection gets an error or its own reply.
                value = await within(outcome(behind))
                assert value == b"behind" or isinstance(value, RedisError)
                await good_again(client)
                assert client.stats()["connects"] > quiet
                # One that a slow machine gave up in the greeting was no connection here.
                failures = client.stats()["connect_failures"]
                assert 0 <= fake.connections - client.stats()["connects"] <= failures
                assert await outcomes(other_calls) == [str(i).encode() for i in range(20)]
                assert other.stats()["connects"] == 1

    await patiently(attempt, 1.0)


async def test_nesting_that_is_deep_but_allowed() -> None:
    depth = 100
    with FakeServer(answering(b"*1\r\n" * depth + b":7\r\n")) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, retry=None) as client:
            value: Any = await client.get("k")
            for _ in range(depth):
                (value,) = value
            assert value == 7
            assert client.stats()["connects"] == 1


@pytest.mark.parametrize(
    "half",
    [b"$10\r\nabc", b"*2\r\n:1\r\n", b"$", b"+", b"*1\r\n$5\r\nabcde", b":12", b"$3\r\nabc\r"],
)
async def test_half_a_reply_and_silence(half: bytes) -> None:
    async def attempt(secs: float) -> None:
        with FakeServer(answering(half)) as fake:
            async with aioredis.Redis(
                host="127.0.0.1", port=fake.port, retry=None, socket_timeout=secs
            ) as client:
                assert await in_time(client.echo("before")) == b"before"
                value = was_sent(await within(outcome(client.get("k"))))
                assert isinstance(value, TimeoutError)
                assert "may have run" in str(value)
                # Whatever comes now on that connection could be taken for the other half.
                await good_again(client)
                assert fake.connections >= client.stats()["connects"] > 1

    await patiently(attempt, 0.4)


@pytest.mark.parametrize("half", [b"$10\r\nabc", b"*2\r\n:1\r\n", b"$", b""])
async def test_half_a_reply_and_the_end(half: bytes) -> None:
    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"ECHO":
            peer.send(bulk(args[1]))
        else:
            peer.send(half)
            raise Close

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, retry=None) as client:
            with pytest.raises(ConnectionError, match="may have run") as raised:
                await within(client.get("k"))
            assert f"127.0.0.1:{fake.port}" in str(raised.value)
            await good_again(client)


async def test_a_dripped_reply_is_bounded_by_one_deadline() -> None:
    """A byte every 50 ms keeps a per-read timeout alive for ever; the deadline is the call's."""

    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"ECHO":
            peer.send(bulk(args[1]))
        else:
            peer.drip(bulk(b"x" * 400), 0.05)

    with FakeServer(script) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, socket_timeout=0.5
        ) as client:
            with pytest.raises(TimeoutError):
                await within(client.get("k"), 15)
            await good_again(client)


async def test_a_dripped_reply_arrives_whole() -> None:
    reply = b"*3\r\n$5\r\nhello\r\n:12345\r\n*2\r\n+OK\r\n$-1\r\n"

    with FakeServer(lambda peer, args: peer.drip(reply, 0.001)) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, protocol=2, socket_timeout=30
        ) as client:
            calls = [client.execute_command("LRANGE", i) for i in range(5)]
            assert await outcomes(calls) == [[b"hello", 12345, [b"OK", None]]] * 5


@pytest.mark.parametrize("protocol", [2, 3])
async def test_an_extra_reply_poisons_the_connection(protocol: int) -> None:
    """A reply that no command waits for must never reach the next command."""
    extra = threading.Event()

    def script(peer: Peer, args: list[bytes]) -> None:
        if peer.number == 1 and args[0] == b"GET":
            peer.send(bulk(b"right") + bulk(b"STOWAWAY"))
            extra.set()
        else:
            peer.send(bulk(args[-1]))

    with FakeServer(script) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, protocol=protocol
        ) as client:
            value = await outcome(client.get("k"))
            assert value == b"right" or isinstance(value, RedisError)
            for number in range(50):
                value = await within(outcome(client.echo(str(number))))
                assert value == str(number).encode() or isinstance(value, RedisError), value
            await good_again(client)
            assert extra.is_set()
            assert fake.connections >= 2


async def test_a_reply_before_any_command() -> None:
    def greeting(peer: Peer, args: list[bytes]) -> bool:
        done = greet(peer, args)
        if peer.number == 1 and not peer.commands[1:]:
            peer.send(bulk(b"STOWAWAY"))
        return done

    with FakeServer(lambda peer, args: peer.send(bulk(args[-1])), greeting=greeting) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, protocol=3
        ) as client:
            for number in range(20):
                value = await within(outcome(client.echo(str(number))))
                assert value == str(number).encode() or isinstance(value, RedisError), value


async def test_resp3_pushes_are_no_replies() -> None:
    push = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\ndata\r\n"
    invalidate = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"

    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(push + bulk(args[-1]) + invalidate)

    with FakeServer(script) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, protocol=3
        ) as client:
            calls = [client.echo(str(i)) for i in range(200)]
            assert await outcomes(calls) == [str(i).encode() for i in range(200)]
            assert client.stats()["connects"] == 1


# --- the greeting ----------------------------------------------------------------------


async def test_closed_after_hello() -> None:
    def greeting(peer: Peer, args: list[bytes]) -> bool:
        raise Close

    with FakeServer(lambda peer, args: None, greeting=greeting) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, protocol=3, socket_timeout=1
        ) as client:
            values = await outcomes([client.get("k") for _ in range(5)])
            assert all(isinstance(value, (ConnectionError, TimeoutError)) for value in values)
            # Nothing of the commands themselves was sent.
            assert not any("may have run" in str(value) for value in values)
            assert not fake.commands(b"GET")


@pytest.mark.parametrize(
    "reply",
    [b"+OK\r\n", b"$3\r\nabc\r\n", b"*0\r\n", b":3\r\n", b"-ERR no such thing\r\n", b"_\r\n",
     b"%1\r\n$5\r\nproto\r\n:2\r\n", b"garbage\r\n", b"-NOPROTO unsupported protocol version\r\n"],
    ids=repr,
)  # fmt: skip
async def test_a_wrong_hello(reply: bytes) -> None:
    """Refused or worked around; a command is never answered with the greeting."""

    def greeting(peer: Peer, args: list[bytes]) -> bool:
        if args[0].upper() == b"HELLO":
            peer.send(reply)
            return True
        return greet(peer, args)

    with FakeServer(lambda peer, args: peer.send(bulk(args[-1])), greeting=greeting) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, protocol=3, socket_timeout=1
        ) as client:
            for number in range(5):
                value = await within(outcome(client.echo(str(number))))
                assert value == str(number).encode() or isinstance(value, RedisError), value


async def test_silence_at_the_greeting() -> None:
    with FakeServer(lambda peer, args: None, greeting=lambda peer, args: True) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, protocol=3, socket_timeout=0.4,
            socket_connect_timeout=0.4,
        ) as client:  # fmt: skip
            values = await outcomes([client.get("k") for _ in range(5)])
            assert all(isinstance(value, TimeoutError) for value in values), values
            assert all("not executed" in str(value) for value in values)
            assert not fake.commands(b"GET")


async def test_accepts_and_says_nothing_with_resp2() -> None:
    with FakeServer(lambda peer, args: None, greeting=lambda peer, args: True) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=None, protocol=2, socket_timeout=0.4
        ) as client:
            with pytest.raises(TimeoutError):
                await within(client.get("k"))


async def test_select_refused() -> None:
    def greeting(peer: Peer, args: list[bytes]) -> bool:
        if args[0].upper() == b"SELECT":
            peer.send(b"-ERR DB index is out of range\r\n")
            return True
        return greet(peer, args)

    with FakeServer(lambda peer, args: peer.send(bulk(b"?")), greeting=greeting) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, retry=None, db=5) as client:
            with pytest.raises(RedisError, match="(?i)DB index|Invalid Database"):
                await within(client.get("k"))
            assert not fake.commands(b"GET")


# --- errors as the server words them ---------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("ERR x", "ResponseError"),
        ("WRONGTYPE x", "ResponseError"),
        ("LOADING x", "BusyLoadingError"),
        ("READONLY x", "ReadOnlyError"),
        ("NOAUTH x", "AuthenticationError"),
        ("WRONGPASS x", "AuthenticationError"),
        ("NOPERM x", "NoPermissionError"),
        ("OOM x", "OutOfMemoryError"),
        ("NOSCRIPT x", "NoScriptError"),
        ("EXECABORT x", "ExecAbortError"),
        ("MOVED 1 h:1", "MovedError"),
        ("ASK 1 h:1", "AskError"),
        ("MASTERDOWN x", "MasterDownError"),
        ("ERR max number of clients reached", "MaxClientsError"),
        ("", "ResponseError"),
        ("ERR invalid password", "AuthenticationError"),
        ("noprefix", "ResponseError"),
    ],
)
async def test_error_replies_get_redis_pys_classes(line: str, name: str) -> None:
    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(f"-{line}\r\n".encode())

    seen = []
    with FakeServer(script) as fake:
        for module in (reference, aioredis):
            client = module.Redis(host="127.0.0.1", port=fake.port, protocol=2, retry=None)
            value = await within(outcome(client.get("k")))
            seen.append((type(value).__name__, str(value)))
            await client.aclose()
    assert seen[1] == seen[0]


async def test_errors_inside_an_array_are_values() -> None:
    reply = b"*3\r\n:1\r\n-ERR inside\r\n*1\r\n-WRONGTYPE deeper\r\n"
    with FakeServer(answering(reply)) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, retry=None) as client:
            value: Any = await client.get("k")
            assert value[0] == 1
            assert isinstance(value[1], ResponseError)
            assert isinstance(value[2][0], ResponseError)
            assert str(value[1]) == "inside"


# --- a server that stops reading ---------------------------------------------------------


async def test_a_server_that_does_not_read(server: Server) -> None:
    """A large batch cannot be written; nothing deadlocks, the loop turns, time-outs come."""

    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"ECHO":
            peer.send(bulk(args[1]))
        else:
            peer.server.closing.wait(100)

    async def attempt(secs: float) -> None:
        with FakeServer(script) as fake:
            async with (
                aioredis.Redis(
                    host="127.0.0.1", port=fake.port, retry=None, socket_timeout=secs
                ) as client,
                aioredis.Redis(**server.unix) as other,
            ):
                await in_time(client.echo("before"))
                calls = [client.set(f"k{i}", b"x" * 1_000_000) for i in range(40)]
                assert await within(other.echo("alive")) == b"alive"
                values = await outcomes(calls)
                assert all(isinstance(value, (TimeoutError, ConnectionError)) for value in values)
                assert isinstance(was_sent(values[0]), TimeoutError)
                assert "may have run" in str(values[0])
                # Some were never written: they say so.
                unsent = [value for value in values if "not executed" in str(value)]
                assert unsent
                assert all(isinstance(value, TimeoutError) for value in unsent)

    await patiently(attempt, 1.0)


async def test_a_server_that_answers_before_it_reads_all(server: Server) -> None:
    """Both directions full at once: writing and reading must interleave."""
    async with aioredis.Redis(**server.tcp, socket_timeout=40) as client:
        value = b"y" * 300_000
        await client.set("big", value)
        calls: list[Any] = []
        for number in range(120):
            calls.append(client.get("big"))
            calls.append(client.set(f"k{number}", value))
        values = await outcomes(calls)
        assert values[0::2] == [value] * 120
        assert values[1::2] == [True] * 120


async def test_a_bad_server_beside_a_good_one_in_one_pool(server: Server) -> None:
    """Clients that share a pool: the bad endpoint's troubles stay its own."""
    with FakeServer(answering(GARBAGE["no RESP at all"])) as fake:
        async with offloop.Pool(workers=1) as pool:
            bad = aioredis.Redis(
                host="127.0.0.1", port=fake.port, retry=None, pool=pool, socket_timeout=1
            )
            good = aioredis.Redis(**server.unix, pool=pool)
            going = True

            async def trouble() -> None:
                while going:
                    assert isinstance(await outcome(bad.get("k")), RedisError)

            task = asyncio.create_task(trouble())
            for base in range(0, 4000, 100):
                values = await outcomes([good.echo(str(base + i)) for i in range(100)])
                assert values == [str(base + i).encode() for i in range(100)]
            await until(lambda: fake.connections >= 2)
            going = False
            await within(task)
            assert good.stats()["connects"] == 1
            await bad.aclose()
            await good.aclose()
