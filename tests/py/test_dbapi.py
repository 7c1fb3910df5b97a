"""offloop.dbapi over sqlite3: cursors, rows that come along, transactions, cancelling."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import offloop
import pytest
from driving import TooSlow, outcome, outcomes, patiently, run, until, within
from leaks import Watch
from offloop import dbapi

# A query that computes for minutes, if nobody ends it.
ENDLESS = """with recursive n(i) as (select 1 union all select i + 1 from n where i < 1e12)
             select count(*) from n"""
COUNT = (
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) select i from n"
)


@asynccontextmanager
async def database(*args: Any, workers: int = 2, **kwargs: Any) -> AsyncIterator[dbapi.Connection]:
    """An empty one in memory, on a pool of its own."""
    async with offloop.Pool(workers) as pool:
        kwargs.setdefault("pool", pool)
        async with dbapi.connect("sqlite3", *(args or (":memory:",)), **kwargs) as db:
            yield db


async def ended_by(interrupt: Callable[[], Any], task: asyncio.Task[Any]) -> None:
    """Interrupt until the task is done: before the driver has begun there is nothing to end."""
    give_up = time.monotonic() + 60
    while not task.done():
        assert time.monotonic() < give_up
        await asyncio.wait([task], timeout=0.02)
        await interrupt()


async def table(db: dbapi.Connection, count: int) -> None:
    await db.execute("create table t (n integer primary key, s text)")
    await db.executemany("insert into t values (?, ?)", [(i, f"s{i}") for i in range(count)])
    await db.commit()


# ---- connecting ---------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["sqlite3", sqlite3, sqlite3.connect, partial(sqlite3.connect)])
async def test_a_module_its_name_or_a_function_connects(module: Any) -> None:
    async with offloop.Pool(1) as pool:
        db = await dbapi.connect(module, ":memory:", pool=pool)
        assert not db.closed and db.pool is pool
        assert isinstance(db.raw, sqlite3.Connection)
        assert await db.fetchval("select 42") == 42
        await db.close()
        await db.close()
        assert db.closed


async def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ImportError):
        dbapi.connect("no_such_module")
    with pytest.raises(TypeError, match="no PEP 249 module"):
        dbapi.connect("math")
    with pytest.raises(TypeError):
        dbapi.connect(42)  # type: ignore[arg-type]


async def test_the_default_pool_serves_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with offloop.Pool(1) as pool:
        monkeypatch.setattr("offloop.pool._default", [pool])
        async with dbapi.connect("sqlite3", ":memory:") as db:
            assert db.pool is pool


async def test_an_error_of_connecting_is_the_drivers(tmp_path: Path) -> None:
    async with offloop.Pool(1) as pool:
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            await dbapi.connect("sqlite3", tmp_path / "no" / "db", pool=pool)
        with pytest.raises(sqlite3.OperationalError):
            async with dbapi.connect("sqlite3", tmp_path / "no" / "db", pool=pool):
                raise AssertionError


async def test_a_connection_that_nobody_waits_for_is_closed() -> None:
    gate, began, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            began.set()
            assert gate.wait(50)
            super().__init__(*args, **kwargs)

        def close(self) -> None:
            super().close()
            closed.set()

    async with offloop.Pool(1) as pool:
        task = asyncio.create_task(dbapi.connect("sqlite3", ":memory:", pool=pool, factory=Slow))
        await until(began.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await until(closed.is_set)


async def test_what_is_left_open_is_warned_of_and_closed_on_its_thread() -> None:
    closed: list[int] = []

    class Noting(sqlite3.Connection):
        def close(self) -> None:
            closed.append(threading.get_ident())
            super().close()

    async with offloop.Pool(3) as pool:
        db = await dbapi.connect(
            "sqlite3", ":memory:", pool=pool, factory=Noting, check_same_thread=True
        )
        assert db.pinned
        own = await db.run(lambda raw: threading.get_ident())
        with pytest.warns(ResourceWarning, match="was not closed"):
            del db
            gc.collect()
        await until(lambda: closed)
        assert closed == [own]


async def test_after_the_end_the_driver_says_so() -> None:
    async with offloop.Pool(1) as pool:
        db = await dbapi.connect("sqlite3", ":memory:", pool=pool)
        cursor = await db.execute(COUNT, (10,))
        await db.close()
        for call in (db.fetch("select 1"), cursor.fetchone(), cursor.fetchall(), db.commit()):
            with pytest.raises((sqlite3.ProgrammingError, AttributeError)):
                await call


# ---- threads ------------------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [False, True])
async def test_the_lane_is_of_the_kind_that_the_driver_needs(pinned: bool) -> None:
    kwargs = {"check_same_thread": True} if pinned else {}
    async with database(workers=3, **kwargs) as db:
        assert db.pinned is pinned
        threads = set()
        for _ in range(20):
            threads.add(await db.run(lambda raw: threading.get_ident()))
            await asyncio.gather(*[db.pool.call(time.sleep, 0) for _ in range(3)])
            assert await db.fetchval("select 1") == 1
        assert len(threads) == 1 or not pinned


async def test_the_user_may_choose_the_lane() -> None:
    async with database(offload=dbapi.Offload(pinned=True)) as db:
        assert db.pinned
    with pytest.raises(ValueError, match="prefetch"):
        dbapi.Offload(prefetch=-1)


@pytest.mark.parametrize(("level", "pinned"), [(0, True), (1, True), (2, False), (3, False)])
async def test_threadsafety_decides_for_unknown_modules(
    level: int, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("unheard_of")
    module.threadsafety = level  # type: ignore[attr-defined]
    module.connect = partial(sqlite3.connect, check_same_thread=False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unheard_of", module)
    async with offloop.Pool(4) as pool:
        dbs = [await dbapi.connect("unheard_of", ":memory:", pool=pool) for _ in range(4)]
        assert [db.pinned for db in dbs] == [pinned] * 4
        threads = {await db.run(lambda raw: threading.get_ident()) for db in dbs}
        assert len(threads) == 1 or level > 0  # all on one lane
        assert await dbs[0].fetchval("select 7") == 7
        for db in dbs:
            await db.close()


# ---- statements and rows --------------------------------------------------------------------


async def test_one_hop_is_enough() -> None:
    async with database() as db:
        await table(db, 100)

        async def hops(call: Callable[[], Any]) -> int:
            before = db.pool.stats()["jobs"]
            await call()
            return int(db.pool.stats()["jobs"]) - before

        async def whole() -> None:
            cursor = await db.execute("select * from t where n < 20 order by n")
            assert cursor.description[0][0] == "n"
            assert await cursor.fetchone() == (0, "s0")
            assert await cursor.fetchmany(2) == [(1, "s1"), (2, "s2")]
            assert len(await cursor.fetchall()) == 17
            assert await cursor.fetchone() is None
            assert await cursor.fetchall() == []

        async def block() -> None:
            async with db.execute("select * from t where n = ?", (5,)) as cursor:
                assert [row async for row in cursor] == [(5, "s5")]

        async def many() -> None:
            async with db.cursor() as cursor:
                await cursor.execute("select n from t order by n limit 60")
                assert [row[0] async for row in cursor] == list(range(60))

        for call in (
            whole,
            block,
            many,
            lambda: db.fetch("select * from t"),
            lambda: db.fetchrow("select * from t"),
            lambda: db.fetchval("select count(*) from t"),
        ):
            # A turn of a lane may be counted as a job of its own.
            assert await hops(call) <= 2


async def test_fetch_and_its_like() -> None:
    async with database() as db:
        await table(db, 5)
        assert await db.fetch("select n from t where n >= ?", (3,)) == [(3,), (4,)]
        assert await db.fetch("select n from t where n > 9") == []
        assert await db.fetchrow("select s, n from t where n = :n", {"n": 2}) == ("s2", 2)
        assert await db.fetchrow("select 1 where 0") is None
        assert await db.fetchval("select max(n) from t") == 4
        assert await db.fetchval("select 1 where 0") is None
        db.row_factory = sqlite3.Row
        assert (await db.fetchrow("select s from t where n = 1"))["s"] == "s1"
        db.row_factory = lambda cursor, row: {"value": row[0]}
        assert await db.fetchval("select s from t where n = 1") == "s1"
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await db.fetch("select * from missing")


@pytest.mark.parametrize("prefetch", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 300])
async def test_all_ways_to_fetch_see_all_rows_in_order(prefetch: int, count: int) -> None:
    async with database(offload=dbapi.Offload(prefetch=prefetch)) as db:
        await table(db, count)
        query = "select n from t order by n"
        expected = [(i,) for i in range(count)]
        assert [row async for row in await db.execute(query)] == expected
        cursor = await db.execute(query)
        found = []
        while (row := await cursor.fetchone()) is not None:
            found.append(row)
        assert found == expected
        assert await cursor.fetchone() is None
        await cursor.execute(query)
        found = []
        while rows := await cursor.fetchmany(5):
            assert len(rows) <= 5
            found += rows
        assert found == expected
        await cursor.execute(query)
        cursor.arraysize = 3
        found = await cursor.fetchmany()
        first = await cursor.fetchone()
        found += [first] if first else []
        async for row in cursor:
            found.append(row)
            if len(found) == 20:
                break
        found += await cursor.fetchall()
        assert found == expected
        await cursor.close()


def _until_error(cursor: sqlite3.Cursor) -> list[Any]:
    found = []
    with suppress(sqlite3.OperationalError):
        while True:
            found.append(cursor.fetchone())
    return found


async def test_a_row_that_fails_comes_in_its_turn() -> None:
    """It was fetched ahead; those before it are not lost, and it is not raised early."""
    async with database() as db:

        def picky(n: int) -> int:
            if n == 10:
                raise ValueError(n)
            return n

        await table(db, 20)
        await db.create_function("picky", 1, picky)
        query = "select picky(n) from t order by n"
        # sqlite3 itself computes a row when the one before it is fetched.
        expected = await db.run(lambda raw: _until_error(raw.execute(query)))
        assert 5 < len(expected) < 11
        cursor = await db.execute(query)
        for row in expected:
            assert await cursor.fetchone() == row
        with pytest.raises(sqlite3.OperationalError, match="user-defined function"):
            await cursor.fetchone()
        found = []
        with pytest.raises(sqlite3.OperationalError):
            async for row in await db.execute(query):
                found.append(row)
        assert found == expected
        with pytest.raises(sqlite3.OperationalError):
            await (await db.execute(query)).fetchall()
        with pytest.raises(sqlite3.OperationalError):
            await db.fetch(query)


async def test_a_cursors_own_things() -> None:
    async with database() as db:
        cursor = await db.cursor()
        assert (cursor.rowcount, cursor.description, cursor.arraysize) == (-1, None, 1)
        assert cursor.connection is db and cursor.raw is None
        assert await cursor.execute("create table t (n integer primary key)") is cursor
        assert (
            await cursor.executemany("insert into t values (?)", [(i,) for i in (4, 5)]) is cursor
        )
        assert cursor.rowcount == 2
        await cursor.execute("insert into t values (9)")
        assert cursor.lastrowid == 9
        assert await cursor.fetchone() is None  # as sqlite3 has it
        assert await cursor.executescript("delete from t; insert into t values (1);") is cursor
        cursor = db.cursor()
        cursor.row_factory = sqlite3.Row
        cursor.arraysize = 10
        await cursor.execute("select n from t")
        assert cursor.row_factory is sqlite3.Row and cursor.arraysize == 10
        assert [row["n"] for row in await cursor.fetchmany()] == [1]
        await cursor.setinputsizes([1])
        await cursor.setoutputsize(1)
        await cursor.close()
        with pytest.raises(sqlite3.ProgrammingError):
            await cursor.fetchone()
        with pytest.raises(sqlite3.ProgrammingError):
            await cursor.execute("select 1")
        with pytest.raises(AttributeError):
            await db.cursor().callproc("p")
        async with db.cursor() as untouched:
            pass
        await untouched.close()


async def test_statements_of_a_connection() -> None:
    async with database() as db:
        async with db.executescript("create table t (n); insert into t values (1);"):
            pass
        async with db.executemany("insert into t values (?)", [(2,), (3,)]) as cursor:
            assert cursor.rowcount == 2
        task = asyncio.create_task(db.execute("select sum(n) from t"))
        assert await (await task).fetchone() == (6,)
        both = await asyncio.gather(db.execute("select 1"), db.execute("select 2"))
        assert [await one.fetchone() for one in both] == [(1,), (2,)]
        assert await (await asyncio.wait_for(db.execute("select 3"), 60)).fetchone() == (3,)


async def test_what_only_sqlite_has(tmp_path: Path) -> None:
    async with database() as db, database(tmp_path / "copy") as copy:
        await table(db, 3)
        lines = [line async for line in db.iterdump()]
        assert lines[0] == "BEGIN TRANSACTION;" and len(lines) == 6
        seen: list[int] = []
        await db.backup(copy, progress=lambda status, left, total: seen.append(left))
        assert await copy.fetchval("select count(*) from t") == 3 and seen
        statements: list[str] = []
        await db.set_trace_callback(statements.append)
        await db.fetch("select 5")
        assert statements == ["select 5"]
        assert db.total_changes == 3
        db.text_factory = bytes
        assert db.text_factory is bytes
        assert await db.fetchval("select 'a'") == b"a"
        assert db.isolation_level == ""
        await db.set_isolation_level("IMMEDIATE")
        assert db.isolation_level == "IMMEDIATE"
        with pytest.raises(AttributeError):
            _ = db.nothing_of_the_kind
        assert db.OperationalError is sqlite3.OperationalError
        assert await db.run(lambda raw, more: raw.total_changes + more, 1) == 4


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has autocommit from 3.12 on")
async def test_autocommit_of_python_3_12() -> None:
    async with database(autocommit=True) as db:
        await table(db, 0)
        assert db.autocommit is True and not db.in_transaction
        with suppress(LookupError):
            async with db.transaction():
                await db.execute("insert into t values (1, '')")
                raise LookupError
        async with db.transaction():
            await db.execute("insert into t values (2, '')")
        assert await db.fetch("select n from t") == [(2,)] and not db.in_transaction
        await db.set_autocommit(False)
        with suppress(LookupError):
            async with db.transaction():
                await db.execute("insert into t values (3, '')")
                raise LookupError
        async with db.transaction():
            await db.execute("insert into t values (4, '')")
        await db.rollback()
        assert await db.fetch("select n from t") == [(2,), (4,)]


# ---- transactions -----------------------------------------------------------------------------


async def test_a_transaction_is_committed_or_rolled_back() -> None:
    async with database() as db:
        await table(db, 0)
        async with db.transaction():
            assert db.in_transaction
            await db.execute("insert into t values (1, '')")
        assert not db.in_transaction
        with pytest.raises(LookupError):
            async with db.transaction("BEGIN IMMEDIATE"):
                await db.execute("insert into t values (2, '')")
                raise LookupError
        assert not db.in_transaction
        assert await db.fetch("select n from t") == [(1,)]


async def test_transactions_in_transactions() -> None:
    async with database() as db:
        await table(db, 0)
        async with db.transaction():
            await db.execute("insert into t values (1, '')")
            with suppress(LookupError):
                async with db.transaction():
                    await db.execute("insert into t values (2, '')")
                    async with db.transaction():
                        await db.execute("insert into t values (3, '')")
                    raise LookupError
            async with db.transaction():
                await db.execute("insert into t values (4, '')")
                with suppress(sqlite3.IntegrityError):
                    async with db.transaction():
                        await db.execute("insert into t values (4, '')")
        assert await db.fetch("select n from t") == [(1,), (4,)]


async def test_what_the_user_has_begun_is_not_committed() -> None:
    async with database() as db:
        await table(db, 0)
        await db.execute("insert into t values (1, '')")
        async with db.transaction():
            await db.execute("insert into t values (2, '')")
        assert db.in_transaction
        await db.rollback()
        assert await db.fetch("select n from t") == []


async def test_a_transaction_is_one_tasks() -> None:
    async with database() as db:
        await table(db, 0)

        async def other() -> None:
            async with db.transaction():
                raise AssertionError

        async with db.transaction():
            with pytest.raises(RuntimeError, match="another task"):
                await asyncio.create_task(other())
        mine = db.transaction()
        async with mine:
            with pytest.raises(RuntimeError, match="once"):
                await mine.__aenter__()


async def test_a_commit_that_fails_leaves_nothing_open() -> None:
    async with database() as db:
        await db.executescript(
            "pragma foreign_keys = on; create table a (n integer primary key);"
            "create table b (n references a deferrable initially deferred);"
        )
        with pytest.raises(sqlite3.IntegrityError):
            async with db.transaction():
                await db.execute("insert into b values (1)")
        assert not db.in_transaction


@pytest.mark.parametrize("where", ["begin", "block", "end"])
async def test_a_cancelled_transaction_is_ended(where: str) -> None:
    async with database(workers=1) as db:
        await table(db, 0)
        gate, began = threading.Event(), threading.Event()

        def hold() -> None:
            began.set()
            gate.wait(50)

        inside = asyncio.Event()

        async def work() -> None:
            if where == "begin":
                holding.append(db.pool.call(hold))
                await until(began.is_set)
                inside.set()
            async with db.transaction():
                await db.execute("insert into t values (1, '')")
                if where == "end":
                    holding.append(db.pool.call(hold))
                    await until(began.is_set)
                    inside.set()
                else:
                    inside.set()
                    await asyncio.sleep(50)

        holding: list[Any] = []
        task = asyncio.create_task(work())
        await inside.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await asyncio.gather(*holding)
        assert await db.fetch("select n from t") == []
        assert not db.in_transaction


# ---- cancelling -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fetch", "fetchrow", "fetchval", "execute", "run", "cursor"])
async def test_a_cancelled_query_is_ended_early(way: str) -> None:
    async with database(workers=1) as db:
        calls: dict[str, Callable[[], Any]] = {
            "run": lambda: db.run(lambda raw: raw.execute(ENDLESS).fetchall()),
            "cursor": lambda: db.cursor().execute(ENDLESS),
        }
        for delay in (0.0, 0.001, 0.02):
            task = asyncio.create_task(calls.get(way, lambda: getattr(db, way)(ENDLESS))())
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # It ends, and what comes next is not met.
            assert await within(db.fetchval("select 1")) == 1


async def test_a_query_that_is_late_is_ended_early() -> None:
    async def attempt(secs: float) -> None:
        async with database(workers=1, offload=dbapi.Offload(timeout=secs)) as db:
            with pytest.raises(offloop.CallTimeoutError):
                await db.fetch(ENDLESS)
            await until(lambda: db._lane.pending == 0)
            found = await within(outcome(db.fetchval("select 1")))  # it has all the time
            if isinstance(found, offloop.CallTimeoutError):
                raise TooSlow
            assert found == 1

    await patiently(attempt, 0.05)


async def test_an_interrupt_never_meets_the_next_query() -> None:
    """Queries that end at the very moment at which they are given up."""
    async with database() as db:
        failed = []
        for i in range(400):
            task = asyncio.create_task(db.fetch(COUNT, (50 + i % 40,)))
            await asyncio.sleep(0)
            if i % 3:
                await asyncio.sleep(0.00002 * (i % 7))
            task.cancel()
            after = [db.fetchval("select ?", (i,)) for _ in range(2)]
            await asyncio.gather(task, return_exceptions=True)
            failed += [one for one in await outcomes(after) if one != i]
        assert failed == []


@pytest.mark.parametrize("interrupt", [False, True])
async def test_without_interrupting_the_next_call_waits(interrupt: bool) -> None:
    async with database(offload=dbapi.Offload(interrupt=interrupt)) as db:
        done: list[bool] = []

        began = threading.Event()

        def work(raw: Any) -> None:
            began.set()
            try:
                raw.execute(COUNT, (100_000,)).fetchall()
                done.append(True)
            except sqlite3.OperationalError:
                done.append(False)

        task = asyncio.create_task(db.run(work))
        await until(began.is_set)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await db.run(lambda raw: list(done)) == [True] or interrupt


async def test_a_function_of_the_users_may_end_a_query() -> None:
    ended = threading.Event()

    def end(raw: sqlite3.Connection) -> None:
        raw.interrupt()
        ended.set()

    async with database(workers=1, offload=dbapi.Offload(interrupt=end)) as db:
        await table(db, 1)
        task = asyncio.create_task(db.fetch(ENDLESS))
        await asyncio.sleep(0.02)
        task.cancel()
        assert await within(db.fetchval("select count(*) from t")) == 1
        assert task.cancelled() and ended.is_set()
        task = asyncio.create_task(db.fetch(ENDLESS))
        await ended_by(db.interrupt, task)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            await within(task)


@pytest.mark.parametrize("way", ["fetch", "fetchrow", "cursor", "connection"])
async def test_nothing_is_closed_while_an_ending_is_at_it(way: str) -> None:
    """A driver may let go of the GIL in the middle, and look at the cursor again then."""
    ending = False
    started, begun, closed_meanwhile = threading.Event(), threading.Event(), []

    def until_it_is_ended() -> None:
        started.set()
        begun.wait(60)

    class Cursor(sqlite3.Cursor):
        def close(self) -> None:
            closed_meanwhile.append(ending)
            super().close()

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def close(self) -> None:
            closed_meanwhile.append(ending)
            super().close()

    def end(raw: sqlite3.Connection) -> None:
        nonlocal ending
        ending = True
        begun.set()
        time.sleep(0.2)
        ending = False

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        raw = sqlite3.connect(*args, factory=Connection, check_same_thread=False, **kwargs)
        raw.create_function("until_it_is_ended", 0, until_it_is_ended)
        return raw

    async with (
        offloop.Pool(1) as pool,
        dbapi.connect(connect, ":memory:", pool=pool, offload=dbapi.Offload(interrupt=end)) as db,
    ):
        if way == "connection":
            interrupting = asyncio.create_task(db.interrupt())
            await until(begun.is_set)
            await db.close()
            await interrupting
        elif way == "cursor":
            cursor = await db.cursor()
            task = asyncio.create_task(db.run(lambda raw: until_it_is_ended()))
            await until(started.is_set)
            interrupting = asyncio.create_task(db.interrupt())
            await task
            await cursor.execute("select 1")
            await cursor.close()
            await interrupting
        else:
            task = asyncio.create_task(getattr(db, way)("select until_it_is_ended()"))
            await until(started.is_set)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await db.fetchval("select 1")
    assert begun.is_set()
    assert closed_meanwhile and not any(closed_meanwhile)


async def test_interrupt_ends_what_is_under_way() -> None:
    async with database(workers=1) as db:
        await db.interrupt()
        task = asyncio.create_task(db.fetch(ENDLESS))
        await ended_by(db.cancel, task)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            await within(task)
        assert await db.fetchval("select 1") == 1


async def test_a_commit_is_not_interrupted() -> None:
    async with database() as db:
        await table(db, 0)
        for i in range(30):
            await db.execute("insert into t values (?, '')", (i,))
            task = asyncio.create_task(db.commit())
            await asyncio.sleep(0)
            await asyncio.sleep(0.0001 * (i % 3))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await db.commit()
        assert await db.fetchval("select count(*) from t") == 30


# ---- life ---------------------------------------------------------------------------------------


async def test_many_tasks_share_a_connection() -> None:
    async with database(workers=3) as db:
        await table(db, 200)

        async def work(number: int) -> None:
            for i in range(20):
                row = await db.fetchrow("select n, s from t where n = ?", (number,))
                assert row == (number, f"s{number}")
                cursor = await db.execute(COUNT, (i,))
                assert len(await cursor.fetchall()) == max(i, 1)

        await asyncio.gather(*[work(i) for i in range(40)])


def test_a_connection_of_several_loops() -> None:
    pool = offloop.Pool(2)

    async def first() -> dbapi.Connection:
        db = await dbapi.connect("sqlite3", ":memory:", pool=pool)
        await table(db, 10)
        return db

    db = run(first())

    async def other() -> None:
        assert len(await db.fetch("select * from t")) == 10
        assert [row[0] async for row in await db.execute("select n from t")] == list(range(10))

    threads = [threading.Thread(target=run, args=(other(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def last() -> None:
        await db.close()
        await pool.aclose()

    run(last())


def test_a_loop_that_ends_with_queries_under_way(leaks: Watch) -> None:
    pool = offloop.Pool(1)

    async def main() -> dbapi.Connection:
        db = await dbapi.connect("sqlite3", ":memory:", pool=pool)
        tasks = [asyncio.create_task(db.fetch(ENDLESS)) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in tasks)
        return db

    db = run(main())

    async def after() -> None:
        assert await within(db.fetchval("select 1")) == 1
        await db.close()
        await pool.aclose()

    run(after())


async def test_nothing_is_kept() -> None:
    """Objects of a thousand queries go."""
    async with database() as db:
        await table(db, 100)
        for _ in range(50):
            async with db.execute("select * from t") as cursor:
                await cursor.fetchone()
            async for _row in await db.execute("select * from t"):
                break
        del cursor, _row
        gc.collect()
        await until(lambda: db._lane.pending == 0)

        def left() -> int:
            gc.collect()
            return len([one for one in gc.get_objects() if type(one) is dbapi.Cursor])

        await until(lambda: left() == 0)  # a loop's turn ends what was broken out of
