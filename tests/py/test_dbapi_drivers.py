"""offloop.dbapi over other drivers, each with the real thing behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import offloop
import pytest
from driving import within
from offloop import dbapi
from test_dbapi import ended_by

pytestmark = pytest.mark.drivers


@dataclass(frozen=True)
class Case:
    """A driver, and what it can."""

    module: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    mark: str = "?"  # of a parameter
    error: str = "Error"  # a duplicate key
    endless: str = ""  # a query that takes minutes
    savepoints: bool = True
    pinned: bool = False
    offload: dbapi.Offload | None = None

    def __str__(self) -> str:
        return self.module

    @asynccontextmanager
    async def connected(self, **kwargs: Any) -> AsyncIterator[dbapi.Connection]:
        kwargs.setdefault("offload", self.offload)
        async with (
            offloop.Pool(2) as pool,
            dbapi.connect(self.module, *self.args, pool=pool, **self.kwargs, **kwargs) as db,
        ):
            yield db


CASES: dict[str, Callable[[], Case]] = {
    "duckdb": lambda: Case(
        "duckdb",
        (":memory:",),
        error="ConstraintException",
        endless="select sum(sin(a.range)) from range(1000000000) a, range(1000) b",
        savepoints=False,
    )
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield CASES[request.param]()


async def fill(db: dbapi.Connection, case: Case, count: int) -> None:
    await db.execute("drop table if exists dbapi_t")
    await db.execute("create table dbapi_t (n integer primary key, s varchar(20))")
    insert = f"insert into dbapi_t values ({case.mark}, {case.mark})"
    if count:
        await db.executemany(insert, [(i, f"s{i}") for i in range(count)])
    with suppress(Exception):  # duckdb has none open
        await db.commit()


QUERY = "select n, s from dbapi_t order by n"


async def test_rows_come_by_all_ways(case: Case) -> None:
    async with case.connected() as db:
        await fill(db, case, 300)
        assert db.pinned is case.pinned
        expected = [(i, f"s{i}") for i in range(300)]
        assert [tuple(row) for row in await db.fetch(QUERY)] == expected
        one = f"select s from dbapi_t where n = {case.mark}"
        assert tuple(await db.fetchrow(one, (5,))) == ("s5",)
        assert await db.fetchval(one, (6,)) == "s6"
        assert await db.fetchval(one, (-1,)) is None
        async with db.execute(QUERY) as cursor:
            assert [column[0] for column in cursor.description] == ["n", "s"]
            assert tuple(await cursor.fetchone()) == expected[0]
            assert [tuple(row) for row in await cursor.fetchmany(9)] == expected[1:10]
            found = [tuple(row) async for row in cursor]
        assert found == expected[10:]
        async with db.cursor() as cursor:
            await cursor.execute(one, (7,))
            assert [tuple(row) for row in await cursor.fetchall()] == [("s7",)]
            assert await cursor.fetchone() is None


async def test_the_drivers_errors(case: Case) -> None:
    async with case.connected() as db:
        await fill(db, case, 3)
        kind = getattr(db._driver.module, case.error)
        with pytest.raises(kind):
            await db.execute("insert into dbapi_t values (1, 'again')")
        with suppress(Exception):
            await db.rollback()
        with pytest.raises(db._driver.module.Error):  # type: ignore[union-attr]
            await db.fetch("select nonsense from dbapi_t")
        with suppress(Exception):
            await db.rollback()
        assert await db.fetchval("select count(*) from dbapi_t") == 3


async def test_transactions(case: Case) -> None:
    async with case.connected() as db:
        await fill(db, case, 0)
        async with db.transaction():
            await db.execute("insert into dbapi_t values (1, 'a')")
        with suppress(LookupError):
            async with db.transaction():
                await db.execute("insert into dbapi_t values (2, 'b')")
                raise LookupError
        if case.savepoints:
            async with db.transaction():
                await db.execute("insert into dbapi_t values (3, 'c')")
                with suppress(LookupError):
                    async with db.transaction():
                        await db.execute("insert into dbapi_t values (4, 'd')")
                        raise LookupError
                async with db.transaction():
                    await db.execute("insert into dbapi_t values (5, 'e')")
        found = [row[0] for row in await db.fetch("select n from dbapi_t order by n")]
        assert found == ([1, 3, 5] if case.savepoints else [1])


async def test_a_cancelled_query_is_ended(case: Case) -> None:
    async with case.connected() as db:
        for way in (db.fetch, db.execute, db.cursor().execute):
            task = asyncio.create_task(way(case.endless))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with suppress(Exception):
                await within(db.rollback())
            assert await within(db.fetchval("select 1")) == 1
        task = asyncio.create_task(db.fetch(case.endless))
        await ended_by(db.interrupt, task)
        with pytest.raises(db._driver.module.Error):  # type: ignore[union-attr]
            await within(task)
