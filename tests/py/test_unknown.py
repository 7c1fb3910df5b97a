"""Commands in no table of ours: the server is asked what they need, once a name.

A server that renames its commands has such: MYPOP is its BLPOP, MYSELECT its SELECT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import end, outcome, until, within
from offloop.redis.unknown import judged, name_of
from redis.exceptions import NoPermissionError, ResponseError
from servers import Server

RENAMED = {
    "blpop": "mypop",
    "getrange": "mypart",
    "hget": "my.hget",
    "select": "myselect",
    "subscribe": "mysubscribe",
    "xread": "myread",
}


@pytest.fixture(scope="module")
def _renaming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    more: Path = tmp_path_factory.mktemp("renaming") / "conf"
    more.write_text("".join(f"rename-command {old} {new}\n" for old, new in RENAMED.items()))
    with Server(include=str(more)) as server:
        yield server


@pytest.fixture
def renaming(_renaming: Server) -> Server:
    _renaming.cmd("FLUSHALL")
    _renaming.cmd("CONFIG", "RESETSTAT")
    return _renaming


def asked(server: Server) -> int:
    """How often COMMAND INFO was called since the test began."""
    return server.calls("command|info")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_one_that_shares(renaming: Server, protocol: int) -> None:
    async with aioredis.Redis(**renaming.unix, protocol=protocol) as client:
        await client.set("k", "value")
        for name in ("MYPART", "mypart", b"MyPart", "MYPART k"):
            args = (1, 2) if name == "MYPART k" else ("k", 1, 2)
            assert await client.execute_command(name, *args) == b"al"
        assert (
            await asyncio.gather(*[client.execute_command("MYPART", "k", 0, 0) for _ in range(50)])
            == [b"v"] * 50
        )
        assert asked(renaming) == 1
        assert client.stats()["connects"] == 1


async def test_at_once_from_many_tasks(renaming: Server) -> None:
    async with aioredis.Redis(**renaming.unix, decode_responses=True) as client:
        await client.hset("h", "f", "v")
        calls = [client.execute_command("MY.HGET", "h", "f") for _ in range(50)]
        assert await asyncio.gather(*calls) == ["v"] * 50
        assert client.stats()["connects"] == 1


async def test_one_that_waits(renaming: Server) -> None:
    async with aioredis.Redis(**renaming.unix) as client:
        for _ in range(2):
            waiting = asyncio.create_task(client.execute_command("mypop", "list", 0))
            await until(lambda: any("b" in row["flags"] for row in renaming.clients()))
            assert await within(client.ping()) is True
            assert not waiting.done()
            await client.rpush("list", "x")
            assert await within(waiting) == [b"list", b"x"]
        waiting = asyncio.create_task(client.execute_command("mypop", "list", 0))
        await until(lambda: any("b" in row["flags"] for row in renaming.clients()))
        await end([waiting])
        await until(lambda: not any("b" in row["flags"] for row in renaming.clients()))
        assert await client.rpush("list", "kept") == 1
        assert asked(renaming) == 1


async def test_one_that_may_wait(renaming: Server) -> None:
    """By its flags XREAD blocks, and of a name that nobody knows no argument is known."""
    async with aioredis.Redis(**renaming.unix) as client:
        await client.xadd("s", {"f": "v"}, id="1-1")
        reply = await client.execute_command("MYREAD", "STREAMS", "s", "0")
        assert reply in ([[b"s", [[b"1-1", [b"f", b"v"]]]]], {b"s": [[b"1-1", [b"f", b"v"]]]})
        waiting = asyncio.create_task(
            client.execute_command("MYREAD", "BLOCK", "0", "STREAMS", "absent", "$")
        )
        await until(lambda: any("b" in row["flags"] for row in renaming.clients()))
        assert await within(client.ping()) is True
        await end([waiting])


@pytest.mark.parametrize("command", [("MYSELECT", 5), ("MYSUBSCRIBE", "c")])
async def test_one_that_keeps_its_connection(renaming: Server, command: tuple[Any, ...]) -> None:
    async with aioredis.Redis(**renaming.unix) as client:
        for _ in range(3):
            task = asyncio.create_task(outcome(client.execute_command(*command)))
            await asyncio.wait([task], timeout=0.5)
            await end([task])
            await client.set("k", "v")
        shared = str(await client.client_id())
        (row,) = [row for row in renaming.clients() if row["id"] == shared]
        assert (row["db"], row["sub"]) == ("0", "0")
        assert renaming.cmd("EXISTS", "k") == 1


async def test_that_the_server_does_not_know_either(renaming: Server) -> None:
    async with aioredis.Redis(**renaming.unix) as client:
        for name in ("NOSUCH", "nosuch", "NO.SUCH", "é", b"\xff\xfe", "NOSUCH THING"):
            with pytest.raises(ResponseError, match="unknown command"):
                await client.execute_command(name, "k")
        assert await client.ping() is True


async def test_a_user_who_may_not_ask(renaming: Server) -> None:
    renaming.cmd("ACL", "SETUSER", "plain", "on", ">secret", "~*", "+@all", "-command")
    renaming.cmd("SET", "k", "value")
    options = {**renaming.unix, "username": "plain", "password": "secret"}
    async with aioredis.Redis(**options) as client:
        with pytest.raises(NoPermissionError):
            await client.execute_command("COMMAND INFO", "GET")
        for _ in range(3):
            assert await client.execute_command("MYPART", "k", 0, 1) == b"va"
        assert client.stats()["connects"] > 1  # a connection of its own is always right


async def test_a_server_that_is_busy_when_asked(renaming: Server) -> None:
    """What it says then is no answer: it is asked again."""
    renaming.cmd("SET", "k", "value")
    renaming.cmd("CONFIG", "SET", "lua-time-limit", 1)
    async with aioredis.Redis(**renaming.unix) as client, aioredis.Redis(**renaming.unix) as other:
        script = asyncio.create_task(outcome(other.eval("while true do end", 0)))
        await within(_until_busy(client))
        with pytest.raises(ResponseError, match="BUSY"):
            await client.execute_command("MYPART", "k", 0, 1)
        await client.script_kill()
        await within(script)
        before = client.stats()["connects"]
        for _ in range(3):
            assert await client.execute_command("MYPART", "k", 0, 1) == b"va"
        assert client.stats()["connects"] == before
        assert asked(renaming) == 1


async def _until_busy(client: Any) -> None:
    while True:
        found = await outcome(client.get("k"))
        if isinstance(found, ResponseError) and "BUSY" in str(found):
            return
        await asyncio.sleep(0.01)


async def test_in_a_pipeline(renaming: Server) -> None:
    async with aioredis.Redis(**renaming.unix) as client:
        for transaction in (True, False):
            for _ in range(2):
                async with client.pipeline(transaction=transaction) as pipe:
                    pipe.set("k", "value").execute_command("MYPART", "k", 0, 1)
                    pipe.execute_command(b"my.hget", "absent", "f")
                    assert await pipe.execute() == [True, b"va", None]
        stats = client.stats()
        assert (stats["pipelines"], stats["connects"]) == (4, 1)
        assert asked(renaming) == 2
        async with client.pipeline() as pipe:
            pipe.execute_command("NOSUCH").get("k")
            with pytest.raises(ResponseError, match="unknown command"):
                await pipe.execute()
        assert await client.get("k") == b"value"


async def test_cancelled_while_it_asks(renaming: Server) -> None:
    renaming.cmd("SET", "k", "value")
    async with aioredis.Redis(**renaming.unix) as client:
        await client.ping()
        renaming.pause()
        try:
            task = asyncio.create_task(client.execute_command("MYPART", "k", 0, 1))
            await asyncio.sleep(0.01)
            await end([task])
            assert task.cancelled()
        finally:
            renaming.resume()
        assert await client.execute_command("MYPART", "k", 0, 1) == b"va"


async def test_the_server_is_away(renaming: Server) -> None:
    async with aioredis.Redis(unix_socket_path="/nonexistent", retry=None) as client:
        with pytest.raises(aioredis.ConnectionError):
            await client.execute_command("MYPART", "k", 0, 1)


async def test_each_command_of_the_server_is_known(server: Server) -> None:
    """And what it needs is what its flags say."""
    varying = {"wait", "waitaof", "xread", "xreadgroup"}  # a state, or by their arguments
    async with aioredis.Redis(**server.unix) as client:
        await client.ping()
        channel = client.connection_pool.open_channel()
        rows = await client.execute_command("COMMAND LIST")
        names = [name.decode() for name in rows if b"|" not in name]
        assert len(names) > 200
        for name in names:
            known = channel.sharing(name)
            reply = await channel._send_wire(
                b"*3\r\n$7\r\nCOMMAND\r\n$4\r\nINFO\r\n$%d\r\n%b\r\n" % (len(name), name.encode())
            )
            flags = {str(flag, "ascii") for flag in reply[0][2]}
            assert known != "unknown", name
            assert ("blocking" in flags) == (known == "blocking") or name in varying, name
            if judged(reply) == "blocking":
                assert known != "shared", name


def test_names() -> None:
    assert name_of(("get", "k")) == "GET"
    assert name_of((" config  get ", "k")) == "CONFIG"
    assert name_of((b"get",)) == "GET"
    assert name_of((bytearray(b"my.hget"),)) == "MY.HGET"
    assert name_of(("\udcff",)) == "?"
    assert name_of(()) == name_of(("",)) == ""
