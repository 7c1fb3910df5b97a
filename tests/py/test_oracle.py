"""A reply reaches exactly the call that asked, or nobody: the oracle over 200,000 commands.

While it runs, a fifth of the calls is cancelled, a proxy cuts connections in the middle
of replies, the server kills others, and one client's time-out is a millisecond.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import offloop
import offloop._core as core
import offloop.redis as aioredis
import pytest
from child import run_child
from driving import outcome, run, within
from fakeserver import FakeServer, Peer, bulk
from oracle import Oracle
from proxy import Proxy
from servers import Server

COUNT = 70_000
LOOPS = 3


class Chaos(threading.Thread):
    """Kills connections from the server's side and now and then cuts the proxy's.

    Not by the clock alone: on a slow machine nothing would ever be answered.
    """

    reach = 300_000  # reply bytes, at most, before the proxy cuts a connection

    def __init__(
        self, server: Server, proxy: Proxy, seed: int, answered: Callable[[], int]
    ) -> None:
        super().__init__(name="chaos")
        self.server = server
        self.proxy = proxy
        self.answered = answered
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.killed = 0

    def run(self) -> None:
        self.proxy.cut_after(1, self.reach, self.random.randrange(1 << 30))
        goal = 0
        while not self.over.wait(self.random.random() * 0.1):
            if self.answered() < goal:
                continue
            goal = self.answered() + 200
            self.strike()
        self.proxy.no_cuts()

    def strike(self) -> None:
        """Do some harm."""
        if self.random.random() < 0.5:
            self.killed += self.server.kill_clients()
        else:
            self.proxy.cut()


def answered(oracles: Iterable[Oracle]) -> int:
    """How many commands have their own reply by now."""
    return sum(oracle.seen["answered"] for oracle in oracles)


async def _recovered(client: aioredis.Redis) -> None:
    for number in range(1000):
        if await within(outcome(client.echo(f"last {number}"))) == f"last {number}".encode():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the client did not recover")


@pytest.mark.limit(400)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_identity_under_fire(server: Server, proxy: Proxy, workers: int) -> None:
    server.cmd("FLUSHALL")  # numbers begin anew, and so must counters
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    pool = offloop.Pool(workers=workers)
    clients = [
        aioredis.Redis(host="127.0.0.1", port=proxy.port, pool=pool, socket_timeout=20),
        aioredis.Redis(**server.unix, pool=pool, socket_timeout=20),
        aioredis.Redis(**server.tcp, pool=pool, protocol=2, socket_timeout=0.05),
        aioredis.Redis(**server.unix, pool=pool, socket_timeout=0.001),
    ]
    share = COUNT // LOOPS + 1
    oracles = [Oracle(clients, share, seed + i, first=1 + i * share) for i in range(LOOPS)]
    failures: list[BaseException] = []

    def drive(oracle: Oracle) -> None:
        try:
            run(oracle.run(60), limit=350)
        except BaseException as error:
            failures.append(error)

    chaos = Chaos(server, proxy, seed, lambda: answered(oracles))
    threads = [threading.Thread(target=drive, args=(oracle,)) for oracle in oracles]
    chaos.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chaos.over.set()
    chaos.join()
    seen = sum((oracle.seen for oracle in oracles), Counter())
    print(f"{workers} workers: {dict(seen)}, {chaos.killed} killed, {proxy.stats()['cuts']} cut")
    print(f"pool {pool.stats()}")
    assert not failures
    wrong = [line for oracle in oracles for line in oracle.wrong]
    assert not wrong, f"{len(wrong)} wrong: {wrong[:10]}"

    async def end() -> None:
        for client in clients[:3]:
            await _recovered(client)
        for client in clients:
            await client.aclose()
        assert pool.stats()["queue_depth"] == 0
        await pool.aclose()

    run(end())
    # It must have been a fire.
    assert seen["answered"] > COUNT // 10
    assert seen["cancelled"] > COUNT // 50
    assert seen["ConnectionError"] > 0
    assert seen["TimeoutError"] > 0
    assert chaos.killed + proxy.stats()["cuts"] > 5


@pytest.mark.limit(300)
async def test_identity_without_faults(server: Server) -> None:
    """No connection is harmed and only cancels happen: then nothing but replies may come,
    over one connection."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    async with aioredis.Redis(**server.unix, socket_timeout=None) as client:
        oracle = Oracle([client], 30_000, seed)
        await within(oracle.run(100), 280)
        assert not oracle.wrong, oracle.wrong[:10]
        assert set(oracle.seen) <= {"answered", "cancelled", "TimeoutError", "given up"}
        assert client.stats()["connects"] == client.stats()["connections"] <= 2


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.limit(600)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_identity_under_fire_for_long(server: Server, proxy: Proxy, workers: int) -> None:
    give_up = time.monotonic() + 100
    while time.monotonic() < give_up:
        test_identity_under_fire(server, proxy, workers)


# --- the oracle itself must be able to fail ------------------------------------------------


async def test_the_oracle_sees_a_wrong_reply() -> None:
    """A server that now and then answers with what it was asked before."""
    last = [b"none"]

    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(bulk(last[0] if len(peer.commands) % 50 == 0 else args[-1]))
        last[0] = args[-1]

    class EchoOnly(Oracle):
        async def _one(self, client: aioredis.Redis, number: int) -> None:
            await self._ask(lambda: client.echo(str(number)), str(number).encode())

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            oracle = EchoOnly([client], 2000, 1)
            await within(oracle.run(20))
            assert oracle.wrong


MUTANT = """
import asyncio, random, sys
import offloop._core as core
import offloop.redis as aioredis
from oracle import Oracle

core._debug_mutate(sys.argv[2])
client = aioredis.Redis(unix_socket_path=sys.argv[1], socket_timeout=2)

async def main():
    oracle = Oracle([client], 20_000, 1)
    try:
        await asyncio.wait_for(oracle.run(50), 20)
    except asyncio.TimeoutError:
        pass
    print("wrong:", len(oracle.wrong))

asyncio.run(main())
sys.stdout.flush()
import os; os._exit(0)
"""


def test_the_oracle_catches_a_mutant_of_the_matching(server: Server) -> None:
    """Off by one after a cancel, planted in the exchange: seen within 20,000 commands."""
    if not core.build_info()["debug"]:
        pytest.skip("mutants are built into the debug build only (RT_DEBUG)")
    done = run_child(MUTANT, server.path, "match-off-by-one-after-cancel")
    assert "wrong: " in done.stdout, done.stderr
    assert int(done.stdout.split("wrong: ")[1]) > 0
