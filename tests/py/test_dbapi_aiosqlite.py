"""aiosqlite's own tests on offloop.dbapi.aiosqlite, with nothing but the import changed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import offloop
import pytest
from driving import until, within
from leaks import native_threads
from offloop.dbapi import Offload, aiosqlite
from upstreams import UPSTREAM, distributions

#: Tests that look into aiosqlite's own threads and queues. None is here because it fails
#: otherwise.
WHITE_BOX = {
    "test_connect_base_exception": "asks Connection._running, whether its thread was stopped",
    "test_close_blocking_until_transaction_queue_empty": "asks Connection._tx, its queue",
}


@pytest.mark.drivers
@pytest.mark.limit(300)
def test_its_own_suite(tmp_path: Path) -> None:
    """What passes on aiosqlite itself is not asked: all of its tests have to pass here."""
    distribution = distributions()
    suite = distribution.AIOSQLITE
    change = distribution.swapped("aiosqlite", "offloop.dbapi.aiosqlite")
    suite.unpack(tmp_path / "aiosqlite_tests", change)
    done = subprocess.run(
        [sys.executable, UPSTREAM / "inside_unittest.py", tmp_path, "aiosqlite_tests.smoke"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) >= 30
    assert set(WHITE_BOX) <= set(outcomes), "a test that is left out is not there any more"
    wrong = {
        name: outcome
        for name, outcome in outcomes.items()
        if not outcome.startswith(("passed", "skipped")) and name not in WHITE_BOX
    }
    assert wrong == {}
    assert sum(outcome == "passed" for outcome in outcomes.values()) >= 26
    assert "Traceback" not in done.stderr


async def test_what_the_white_box_tests_are_about(tmp_path: Path) -> None:
    async with offloop.Pool(2) as pool:

        def cancelled() -> sqlite3.Connection:
            raise asyncio.CancelledError("I changed my mind")

        connection = aiosqlite.Connection(cancelled, 64, pool=pool)
        with pytest.raises(asyncio.CancelledError, match="I changed my mind"):
            async with connection:
                raise AssertionError
        assert connection.closed
        db = await aiosqlite.connect(tmp_path / "db", pool=pool)
        calls = [asyncio.create_task(db.execute_fetchall("select ?", (i,))) for i in range(50)]
        await asyncio.sleep(0)
        await db.close()  # after what is under way
        assert await asyncio.gather(*calls) == [[(i,)] for i in range(50)]


async def test_a_thread_for_each_connection_and_its_end(tmp_path: Path) -> None:
    before = set(native_threads())
    dbs = [await aiosqlite.connect(tmp_path / "db") for _ in range(3)]
    assert all(db.pool.workers == 1 for db in dbs)
    assert len(set(native_threads()) - before) == 3
    await dbs[0].close()
    assert dbs[0].pool.closed
    stopped = dbs[1].stop()
    assert stopped is not None
    await stopped
    with pytest.warns(ResourceWarning, match="deleted before being closed"):
        del dbs
    with pytest.raises(sqlite3.OperationalError):
        await aiosqlite.connect(tmp_path / "no" / "db")
    # While the loop is there: what nobody waits for comes home to it, too.
    await until(lambda: not set(native_threads()) - before)


async def test_a_row_factory_that_is_set_after_executing() -> None:
    async with offloop.Pool(1) as pool, aiosqlite.connect(":memory:", pool=pool) as db:
        async with db.execute("select 1 as a union select 2") as cursor:
            cursor.row_factory = aiosqlite.Row
            row = await cursor.fetchone()
            assert isinstance(row, sqlite3.Row) and row["a"] == 1
            cursor.row_factory = None
            assert await cursor.fetchall() == [(2,)]
        async with db.execute("select 3") as cursor:
            cursor.row_factory = lambda raw, row: [raw.description[0][0], *row]
            assert await cursor.fetchall() == [["3", 3]]


async def test_what_it_has_besides(tmp_path: Path) -> None:
    async with offloop.Pool(1) as pool:
        async with aiosqlite.connect(tmp_path / "db", pool=pool, iter_chunk_size=2) as db:
            await db.execute("create table t (n)")
            async with db.transaction():
                await db.executemany("insert into t values (?)", [(i,) for i in range(9)])
            assert await db.fetchval("select count(*) from t") == 9
            async with db.execute("select n from t order by n") as cursor:
                assert cursor.iter_chunk_size == 2
                assert [row[0] async for row in cursor] == list(range(9))
        with pytest.raises(ValueError, match="closed"):
            await db.execute("select 1")
        with pytest.raises(ValueError, match="no active connection"):
            _ = db.total_changes
        with pytest.warns(DeprecationWarning, match="loop"):
            aiosqlite.connect(":memory:", loop=asyncio.get_running_loop(), pool=pool)


@pytest.mark.parametrize("interrupt", [False, True])
async def test_a_cancelled_statement_goes_on_unless_it_is_asked_for(interrupt: bool) -> None:
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?)"
    offload = Offload(interrupt=True) if interrupt else None
    async with aiosqlite.connect(":memory:", offload=offload) as db:
        await db.execute("create table t (n)")
        await db.execute("insert into t values (0)")
        began = threading.Event()

        def seen(number: int) -> int:
            began.set()
            return number

        await db.create_function("seen", 1, seen)
        count = 10**12 if interrupt else 30_000
        insert = endless + " insert into t select seen(i) from n"
        task = asyncio.create_task(db.execute(insert, (count,)))
        await until(began.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        found = await within(db.execute_fetchall("select count(*) from t"))
        # SQLite rolls the whole transaction back when it is interrupted.
        assert found == ([(0,)] if interrupt else [(count + 1,)])
