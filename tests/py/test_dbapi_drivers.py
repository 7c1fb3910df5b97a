"""offloop.dbapi over other drivers, each with the real thing behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import offloop
import pytest
from databases import Mariadb, Postgres, configure_odbc, odbc_driver
from driving import within
from leaks import Watch
from offloop import dbapi
from test_dbapi import ended_by

# One process starts the servers, for all of them.
pytestmark = [pytest.mark.drivers, pytest.mark.xdist_group("drivers"), pytest.mark.limit(240)]


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
    told: bool = True  # by the driver, whether a transaction is open

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


def _mysql(module: str, server: Mariadb, **kwargs: Any) -> Case:
    return Case(
        module,
        kwargs={"unix_socket": server.socket, "user": "root", "database": "test"},
        mark="%s",
        error="IntegrityError",
        endless="select count(*) from seq_1_to_1000000 a, seq_1_to_1000000 b",
        offload=dbapi.Offload(kill_query=True),
        told=False,
        **kwargs,
    )


CASES: dict[str, Callable[[Services], Case]] = {
    "duckdb": lambda services: Case(
        "duckdb",
        (str(services.folder / "duck"),),
        error="ConstraintException",
        endless="select sum(sin(a.range)) from range(1000000000) a, range(1000) b",
        savepoints=False,
        told=False,
    ),
    "psycopg": lambda services: Case(
        "psycopg",
        (services.postgres.dsn,),
        mark="%s",
        error="IntegrityError",
        endless="select count(*) from generate_series(1, 1000000000000)",
    ),
    "pyodbc-sqlite": lambda services: Case(
        "pyodbc",
        (f"Driver={odbc_driver('libsqlite3odbc.so')};Database={services.folder}/db",),
        error="Error",
        told=False,
    ),
    "pyodbc-postgresql": lambda services: Case(
        "pyodbc",
        (services.postgres.odbc,),
        error="IntegrityError",
        endless="select count(*) from generate_series(1, 1000000000000)",
        told=False,
    ),
    "pymysql": lambda services: _mysql("pymysql", services.mariadb),
    "mysqlclient": lambda services: _mysql("MySQLdb", services.mariadb, pinned=True),
}


class Services:
    """The servers, each started when the first test needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()

    @cached_property
    def postgres(self) -> Postgres:
        return self._stack.enter_context(Postgres())  # type: ignore[no-any-return]

    @cached_property
    def mariadb(self) -> Mariadb:
        return self._stack.enter_context(Mariadb())  # type: ignore[no-any-return]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    services = Services(tmp_path_factory.mktemp("services"))
    configure_odbc(services.folder)
    yield services
    services.close()


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, services: Services) -> Case:
    return CASES[request.param](services)


@pytest.fixture(autouse=True)
def leaks(case: Case, leaks: Watch) -> Watch:
    """The servers are started before the look at what there is."""
    return leaks


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
    if not case.endless:
        pytest.skip("its ODBC driver fetches without looking at SQLCancel")
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


async def test_a_pool_lends_nothing_that_is_open(case: Case) -> None:
    async with case.connected() as db:
        await fill(db, case, 1)
    async with (
        offloop.Pool(3) as threads,
        dbapi.create_pool(
            case.module,
            *case.args,
            pool=threads,
            offload=case.offload,
            minsize=1,
            maxsize=1,
            check=0,
            **case.kwargs,
        ) as pool,
    ):
        async with pool.acquire() as db:
            async with db.transaction():
                await db.execute("insert into dbapi_t values (1, 'a')")
            if case.module != "duckdb":
                await db.execute("insert into dbapi_t values (2, 'b')")  # and left open
        async with pool.acquire() as again:
            assert again is db
            found = await db.fetch("select n from dbapi_t order by n")
            assert [row[0] for row in found] == [0, 1]
            if case.told:
                assert db.in_transaction
        assert await pool.execute("insert into dbapi_t values (3, 'c')") in (1, -1)
        assert await pool.fetchval("select count(*) from dbapi_t") == 3
        with pytest.raises(db._driver.module.Error):  # type: ignore[union-attr]
            await pool.execute("insert into dbapi_t values (3, 'c')")
        assert await pool.fetchval("select count(*) from dbapi_t") == 3
        if case.endless:
            task = asyncio.create_task(pool.fetch(case.endless))
            await asyncio.sleep(0.05)
            task.cancel()
            assert await within(pool.fetchval("select count(*) from dbapi_t")) == 3


async def test_a_connection_that_the_server_ended_is_replaced(case: Case) -> None:
    ends = {"psycopg": "select pg_terminate_backend(%s)", "pymysql": "kill %s"}
    ask = {"psycopg": "select pg_backend_pid()", "pymysql": "select connection_id()"}
    name = case.module if "Driver" not in str(case.args) else ""
    if name not in ends:
        pytest.skip("one driver for each server is enough")
    async with dbapi.create_pool(case.module, *case.args, **case.kwargs, maxsize=2) as pool:
        async with pool.acquire() as db, pool.acquire() as other:
            number = await db.fetchval(ask[name])
            with suppress(Exception):
                await other.execute(ends[name] % number)
            with pytest.raises(db._driver.module.Error):  # type: ignore[union-attr]
                for _ in range(100):
                    await db.fetchval("select 1")
                    await asyncio.sleep(0.01)
        for _ in range(5):
            async with pool.acquire() as one, pool.acquire() as two:
                assert db not in (one, two)
                assert await one.fetchval("select 1") == 1
