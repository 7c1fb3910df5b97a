"""Commands that change a connection, or wait on the server, never reach the shared one."""

from __future__ import annotations

import asyncio
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import end, outcome, until, within
from servers import Server

# What each would do to the connection that all tasks share.
STATEFUL: dict[str, tuple[Any, ...]] = {
    "select": ("SELECT", 5),
    "multi": ("MULTI",),
    "exec": ("EXEC",),
    "discard": ("DISCARD",),
    "watch": ("WATCH", "k"),
    "unwatch": ("UNWATCH",),
    "subscribe": ("SUBSCRIBE", "c"),
    "psubscribe": ("PSUBSCRIBE", "c*"),
    "ssubscribe": ("SSUBSCRIBE", "c"),
    "unsubscribe": ("UNSUBSCRIBE", "c"),
    "client setname": ("CLIENT SETNAME", "renamed"),
    "client tracking": ("CLIENT TRACKING", "ON"),
    "client no-evict": ("CLIENT NO-EVICT", "ON"),
    "hello": ("HELLO", "2"),
    "auth": ("AUTH", "default", "whatever"),
    "reset": ("RESET",),
    "quit": ("QUIT",),
    "readonly": ("READONLY",),
    "asking": ("ASKING",),
    "script debug": ("SCRIPT DEBUG", "NO"),
}
SILENT = {
    "client reply off": ("CLIENT REPLY", "OFF"),
    "client reply skip": ("CLIENT REPLY", "SKIP"),
    "monitor": ("MONITOR",),
}
BLOCKING: dict[str, tuple[Any, ...]] = {
    "blpop": ("BLPOP", "absent", 0),
    "brpop": ("BRPOP", "absent", 0),
    "brpoplpush": ("BRPOPLPUSH", "absent", "other", 0),
    "blmove": ("BLMOVE", "absent", "other", "LEFT", "LEFT", 0),
    "blmpop": ("BLMPOP", 0, 1, "absent", "LEFT"),
    "bzpopmin": ("BZPOPMIN", "absent", 0),
    "bzpopmax": ("BZPOPMAX", "absent", 0),
    "bzmpop": ("BZMPOP", 0, 1, "absent", "MIN"),
    "xread block": ("XREAD", "BLOCK", 0, "STREAMS", "absent", "$"),
    "xread count block": ("XREAD", "COUNT", 1, "BLOCK", 0, "STREAMS", "absent", "$"),
    "wait": ("WAIT", 1, 0),
}


def spellings(command: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The same command in the ways a caller may write it."""
    words = [*str(command[0]).split(), *command[1:]]
    split = (*words,)
    name = str(command[0])
    written = [
        command,
        split,
        (name.lower(), *command[1:]),
        (name.title().encode(), *command[1:]),
        (name.encode(), *command[1:]),
        (words[0].lower().encode(), *words[1:]),
    ]
    if all(isinstance(word, str) for word in words):
        written.append((" ".join(words),))
        written.append(((" ".join(words)).lower().encode(),))
    return written


def state(rows: list[dict[str, str]], identity: str) -> dict[str, str]:
    """What of a connection must stay as it is."""
    (row,) = [row for row in rows if row["id"] == identity]
    return {
        name: row[name]
        for name in ("db", "name", "sub", "psub", "multi", "flags", "resp", "redir", "user")
        if name in row
    }


async def shared_id(client: aioredis.Redis) -> str:
    """CLIENT ID through the shared connection."""
    return str(await client.execute_command("CLIENT ID"))


async def _execute(client: aioredis.Redis, command: tuple[Any, ...]) -> Any:
    return await client.execute_command(*command)


@pytest.mark.parametrize("name", [*STATEFUL, *SILENT])
async def test_connection_state(server: Server, name: str) -> None:
    command = {**STATEFUL, **SILENT}[name]
    async with aioredis.Redis(**server.tcp, socket_timeout=60) as client:
        await client.set("k", "v")
        identity = await shared_id(client)
        before = state(server.clients(), identity)
        for written in spellings(command):
            # What the command itself gives (redis-py: an error, a reply, silence) is not
            # the matter here; that nothing else is touched, is.
            task = asyncio.create_task(outcome(_execute(client, written)))
            assert await within(client.get("k")) == b"v", written
            await asyncio.wait([task], timeout=0.05)
            assert await within(client.get("k")) == b"v", written
            await end([task])
            assert await shared_id(client) == identity, written
            assert state(server.clients(), identity) == before, written
            assert await client.incr("n") > 0
            assert server.cmd("EXISTS", "n") == 1, written
            stats = client.stats()
            # The shared one; a lease whose command was cancelled may never have come about.
            assert stats["connects"] - stats["leases_opened"] <= 1


@pytest.mark.parametrize("name", BLOCKING)
async def test_blocking(server: Server, name: str) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        await client.ping()
        identity = await shared_id(client)
        for written in spellings(BLOCKING[name]):
            waiting = asyncio.create_task(client.execute_command(*written))
            await asyncio.sleep(0)
            assert await within(client.ping()) is True, written
            await until(lambda: any("b" in row["flags"] for row in server.clients()))
            assert not waiting.done(), written
            assert [row["id"] for row in server.clients() if "b" in row["flags"]] != [identity]
            assert await within(client.ping()) is True, written
            await end([waiting])
            assert waiting.cancelled()
            await until(lambda: not any("b" in row["flags"] for row in server.clients()))
            assert await shared_id(client) == identity


async def test_a_key_that_is_called_like_a_command_is_a_key(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        for word in ("SUBSCRIBE", "multi", "BLOCK", "OFF"):
            assert await client.set(word, word) is True
            assert await client.get(word) == word.encode()
        assert client.stats()["connects"] == 1
        assert len(server.clients()) == 1


async def test_xread_without_block_is_an_ordinary_command(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.xadd("BLOCK", {"f": "v"}, id="1-1")
        identity = await shared_id(client)
        value = await client.xread({"BLOCK": 0})
        assert value
        assert await shared_id(client) == identity


@pytest.mark.parametrize("name", ["pipeline", "watch", "pubsub", "monitor"])
async def test_the_faces_of_redis_py_take_other_connections(server: Server, name: str) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", "v")
        identity = await shared_id(client)
        before = state(server.clients(), identity)

        async def check() -> None:
            assert state(server.clients(), identity) == before
            assert await within(client.get("k")) == b"v"

        if name == "pipeline":
            async with client.pipeline(transaction=True) as pipe:
                pipe.get("k")
                await check()
                assert await pipe.execute() == [b"v"]
        elif name == "watch":
            async with client.pipeline() as pipe:
                await pipe.watch("k")
                await check()
                assert await pipe.get("k") == b"v"
                await check()
        elif name == "pubsub":
            async with client.pubsub() as pubsub:
                await pubsub.subscribe("c")
                await check()
        else:
            async with client.monitor():
                await check()
        await check()


async def test_a_script_that_selects_a_db_does_not_leak_it(server: Server) -> None:
    async with aioredis.Redis(**server.unix, db=2) as client:
        await client.eval("redis.call('select', 7) return redis.call('set', KEYS[1], 'x')", 1, "k")
        await client.set("after", "v")
        assert server.cmd("GET", "after", db=2) == "v"
