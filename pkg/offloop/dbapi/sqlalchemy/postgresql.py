"""PostgreSQL: ``create_async_engine("postgresql+offloop://user@host/database")``.

It is SQLAlchemy's own dialect for psycopg 3, over psycopg's blocking connection: SQL, types
and options are those of ``postgresql+psycopg``, and the query's way is psycopg's C, with no
coroutine in it. Needs psycopg 3.

``connect_args`` takes what ``psycopg.connect`` does, ``pool=`` (an `offloop.Pool` that
connections share; by default each has a worker of its own) and ``offload=`` (an
`offloop.dbapi.Offload`: the limit in time of a call, above all).

A query whose awaiter is cancelled is ended on the server, and its connection is closed
after it; none is handed out while a query runs on it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg

from offloop.dbapi.sqlalchemy.adapter import Connection, Cursor, ServerCursor, opened, wait

__all__ = ["PGDialect_offloop"]


class _Connection(Connection):
    """psycopg's, as SQLAlchemy wants it."""

    def cursor(self, *args: Any) -> Cursor:
        """A cursor; one with a name is the server's."""
        return ServerCursor(self, *args) if args else Cursor(self)

    def set(self, **values: Any) -> None:
        """Set attributes of the driver's connection, in order."""
        wait(self._connection._plain(_set, self._connection.raw, values))

    def ping(self) -> None:
        """Ask the server for a sign of life, outside of a transaction."""
        wait(self._connection.run(_ping))

    @property
    def closed(self) -> bool:
        """Whether it was closed, by us or by the server."""
        return self._connection.closed or bool(self._connection.raw.closed)

    @property
    def autocommit(self) -> bool:
        """Whether statements are committed by themselves. May be set."""
        return bool(self._connection.raw.autocommit)

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self.set(autocommit=value)

    def add_notice_handler(self, handler: Any) -> None:
        """Have the server's notices reported; a worker calls it."""
        self._connection.raw.add_notice_handler(handler)


def _set(raw: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(raw, name, value)


def _ping(raw: Any) -> None:
    before = raw.autocommit
    raw.autocommit = True
    try:
        raw.execute("")
    finally:
        if not before and not raw.closed:
            raw.autocommit = False


def _connect(module: Any, /, *args: Any, **kwargs: Any) -> _Connection:
    """Connect, inside of SQLAlchemy's greenlet."""
    creator = kwargs.pop("async_creator_fn", None)
    if creator is not None:  # what it makes has the pool that it was given
        return _Connection(wait(creator(*args, **kwargs)), None)
    pool, offload = kwargs.pop("pool", None), kwargs.pop("offload", None)
    return _Connection(*wait(opened(module, args, kwargs, pool, offload)))


class PGDialect_offloop(PGDialectAsync_psycopg):
    """PostgreSQL by psycopg 3's blocking connection."""

    driver = "offloop"
    supports_statement_cache = True
    has_terminate = True

    @classmethod
    def import_dbapi(cls) -> Any:
        """psycopg as SQLAlchemy wants it, with our own way to connect."""
        adapted: Any = super().import_dbapi()
        adapted.connect = partial(_connect, adapted.psycopg)
        return adapted

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> Any:
        """This one: psycopg's has another for asyncio."""
        return cls

    def do_ping(self, dbapi_connection: Any) -> Literal[True]:
        """In one hop."""
        dbapi_connection.ping()
        return True

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close, and wait for nothing."""
        dbapi_connection.terminate()

    def _type_info_fetch(self, connection: Any, name: str) -> Any:
        module: Any = self.dbapi
        found = connection.connection.driver_connection.run(module.types.TypeInfo.fetch, name)
        return wait(found)

    def _do_isolation_level(self, connection: Any, autocommit: Any, isolation_level: Any) -> None:
        connection.set(autocommit=autocommit, isolation_level=isolation_level)

    def _do_autocommit(self, connection: Any, value: Any) -> None:
        connection.set(autocommit=value)

    def set_readonly(self, connection: Any, value: Any) -> None:
        """Have transactions be only for reading, or not."""
        connection.set(read_only=value)

    def set_deferrable(self, connection: Any, value: Any) -> None:
        """Have transactions be deferrable, or not."""
        connection.set(deferrable=value)


#: As SQLAlchemy's registry asks for it.
dialect = PGDialect_offloop
