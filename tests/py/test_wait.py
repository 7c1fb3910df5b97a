"""WAIT and WAITAOF tell of the program's writes, though these went over another connection."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import offloop.redis as aioredis
import pytest
import redis.asyncio as reference
from driving import settle
from redis.exceptions import NoPermissionError, ResponseError
from servers import Server


class Pair:
    """A server and its replica, which can be made to lag behind."""

    def __init__(self, main: Server, replica: Server) -> None:
        self.main, self._replica = main, replica

    def lag(self, lags: bool) -> None:
        process = self._replica.process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP if lags else signal.SIGCONT)

    def is_ready(self) -> bool:
        return "state=online" in str(self.main.cmd("INFO", "replication"))


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    with (
        Server(repl_diskless_sync_delay="0", appendonly="yes") as main,
        Server(replicaof=f"127.0.0.1 {main.port}") as replica,
    ):
        yield Pair(main, replica)


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    assert not settle(lambda: not _pair.is_ready()), "the replica does not come"
    return _pair


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_replica_that_lags(pair: Pair, protocol: int) -> None:
    async with aioredis.Redis(**pair.main.tcp, protocol=protocol, socket_timeout=60) as client:
        await client.set("k", "v")
        assert await client.wait(1, 50_000) == 1
        pair.lag(True)
        try:
            await client.set("k", "w")
            assert await client.wait(1, 100) == 0
            assert await client.execute_command("wait", 1, 100) == 0
            assert await client.get("k") == b"w"
        finally:
            pair.lag(False)
        assert await client.wait(1, 50_000) == 1
        stats = client.stats()
        assert stats["connects"] - stats["leases_opened"] <= 1


async def test_as_redis_asyncio(pair: Pair) -> None:
    for module in (reference, aioredis):
        async with module.Redis(**pair.main.tcp) as client:
            with pytest.raises(ResponseError, match="wrong number of arguments"):
                await client.execute_command("WAIT", 1)
            with pytest.raises(ResponseError, match="not an integer"):
                await client.execute_command("WAIT", 1, "soon")
            async with client.pipeline(transaction=False) as pipe:
                pipe.set("k", "v").wait(1, 50_000)
                assert await pipe.execute() == [True, 1]


async def test_the_disk(pair: Pair) -> None:
    async with aioredis.Redis(**pair.main.tcp, socket_timeout=60) as client:
        version = str((await client.info("server"))["redis_version"])
        await client.set("k", "v")
        if tuple(map(int, version.split(".")[:2])) < (7, 2):
            with pytest.raises(ResponseError, match="unknown command"):
                await client.waitaof(1, 0, 50_000)
        else:
            assert await client.waitaof(1, 0, 50_000) == [1, 0]


async def test_nobody_hears_of_it(pair: Pair) -> None:
    async with (
        aioredis.Redis(**pair.main.tcp, socket_timeout=60) as client,
        client.pubsub() as pubsub,
    ):
        await pubsub.psubscribe("*")
        assert await pubsub.get_message(timeout=60) is not None
        assert await client.wait(1, 50_000) == 1
        await client.publish("c", "the first")
        message = await pubsub.get_message(timeout=60)
        assert message is not None and message["data"] == b"the first"


async def test_a_user_who_may_not_write_there(pair: Pair) -> None:
    pair.main.cmd("ACL", "SETUSER", "plain", "on", ">secret", "~*", "+@all", "resetchannels")
    options = {**pair.main.tcp, "username": "plain", "password": "secret"}
    async with aioredis.Redis(**options) as client:
        with pytest.raises(NoPermissionError):
            await client.wait(1, 100)
