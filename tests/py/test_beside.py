"""What goes redis-py's own way (pipelines, pub/sub, blocking commands, transactions,
locks, scans, scripts) works while the shared connection is busy with other commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import end, outcomes, until, within
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError, WatchError
from servers import Server


@asynccontextmanager
async def busy(server: Server, **options: Any) -> AsyncIterator[aioredis.Redis]:
    """A client whose shared connection never rests; every reply of it is checked."""
    async with aioredis.Redis(**server.tcp, **options) as client:
        await client.set("busy", "0")
        going = True
        rounds = 0

        async def storm(number: int) -> None:
            nonlocal rounds
            while going:
                value = await client.echo(f"{number}:{rounds}")
                text = value if isinstance(value, str) else value.decode()
                assert text.split(":")[0] == str(number)
                rounds += 1

        tasks = [asyncio.create_task(storm(number)) for number in range(8)]
        try:
            yield client
            before = rounds
            await asyncio.sleep(0)
            while rounds < before + 8:
                await asyncio.sleep(0.001)
        finally:
            going = False
            await within(asyncio.gather(*tasks))


async def test_pipelines(server: Server) -> None:
    async with busy(server) as client:
        for transaction in (True, False):
            pipe = client.pipeline(transaction=transaction)
            assert isinstance(pipe, Pipeline)
            assert pipe.set("a", 1).incr("a").get("a") is pipe
            assert await pipe.execute() == [True, 2, b"2"]
            async with client.pipeline(transaction) as pipe:
                pipe.lpush("a", "wrong").get("a")
                with pytest.raises(ResponseError):
                    await pipe.execute()
                pipe.lpush("a", "wrong").get("a")
                values = await pipe.execute(raise_on_error=False)
                assert isinstance(values[0], ResponseError)
                assert values[1] == b"2"
            assert await client.get("a") == b"2"
            assert await client.delete("a") == 1


async def test_a_large_pipeline(server: Server) -> None:
    async with busy(server) as client:
        pipe = client.pipeline(transaction=False)
        for number in range(10_000):
            pipe.set(f"k{number}", number)
        assert await pipe.execute() == [True] * 10_000
        assert await client.dbsize() == 10_001


async def test_a_pipeline_built_by_hand(server: Server) -> None:
    async with busy(server) as client:
        pipe = Pipeline(client.connection_pool, client.response_callbacks, True, None)
        pipe.hset("h", "f", "v").hgetall("h")
        assert await pipe.execute() == [1, {b"f": b"v"}]


async def test_watch_and_transaction(server: Server) -> None:
    async with busy(server) as client:
        await client.set("n", 0)

        async def add(pipe: Any) -> None:
            value = int(await pipe.get("n"))
            pipe.multi()
            pipe.set("n", value + 1)

        await outcomes([client.transaction(add, "n") for _ in range(10)])
        assert await client.get("n") == b"10"

        async with client.pipeline() as pipe:
            await pipe.watch("n")
            await client.set("n", "changed")
            pipe.multi()
            pipe.set("n", "never")
            with pytest.raises(WatchError):
                await pipe.execute()
        async with client.pipeline() as pipe:
            await pipe.watch("n")
            pipe.multi()
            pipe.set("n", "left behind")
            # The block is left with a WATCH and a queued command.
        assert await client.get("n") == b"changed"


async def test_pubsub(server: Server) -> None:
    async with busy(server) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        await pubsub.psubscribe("pat*")
        seen = []

        async def listen() -> None:
            async for message in pubsub.listen():
                if message["type"] in ("message", "pmessage"):
                    seen.append((message["channel"], message["data"]))
                if len(seen) == 100:
                    return

        task = asyncio.create_task(listen())
        while await client.publish("channel", "ready?") == 0:
            await asyncio.sleep(0.001)
        await outcomes([client.publish("pattern", str(i)) for i in range(100)])
        await within(task)
        assert {channel for channel, _ in seen} <= {b"channel", b"pattern"}
        assert [data for channel, data in seen if channel == b"pattern"] == [
            str(i).encode() for i in range(len(seen) - sum(c == b"channel" for c, _ in seen))
        ]


async def test_blocking_pops(server: Server) -> None:
    async with busy(server) as client:
        waiting = [
            asyncio.create_task(client.blpop("q", timeout=20)),
            asyncio.create_task(client.brpop(["q"], timeout=20)),
            asyncio.create_task(client.blmove("q", "r", timeout=20)),
            asyncio.create_task(client.bzpopmin("z", timeout=20)),
            asyncio.create_task(client.xread({"s": "$"}, block=20_000)),
        ]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        # Nothing waits behind them.
        assert await within(client.ping()) is True
        while sum(row["cmd"].startswith(("bl", "br", "bz", "xread")) for row in
                  server.clients()) < 5:  # fmt: skip
            await asyncio.sleep(0.01)
        await client.rpush("q", "1", "2", "3")
        await client.zadd("z", {"m": 1})
        await client.xadd("s", {"f": "v"})
        values = await outcomes(waiting)
        assert not any(isinstance(value, BaseException) for value in values)
        assert {value[1] for value in values[:2]} | {values[2]} == {b"1", b"2", b"3"}
        assert await client.blpop("empty", timeout=0.05) is None


async def test_blocking_pops_cancelled(server: Server) -> None:
    async with busy(server) as client:
        for _ in range(3):
            waiting = [asyncio.create_task(client.blpop(f"q{i}", timeout=0)) for i in range(10)]
            await until(lambda: sum("b" in row["flags"] for row in server.clients()) == 10)
            await end(waiting)
            assert all(task.cancelled() for task in waiting)
            await until(lambda: not any("b" in row["flags"] for row in server.clients()))
        # None of the cancelled ones may eat what comes now.
        for number in range(10):
            await client.rpush(f"q{number}", "kept")
        await asyncio.sleep(0.1)
        assert [await client.llen(f"q{i}") for i in range(10)] == [1] * 10


async def test_wait_and_monitor(server: Server) -> None:
    async with busy(server) as client:
        assert await client.wait(0, 10) == 0
        async with client.monitor() as monitor:
            call = asyncio.create_task(client.get("seen-by-monitor"))
            while True:
                command = await within(monitor.next_command())
                if "seen-by-monitor" in command["command"]:
                    break
            await call


async def test_locks(server: Server) -> None:
    async with busy(server) as client:
        inside = 0

        async def guarded() -> None:
            nonlocal inside
            async with client.lock("lock", timeout=20, sleep=0.001):
                inside += 1
                assert inside == 1
                await client.ping()
                inside -= 1

        assert await outcomes([guarded() for _ in range(10)]) == [None] * 10
        lock = client.lock("lock", timeout=20)
        assert await lock.acquire()
        assert not await client.lock("lock", blocking=False).acquire()
        assert await lock.extend(5)
        await lock.release()


async def test_scan_iter(server: Server) -> None:
    async with busy(server, decode_responses=True) as client:
        await client.mset({f"k{i}": str(i) for i in range(1000)})
        keys = [key async for key in client.scan_iter("k*", count=50)]
        assert set(keys) == {f"k{i}" for i in range(1000)}
        await client.sadd("set", *range(500))
        assert {item async for item in client.sscan_iter("set")} == set(map(str, range(500)))
        await client.hset("h", mapping={str(i): i for i in range(500)})
        assert len([item async for item in client.hscan_iter("h")]) == 500
        await client.zadd("z", {str(i): i for i in range(500)})
        assert len([item async for item in client.zscan_iter("z")]) == 500


async def test_scripts(server: Server) -> None:
    async with busy(server) as client:
        script = client.register_script("return {KEYS[1], ARGV[1]}")
        assert await script(keys=["k"], args=["a"]) == [b"k", b"a"]
        server.cmd("SCRIPT", "FLUSH")
        # NOSCRIPT: loaded again and repeated.
        assert await script(keys=["k"], args=["b"]) == [b"k", b"b"]
        values = await outcomes([script(keys=["k"], args=[i]) for i in range(100)])
        assert values == [[b"k", str(i).encode()] for i in range(100)]
        pipe = client.pipeline()
        await script(keys=["k"], args=["in a pipeline"], client=pipe)
        assert await pipe.execute() == [[b"k", b"in a pipeline"]]


async def test_single_connection_client(server: Server) -> None:
    async with busy(server) as client:
        async with client.client() as single:
            identity = await single.client_id()
            await single.execute_command("SELECT", 4)
            await single.set("k", "in db 4")
            assert await single.client_id() == identity
        assert await client.get("k") is None
        assert server.cmd("GET", "k", db=4) == "in db 4"


async def test_bitfield(server: Server) -> None:
    async with busy(server) as client:
        assert await client.bitfield("b").set("u8", 0, 255).get("u8", 0).execute() == [0, 255]
