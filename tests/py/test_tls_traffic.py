"""What goes over TLS: big and many, cut and taken up again, forked and ended in the middle."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import offloop
import offloop.redis as aioredis
import pytest
from certificates import Certificates
from child import quiet, run_child
from driving import outcome, outcomes, run, until, until_good, within
from oracle import Oracle
from proxy import Proxy
from redis.exceptions import ConnectionError, RedisError
from secured import SecuredServer
from test_oracle import answered


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=["TLSv1.3", "TLSv1.2"])
def _secured(made: Certificates, request: pytest.FixtureRequest) -> Iterator[SecuredServer]:
    with SecuredServer(made, tls_protocols=request.param) as server:
        yield server


@pytest.fixture
def secured(_secured: SecuredServer) -> SecuredServer:
    _secured.cmd("FLUSHALL")
    return _secured


async def test_big_values(secured: SecuredServer) -> None:
    value = random.Random(1).randbytes(10_000_000)
    async with aioredis.Redis(**secured.tls) as client:
        assert await within(client.set("big", value)) is True
        assert await within(client.get("big")) == value
        values = await outcomes([client.get("big") for _ in range(5)])
        assert values == [value] * 5
        assert client.stats()["losses"] == 0


async def test_a_hundred_thousand_at_once(secured: SecuredServer) -> None:
    async with aioredis.Redis(**secured.tls, workers=2) as client:
        values = await outcomes([client.echo(str(i)) for i in range(100_000)])
        assert values == [str(i).encode() for i in range(100_000)]
        stats = client.stats()
        assert stats["connects"] == 1 and stats["mean_batch"] > 10


async def test_one_after_the_other(secured: SecuredServer) -> None:
    """The loop's own thread reads small replies here, too, and answers are never left lying."""
    async with aioredis.Redis(**secured.tls) as client:
        rounds = 0
        while True:
            for i in range(2000):
                size = 10 if i % 10 else (100, 5000, 20_000, 40_000)[i // 10 % 4]
                word = f"{i}:".ljust(size, "x")
                assert await client.echo(word) == word.encode()
            # A reply that takes milliseconds is a worker's: on a busy machine many are.
            stats = client.stats()
            if stats["inline_reads"] > 100 and stats["inline_sends"] > 100:
                break
            rounds += 1
            assert rounds < 20, stats
        assert stats["loans"] > 0


async def test_small_ones_beside_big_ones(secured: SecuredServer) -> None:
    value = b"v" * 3_000_000
    async with aioredis.Redis(**secured.tls, workers=4) as client:
        await client.set("big", value)
        over = False

        async def big() -> int:
            count = 0
            while not over:
                assert await client.get("big") == value
                count += 1
            return count

        async def small(number: int) -> None:
            for i in range(200):
                assert await client.echo(f"{number}:{i}") == f"{number}:{i}".encode()

        task = asyncio.create_task(big())
        await within(asyncio.gather(*(small(i) for i in range(20))))
        over = True
        assert await within(task) > 0


async def test_blocking_commands_connect_all_at_once(secured: SecuredServer) -> None:
    """On a new client: one worker reads the certificates, and all use them."""
    async with aioredis.Redis(**secured.tls, workers=4) as client:
        calls = [client.blpop("list", timeout=0) for _ in range(40)]
        await until(lambda: client.stats()["leases"] == 40 and not client.stats()["queue_depth"])
        await until(lambda: len(secured.clients()) >= 40)
        await until(lambda: secured.cmd("INFO", "clients").count("blocked_clients:40"))
        secured.cmd("RPUSH", "list", *range(40))
        values = await outcomes(calls)
        assert sorted(int(value) for _, value in values) == list(range(40))
        assert client.stats()["tls_handshakes"] == 40


async def test_sessions_are_taken_up_again(secured: SecuredServer) -> None:
    async with aioredis.Redis(**secured.tls) as client:
        assert await client.ping() is True
        assert client.stats()["tls_resumed"] == 0
        for _ in range(5):
            await client.connection_pool.disconnect()
            await until(lambda: client.stats()["connections"] == 0)
            assert await client.ping() is True
        secured.kill_clients()
        await until(lambda: client.stats()["connections"] == 0)
        assert await client.ping() is True
        stats = client.stats()
        assert (stats["tls_handshakes"], stats["tls_resumed"]) == (7, 6)


async def test_cut_connections(secured: SecuredServer) -> None:
    """In the middle of a handshake, of a record, of a reply: no more is lost than was sent."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    with Proxy(f"127.0.0.1:{secured.tls_port}") as proxy:
        wanted = {**secured.tls, "host": "127.0.0.1", "port": proxy.port}
        async with aioredis.Redis(**wanted, workers=2) as client:
            proxy.cut_after(1, 20_000, seed)
            answered = 0
            for i in range(40):
                words = [f"{i}:{k}".ljust(k * 10, "y") for k in range(50)]
                for word, value in zip(
                    words, await outcomes([client.echo(word) for word in words]), strict=True
                ):
                    if isinstance(value, bytes):
                        assert value == word.encode()
                        answered += 1
                    else:
                        assert isinstance(value, RedisError), value
            proxy.no_cuts()
            await until_good(client)
            assert answered > 0 and proxy.stats()["cuts"] > 3
            assert client.stats()["losses"] > 0


async def test_another_certificate_after_a_restart(made: Certificates) -> None:
    """A server that comes back as somebody else is refused, session or not."""
    with SecuredServer(made) as server:
        async with aioredis.Redis(**server.tls) as client:
            assert await client.ping() is True
            server.stop()
            certificate, key = made.untrusted
            server.options.update({"tls-cert-file": str(certificate), "tls-key-file": str(key)})
            await asyncio.get_running_loop().run_in_executor(None, server.start)
            with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
                for _ in range(20):
                    assert isinstance(await within(outcome(client.ping())), RedisError)
                    await client.ping()


@pytest.mark.limit(400)
@pytest.mark.parametrize("workers", [1, 4])
def test_identity_under_fire(secured: SecuredServer, workers: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    pool = offloop.Pool(workers=workers)
    with Proxy(f"127.0.0.1:{secured.tls_port}") as proxy:
        wanted = {**secured.tls, "host": "127.0.0.1"}
        clients = [
            aioredis.Redis(**{**wanted, "port": proxy.port}, pool=pool, socket_timeout=20),
            aioredis.Redis(**wanted, pool=pool, protocol=2, socket_timeout=0.05),
            aioredis.Redis(**wanted, pool=pool, socket_timeout=0.002, socket_connect_timeout=5),
        ]
        oracles = [Oracle(clients, 10_000, seed + i, first=1 + i * 10_000) for i in range(2)]
        failures: list[BaseException] = []
        killed = 0

        def drive(oracle: Oracle) -> None:
            try:
                run(oracle.run(50), limit=350)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=drive, args=(oracle,)) for oracle in oracles]
        proxy.cut_after(1, 300_000, seed)
        for thread in threads:
            thread.start()
        goal = 0
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
            if answered(oracles) >= goal:  # by the clock alone, a slow machine gets no answers
                goal = answered(oracles) + 200
                killed += secured.kill_clients()
        for thread in threads:
            thread.join()
        proxy.no_cuts()
        print(sum((oracle.seen for oracle in oracles), Counter()), killed, proxy.stats())
        assert not failures
        wrong = [line for oracle in oracles for line in oracle.wrong]
        assert not wrong, f"{len(wrong)} wrong: {wrong[:10]}"
        assert answered(oracles) > 1000

        async def end() -> None:
            await until_good(clients[0])
            assert clients[0].stats()["tls_resumed"] > 0
            for client in clients:
                await client.aclose()
            await pool.aclose()

        run(end())


_BEGIN = """
import asyncio, os, random, sys, threading
import offloop, offloop.redis as aioredis
url = sys.argv[1]
client = aioredis.from_url(url, workers=2)

async def storm(number):
    count = 0
    while True:
        word = f"{number}:{count}"
        count += 1
        assert await client.echo(word) == word.encode()

async def storms(count, secs):
    tasks = [asyncio.create_task(storm(i)) for i in range(count)]
    await asyncio.sleep(secs)
    return tasks
"""


def test_fork(secured: SecuredServer) -> None:
    """The child makes its own connection and says nothing on its parent's."""
    source = """
import warnings; warnings.simplefilter("ignore", DeprecationWarning)

async def ids(count=20):
    return {await client.client_id() for _ in range(count)}

before = asyncio.run(ids())
assert len(before) == 1

def in_child(body):
    faulthandler.cancel_dump_traceback_later()
    pid = os.fork()
    if pid == 0:
        body()
        sys.exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3, status

def use():
    mine = asyncio.run(ids())
    assert len(mine) == 1 and not mine & before
    assert client.stats()["tls_handshakes"] == 1
    asyncio.run(client.aclose())

def drop():
    global client
    del client

for body in (lambda: None, use, drop, lambda: asyncio.run(ids())):
    in_child(body)
    assert asyncio.run(ids()) == before, "the parent's connection was touched"
assert client.stats()["connects"] == 1
asyncio.run(client.aclose())
"""
    quiet(run_child(_BEGIN + source, secured.tls_url))


@pytest.mark.parametrize("moment", range(6))
def test_the_end_at_any_moment(secured: SecuredServer, moment: int) -> None:
    """While workers are inside OpenSSL: no hang, no crash, not a word."""
    source = """
chance = random.Random(int(sys.argv[2]))
async def main():
    client.blpop("none")
    tasks = await storms(50, chance.random() * 0.15)
    if int(sys.argv[3]) % 3 == 1:
        client.connection_pool._offloop_channel and await client.connection_pool.disconnect()
    if int(sys.argv[3]) % 3 == 2:
        await client.aclose()
    sys.exit(5)
try:
    asyncio.run(main())
except offloop.redis.RedisError:
    sys.exit(5)
"""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    done = run_child(_BEGIN + source, secured.tls_url, seed, moment)
    assert done.returncode == 5, done.stderr
