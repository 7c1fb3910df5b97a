"""The contract's lines for pipelines: contiguous, atomic or failed, sent at most once.

Every transaction here increments several counters. However it ends, the counters stand
at the same number, and what was acknowledged is there, once.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import (
    in_time,
    outcome,
    outcomes,
    patiently,
    until,
    until_good,
    was_sent,
    within,
)
from fakeserver import Close, FakeServer, Peer, bulk
from proxy import Proxy
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from servers import Server
from test_contract_cancel import Gate

KEYS = [f"together:{number}" for number in range(4)]


def counting(client: Any, *, transaction: bool = True) -> Any:
    """A pipeline that increments every counter."""
    pipe = client.pipeline(transaction=transaction)
    for key in KEYS:
        pipe.incr(key)
    return pipe


def counters(server: Server) -> list[int]:
    return [int(value or 0) for value in server.cmd("MGET", *KEYS)]


class Transactions:
    """A server's state for each connection: MULTI ... EXEC, and what came between."""

    def __init__(self) -> None:
        self.queues: dict[int, list[list[bytes]]] = {}
        self.stray: list[list[bytes]] = []
        self.executed = 0

    def __call__(self, peer: Peer, args: list[bytes]) -> None:
        name = args[0].upper()
        queue = self.queues.get(peer.number)
        if name == b"MULTI":
            assert queue is None
            self.queues[peer.number] = []
            peer.send(b"+OK\r\n")
        elif name == b"EXEC":
            assert queue is not None
            del self.queues[peer.number]
            self.executed += 1
            # Each transaction marks its commands with its own number.
            if len({words[1] for words in queue}) > 1:
                self.stray += queue
            peer.send(b"*%d\r\n" % len(queue) + b"".join(bulk(words[1]) for words in queue))
        elif queue is not None:
            queue.append(args)
            peer.send(b"+QUEUED\r\n")
        else:
            peer.send(bulk(args[1] if len(args) > 1 else b"PONG"))


# --- contiguous and atomic ---------------------------------------------------------------


async def test_nothing_comes_between_multi_and_exec() -> None:
    """Transactions, pipelines and single commands of many tasks, on one connection."""
    script = Transactions()
    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, protocol=2) as client:

            async def transact(number: int) -> None:
                for _ in range(20):
                    pipe = client.pipeline()
                    for _ in range(1 + number % 7):
                        pipe.echo(str(number))
                    assert await pipe.execute() == [str(number).encode()] * (1 + number % 7)

            async def ask(number: int) -> None:
                for _ in range(100):
                    assert await client.echo(f"s{number}") == f"s{number}".encode()

            async def plain(number: int) -> None:
                for _ in range(20):
                    pipe = client.pipeline(transaction=False).echo(f"p{number}").echo("q")
                    assert await pipe.execute() == [f"p{number}".encode(), b"q"]

            await outcomes_of(
                [work(number) for number in range(12) for work in (transact, ask, plain)]
            )
        assert script.stray == []
        assert script.executed == 12 * 20
        assert fake.connections == 1


async def outcomes_of(coroutines: list[Any]) -> None:
    for value in await outcomes(coroutines):
        if isinstance(value, BaseException):
            raise value


async def test_transactions_of_many_tasks_are_atomic(server: Server) -> None:
    """No reader, transactional itself, ever sees the counters apart."""
    async with aioredis.Redis(**server.unix) as client, aioredis.Redis(**server.tcp) as other:
        going = True
        apart: list[Any] = []

        async def read(reader: Any) -> int:
            seen = 0
            while going:
                values = await reader.pipeline().mget(KEYS).execute()
                seen += 1
                if len(set(values[0])) != 1:
                    apart.append(values)
            return seen

        readers = [asyncio.create_task(read(reader)) for reader in (client, other)]
        writers = [counting(client if i % 2 else other).execute() for i in range(500)]
        results = await within(asyncio.gather(*writers))
        going = False
        assert min(await asyncio.gather(*readers)) > 0
        assert apart == []
        assert all(len(set(values)) == 1 for values in results)
        assert sorted(values[0] for values in results) == list(range(1, 501))


# --- cancelled -----------------------------------------------------------------------------


@pytest.mark.parametrize("transaction", [False, True])
async def test_cancelled_before_it_is_sent_is_never_sent(transaction: bool) -> None:
    gate = Gate()
    with FakeServer(Transactions(), greeting=gate) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, protocol=2, client_name="makes-it-wait"
        ) as client:
            tasks = []
            for number in range(40):
                pipe = (
                    client.pipeline(transaction=transaction).echo(f"n{number}").echo(f"n{number}")
                )
                tasks.append(asyncio.create_task(pipe.execute()))
            await until(lambda: fake.connections == 1)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.sleep(0)
            gate.open.set()
            values = await outcomes(tasks)
            assert values[1::2] == [[f"n{i}".encode()] * 2 for i in range(1, 40, 2)]
            assert all(isinstance(value, asyncio.CancelledError) for value in values[::2])
            sent = [args[1].decode() for args in fake.commands(b"ECHO")]
            assert sent == [f"n{i}" for i in range(1, 40, 2) for _ in range(2)]
            assert len(fake.commands(b"MULTI")) == len(fake.commands(b"EXEC")) == 20 * transaction
            assert client.stats()["cancelled"] == 20


async def test_cancelled_after_it_was_sent_runs_and_its_replies_are_dropped(
    own_server: Server,
) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        await client.ping()
        before = client.stats()["bytes_out"]
        await counting(client).execute()
        each = client.stats()["bytes_out"] - before
        own_server.pause()
        tasks = [asyncio.create_task(counting(client).execute()) for _ in range(30)]
        await until(lambda: client.stats()["bytes_out"] == before + 31 * each)
        for task in tasks:
            task.cancel()
        values = await within(asyncio.gather(*tasks, return_exceptions=True))
        assert all(isinstance(value, asyncio.CancelledError) for value in values)
        following = client.echo("following")
        own_server.resume()
        assert await within(following) == b"following"
        assert await counting(client).execute() == [32] * len(KEYS)
        assert client.stats()["connects"] == 1
        assert client.stats()["dropped_replies"] == 30 * (len(KEYS) + 2)


async def test_cancelled_when_it_is_partly_out_is_finished(server: Server) -> None:
    """The proxy stops reading in its middle; no transaction stays open at the server."""
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(host="127.0.0.1", port=proxy.port, socket_timeout=40) as client:
            await client.ping()
            proxy.deafen(True)
            pipe = counting(client)
            for number in range(40):
                pipe.set(f"large:{number}", b"x" * 1_000_000)
            task = asyncio.create_task(pipe.execute())
            await until(lambda: client.stats()["bytes_out"] > 100_000)
            behind = asyncio.create_task(counting(client).execute())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not behind.done()
            proxy.deafen(False)
            assert await within(behind) == [2] * len(KEYS)  # behind it, and it has run
            assert counters(server) == [2] * len(KEYS)
            assert server.cmd("EXISTS", *[f"large:{i}" for i in range(40)]) == 40
            assert client.stats()["connects"] == 1
        assert not [row for row in server.clients() if row["multi"] != "-1"]


async def test_cancelled_at_any_moment(server: Server) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with aioredis.Redis(**server.unix) as client:
        done = 0
        for _ in range(300):
            tasks = [asyncio.create_task(counting(client).execute()) for _ in range(8)]
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.001)
            said = [task.cancel() for task in tasks if chance.random() < 0.6]
            values = await outcomes(tasks)
            for value in values:
                if isinstance(value, asyncio.CancelledError):
                    continue
                done += 1
                assert len(set(value)) == 1
            assert sum(isinstance(value, asyncio.CancelledError) for value in values) == sum(said)
        (last,) = {*counters(server)}
        assert done <= last <= 300 * 8
        assert client.stats()["connects"] == 1


# --- timed out -------------------------------------------------------------------------------


async def test_timed_out_before_it_is_sent(own_server: Server) -> None:
    own_server.pause()
    async with aioredis.Redis(
        **own_server.tcp, protocol=3, socket_timeout=0.3, socket_connect_timeout=0.3
    ) as client:
        values = await outcomes([counting(client).execute() for _ in range(20)])
        assert all(isinstance(value, TimeoutError) for value in values), values
        assert all("the pipeline was not sent" in str(value) for value in values)
        assert all("not executed" in str(value) for value in values)
        own_server.resume()
        await until_good(client)
        assert counters(own_server) == [0] * len(KEYS)


async def test_timed_out_after_it_was_sent(own_server: Server) -> None:
    async def attempt(secs: float) -> None:
        own_server.cmd("DEL", *KEYS)
        async with aioredis.Redis(**own_server.unix, socket_timeout=secs) as client:
            await until_good(client)
            own_server.pause()
            values = await outcomes([counting(client).execute() for _ in range(20)])
            own_server.resume()
            assert all(isinstance(value, TimeoutError) for value in values), values
            await until_good(client)
            sent = sum("not executed" not in str(value) for value in values)
            assert counters(own_server) == [sent] * len(KEYS)
            for value in map(was_sent, values):
                assert "the pipeline was sent and may have run" in str(value)

    await patiently(attempt, 0.3)


async def test_timed_out_when_it_is_partly_out(server: Server) -> None:
    """Its connection goes with it, and with that the transaction: none of it runs."""

    async def attempt(secs: float) -> None:
        with Proxy(server.path) as proxy:
            async with aioredis.Redis(
                host="127.0.0.1", port=proxy.port, socket_timeout=secs
            ) as client:
                await until_good(client)
                connects = client.stats()["connects"]
                proxy.deafen(True)
                pipe = counting(client)
                for number in range(60):
                    pipe.set(f"large:{number}", b"x" * 1_000_000)
                value = was_sent(await within(outcome(pipe.execute())))
                assert isinstance(value, TimeoutError)
                assert "may have run" in str(value)
                proxy.deafen(False)
                await until_good(client)
                await until(lambda: not [row for row in server.clients() if row["multi"] != "-1"])
                assert counters(server) == [0] * len(KEYS)
                assert client.stats()["connects"] > connects

    await patiently(attempt, 0.7)


async def test_a_long_pipeline_has_its_time_anew_for_each_reply() -> None:
    """redis-py's timeout is one of silence; a long pipeline must not fail for its length."""

    async def attempt(secs: float) -> None:
        def script(peer: Peer, args: list[bytes]) -> None:
            peer.server.closing.wait(secs / 5)
            peer.send(bulk(args[1]))

        with FakeServer(script) as fake:
            async with aioredis.Redis(
                host="127.0.0.1", port=fake.port, socket_timeout=secs, retry=None
            ) as client:
                pipe = client.pipeline(transaction=False)
                for number in range(15):
                    pipe.echo(str(number))
                # A machine that stood still for one reply's time gets more; it is never
                # enough for fifteen that share it.
                assert await in_time(pipe.execute()) == [str(i).encode() for i in range(15)]
                assert client.stats()["timeouts"] == 0

    await patiently(attempt, 0.5)


# --- cut off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_connection_that_breaks_in_the_middle(transaction: bool) -> None:
    """Some replies have come: it may have run, says the error, and it is not sent again."""

    def script(peer: Peer, args: list[bytes]) -> None:
        if len(peer.commands) == 5 + 2 * transaction and peer.number == 1:
            raise Close
        answer(peer, args)

    answer = Transactions()
    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, protocol=2) as client:
            pipe = client.pipeline(transaction=transaction)
            for _ in range(8):
                pipe.incr("x")
            with pytest.raises(ConnectionError, match="the pipeline was sent and may have run"):
                await within(pipe.execute())
            assert len(pipe) == 0
            assert await within(client.echo("after")) == b"after"
            assert len(fake.commands(b"MULTI")) == transaction
            assert fake.connections == 2


@pytest.mark.parametrize("policy", ["default", "own", "none"])
@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize("writes", [False, True])
async def test_what_is_sent_again(
    server: Server, proxy: Proxy, writes: bool, transaction: bool, policy: str
) -> None:
    """Its replies are lost: what only reads is sent again, and what writes if so is said."""
    options: dict[str, Any] = {
        "default": {},
        "own": {"retry": Retry(NoBackoff(), 3)},
        "none": {"retry": Retry(NoBackoff(), 0)},
    }[policy]
    server.cmd("SET", "k", "v")
    async with aioredis.Redis(
        host="127.0.0.1", port=proxy.port, socket_timeout=20, **options
    ) as client:
        await client.ping()
        server.cmd("CONFIG", "RESETSTAT")
        proxy.hold(True)
        pipe = client.pipeline(transaction=transaction).get("k").hgetall("h")
        if writes:
            pipe.incr("n")
        task = asyncio.create_task(pipe.execute())
        await until(lambda: server.calls("GET") == 1)
        await until(lambda: server.calls("EXEC") == transaction)
        proxy.cut()
        proxy.hold(False)
        value = await within(outcome(task))
        if policy == "own" or (policy == "default" and not writes):
            assert value == [b"v", {}, *([2] if writes else [])]
            assert server.calls("GET") == 2
        else:
            assert isinstance(value, ConnectionError)
            assert "may have run" in str(value)
            assert server.calls("GET") == 1
        assert len(pipe) == 0


async def test_connections_cut_at_random(server: Server, proxy: Proxy) -> None:
    """All or nothing, at most once, and what was acknowledged is there."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    proxy.cut_after(1, 3000, seed)
    acknowledged = failed = 0
    async with aioredis.Redis(host="127.0.0.1", port=proxy.port, socket_timeout=60) as client:

        async def work() -> None:
            nonlocal acknowledged, failed
            for _ in range(150):
                value = await outcome(counting(client).execute())
                if isinstance(value, BaseException):
                    assert isinstance(value, (ConnectionError, TimeoutError)), value
                    failed += 1
                else:
                    assert len(set(value)) == 1
                    acknowledged += 1

        await within(asyncio.gather(*(work() for _ in range(8))), 200)
        proxy.no_cuts()
    assert failed > 0
    values = counters(server)
    assert len(set(values)) == 1
    assert acknowledged <= values[0] <= acknowledged + failed


async def test_unsent_pipelines_survive_a_lost_connection() -> None:
    """No byte of them was written when the connection broke: they go over the next one."""
    gate = Gate()
    script = Transactions()

    def greeting(peer: Peer, args: list[bytes]) -> bool:
        if peer.number == 1:
            raise Close
        return gate(peer, args)

    with FakeServer(script, greeting=greeting) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, protocol=2, client_name="makes-it-wait"
        ) as client:
            pipes = [client.pipeline().echo(str(i)).echo(str(i)) for i in range(10)]
            tasks = [asyncio.create_task(pipe.execute()) for pipe in pipes]
            await until(lambda: fake.connections >= 2)
            gate.open.set()
            assert await outcomes(tasks) == [[str(i).encode()] * 2 for i in range(10)]
        assert len(fake.commands(b"MULTI")) == 10


@pytest.mark.parametrize("raise_on_error", [False, True])
async def test_a_server_that_is_loading_fails_a_transaction(raise_on_error: bool) -> None:
    def script(peer: Peer, args: list[bytes]) -> None:
        replies = {b"MULTI": b"+OK", b"GET": b"+QUEUED", b"EXEC": b"*1\r\n-LOADING the dataset"}
        peer.send(replies.get(args[0], b"+OK") + b"\r\n")

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, protocol=2) as client:
            with pytest.raises(BusyLoadingError):
                await within(client.pipeline().get("k").execute(raise_on_error=raise_on_error))
