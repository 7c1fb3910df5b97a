"""A server that is away, goes away and comes back."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import outcome, outcomes, until, until_good, within
from fakeserver import Close, FakeServer, Peer, bulk
from proxy import Proxy
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from servers import Server, free_port


async def test_nobody_listens() -> None:
    port = free_port()
    async with aioredis.Redis(host="127.0.0.1", port=port, retry=None) as client:
        with pytest.raises(ConnectionError) as raised:
            await within(client.get("k"))
        text = str(raised.value)
        assert text.startswith(f"Error {errno.ECONNREFUSED} connecting to 127.0.0.1:{port}.")
        assert "may have run" not in text


async def test_no_such_socket(own_server: Server) -> None:
    own_server.stop()
    async with aioredis.Redis(**own_server.unix, retry=None) as client:
        with pytest.raises(ConnectionError) as raised:
            await within(client.get("k"))
        assert str(raised.value).startswith(
            (f"Error {errno.ENOENT} connecting to", f"Error {errno.ECONNREFUSED} connecting to")
        )
        assert own_server.path in str(raised.value)


async def test_it_comes_up_later(own_server: Server) -> None:
    own_server.stop()
    async with aioredis.Redis(**own_server.tcp, retry=None) as client:
        values = await outcomes([client.incr("n") for _ in range(20)])
        assert all(isinstance(value, ConnectionError) for value in values)
        await asyncio.get_running_loop().run_in_executor(None, own_server.start)
        await until_good(client)
        assert own_server.cmd("EXISTS", "n") == 0
        assert await outcomes([client.incr("n") for _ in range(20)]) == list(range(1, 21))


async def test_a_restart(own_server: Server) -> None:
    loop = asyncio.get_running_loop()
    async with aioredis.Redis(**own_server.unix, retry=None) as client:
        for _ in range(3):
            assert await client.ping() is True
            await loop.run_in_executor(None, own_server.stop)
            assert isinstance(await within(outcome(client.ping())), ConnectionError)
            await loop.run_in_executor(None, own_server.start)
            await until_good(client)
            values = await outcomes([client.echo(str(i)) for i in range(100)])
            assert values == [str(i).encode() for i in range(100)]


@pytest.mark.parametrize("transport", ["tcp", "unix"])
async def test_an_idle_connection_closed_by_the_server_is_noticed(
    server: Server, transport: str
) -> None:
    """CLIENT KILL between two commands: the next one succeeds, without an error."""
    where = server.tcp if transport == "tcp" else server.unix
    async with aioredis.Redis(**where) as client:
        for number in range(30):
            assert await client.echo(str(number)) == str(number).encode()
            assert server.kill_clients() == 1
            await until(lambda: client.stats()["connections"] == 0)
        assert await client.ping() is True
        assert client.stats()["connects"] == 31


async def test_the_servers_own_timeout(own_server: Server) -> None:
    own_server.cmd("CONFIG", "SET", "timeout", "1")
    async with aioredis.Redis(**own_server.unix) as client:
        for _ in range(2):
            assert await client.ping() is True
            await until(lambda: not own_server.clients(), 30)
            await until(lambda: client.stats()["connections"] == 0)
        assert await client.ping() is True


async def test_closed_and_used_in_the_same_moment(server: Server) -> None:
    """Killed and asked at once: the command may fail, but says honestly that it may have run,
    and the one after it works."""
    async with aioredis.Redis(**server.unix) as client:
        for number in range(50):
            await until_good(client)
            server.kill_clients()
            value = await within(outcome(client.incr(f"k{number}")))
            count = server.cmd("GET", f"k{number}")
            if isinstance(value, BaseException):
                assert isinstance(value, ConnectionError)
                assert count is None or "may have run" in str(value)
            else:
                assert (value, count) == (1, "1")


async def test_no_storm_of_connects_while_the_server_is_away(server: Server) -> None:
    """Connecting backs off: a thousand commands are not a thousand connects."""
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(
            host="127.0.0.1", port=proxy.port, protocol=3, socket_timeout=2, retry=None
        ) as client:
            await client.ping()
            proxy.refuse(True)
            proxy.cut()
            before = proxy.stats()["accepted"]
            values: list[Any] = []
            for _ in range(3):
                values += await outcomes([client.incr("n") for _ in range(300)])
            assert all(isinstance(value, (ConnectionError, TimeoutError)) for value in values)
            assert proxy.stats()["accepted"] - before < 60
            proxy.refuse(False)
            await until_good(client)
            # Those that say nothing of having run have not; at most the first did.
            assert int(server.cmd("GET", "n") or 0) <= sum(
                "may have run" in str(value) for value in values
            )


async def test_silence_then_a_new_connection(server: Server) -> None:
    """A path that went dead without a word: a time-out, and then life elsewhere."""
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(
            host="127.0.0.1", port=proxy.port, socket_timeout=0.4, retry=None
        ) as client:
            await until_good(client)
            proxy.silence(True)
            with pytest.raises(TimeoutError):
                await within(client.echo("lost"))
            proxy.silence(False)
            for _ in range(100):
                value = await within(outcome(client.echo("found")))
                assert value == b"found" or isinstance(value, RedisError)
                if value == b"found":
                    return
            raise AssertionError("the client did not recover")


async def test_a_path_that_stays_dead_is_left(server: Server) -> None:
    """This connection passes nothing on any more, a new one would: it must come to that."""
    with Proxy(server.path) as proxy:
        async with aioredis.Redis(
            host="127.0.0.1", port=proxy.port, socket_timeout=0.3, retry=None
        ) as client:
            await until_good(client)
            connects = client.stats()["connects"]
            assert proxy.freeze() >= 1
            failures = await until_good(client)
            assert failures >= 1
            assert client.stats()["connects"] > connects


async def test_a_connect_that_never_completes() -> None:
    """A listener whose backlog is full: connecting hangs, and the deadline ends it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        async with aioredis.Redis(
            host="127.0.0.1", port=port, socket_connect_timeout=0.3, socket_timeout=0.5, protocol=3
        ) as client:
            values = await outcomes([client.get("k") for _ in range(3)])
            assert all(isinstance(value, (TimeoutError, ConnectionError)) for value in values)
            assert not any("may have run" in str(value) for value in values)
        for filler in fillers:
            filler.close()


async def test_the_first_of_several_addresses_may_be_dead(server: Server) -> None:
    """localhost is ::1 as well here or there; the server listens on 127.0.0.1 alone."""
    async with aioredis.Redis(host="localhost", port=server.port) as client:
        assert await client.ping() is True


async def test_ipv6(server: Server) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        if probe.connect_ex(("::1", server.port)):
            pytest.skip("no IPv6 here")
    async with aioredis.Redis(host="::1", port=server.port) as client:
        assert await client.echo("x") == b"x"
        assert "[::1]:" in server.clients()[0]["addr"]
    port = free_port()
    async with aioredis.Redis(host="::1", port=port) as client:
        with pytest.raises(ConnectionError, match=f"::1:{port}"):
            await within(client.ping())


async def test_state_is_set_up_again_on_every_connection(server: Server) -> None:
    async with aioredis.Redis(
        **server.tcp, db=4, client_name="again", protocol=3, decode_responses=True
    ) as client:
        for number in range(5):
            assert await client.set(f"k{number}", number) is True
            (row,) = server.clients()
            assert (row["name"], row["db"], row["resp"]) == ("again", "4", "3")
            server.kill_clients()
            await until(lambda: client.stats()["connections"] == 0)
        assert sorted(await client.keys("*")) == [f"k{i}" for i in range(5)]


async def test_a_half_closed_connection() -> None:
    """The server shuts down its sending side and goes on reading: replaced."""

    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(bulk(args[-1]))
        if peer.number == 1:
            peer.sock.shutdown(socket.SHUT_WR)

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            assert await client.echo("first") == b"first"
            await until(lambda: client.stats()["connections"] == 0)
            assert await within(client.echo("second")) == b"second"
            assert fake.connections == 2


async def test_closed_after_every_reply() -> None:
    """Each reply is the last of its connection; every call ends as one or the other."""

    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(bulk(args[-1]))
        raise Close

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port) as client:
            good = 0
            for number in range(60):
                value = await within(outcome(client.echo(str(number))))
                assert value == str(number).encode() or isinstance(value, ConnectionError)
                good += value == str(number).encode()
            assert good > 0
            sent = [args[1] for args in fake.commands(b"ECHO")]
            assert len(sent) == len(set(sent))
