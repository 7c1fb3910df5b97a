"""Pipelines: any number of commands as one job of the pool, with one wake-up.

A pipeline that never watches goes over the client's channel in one piece: encoded
while it is queued, written and answered full duplex, a transaction with MULTI and
EXEC around it and nothing in between. What needs a connection to itself (WATCH and
what follows it, commands that block or change the connection, a connection pool
that has no channel) goes redis-py's own way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio.client as base
from redis.exceptions import (
    ConnectionError,
    ExecAbortError,
    RedisError,
    ResponseError,
    WatchError,
)

from offloop import _core
from offloop.redis.connection import NativeChannel
from offloop.redis.unknown import forget, learn, name_of

__all__ = ["NativePipeline"]

# Replies turned into objects, and put through their callbacks, before the loop turns.
_SLICE = 2048

# redis-py's class, whose methods serve as this one's (which is mixed into it).
_RedisPy: Any = base.Pipeline

# What a subclass may put in place of redis-py's own. Then redis-py calls it.
_HOOKS = ("_execute_transaction", "_execute_pipeline", "parse_response")


async def _exchange(batch: _core.Batch) -> None:
    await batch.send()
    while not batch.convert(_SLICE):
        await asyncio.sleep(0)


class NativePipeline(_core.Pipeline):
    """What turns redis-py's Pipeline into one that is carried by a channel."""

    # The parts of redis-py's Pipeline that are used here.
    connection: Any = None  # not the client's property of that name
    is_transaction: bool
    scripts: set[Any]
    annotate_exception: Callable[[Exception, int, Any], None]
    raise_first_error: Callable[[Any, Any], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clear()  # redis-py has assigned a list of its own
        cls = type(self)
        self._queues_itself = (
            cls.pipeline_execute_command is not NativePipeline.pipeline_execute_command
        )

    def _open_channel(self) -> _core.Channel | None:
        """The channel for the queued commands; None: redis-py's own connections."""
        connection_pool = self.connection_pool
        if isinstance(connection_pool, NativeChannel):
            return connection_pool.open_channel()
        return None

    def _is_own(self) -> bool:
        """Whether redis-py's way is wanted: it has a connection, or a subclass hooks in."""
        if self.connection is not None or self.watching:
            return True
        cls = type(self)
        return any(getattr(cls, name) is not getattr(_RedisPy, name) for name in _HOOKS)

    def _judges_itself(self) -> bool:
        """Whether a subclass looks at the replies, errors among them or not."""
        return getattr(type(self), "raise_first_error", None) is not _RedisPy.raise_first_error

    def multi(self) -> None:
        """Begin a transaction of queued commands, after watch() and what was read then.

        Raises:
            RedisError: there is one already, or commands are queued.
        """
        if self.explicit_transaction:
            raise RedisError("Cannot issue nested calls to MULTI")
        if len(self):
            raise RedisError("Commands without an initial WATCH have already been issued")
        self.explicit_transaction = True

    async def reset(self) -> None:
        """Forget what is queued, stop watching, give the connection back."""
        self._clear()
        if self.connection is None:
            self.scripts = set()
            self.watching = self.explicit_transaction = False
            return
        try:
            await _RedisPy.reset(self)
        finally:
            if not len(self):
                self._clear()  # it has assigned a list of its own

    async def load_scripts(self) -> None:
        """See to it that the server knows the scripts that are about to be run."""
        hook = getattr(type(self), "immediate_execute_command", None)
        if hook is not _RedisPy.immediate_execute_command or self._is_own():
            await _RedisPy.load_scripts(self)
            return
        scripts = list(self.scripts)
        run = _core.Client.execute_command
        known = await run(self, "SCRIPT EXISTS", *[script.sha for script in scripts])
        for script, is_known in zip(scripts, known, strict=True):
            if not is_known:
                script.sha = await run(self, "SCRIPT LOAD", script.script)

    def _execute_leased(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """A single command, redis-py's way."""
        command: Awaitable[Any] = _RedisPy.immediate_execute_command(self, *args, **options)
        return command

    async def _take_unknown(self, transaction: bool) -> _core.Batch | None:
        """What is queued, if nothing keeps it from being shared but names in no table."""
        channel = self._open_channel()
        if channel is None:
            return None
        names = {name_of(args) for args, _ in self.command_stack}
        asked = [name for name in sorted(names) if channel.sharing(name) == "unknown"]
        if not asked:
            return None
        unsure = await learn(channel, asked)
        try:
            return self._take(transaction)
        finally:
            forget(channel, unsure)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send what is queued; the replies in order.

        Everything is sent once: again only where none of its bytes were written, where it
        only reads, or where the program gave a Retry of its own.
        The socket timeout counts from here until the first reply, and anew for
        each further one. A cancelled pipeline is not sent if it was not yet, and
        finished by the worker, with its replies dropped, if it was.

        Args:
            raise_on_error: raise the first error among the replies; otherwise each
                stands in its reply's place.

        Raises:
            ResponseError: the server's answer to a command.
            WatchError: a watched key was changed, so nothing was executed.
            DataError: an argument cannot be encoded; nothing was sent.
            ConnectionError, TimeoutError: the text says whether it may have run.
        """
        if not len(self) and not self.watching:
            return []
        if self.scripts and not self._is_own():
            await self.load_scripts()
            self.scripts = set()
        batch = None
        transaction = bool(self.is_transaction or self.explicit_transaction)
        if not self._is_own():
            try:
                batch = self._take(transaction)
                if batch is None:
                    batch = await self._take_unknown(transaction)
            except BaseException:
                await self.reset()
                raise
        if batch is None:
            results: list[Any] = await _RedisPy.execute(self, raise_on_error)
            return results
        try:
            batch = await self._answered(batch, transaction)
            if transaction:
                return await self._transaction_results(batch, raise_on_error)
            return await self._pipeline_results(batch, raise_on_error)
        finally:
            await self.reset()

    async def _answered(self, batch: _core.Batch, transaction: bool) -> _core.Batch:
        """The batch that was answered: a further one, if it was sent again."""
        try:
            await _exchange(batch)
        except Exception as failure:
            retries, error = batch.retry, failure
            if retries is None or not retries.covers(error):
                raise
        else:
            return batch

        async def resend() -> _core.Batch:
            self.command_stack = batch.commands()
            fresh = self._take(transaction)
            if fresh is None:
                raise error
            await _exchange(fresh)
            return fresh

        answered: _core.Batch = await retries.again(batch.channel, error, resend)
        return answered

    async def _apply_callbacks(self, batch: _core.Batch, errors_in_place: bool) -> None:
        callbacks = self.response_callbacks
        while (found := batch.apply(callbacks, errors_in_place, _SLICE)) is not True:
            if found is False:
                await asyncio.sleep(0)
                continue
            try:
                value = await found
            except ResponseError as error:
                if not errors_in_place:
                    raise
                value = error
            batch.put(value)

    async def _pipeline_results(self, batch: _core.Batch, raise_on_error: bool) -> list[Any]:
        await self._apply_callbacks(batch, errors_in_place=True)
        results = batch.results
        if raise_on_error and (batch.failed or self._judges_itself()):
            commands = batch.commands()
            self.raise_first_error(commands, results)
            for number, error in enumerate(results, 1):
                if isinstance(error, RedisError):  # a reply that the client could not take
                    self.annotate_exception(error, number, commands[number - 1][0])
                    raise error
        return results

    async def _transaction_results(self, batch: _core.Batch, raise_on_error: bool) -> list[Any]:
        refused = batch.refused or []
        flawless = not (refused or batch.failed or self._judges_itself())
        commands = [] if flawless else batch.commands()
        for index, error in refused:
            if index >= 0:  # it is not MULTI that was refused
                self.annotate_exception(error, index + 1, commands[index][0])
        outcome = batch.outcome
        if isinstance(outcome, ExecAbortError) and refused:
            raise refused[0][1] from outcome
        if isinstance(outcome, Exception):
            raise outcome
        if not batch.executed:
            raise WatchError("Watched variable changed.")
        results = batch.results
        for index, error in refused:
            results.insert(max(index, 0), error)
        if len(results) != len(batch):
            raise ResponseError("Wrong number of response items from pipeline execution")
        if batch.failed:
            for error in results:
                if isinstance(error, ConnectionError):
                    raise error  # "the server is loading" is no command's own error
        if raise_on_error and not flawless:
            self.raise_first_error(commands, results)
        await self._apply_callbacks(batch, errors_in_place=False)
        return results
