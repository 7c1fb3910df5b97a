"""The asynchronous cursor over a driver's own."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from offloop.dbapi.opening import failed, let_go, ready

if TYPE_CHECKING:
    from offloop.dbapi.connection import Connection

__all__ = ["Cursor"]

# How many rows `async for` takes at a time, at most.
_CHUNK = 1024


class Cursor:
    """A PEP 249 cursor whose methods are awaited.

    Made by `Connection.cursor`, `Connection.execute` and their like. It costs nothing
    until something is executed: the driver's cursor is made then, in the same hop. Rows
    come along with ``execute`` (see `Offload.prefetch`), so that ``fetchone`` and the
    like seldom cost a hop.

        async with db.cursor() as cursor:
            await cursor.execute("select ...")
            async for row in cursor: ...

    The driver's exceptions are raised as they are. A cursor is for one task at a time.
    What is not here, such as ``rownumber`` or pyodbc's ``tables``, is the driver's: its
    methods are awaited.
    """

    def __init__(
        self,
        connection: Connection,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        own: bool = True,
    ) -> None:
        self._connection = connection
        self._call = connection._call
        self._args = args
        self._kwargs = kwargs
        self._own = own  # or the one that the driver has for the connection's statements
        self._raw: Any = None
        self._attributes: dict[str, Any] | None = None  # to be set on it
        self._closed = False
        self._gone = False  # the driver's cursor was closed; workers say so
        # Rows that were fetched; whether they are all there are; what comes after them.
        # Workers append and both sides take, which a deque allows.
        self._rows: deque[Any] = deque()
        self._all_here = False
        self._error: BaseException | None = None

    # ---- run by workers, on the connection's lane

    def _open(self) -> Any:
        """The driver's cursor, made if need be."""
        raw = self._raw
        if raw is None:
            connection = self._connection
            if self._own:
                raw = connection._raw.cursor(*self._args, **(self._kwargs or {}))
            else:
                raw = connection._driver.cursor_of(connection._raw)
            if self._attributes:
                for name, value in self._attributes.items():
                    setattr(raw, name, value)
            self._raw = raw
            if self._connection._driver.tidy:
                self._connection._cursors.add(self)
        self._connection._ender.active = raw
        return raw

    def _forget(self) -> None:
        self._rows.clear()
        self._all_here = False
        self._error = None

    def _fill(self, count: int) -> None:
        """Fetch up to so many rows. What goes wrong is for the one who asks for them."""
        raw = self._open()
        try:
            if raw.description is None:  # the driver knows what to say
                row = raw.fetchone()
                if row is not None:
                    self._rows.append(row)
                self._all_here = row is None
            else:
                self._all_here = not self._connection._driver.take(raw, self._rows, count)
        except Exception as error:
            self._all_here = True
            self._error = error

    def _executed(self, raw: Any) -> Cursor:
        count = self._connection._prefetch
        if count and raw.description is not None:
            self._fill(count)
        return self

    def _execute(self, method: str, /, *args: Any, **kwargs: Any) -> Cursor:
        raw = self._open()
        self._forget()
        getattr(raw, method)(*args, **kwargs)
        return self._executed(raw)

    def _callproc(self, /, *args: Any, **kwargs: Any) -> Any:
        raw = self._open()
        self._forget()
        found = raw.callproc(*args, **kwargs)
        self._executed(raw)
        return found

    def _nextset(self) -> Any:
        raw = self._open()
        found = raw.nextset()
        self._forget()
        if found:
            self._executed(raw)
        return found

    def _run(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of which nothing is known. It may bring rows of its own."""
        raw = self._open()
        found = getattr(raw, method)(*args, **kwargs)
        if found is not raw:
            return found
        self._forget()
        return self

    def _is_gone(self) -> bool:
        return self._gone or self._connection._gone

    def _one(self) -> Any:
        count = self._connection._prefetch
        if count == 0 or self._is_gone():
            return self._open().fetchone()
        if not self._rows and not self._all_here:
            self._fill(count)
        return self._pop()

    def _many(self, size: int) -> list[Any]:
        if self._connection._prefetch == 0 or self._is_gone():
            return list(self._open().fetchmany(size))
        if not self._all_here and len(self._rows) < size:
            self._fill(size - len(self._rows))
        return self._pop_many(size)

    def _all(self) -> list[Any]:
        if not self._all_here or self._is_gone():
            rest = self._open().fetchall()
            self._all_here = self._connection._prefetch > 0
            if not self._rows:
                return rest if isinstance(rest, list) else list(rest)
            self._rows.extend(rest)
        return self._pop_all()

    def _shut(self) -> None:
        raw = self._raw
        self._forget()
        if raw is None or self._gone:
            return
        self._gone = True
        self._connection._ender.let_go(raw)
        if self._own:
            raw.close()
        else:
            self._connection._driver.close_cursor(raw)

    def _shut_quietly(self) -> None:
        with suppress(Exception):  # what the block raised counts
            self._shut()

    # ---- run by either side

    def _pop(self) -> Any:
        try:
            return self._rows.popleft()
        except IndexError:
            self._raise()
            return None

    def _pop_many(self, size: int) -> list[Any]:
        found: list[Any] = []
        with suppress(IndexError):
            while len(found) < size:
                found.append(self._rows.popleft())
        if not found and size > 0:
            self._raise()
        return found

    def _pop_all(self) -> list[Any]:
        self._raise()
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            self._rows.clear()
            raise error

    # ---- executing

    def execute(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Cursor]:
        """Execute a statement; the arguments are those of the driver's cursor.

        Returns:
            the cursor itself, when awaited.
        """
        return self._call(self._execute, "execute", *args, **kwargs)

    def executemany(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Cursor]:
        """Execute a statement with many sets of parameters; gives the cursor itself."""
        return self._call(self._execute, "executemany", *args, **kwargs)

    def executescript(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Cursor]:
        """Execute several statements, where the driver can; gives the cursor itself."""
        return self._call(self._execute, "executescript", *args, **kwargs)

    def callproc(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call a stored procedure; gives what the driver returns, the parameters mostly."""
        return self._call(self._callproc, *args, **kwargs)

    def nextset(self) -> Coroutine[Any, Any, Any]:
        """Go on to the next set of rows; gives something false if there is none."""
        return self._call(self._nextset)

    def setinputsizes(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """As the driver has it."""
        return self._call(self._run, "setinputsizes", *args, **kwargs)

    def setoutputsize(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """As the driver has it."""
        return self._call(self._run, "setoutputsize", *args, **kwargs)

    # ---- fetching

    @property
    def _usable(self) -> bool:
        return not self._closed and not self._connection.closed

    def fetchone(self) -> Coroutine[Any, Any, Any]:
        """The next row, or None."""
        if (self._rows or self._all_here) and self._usable:
            try:
                return ready(self._pop())
            except Exception as error:
                return failed(error)
        return self._call(self._one)

    def fetchmany(self, size: int | None = None) -> Coroutine[Any, Any, list[Any]]:
        """The next rows, so many or `arraysize`; fewer, or none, at the end."""
        if size is None:
            size = self.arraysize
        if (self._all_here or len(self._rows) >= size) and self._usable:
            try:
                return ready(self._pop_many(size))
            except Exception as error:
                return failed(error)
        return self._call(self._many, size)

    def fetchall(self) -> Coroutine[Any, Any, list[Any]]:
        """All rows that are left."""
        if self._all_here and self._usable:
            try:
                return ready(self._pop_all())
            except Exception as error:
                return failed(error)
        return self._call(self._all)

    async def __aiter__(self) -> AsyncIterator[Any]:
        """The rows that are left. While some are gone through the next ones are fetched."""
        rows, ahead = self._rows, None
        chunk = self._connection._prefetch or self.arraysize
        while True:
            while rows and self._usable:
                if ahead is None and not self._all_here and len(rows) <= chunk // 2:
                    chunk = min(2 * chunk, max(_CHUNK, chunk))
                    ahead = self._call(self._fill, chunk)
                yield self._pop()
            if ahead is not None:
                await ahead
                ahead = None
            elif self._all_here and self._usable:
                self._raise()
                return
            else:
                await self._call(self._fill, chunk)
                if not self._usable:
                    self._raise()

    # ---- life

    def close(self) -> Coroutine[Any, Any, None]:
        """Close the cursor; its connection stays as it is."""
        self._closed = True
        if self._untouched:
            return ready(None)
        plain: Coroutine[Any, Any, None] = self._connection._plain(self._shut)
        return plain

    def __await__(self) -> Generator[Any, Any, Cursor]:
        """The cursor itself: ``await db.cursor()`` is the same as ``db.cursor()``."""
        return self
        yield

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """Close it, and wait for nothing: whatever is done next comes after it."""
        if self._closed:
            return
        self._closed = True
        if self._untouched or (self._all_here and self._connection._driver.light):
            self._rows.clear()
        elif not self._connection.closed:
            let_go(self._connection._lane.call(self._shut_quietly))

    @property
    def _untouched(self) -> bool:
        """Whether the driver's cursor is not there, and nobody is about to make it."""
        return self._raw is None and self._connection._lane.pending == 0

    # ---- what the driver's cursor says

    def _get(self, name: str, default: Any) -> Any:
        if self._raw is not None:
            return getattr(self._raw, name)
        return (self._attributes or {}).get(name, default)

    def _set(self, name: str, value: Any) -> None:
        if self._raw is not None:
            setattr(self._raw, name, value)
            return
        if self._attributes is None:
            self._attributes = {}
        self._attributes[name] = value

    @property
    def connection(self) -> Connection:
        """The connection that it belongs to."""
        return self._connection

    @property
    def raw(self) -> Any:
        """The driver's own cursor; None before anything was executed."""
        return self._raw

    @property
    def description(self) -> Any:
        """The columns, or None where there are no rows."""
        return self._get("description", None)

    @property
    def rowcount(self) -> int:
        """How many rows the statement has changed, or found, or -1."""
        found: int = self._get("rowcount", -1)
        return found

    @property
    def lastrowid(self) -> Any:
        """The id of the row that was inserted last, where the driver has it."""
        return self._get("lastrowid", None)

    @property
    def arraysize(self) -> int:
        """How many rows `fetchmany` gives. May be set."""
        found: int = self._get("arraysize", 1)
        return found

    @arraysize.setter
    def arraysize(self, value: int) -> None:
        self._set("arraysize", value)

    @property
    def row_factory(self) -> Any:
        """What makes rows, where the driver has it. Set it before executing."""
        default = getattr(self._connection._raw, "row_factory", None)
        return self._get("row_factory", default)

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        self._set("row_factory", value)

    def __getattr__(self, name: str) -> Any:
        """What else the driver's cursor has; methods are awaited."""
        if name.startswith("_"):
            raise AttributeError(name)
        if self._raw is not None:
            found = getattr(self._raw, name)
            if not callable(found) or isinstance(found, type):
                return found
        return lambda *args, **kwargs: self._call(self._run, name, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<offloop.dbapi.Cursor of {self._connection!r}>"
