"""Programs with pipelines, to be run on redis.asyncio's client and on ours.

A scenario is a coroutine over a client that returns (or raises) something; whatever it
is, exceptions with their texts and causes included, must be the same on both.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, DataError, ResponseError, WatchError

Scenario = Callable[[Any], Awaitable[Any]]
SCENARIOS: dict[str, Scenario] = {}
# Those that need a connection to themselves: their pipelines go redis-py's way.
LEASED: set[str] = set()


def scenario(leased: bool = False) -> Callable[[Scenario], Scenario]:
    def register(function: Scenario) -> Scenario:
        SCENARIOS[function.__name__] = function
        if leased:
            LEASED.add(function.__name__)
        return function

    return register


def told(value: Any) -> Any:
    """A value that compares: exceptions as their type, text and cause."""
    if isinstance(value, BaseException):
        return (type(value), value.args, told(value.__cause__))
    if isinstance(value, (list, tuple)):
        return [type(value), *map(told, value)]
    if isinstance(value, dict):
        return {told(key): told(item) for key, item in value.items()}
    return value if not isinstance(value, float) else (float, value)


async def outcome_of(run: Scenario, client: Any) -> Any:
    try:
        return told(await run(client))
    except Exception as error:
        return told(error)


# --- the scenarios ---------------------------------------------------------------------


@scenario()
async def plain(c: Any) -> Any:
    pipe = c.pipeline(transaction=False)
    pipe.set("a", "1").get("a").incr("a").hset("h", mapping={"x": "y"}).hgetall("h")
    pipe.rpush("l", 1, 2, 3).lrange("l", 0, -1).sadd("s", "m").smembers("s")
    pipe.zadd("z", {"m": 1.5}).zrange("z", 0, -1, withscores=True).zscore("z", "m")
    pipe.ping().echo("word").get("absent").exists("a").expire("a", 100).type("z").mget("a", "b")
    return [await pipe.execute(), len(pipe), pipe.command_stack]


@scenario()
async def transaction(c: Any) -> Any:
    async with c.pipeline() as pipe:
        pipe.set("a", "1").get("a").incr("a").hset("h", mapping={"x": "y"}).hgetall("h")
        pipe.zadd("z", {"m": 1.5}).zrange("z", 0, -1, withscores=True).zscore("z", "m")
        return await pipe.execute()


@scenario()
async def empty(c: Any) -> Any:
    pipe = c.pipeline()
    return [await pipe.execute(), len(pipe), bool(pipe), await pipe.reset(), pipe.command_stack]


@scenario()
async def reused(c: Any) -> Any:
    pipe = c.pipeline()
    found = []
    for number in range(3):
        pipe.set("a", number)
        pipe.get("a")
        found.append(await pipe.execute())
    return found


@scenario()
async def error_in_a_pipeline(c: Any) -> Any:
    await c.set("a", "text")
    return await c.pipeline(transaction=False).get("a").incr("a").lpush("a", 1).get("a").execute()


@scenario()
async def error_in_a_pipeline_kept(c: Any) -> Any:
    await c.set("a", "text")
    pipe = c.pipeline(transaction=False).get("a").incr("a").lpush("a", 1).get("a")
    return await pipe.execute(raise_on_error=False)


@scenario()
async def error_in_a_transaction(c: Any) -> Any:
    await c.set("a", "text")
    return await c.pipeline().set("b", 1).incr("a").incr("b").execute()


@scenario()
async def error_in_a_transaction_kept(c: Any) -> Any:
    await c.set("a", "text")
    pipe = c.pipeline().set("b", 1).incr("a").incr("b")
    return [await pipe.execute(raise_on_error=False), await c.get("b")]


@scenario()
async def refused_command(c: Any) -> Any:
    return await c.pipeline().set("b", 1).execute_command("NOSUCH", "x").set("b", 2).execute()


@scenario()
async def refused_command_kept(c: Any) -> Any:
    pipe = c.pipeline().set("b", 1).execute_command("NOSUCH").execute_command("GET")
    return await pipe.execute(raise_on_error=False)


@scenario()
async def nothing_ran_of_a_refused_one(c: Any) -> Any:
    try:
        await c.pipeline().set("b", 1).execute_command("NOSUCH").execute()
    except ResponseError as error:
        return [error, await c.exists("b")]


@scenario()
async def busy_loading(c: Any) -> Any:
    c.set_retry(Retry(NoBackoff(), 0))
    found = []
    for transaction in (False, True):
        for raises in (False, True):
            pipe = c.pipeline(transaction=transaction).ping()
            pipe.command_stack.clear()
            pipe.execute_command("DEBUG", "ERROR", "LOADING of a fake").ping()
            try:
                found.append(await pipe.execute(raise_on_error=raises))
            except BusyLoadingError as error:
                found.append([error, len(pipe)])
    return found


@scenario()
async def long_error_text(c: Any) -> Any:
    await c.set("a", "text")
    return (
        await c.pipeline(transaction=False).execute_command("INCR", "a", *["x" * 50] * 5).execute()
    )


@scenario()
async def error_replies_inside(c: Any) -> Any:
    script = "return {1, redis.error_reply('ERR inside'), 'two'}"
    found = []
    for transaction in (False, True):
        pipe = c.pipeline(transaction=transaction).eval(script, 0).ping()
        found.append(await pipe.execute(raise_on_error=False))
    return found


@scenario()
async def callbacks(c: Any) -> Any:
    c.set_response_callback("GET", lambda value, **options: ("seen", value))
    pipe = c.pipeline(transaction=False).set("a", 1).get("a")
    both = [await pipe.execute()]
    pipe = c.pipeline().set("a", 1).get("a").execute_command("get", "a")
    both.append(await pipe.execute())
    return both


@scenario()
async def callback_options(c: Any) -> Any:
    c.set_response_callback("GET", lambda value, **options: (value, sorted(options.items())))
    found = []
    for transaction in (False, True):
        pipe = c.pipeline(transaction=transaction)
        pipe.set("a", 1).execute_command("GET", "a", keys=["a"], one=1, two="2")
        found.append(await pipe.execute())
    return found


@scenario()
async def asynchronous_callbacks(c: Any) -> Any:
    order: list[Any] = []

    async def later(value: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        order.append(value)
        return ["later", value]

    c.set_response_callback("GET", later)
    found = []
    for transaction in (False, True):
        pipe = c.pipeline(transaction=transaction).set("a", 1).get("a").set("a", 2).get("a")
        found.append(await pipe.execute())
    return [found, order]


@scenario()
async def callback_that_raises_a_response_error(c: Any) -> Any:
    def refuse(value: Any, **options: Any) -> Any:
        raise ResponseError("not to my taste")

    c.set_response_callback("GET", refuse)
    pipe = c.pipeline(transaction=False).set("a", 1).get("a").ping()
    return await pipe.execute(raise_on_error=False)


@scenario()
async def asynchronous_callback_that_raises(c: Any) -> Any:
    async def refuse(value: Any, **options: Any) -> Any:
        raise ResponseError("not to my taste")

    c.set_response_callback("GET", refuse)
    pipe = c.pipeline(transaction=False).set("a", 1).get("a").ping()
    return await pipe.execute(raise_on_error=False)


@scenario()
async def callback_that_raises_in_a_transaction(c: Any) -> Any:
    def refuse(value: Any, **options: Any) -> Any:
        raise ResponseError("not to my taste")

    c.set_response_callback("GET", refuse)
    return await c.pipeline().set("a", 1).get("a").ping().execute(raise_on_error=False)


@scenario()
async def command_stack(c: Any) -> Any:
    pipe = c.pipeline()
    pipe.set("a", 1, ex=100)
    pipe.get("a")
    before = copy.deepcopy(pipe.command_stack)
    pipe.hgetall("h")
    pipe.command_stack.append((("GET", "a"), {}))
    del pipe.command_stack[1]
    stack = copy.deepcopy(pipe.command_stack)  # redis-py changes the options as it executes
    return [before, stack, len(pipe), await pipe.execute(), len(pipe)]


@scenario()
async def command_stack_assigned(c: Any) -> Any:
    pipe = c.pipeline(transaction=False)
    pipe.set("a", 1)
    pipe.command_stack = [(("SET", "b", 2), {}), (("GET", "b"), {})]
    pipe.get("a")
    return [await pipe.execute(), len(pipe), await pipe.set("c", 3).execute()]


@scenario()
async def bad_argument(c: Any) -> Any:
    pipe = c.pipeline()
    pipe.set("a", object)
    pipe.set("b", 1)
    length = len(pipe)
    try:
        await pipe.execute()
    except DataError as error:
        return [length, type(error), len(pipe), await c.exists("b"), await pipe.ping().execute()]


@scenario()
async def no_command_at_all(c: Any) -> Any:
    return c.pipeline().execute_command()


@scenario()
async def wrong_arguments_at_once(c: Any) -> Any:
    c.pipeline().set("a", 1, ex=1, px=1)


@scenario()
async def mget_of_nothing(c: Any) -> Any:
    found = []
    for transaction in (False, True):
        found.append(
            await c.pipeline(transaction=transaction).set("a", 1).mget([]).get("a").execute()
        )
    return found


@scenario()
async def bytes_and_case(c: Any) -> Any:
    pipe = c.pipeline(transaction=False)
    pipe.execute_command(b"SET", b"a", b"\x00\xff").execute_command("set", "b", 1)
    pipe.execute_command("CONFIG GET", "maxmemory").execute_command(b"strlen", "a")
    return await pipe.execute()


@scenario()
async def value_types(c: Any) -> Any:
    pipe = c.pipeline(transaction=False)
    for value in (b"b", "s", 1, -(2**70), 1.5, bytearray(b"ba"), memoryview(b"mv")):
        pipe.set("a", value).get("a")
    return await pipe.execute()


@scenario()
async def scripts(c: Any) -> Any:
    double = c.register_script("return ARGV[1] * 2")
    name = c.register_script("return KEYS[1]")
    found = []
    for transaction in (False, True):
        await c.script_flush()
        pipe = c.pipeline(transaction=transaction)
        await double(args=[21], client=pipe)
        pipe.set("a", 1)
        await name(keys=["k"], client=pipe)
        found.append([len(pipe.scripts), await pipe.execute(), len(pipe.scripts)])
    return found


@scenario()
async def evalsha_of_an_unknown_script(c: Any) -> Any:
    return await c.pipeline().evalsha("0" * 40, 0).execute()


@scenario()
async def multi_without_watch(c: Any) -> Any:
    pipe = c.pipeline(transaction=False)
    pipe.multi()
    pipe.set("a", 1)
    return await pipe.execute()


@scenario()
async def multi_after_commands(c: Any) -> Any:
    c.pipeline().set("a", 1).multi()


@scenario()
async def multi_twice(c: Any) -> Any:
    pipe = c.pipeline()
    pipe.multi()
    pipe.multi()


@scenario()
async def awaited_pipeline(c: Any) -> Any:
    pipe = await c.pipeline().set("a", 1)
    return await pipe.execute()


@scenario()
async def left_with_commands_queued(c: Any) -> Any:
    async with c.pipeline() as pipe:
        pipe.set("a", 1)
        pipe.scripts.add("x")
    return [len(pipe), pipe.scripts, await c.exists("a")]


@scenario()
async def transaction_without_watches(c: Any) -> Any:
    return await c.transaction(lambda pipe: pipe.set("a", 1).get("a"))


@scenario()
async def bitfield(c: Any) -> Any:
    return await c.bitfield("bits").set("u8", 0, 200).get("u8", 0).execute()


@scenario()
async def reset_in_the_middle(c: Any) -> Any:
    pipe = c.pipeline()
    pipe.set("a", 1)
    await pipe.reset()
    pipe.set("b", 1)
    return [await pipe.execute(), await c.exists("a", "b")]


@scenario()
async def dump_and_restore(c: Any) -> Any:
    await c.set("a", b"\x00\xff" if not c.get_encoder().decode_responses else "x")
    (dumped,) = await c.pipeline(transaction=False).dump("a").execute()
    pipe = c.pipeline(transaction=False).restore("b", 0, dumped).get("b")
    return await pipe.execute()


@scenario(leased=True)
async def watched(c: Any) -> Any:
    await c.set("a", 1)
    async with c.pipeline() as pipe:
        await pipe.watch("a")
        value = await pipe.get("a")
        pipe.multi()
        pipe.set("a", int(value) + 1).get("a")
        return [pipe.watching, await pipe.execute(), pipe.watching]


@scenario(leased=True)
async def watched_and_changed(c: Any) -> Any:
    await c.set("a", 1)
    pipe = c.pipeline()
    await pipe.watch("a")
    await c.set("a", 2)
    pipe.multi()
    pipe.set("a", 3)
    try:
        await pipe.execute()
    except WatchError as error:
        return [error, pipe.watching, await c.get("a"), await pipe.set("a", 4).execute()]


@scenario(leased=True)
async def watched_and_unwatched(c: Any) -> Any:
    await c.set("a", 1)
    async with c.pipeline() as pipe:
        await pipe.watch("a")
        await c.set("a", 2)
        await pipe.unwatch()
        return [pipe.watching, await pipe.set("a", 3).get("a").execute()]


@scenario(leased=True)
async def queued_and_then_watched(c: Any) -> Any:
    async with c.pipeline() as pipe:
        pipe.set("a", 1)
        await pipe.watch("b")
        first = await pipe.get("a")
        return [first, await pipe.execute()]


@scenario(leased=True)
async def watch_left_on(c: Any) -> Any:
    async with c.pipeline() as pipe:
        await pipe.watch("a")
    return [pipe.watching, await pipe.set("a", 1).get("a").execute()]


@scenario(leased=True)
async def watch_after_multi(c: Any) -> Any:
    pipe = c.pipeline()
    await pipe.watch("a")
    try:
        pipe.multi()
        await pipe.watch("b")
    finally:
        await pipe.reset()


@scenario(leased=True)
async def transaction_with_watches(c: Any) -> Any:
    await c.set("a", 1)
    changes = [5, 7]

    async def work(pipe: Any) -> int:
        value = int(await pipe.get("a"))
        if changes:
            await c.set("a", changes.pop())
        pipe.multi()
        pipe.set("a", value + 1)
        return value

    got = await c.transaction(work, "a", value_from_callable=True)
    return [got, await c.get("a")]


@scenario(leased=True)
async def blocking_pop_inside(c: Any) -> Any:
    await c.rpush("l", "x")
    found = []
    for transaction in (False, True):
        pipe = c.pipeline(transaction=transaction).set("a", 1).blpop("l", 1).get("a")
        found.append(await pipe.execute())
    return found


@scenario(leased=True)
async def discard_by_hand(c: Any) -> Any:
    pipe = c.pipeline(transaction=False)
    pipe.execute_command("MULTI").set("a", 1).execute_command("DISCARD").exists("a")
    return await pipe.execute()
