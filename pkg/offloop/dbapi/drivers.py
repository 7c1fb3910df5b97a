"""What is known of the PEP 249 modules: which thread may do what, how a transaction is
seen and begun, how a query is ended early.

`driver_of` finds the rules for a module. Those of `Driver` itself hold for any module
that keeps to PEP 249; what is better known has a class here.
"""

from __future__ import annotations

import importlib
import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any

__all__ = ["AT_ONCE", "BESIDE", "Driver", "Offload", "driver_of"]

# The ways in which a query is ended early.
AT_ONCE = "at once"  # by a method that does not block and does not release the GIL
BESIDE = "beside"  # by one that blocks, in a thread of its own


@dataclass(frozen=True)
class Offload:
    """How a connection's calls are made; ``offload=`` of `connect` and `create_pool`.

    Attributes:
        pinned: whether one and the same thread makes all calls of a connection. None
            lets the module's ``threadsafety``, and what is known of it, decide.
        prefetch: how many rows come along with ``execute``, in the same hop; 0 to 65536.
            ``async for`` begins with so many and takes more and more at a time. With 0
            each fetch is the driver's own.
        timeout: seconds for each call, or None: after them a `CallTimeoutError`.
        interrupt: whether a query whose awaiter was cancelled, or timed out, is ended
            early where the driver can; or a function of the driver's connection that
            ends it. It is called in a thread of its own.
        kill_query: end queries of MySQL by ``KILL QUERY`` on a second connection.

    Raises:
        ValueError: prefetch is out of range.
    """

    pinned: bool | None = None
    prefetch: int = 64
    timeout: float | None = None
    interrupt: bool | Callable[[Any], object] = True
    kill_query: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.prefetch <= 65536:
            raise ValueError(f"prefetch must be 0 to 65536, not {self.prefetch}")


class Driver:
    """The rules for a module. What has ``raw`` as its parameter is called by a worker,
    on the connection's lane, if it does not say otherwise."""

    ends = ""
    #: Whether a cursor that is exhausted holds nothing.
    light = False
    #: Whether cursors have to be closed before their connection is.
    tidy = False

    def __init__(self, module: ModuleType | None, name: str) -> None:
        self.module = module
        self.name = name

    # ---- threads

    def pinned(self, kwargs: dict[str, Any]) -> bool:
        """Whether one thread has to make all calls. From 1 on, threads may share the
        module, but not a connection; what that says of one that is handed from thread to
        thread is for each driver to say, so it is not done where nothing is known."""
        return int(getattr(self.module, "threadsafety", 1)) < 2

    @property
    def alone(self) -> bool:
        """Whether threads may not even share the module: all its connections of a pool
        of threads are on one lane then."""
        return int(getattr(self.module, "threadsafety", 1)) < 1

    # ---- connections

    def connect(self, args: tuple[Any, ...], kwargs: dict[str, Any], pinned: bool) -> Any:
        """Connect; the driver's own connection."""
        assert self.module is not None
        return self.module.connect(*args, **kwargs)

    def cursor_of(self, raw: Any) -> Any:
        """A cursor in the connection's own transaction, for one statement."""
        return raw.cursor()

    def close_cursor(self, cursor: Any) -> None:
        """Close what `cursor_of` gave."""
        cursor.close()

    def looks_open(self, raw: Any) -> bool:
        """Whether nothing is known that speaks against it. Thread: any."""
        return True

    def is_open(self, raw: Any) -> bool:
        """Whether the connection can be used still: it is asked something."""
        cursor = raw.cursor()
        try:
            cursor.execute("SELECT 1")
            cursor.fetchall()
        finally:
            cursor.close()
        return True

    def take(self, cursor: Any, rows: deque[Any], count: int) -> bool:
        """Fetch up to count rows and append them; whether there may be more. If a row
        cannot be had, those before it are appended."""
        found = cursor.fetchmany(count)
        rows.extend(found)
        return len(found) == count

    # ---- transactions

    def in_transaction(self, raw: Any) -> bool | None:
        """Whether one is open; None if the driver does not know. Asks the server for
        nothing. Thread: any."""
        known = getattr(raw, "in_transaction", None)
        return None if known is None else bool(known)

    def autocommit(self, raw: Any) -> bool | None:
        """Whether statements are committed by themselves. Thread: any."""
        known = getattr(raw, "autocommit", None)
        return None if known is None or callable(known) else bool(known)

    def set_autocommit(self, raw: Any, value: Any) -> None:
        """Have statements committed by themselves, or not."""
        if callable(raw.autocommit):
            raw.autocommit(value)
        else:
            raw.autocommit = value

    def begin(self, raw: Any, statement: str | None) -> Callable[[Any], object] | None:
        """Begin a transaction. What is returned is called after its end."""
        if statement is None and self.autocommit(raw):
            statement = "BEGIN"
        if statement is not None:
            self.run(raw, statement)
        return None

    def commit(self, raw: Any) -> None:
        """Commit."""
        raw.commit()

    def rollback(self, raw: Any) -> None:
        """Roll back."""
        raw.rollback()

    def reset(self, raw: Any) -> None:
        """Leave no transaction open."""
        if self.in_transaction(raw) is not False:
            raw.rollback()

    def settle(self, raw: Any) -> None:
        """Commit what one statement has done."""
        found = self.in_transaction(raw)
        if found or (found is None and not self.autocommit(raw)):
            self.commit(raw)

    def run(self, raw: Any, statement: str) -> None:
        """Execute a statement whose result is of no interest."""
        cursor = self.cursor_of(raw)
        try:
            cursor.execute(statement)
        finally:
            self.close_cursor(cursor)

    # ---- ending a query early

    def way_to_end(self, offload: Offload) -> str:
        """How a query is ended early: "", `AT_ONCE` or `BESIDE`."""
        return self.ends

    def interrupt(self, raw: Any) -> Callable[[], object] | None:
        """What ends a query at once, if `ends` is that. Thread: any."""
        return None

    def cancel(self, raw: Any, cursor: Any, name: Any, again: Callable[[], Any]) -> None:
        """End what is executed by the cursor; again() connects as raw did, and name is
        what `name_of` gave. Blocks. Thread: one of its own."""

    def name_of(self, raw: Any) -> Any:
        """What the server calls a new connection, if `cancel` needs that."""
        return None


class Sqlite3(Driver):
    """sqlite3. Its connections may go from thread to thread, if they are told so."""

    ends = AT_ONCE
    light = True

    def pinned(self, kwargs: dict[str, Any]) -> bool:
        """As the user says."""
        return bool(kwargs.get("check_same_thread", False))

    def connect(self, args: tuple[Any, ...], kwargs: dict[str, Any], pinned: bool) -> Any:
        """Connect; which thread may use it is the lane's business."""
        assert self.module is not None
        if len(args) < 5:
            kwargs = {"check_same_thread": pinned, **kwargs}
        return self.module.connect(*args, **kwargs)

    def is_open(self, raw: Any) -> bool:
        """Whether it was closed: there is no server to be asked."""
        raw.total_changes  # noqa: B018
        return True

    def take(self, cursor: Any, rows: deque[Any], count: int) -> bool:
        """One by one: each row is computed when it is fetched, and may fail."""
        before = len(rows)
        rows.extend(islice(cursor, count))
        return len(rows) - before == count

    def in_transaction(self, raw: Any) -> bool | None:
        """With autocommit=False, of Python 3.12, one is always open."""
        if getattr(raw, "autocommit", -1) is False:
            return None
        return bool(raw.in_transaction)

    def begin(self, raw: Any, statement: str | None) -> Callable[[Any], object] | None:
        """By BEGIN, since sqlite3 itself begins one only with what changes data."""
        if raw.in_transaction and statement is None:
            return None
        raw.execute(statement or "BEGIN")
        return None

    def commit(self, raw: Any) -> None:
        """With autocommit=True, of Python 3.12, sqlite3's commit() does nothing."""
        if getattr(raw, "autocommit", -1) is not True:
            raw.commit()
        elif raw.in_transaction:
            raw.execute("COMMIT")

    def rollback(self, raw: Any) -> None:
        """As `commit`."""
        if getattr(raw, "autocommit", -1) is not True:
            raw.rollback()
        elif raw.in_transaction:
            raw.execute("ROLLBACK")

    def reset(self, raw: Any) -> None:
        """Leave no transaction open."""
        if self.in_transaction(raw) is not False:
            self.rollback(raw)

    def set_autocommit(self, raw: Any, value: Any) -> None:
        """Of Python 3.12 and newer."""
        if not hasattr(raw, "autocommit"):
            raise sqlite3.NotSupportedError("sqlite3 has autocommit from Python 3.12 on")
        raw.autocommit = value

    def autocommit(self, raw: Any) -> bool | None:
        """What `isolation_level` says, where the attribute is not used."""
        known = getattr(raw, "autocommit", None)
        if known is True or known is False:
            return bool(known)
        return raw.isolation_level is None

    def interrupt(self, raw: Any) -> Callable[[], object] | None:
        """Sets a flag that the query looks at."""
        found: Callable[[], object] = raw.interrupt
        return found


class Duckdb(Driver):
    """duckdb. A cursor of it is another connection, with transactions of its own; the
    connection itself executes and fetches, too."""

    ends = BESIDE

    def pinned(self, kwargs: dict[str, Any]) -> bool:
        """Any thread may use a connection, one at a time."""
        return False

    def cursor_of(self, raw: Any) -> Any:
        """The connection itself."""
        return raw

    def close_cursor(self, cursor: Any) -> None:
        """It is the connection."""

    def begin(self, raw: Any, statement: str | None) -> Callable[[Any], object] | None:
        """It commits by itself outside of a transaction."""
        raw.execute(statement or "BEGIN TRANSACTION")
        return None

    def is_open(self, raw: Any) -> bool:
        """Asked on the connection itself."""
        raw.execute("SELECT 1").fetchall()
        return True

    def settle(self, raw: Any) -> None:
        """It commits by itself."""

    def reset(self, raw: Any) -> None:
        """It does not tell whether a transaction is open."""
        assert self.module is not None
        with suppress(self.module.TransactionException):
            raw.rollback()

    def cancel(self, raw: Any, cursor: Any, name: Any, again: Callable[[], Any]) -> None:
        """Each cursor is interrupted by itself."""
        (raw if cursor is None else cursor).interrupt()


class Pyodbc(Driver):
    """pyodbc. A connection may go from thread to thread, as ODBC demands of drivers."""

    ends = BESIDE
    tidy = True  # some ODBC drivers keep a database open, for good

    def pinned(self, kwargs: dict[str, Any]) -> bool:
        """Any thread may use a connection, one at a time."""
        return False

    def take(self, cursor: Any, rows: deque[Any], count: int) -> bool:
        """One by one: a row may fail."""
        before = len(rows)
        rows.extend(islice(cursor, count))
        return len(rows) - before == count

    def begin(self, raw: Any, statement: str | None) -> Callable[[Any], object] | None:
        """ODBC has no BEGIN: autocommit is off until the transaction's end."""
        if statement is not None:
            self.run(raw, statement)
        elif raw.autocommit:
            raw.autocommit = False
            return _again_autocommit
        return None

    def cancel(self, raw: Any, cursor: Any, name: Any, again: Callable[[], Any]) -> None:
        """SQLCancel."""
        if cursor is None:
            return
        assert self.module is not None
        with suppress(self.module.ProgrammingError):  # closed just now
            cursor.cancel()


def _again_autocommit(raw: Any) -> None:
    raw.autocommit = True


class Psycopg(Driver):
    """psycopg 3, its blocking connection, and psycopg2."""

    ends = BESIDE

    def in_transaction(self, raw: Any) -> bool | None:
        """libpq knows what the server said last."""
        return bool(raw.info.transaction_status)

    def looks_open(self, raw: Any) -> bool:
        """What libpq has noticed."""
        return not raw.closed

    def cancel(self, raw: Any, cursor: Any, name: Any, again: Callable[[], Any]) -> None:
        """By a request on a connection of its own."""
        safe = getattr(raw, "cancel_safe", None)
        if safe is not None:
            safe(timeout=10)
        else:
            raw.cancel()


class _Mysql(Driver):
    """Both drivers of MySQL and MariaDB."""

    def autocommit(self, raw: Any) -> bool | None:
        """What the server said last."""
        return bool(raw.get_autocommit())

    def is_open(self, raw: Any) -> bool:
        """By the protocol's own ping."""
        raw.ping()
        return True

    def way_to_end(self, offload: Offload) -> str:
        """It takes a second connection, so it has to be asked for."""
        return BESIDE if offload.kill_query else ""

    def name_of(self, raw: Any) -> Any:
        """Asked now: mysqlclient refuses it while a query runs."""
        return raw.thread_id()

    def cancel(self, raw: Any, cursor: Any, name: Any, again: Callable[[], Any]) -> None:
        """By KILL QUERY."""
        other = again()
        try:
            self.run(other, f"KILL QUERY {int(name)}")
        finally:
            other.close()


class Pymysql(_Mysql):
    """PyMySQL."""

    def pinned(self, kwargs: dict[str, Any]) -> bool:
        """It is Python all through: any thread may use a connection, one at a time."""
        return False

    def in_transaction(self, raw: Any) -> bool | None:
        """What the server said last."""
        return bool(raw.server_status & 1)

    def looks_open(self, raw: Any) -> bool:
        """What it has noticed."""
        return bool(raw.open)

    def is_open(self, raw: Any) -> bool:
        """By the protocol's own ping, without connecting anew."""
        raw.ping(reconnect=False)
        return True


class Mysqldb(_Mysql):
    """mysqlclient. The C library keeps things by the thread, so a connection stays on
    its thread."""


_KNOWN: dict[str, type[Driver]] = {
    "sqlite3": Sqlite3,
    "pysqlite3": Sqlite3,
    "duckdb": Duckdb,
    "pyodbc": Pyodbc,
    "psycopg": Psycopg,
    "psycopg2": Psycopg,
    "pymysql": Pymysql,
    "MySQLdb": Mysqldb,
}


def driver_of(module: ModuleType | str | Callable[..., Any]) -> tuple[Driver, Any]:
    """The rules for a module, and what connects.

    Args:
        module: a PEP 249 module, its name, or a function that connects. The module of
            such a function is known by the name under which it was defined.

    Returns:
        the rules, and the function if it was one, or None.

    Raises:
        ImportError: there is no such module.
        TypeError: it has no `connect`.
    """
    if isinstance(module, str):
        module = importlib.import_module(module)
    if isinstance(module, ModuleType):
        if not callable(getattr(module, "connect", None)):
            raise TypeError(f"{module.__name__} is no PEP 249 module: it has no connect()")
        kind = _KNOWN.get(module.__name__, _KNOWN.get(module.__name__.partition(".")[0], Driver))
        return kind(module, module.__name__), None
    if not callable(module):
        raise TypeError(f"a module, its name or a function is wanted, not {module!r}")
    inner = getattr(module, "func", module)
    name = str(getattr(inner, "__module__", None) or "").partition(".")[0].lstrip("_")
    kind = _KNOWN.get(name, Driver)
    found = importlib.import_module(name) if kind is not Driver else None
    return kind(found, name), module
