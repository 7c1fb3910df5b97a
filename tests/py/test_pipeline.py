"""Pipelines give what redis.asyncio's give: the same program run on both, outcomes compared.

Which of ours are native, what goes redis-py's way, and what subclasses lean on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio as reference
from driving import within
from offloop.redis.client import Pipeline
from offloop.redis.methods import SHORT_CUTS
from pipeline_scenarios import LEASED, SCENARIOS, outcome_of, told
from redis.exceptions import RedisError, ResponseError, WatchError
from servers import Server
from test_isolation import state


@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "str"])
@pytest.mark.parametrize("protocol", [None, 2, 3])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_as_redis_asyncio(
    server: Server, name: str, protocol: int | None, decode: bool
) -> None:
    options = {**server.unix, "protocol": protocol, "decode_responses": decode}
    if decode and name in ("bytes_and_case",):
        options["encoding_errors"] = "replace"
    async with reference.Redis(**options) as theirs:
        wanted = await within(outcome_of(SCENARIOS[name], theirs))
    server.cmd("FLUSHALL")
    server.cmd("SCRIPT", "FLUSH")
    async with aioredis.Redis(**options) as client:
        assert await within(outcome_of(SCENARIOS[name], client)) == wanted
        if name not in LEASED and name not in ("mget_of_nothing",):
            # Nothing took a connection of its own.
            assert len(server.clients()) <= 1


# --- what is native, and what is not ---------------------------------------------------


async def test_pipelines_share_the_connection_and_are_one_job(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        for transaction in (False, True):
            before = client.stats()
            pipe = client.pipeline(transaction=transaction)
            for number in range(1000):
                pipe.set(f"k{number}", number)
            assert await pipe.execute() == [True] * 1000
            after = client.stats()
            assert after["pipelines"] - before["pipelines"] == 1
            sent = after["commands"] - before["commands"]
            assert sent == 1000 + 2 * transaction
            assert after["replies"] - before["replies"] == sent
        assert len(server.clients()) == 1
        assert client.stats()["connects"] == 1


async def test_ten_watching_transactions_at_once(server: Server) -> None:
    """Each races for the same key, retries on WatchError, and none is lost."""
    async with aioredis.Redis(**server.unix) as client:
        await client.set("n", 0)

        async def add() -> None:
            while True:
                async with client.pipeline() as pipe:
                    try:
                        await pipe.watch("n")
                        value = int(await pipe.get("n"))
                        pipe.multi()
                        pipe.set("n", value + 1)
                        await pipe.execute()
                        return
                    except WatchError:
                        continue

        await within(asyncio.gather(*(add() for _ in range(10))))
        assert await client.get("n") == b"10"


async def test_a_pipeline_made_by_hand_and_subclassed(server: Server) -> None:
    class Mine(Pipeline):
        def double(self, key: str) -> Any:
            return self.get(key).get(key)

    async with aioredis.Redis(**server.unix) as client:
        pipe = Mine(client.connection_pool, client.response_callbacks, True, None)
        assert isinstance(pipe, aioredis.Redis)
        assert isinstance(pipe, reference.Redis)
        assert isinstance(pipe, reference.client.Pipeline)
        assert await pipe.set("a", 1).double("a").execute() == [True, b"1", b"1"]
        assert client.stats()["pipelines"] == 1


@pytest.mark.parametrize(
    "hook",
    ["execute_command", "pipeline_execute_command", "immediate_execute_command", "parse_response",
     "_execute_transaction", "_execute_pipeline", "load_scripts", "execute", "reset",
     "annotate_exception", "raise_first_error"],
)  # fmt: skip
async def test_a_subclass_that_overrides(server: Server, hook: str) -> None:
    """Whatever of redis-py's methods a subclass puts in place, redis-py calls it: so do we."""
    seen: dict[str, int] = {}

    def make(base: Any) -> Any:
        original = getattr(base, hook)

        def overridden(self: Any, *args: Any, **options: Any) -> Any:
            seen[base.__module__] = seen.get(base.__module__, 0) + 1
            return original(self, *args, **options)

        return type("Mine", (base,), {hook: overridden})

    async def work(client: Any, cls: Any) -> Any:
        script = client.register_script("return 7")
        found = []
        for transaction in (False, True):
            await client.script_flush()
            pipe = cls(client.connection_pool, client.response_callbacks, transaction, None)
            pipe.set("a", "x").get("a")
            await script(client=pipe)
            found.append(await pipe.execute())
            try:
                await pipe.incr("a").execute()
            except ResponseError as error:
                found.append(told(error))
            await pipe.watch("a")
            found.append(await pipe.get("a"))
            await pipe.reset()
        return found

    async with reference.Redis(**server.unix) as theirs:
        wanted = await work(theirs, make(reference.client.Pipeline))
    async with aioredis.Redis(**server.unix) as client:
        assert await work(client, make(Pipeline)) == wanted
    assert seen[Pipeline.__module__] >= 1
    assert seen[Pipeline.__module__] == seen[reference.client.__name__]


async def test_a_connection_class_of_the_programs_own(server: Server) -> None:
    """Its pool has no channel: every command goes over connections of that class."""
    made = []

    class Own(reference.UnixDomainSocketConnection):
        async def connect(self) -> None:
            made.append(self)
            await super().connect()

    pool = aioredis.ConnectionPool(connection_class=Own, path=server.path)
    async with aioredis.Redis(connection_pool=pool) as client:
        assert await client.pipeline().set("a", 1).get("a").execute() == [True, b"1"]
        assert len(made) == 1
    await pool.aclose()


async def test_redis_pys_own_connection_pool(server: Server) -> None:
    pool = reference.ConnectionPool.from_url(server.unix_url)
    async with aioredis.Redis(connection_pool=pool) as client:
        pipe = client.pipeline()
        assert isinstance(pipe, Pipeline)
        assert await pipe.set("a", 1).get("a").execute() == [True, b"1"]
    await pool.aclose()


async def test_state_of_the_shared_connection_is_never_touched(server: Server) -> None:
    """SELECT, MULTI by hand, WATCH in a pipeline: on a connection of its own."""
    async with aioredis.Redis(**server.unix, socket_timeout=60) as client:
        await client.set("k", "v")
        identity = await client.client_id()
        before = state(server.clients(), str(identity))
        for command in (("SELECT", "5"), ("MULTI",), ("CLIENT SETNAME", "x"), ("WATCH", "k")):
            pipe = client.pipeline(transaction=False)
            pipe.set("k", "v").pipeline_execute_command(*command)
            with contextlib.suppress(RedisError, TypeError):
                await within(pipe.execute())
            assert await client.get("k") == b"v"
            assert await client.client_id() == identity
            assert state(server.clients(), str(identity)) == before
        assert client.stats()["pipelines"] == 0


async def test_an_unknown_name_is_no_attribute() -> None:
    client = aioredis.Redis()
    with pytest.raises(AttributeError):
        client.pipeline().nosuchmethod  # noqa: B018
    await client.aclose()


async def test_queued_before_any_loop_and_executed_in_several(server: Server) -> None:
    """A pipeline is not tied to a loop: queued in a thread without one, sent from another."""
    client = aioredis.Redis(**server.unix)
    pipe = await asyncio.to_thread(lambda: client.pipeline().set("a", 1).get("a"))
    assert await pipe.execute() == [True, b"1"]
    pipe.get("a")

    def elsewhere() -> Any:
        return asyncio.run(_execute(pipe))

    assert await asyncio.to_thread(elsewhere) == [b"1"]
    await client.aclose()


async def _execute(pipe: Any) -> Any:
    return await pipe.execute()


async def test_after_the_client_was_closed(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    pipe = client.pipeline().set("a", 1)
    await client.ping()
    await client.aclose()
    assert await pipe.get("a").execute() == [True, b"1"]  # it opens anew, as redis-py's pools do
    await client.aclose()


async def test_contextvars_of_callbacks_are_the_callers(server: Server) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen = []
    async with aioredis.Redis(**server.unix) as client:

        def look(value: Any, **options: Any) -> Any:
            seen.append(variable.get())
            return value

        client.set_response_callback("GET", look)

        async def work(name: str) -> None:
            variable.set(name)
            await client.pipeline().get("a").execute()

        await asyncio.gather(work("one"), work("two"))
    assert sorted(seen) == ["one", "two"]


# --- module groups -----------------------------------------------------------------------


async def test_pipelines_of_module_groups(server: Server) -> None:
    """The server has no modules: what they queue, and that errors come back natively."""
    async with aioredis.Redis(**server.unix) as client, reference.Redis(**server.unix) as theirs:
        search = client.ft("index").pipeline(transaction=False)
        assert isinstance(search, Pipeline)
        assert search.index_name == "index"
        await search.search("word")
        their_search = theirs.ft("index").pipeline(transaction=False)
        await their_search.search("word")
        ours, other = search.command_stack, their_search.command_stack
        assert [args for args, _ in ours] == [args for args, _ in other]
        assert [set(options) for _, options in ours] == [set(options) for _, options in other]
        with pytest.raises(ResponseError, match="Command # 1 .FT.SEARCH"):
            await search.execute()
        json = client.json().pipeline().set("doc", "$", {"a": 1}).get("doc")
        assert [args for args, _ in json.command_stack] == [
            ("JSON.SET", "doc", "$", '{"a": 1}'),
            ("JSON.GET", "doc", "."),
        ]
        with pytest.raises(ResponseError, match="unknown command"):
            await json.execute()
        series = client.ts().pipeline(transaction=False).add("t", 1, 2.0)
        with pytest.raises(ResponseError, match="unknown command"):
            await series.execute()
        assert client.stats()["pipelines"] == 3


# --- short cuts ----------------------------------------------------------------------------


def _short_calls() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for name, cut in SHORT_CUTS.items():
        if cut.mapped is not None:
            continue  # redis-py's own function queues it
        for count in range(cut.least, min(cut.most, cut.least + 2) + 1):
            calls.append((name, ("k", 1, 2, 3, "m", 5)[:count], {}))
    calls += [
        ("set", ("k", "v"), {"ex": 60}),
        ("set", ("k", "v"), {"px": 60, "nx": True}),
        ("set", ("k", "v", 60), {}),
        ("set", ("k", "v"), {"get": True, "keepttl": True}),
        ("lpop", ("k",), {"count": 2}),
        ("mget", (["a", "b"],), {}),
        ("xreadgroup", ("g", "c", {"s": ">"}), {"count": 1}),
        ("get", (b"k",), {}),
        ("get", (), {"name": "k"}),
    ]
    return calls


@pytest.mark.parametrize(("name", "args", "options"), _short_calls())
async def test_a_command_queued_by_a_short_cut(
    server: Server, name: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """command_stack, the error's text and the reply are redis-py's, whatever way was taken."""
    found = []
    for cls in (reference.Redis, aioredis.Redis):
        server.cmd("FLUSHALL")
        async with cls(**server.unix) as client:
            shown = getattr(client.pipeline(), name)(*args, **options).command_stack
            replies = []
            for transaction in (False, True):
                pipe = getattr(client.pipeline(transaction=transaction), name)(*args, **options)
                replies.append(told(await pipe.execute(raise_on_error=False)))
            # A second look, at what the pipeline was going to send: then it is sent from there.
            pipe = getattr(client.pipeline().set("k", "text"), name)(*args, **options)
            assert len(pipe.command_stack) == 2
            replies.append(told(await pipe.execute(raise_on_error=False)))
            rest = ("list", *args[1:]) if args else args
            pipe = getattr(client.pipeline().lpush("list", 1), name)(*rest, **options)
            try:
                await pipe.incr("list").execute()
            except ResponseError as error:
                replies.append(told(error))
            found.append((shown, replies))
    assert found[0] == found[1]


async def test_short_cuts_respect_a_patched_class(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = Pipeline.execute_command

    def patched(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(args)
        return original(self, *args, **options)

    async with aioredis.Redis(**server.unix) as client:
        pipe = client.pipeline().set("a", 1)
        monkeypatch.setattr(Pipeline, "execute_command", patched)
        assert await pipe.get("a").execute() == [True, b"1"]
        assert seen == [("GET", "a")]
