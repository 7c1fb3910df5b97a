"""SQLite: ``create_async_engine("sqlite+offloop:///app.db")``.

It is SQLAlchemy's own dialect for aiosqlite, on its greenlet adapter, with
`offloop.dbapi.aiosqlite` in aiosqlite's place.

In the URL's query, or in ``connect_args``, are what `offloop.dbapi.aiosqlite.connect`
takes; ``connect_args={"pool": pool}`` has connections share an `offloop.Pool`.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NoReturn

from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_dbapi,
    SQLiteDialect_aiosqlite,
)

import offloop
from offloop.dbapi import aiosqlite
from offloop.dbapi.sqlalchemy.adapter import wait

__all__ = ["SQLiteDialect_offloop"]


# What the drop-in says of a connection that is closed.
_CLOSED = ("no active connection", "Connection closed")


class _Connection(AsyncAdapt_aiosqlite_connection):
    """The adapter, without what looks into aiosqlite's own threads."""

    __slots__ = ()

    @property
    def isolation_level(self) -> Any:
        """As sqlite3 has it."""
        return self._connection.isolation_level

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        try:
            wait(self._connection.set_isolation_level(value))
        except Exception as error:
            self._handle_exception(error)

    def _handle_exception(self, error: Exception) -> NoReturn:
        # As SQLAlchemy knows it, 2.0 too, for a connection that has to be replaced.
        if isinstance(error, ValueError) and str(error) in _CLOSED:
            raise sqlite3.OperationalError(_CLOSED[0]) from error
        super()._handle_exception(error)
        raise error

    def rollback(self) -> None:
        """Roll back, unless it was closed."""
        self._unless_closed("rollback")

    def commit(self) -> None:
        """Commit, unless it was closed."""
        self._unless_closed("commit")

    def _unless_closed(self, name: str) -> None:
        if self._connection.closed:
            return
        try:
            wait(getattr(self._connection, name)())
        except Exception as error:
            self._handle_exception(error)


class _Module(AsyncAdapt_aiosqlite_dbapi):
    """The module as SQLAlchemy wants it."""

    def connect(self, *args: Any, **kwargs: Any) -> _Connection:
        """Connect, inside of SQLAlchemy's greenlet."""
        creator = kwargs.pop("async_creator_fn", None)
        connection = (creator or aiosqlite.connect)(*args, **kwargs)
        return _Connection(self, wait(connection))


class SQLiteDialect_offloop(SQLiteDialect_aiosqlite):
    """SQLite by `offloop.dbapi.aiosqlite`."""

    driver = "offloop"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        """The module."""
        return _Module(aiosqlite, sqlite3)

    def retrieve_dbapi_version(self, dbapi: Any) -> Any:
        """offloop's version."""
        return tuple(int(part) for part in offloop.__version__.split(".") if part.isdigit())


#: As SQLAlchemy's registry asks for it.
dialect = SQLiteDialect_offloop
