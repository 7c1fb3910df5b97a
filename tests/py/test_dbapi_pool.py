"""Pools of connections: who waits, what is lent, and in what state."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import offloop
import pytest
from driving import outcomes, run, until, within
from offloop import dbapi
from test_dbapi import ENDLESS


class Noting(sqlite3.Connection):
    """Counts what is open, and where it is closed."""

    open = 0
    most = 0
    broken = False
    fail = False
    lock = threading.Lock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if Noting.fail:
            raise sqlite3.OperationalError("it is to fail")
        super().__init__(*args, **kwargs)
        with Noting.lock:
            Noting.open += 1
            Noting.most = max(Noting.most, Noting.open)
        self.left = False

    def close(self) -> None:
        super().close()
        with Noting.lock:
            Noting.open -= not self.left
        self.left = True

    @property
    def total_changes(self) -> int:  # what tells whether it is well
        if self.broken:
            raise sqlite3.ProgrammingError("broken")
        return 0


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Any:
    Noting.open, Noting.most, Noting.fail = 0, 0, False
    yield
    gc.collect()
    assert Noting.open == 0


@asynccontextmanager
async def pooled(
    path: Path, *, workers: int = 3, **kwargs: Any
) -> AsyncIterator[dbapi.ConnectionPool]:
    async with offloop.Pool(workers) as threads:
        async with dbapi.create_pool(
            "sqlite3", path / "db", pool=threads, factory=Noting, timeout=60, **kwargs
        ) as pool:
            yield pool
        assert pool.size == 0 and pool.closed


async def test_sizes(tmp_path: Path) -> None:
    async with pooled(tmp_path, minsize=2, maxsize=3) as pool:
        assert (pool.minsize, pool.maxsize, pool.size, pool.freesize) == (2, 3, 2, 2)
        async with pool.acquire() as one:
            assert isinstance(one, dbapi.Connection) and not one.closed
            assert (pool.size, pool.freesize) == (2, 1)
            two, three = await pool.acquire(), await pool.acquire()
            assert (pool.size, pool.freesize) == (3, 0)
            assert len({one, two, three}) == 3
            await pool.release(two)
            pool.release(three)  # it need not be awaited
        assert (pool.size, pool.freesize) == (3, 3)
        with pytest.raises(ValueError, match="not acquired"):
            pool.release(two)
        stats = pool.stats()
        assert (stats["acquired"], stats["opened"], stats["free"]) == (3, 3, 3)
    for sizes in ({"minsize": 2, "maxsize": 1}, {"minsize": -1}, {"minsize": 0, "maxsize": 0}):
        with pytest.raises(ValueError, match="minsize"):
            await dbapi.create_pool("sqlite3", ":memory:", **sizes)


async def test_threads_of_its_own(tmp_path: Path) -> None:
    """A writer that has the lock is not kept from its commit by those that wait for it."""
    async with dbapi.create_pool("sqlite3", tmp_path / "db", maxsize=8, timeout=50) as pool:
        await pool.execute("create table t (n)")
        assert pool._maker.pool.workers == 8

        async def write() -> None:
            async with pool.acquire() as db:
                await db.execute("insert into t values (1)")
                await asyncio.sleep(0.002)
                await db.commit()

        await within(asyncio.gather(*[write() for _ in range(16)]))
        assert await pool.fetchval("select count(*) from t") == 16
    assert pool._maker.pool.closed


async def test_a_pool_that_cannot_open_its_first_connections(tmp_path: Path) -> None:
    async with offloop.Pool(1) as threads:
        with pytest.raises(sqlite3.OperationalError):
            await dbapi.create_pool("sqlite3", tmp_path / "no" / "db", pool=threads, minsize=3)
        pool = await dbapi.create_pool(
            "sqlite3", tmp_path / "no" / "db", pool=threads, minsize=0, maxsize=1
        )
        for _ in range(3):
            with pytest.raises(sqlite3.OperationalError):
                await within(pool.acquire())
        assert pool.size == 0
        await pool.aclose()


async def test_who_waits_is_served_in_order(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=1) as pool:
        first = await pool.acquire()
        served: list[int] = []

        async def wait(number: int) -> None:
            async with pool.acquire() as db:
                served.append(number)
                await db.fetchval("select 1")

        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0)
        assert pool.stats()["waiting"] == 6
        tasks[2].cancel()
        await asyncio.sleep(0)
        await pool.release(first)
        late = asyncio.create_task(wait(9))
        await within(asyncio.gather(*tasks, late, return_exceptions=True))
        assert served == [0, 1, 3, 4, 5, 9]


async def test_a_waiter_that_is_cancelled_when_it_is_served(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=1) as pool:
        db = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        after = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        await pool.release(db)
        waiting.cancel()  # it was given the connection just before
        assert await within(after) is db
        assert waiting.cancelled()
        await pool.release(db)


async def test_waiting_has_a_limit(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=1) as pool:
        async with pool.acquire():
            with pytest.raises(TimeoutError):
                await pool.acquire(timeout=0.01)
            with pytest.raises(offloop.CallTimeoutError, match="no connection"):
                async with pool.acquire(timeout=0):
                    raise AssertionError
            task = asyncio.create_task(pool.acquire(timeout=50))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: pool.stats()["waiting"] == 0)
        async with pool.acquire(timeout=20) as db:
            assert await db.fetchval("select 1") == 1
        assert pool.stats()["timeouts"] == 2


async def test_room_goes_to_the_next_one_if_opening_fails(tmp_path: Path) -> None:
    async with pooled(tmp_path, minsize=0, maxsize=1) as pool:
        Noting.fail = True
        found = await outcomes([asyncio.create_task(pool.acquire()) for _ in range(3)])
        assert [type(one) for one in found] == [sqlite3.OperationalError] * 3
        Noting.fail = False
        async with pool.acquire() as db:
            assert await db.fetchval("select 1") == 1


# ---- the state of what is lent --------------------------------------------------------------


async def test_nothing_is_open_in_what_is_lent(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=1) as pool:
        await pool.execute("create table t (n integer primary key)")
        async with pool.acquire() as db:
            await db.execute("insert into t values (1)")
            assert db.in_transaction
        async with pool.acquire() as db:
            assert not db.in_transaction
            assert await db.fetchval("select count(*) from t") == 0
            await db.execute("insert into t values (1)")
            await db.commit()
            transaction = db.transaction()
            await transaction.__aenter__()
            await db.execute("insert into t values (2)")
        async with pool.acquire() as db:
            assert not db.in_transaction and not db._transactions
            async with db.transaction():
                assert await db.fetch("select n from t") == [(1,)]


@pytest.mark.parametrize("interrupt", [True, False])
async def test_nothing_runs_in_what_is_lent(tmp_path: Path, interrupt: bool) -> None:
    gate, inside = threading.Event(), threading.Event()

    def work(raw: sqlite3.Connection) -> None:
        inside.set()
        if interrupt:
            raw.execute(ENDLESS).fetchall()
        gate.wait(50)

    offload = dbapi.Offload(interrupt=interrupt)
    async with pooled(tmp_path, maxsize=1, offload=offload) as pool:

        async def user() -> None:
            async with pool.acquire() as db:
                await db.run(work)

        task = asyncio.create_task(user())
        await until(inside.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task  # it does not wait for the end
        assert pool.stats()["leaving"] == 1 or interrupt  # which may have ended it by now
        after = asyncio.create_task(pool.acquire())
        if not interrupt:
            await asyncio.sleep(0.02)
            assert not after.done()
        gate.set()
        db = await within(after)
        assert db._lane.pending == 0
        await pool.release(db)


async def test_on_connect_comes_first(tmp_path: Path) -> None:
    seen = []

    async def prepare(db: dbapi.Connection) -> None:
        seen.append(db)
        await db.create_function("twice", 1, lambda n: 2 * n)
        await db.execute("create table if not exists t (n)")
        await db.execute("insert into t values (1)")  # and forgets to commit

    async with pooled(tmp_path, minsize=1, maxsize=3, on_connect=prepare) as pool:
        dbs = [await pool.acquire() for _ in range(3)]
        assert len(seen) == 3 and set(seen) == set(dbs)
        for db in dbs:
            assert await db.fetchval("select twice(21)") == 42 and not db.in_transaction
            await pool.release(db)

    async def fail(db: dbapi.Connection) -> None:
        raise LookupError

    async with offloop.Pool(1) as threads:
        with pytest.raises(LookupError):
            await dbapi.create_pool(
                "sqlite3", tmp_path / "db", pool=threads, factory=Noting, on_connect=fail
            )
    assert Noting.open == 0


async def test_old_connections_are_replaced(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=1, recycle=0) as pool:
        seen = []
        for _ in range(3):
            async with pool.acquire() as db:
                seen.append(db)
        assert len(set(seen)) == 3
        assert await pool.fetchval("select 1") == 1
        assert pool.stats()["recycled"] >= 3


async def test_what_is_not_well_is_replaced(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=1, check=0) as pool:
        async with pool.acquire() as db:
            db.raw.broken = True
        async with pool.acquire() as other:
            assert other is not db
            await other.close()  # by the user
        async with pool.acquire() as third:
            assert third is not other
            assert await third.fetchval("select 1") == 1
        assert pool.stats()["unusable"] == 1 and pool.size == 1
    async with pooled(tmp_path, maxsize=1, check=None) as pool:
        with suppress(LookupError):
            async with pool.acquire() as db:
                db.raw.broken = True
                raise LookupError  # whatever it was: it is asked
        async with pool.acquire() as other:
            assert other is not db


async def test_a_connection_that_is_dropped_is_made_up_for(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=1) as pool:
        db = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        with pytest.warns(ResourceWarning, match="was not closed"):
            del db
            gc.collect()
        other = await within(waiting)
        assert pool.stats()["lost"] == 1 and pool.size == 1
        await pool.release(other)


# ---- statements of the pool itself ----------------------------------------------------------


async def test_statements_of_the_pool(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=3) as pool:
        await pool.execute("create table t (n integer primary key, s text)")
        assert await pool.execute("insert into t values (1, 'a')") == 1
        assert await pool.executemany("insert into t values (?, ?)", [(2, "b"), (3, "c")]) == 2
        with pytest.raises(sqlite3.IntegrityError):
            await pool.executemany("insert into t values (?, ?)", [(4, "d"), (1, "again")])
        assert await pool.fetch("select n from t order by n") == [(1,), (2,), (3,)]
        assert await pool.fetchrow("select s from t where n = ?", (2,)) == ("b",)
        assert await pool.fetchval("select count(*) from t") == 3
        found = await asyncio.gather(
            *[pool.fetchval("select ?", (i,)) for i in range(500)],
            *[pool.execute("update t set s = 'x' where n = 1") for i in range(20)],
        )
        assert found == [*range(500), *[1] * 20]
        await until(lambda: pool.size == 3)  # it has grown
        assert all(not db.in_transaction for db in pool._free)
        dbs = [await pool.acquire() for _ in range(3)]
        waiting = asyncio.create_task(pool.fetchval("select 7"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await pool.release(dbs.pop())
        assert await within(waiting) == 7
        for db in dbs:
            await pool.release(db)


async def test_what_is_acquired_has_no_statements_of_the_pool(tmp_path: Path) -> None:
    lent: list[sqlite3.Connection] = []
    strangers = 0

    def look(raw: sqlite3.Connection) -> int:  # in a worker, inside of a statement
        nonlocal strangers
        strangers += raw in lent
        time.sleep(0.0002)
        strangers += raw in lent
        return 1

    async def prepare(db: dbapi.Connection) -> None:
        await db.create_function("look", 0, partial(look, db.raw))

    async with pooled(tmp_path, maxsize=2, on_connect=prepare) as pool:
        await pool.execute("create table t (n integer)")
        stop = False

        async def statements() -> None:
            while not stop:
                await asyncio.gather(*[pool.fetchval("select look()") for _ in range(5)])

        async def alone() -> None:
            for _ in range(50):
                async with pool.acquire() as db:
                    lent.append(db.raw)
                    await db.execute("insert into t values (1)")
                    assert db.in_transaction
                    await db.fetchval("select 1")
                    assert db.in_transaction  # nobody has committed it
                    await db.rollback()
                    lent.remove(db.raw)

        task = asyncio.create_task(statements())
        await within(alone())
        stop = True
        await task
        assert strangers == 0
        assert await pool.fetchval("select count(*) from t") == 0


# ---- the end ----------------------------------------------------------------------------------


async def test_closing_waits_for_what_is_lent(tmp_path: Path) -> None:
    async with pooled(tmp_path, maxsize=1) as pool:
        with pytest.raises(RuntimeError, match="after close"):
            await pool.wait_closed()
        db = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        pool.close()
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            await waiting
        for call in (pool.acquire, lambda: pool.fetch("select 1")):
            with pytest.raises(RuntimeError, match="closed"):
                await call()
        closed = asyncio.create_task(pool.wait_closed())
        await asyncio.sleep(0.01)
        assert not closed.done()
        assert await db.fetchval("select 1") == 1
        await pool.release(db)
        await within(closed)
        assert db.closed and Noting.open == 0


async def test_terminate_ends_what_runs(tmp_path: Path) -> None:
    began: list[int] = []

    def work(raw: sqlite3.Connection) -> None:
        began.append(1)
        raw.execute(ENDLESS).fetchall()

    async with pooled(tmp_path, maxsize=2) as pool:

        async def user() -> None:
            async with pool.acquire() as db:
                await db.run(work)

        tasks = [asyncio.create_task(user()) for _ in range(2)]
        await until(lambda: len(began) == 2)
        await asyncio.sleep(0.05)
        pool.terminate()
        await within(pool.wait_closed())
        found = await outcomes(tasks)
        assert [type(one) for one in found] == [sqlite3.OperationalError] * 2


def test_a_loop_that_ends_without_closing(tmp_path: Path) -> None:
    threads = offloop.Pool(2)

    async def main() -> None:
        pool = await dbapi.create_pool(
            "sqlite3", tmp_path / "db", pool=threads, factory=Noting, minsize=2
        )
        async with pool.acquire() as db:
            await db.execute("create table t (n)")
            task = asyncio.create_task(db.fetch(ENDLESS))
            await asyncio.sleep(0.02)
        del task

    with pytest.warns(ResourceWarning, match="was not closed"):
        run(main())
        gc.collect()

    async def end() -> None:
        await until(lambda: Noting.open == 0)
        await threads.aclose()

    run(end())


# ---- an oracle ----------------------------------------------------------------------------------


async def in_the_end(call: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a call that may be late, as all are in there: it is made again."""
    for _ in range(1000):
        with suppress(offloop.CallTimeoutError):
            return await call()
    raise AssertionError("it is late each time")


class Oracle:
    """Knows who has which connection, and what is in the database."""

    def __init__(self, pool: dbapi.ConnectionPool, seed: int, turns: int) -> None:
        self.pool = pool
        self.random = random.Random(seed)
        self.left = turns
        self.held: dict[int, int] = {}
        self.inside: Counter[int] = Counter()
        self.committed = 0
        self.unsure = 0  # cancelled while they were being committed
        self.seen: Counter[str] = Counter()

    def query(self, raw: Any, key: int, number: int) -> int:
        """What runs on a connection sees that it is alone."""
        self.inside[key] += 1
        assert self.inside[key] == 1, "two calls on one connection"
        found: int = raw.execute(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?)"
            " select count(*) from n",
            (number,),
        ).fetchone()[0]
        assert self.inside[key] == 1, "two calls on one connection"
        return found

    def run(self, raw: Any, key: int, number: int) -> int:
        try:
            return self.query(raw, key, number)
        finally:
            self.inside[key] -= 1

    async def use(self, db: dbapi.Connection, number: int) -> None:
        rnd, key = self.random, id(db)
        assert key not in self.held, "it is lent to two"
        self.held[key] = number
        try:
            assert not db.in_transaction, "a transaction is open"
            assert db._lane.pending == 0, "a call is under way"
            for _ in range(rnd.randrange(4)):
                size = rnd.choice([10, 100, 3000])
                assert await db.run(self.run, key, size) == size
            match rnd.randrange(6):
                case 0:
                    await db.execute("insert into t values (?)", (number,))  # and left so
                    self.seen["left open"] += 1
                case 1:
                    try:
                        async with db.transaction():
                            await db.execute("insert into t values (?)", (number,))
                            entered = True
                            await asyncio.sleep(0)
                    except (asyncio.CancelledError, offloop.CallTimeoutError):
                        self.unsure += 1
                        raise
                    assert entered
                    self.committed += 1
                case 2:
                    async with db.transaction():
                        await db.execute("insert into t values (?)", (number,))
                        self.seen["raised"] += 1
                        raise LookupError(number)
                case 3:
                    with suppress(offloop.CallTimeoutError):
                        await db.fetch(ENDLESS)  # until the time is over
                    self.seen["late"] += 1
                case 4:
                    db.raw.broken = rnd.random() < 0.2
                case _:
                    assert await db.fetchval("select ?", (number,)) == number
        finally:
            del self.held[key]

    async def turn(self, number: int) -> None:
        rnd = self.random
        if rnd.random() < 0.3:
            assert await self.pool.fetchval("select ?", (number,)) == number
            return
        limit = rnd.choice([None, None, 30, 0.001])
        async with self.pool.acquire(timeout=limit) as db:
            await self.use(db, number)

    async def task(self) -> None:
        rnd = self.random
        while self.left > 0:
            self.left -= 1
            task = asyncio.create_task(self.turn(self.left))
            if rnd.random() < 0.25:
                await asyncio.sleep(rnd.choice([0, 0.0002, 0.002]))
                task.cancel()
            try:
                await task
                self.seen["good"] += 1
            except asyncio.CancelledError:
                self.seen["cancelled"] += 1
            except LookupError:
                pass
            except sqlite3.OperationalError as error:
                assert "locked" in str(error) or "busy" in str(error), error
                self.seen["locked"] += 1
            except offloop.CallTimeoutError:
                self.seen["no connection"] += 1
            assert self.pool.size <= 2 * self.pool.maxsize

    async def main(self, tasks: int) -> None:
        await in_the_end(lambda: self.pool.execute("create table if not exists t (n integer)"))
        await asyncio.gather(*[self.task() for _ in range(tasks)])
        assert self.held == {}
        count = await in_the_end(lambda: self.pool.fetchval("select count(*) from t"))
        assert self.committed <= count <= self.committed + self.unsure
        assert self.pool.stats()["lent"] == 0
        await until(lambda: self.pool.stats()["leaving"] == 0)
        assert self.pool.size <= self.pool.maxsize
        assert +self.inside == Counter()


@pytest.mark.parametrize("turns", [800, pytest.param(100_000, marks=pytest.mark.soak)])
@pytest.mark.limit(1800)
async def test_the_oracle(tmp_path: Path, turns: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    # A worker for each connection: one that waits for a lock keeps none from who has it.
    async with offloop.Pool(5) as threads:
        async with dbapi.create_pool(
            "sqlite3",
            tmp_path / "db",
            pool=threads,
            factory=Noting,
            timeout=5,
            maxsize=5,
            check=0.001,
            recycle=0.2,
            offload=dbapi.Offload(timeout=0.05),
        ) as pool:
            await in_the_end(lambda: pool.fetch("pragma journal_mode = wal"))
            await in_the_end(lambda: pool.fetch("pragma synchronous = off"))
            oracle = Oracle(pool, seed, turns)
            await within(oracle.main(12), 1700)
            print(oracle.seen, pool.stats())
            assert {"good", "cancelled", "late", "raised", "left open"} <= set(oracle.seen)
        assert pool.size == 0 and Noting.open == 0
