"""SQLAlchemy's asyncio API on sqlite+offloop:// and on postgresql+offloop://."""

from __future__ import annotations

import asyncio
import gc
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import offloop
import pytest
from databases import Postgres
from driving import until, within
from leaks import Watch

pytest.importorskip("sqlalchemy", reason="needs the extra 'drivers'")

import psycopg
import sqlalchemy as sa
from offloop.dbapi import Connection, aiosqlite
from offloop.dbapi import sqlalchemy as dialect
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload
from sqlalchemy.pool import StaticPool

# One process starts the server.
pytestmark = [pytest.mark.drivers, pytest.mark.xdist_group("drivers"), pytest.mark.limit(240)]


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(sa.ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """A source tree has no entry points."""
    dialect.register()
    yield


def engine_of(path: Path | None, **kwargs: Any) -> AsyncEngine:
    where = ":memory:" if path is None else str(path / "db")
    return create_async_engine(f"sqlite+offloop:///{where}", **kwargs)


async def test_core(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    assert engine.dialect.driver == "offloop" and engine.dialect.is_async
    async with engine.begin() as db:
        await db.run_sync(Base.metadata.create_all)
        await db.execute(sa.insert(Author), [{"name": f"a{i}"} for i in range(300)])
    async with engine.connect() as db:
        raw = (await db.get_raw_connection()).driver_connection
        assert isinstance(raw, aiosqlite.Connection)
        found = await db.scalars(sa.select(Author.name).order_by(Author.id))
        assert found.all() == [f"a{i}" for i in range(300)]
        rows = await db.stream(sa.select(Author.id).order_by(Author.id))
        assert [row.id async for row in rows] == list(range(1, 301))
        await db.execute(sa.delete(Author))
        await db.rollback()
        assert await db.scalar(sa.select(sa.func.count()).select_from(Author)) == 300
    with pytest.raises(sa.exc.IntegrityError):
        async with engine.begin() as db:
            await db.execute(sa.insert(Author), {"name": "a1"})
    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        async with engine.connect() as db:
            await db.execute(sa.text("select * from missing"))
    await engine.dispose()


async def test_sessions_of_many_tasks(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, connect_args={"timeout": 60})
    async with engine.begin() as db:
        await db.run_sync(Base.metadata.create_all)

    async def write(number: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            author = Author(name=f"a{number}")
            author.books = [Book(title=f"b{i}") for i in range(3)]
            session.add(author)

    await within(asyncio.gather(*[write(i) for i in range(12)]), 60)
    async with AsyncSession(engine) as session:
        authors = await session.scalars(
            sa.select(Author).options(selectinload(Author.books)).order_by(Author.id)
        )
        found = authors.all()
        assert {author.name for author in found} == {f"a{i}" for i in range(12)}
        assert all([book.title for book in author.books] == ["b0", "b1", "b2"] for author in found)
        async with session.begin_nested() as inner:
            session.add(Author(name="new"))
            await session.flush()
            await inner.rollback()
        assert await session.scalar(sa.select(sa.func.count(Author.id))) == 12
    await engine.dispose()


async def test_a_pool_of_threads_and_isolation_levels(tmp_path: Path) -> None:
    async with offloop.Pool(5) as threads:
        engine = engine_of(tmp_path, connect_args={"pool": threads})
        async with engine.connect() as db:
            raw = (await db.get_raw_connection()).driver_connection
            assert raw is not None and raw.pool is threads
            await db.execution_options(isolation_level="AUTOCOMMIT")
            await db.execute(sa.text("create table t (n)"))
            await db.execute(sa.text("insert into t values (1)"))
        async with engine.connect() as db:
            assert await db.scalar(sa.text("select count(*) from t")) == 1
            assert await db.get_isolation_level() == "SERIALIZABLE"
        await engine.dispose()


async def test_in_memory() -> None:
    engine = engine_of(None, poolclass=StaticPool)
    async with engine.begin() as db:
        await db.execute(sa.text("create table t (n)"))
        await db.execute(sa.text("insert into t values (5)"))
    async with engine.connect() as db:
        assert await db.scalar(sa.text("select n from t where cast(n as text) regexp '5'")) == 5
    await engine.dispose()


async def test_a_connection_that_is_gone_is_replaced(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    async with engine.connect() as db:
        raw = (await db.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.close()
        with pytest.raises(sa.exc.OperationalError) as caught:
            await db.execute(sa.text("select 1"))
        assert caught.value.connection_invalidated
    async with engine.connect() as db:
        assert await db.scalar(sa.text("select 1")) == 1
    await engine.dispose()


# ---- postgresql+offloop -----------------------------------------------------------------

ENDLESS = sa.text("select count(*) from generate_series(1, 1000000000000)")
ACTIVE = """select count(*) from pg_stat_activity
    where state = 'active' and backend_type = 'client backend' and pid != pg_backend_pid()"""
PID = sa.text("select pg_backend_pid()")


@pytest.fixture(scope="session")
def _postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(_postgres: Postgres, leaks: Watch) -> Postgres:
    with psycopg.connect(_postgres.dsn, autocommit=True) as db:
        db.execute("drop schema public cascade")
        db.execute("create schema public")
    return _postgres


def url_of(postgres: Postgres) -> str:
    return f"postgresql+offloop://test@/postgres?host={postgres.dir}"


@asynccontextmanager
async def engine_on(postgres: Postgres, **kwargs: Any) -> AsyncIterator[AsyncEngine]:
    """An engine; every backend of it is gone afterwards."""
    name = f"engine-{uuid.uuid4()}"
    url = f"{url_of(postgres)}&application_name={name}"
    engine = create_async_engine(url, **kwargs)
    try:
        yield engine
    finally:
        await engine.dispose()
    count = "select count(*) from pg_stat_activity where application_name = %s"
    with psycopg.connect(postgres.dsn, autocommit=True) as db:
        await until(lambda: db.execute(count, (name,)).fetchall() == [(0,)])


async def pid_of(db: AsyncConnection) -> int:
    found: int = await db.scalar(PID)
    return found


async def raw_of(db: AsyncConnection) -> Connection:
    found = (await db.get_raw_connection()).driver_connection
    assert isinstance(found, Connection)
    return found


async def test_postgresql_core(postgres: Postgres) -> None:
    async with engine_on(postgres) as engine:
        assert engine.dialect.driver == "offloop" and engine.dialect.is_async
        async with engine.begin() as db:
            await db.run_sync(Base.metadata.create_all)
            names = [{"name": f"a{i}"} for i in range(2500)]  # in several statements
            many = sa.insert(Author).returning(Author.id, sort_by_parameter_order=True)
            ids = (await db.scalars(many, names)).all()
            assert ids == list(range(1, 2501))
            one = await db.execute(sa.insert(Author).values(name="one"))
            assert one.inserted_primary_key == (2501,)
            changed = sa.update(Author).where(Author.id > 2490).values(name=Author.name + "x")
            assert (await db.execute(changed)).rowcount == 11
            gone = sa.delete(Author).where(Author.id > 2499).returning(Author.name)
            assert sorted((await db.scalars(gone)).all()) == ["a2499x", "onex"]
            # As executemany() of the driver, too.
            await db.execute(
                sa.update(Author).where(Author.id == sa.bindparam("i")).values(name="z"),
                [{"i": 1}],
            )
            raw = await raw_of(db)
            assert isinstance(raw.raw, psycopg.Connection)
            assert await raw.fetchval("select name from author where id = 1") == "z"
            tables = await db.run_sync(lambda db: sa.inspect(db).get_table_names())
            assert sorted(tables) == ["author", "book"]
        with pytest.raises(sa.exc.IntegrityError, match="author_name_key"):
            async with engine.begin() as db:
                await db.execute(sa.insert(Author), {"name": "z"})
        with pytest.raises(sa.exc.ProgrammingError, match="missing"):
            async with engine.connect() as db:
                await db.execute(sa.text("select * from missing"))


async def test_postgresql_types(postgres: Postgres) -> None:
    kinds = sa.Table(
        "kinds",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("json", sa.JSON),
        sa.Column("jsonb", postgresql.JSONB),
        sa.Column("hstore", postgresql.HSTORE),
        sa.Column("array", postgresql.ARRAY(sa.Integer)),
        sa.Column("range", postgresql.INT4RANGE),
        sa.Column("uuid", sa.Uuid),
        sa.Column("number", sa.Numeric(20, 5)),
        sa.Column("time", sa.DateTime(timezone=True)),
        sa.Column("span", sa.Interval),
        sa.Column("bytes", sa.LargeBinary),
        sa.Column("kind", sa.Enum("a", "b", name="kind")),
    )
    row = {
        "id": 1,
        "json": {"a": [1, None, "\u00fc"]},
        "jsonb": [{"b": 1.5}],
        "hstore": {"k": "v", "n": None},
        "array": [1, 2, 3],
        "range": postgresql.Range(1, 5),
        "uuid": uuid.UUID(int=7),
        "number": Decimal("12345.67891"),
        "time": datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc),
        "span": timedelta(days=2, seconds=3),
        "bytes": bytes(range(256)),
        "kind": "b",
    }
    with psycopg.connect(postgres.dsn) as plain:
        plain.execute("create extension hstore")
    async with engine_on(postgres) as engine:
        async with engine.begin() as db:
            await db.run_sync(kinds.metadata.create_all)
            await db.execute(sa.insert(kinds), row)
        async with engine.connect() as db:
            found = (await db.execute(sa.select(kinds))).mappings().one()
            assert dict(found) == row
            inner = sa.select(kinds.c.jsonb[0]["b"].as_float(), kinds.c.json["a"][0].as_integer())
            assert (await db.execute(inner)).one() == (1.5, 1)


async def test_postgresql_streams(postgres: Postgres) -> None:
    series = sa.text("select n from generate_series(1, 3000) n")
    async with engine_on(postgres, pool_size=1, max_overflow=0) as engine:
        async with engine.connect() as db:
            cursors = sa.text("select count(*) from pg_cursors where name like 'c\\_%'")
            rows = await db.stream(series)
            assert [row.n async for row in rows] == list(range(1, 3001))
            assert await db.scalar(cursors) == 0
            selected = sa.select(sa.func.generate_series(1, 3000))
            async with db.stream(selected, execution_options={"yield_per": 7}) as rows:
                assert len(await anext(rows.partitions())) == 7
            assert await db.scalar(cursors) == 0
            left = await db.stream(series)  # and left open
            assert (await left.fetchone()) == (1,)
            assert await db.scalar(cursors) == 1
            with pytest.raises(sa.exc.DataError):
                rows = await db.stream(sa.text(f"select 10 / (n - 2000) from ({series}) t"))
                async for _ in rows:
                    pass
        async with engine.connect() as db:
            assert await db.scalar(sa.text("select count(*) from pg_cursors")) == 0
        async with AsyncSession(engine) as session:
            found = await session.stream_scalars(sa.select(sa.func.generate_series(1, 10)))
            assert await found.all() == list(range(1, 11))


async def test_postgresql_sessions_of_many_tasks(postgres: Postgres) -> None:
    async with engine_on(postgres, pool_size=3, max_overflow=2) as engine:
        async with engine.begin() as db:
            await db.run_sync(Base.metadata.create_all)

        async def write(number: int) -> None:
            async with AsyncSession(engine) as session, session.begin():
                author = Author(name=f"a{number}")
                author.books = [Book(title=f"b{i}") for i in range(3)]
                session.add(author)

        await within(asyncio.gather(*[write(i) for i in range(30)]), 60)
        async with AsyncSession(engine) as session:
            query = sa.select(Author).options(selectinload(Author.books))
            authors = (await session.scalars(query)).all()
            assert {author.name for author in authors} == {f"a{i}" for i in range(30)}
            assert all(len(author.books) == 3 for author in authors)
            async with session.begin_nested() as inner:
                session.add(Author(name="new"))
                await session.flush()
                await inner.rollback()
            with pytest.raises(sa.exc.IntegrityError):
                async with session.begin_nested():
                    session.add(Author(name="a1"))
            assert await session.scalar(sa.select(sa.func.count(Author.id))) == 30


async def test_postgresql_locks_among_connections(postgres: Postgres) -> None:
    """More connections wait for a lock than a pool of threads might have workers."""
    async with engine_on(postgres, pool_size=12) as engine:
        async with engine.begin() as db:
            await db.execute(sa.text("create table t (n int)"))
            await db.execute(sa.text("insert into t values (0)"))

        async def add() -> None:
            async with engine.begin() as db:
                await db.execute(sa.text("select n from t for update"))
                await asyncio.sleep(0.001)
                await db.execute(sa.text("update t set n = n + 1"))

        await within(asyncio.gather(*[add() for _ in range(12)]), 60)
        async with engine.connect() as db:
            assert await db.scalar(sa.text("select n from t")) == 12


async def test_postgresql_isolation_levels(postgres: Postgres) -> None:
    async with (
        offloop.Pool(2) as threads,
        engine_on(
            postgres, isolation_level="REPEATABLE READ", connect_args={"pool": threads}
        ) as engine,
    ):
        async with engine.connect() as db:
            assert (await raw_of(db)).pool is threads
            assert await db.get_isolation_level() == "REPEATABLE READ"
        async with engine.connect() as db:
            await db.execution_options(isolation_level="AUTOCOMMIT")
            await db.execute(sa.text("create table t (n int)"))
            await db.execute(sa.text("insert into t values (1)"))
            await db.execute(sa.text("vacuum t"))  # which no transaction may have
        async with engine.connect() as db:
            assert await db.get_isolation_level() == "REPEATABLE READ"
            assert await db.scalar(sa.text("select count(*) from t")) == 1
        async with engine.connect() as db:
            await db.execution_options(
                isolation_level="SERIALIZABLE", postgresql_readonly=True, postgresql_deferrable=True
            )
            assert await db.get_isolation_level() == "SERIALIZABLE"
            assert await db.scalar(sa.text("show transaction_deferrable")) == "on"
            with pytest.raises(sa.exc.InternalError, match="read-only"):
                await db.execute(sa.text("insert into t values (2)"))
        async with engine.begin() as db:
            await db.execute(sa.text("insert into t values (2)"))


async def test_postgresql_backends_that_are_gone(postgres: Postgres) -> None:
    end = sa.text("select pg_terminate_backend(:pid, 10000)")
    async with (
        engine_on(postgres, pool_size=1, pool_pre_ping=True) as engine,
        engine_on(postgres, pool_size=1, isolation_level="AUTOCOMMIT") as other,
        other.connect() as killer,
    ):
        async with engine.connect() as db:
            pid = await pid_of(db)
            assert await killer.scalar(end, {"pid": pid})
            with pytest.raises(sa.exc.OperationalError) as caught:
                await db.execute(PID)
            assert caught.value.connection_invalidated
        async with engine.connect() as db:
            again = await pid_of(db)
            assert again != pid
        # The ping notices it, and leaves no transaction open.
        assert await killer.scalar(end, {"pid": again})
        async with engine.connect() as db:
            new = await pid_of(db)
            assert new != again
        async with engine.connect() as db:
            assert (await raw_of(db)).in_transaction is False
            assert await pid_of(db) == new


async def test_postgresql_a_server_that_is_not_there(postgres: Postgres) -> None:
    engine = create_async_engine(f"postgresql+offloop://test@/postgres?host={postgres.dir}/none")
    with pytest.raises(sa.exc.OperationalError):
        await engine.connect()


@asynccontextmanager
async def watching(postgres: Postgres) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Tells how many queries of others the server executes."""
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as db:

        async def running() -> int:
            row = await (await db.execute(ACTIVE)).fetchone()
            assert row is not None
            return int(row[0])

        yield running


async def test_postgresql_a_cancelled_query(postgres: Postgres) -> None:
    """It is ended on the server, and its connection is not handed out."""
    pids: list[int] = []
    async with (
        watching(postgres) as running,
        engine_on(postgres, pool_size=1, max_overflow=0) as engine,
    ):

        async def query(stream: bool) -> None:
            async with engine.connect() as db:
                pids.append(await pid_of(db))
                await (db.stream(ENDLESS) if stream else db.execute(ENDLESS))

        for stream in (False, True, False):
            task = asyncio.create_task(query(stream))
            while not await running():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(task)
            async with engine.connect() as db:
                assert await within(pid_of(db)) not in pids
            while await within(running()):
                await asyncio.sleep(0.01)
        # One that is cancelled in a transaction leaves nothing of it.
        async with engine.begin() as db:
            await db.execute(sa.text("create table t (n int)"))

        async def change() -> None:
            async with engine.begin() as db:
                await db.execute(sa.text("insert into t values (1)"))
                await db.execute(ENDLESS)

        task = asyncio.create_task(change())
        while not await running():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        async with engine.begin() as db:
            await within(db.execute(sa.text("lock table t in access exclusive mode")))
            assert await db.scalar(sa.text("select count(*) from t")) == 0


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning", "ignore::ResourceWarning")
async def test_postgresql_connections_that_are_dropped(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine_on(postgres, pool_size=1, max_overflow=0) as engine:
        db: AsyncConnection | None = await engine.connect()
        assert db is not None
        pid = await pid_of(db)
        rows: Any = await db.stream(sa.text("select generate_series(1, 1000)"))
        del db, rows
        gc.collect()
        async with engine.connect() as db:
            assert await within(pid_of(db)) != pid
    assert "garbage collector" in caplog.text


async def test_postgresql_two_phases_and_notices(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sqlalchemy.dialects.postgresql")
    async with engine_on(postgres) as engine:
        async with engine.begin() as db:
            await db.execute(sa.text("do $$ begin raise notice 'something'; end $$"))
            await db.execute(sa.text("create table t (n int)"))
        assert "something" in caplog.text

        def prepared(db: sa.Connection) -> list[Any]:
            transaction = db.begin_twophase()
            db.execute(sa.text("insert into t values (1)"))
            transaction.prepare()
            transaction.commit()
            with db.begin_twophase() as transaction:
                db.execute(sa.text("insert into t values (2)"))
                transaction.rollback()
            return list(db.recover_twophase())

        async with engine.connect() as db:
            assert await db.run_sync(prepared) == []
        async with engine.connect() as db:
            assert (await db.scalars(sa.text("select n from t"))).all() == [1]
