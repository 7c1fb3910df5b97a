"""A call's awaitable under everything asyncio does with one, against a real server."""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import gc
import inspect
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import outcome, outcomes, run, until, within
from leaks import Watch
from redis.exceptions import ResponseError
from servers import Server

from_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in 3.11")
from_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="new in 3.12")


async def test_what_a_call_is(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        call = client.get("k")
        assert inspect.isawaitable(call)
        assert asyncio.isfuture(call)
        assert asyncio.iscoroutine(call)
        assert isinstance(call, collections.abc.Awaitable)
        assert call.get_loop() is asyncio.get_running_loop()
        assert call.done() is False or call.result() is None
        assert await call is None
        assert call.done()
        assert await call is None  # a future can be awaited again
        assert call.result() is None
        assert call.exception() is None
        assert call.cancel() is False


async def test_ensure_future_gives_the_call_itself(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        call = client.echo("x")
        assert asyncio.ensure_future(call) is call
        assert await call == b"x"


async def test_create_task(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        tasks = [asyncio.create_task(client.echo(str(i))) for i in range(100)]
        assert await outcomes(tasks) == [str(i).encode() for i in range(100)]
        named = asyncio.create_task(client.echo("x"), name="named")
        assert named.get_name() == "named"
        assert await named == b"x"
        failing = asyncio.create_task(client.execute_command("NOSUCH"))
        with pytest.raises(ResponseError):
            await failing


@from_311
async def test_task_group(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.echo(str(i))) for i in range(50)]
        assert [task.result() for task in tasks] == [str(i).encode() for i in range(50)]

        blocked = []
        with pytest.raises(Exception) as raised:  # an ExceptionGroup
            async with asyncio.TaskGroup() as group:
                blocked = [group.create_task(asyncio.sleep(3600)) for _ in range(3)]
                group.create_task(client.execute_command("NOSUCH"))
        errors = raised.value.exceptions  # type: ignore[attr-defined]
        assert [type(error) for error in errors] == [ResponseError]
        assert all(task.cancelled() for task in blocked)


async def test_gather(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        values = await asyncio.gather(*(client.echo(str(i)) for i in range(500)))
        assert values == [str(i).encode() for i in range(500)]
        with pytest.raises(ResponseError):
            await asyncio.gather(client.echo("a"), client.execute_command("NOSUCH"))
        mixed = await asyncio.gather(
            client.echo("a"), client.execute_command("NOSUCH"), return_exceptions=True
        )
        assert mixed[0] == b"a"
        assert isinstance(mixed[1], ResponseError)
        both = client.echo("twice")
        assert await asyncio.gather(both, both) == [b"twice", b"twice"]


async def test_gather_cancelled(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        await client.ping()
        own_server.pause()
        calls = [client.incr("n") for _ in range(5)]
        together = asyncio.gather(*calls)
        await asyncio.sleep(0.01)
        together.cancel()
        with pytest.raises(asyncio.CancelledError):
            await together
        assert all(call.cancelled() for call in calls)
        own_server.resume()
        assert await client.ping() is True


async def test_wait_for(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        assert await asyncio.wait_for(client.echo("x"), 10) == b"x"
        own_server.pause()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.echo("y"), 0.05)
        own_server.resume()
        assert await asyncio.wait_for(client.echo("z"), 10) == b"z"
        assert client.stats()["connects"] == 1


@from_311
async def test_timeout(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        async with asyncio.timeout(10):
            assert await client.echo("x") == b"x"
        own_server.pause()
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.echo("y")
        assert task.cancelling() == 0
        own_server.resume()
        assert await client.echo("z") == b"z"


@from_311
async def test_uncancel(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        await client.ping()
        own_server.pause()

        async def stubborn() -> Any:
            task = asyncio.current_task()
            assert task is not None
            try:
                await client.echo("first")
            except asyncio.CancelledError:
                assert task.cancelling() == 1
                task.uncancel()
            own_server.resume()
            return await client.echo("second")

        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0.01)
        task.cancel()
        assert await within(task) == b"second"


async def test_shield(own_server: Server) -> None:
    async with aioredis.Redis(**own_server.unix) as client:
        await client.ping()
        own_server.pause()
        call = client.incr("n")
        outer = asyncio.shield(call)
        task = asyncio.ensure_future(asyncio.wait_for(outer, 0.02))
        with pytest.raises(asyncio.TimeoutError):
            await task
        assert not call.done()
        own_server.resume()
        assert await within(call) == 1


async def test_as_completed_and_wait(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        calls = [client.echo(str(i)) for i in range(100)]
        seen = {await each for each in asyncio.as_completed(calls)}
        assert seen == {str(i).encode() for i in range(100)}
        tasks = [asyncio.create_task(client.echo(str(i))) for i in range(20)]
        done, pending = await asyncio.wait(tasks, timeout=20)
        assert (len(done), len(pending)) == (20, 0)


@from_312
async def test_eager_tasks(server: Server) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    async with aioredis.Redis(**server.unix) as client:

        async def both(number: int) -> list[Any]:
            return [await client.echo(f"{number}a"), await client.echo(f"{number}b")]

        tasks = [asyncio.create_task(both(i)) for i in range(100)]
        assert await outcomes(tasks) == [[f"{i}a".encode(), f"{i}b".encode()] for i in range(100)]
        direct = [asyncio.create_task(client.echo(str(i))) for i in range(100)]
        assert await outcomes(direct) == [str(i).encode() for i in range(100)]
        async with asyncio.TaskGroup() as group:
            task = group.create_task(client.echo("grouped"))
        assert task.result() == b"grouped"


# --- without a loop ------------------------------------------------------------------


def test_asyncio_run_of_a_call(server: Server) -> None:
    server.cmd("SET", "k", "v")
    client = aioredis.Redis(**server.unix)
    call = client.get("k")
    assert inspect.iscoroutine(call)
    before = server.calls("get")
    assert before == 0, "a call made without a loop is sent when it is awaited"
    assert asyncio.run(call) == b"v"
    assert asyncio.run(client.execute_command("GET", "k")) == b"v"
    asyncio.run(client.aclose())


def test_run_until_complete(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(client.set("k", "v")) is True
        assert loop.run_until_complete(client.get("k")) == b"v"
        task = loop.create_task(client.get("k"))
        assert loop.run_until_complete(task) == b"v"
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()


def test_a_call_from_a_thread_without_a_loop(server: Server) -> None:
    server.cmd("SET", "k", "v")
    client = aioredis.Redis(**server.unix)
    made: list[Any] = []

    async def main() -> None:
        thread = threading.Thread(target=lambda: made.append(client.get("k")))
        thread.start()
        thread.join()
        assert inspect.iscoroutine(made[0])
        assert await made[0] == b"v"
        loop = asyncio.get_running_loop()

        def threadsafe() -> Any:
            return asyncio.run_coroutine_threadsafe(client.get("k"), loop).result(20)

        assert await loop.run_in_executor(None, threadsafe) == b"v"
        await client.aclose()

    run(main())


def test_a_call_that_is_never_awaited_without_a_loop(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    call = client.get("k")
    call.close()
    assert server.calls("get") == 0
    asyncio.run(client.aclose())


# --- not awaited ---------------------------------------------------------------------


async def test_un_awaited_calls_are_sent(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        for _ in range(100):
            client.incr("n")
        await until(lambda: server.cmd("GET", "n") == "100")
        gc.collect()
        assert await client.get("n") == b"100"


async def test_a_call_returned_through_plain_functions(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:

        def fetch(key: str) -> Any:
            return client.get(key)

        def fetch_both() -> list[Any]:
            return [fetch("a"), fetch("b")]

        await client.mset({"a": "1", "b": "2"})
        assert [await each for each in reversed(fetch_both())] == [b"2", b"1"]


async def test_an_error_nobody_retrieved_is_logged(
    server: Server, leaks: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    leaks.allow("exception was never retrieved")
    caplog.set_level(logging.ERROR, "asyncio")
    async with aioredis.Redis(**server.unix) as client:
        client.execute_command("GET")
        await client.ping()
        gc.collect()
        assert "exception was never retrieved" in caplog.text
        caplog.clear()
        call = client.execute_command("GET")
        await outcome(call)
        del call
        gc.collect()
        assert caplog.text == ""


# --- context, debug, order -----------------------------------------------------------


async def test_contextvars(server: Server) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=-1)
    async with aioredis.Redis(**server.unix) as client:

        async def work(number: int) -> None:
            variable.set(number)
            for _ in range(20):
                await client.echo(str(number))
                assert variable.get() == number

        assert await outcomes([work(i) for i in range(50)]) == [None] * 50
        assert variable.get() == -1

        seen: list[int] = []
        call = client.echo("x")
        context = contextvars.copy_context()
        context.run(variable.set, 99)
        call.add_done_callback(lambda _: seen.append(variable.get()), context=context)
        await call
        await until(lambda: seen)
        assert seen == [99]
        assert variable.get() == -1


async def test_current_task(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:

        async def work() -> None:
            me = asyncio.current_task()
            for _ in range(20):
                await client.ping()
                assert asyncio.current_task() is me

        assert await outcomes([asyncio.create_task(work()) for _ in range(20)]) == [None] * 20


def test_debug_mode(server: Server, leaks: Watch) -> None:
    async def main() -> None:
        async with aioredis.Redis(**server.unix) as client:
            calls = [client.echo(str(i)) for i in range(100)]
            assert await outcomes(calls) == [str(i).encode() for i in range(100)]
            tasks = [asyncio.create_task(client.incr("n")) for _ in range(100)]
            assert sorted(await outcomes(tasks)) == list(range(1, 101))
            call = client.get("k")
            assert call._source_traceback
            call.cancel()

    run(main(), debug=True)


def test_debug_mode_names_the_slow_task(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "asyncio")

    async def slow_one(client: aioredis.Redis) -> None:
        await client.ping()
        give_up = asyncio.get_running_loop().time() + 0.05
        while asyncio.get_running_loop().time() < give_up:
            pass

    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0.02
        async with aioredis.Redis(**server.unix) as client:
            await asyncio.create_task(slow_one(client))

    run(main(), debug=True)
    assert "slow_one" in caplog.text


async def test_one_tasks_awaits_are_in_order(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:

        async def work(number: int) -> None:
            for step in range(50):
                await client.set(f"k{number}", step)
                assert await client.get(f"k{number}") == str(step).encode()

        assert await outcomes([work(i) for i in range(20)]) == [None] * 20


async def test_the_loop_turns_under_a_storm(server: Server) -> None:
    """Timers and other tasks get their turn between replies."""
    async with aioredis.Redis(**server.unix) as client:
        storming = True

        async def storm() -> None:
            while storming:
                await client.ping()

        tasks = [asyncio.create_task(storm()) for _ in range(200)]
        loop = asyncio.get_running_loop()
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1
            if ticks < 50:
                loop.call_later(0.001, tick)

        tick()
        await until(lambda: ticks == 50)
        storming = False
        assert await outcomes(tasks) == [None] * 200


async def test_waking_in_place_never_steps_a_task_from_inside_another(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        inside: list[str] = []

        async def step(name: str) -> None:
            for _ in range(30):
                inside.append(name)
                client.ping()  # made, not awaited: its completion must not run here
                other = client.echo(name)
                assert inside.pop() == name
                await other

        assert await outcomes([step(str(i)) for i in range(30)]) == [None] * 30


def test_a_task_that_stops_the_loop(server: Server) -> None:
    """KeyboardInterrupt out of a task that a reply woke ends the run; no reply is mixed up."""
    client = aioredis.Redis(**server.unix)

    async def main() -> None:
        async def interrupt() -> None:
            await client.ping()
            raise KeyboardInterrupt

        others = [asyncio.ensure_future(client.echo(str(i))) for i in range(50)]
        task = asyncio.create_task(interrupt())
        await asyncio.gather(task, *others)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())

    async def after() -> None:
        assert await client.echo("after") == b"after"
        await client.aclose()

    run(after())


@pytest.mark.parametrize("factory", ["asyncio", "uvloop"])
def test_other_loops(server: Server, factory: str) -> None:
    make: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if factory == "uvloop":
        make = pytest.importorskip("uvloop").new_event_loop
    client = aioredis.Redis(**server.unix)

    async def main() -> None:
        for base in range(0, 5000, 250):
            numbers = range(base, base + 250)
            tasks = [asyncio.create_task(client.echo(str(i))) for i in numbers]
            for task in tasks[::7]:
                task.cancel()
            values = await outcomes(tasks)
            for number, value in zip(numbers, values, strict=True):
                assert value == str(number).encode() or (number - base) % 7 == 0
        await client.aclose()

    loop = make()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
