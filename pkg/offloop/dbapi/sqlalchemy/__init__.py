"""Asynchronous dialects for SQLAlchemy: ``create_async_engine("postgresql+offloop://...")``.

| URL | driver |
|---|---|
| ``sqlite+offloop://`` | `offloop.dbapi.aiosqlite`, see `offloop.dbapi.sqlalchemy.sqlite` |
| ``postgresql+offloop://`` | psycopg 3, see `offloop.dbapi.sqlalchemy.postgresql` |

Installing offloop makes them known to SQLAlchemy; `register` does so where offloop is not
installed, as in a source tree.
"""

from __future__ import annotations

from sqlalchemy.dialects import registry

__all__ = ["register"]


def register() -> None:
    """Make the dialects known to SQLAlchemy. They are imported when an engine needs them."""
    registry.register("sqlite.offloop", f"{__name__}.sqlite", "SQLiteDialect_offloop")
    registry.register("postgresql.offloop", f"{__name__}.postgresql", "PGDialect_offloop")
