"""`stats()`: every key is there, and the numbers are right."""

from __future__ import annotations

import offloop
import offloop.redis as aioredis
from driving import TooSlow, in_time, outcomes, patiently, settle, until
from fakeserver import FakeServer, Peer, bulk
from redis.exceptions import ResponseError, TimeoutError
from servers import Server

STATS = {
    "workers", "commands", "replies", "batches", "mean_batch", "wakeups", "eventfd_writes",
    "queue_depth", "queue_high_water", "connections", "connects", "bytes_in", "bytes_out",
    "errors", "timeouts", "cancelled", "dropped_replies", "retained_unsent", "large_reads_aside",
    "pool",
}  # fmt: skip
POOL_STATS = {
    "workers", "started", "jobs", "commands", "wakeups", "eventfd_writes", "queue_limit",
    "queue_depth", "queue_high_water", "per_worker", "loops", "busy_polls", "busy_poll_hits",
}  # fmt: skip
WORKER_STATS = {
    "name",
    "jobs",
    "commands",
    "batches",
    "wakeups",
    "busy_polls",
    "busy_poll_hits",
}


async def test_stats_have_every_key(server: Server) -> None:
    async with aioredis.Redis(**server.unix, workers=2) as client:
        assert set(client.stats()) >= STATS
        await client.ping()
        stats = client.stats()
        assert set(stats) >= STATS
        assert set(stats["pool"]) >= POOL_STATS
        for worker in stats["pool"]["per_worker"]:
            assert set(worker) >= WORKER_STATS
            assert worker["name"].startswith("offloop-w")


async def test_stats_count(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        before = client.stats()
        values = await outcomes([client.set(f"k{i}", "x" * 100) for i in range(1000)])
        assert values == [True] * 1000
        after = client.stats()
        assert after["commands"] - before["commands"] == 1000
        assert after["replies"] - before["replies"] == 1000
        assert after["bytes_out"] - before["bytes_out"] >= 100_000
        assert after["bytes_in"] - before["bytes_in"] == 1000 * len("+OK\r\n")
        assert after["batches"] > before["batches"]
        assert 1 <= after["mean_batch"] <= 1000
        assert after["queue_depth"] == 0
        assert (after["connections"], after["connects"]) == (1, 1)
        assert after["errors"] == before["errors"]
        assert await client.get("k0") == b"x" * 100
        await outcomes([client.lpush("k1", "wrong type")])
        assert client.stats()["pool"]["queue_limit"] == 65536


async def test_many_commands_share_wakeups(server: Server) -> None:
    """One eventfd write and one batch serve many commands that are sent together."""
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        before = client.stats()
        for _ in range(20):
            await outcomes([client.get("k") for _ in range(500)])
        after = client.stats()
        assert after["replies"] - before["replies"] == 10_000
        assert after["pool"]["eventfd_writes"] - before["pool"]["eventfd_writes"] < 5_000
        assert after["batches"] - before["batches"] < 5_000
        assert after["connects"] == 1


async def test_stats_after_the_end(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    await client.ping()
    await client.aclose()
    stats = client.stats()
    assert stats["connections"] == 0
    assert stats["queue_depth"] == 0


async def test_errors_of_the_server_are_counted_as_replies(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", "v")
        before = client.stats()
        values = await outcomes([client.lpush("k", "x") for _ in range(10)])
        assert all(isinstance(value, ResponseError) for value in values)
        after = client.stats()
        assert after["replies"] - before["replies"] == 10
        assert after["connects"] == before["connects"] == 1


async def test_timeouts_and_cancels_are_counted() -> None:
    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"ECHO":
            peer.send(bulk(args[1]))

    async def attempt(secs: float) -> None:
        with FakeServer(script) as fake:
            async with aioredis.Redis(
                host="127.0.0.1", port=fake.port, socket_timeout=secs, retry=None
            ) as client:
                await in_time(client.echo("warm"))
                call = client.get("never answered")
                await until(lambda: call.done() or len(fake.commands(b"GET")) == 1)
                if not call.cancel():
                    raise TooSlow
                values = await outcomes([client.get("silence") for _ in range(3)])
                assert all(isinstance(value, TimeoutError) for value in values)
                stats = client.stats()
                assert stats["cancelled"] == 1
                assert stats["timeouts"] >= 3

    await patiently(attempt, 0.3)


async def test_a_cancelled_calls_reply_is_counted_as_dropped(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        await client.ping()
        own_server.pause()
        calls = [client.incr("n") for _ in range(10)]
        sent = client.stats()
        for call in calls:
            assert call.cancel()
        own_server.resume()
        assert await client.ping() is True
        stats = client.stats()
        assert stats["cancelled"] - sent["cancelled"] == 10
        # Whatever had been sent was answered and dropped; the rest was never sent.
        assert stats["dropped_replies"] == own_server.calls("incrby")
        assert stats["connects"] == 1


async def test_each_workers_share_adds_up(server: Server) -> None:
    async with offloop.Pool(workers=3) as pool:
        clients = [aioredis.Redis(**server.unix, pool=pool, db=db) for db in range(6)]
        for client in clients:
            await client.ping()
        before = pool.stats()
        for _ in range(10):
            await outcomes([client.incr("n") for client in clients for _ in range(50)])
        after = pool.stats()
        assert after["commands"] - before["commands"] == 3000
        for name in ("jobs", "commands", "wakeups"):
            assert sum(worker[name] for worker in after["per_worker"]) <= after[name]
        shares = sum(worker["commands"] for worker in after["per_worker"])
        assert shares + after["loop_commands"] == after["commands"]
        assert len({worker["name"] for worker in after["per_worker"]}) == 3
        assert after["loops"] == 1
        for client in clients:
            await client.aclose()
    assert not settle(server.clients)
