"""Pub/sub: redis-py's PubSub, with a short cut for the messages.

All of it is redis-py's own, on a Connection over a native lease. A published message, of
which there are many, is made and handed over without redis-py's layers in between, as
long as nobody has put anything of his own there: a subclass's method, a push handler,
health checks, metrics. Everything else (confirmations, a connection that broke) goes
through redis-py's code.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio.client as base
from redis.exceptions import ConnectionError, ResponseError

from offloop import _core
from offloop._core import Future, _next_message
from offloop.redis.held import HeldConnection, MadeWhenUsed

__all__ = ["PubSub"]

_BASE: Any = base.PubSub
_SUBSCRIBED: Any = _BASE.subscribed
_PUSH_LOG = logging.getLogger("push_response")

# What the short cut leaves out: as soon as one of them is another, redis-py does it all.
_core._setup_pubsub(
    tuple(
        (name, getattr(_BASE, name))
        for name in ("parse_response", "handle_message", "check_health", "_execute")
    ),
    HeldConnection.read_response,
    _PUSH_LOG,
    getattr(_PUSH_LOG, "_cache", None)
    if type(_PUSH_LOG).isEnabledFor is logging.Logger.isEnabledFor
    else None,
)


class _Messages(_core.Messages):
    """What listen() gives."""

    __slots__ = ()

    async def aclose(self) -> None:
        """There are no more. RuntimeError while a task waits for one."""
        self._stop()


class PubSub(base.PubSub):
    """redis.asyncio's PubSub; arguments and methods are the same."""

    # Nearly always empty, and there may be ten thousand of us.
    pending_unsubscribe_channels = MadeWhenUsed()
    pending_unsubscribe_patterns = MadeWhenUsed()
    pending_unsubscribe_shard_channels = MadeWhenUsed()

    async def on_connect(self, connection: Any) -> None:
        """Subscribe again, and ask again to be let off what was not confirmed before.

        redis-py forgets that it asked: the channel would be subscribed to for good.
        """
        channels = list(self.pending_unsubscribe_channels)
        patterns = list(self.pending_unsubscribe_patterns)
        shards = list(self.pending_unsubscribe_shard_channels)
        await super().on_connect(connection)
        if channels:
            await self.unsubscribe(*channels)
        if patterns:
            await self.punsubscribe(*patterns)
        if shards:
            await self.sunsubscribe(*shards)

    async def get_message(
        self, ignore_subscribe_messages: bool = False, timeout: float | None = 0.0
    ) -> Any:
        """The next message, or None.

        Cancelled, or without a message in time, it takes none away from the next call.

        Args:
            ignore_subscribe_messages: give None for confirmations.
            timeout: seconds to wait; None: until there is one.

        Raises:
            ConnectionError: the connection broke, and cannot be made anew.
        """
        found = _next_message(self, timeout)
        while type(found) is Future:
            if not await found:
                return None
            found = _next_message(self, timeout)
        if type(found) is dict:
            return found
        if found is None:  # or it is redis-py that connects and subscribes again
            return await super().get_message(ignore_subscribe_messages, timeout)
        return await self._hand_over(found, ignore_subscribe_messages)

    def listen(self) -> AsyncIterator[Any]:
        """The messages, one after the other, for as long as there are subscriptions.

        An asynchronous iterator, with ``aclose()``; an error ends it.
        """
        return _Messages(self, type(self).subscribed is _SUBSCRIBED)

    async def _receive(self, found: tuple[Any, ...] | None) -> Any:
        """What a listener is to have of what is no plain message, or of redis-py's way."""
        if found is not None:
            return await self._hand_over(found, False)
        response = await self.parse_response(block=True)
        return await self.handle_message(response)  # type: ignore[no-untyped-call]

    async def _hand_over(self, found: tuple[Any, ...], ignore: bool) -> Any:
        """A message to its handler; or what is no message: a confirmation, a reply."""
        if len(found) == 2:
            handler, message = found
            if inspect.iscoroutinefunction(handler):
                await handler(message)
            else:
                handler(message)
            return None
        (response,) = found
        if type(response) is _core.Push:
            connection: Any = self.connection
            response = await connection._heed(response)
        if isinstance(response, (ConnectionError, ResponseError)):
            raise response
        if not response:
            return None
        return await self.handle_message(response, ignore)  # type: ignore[no-untyped-call]
