"""Blocking commands: connections of their own, and what a cancelled pop may lose."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio as peer
from child import quiet, run_child
from driving import end, outcome, outcomes, patiently, until, was_sent, within
from offloop import Pool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError,
    MaxConnectionsError,
    ResponseError,
    TimeoutError,
)
from servers import Server


def blocked(server: Server) -> int:
    """Clients that wait in the server."""
    text = str(server.cmd("INFO", "clients"))
    line = next(row for row in text.splitlines() if row.startswith("blocked_clients"))
    return int(line.split(":")[1])


async def are_blocked(server: Server, count: int) -> None:
    await until(lambda: blocked(server) == count)


# name: what makes it wait, and what ends its waiting
WAITING: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "blpop": (("BLPOP", "l", 0), ("RPUSH", "l", "v")),
    "brpop": (("BRPOP", "l", 0), ("RPUSH", "l", "v")),
    "brpoplpush": (("BRPOPLPUSH", "l", "m", 0), ("RPUSH", "l", "v")),
    "blmove": (("BLMOVE", "l", "m", "LEFT", "RIGHT", 0), ("RPUSH", "l", "v")),
    "blmpop": (("BLMPOP", 0, 1, "l", "LEFT"), ("RPUSH", "l", "v")),
    "bzpopmin": (("BZPOPMIN", "z", 0), ("ZADD", "z", 1, "v")),
    "bzpopmax": (("BZPOPMAX", "z", 0), ("ZADD", "z", 1, "v")),
    "bzmpop": (("BZMPOP", 0, 1, "z", "MIN"), ("ZADD", "z", 1, "v")),
    "xread": (("XREAD", "COUNT", 1, "BLOCK", 0, "STREAMS", "x", "$"), ("XADD", "x", "*", "f", "v")),
}


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_it_waits_and_is_woken(server: Server, name: str, protocol: int) -> None:
    """With the reply that redis-py has for it."""
    waits, wakes = WAITING[name]
    async with (
        aioredis.Redis(**server.tcp, protocol=protocol) as client,
        peer.Redis(**server.tcp, protocol=protocol) as other,
    ):
        found = []
        for each in (client, other):
            task = asyncio.ensure_future(each.execute_command(*waits))
            await are_blocked(server, 1)
            assert await client.set("k", 1) is True  # the others are not held up
            server.cmd(*wakes)
            found.append(await within(task))
            server.cmd("DEL", "l", "m", "z")
        if name == "xread":  # a stream's ids differ
            found = [re.sub(rb"\d+-\d+", b"id", repr(each).encode()) for each in found]
        assert found[0] == found[1]
        assert client.stats()["blocking_commands"] == 1


@pytest.mark.parametrize(
    "written",
    [
        ("BLPOP l 0",),
        (b"blpop l 0",),
        ("Blpop  l\t0",),
        ("blPop", "l", "0"),
        (b"BLPOP", "l", 0),
        ("BLPOP l", 0),
    ],
)
async def test_however_it_is_written(server: Server, written: tuple[Any, ...]) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        task = asyncio.ensure_future(client.execute_command(*written))
        await are_blocked(server, 1)
        await client.rpush("l", "v")
        assert list(await within(task)) == [b"l", b"v"]
        assert client.stats()["blocking_commands"] == 1


async def test_consumers_of_a_group(server: Server) -> None:
    async with aioredis.Redis(**server.tcp, decode_responses=True) as client:
        await client.xgroup_create("jobs", "g", mkstream=True)
        got: Counter[str] = Counter()

        async def consume(name: str) -> None:
            while sum(got.values()) < 200:
                found = await client.xreadgroup("g", name, {"jobs": ">"}, count=3, block=50)
                for _, entries in found.items() if isinstance(found, dict) else found or []:
                    for identity, fields in entries[0] if isinstance(found, dict) else entries:
                        got[fields["n"]] += 1
                        await client.xack("jobs", "g", identity)

        consumers = [asyncio.create_task(consume(f"c{i}")) for i in range(8)]
        for n in range(200):
            await client.xadd("jobs", {"n": n})
        await within(asyncio.gather(*consumers))
        assert got == Counter({str(n): 1 for n in range(200)})
        assert (await client.xpending("jobs", "g"))["pending"] == 0
        assert client.stats()["leases_high_water"] <= 8


async def test_nothing_came_and_errors(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        assert await client.blpop("nothing", timeout=0.01) is None
        assert await client.xread({"nothing": "$"}, block=1) in ([], {})
        await client.set("text", "x")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await client.blpop("text", timeout=0.01)
        with pytest.raises(ResponseError, match="timeout"):
            await client.execute_command("BLPOP", "l", "nonsense")
        assert client.stats()["leases_opened"] == 1  # none of it costs the connection
        assert client.stats()["errors"] == 0


# --- cancelling ------------------------------------------------------------------------------


async def test_cancelled_before_the_answer_leaves_the_element(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        for _ in range(20):
            task = asyncio.ensure_future(client.blpop("l", timeout=0))
            await are_blocked(server, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await are_blocked(server, 0)
            await client.rpush("l", "v")
            assert await client.lrange("l", 0, -1) == [b"v"]
            assert await client.lpop("l") == b"v"
        await until(lambda: client.stats()["leases"] == 0)
        assert client.stats()["leases_opened"] == 20


async def test_cancelled_while_it_waits_for_a_connection(own_server: Server) -> None:
    pool = aioredis.BlockingConnectionPool(
        host="127.0.0.1", port=own_server.port, max_connections=1, timeout=None
    )
    async with aioredis.Redis(connection_pool=pool) as client:
        first = asyncio.ensure_future(client.blpop("l", timeout=0))
        await are_blocked(own_server, 1)
        waiting = [asyncio.ensure_future(client.blpop("l", timeout=0)) for _ in range(10)]
        await until(lambda: client.stats()["waiting_for_lease"] == 10)
        for task in waiting[::2]:
            task.cancel()
        await until(lambda: client.stats()["waiting_for_lease"] == 5)
        await client.rpush("l", *range(6))
        assert await within(first) == (b"l", b"0")
        kept = await outcomes(waiting[1::2])
        assert kept == [(b"l", str(n).encode()) for n in range(1, 6)]  # in their order
        assert own_server.calls("blpop") == 6  # the others were never sent
        await pool.aclose()


async def test_who_cancels_can_call_again_at_once(server: Server) -> None:
    async with aioredis.Redis(**server.tcp, max_connections=1) as client:
        await client.rpush("full", *range(100))
        for n in range(100):
            task = asyncio.ensure_future(client.blpop("l", timeout=0))
            if n % 3:
                await asyncio.sleep(0.001 * (n % 3))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.blpop("full", timeout=0) == (b"full", str(n).encode())


@pytest.mark.slow
async def test_no_element_twice_and_none_to_the_wrong_call(server: Server) -> None:
    """Pops of numbered elements, cancelled and timed out at any moment."""
    seed = random.randrange(2**32)
    rnd = random.Random(seed)
    count, calls = 3000, Counter[str]()
    taken: Counter[int] = Counter()
    async with aioredis.Redis(**server.unix, max_connections=20, socket_timeout=20) as client:

        async def pop(number: int) -> None:
            own = f"own:{number}"
            key = "bag" if number % 2 else own
            call = asyncio.ensure_future(client.blpop(key, timeout=rnd.choice([0.003, 5, 5])))
            if rnd.random() < 0.3:
                await asyncio.sleep(rnd.random() * 0.003)
            if rnd.random() < 0.2:
                call.cancel()
            await client.rpush(key, number)
            if rnd.random() < 0.2:
                call.cancel()
            try:
                found = await within(call)
            except asyncio.CancelledError:
                calls["cancelled"] += 1
                return
            if found is None:
                calls["nothing"] += 1
                return
            calls["answered"] += 1
            assert found[0].decode() == key
            if key == own:
                assert int(found[1]) == number
            else:
                taken[int(found[1])] += 1

        # Each task has at most one call: there is room for all of them.
        numbers = iter(range(count))

        async def caller() -> None:
            for number in numbers:
                await pop(number)

        await within(asyncio.gather(*(caller() for _ in range(20))), 120)
        left = await client.llen("bag")
        assert set(taken.values()) <= {1}, seed
        assert count // 2 - calls["cancelled"] <= len(taken) + left <= count // 2, (seed, calls)
        assert min(calls.values()) > 0, calls
        await are_blocked(server, 0)
        assert client.stats()["leases_high_water"] <= 20


async def test_a_generator_that_is_closed(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:

        async def elements() -> Any:
            while True:
                yield await client.blpop("l", timeout=0)

        generator = elements()
        await client.rpush("l", "a")
        assert await within(anext(generator)) == (b"l", b"a")
        task = asyncio.ensure_future(anext(generator))
        await are_blocked(server, 1)
        await end([task])
        await generator.aclose()
        await are_blocked(server, 0)


# --- time ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [aioredis, peer])
async def test_socket_timeout_is_the_limit(server: Server, module: Any) -> None:
    """The same rule as redis-py's: it holds for blocking commands too."""
    # Long enough for the commands that are answered at once, on a busy machine too.
    options = {**server.tcp, "socket_timeout": 2, "retry": Retry(NoBackoff(), 0)}
    async with module.Redis(**options) as client:
        with pytest.raises(TimeoutError):
            await within(client.blpop("l", timeout=0))
        await are_blocked(server, 0)  # its connection is closed
        server.cmd("RPUSH", "l", "v", "w")
        assert server.cmd("LPOP", "l") == "v"  # what came later stayed
        assert await client.blpop("l", timeout=0) == (b"l", b"w")  # on a new connection


async def test_socket_timeout_says_what_may_have_happened(server: Server) -> None:
    async def attempt(secs: float) -> None:
        async with aioredis.Redis(**server.tcp, socket_timeout=secs) as client:
            value = was_sent(await within(outcome(client.blpop("l", timeout=0))))
            assert isinstance(value, TimeoutError)
            assert "may have run" in str(value)
            assert str(server.port) in str(value)
            assert client.stats()["timeouts"] == 1

    await patiently(attempt, 0.05)


async def test_the_time_counts_from_the_sending(own_server: Server) -> None:
    """Waiting for a connection is the connection pool's patience, not the command's."""
    pool = aioredis.BlockingConnectionPool(
        host="127.0.0.1", port=own_server.port, max_connections=1, timeout=60, socket_timeout=2.5
    )
    async with aioredis.Redis(connection_pool=pool) as client:
        calls = [asyncio.ensure_future(client.blpop("l", timeout=0.3)) for _ in range(10)]
        assert await outcomes(calls) == [None] * 10  # one after the other: 3 s
        await pool.aclose()


# --- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [aioredis, peer])
async def test_too_many_connections(server: Server, module: Any) -> None:
    async with module.Redis(**server.tcp, max_connections=2) as client:
        calls = [asyncio.ensure_future(client.blpop("l", timeout=0)) for _ in range(2)]
        await are_blocked(server, 2)
        with pytest.raises(MaxConnectionsError, match="Too many connections"):
            await client.blpop("l", timeout=0)
        server.cmd("RPUSH", "l", "a", "b")
        assert sorted(await outcomes(calls)) == [(b"l", b"a"), (b"l", b"b")]
        assert await client.blpop("l", timeout=0.01) is None


@pytest.mark.parametrize("module", [aioredis, peer])
async def test_no_connection_in_time(server: Server, module: Any) -> None:
    pool = module.BlockingConnectionPool(
        host="127.0.0.1", port=server.port, max_connections=1, timeout=0.05
    )
    async with module.Redis(connection_pool=pool) as client:
        call = asyncio.ensure_future(client.blpop("l", timeout=0))
        await are_blocked(server, 1)
        with pytest.raises(ConnectionError, match="No connection available"):
            await within(client.blpop("l", timeout=0))
        server.cmd("RPUSH", "l", "a")
        assert await within(call) == (b"l", b"a")
        await pool.aclose()


async def test_a_blocked_pool_starves_nobody(server: Server) -> None:
    """Neither its own other commands, nor another client of the same threads."""
    async with Pool(2, queue=4) as pool, aioredis.Redis(**server.tcp, pool=pool) as client:
        calls = [asyncio.ensure_future(client.blpop("l", timeout=0)) for _ in range(30)]
        await are_blocked(server, 30)
        assert await outcomes(client.set("k", n) for n in range(20)) == [True] * 20
        async with aioredis.Redis(**server.tcp, pool=pool) as other:
            assert await other.get("k") == b"19"
        assert await client.rpush("l", *range(30)) == 30  # what they wait for gets through
        assert len(await outcomes(calls)) == 30
    assert blocked(server) == 0


async def test_the_server_is_full(own_server: Server) -> None:
    own_server.cmd("CONFIG", "SET", "maxclients", 6)
    async with aioredis.Redis(**own_server.tcp, retry=Retry(NoBackoff(), 0)) as client:
        await client.ping()
        calls = [asyncio.ensure_future(client.blpop("l", timeout=0)) for _ in range(12)]
        await until(lambda: sum(call.done() for call in calls) == 12 - 5)
        failed = [call.exception() for call in calls if call.done()]
        assert all(isinstance(error, ConnectionError) for error in failed)
        assert all("max number of clients" in str(error) for error in failed)
        waiting = [call for call in calls if not call.done()]
        assert await client.rpush("l", *range(5)) == 5  # nobody else notices
        assert sorted(int(value) for _, value in await outcomes(waiting)) == [0, 1, 2, 3, 4]


# --- the ends of things ------------------------------------------------------------------------


async def test_connections_are_reused_and_closed_ones_are_not(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        for n in range(20):
            await client.rpush("l", n)
            assert await client.blpop("l", timeout=0) == (b"l", str(n).encode())
        assert client.stats()["leases_opened"] == 1
        assert client.stats()["leases_idle"] == 1
        server.kill_clients()
        await until(lambda: client.stats()["leases"] == 0)
        await client.rpush("l", "v")
        assert await client.blpop("l", timeout=0) == (b"l", b"v")


async def test_killed_while_it_waits(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        call = asyncio.ensure_future(client.blpop("l", timeout=0))
        await are_blocked(server, 1)
        server.kill_clients()
        with pytest.raises(ConnectionError, match="may have run"):
            await within(call)
        await client.rpush("l", "v")
        assert await client.lpop("l") == b"v"  # and it is not sent again


async def test_disconnect(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        assert await client.blpop("l", timeout=0.001) is None
        call = asyncio.ensure_future(client.blpop("l", timeout=0))
        other = asyncio.ensure_future(client.blpop("l", timeout=0))
        await are_blocked(server, 2)
        await client.rpush("l", "v")
        await until(lambda: call.done() or other.done())
        await client.connection_pool.disconnect(inuse_connections=False)
        await until(lambda: client.stats()["leases"] == 1)
        await are_blocked(server, 1)
        await client.connection_pool.disconnect()
        left = await outcome(other if call.done() else call)
        assert isinstance(left, ConnectionError)
        await until(lambda: client.stats()["leases"] == 0)
        assert await client.ping()


async def test_closing_does_not_wait_for_those_who_wait(server: Server) -> None:
    client = aioredis.Redis(**server.tcp)
    calls = [asyncio.ensure_future(client.blpop("l", timeout=0)) for _ in range(5)]
    await are_blocked(server, 5)
    await within(client.aclose(), 4)  # the deadline of what is under way is 5 s
    assert all(isinstance(error, ConnectionError) for error in await outcomes(calls))
    assert blocked(server) == 0
    # A later command opens everything anew.
    assert await client.blpop("l", timeout=0.001) is None
    await client.aclose()


@pytest.mark.parametrize("how", ["exit", "loop closed", "del", "cancelled"])
def test_the_process_ends_while_it_waits(server: Server, how: str) -> None:
    quiet(
        run_child(
            """
import asyncio, sys
import offloop.redis as aioredis
path, how = sys.argv[1:]
r = aioredis.Redis(unix_socket_path=path, socket_timeout=None)

async def wait():
    await r.blpop("l", timeout=0)

async def main():
    await r.ping()
    task = asyncio.create_task(wait())
    while r.stats()["leases"] < 1 or await r.execute_command("INFO", "clients") is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    if how == "exit":
        sys.exit(0)
    return task

if how == "loop closed":
    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(main())
    task._log_destroy_pending = False
    loop.close()
    del loop
elif how == "exit":
    asyncio.run(main())
elif how == "del":
    asyncio.run(main())
    del r
else:
    asyncio.run(main())
""",
            server.path,
            how,
        )
    )
    assert blocked(server) == 0


def test_a_forked_child_lets_go_of_them(server: Server) -> None:
    """The parent's blocked calls go on, and closing them is not hidden by the child."""
    quiet(
        run_child(
            """
import asyncio, os, sys, time
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
import offloop.redis as aioredis
path = sys.argv[1]
r = aioredis.Redis(unix_socket_path=path, socket_timeout=None)

def blocked():
    import redis
    with redis.Redis(unix_socket_path=path) as observer:
        return observer.info("clients")["blocked_clients"]

async def main():
    calls = [asyncio.ensure_future(r.blpop(f"l{n}", timeout=0)) for n in range(5)]
    while blocked() < 5:
        await asyncio.sleep(0.01)
    read, write = os.pipe()
    done, finish = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(finish)
            asyncio.set_event_loop(None)
            asyncio._set_running_loop(None)
            async def child():
                assert await r.blpop("nothing", timeout=0.01) is None
                assert r.stats()["leases_opened"] == 1
                os.write(write, b"x")
                os.read(done, 1)  # until the parent has looked
                await r.aclose()
            asyncio.run(child())
            code = 0
        finally:
            os._exit(code)
    os.read(read, 1)
    await r.rpush("l0", "v")
    assert await calls[0] == (b"l0", b"v")
    for call in calls[1:]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    while blocked():
        await asyncio.sleep(0.01)
    os.write(finish, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    await r.aclose()

asyncio.run(main())
""",
            server.path,
        )
    )
