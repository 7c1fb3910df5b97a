"""Everything at once, under fire: no reply, element or message to the wrong one, nothing left.

`OFFLOOP_SEED=n` repeats the choices of a run that failed (not the moments: those are the
machine's).
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import offloop
import offloop._core as core
import offloop.redis as aioredis
import pytest
from books import Books, Subscriber
from certificates import Certificates
from child import run_child
from driving import run, settle
from everything import Everything, Fire, Stage, over_tcp, over_tls, over_unix, recovered
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from secured import SecuredServer
from servers import Server
from test_oracle import answered

# Whoever gives a Retry decides for writes, too: here nothing is sent twice.
ONCE = Retry(NoBackoff(), 0)


@pytest.fixture(scope="module")
def _secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    with SecuredServer(Certificates(tmp_path_factory.mktemp("certificates"))) as server:
        yield server


@pytest.fixture(params=["unix", "tcp", "tls"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "tls":
        with over_tls(request.getfixturevalue("_secured")) as stage:
            yield stage
    else:
        over = over_unix if request.param == "unix" else over_tcp
        with over(request.getfixturevalue("server")) as stage:
            yield stage


def clients_of(stage: Stage, pool: offloop.Pool, seed: int) -> list[Any]:
    """One that is cut, patient; one that is not; one in a hurry."""
    common = {"pool": pool, "retry": ONCE, "max_connections": 300}
    first, second = (2, 3) if seed % 2 else (3, 2)
    return [
        aioredis.Redis(**stage.cut, **common, protocol=first, socket_timeout=20),
        aioredis.Redis(**stage.direct, **common, protocol=second, socket_timeout=20),
        aioredis.Redis(**stage.direct, **common, protocol=first, socket_timeout=0.03),
    ]


def burn(stage: Stage, count: int, seed: int, loops: int, tasks: int) -> Counter[str]:
    """So many operations from so many loops; what was seen."""
    server: Server = stage.server
    before = server.client_ids()
    books = stage.prepare()
    pool = offloop.Pool(workers=3)
    clients = clients_of(stage, pool, seed)
    share = count // loops + 1
    oracles = [
        Everything(books, clients, share, seed + i, first=1 + i * share) for i in range(loops)
    ]
    failures: list[BaseException] = []

    def drive(oracle: Everything) -> None:
        try:
            run(oracle.run(tasks), limit=500)
        except BaseException as error:
            failures.append(error)

    async def end() -> None:
        for client in clients[:2]:
            await recovered(client)
        for client in clients:
            await client.aclose()
            stats = client.stats()
            assert (stats["leases"], stats["held"], stats["waiting_for_lease"]) == (0, 0, 0), stats
        assert pool.stats()["queue_depth"] == 0
        await pool.aclose()

    fire = Fire(server, stage.proxy, seed, lambda: answered(oracles))
    threads = [threading.Thread(target=drive, args=(oracle,)) for oracle in oracles]
    for thread in [fire, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    fire.over.set()
    fire.join()
    run(end())
    assert failures == []
    assert not settle(lambda: server.client_ids() - before)
    seen = sum((oracle.seen for oracle in oracles), Counter())
    wrong = [line for oracle in oracles for line in oracle.wrong] + books.verify(server)
    seen.update(received=books.messages.received, lost=books.elements.lost)
    seen.update(killed=fire.killed, cut=stage.proxy.stats()["cuts"])
    print(dict(sorted(seen.items())))
    assert not wrong, f"{len(wrong)} wrong: {wrong[:10]}"
    return seen


def seeded() -> int:
    seed = int(os.environ.get("OFFLOOP_SEED") or random.randrange(1 << 30))
    print(f"OFFLOOP_SEED={seed}")
    return seed


def did_something(seen: Counter[str], count: int) -> None:
    """Nothing is proved where nothing happened; what of it in seconds is the machine's affair."""
    assert seen["answered"] > count / 4, seen
    assert seen["cancelled"] > 0, seen
    assert seen["killed"] + seen["cut"] > 0, seen


def was_a_fire(seen: Counter[str], count: int) -> None:
    """The same of a long run: everything happened."""
    did_something(seen, count)
    assert seen["cancelled"] > count / 50, seen
    assert seen["killed"] + seen["cut"] > 5, seen
    for kind in ("ConnectionError", "TimeoutError", "popped", "moved", "entries", "received"):
        assert seen[kind] > 0, (kind, seen)
    assert seen["watched, done"] > 0, seen


@pytest.mark.limit(300)
@pytest.mark.parametrize("loops", [1, 2])
def test_everything_at_once(stage: Stage, loops: int) -> None:
    count = 1500
    did_something(burn(stage, count, seeded(), loops, 40 // loops), count)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.limit(900)
@pytest.mark.parametrize("loops", [1, 2])
@pytest.mark.parametrize("turn", range(4))
def test_half_a_million(stage: Stage, loops: int, turn: int) -> None:
    """Over all transports, loops and turns."""
    count = 500_000 // 24 + 1
    was_a_fire(burn(stage, count, seeded(), loops, 60 // loops), count)


# --- the oracle itself must be able to fail --------------------------------------------------


@pytest.mark.parametrize("planted", ["", "match-off-by-one-after-cancel"])
def test_it_catches_a_mutant_of_the_matching(planted: str) -> None:
    """Planted in the exchange, and not: then nothing is wrong."""
    if not core.build_info()["debug"]:
        pytest.skip("mutants are built into the debug build only (RT_DEBUG)")
    done = run_child(
        """
        import asyncio, os, sys
        import offloop._core as core
        import offloop.redis as aioredis
        from everything import Everything, over_tcp
        from servers import Server

        with Server() as server, over_tcp(server) as stage:
            books = stage.prepare()
            if sys.argv[1]:
                core._debug_mutate(sys.argv[1])
            client = aioredis.Redis(**stage.direct, socket_timeout=5)
            oracle = Everything(books, [client], 2000, 1, first=1)

            async def main():
                task = asyncio.create_task(oracle.run(40))
                while not task.done() and not oracle.wrong:
                    await asyncio.sleep(0.01)
                print("wrong:", len(oracle.wrong), flush=True)
                server.remove()
                os._exit(0)

            asyncio.run(main())
        """,
        planted,
    )
    assert "wrong: " in done.stdout, done.stderr
    assert (int(done.stdout.split()[-1]) > 0) == bool(planted)


Spoil = Callable[[Books, Server], object]


def _subscriber(books: Books, *numbers: int, leave: int = -1) -> Subscriber:
    """One of `news:*`, whose connection changes never; published were 0 to 9, to news:0."""
    publisher = books.messages.publisher()
    subscriber = Subscriber(books.messages, lambda: books)
    subscriber.joins("pmessage", "news:*")
    for _ in range(10):
        publisher.answered.add(publisher.next("news:0")[0])
    for n in numbers:
        if n == leave:
            subscriber.leaves("pmessage", "news:*")
            gone = {"type": "punsubscribe", "pattern": None, "channel": b"news:*", "data": 0}
            subscriber.take(gone)
        subscriber.take(
            {
                "type": "pmessage",
                "pattern": b"news:*",
                "channel": b"news:0",
                "data": f"{publisher.number}:{n}:news:0".encode(),
            }
        )
    return subscriber


def _pushed(books: Books, key: str, number: int) -> str:
    element = books.elements.pushing(key, number)
    books.elements.pushed[element] = True
    return element


def _entry(books: Books, server: Server, number: int, consumer: int) -> str:
    """Added, and handed out to a consumer; what the books are not told."""
    entries = books.entries[0]
    entries.added[number] = identity = str(server.cmd("XADD", entries.key, "*", "n", number))
    group = ("GROUP", entries.group, consumer)
    server.cmd("XREADGROUP", *group, "COUNT", 1, "STREAMS", entries.key, ">")
    return identity


def _transaction(books: Books, server: Server, size: int, there: int, *, told: bool) -> None:
    filled, mark = books.transactions.making(7, size)
    server.cmd("SET", mark, 7)
    server.cmd("RPUSH", filled, *range(there))
    if told:
        books.transactions.done(7)


def _moved(books: Books, server: Server, told: str | None) -> None:
    element = _pushed(books, "bag:0", 1)
    server.cmd("RPUSH", books.elements.moving(5), element)
    books.elements.moved(5, told)


def _counted(books: Books, server: Server, value: int, log: list[int], **ends: str) -> None:
    server.cmd("SET", "w:0", value)
    server.cmd("RPUSH", "w:0:log", *log)
    books.transactions.counted["w:0"].update({int(n[1:]): end for n, end in ends.items()})


# what is wrong: how to make it so
SPOILT: dict[str, tuple[str, Spoil]] = {
    "a message twice": ("came twice", lambda b, s: _subscriber(b, 1, 2, 2)),
    "a message too late": ("came after 2", lambda b, s: _subscriber(b, 2, 1)),
    "a message left out": ("never came", lambda b, s: _subscriber(b, 1, 3)),
    "a message after leaving": ("not subscribed", lambda b, s: _subscriber(b, 1, 2, leave=2)),
    "an element at two calls": (
        "in 2 places",
        lambda b, s: [
            b.elements.took(call, ["bag:0"], "bag:0", [_pushed(b, "bag:0", 1)]) for call in (5, 6)
        ],
    ),
    "an element taken and there": (
        "in 2 places",
        lambda b, s: (
            b.elements.took(5, ["bag:0"], "bag:0", [_pushed(b, "bag:0", 1)]),
            s.cmd("RPUSH", "bag:0", "bag:0/1"),
        ),
    ),
    "another's element": (
        "and got bag:1/1",
        lambda b, s: b.elements.took(5, ["bag:0"], "bag:0", [_pushed(b, "bag:1", 1)]),
    ),
    "an element that is lost": ("1 of bag:0 are missing", lambda b, s: _pushed(b, "bag:0", 1)),
    "an element lost by who had another key": (
        "1 of bag:0 are missing",
        lambda b, s: (_pushed(b, "bag:0", 1), b.elements.may_have_taken(5, ["bag:1"])),
    ),
    "moved, and told nothing": ("was told None", lambda b, s: _moved(b, s, None)),
    "moved, and told of another": ("was told bag:0/2", lambda b, s: _moved(b, s, "bag:0/2")),
    "an entry that nobody got": ("never got it", lambda b, s: _entry(b, s, 1, 5)),
    "an entry of another consumer": (
        "pending for 5",
        lambda b, s: b.entries[0].seen[_entry(b, s, 1, 5)].append((6, 1)),
    ),
    "an entry at two": (
        "was seen as",
        lambda b, s: b.entries[0].seen[_entry(b, s, 1, 5)].extend([(5, 1), (6, 1)]),
    ),
    "an entry that is still pending": (
        "was confirmed",
        lambda b, s: b.entries[0].acked.update({_entry(b, s, 1, 5): True}),
    ),
    "an entry added twice": (
        "added 2 times",
        lambda b, s: [s.cmd("XADD", "stream:0", "*", "n", 1) for _ in range(2)],
    ),
    "half a transaction": ("3 of 4", lambda b, s: _transaction(b, s, 4, 3, told=False)),
    "a transaction twice": ("4 of 2", lambda b, s: _transaction(b, s, 2, 4, told=True)),
    "counted, and refused": ("was refused", lambda b, s: _counted(b, s, 1, [1], n1="refused")),
    "counted twice": ("has 2, 1 of it", lambda b, s: _counted(b, s, 2, [1, 1], n1="done")),
    "not counted": ("was told", lambda b, s: _counted(b, s, 1, [1], n1="done", n2="done")),
    "executed twice": ("c:4 is 8", lambda b, s: s.cmd("SET", "c:4", 8)),
}


@pytest.mark.parametrize("name", SPOILT)
def test_it_sees(server: Server, name: str) -> None:
    """Each kind of wrong, and nothing else, written into the books or the server."""
    complaint, spoil = SPOILT[name]
    books = Books(server)
    assert books.verify(server) == []
    spoil(books, server)
    assert [line for line in books.verify(server) if complaint in line]
