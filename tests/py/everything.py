"""The oracle over everything at once: what `books` says must hold, driven by random tasks.

`Everything` is an Oracle whose questions are single commands, pipelines, transactions with
and without WATCH, scripts, big replies, pops that wait, streams and messages, all over the
same clients, each of them cancelled, timed out or given up now and then. Beside them some
subscribers stay to the end. `Stage` is where it plays: a server, what can be cut before
it, and the clients' options.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from books import Books, Entries, Subscriber
from driving import outcome, within
from oracle import ACCEPTED, NOTHING
from proxy import Proxy
from redis.exceptions import NoScriptError, WatchError
from secured import SecuredServer
from servers import Server
from test_oracle import Chaos
from test_pipeline_oracle import PipelineOracle

SCRIPT = "return {KEYS[1], ARGV[1], {tonumber(ARGV[1])}}"
BIG = [100_000, 250_000, 700_000, 1_500_000, 5_000_000]
BAGS = [f"bag:{i}" for i in range(4)]
HEAPS = [f"heap:{i}" for i in range(2)]
CHANNELS = [f"news:{i}" for i in range(6)]
SHARDS = [f"shard:{i}" for i in range(2)]
PATTERNS = ["news:*", "news:[0-2]"]

# From Python 3.11 on.
_timeout: Any = getattr(asyncio, "timeout", None)


def big(index: int) -> bytes:
    """A value that no other one is like, anywhere."""
    return (b"%d." % index).ljust(11, b"b") * (BIG[index] // 11)


class Everything(PipelineOracle):
    """One loop's share; `books` may be shared by several."""

    def __init__(self, books: Books, clients: list[Any], *args: Any, **options: Any) -> None:
        super().__init__(clients, *args, **options)
        self.books = books
        self.over = False
        self.idle = [books.messages.publisher()]
        self.tasks: set[asyncio.Task[Any]] = set()
        self.values = {index: big(index) for index in range(len(BIG))}
        self.scripts = [client.register_script(SCRIPT) for client in clients]
        self.kinds = [
            *[super()._one] * 9,
            *[self._transaction, self._publish, self._pop] * 3,
            *[self._watch, self._script, self._stream] * 2,
            *[self._big, self._listen_for_a_while, self._drain],
        ]

    async def run(self, tasks: int) -> None:
        """Until every number is used up, and everybody has come back."""
        residents = [self._task(self._reside(client)) for client in self.clients]
        await super().run(tasks)
        self.over = True
        await asyncio.gather(*residents)
        while self.tasks:  # those that were given up
            await asyncio.wait(set(self.tasks))

    def _task(self, coroutine: Any) -> asyncio.Task[Any]:
        """A task that is kept until it is over, whoever forgets it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _drive(self, make: Any) -> Any:
        if _timeout is not None and self.random.random() < 0.05:
            async with _timeout(self.random.choice((0.001, 0.005, 20))):
                return await make()
        return await super()._drive(make)

    async def _one(self, client: Any, number: int) -> None:
        try:
            await self.random.choice(self.kinds)(client, number)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            self.wrong.append(f"what {number} was answered is of another kind: {error!r}")

    # ---- transactions and scripts --------------------------------------------------------

    async def _transaction(self, client: Any, number: int) -> None:
        """All there or nothing of it; nothing of another comes between."""
        made = self.books.transactions
        size = self.random.choice((1, 3, 30))
        filled, mark = made.making(number, size)
        pipe = client.pipeline(transaction=True)
        for i in range(size):
            pipe.rpush(filled, i)
        pipe.set(mark, number)
        if await self._ask(lambda: self._task(pipe.execute()), [*range(1, size + 1), True]):
            made.done(number)

    async def _watch(self, client: Any, number: int) -> None:
        """Count one up by reading, unless somebody else does meanwhile."""
        counter = f"w:{self.random.randrange(8)}"
        calls = self.books.transactions.counted[counter]

        async def count(pipe: Any) -> tuple[list[Any], list[Any]]:
            await pipe.watch(counter)
            value = int(await pipe.get(counter) or 0)
            if self.random.random() < 0.3:
                await asyncio.sleep(0.002)
            pipe.multi()
            pipe.set(counter, value + 1).rpush(f"{counter}:log", number)
            return await pipe.execute(), [True, value + 1]

        async def end() -> tuple[str, Any]:
            try:
                async with client.pipeline() as pipe:
                    return "done", await count(pipe)
            except WatchError as error:
                # When the connection broke, it is one as well, of another text.
                return ("refused" if "changed" in str(error) else "unknown"), None

        calls[number] = "unknown"
        reply = await self._reply(lambda: self._task(end()), f"counting {number}")
        if reply is NOTHING:
            return
        calls[number], replies = reply
        self.seen[f"watched, {reply[0]}"] += 1
        if replies is not None and replies[0] != replies[1]:
            self.wrong.append(f"counting {number}: {replies[0]}, not {replies[1]}")

    async def _script(self, client: Any, number: int) -> None:
        script = self.scripts[self.clients.index(client)]
        keys, args = [f"k:{number}"], [number]
        text = str(number).encode()
        wanted: list[Any] = [keys[0].encode(), text, [number]]
        if self.random.random() < 0.5:
            make = lambda: self._task(script(keys, args))  # noqa: E731
        else:
            pipe = client.pipeline(transaction=self.random.random() < 0.5).echo(text)
            await script(keys, args, client=pipe)
            make = lambda: self._task(pipe.execute())  # noqa: E731
            wanted = [text, wanted]
        # The server may forget the script in between.
        value = await self._reply(make, f"script {number}", (NoScriptError,))
        if value is not NOTHING and value != wanted:
            self.wrong.append(f"script {number} gave {value}")

    async def _big(self, client: Any, number: int) -> None:
        index = self.random.choice((0, 0, 0, 1, 1, 2, 3, 4))
        value = self.values[index]
        way = self.random.randrange(3)
        if way == 0:
            await self._ask(lambda: client.get(f"big:{index}"), value)
        elif way == 1:
            text = str(number).encode()
            pipe = client.pipeline(transaction=False).echo(text).get(f"big:{index}").echo(text)
            await self._ask(lambda: self._task(pipe.execute()), [text, value, text])
        else:
            end = self.random.randrange(3000)
            whole = [b"%d" % i for i in range(end + 1)]
            await self._ask(lambda: client.lrange("numbers", 0, end), whole)

    # ---- what is taken away --------------------------------------------------------------

    async def _push(self, client: Any, key: str, number: int) -> None:
        elements = self.books.elements
        if self.random.random() < 0.5:
            await asyncio.sleep(self.random.random() * 0.004)
        element = elements.pushing(key, number)
        if key in HEAPS:
            reply = await self._reply(lambda: client.zadd(key, {element: number}), element)
        else:
            reply = await self._reply(lambda: client.rpush(key, element), element)
        if reply is not NOTHING:
            elements.pushed[element] = True

    async def _pop(self, client: Any, number: int) -> None:
        """Push something, and wait for something, mostly of the same key."""
        chance, elements = self.random, self.books.elements
        kind = chance.choice(("blpop", "brpop", "blmpop", "blmove", "bzpopmin"))
        if kind == "bzpopmin":
            keys = chance.sample(HEAPS, 1)
        elif chance.random() < 0.4:
            keys = [f"own:{number}"]
        else:
            keys = chance.sample(BAGS, chance.choice((1, 2)) if kind != "blmove" else 1)
        push = self._task(self._push(chance.choice(self.clients), chance.choice(keys), number))
        secs = chance.choice((0.01, 0.05, 0.3))
        if kind == "blmove":
            await self._move(client, number, keys[0], secs)
        else:
            count = 2 if kind == "blmpop" else 1
            make = {
                "blpop": lambda: client.blpop(keys, secs),
                "brpop": lambda: client.brpop(keys, secs),
                "blmpop": lambda: client.blmpop(secs, len(keys), *keys, direction="LEFT", count=2),
                "bzpopmin": lambda: client.bzpopmin(keys, secs),
            }[kind]
            reply = await self._reply(make, f"{kind} {number}")
            if reply is NOTHING:
                elements.may_have_taken(number, keys, count)
            elif reply is not None:
                found = reply[1] if kind == "blmpop" else reply[1:2]
                texts = [element.decode() for element in found]
                elements.took(number, keys, reply[0].decode(), texts)
                self.seen["popped"] += len(texts)
        await push

    async def _move(self, client: Any, number: int, key: str, secs: float) -> None:
        elements = self.books.elements
        mine = elements.moving(number)
        reply = await self._reply(lambda: client.blmove(key, mine, secs), f"blmove {number}")
        if reply is not NOTHING:
            elements.moved(number, None if reply is None else reply.decode())
            self.seen["moved"] += reply is not None

    async def _drain(self, client: Any, number: int) -> None:
        """What failed pops have left behind, so that others have to wait."""
        for key in BAGS:
            reply = await self._reply(lambda key=key: client.lpop(key, 20), f"lpop {number}")
            if reply is NOTHING:
                self.books.elements.may_have_taken(number, [key], 20)
            elif reply is not None:
                texts = [element.decode() for element in reply]
                self.books.elements.took(number, [key], key, texts)

    async def _stream(self, client: Any, number: int) -> None:
        entries: Entries = self.random.choice(self.books.entries)
        entries.added[number] = None
        reply = await self._reply(lambda: client.xadd(entries.key, {"n": number}), f"xadd {number}")
        if reply is not NOTHING:
            entries.added[number] = reply.decode()
        block = self.random.choice((1, 20, 200))
        reply = await self._reply(
            lambda: client.xreadgroup(
                entries.group, str(number), {entries.key: ">"}, count=2, block=block
            ),
            f"xreadgroup {number}",
        )
        if reply is NOTHING:
            entries.failed.add(number)
            return
        ids = entries.took(number, reply)
        self.seen["entries"] += len(ids)
        if ids and self.random.random() < 0.8:
            entries.acked.update(dict.fromkeys(ids, False))
            if await self._ask(lambda: client.xack(entries.key, entries.group, *ids), len(ids)):
                entries.acked.update(dict.fromkeys(ids, True))

    # ---- messages ------------------------------------------------------------------------

    async def _publish(self, client: Any, number: int) -> None:
        publisher = self.idle.pop() if self.idle else self.books.messages.publisher()
        for _ in range(self.random.randrange(1, 6)):
            channel = self.random.choice(CHANNELS + SHARDS)
            publish = client.spublish if channel in SHARDS else client.publish
            n, text = publisher.next(channel)
            reply = await self._reply(lambda p=publish, c=channel, t=text: p(c, t), text)
            if reply is not NOTHING:
                publisher.answered.add(n)
                self.seen["published"] += 1
        self.idle.append(publisher)

    async def _listen_for_a_while(self, client: Any, number: int) -> None:
        await self._listen(client, self.random.choice((3, 20, 60)))

    async def _reside(self, client: Any) -> None:
        while not self.over:
            await self._listen(client, 1000)

    async def _listen(self, client: Any, turns: int) -> None:
        """Come, subscribe to this and that, and go."""
        pubsub = client.pubsub()
        subscriber = Subscriber(
            self.books.messages, lambda: getattr(pubsub.connection, "_lease", None)
        )
        try:
            for turn in range(turns):
                if self.over and turn > 2:
                    break
                await self._listen_once(pubsub, subscriber)
        finally:
            await pubsub.aclose()

    async def _listen_once(self, pubsub: Any, subscriber: Subscriber) -> None:
        chance = self.random.random()
        try:
            if chance < 0.05 or not pubsub.subscribed:
                await self._subscribe(pubsub, subscriber)
            elif chance < 0.07 and len(subscriber.joined) > 1:
                await self._unsubscribe(pubsub, subscriber)
            else:
                message = await self._message(pubsub)
                if message is not None:
                    subscriber.take(message)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and getattr(current, "cancelling", int)():
                raise
            self.seen["reading cancelled"] += 1
        except ACCEPTED as error:
            self.seen[f"subscriber: {type(error).__name__}"] += 1
            await asyncio.sleep(0.001)
        except Exception as error:
            self.wrong.append(f"a subscriber's {error!r}")

    async def _subscribe(self, pubsub: Any, subscriber: Subscriber) -> None:
        wanted = [("message", name) for name in CHANNELS]
        wanted += [("pmessage", name) for name in PATTERNS]
        wanted += [("smessage", name) for name in SHARDS]
        left = [each for each in wanted if each not in subscriber.tried]
        if not left:
            await asyncio.sleep(0.01)
            return
        kind, name = self.random.choice(left)
        subscriber.joins(kind, name)
        subscribe = {
            "message": pubsub.subscribe,
            "pmessage": pubsub.psubscribe,
            "smessage": pubsub.ssubscribe,
        }[kind]
        if self.random.random() < 0.3:
            call = subscribe(**{name: subscriber.take})
        else:
            call = subscribe(name)
        await self._hurried(call, 0.1)

    async def _unsubscribe(self, pubsub: Any, subscriber: Subscriber) -> None:
        kind, name = self.random.choice(sorted(subscriber.joined))
        subscriber.leaves(kind, name)
        leave = {
            "message": pubsub.unsubscribe,
            "pmessage": pubsub.punsubscribe,
            "smessage": pubsub.sunsubscribe,
        }[kind]
        await self._hurried(leave(name), 0.1)

    async def _hurried(self, coroutine: Any, share: float) -> Any:
        """Awaited, and cancelled in the middle in some of the cases."""
        if self.random.random() >= share:
            return await coroutine
        task = self._task(coroutine)
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(self.random.choice((0, 0, 0.001)))
        task.cancel()  # nothing, when it is done already
        return await task

    async def _message(self, pubsub: Any) -> Any:
        """The next one, or None; asked for in some way."""
        way = self.random.randrange(7)
        secs = self.random.choice((0.001, 0.01, 0.05))
        if way <= 1:
            return await pubsub.get_message(timeout=0)
        if way == 2:
            return await pubsub.get_message(timeout=secs)
        if way == 3:
            return await asyncio.wait_for(pubsub.get_message(timeout=None), secs)
        if way == 4 and _timeout is not None:
            async with _timeout(secs):
                return await pubsub.get_message(timeout=None)
        if way == 5:
            return await asyncio.wait_for(_first(pubsub.listen()), secs)
        return await self._hurried(pubsub.get_message(timeout=None), 1)


async def _first(messages: AsyncIterator[Any]) -> Any:
    async with contextlib.aclosing(messages) as all_of_them:  # type: ignore[type-var]
        async for message in all_of_them:
            return message


# ---- where it plays ---------------------------------------------------------------------


class Fire(Chaos):
    """Kills some connections, cuts all at the proxy, has the server forget its scripts."""

    reach = 8_000_000

    def strike(self) -> None:
        chance = self.random.random()
        if chance < 0.5:
            ids = sorted(self.server.client_ids())
            for identity in self.random.sample(ids, min(len(ids), self.random.choice((1, 3, 10)))):
                self.killed += int(self.server.cmd("CLIENT", "KILL", "ID", identity))
        elif chance < 0.9:
            self.proxy.cut()
        else:
            self.server.cmd("SCRIPT", "FLUSH")


@dataclass(frozen=True)
class Stage:
    """A server, a proxy before it, and how clients come to either."""

    server: Server
    proxy: Proxy
    direct: dict[str, Any]
    cut: dict[str, Any]

    def prepare(self) -> Books:
        """An empty server but for what is read; the books about the rest."""
        self.server.cmd("FLUSHALL")
        for index in range(len(BIG)):
            self.server.cmd("SET", f"big:{index}", big(index))
        self.server.cmd("RPUSH", "numbers", *range(3000))
        return Books(self.server)


@contextlib.contextmanager
def over_unix(server: Server) -> Iterator[Stage]:
    path = str(Path(server.dir) / "p")
    with Proxy(server.path, unix=path) as proxy:
        yield Stage(server, proxy, server.unix, {**server.unix, "unix_socket_path": path})


@contextlib.contextmanager
def over_tcp(server: Server) -> Iterator[Stage]:
    with Proxy(server.path) as proxy:
        yield Stage(server, proxy, server.tcp, {**server.tcp, "port": proxy.port})


@contextlib.contextmanager
def over_tls(server: SecuredServer) -> Iterator[Stage]:
    with Proxy(f"127.0.0.1:{server.tls_port}") as proxy:
        wanted = {**server.tls, "host": "127.0.0.1"}
        yield Stage(server, proxy, wanted, {**wanted, "port": proxy.port})


async def recovered(client: Any) -> None:
    """It answers again, with commands that share a connection and with those that do not."""
    calls: list[Callable[[], Any]] = [
        lambda: client.echo("last"),
        lambda: client.pipeline().echo("last").execute(),
        lambda: client.blpop("nothing", 0.001),
    ]
    for call, wanted in zip(calls, (b"last", [b"last"], None), strict=True):
        for _ in range(1000):
            last = await within(outcome(call()))
            if last == wanted:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError(f"it did not recover: {last!r}")
