"""Connections that one holder has: WATCH, MONITOR, SELECT, a client of one connection."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio.connection as theirs
from certificates import Certificates
from child import quiet, run_child
from driving import end, in_time, outcome, outcomes, patiently, until, within
from fakeserver import FakeServer, Peer
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    InvalidResponse,
    MaxConnectionsError,
    ResponseError,
    TimeoutError,
    WatchError,
)
from secured import SecuredServer
from servers import Server

NO_RETRY = Retry(NoBackoff(), 0)


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """redis-py's own connections must not be made."""

    async def refuse(self: Any) -> None:
        raise AssertionError(f"{self!r} connects by itself")

    for cls in (theirs.Connection, theirs.UnixDomainSocketConnection):
        monkeypatch.setattr(cls, "_connect", refuse)
    yield


pytestmark = pytest.mark.usefixtures("no_sockets")


# ---- what goes over them ------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
async def test_watch(server: Server, protocol: int) -> None:
    async with aioredis.Redis(**server.tcp, protocol=protocol) as client:
        await client.set("k", 1)
        async with client.pipeline() as pipe:
            await pipe.watch("k")
            value = int(await pipe.get("k"))
            pipe.multi()
            pipe.set("k", value + 1).get("k")
            assert await pipe.execute() == [True, b"2"]
            await pipe.watch("k")
            await client.set("k", 10)
            pipe.multi()
            pipe.set("k", 3)
            with pytest.raises(WatchError):
                await pipe.execute()
        assert await client.get("k") == b"10"
        stats = client.stats()
        assert (stats["held"], stats["leases"]) == (1, 1)  # kept for the next


async def test_ten_transactions_at_once(server: Server) -> None:
    async def increment(pipe: Any) -> None:
        value = int(await pipe.get("n") or 0)
        await asyncio.sleep(0)
        pipe.multi()
        pipe.set("n", value + 1)

    async with aioredis.Redis(**server.tcp) as client:
        await outcomes([client.transaction(increment, "n") for _ in range(10)])
        assert await client.get("n") == b"10"


async def test_monitor(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client, client.monitor() as monitor:
        for number in range(20):
            server.cmd("ECHO", number)
        seen = []
        while len(seen) < 20:
            command = (await within(monitor.next_command()))["command"]
            if command.startswith("ECHO"):
                seen.append(command)
        assert seen == [f"ECHO {number}" for number in range(20)]


async def test_a_client_of_one_connection(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        async with client.client() as single:
            ids = {await single.client_id() for _ in range(5)}
            assert len(ids) == 1
            assert await single.client_setname("mine") is True
            assert await single.client_getname() == "mine"
            assert await outcomes([single.incr("n") for _ in range(50)]) == list(range(1, 51))
            assert await client.client_id() not in ids
        assert client.stats()["held"] == 1


async def test_state_stays_where_it_belongs(server: Server) -> None:
    async with aioredis.Redis(**server.tcp, client_name="all", db=2) as client:
        assert await client.execute_command("SELECT", 5) is True
        await client.set("k", 1)
        assert server.cmd("EXISTS", "k", db=2) == 1
        # Blocking commands do not meet the connection that has another database now.
        server.cmd("RPUSH", "l", "x", db=2)
        assert await within(client.blpop(["l"], timeout=5)) == (b"l", b"x")
        assert await client.client_getname() == "all"


async def test_invalidations(server: Server) -> None:
    heard: list[Any] = []

    async def on_invalidation(push: list[Any]) -> None:
        heard.append(push)

    async with aioredis.Redis(**server.tcp, protocol=3) as client:
        connection = await client.connection_pool.get_connection()
        connection._parser.set_invalidation_push_handler(on_invalidation)
        await connection.send_command("CLIENT", "TRACKING", "ON")
        assert await connection.read_response() == b"OK"
        await connection.send_command("GET", "k")
        assert await connection.read_response() is None
        server.cmd("SET", "k", 1)
        await connection.send_command("PING")
        assert await connection.read_response() == b"PONG"  # a push is not a reply
        await until(lambda: heard == [[b"invalidate", [b"k"]]])
        await connection.disconnect()
        await client.connection_pool.release(connection)


async def test_tls(tmp_path: Path) -> None:
    with SecuredServer(Certificates(tmp_path)) as secured:
        async with aioredis.Redis(**secured.tls) as client:
            async with client.pipeline() as pipe:
                await pipe.watch("k")
                pipe.multi()
                pipe.set("k", b"x" * 300_000).get("k")
                assert await pipe.execute() == [True, b"x" * 300_000]
            pubsub = client.pubsub()
            await pubsub.subscribe("c")
            assert (await within(pubsub.get_message(timeout=30)))["type"] == "subscribe"
            for number in range(300):
                await client.publish("c", number)
            for number in range(300):
                message = await within(pubsub.get_message(timeout=30))
                assert message["data"] == b"%d" % number
            await pubsub.aclose()


# ---- bytes and replies --------------------------------------------------------------------


async def test_cancelled_reads_lose_nothing(server: Server) -> None:
    """Whatever becomes of who waits, the next one gets the next reply."""
    async with aioredis.Redis(**server.tcp) as client:
        connection = await client.connection_pool.get_connection()
        await connection.send_command("CLIENT", "ID")
        identity = await connection.read_response()
        got = 0
        for number in range(400):
            task = asyncio.create_task(
                connection.read_response(disconnect_on_error=False, timeout=number % 3 / 1000)
                if number % 2
                else connection.read_response(disconnect_on_error=False)
            )
            await connection.send_command("ECHO", number)
            for _ in range(number % 7):
                await asyncio.sleep(0)
            task.cancel()
            found = await asyncio.gather(task, return_exceptions=True)
            if isinstance(found[0], bytes):
                assert int(found[0]) == got
                got += 1
        while got < 400:
            assert int(await within(connection.read_response())) == got
            got += 1
        await connection.send_command("CLIENT", "ID")
        assert await connection.read_response() == identity
        await client.connection_pool.release(connection)


async def test_what_nobody_reads_is_bounded(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        connection = await client.connection_pool.get_connection()
        await client.set("large", b"x" * 100_000)
        for _ in range(300):
            await connection.send_command("GET", "large")
        await client.ping()
        # 30 MB were asked for; 1 MB is taken, and what the two sockets hold.
        for _ in range(300):
            assert len(await within(connection.read_response())) == 100_000
        await client.connection_pool.release(connection)


async def test_a_large_command(server: Server) -> None:
    value = bytes(range(256)) * 40_000
    async with aioredis.Redis(**server.tcp) as client, client.client() as single:
        assert await single.set("k", value) is True
        assert await single.get("k") == value


async def test_a_server_that_stops_reading(own_server: Server) -> None:
    async def attempt(secs: float) -> None:
        async with aioredis.Redis(**own_server.unix, socket_timeout=secs, retry=NO_RETRY) as client:
            connection = await in_time(client.connection_pool.get_connection())
            own_server.pause()
            try:
                with pytest.raises(TimeoutError):
                    await within(connection.send_command("SET", "k", b"x" * 30_000_000))
            finally:
                own_server.resume()
            assert not connection.is_connected
            await client.connection_pool.release(connection)

    await patiently(attempt, 0.3)


async def test_two_readers(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        connection = await client.connection_pool.get_connection()
        first = asyncio.create_task(connection.read_response(disconnect_on_error=False))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waiting"):
            await connection.read_response(disconnect_on_error=False)
        await connection.send_command("PING")
        assert await within(first) == b"PONG"
        await client.connection_pool.release(connection)


async def test_closed_while_somebody_reads(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        connection = await client.connection_pool.get_connection()
        reader = asyncio.create_task(outcome(connection.read_response()))
        await asyncio.sleep(0)
        await connection.disconnect()
        assert isinstance(await within(reader), ConnectionError)
        await client.connection_pool.release(connection)
        await until(lambda: client.stats()["leases"] == 0)


async def test_errors(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client, client.client() as single:
        with pytest.raises(ResponseError, match="unknown command"):
            await single.execute_command("NONSENSE")
        assert await single.ping() is True
    async with aioredis.Redis(host="127.0.0.1", port=1, retry=NO_RETRY) as client:
        with pytest.raises(ConnectionError, match="connecting to 127.0.0.1:1"):
            await client.connection_pool.get_connection()
    async with aioredis.Redis(**server.tcp, username="nobody", password="wrong") as client:
        with pytest.raises(AuthenticationError):
            await client.connection_pool.get_connection()
        await until(lambda: client.stats()["leases"] == 0)


def _garbage(peer: Peer, args: list[bytes]) -> None:
    peer.send(b"x\r\n")


async def test_a_server_that_answers_garbage() -> None:
    with FakeServer(_garbage) as fake:
        async with aioredis.Redis(
            host="127.0.0.1", port=fake.port, retry=NO_RETRY, protocol=2
        ) as client:
            connection = await client.connection_pool.get_connection()
            await connection.send_command("ECHO", "x")
            with pytest.raises(InvalidResponse):
                await within(connection.read_response())
            assert not connection.is_connected
            await client.connection_pool.release(connection)


# ---- the pool -----------------------------------------------------------------------------


async def test_one_count_of_connections(server: Server) -> None:
    """Held ones and those of blocking commands are the same kind of thing."""
    async with aioredis.Redis(**server.tcp, max_connections=2) as client:
        pool = client.connection_pool
        held = await pool.get_connection()
        blocked = asyncio.ensure_future(client.blpop(["l"], timeout=0))
        await until(lambda: client.stats()["leases"] == 2)
        with pytest.raises(MaxConnectionsError):
            await pool.get_connection()
        with pytest.raises(MaxConnectionsError):
            await client.blpop(["m"], timeout=0)
        # An idle one gives way.
        await pool.release(held)
        server.cmd("RPUSH", "m", "x")
        assert await within(client.blpop(["m"], timeout=0)) == (b"m", b"x")
        assert client.stats()["leases"] == 2
        # And is made anew when it is wanted.
        again = await pool.get_connection()
        assert again is held and again.is_connected
        await again.send_command("PING")
        assert await again.read_response() == b"PONG"
        await pool.release(again)
        server.cmd("RPUSH", "l", "x")
        await within(blocked)


async def test_waiting_for_a_connection(server: Server) -> None:
    pool = aioredis.BlockingConnectionPool(
        host="127.0.0.1", port=server.port, max_connections=1, timeout=20
    )
    async with aioredis.Redis(connection_pool=pool) as client:
        held = await pool.get_connection()
        server.cmd("RPUSH", "l", "x")
        waits = asyncio.ensure_future(client.blpop(["l"], timeout=0))
        also = asyncio.ensure_future(pool.get_connection())
        await until(lambda: client.stats()["waiting_for_lease"] == 1)
        await pool.release(held)
        assert await within(waits) == (b"l", b"x")
        connection = await within(also)
        await connection.send_command("PING")
        assert await connection.read_response() == b"PONG"
        await pool.release(connection)
    await pool.aclose()


async def test_a_reply_that_is_left_over(server: Server) -> None:
    """A connection that was given back too early is not used again."""
    async with aioredis.Redis(**server.tcp) as client:
        pool = client.connection_pool
        connection = await pool.get_connection()
        await connection.send_command("ECHO", "whose")
        await pool.release(connection)
        await until(lambda: connection._lease.ready)
        again = await pool.get_connection()
        assert again is connection
        await again.send_command("ECHO", "mine")
        assert await again.read_response() == b"mine"
        await pool.release(again)


async def test_closed_by_the_server_while_idle(server: Server) -> None:
    async with aioredis.Redis(**server.tcp, retry=NO_RETRY) as client:
        for _ in range(10):
            connection = await client.connection_pool.get_connection()
            await connection.send_command("CLIENT", "ID")
            identity = await connection.read_response()
            await client.connection_pool.release(connection)
            server.cmd("CLIENT", "KILL", "ID", identity)
            while not await connection.can_read():  # its end has come
                await asyncio.sleep(0.001)
            assert await client.client_setname("x") is True


async def test_disconnect(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        held = await client.connection_pool.get_connection()
        reader = asyncio.create_task(outcome(held.read_response()))
        await asyncio.sleep(0)
        await client.connection_pool.disconnect()
        assert isinstance(await within(reader), ConnectionError)
        await until(lambda: client.stats()["leases"] == 0)
        await client.connection_pool.release(held)
        assert await client.client_setname("x") is True


async def test_a_class_of_the_programs_own(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used as it is, and connects as it likes."""
    monkeypatch.undo()

    class Own(aioredis.Connection):
        made = 0

        async def _connect(self) -> None:
            Own.made += 1
            await super()._connect()

    pool = aioredis.ConnectionPool(
        connection_class=Own, host="127.0.0.1", port=server.port, protocol=2
    )
    async with aioredis.Redis(connection_pool=pool) as client:
        assert await client.set("k", 1) is True
        assert await client.client_setname("x") is True
    await pool.aclose()
    assert Own.made == 1


async def test_a_connection_without_a_pool(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    connection = aioredis.Connection(host="127.0.0.1", port=server.port)
    await connection.connect()
    await connection.send_command("PING")
    assert await connection.read_response() in (b"PONG", "PONG")
    assert await connection.read_response(timeout=0.01) is None
    await connection.disconnect()


# ---- loops, threads, the end --------------------------------------------------------------


def test_a_loop_after_the_other(server: Server) -> None:
    client = aioredis.Redis(**server.tcp)

    async def use(last: bool) -> Any:
        reader = asyncio.create_task(outcome(client.client_setname("x")))
        assert await within(reader) is True
        if last:
            await client.aclose()

    for number in range(4):
        asyncio.run(use(number == 3))


def test_fork(server: Server) -> None:
    quiet(
        run_child(
            """
            import asyncio, os, sys, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            import offloop.redis as aioredis

            client = aioredis.Redis(unix_socket_path=sys.argv[1])
            pubsub = client.pubsub()

            async def begin():
                await pubsub.subscribe("c")
                assert (await pubsub.get_message(timeout=30))["type"] == "subscribe"
                await client.client_setname("parent")

            async def in_child():
                assert await client.client_getname() is None
                assert not pubsub.connection.is_connected
                other = client.pubsub()
                await other.subscribe("c")
                assert (await other.get_message(timeout=30))["type"] == "subscribe"
                assert await client.publish("c", "x") == 2
                assert (await other.get_message(timeout=30))["data"] == b"x"

            async def go_on():
                assert (await pubsub.get_message(timeout=30))["data"] == b"x"
                assert await client.client_getname() == "parent"
                await pubsub.aclose()
                await client.aclose()

            loop = asyncio.new_event_loop()
            loop.run_until_complete(begin())
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    asyncio.run(in_child())
                    code = 0
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
            loop.run_until_complete(go_on())
            loop.close()
            """,
            server.path,
        )
    )


@pytest.mark.parametrize("way", ["return", "exit", "loop"])
def test_exit_while_somebody_listens(server: Server, way: str) -> None:
    """No hang, no crash; what is said is redis-py's own warning of what was not closed."""
    done = run_child(
        """
        import asyncio, os, sys, warnings
        warnings.simplefilter("ignore", ResourceWarning)
        import offloop.redis as aioredis

        way = sys.argv[2]

        async def listen(pubsub):
            async for _ in pubsub.listen():
                pass

        async def main():
            client = aioredis.Redis(unix_socket_path=sys.argv[1])
            pubsubs = [client.pubsub() for _ in range(20)]
            for pubsub in pubsubs:
                await pubsub.subscribe("c")
            tasks = [asyncio.create_task(listen(pubsub)) for pubsub in pubsubs]
            while client.stats()["loans"] < 20:  # their sockets are the loop's by now
                await client.publish("c", "x")
                await asyncio.sleep(0.001)
            if way == "exit":
                sys.exit(0)
            if way == "loop":
                loop = asyncio.get_running_loop()
                loop.call_soon(loop.stop)
                await asyncio.sleep(1)

        if way == "loop":
            loop = asyncio.new_event_loop()
            task = loop.create_task(main())
            task._log_destroy_pending = False
            loop.run_forever()
        else:
            asyncio.run(main())
        """,
        server.path,
        way,
    )
    assert done.returncode == 0
    said = [row for row in done.stderr.splitlines() if "was destroyed" not in row]
    assert not any("Traceback" in row or "Error" in row for row in said), done.stderr


# ---- many at once -------------------------------------------------------------------------


async def test_identity(server: Server) -> None:
    """Every reply is that of the command, with cancels and killed connections in between."""
    numbers = itertools.count()
    highest = 0
    wrong: list[Any] = []

    async def work(client: aioredis.Redis, turn: int) -> None:
        nonlocal highest
        while True:
            number = highest = next(numbers)
            try:
                async with client.pipeline() as pipe:
                    await pipe.watch("w")
                    found = await pipe.execute_command("ECHO", number)
                    if int(found) != number:
                        wrong.append((number, found))
                    pipe.multi()
                    pipe.execute_command("ECHO", number + 1)
                    (found,) = await pipe.execute()
                    if int(found) != number + 1:
                        wrong.append((number, found))
            except (ConnectionError, TimeoutError):
                pass

    async with aioredis.Redis(**server.tcp, retry=NO_RETRY) as client:
        tasks = [asyncio.create_task(work(client, turn)) for turn in range(20)]
        for turn in itertools.count():
            if turn >= 100 and highest > 100:
                break
            await asyncio.sleep(0.003)
            victim = turn % len(tasks)
            tasks[victim].cancel()
            await asyncio.wait([tasks[victim]], timeout=60)
            tasks[victim] = asyncio.create_task(work(client, turn))
            if turn % 20 == 10:
                server.kill_clients()
        await end(tasks)
        assert not wrong
