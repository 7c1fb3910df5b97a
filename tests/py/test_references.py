"""No path of a command keeps memory: blocks allocated after many rounds are those of before.

`sys.getallocatedblocks()` counts what Python's allocator has handed out, so a reference
that one path forgets to drop shows as a block a round.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
from driving import outcome, outcomes
from proxy import Proxy
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import DataError
from servers import Server

ROUNDS = 500

Path = Callable[[aioredis.Redis], Awaitable[Any]]


async def _cancelled(client: aioredis.Redis) -> None:
    call = client.get("k")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def _cancelled_task(client: aioredis.Redis) -> None:
    task = asyncio.create_task(client.get("k"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _never_started(client: aioredis.Redis) -> None:
    task = asyncio.create_task(client.get("k"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _un_awaited(client: aioredis.Redis) -> None:
    client.get("k")
    await client.ping()


async def _several_callbacks(client: aioredis.Redis) -> None:
    call = client.get("k")
    for _ in range(3):
        call.add_done_callback(lambda _: None)
    call.remove_done_callback(len)
    await call


async def _cycle(client: aioredis.Redis) -> None:
    call = client.get("k")
    call.add_done_callback(lambda _, call=call: call.result())
    await call


async def _looked_at(client: aioredis.Redis) -> None:
    call = client.get("k")
    repr(call)
    await call
    repr(call), call.result(), call.exception(), call._callbacks


async def _execute(client: aioredis.Redis, *args: Any) -> Any:
    return await client.execute_command(*args)


async def _wrong_argument(client: aioredis.Redis) -> None:
    assert isinstance(await outcome(_execute(client, "SET", "k", object())), DataError)


async def _half_encoded(client: aioredis.Redis) -> None:
    value = await outcome(_execute(client, "MSET", "a", b"x" * 5000, "b", "\ud800"))
    assert isinstance(value, DataError)


async def _no_command(client: aioredis.Redis) -> None:
    assert isinstance(await outcome(_execute(client)), Exception)


PATHS: dict[str, Path] = {
    "get": lambda client: client.get("k"),
    "get of nothing": lambda client: client.get("absent"),
    "set": lambda client: client.set("s", 1.5),
    "large": lambda client: client.get("large"),
    "status": lambda client: client.execute_command("SET", "s", "x"),
    "int": lambda client: client.incr("n"),
    "list": lambda client: client.lrange("l", 0, -1),
    "hash": lambda client: client.hgetall("h"),
    "set of members": lambda client: client.smembers("m"),
    "scores": lambda client: client.zrange("z", 0, -1, withscores=True),
    "nested": lambda client: client.eval("return {1,{2,{'x',{}}},false}", 0),
    "error inside": lambda client: client.eval("return {redis.error_reply('ERR x')}", 0),
    "big number": lambda client: client.execute_command("DEBUG", "PROTOCOL", "bignum"),
    "verbatim": lambda client: client.execute_command("DEBUG", "PROTOCOL", "verbatim"),
    "double": lambda client: client.execute_command("DEBUG", "PROTOCOL", "double"),
    "map": lambda client: client.execute_command("DEBUG", "PROTOCOL", "map"),
    "set reply": lambda client: client.execute_command("DEBUG", "PROTOCOL", "set"),
    "true": lambda client: client.execute_command("DEBUG", "PROTOCOL", "true"),
    "attribute": lambda client: client.execute_command("DEBUG", "PROTOCOL", "attrib"),
    "error": lambda client: outcome(client.execute_command("NOSUCH")),
    "empty response": lambda client: client.execute_command("GET", "l", **{EMPTY_RESPONSE: 7}),
    "never decode": lambda client: client.execute_command("GET", "k", **{NEVER_DECODE: []}),
    "options": lambda client: client.execute_command("GET", "k", target_nodes="x", keys=["k"]),
    "wrong argument": _wrong_argument,
    "half encoded": _half_encoded,
    "no command": _no_command,
    "cancelled": _cancelled,
    "cancelled task": _cancelled_task,
    "never started": _never_started,
    "un-awaited": _un_awaited,
    "several callbacks": _several_callbacks,
    "cycle": _cycle,
    "looked at": _looked_at,
    "task": lambda client: asyncio.create_task(client.get("k")),
    "gather": lambda client: asyncio.gather(client.get("k"), client.get("l2")),
    "wait_for": lambda client: asyncio.wait_for(client.get("k"), 20),
    "shield": lambda client: asyncio.shield(client.get("k")),
    "one by one word": lambda client: client.execute_command("CONFIG GET", "maxclients"),
    "bytes name": lambda client: client.execute_command(b"get", b"k"),
}


async def least_grown(path: Callable[[], Awaitable[object]], rounds: int, few: int) -> int:
    """The blocks that a series of rounds leaves, of up to twelve series until these are few.

    A leak shows in all of them. One series alone proves little: the interpreter's caches
    and free lists count as allocated, and they grow for a while, or when this process has
    to wait for the processor at a bad moment.
    """
    for series in range(13):
        before = sys.getallocatedblocks()
        for _ in range(rounds):
            await path()
        gc.collect()
        left = sys.getallocatedblocks() - before
        if series and left < few:
            break
    return left


async def grown(client: aioredis.Redis, path: Path) -> int:
    """The fewest blocks that ROUNDS rounds of path leave, with all of their replies home."""

    async def rounds() -> None:
        for _ in range(ROUNDS):
            await path(client)
        await client.ping()

    return await least_grown(rounds, 1, ROUNDS // 10)


async def fill(client: aioredis.Redis) -> None:
    await client.mset({"k": "v", "l2": "w", "large": "x" * 100_000})
    await client.rpush("l", *range(30))
    await client.hset("h", mapping={f"f{i}": i for i in range(30)})
    await client.sadd("m", *range(30))
    await client.zadd("z", {str(i): i for i in range(30)})


@pytest.mark.parametrize("name", PATHS)
async def test_a_round_leaves_no_block(server: Server, name: str) -> None:
    async with aioredis.Redis(**server.unix, protocol=3) as client:
        await fill(client)
        assert await grown(client, PATHS[name]) < ROUNDS // 10


@pytest.mark.parametrize("name", ["get", "list", "hash", "nested", "verbatim", "map"])
async def test_a_round_leaves_no_block_when_decoding(server: Server, name: str) -> None:
    async with aioredis.Redis(**server.unix, protocol=3, decode_responses=True) as client:
        await fill(client)
        assert await grown(client, PATHS[name]) < ROUNDS // 10


async def test_replies_that_cannot_be_decoded(server: Server) -> None:
    async with aioredis.Redis(**server.unix, decode_responses=True) as client:
        await client.set("bad", b"\xff")
        await client.rpush("bads", "good", b"\xff")
        assert await grown(client, lambda c: outcome(c.get("bad"))) < ROUNDS // 10
        assert await grown(client, lambda c: outcome(c.lrange("bads", 0, -1))) < ROUNDS // 10


@pytest.mark.parametrize("kind", ["value", "raises", "later", "raises later"])
async def test_response_callbacks(server: Server, kind: str) -> None:
    def callback(response: Any, **options: Any) -> Any:
        if kind == "raises":
            raise LookupError(response)
        return (response,)

    async def later(response: Any, **options: Any) -> Any:
        return callback(response) if kind == "later" else [][1]

    async with aioredis.Redis(**server.unix) as client:
        client.set_response_callback("GET", later if "later" in kind else callback)
        assert await grown(client, lambda c: outcome(c.get("k"))) < ROUNDS // 10


async def test_many_at_once(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await fill(client)

        async def path(c: aioredis.Redis) -> None:
            await outcomes([c.get("k") for _ in range(20)])

        assert await grown(client, path) < ROUNDS // 10


def test_loops_that_come_and_go(server: Server) -> None:
    client = aioredis.Redis(**server.unix)

    async def use() -> None:
        for _ in range(10):
            client.get("un-awaited")
        await client.get("k")

    async def loop() -> None:
        await asyncio.to_thread(asyncio.run, use())

    assert asyncio.run(least_grown(loop, 40, 40)) < 40
    asyncio.run(client.aclose())


async def test_clients_and_pools_that_come_and_go(server: Server) -> None:
    async def use() -> None:
        async with offloop.Pool(workers=2) as pool:
            for options in ({"pool": pool}, {"pool": pool, "protocol": 2}, {"workers": 1}):
                async with aioredis.Redis(**server.unix, **options) as client:
                    await client.ping()

    assert await least_grown(use, 40, 40) < 40


async def test_connections_that_are_lost(server: Server, proxy: Proxy) -> None:
    """The commands of a round are sent, answered into the void, and lost with their path."""
    async with aioredis.Redis(
        host="127.0.0.1", port=proxy.port, socket_timeout=30, retry=None
    ) as client:
        failed = 0

        async def path() -> None:
            nonlocal failed
            while await outcome(client.ping()) is not True:
                pass
            proxy.silence(True)
            calls = [client.get("k") for _ in range(30)]
            await asyncio.sleep(0)
            proxy.cut()
            proxy.silence(False)
            values = await outcomes(calls)
            failed += sum(isinstance(value, aioredis.ConnectionError) for value in values)

        # Free lists of the interpreter count as allocated: less than one a command.
        assert await least_grown(path, 40, 400) < 400
        assert failed > 800


async def test_cancelled_while_its_reply_is_still_worked_on(server: Server) -> None:
    """The command is home, its job another's by now: there is nothing to take back."""
    waiting = asyncio.Event()

    async def slow(response: Any, **options: Any) -> Any:
        await waiting.wait()

    async with aioredis.Redis(**server.unix) as client:
        client.set_response_callback("GET", slow)
        calls = [client.get("k") for _ in range(10)]
        await client.ping()
        others = [client.echo(str(n)) for n in range(10)]  # these have the jobs now
        for call in calls:
            call.cancel()
        assert [bytes(reply) for reply in await asyncio.gather(*others)] == [
            b"%d" % n for n in range(10)
        ]
        await asyncio.gather(*calls, return_exceptions=True)
        for _ in range(10):
            await asyncio.sleep(0)
        del call
        alone = sys.getrefcount([object()].pop())
        while calls:
            count = sys.getrefcount(calls.pop())
            assert count == alone
