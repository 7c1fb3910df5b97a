"""Connections: redis-py's, over a native lease.

What belongs to a connection (pub/sub, MONITOR, WATCH, SELECT, a client of a single
connection) goes by redis-py's own classes, and they by a Connection. Here it is one whose
bytes are carried by the pool of workers: the channel's lessor connects and logs in, a
worker reads and parses, the loop is told that there is something.

A connection that was not made by a connection pool with a channel has none to go over,
and connects itself, redis-py's way.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import redis.asyncio.connection as base
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from offloop import _core

__all__ = ["Connection", "HeldConnection", "SSLConnection", "UnixDomainSocketConnection"]

_CLOSED = "Connection closed by server."

# So many replies may be taken in a row before others on the loop have their turn: a
# worker goes on reading beside, and a reader that never waits would keep the loop.
STREAK = 64


class _Owner(Protocol):
    """The connection pool, as its connections see it."""

    def open_channel(self) -> _core.Channel | None:
        """The channel that leases come from; None where redis-py connects itself."""


class _Stream:
    """A lease where redis-py's connection has its reader and its writer."""

    __slots__ = ("lease",)

    def __init__(self, lease: _core.Lease) -> None:
        self.lease = lease

    def close(self) -> None:
        """Close the connection."""
        self.lease.close()

    async def wait_closed(self) -> None:
        """It is closed already."""

    def at_eof(self) -> bool:
        """Whether nothing more will come."""
        return not self.lease.usable

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peername`` and ``sockname``, as asyncio's transports give them."""
        if name == "peername":
            return self.lease.peer or default
        if name == "sockname":
            return self.lease.own or default
        return default


class _Passing(set[Any]):
    """An empty set that becomes its object's own when something is put into it."""

    __slots__ = ("_instance", "_name")

    def __init__(self, instance: Any, name: str) -> None:
        super().__init__()
        self._instance, self._name = instance, name

    def add(self, item: Any) -> None:
        vars(self._instance)[self._name] = self
        super().add(item)

    def update(self, *items: Iterable[Any]) -> None:
        vars(self._instance)[self._name] = self
        super().update(*items)


class MadeWhenUsed:
    """A set among an object's attributes that takes no memory before it is used."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_offloop_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        made = vars(instance).get(self._name)
        return _Passing(instance, self._name) if made is None else made

    def __set__(self, instance: Any, value: set[Any]) -> None:
        if value:
            vars(instance)[self._name] = value
        else:
            vars(instance).pop(self._name, None)


class HeldConnection(base.AbstractConnection):
    """What turns a connection of redis-py's into one that goes over a lease."""

    _processed_start_maint_notifications: Any = MadeWhenUsed()
    _skipped_end_maint_notifications: Any = MadeWhenUsed()

    _offloop_owner: _Owner | None = None
    _offloop_streak = 0  # replies taken without a wait
    _offloop_spare = False  # idle in its pool: it may be closed to make room
    _offloop_parser: Any = None  # redis-py's own, which has the handlers of messages
    _lease: _core.Lease | None = None
    _reader: Any
    _writer: Any

    # ---- connecting ---------------------------------------------------------------

    def _channel(self) -> _core.Channel | None:
        return self._offloop_owner.open_channel() if self._offloop_owner is not None else None

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection; that the server has closed it is seen by using it."""
        if self._lease is not None:
            return self._lease.usable
        return self._reader is not None and self._writer is not None

    async def connect(self) -> None:
        """Connect, unless it is connected.

        Raises:
            ConnectionError, TimeoutError: after as many attempts as the channel makes.
        """
        if self._offloop_spare and self._lease is not None:
            self._offloop_spare = False
            if await self._is_as_it_was():
                return
            self._forget()
        elif self._lease is not None and not self._lease.usable:
            self._forget()  # a forked child: it is the parent's
        if self._channel() is None:
            await super().connect()  # type: ignore[no-untyped-call]
        else:
            await self.connect_check_health()

    async def _is_as_it_was(self) -> bool:
        """Whether a connection that was idle can be used: it is open, and nobody's reply
        is left over. Messages that came meanwhile go to their handlers."""
        lease = self._lease
        assert lease is not None
        if lease.poll():
            try:
                while (found := lease.take(False)) is not ...:
                    if type(found) is not _core.Push:
                        return False
                    await self._heed(found)
            except Exception:
                return False
        return lease.resume()

    async def connect_check_health(
        self, check_health: bool = True, retry_socket_connect: bool = True
    ) -> None:
        """Connect, log in, and call those who want to know; see connect()."""
        if self.is_connected:
            return
        channel = self._channel()
        if channel is None:
            await super().connect_check_health(check_health, retry_socket_connect)
            return
        lease: _core.Lease = await channel.hold()
        if self.is_connected:  # by another task, meanwhile
            lease.close()
            return
        self._lease = lease
        self._offloop_spare = False
        self._reader = self._writer = _Stream(lease)
        self._reset_himport_state()
        self._connect_callbacks = [ref for ref in self._connect_callbacks if ref()]
        for ref in self._connect_callbacks:
            callback = ref()
            task = callback(self) if callback is not None else None
            if inspect.isawaitable(task):
                await task

    def _forget(self) -> None:
        lease, self._lease = self._lease, None
        self._reader = self._writer = None
        self._offloop_spare = False
        if lease is not None:
            lease.close()

    def _close(self) -> None:
        self._lease = None  # what _writer refers to still, and closes
        self._offloop_spare = False
        super()._close()  # type: ignore[no-untyped-call]

    def set_parser(self, parser_class: Any) -> None:
        """Have replies parsed by another class, where they do not come over a lease."""
        super().set_parser(parser_class)
        self._offloop_parser = self._parser

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Close the connection; whoever reads from it gets a ConnectionError."""
        lease, self._lease = self._lease, None
        self._offloop_spare = False
        if lease is not None:
            lease.close()
        await super().disconnect(*args, **kwargs)

    def set_aside(self) -> None:
        """It goes back to its pool: it may be closed there when another needs the room."""
        if self._lease is None or self._re_auth_token is not None or self._should_reconnect:
            return
        if not self._offloop_spare:
            self._offloop_spare = True
            self._lease.spare()

    # ---- writing ------------------------------------------------------------------

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        """Send what is encoded already.

        Raises:
            ConnectionError, TimeoutError: it may have been sent in part; the connection is
                closed then.
        """
        if not self.is_connected:
            if self._lease is not None:
                self._forget()
            await self.connect_check_health(check_health=False)
        if check_health and self.health_check_interval:
            await self.check_health()  # type: ignore[no-untyped-call]
        lease = self._lease
        if lease is None:
            await super().send_packed_command(command, check_health=False)
            return
        try:
            data = command.encode() if isinstance(command, str) else command
            waiting = lease.write(data, self.socket_timeout)
            if waiting is not None:
                await waiting
        except BaseException:
            await self.disconnect(nowait=True)
            raise

    # ---- reading ------------------------------------------------------------------

    async def can_read(self) -> bool:
        """Whether something was received that nobody has read, or the server has closed."""
        if self._lease is None:
            return await super().can_read()
        return self._lease.poll()

    async def can_read_destructive(self) -> bool:
        """The same as can_read()."""
        return await self.can_read()

    def _socket_is_empty(self) -> bool:
        if self._lease is None:
            return bool(super()._socket_is_empty())  # type: ignore[no-untyped-call]
        return not self._lease.ready

    async def _heed(self, push: Any) -> Any:
        """A message goes to its handler, which says what it is from then on."""
        handle: Callable[[Any], Awaitable[Any]] | None
        handle = getattr(self._parser, "handle_push_response", None)
        return push if handle is None else await handle(push)

    async def _next(self, lease: _core.Lease, raw: bool, limit: float | None, push: Any) -> Any:
        """The next reply; Ellipsis when none has come within so many seconds."""
        until = None
        self._offloop_streak += 1
        if self._offloop_streak > STREAK:
            self._offloop_streak = 0
            await asyncio.sleep(0)
        if self._parser is not self._offloop_parser:  # somebody put his own in its place
            return await self._read_response_from_parser(raw, push)
        while True:
            found = lease.take(raw)
            if found is ...:
                self._offloop_streak = 0
                if limit is None:
                    await lease.wait(None)
                    continue
                if limit <= 0:
                    if not lease.poll():
                        await asyncio.sleep(0)  # others have their turn, as with any wait
                        if not lease.poll():
                            return ...
                    continue
                left = limit if until is None else until - time.monotonic()
                until = time.monotonic() + limit if until is None else until
                if not await lease.wait(left):
                    return ...
            elif type(found) is not _core.Push:
                return found
            else:
                found = await self._heed(found)
                if push:
                    return found

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,
        *,
        disconnect_on_error: bool = True,
        push_request: bool | None = False,
    ) -> Any:
        """The next reply.

        A read that is cancelled, or ends without a reply, takes none away.

        Args:
            disable_decoding: give bytes even where responses are decoded.
            timeout: seconds; None: the socket timeout; math.inf: none.
            disconnect_on_error: close the connection when this raises.
            push_request: give messages (RESP3) as well, and not only to their handlers.

        Returns:
            The reply; None when timeout was given and has passed.

        Raises:
            ResponseError: it is an error.
            ConnectionError, TimeoutError: there is none.
        """
        lease = self._lease
        if lease is None:
            if self.is_connected:
                return await super().read_response(
                    disable_decoding,
                    timeout,
                    disconnect_on_error=disconnect_on_error,
                    push_request=push_request,
                )
            raise ConnectionError(_CLOSED)
        limit = self.socket_timeout if timeout is None else timeout
        if limit == math.inf:
            limit = None
        try:
            response = await self._next(lease, disable_decoding, limit, push_request)
            if response is ...:
                if timeout is not None:
                    return None
                raise TimeoutError(f"Timeout reading from {self._host_error()}")
            if isinstance(response, ConnectionError):
                raise response
            if isinstance(response, list) and response and isinstance(response[0], ConnectionError):
                raise response[0]
        except BaseException as error:
            if disconnect_on_error:
                await self.disconnect(nowait=True)
            if isinstance(error, OSError):
                where = self._host_error()
                raise ConnectionError(f"Error while reading from {where} : {error.args}") from error
            raise
        if self.health_check_interval:
            self.next_health_check = asyncio.get_running_loop().time() + self.health_check_interval
        if isinstance(response, ResponseError):
            raise response from None
        return response


class Connection(HeldConnection, base.Connection):
    """redis.asyncio's Connection (TCP), over a lease where its pool has a channel."""


class SSLConnection(HeldConnection, base.SSLConnection):
    """redis.asyncio's SSLConnection, over a lease where its pool has a channel."""


class UnixDomainSocketConnection(HeldConnection, base.UnixDomainSocketConnection):
    """redis.asyncio's UnixDomainSocketConnection, over a lease where its pool has a channel."""


# By what is configured: redis-py's class, or ours.
OURS: dict[Any, Any] = {
    base.Connection: Connection,
    base.SSLConnection: SSLConnection,
    base.UnixDomainSocketConnection: UnixDomainSocketConnection,
}
