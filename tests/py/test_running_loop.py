"""Which loop a command belongs to: the one that runs in the calling thread just then.

Inside a drain the answer is remembered, so what could make it wrong is tried there:
another loop run by a task, another thread, a fork.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import types
import weakref
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import run
from offloop import _core
from servers import Server


def test_without_a_loop_a_coroutine_comes_back(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    for _ in range(2):  # the second time there is a channel
        coroutine = client.set("k", "v")
        assert isinstance(coroutine, types.CoroutineType)
        assert run(coroutine) is True
    run(client.aclose())


async def stepped_in_a_drain(client: aioredis.Redis) -> Any:
    """Return in the middle of a drain in which a command was made already: that one."""
    await client.get("k")
    return client.get("k")


async def test_another_loop_run_inside_a_drain(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        first = await stepped_in_a_drain(client)
        outer = asyncio.get_running_loop()
        assert isinstance(first, _core.Future)
        assert first.get_loop() is outer
        inner = asyncio.new_event_loop()
        task = asyncio.current_task()
        assert task is not None
        asyncio.tasks._leave_task(outer, task)
        asyncio._set_running_loop(None)
        try:
            coroutine = client.get("k")
            assert isinstance(coroutine, types.CoroutineType)

            async def inside() -> Any:
                call = client.get("k")
                assert call.get_loop() is inner
                return await call

            assert inner.run_until_complete(inside()) is None
            assert inner.run_until_complete(coroutine) is None
        finally:
            asyncio._set_running_loop(outer)
            asyncio.tasks._enter_task(outer, task)
            inner.close()
        last = client.get("k")
        assert last.get_loop() is outer
        assert await first is await last is None


async def test_a_thread_without_a_loop_beside_a_drain(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        pending = await stepped_in_a_drain(client)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(client.get("k")))
        thread.start()
        thread.join()
        (coroutine,) = found
        assert isinstance(coroutine, types.CoroutineType)
        assert await coroutine is await pending is None


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
async def test_a_fork_in_the_middle_of_a_drain(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        pending = await stepped_in_a_drain(client)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                coroutine: Any = client.get("k")
                if isinstance(coroutine, types.CoroutineType):
                    coroutine.close()
                    status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await client.get("k") is await pending is None


def test_nothing_keeps_a_loop_that_was_drained(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    loops = []

    async def main() -> None:
        await (await stepped_in_a_drain(client))
        loops.append(weakref.ref(asyncio.get_running_loop()))

    for _ in range(3):
        run(main())
    run(client.aclose())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3
