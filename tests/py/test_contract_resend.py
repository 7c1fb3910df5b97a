"""At most once: a command is sent again only if none of its bytes were written.

Every INCR here has a key of its own, so the server's data say of each call how often
it ran: an acknowledged one exactly once, one that failed at most once, one that failed
without "may have run" never.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import outcome, patiently, until, until_good, was_sent, within
from fakeserver import Close, FakeServer, Peer, bulk
from proxy import Proxy
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from servers import Server


class Ledger:
    """Makes INCRs with unique keys and checks afterwards what the server did of them."""

    def __init__(self, client: aioredis.Redis) -> None:
        self.client = client
        self.results: dict[str, Any] = {}
        self.going = True

    async def storm(self, number: int) -> None:
        count = 0
        while self.going:
            key = f"{number}:{count}"
            count += 1
            self.results[key] = await outcome(self.client.incr(key))
            if isinstance(self.results[key], BaseException):
                await asyncio.sleep(0.001)

    @property
    def acknowledged(self) -> int:
        return sum(result == 1 for result in self.results.values())

    @property
    def failed(self) -> int:
        return len(self.results) - self.acknowledged

    def check(self, server: Server) -> None:
        keys = list(self.results)
        counts = []
        for start in range(0, len(keys), 1000):
            counts += server.cmd("MGET", *keys[start : start + 1000])
        for key, count in zip(keys, counts, strict=True):
            result = self.results[key]
            if isinstance(result, BaseException):
                assert isinstance(result, (ConnectionError, TimeoutError)), (key, result)
                assert count in (None, "1"), f"{key} ran {count} times: {result}"
                if "may have run" not in str(result):
                    assert count is None, f"{key} ran although: {result}"
            else:
                assert (result, count) == (1, "1"), f"{key}: {result}, on the server {count}"


@pytest.mark.parametrize("workers", [1, 4])
async def test_connections_cut_by_a_proxy(server: Server, workers: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(
            host="127.0.0.1", port=proxy.port, workers=workers, socket_timeout=20
        ) as client:
            await client.ping()
            ledger = Ledger(client)
            proxy.cut_after(1, 4000, seed)
            proxy.cut()
            tasks = [asyncio.create_task(ledger.storm(i)) for i in range(100)]
            await until(lambda: proxy.stats()["cuts"] >= 60 and ledger.acknowledged > 2000)
            ledger.going = False
            await within(asyncio.gather(*tasks))
            proxy.no_cuts()
            assert ledger.failed > 0
            ledger.check(server)
            await recovered(client)


async def test_connections_killed_by_the_server(server: Server) -> None:
    async with aioredis.Redis(**server.unix, socket_timeout=20) as client:
        ledger = Ledger(client)
        tasks = [asyncio.create_task(ledger.storm(i)) for i in range(100)]
        loop = asyncio.get_running_loop()
        for _ in range(60):
            goal = ledger.acknowledged + 10
            await loop.run_in_executor(None, server.kill_clients)
            await until(lambda: ledger.acknowledged >= goal)  # noqa: B023
        ledger.going = False
        await within(asyncio.gather(*tasks))
        assert ledger.acknowledged > 100
        ledger.check(server)
        await recovered(client)
        assert client.stats()["connects"] > 10


async def recovered(client: aioredis.Redis) -> None:
    """After at most some failures, which the end of the last connection explains."""
    for _ in range(5):
        if await within(outcome(client.ping())) is True:
            return
    raise AssertionError("the client did not recover")


async def test_the_server_is_killed_under_load(own_server: Server) -> None:
    """kill -9: every acknowledged INCR is there, none ran twice, the client goes on."""
    own_server.options |= {"appendonly": "yes", "appendfsync": "always"}
    own_server.stop()
    own_server.start()
    async with aioredis.Redis(**own_server.tcp, socket_timeout=10) as client:
        ledger = Ledger(client)
        tasks = [asyncio.create_task(ledger.storm(i)) for i in range(50)]
        loop = asyncio.get_running_loop()
        for _ in range(3):
            goal = ledger.acknowledged + 300
            await until(lambda: ledger.acknowledged >= goal)  # noqa: B023
            await loop.run_in_executor(None, own_server.kill)
            await until(lambda: ledger.failed > 0)
            await loop.run_in_executor(None, own_server.start)
        goal = ledger.acknowledged + 300
        await until(lambda: ledger.acknowledged >= goal)
        ledger.going = False
        await within(asyncio.gather(*tasks))
        ledger.check(own_server)


async def test_sent_once_to_a_server_that_takes_it_and_hangs_up() -> None:
    """The bytes arrived, no reply came: this command is never seen a second time."""

    def script(peer: Peer, args: list[bytes]) -> None:
        if args[0] == b"ECHO":
            peer.send(bulk(args[1]))
        else:
            raise Close

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            await client.echo("warm")
            for number in range(10):
                with pytest.raises(ConnectionError, match="may have run"):
                    await within(client.execute_command("INCR", f"k{number}"))
            await recovered_echo(client)
            names = [args[1] for args in fake.commands(b"INCR")]
            assert sorted(names) == sorted({f"k{i}".encode() for i in range(10)})


async def recovered_echo(client: aioredis.Redis) -> None:
    for _ in range(5):
        if await within(outcome(client.echo("again"))) == b"again":
            return
    raise AssertionError("the client did not recover")


async def test_what_was_not_written_goes_over_the_next_connection(server: Server) -> None:
    """The socket is full when the connection breaks: the rest is kept and sent anew."""
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(host="127.0.0.1", port=proxy.port, socket_timeout=30) as client:
            await client.ping()
            proxy.deafen(True)
            large = b"x" * 1_000_000
            filling = [asyncio.ensure_future(client.set(f"f{i}", large)) for i in range(30)]
            await until(lambda: client.stats()["bytes_out"] > 1_000_000)
            await asyncio.sleep(0.2)
            queued = [client.incr(f"q{i}") for i in range(100)]
            await asyncio.sleep(0.1)
            proxy.cut()
            proxy.deafen(False)
            values = await within(asyncio.gather(*queued, return_exceptions=True))
            assert values == [1] * 100
            results = await within(asyncio.gather(*filling, return_exceptions=True))
            assert isinstance(results[0], ConnectionError)
            assert "may have run" in str(results[0])
            assert results[-1] is True
            assert client.stats()["retained_unsent"] >= 100
            assert server.cmd("MGET", *[f"q{i}" for i in range(100)]) == ["1"] * 100


async def test_a_part_of_a_command_counts_as_sent(server: Server) -> None:
    """A large command cut in its middle: the server never saw it whole, yet it is not resent."""
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(host="127.0.0.1", port=proxy.port, socket_timeout=30) as client:
            await client.ping()
            proxy.deafen(True)
            call = client.set("large", b"x" * 50_000_000)
            await until(lambda: client.stats()["bytes_out"] > 1_000_000)
            assert not call.done()
            proxy.cut()
            proxy.deafen(False)
            with pytest.raises(ConnectionError, match="may have run"):
                await within(call)
            await recovered(client)
            assert server.cmd("EXISTS", "large") == 0
            assert server.calls("set") == 0


async def test_errors_of_the_server_are_not_retried(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", "text")
        before = server.calls("incrby")
        with pytest.raises(RedisError):
            await client.incr("k")
        assert server.calls("incrby") == before + 1


async def test_a_time_out_is_not_retried(own_server: Server) -> None:
    async def attempt(secs: float) -> None:
        async with aioredis.Redis(**own_server.unix, socket_timeout=secs) as client:
            await until_good(client)
            own_server.pause()
            value = await within(outcome(client.incr("n")))
            own_server.resume()
            assert isinstance(was_sent(value), TimeoutError)
            await until(lambda: own_server.cmd("EXISTS", "n"))
            await until_good(client)
            assert own_server.cmd("GET", "n") == "1"

    await patiently(attempt, 0.2)
