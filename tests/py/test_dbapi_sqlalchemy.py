"""SQLAlchemy's asyncio API on sqlite+offloop://."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offloop
import pytest
from driving import within

pytest.importorskip("sqlalchemy", reason="needs the extra 'drivers'")

import sqlalchemy as sa
from offloop.dbapi import aiosqlite
from offloop.dbapi import sqlalchemy as dialect
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload
from sqlalchemy.pool import StaticPool

pytestmark = pytest.mark.drivers


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
