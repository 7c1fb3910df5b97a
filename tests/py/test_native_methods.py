"""Methods with a native short cut against redis-py's own: bytes on the wire, replies, overriding.

What a method sends is read from the server's MONITOR, so that the comparison is with what
arrived and not with what either side says it sent.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import pickle
import pydoc
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest.mock import create_autospec, patch

import offloop.redis as aioredis
import pytest
import redis.asyncio as reference
from driving import outcome
from native_calls import (
    NAMES,
    ODD,
    PLAIN,
    WAITING,
    WITH_OPTIONS,
    Monitor,
    least_args,
    seed,
    short_calls,
)
from offloop import _core
from offloop.redis.methods import SHORT_CUTS, ShortCut, native_methods
from servers import Server


@pytest.fixture
def monitor(server: Server) -> Iterator[Monitor]:
    monitor = Monitor(server)
    yield monitor
    monitor.close()


async def called(method: Any, *args: Any, **options: Any) -> Any:
    return await method(*args, **options)


def shown(result: Any) -> Any:
    """A result so that equal ones are of the same type as well."""
    if isinstance(result, BaseException):
        return type(result), str(result)
    return type(result), result


OPTIONS = [
    pytest.param({"protocol": protocol, "decode_responses": decode}, id=f"resp{protocol}-{decode}")
    for protocol in (2, 3)
    for decode in (False, True)
]


# What a connection for the call's time says first; the second from Redis 7.2 on.
HANDSHAKE = (b'"HELLO"', b'"CLIENT" "SETINFO"')


async def same(
    server: Server,
    monitor: Monitor,
    options: dict[str, Any],
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]],
    *,
    odd: bool = False,
    waiting: bool = False,
) -> None:
    async with aioredis.Redis(**server.tcp, **options) as client:
        shared = str(await client.client_id())
        (address,) = [row["addr"] for row in server.clients() if row["id"] == shared]
        port = None if waiting else int(address.rpartition(":")[2])
        for name, args, named in calls:
            found = []
            for method in (
                getattr(client, name),
                types.MethodType(getattr(reference.Redis, name), client),
            ):
                # An iterator is used up by the first call.
                given = [copy.copy(arg) if hasattr(arg, "__next__") else arg for arg in args]
                seed(server)
                monitor.seen(port)
                result = await outcome(called(method, *given, **named))
                sent = [line for line in monitor.seen(port) if not line.startswith(HANDSHAKE)]
                found.append((shown(result), sent))
            assert found[0] == found[1], (name, args, named)
            assert found[0][1] or odd, f"{name}{args} reached no server"


@pytest.mark.parametrize("options", OPTIONS)
async def test_the_same_bytes_and_reply(
    server: Server, monitor: Monitor, options: dict[str, Any]
) -> None:
    calls = [(name, args, named) for name in NAMES for args, named in short_calls(name)]
    await same(server, monitor, options, calls)


@pytest.mark.parametrize("options", OPTIONS)
async def test_the_same_where_the_server_may_wait(
    server: Server, monitor: Monitor, options: dict[str, Any]
) -> None:
    calls = [(name, args, named) for name in WAITING for args, named in WAITING[name]]
    await same(server, monitor, options, calls, waiting=True)


@pytest.mark.parametrize("options", OPTIONS[:1])
async def test_odd_arguments_are_redis_pys_to_the_letter(
    server: Server, monitor: Monitor, options: dict[str, Any]
) -> None:
    await same(server, monitor, options, [(n, a, k) for n in ODD for a, k in ODD[n]], odd=True)


async def test_another_encoding(server: Server, monitor: Monitor) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("set", ("s", "\u00e9"), {}),
        ("append", ("s", "\u00e9"), {}),
        ("get", ("\u65e5",), {}),
    ]
    await same(server, monitor, {"encoding": "latin-1"}, calls, odd=True)


# --- the short cut is taken, and only where it may be ------------------------------------


class _NotCalled(Exception):
    pass


def spied(cut: ShortCut, seen: list[Any]) -> _core.Method:
    """A Method like that of the table around a function that notes its calls."""

    def function(*args: Any, **options: Any) -> None:
        seen.append((args[1:], options))
        raise _NotCalled

    return cut.method(function)


@pytest.mark.parametrize("name", NAMES)
async def test_the_short_cut_is_taken_where_it_may_be(server: Server, name: str) -> None:
    seen: list[Any] = []
    kind = type("Spied", (aioredis.Redis,), {name: spied(SHORT_CUTS[name], seen)})
    async with kind(**server.unix) as client:
        await client.ping()  # the first command of all opens the channel
        for args, named in short_calls(name):
            result = await outcome(called(getattr(client, name), *args, **named))
            assert not isinstance(result, _NotCalled), (args, named)
        assert seen == []
        expected = []
        for args, named in ODD.get(name, [((None,), {})]):
            if "\udc80" in args:
                continue  # a str all the same
            with pytest.raises(_NotCalled):
                getattr(client, name)(*args, **named)
            expected.append((args, named))
        assert seen == expected


def test_every_row_is_tested() -> None:
    assert set(PLAIN) == set(SHORT_CUTS)
    assert set(ODD) | set(WITH_OPTIONS) <= set(SHORT_CUTS)
    for name, cut in SHORT_CUTS.items():
        counts = {len(args) for args in PLAIN[name]}
        assert {cut.least} <= counts
        assert cut.most > 10 or counts == set(range(cut.least, cut.most + 1)), name


@pytest.mark.parametrize("name", NAMES)
def test_rows_fit_redis_pys_signature(name: str) -> None:
    cut = SHORT_CUTS[name]
    _, *parameters = inspect.signature(getattr(reference.Redis, name)).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        assert cut.most == sys.maxsize
        return
    assert cut.most <= len(positional)
    required = [p for p in positional if p.default is p.empty]
    assert cut.least >= len(required)
    for parameter, option in zip(positional[cut.most :], cut.options, strict=False):
        assert parameter.name == option.name
        assert parameter.default is (False if option.least is None else None)


class Overriding(aioredis.Redis):
    def execute_command(self, *args: Any, **options: Any) -> Any:
        return ("overridden", args, options)


class Intercepting(aioredis.Redis):
    def __getattribute__(self, name: str) -> Any:
        if name == "execute_command":
            return lambda *args, **options: ("overridden", args, options)
        return super().__getattribute__(name)


class Mixin:
    def execute_command(self, *args: Any, **options: Any) -> Any:
        return ("overridden", args, options)


class Mixed(Mixin, aioredis.Redis):
    pass


class Reference(reference.Redis):
    def execute_command(self, *args: Any, **options: Any) -> Any:
        return ("overridden", args, options)


def expected_call(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What redis-py's method gives to execute_command."""
    return getattr(Reference(), name)(*args, **named)


@pytest.mark.parametrize("kind", [Overriding, Intercepting, Mixed])
async def test_a_subclass_sees_the_call_that_redis_py_makes(server: Server, kind: Any) -> None:
    async with kind(**server.unix) as client:
        assert await _core.Client.execute_command(client, "PING") is True  # there is a channel
        for name in NAMES:
            for args, named in short_calls(name):
                assert getattr(client, name)(*args, **named) == expected_call(name, args, named)


async def test_whoever_patches_execute_command_sees_the_call(server: Server) -> None:
    def seen(*args: Any, **options: Any) -> Any:
        return ("overridden", args, options)

    def seen_on_the_class(self: Any, *args: Any, **options: Any) -> Any:
        return seen(*args, **options)

    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        for name in NAMES:
            args = PLAIN[name][0]
            expected = expected_call(name, args, {})
            method = getattr(client, name)  # bound before the patch
            with patch.object(aioredis.Redis, "execute_command", seen_on_the_class):
                assert getattr(client, name)(*args) == method(*args) == expected
            with patch.object(client, "execute_command", seen):
                assert getattr(client, name)(*args) == method(*args) == expected
            client.__dict__["execute_command"] = seen
            assert getattr(client, name)(*args) == method(*args) == expected
            del client.__dict__["execute_command"]
            result = method(*args)
            assert isinstance(result, _core.Future)
            await outcome(result)


async def test_an_override_that_comes_and_goes_while_commands_run(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        seen: list[Any] = []

        class Noting(aioredis.Redis):
            pass

        client.__class__ = Noting

        def noted(self: Any, *args: Any, **options: Any) -> Any:
            seen.append(args)
            return _core.Client.execute_command(self, *args, **options)

        for number in range(20):
            assert await client.incr("n") == 2 * number + 1
            Noting.execute_command = noted  # type: ignore[method-assign,assignment]
            assert await client.incr("n") == 2 * number + 2
            del Noting.execute_command
        assert seen == [("INCRBY", "n", 1)] * 20


async def test_a_subclass_with_getattr_and_properties(server: Server) -> None:
    class Lenient(aioredis.Redis):
        def __getattr__(self, name: str) -> Any:
            if name == "nothing":
                return 1
            raise AttributeError(name)

    async with Lenient(**server.unix) as client:
        assert await client.set("k", "v") is True
        assert await client.get("k") == b"v"
        assert client.nothing == 1


async def test_parse_response_overridden_sees_options(server: Server) -> None:
    seen: list[Any] = []

    class Parsing(aioredis.Redis):
        async def parse_response(self, connection: Any, name: Any, **options: Any) -> Any:
            seen.append((name, options))
            return await super().parse_response(connection, name, **options)

    async with Parsing(**server.unix) as client:
        assert await client.get("k") is None
        assert await client.hget("h", "f") is None
    assert ("GET", {"keys": ["k"]}) in seen
    assert ("HGET", {"keys": ["h"]}) in seen


async def test_response_callbacks_are_looked_up_at_each_call(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.set("k", "v")
        assert await client.get("k") == b"v"
        client.set_response_callback("GET", lambda value, **options: (value, options))
        assert await client.get("k") == (b"v", {})
        del client.response_callbacks["GET"]
        assert await client.get("k") == b"v"
        client.response_callbacks["get"] = len
        assert await client.get("k") == 1


# --- it looks like redis-py's function ------------------------------------------------------


def test_inspection() -> None:
    for name in NAMES:
        looks_like_redis_pys(name)


def looks_like_redis_pys(name: str) -> None:
    client = aioredis.Redis()
    theirs: Any = getattr(reference.Redis, name)
    bound = getattr(reference.Redis(), name)
    for ours in (getattr(aioredis.Redis, name), aioredis.Redis.__dict__[name]):
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert inspect.isfunction(ours)
    ours = getattr(client, name)
    assert inspect.ismethod(ours)
    assert ours.__self__ is client
    assert inspect.signature(ours) == inspect.signature(bound)
    assert inspect.getdoc(ours) == inspect.getdoc(bound)
    assert inspect.getsource(ours) == inspect.getsource(bound)
    assert inspect.getfullargspec(ours) == inspect.getfullargspec(bound)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(ours, attribute) == getattr(bound, attribute)
    assert asyncio.iscoroutinefunction(ours) == asyncio.iscoroutinefunction(bound)
    assert getattr(client, name) == getattr(client, name)
    assert getattr(client, name) != getattr(aioredis.Redis(), name)
    assert pydoc.render_doc(getattr(aioredis.Redis, name)) == pydoc.render_doc(theirs)
    with pytest.raises(AttributeError):
        _ = ours.no_such_attribute


def test_it_shows_itself_in_its_repr() -> None:
    assert repr(aioredis.Redis.__dict__["get"]).startswith("<native <function BasicKeyCommands.get")


def specs(kind: Any) -> list[Any]:
    of_class = create_autospec(kind)
    return [of_class, create_autospec(kind, instance=True), of_class(), create_autospec(kind())]


def test_autospec() -> None:
    for ours, theirs in zip(specs(aioredis.Redis), specs(reference.Redis), strict=True):
        for name in NAMES:
            found = getattr(ours, name)
            assert inspect.signature(found) == inspect.signature(getattr(theirs, name))
            found(*PLAIN[name][0])
            found.assert_called_once_with(*PLAIN[name][0])
            with pytest.raises(TypeError):
                found(no_such_parameter=1)


async def test_patching(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        for name in NAMES:
            args = PLAIN[name][0]
            native = aioredis.Redis.__dict__[name]
            with patch.object(aioredis.Redis, name, autospec=True, return_value=5) as mock:
                assert getattr(client, name)(*args) == 5
                mock.assert_called_once_with(client, *args)
                with pytest.raises(TypeError):
                    getattr(client, name)(no_such_parameter=1)
            assert aioredis.Redis.__dict__[name] is native
            with patch.object(client, name, autospec=True, return_value=6) as mock:
                assert getattr(client, name)(*args) == 6
                mock.assert_called_once_with(*args)
            assert name not in client.__dict__
            result = getattr(client, name)(*args)
            assert isinstance(result, _core.Future)
            await outcome(result)


async def test_super_and_the_class_itself(server: Server) -> None:
    class Prefixing(aioredis.Redis):
        def get(self, name: Any) -> Any:
            return super().get(f"pre:{name}")

    async with Prefixing(**server.unix) as client:
        await client.set("pre:k", "v")
        assert await client.get("k") == b"v"
        assert await aioredis.Redis.get(client, "pre:k") == b"v"
        assert await aioredis.Redis.__dict__["get"](client, "pre:k") == b"v"
        assert await aioredis.Redis.__dict__["get"].__get__(client)("pre:k") == b"v"
        native = aioredis.Redis.__dict__["get"]
        assert await native(client, name="pre:k") == b"v"


async def test_redis_pys_own_objects_are_no_concern_of_it(server: Server) -> None:
    get = aioredis.Redis.__dict__["get"]
    async with reference.Redis(**server.unix) as other:
        assert await get(other, "k") is None
    with pytest.raises(AttributeError, match="execute_command"):
        get(5, "k")
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        get()
    assert pickle.loads(pickle.dumps(aioredis.Redis.get)) is reference.Redis.get


def test_a_method_is_made_of_what_fits() -> None:
    for arguments in (
        (5, "GET", 1, 1),
        (len, "GET", -1, 1),
        (len, "GET", 2, 1),
        (len, "BLPOP", 1, 1),
        (len, "CLIENT", 1, 1),
    ):
        with pytest.raises(ValueError):
            _core.Method(*arguments)
    for wrong in ((len, b"GET", 1, 1), (len, "GET", "1", 1), (len,)):
        with pytest.raises(TypeError):
            _core.Method(*wrong)  # type: ignore[arg-type]
    option = ("ex", "EX", True, 0, 0, 0)
    for options in (
        {"options": (option,) * 5},
        {"options": (option, option)},
        {"options": (("ex", "EX", True, 4, 0, 0),)},
        {"options": (("ex", "EX", True, -1, 0, 0),)},
        {"options": (("ex", "EX", True, 0, 0, 1),)},
        {"options": (("ex", "EX", True, 0, 0, -1),)},
    ):
        with pytest.raises(ValueError):
            _core.Method(len, "GET", 1, 1, **options)  # type: ignore[arg-type]
    wrong_one = ("ex", b"EX", True, 0, 0, 0)
    for wrong_options in ([option], (5,), (("ex", "EX"),), (wrong_one,), (option, 5)):
        with pytest.raises(TypeError):
            _core.Method(len, "GET", 1, 1, options=wrong_options)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        _core.Method(len, "XREAD", 0, 1, mapped="STREAMS")
    with pytest.raises(ValueError):
        _core.Method(len, "XREAD", 9, 9, mapped="STREAMS")
    for word in ({"prefix": b"GROUP"}, {"mapped": 5}):
        with pytest.raises(TypeError):
            _core.Method(len, "XREAD", 1, 1, **word)  # type: ignore[arg-type]
    with pytest.raises(aioredis.DataError):
        _core.Method(len, "", 1, 1)


def test_what_redis_py_does_not_have_is_left_out() -> None:
    class Few:
        get = reference.Redis.get

    assert list(native_methods(Few)) == ["get"]


async def test_no_reference_is_lost(server: Server) -> None:
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        key = "the key of all these calls"
        ttl = 10**6
        before = None
        for turn in range(4):
            for name in NAMES:
                args = least_args(name, key)
                for _ in range(20):
                    await outcome(getattr(client, name)(*args))
                    await outcome(called(getattr(client, name), *args, no_such_option=1))
            for _ in range(20):
                await client.set(key, key, ex=ttl, nx=True)
                await client.set(key, key, ttl)
                await outcome(called(client.set, key, key, ttl, ex=ttl))
                await outcome(called(client.set, key, key, nx=True, xx=True))
            await asyncio.sleep(0)
            gc.collect()
            functions = [sys.getrefcount(getattr(reference.Redis, name)) for name in NAMES]
            counts = [sys.getrefcount(thing) for thing in (key, ttl, client, "NX", "EX")]
            if turn == 1:
                before = functions, counts
        assert before == (functions, counts)
