"""Database drivers: what is measured, in a process of its own (sql.py).

A row by its key out of an SQLite file, by aiosqlite, by offloop.dbapi's pool, by aioodbc
and by offloop.dbapi over pyodbc; and 10,000 rows at once, by sqlite3 itself and by
offloop.dbapi.
"""

from __future__ import annotations

import asyncio
import glob
import json
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aioodbc
import aiosqlite
from offloop import dbapi
from offloop.bench.measure import closed_loop
from offloop.bench.options import BenchError
from rows import Numbers
from sql import Setting

CONNECTIONS = 4
ROWS = 10_000
ONE = "select id, name from t where id = ?"
ALL = "select id, name from t"

Command = Callable[[], Awaitable[object]]


def make(path: Path) -> None:
    """A database of so many rows."""
    with sqlite3.connect(path) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("create table t (id integer primary key, name text)")
        db.executemany("insert into t values (?, ?)", [(i, f"name {i}") for i in range(ROWS)])
    db.close()


def odbc(path: Path) -> str:
    """The connection string for Debian's ODBC driver of SQLite."""
    found = glob.glob("/usr/lib/*/odbc/libsqlite3odbc.so")
    if not found:
        raise BenchError("ODBC for SQLite is missing here: apt install libsqliteodbc")
    return f"Driver={found[0]};Database={path}"


def _keys() -> Callable[[], int]:
    counter = count()
    return lambda: next(counter) % ROWS


@asynccontextmanager
async def _offloop(path: Path, connections: int) -> AsyncIterator[Command]:
    key = _keys()
    async with dbapi.create_pool("sqlite3", path, minsize=connections, maxsize=connections) as pool:
        yield lambda: pool.fetchrow(ONE, (key(),))


@asynccontextmanager
async def _aiosqlite(path: Path, connections: int) -> AsyncIterator[Command]:
    key = _keys()
    free: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()
    dbs = [await aiosqlite.connect(path) for _ in range(connections)]
    for db in dbs:
        free.put_nowait(db)

    async def command() -> object:
        db = await free.get()
        try:
            async with db.execute(ONE, (key(),)) as cursor:
                return await cursor.fetchone()
        finally:
            free.put_nowait(db)

    yield command
    for db in dbs:
        await db.close()


@asynccontextmanager
async def _odbc(path: Path, connections: int) -> AsyncIterator[Command]:
    key = _keys()
    async with dbapi.create_pool(
        "pyodbc", odbc(path), minsize=connections, maxsize=connections, autocommit=True
    ) as pool:
        yield lambda: pool.fetchrow(ONE, (key(),))


@asynccontextmanager
async def _aioodbc(path: Path, connections: int) -> AsyncIterator[Command]:
    key = _keys()
    async with aioodbc.create_pool(
        dsn=odbc(path), minsize=connections, maxsize=connections, autocommit=True
    ) as pool:

        async def command() -> object:
            async with pool.acquire() as db, db.cursor() as cursor:
                await cursor.execute(ONE, key())
                return await cursor.fetchone()

        yield command


@asynccontextmanager
async def _all_rows(path: Path, connections: int) -> AsyncIterator[Command]:
    async with dbapi.connect("sqlite3", path) as db:
        yield lambda: db.fetch(ALL)


@asynccontextmanager
async def _all_rows_blocking(path: Path, connections: int) -> AsyncIterator[Command]:
    db = sqlite3.connect(path)

    async def command() -> object:
        await asyncio.sleep(0)  # the measurement's timers have to run
        return db.execute(ALL).fetchall()

    yield command
    db.close()


_KINDS: dict[tuple[str, str], Any] = {
    ("offloop", "row"): _offloop,
    ("aiosqlite", "row"): _aiosqlite,
    ("odbc", "row"): _odbc,
    ("aioodbc", "row"): _aioodbc,
    ("offloop", "rows"): _all_rows,
    ("blocking", "rows"): _all_rows_blocking,
}


async def _measured(setting: Setting) -> Numbers:
    connections = min(CONNECTIONS, setting.tasks)
    kind = _KINDS[setting.peer, setting.work]
    with tempfile.TemporaryDirectory(prefix="offloop-bench-") as folder:
        path = Path(folder) / "db"
        make(path)
        async with kind(path, connections) as command:
            found: Any = await command()
            if len(found) != (2 if setting.work == "row" else ROWS):
                raise BenchError(f"{setting.peer} found {len(found)}")
            sample = await closed_loop(
                command,
                tasks=setting.tasks,
                secs=setting.secs,
                warmup=min(0.5, setting.secs / 4),
            )
    return {
        "ops_per_s": sample.ops_per_s,
        "p50_us": sample.p50_us,
        "p99_us": sample.p99_us,
        "cpu_us": sample.cpu_us,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measured(Setting(**json.loads(sys.stdin.read()))))))
