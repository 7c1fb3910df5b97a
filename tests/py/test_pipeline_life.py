"""Pipelines that are large, and pipelines at the end of clients, loops and processes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import offloop.redis as aioredis
import pytest
from child import quiet, run_child
from driving import end, outcomes, within
from fakeserver import FakeServer, Peer, bulk
from offloop.redis import connection as connection_module
from offloop.redis.options import channel_options
from redis.exceptions import RedisError
from servers import Server
from test_pipeline_contract import KEYS, counters, counting

# --- large ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_hundred_thousand_commands(server: Server, transaction: bool) -> None:
    count = 100_000
    async with aioredis.Redis(**server.unix, socket_timeout=60) as client:
        pipe = client.pipeline(transaction=transaction)
        for number in range(count):
            pipe.echo(str(number))
        assert len(pipe) == count
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        ticking = asyncio.create_task(tick())
        sent = asyncio.create_task(pipe.execute())
        other = [client.echo(f"o{i}") for i in range(50)]
        values = await within(sent, 200)
        assert values == [str(number).encode() for number in range(count)]
        assert await outcomes(other) == [f"o{i}".encode() for i in range(50)]
        await end([ticking])
        assert turns > 40  # the loop turned while the replies became objects
        assert client.stats()["pipelines"] == 1
        assert client.stats()["connects"] == 1


async def test_large_values_and_replies(server: Server) -> None:
    async with aioredis.Redis(**server.unix, socket_timeout=60) as client:
        pipe = client.pipeline()
        for number in range(20):
            pipe.set(f"k{number}", bytes([number]) * 2_000_000)
        assert await within(pipe.execute()) == [True] * 20
        for transaction in (False, True):
            pipe = client.pipeline(transaction=transaction)
            for number in range(20):
                pipe.get(f"k{number}").strlen(f"k{number}")
            values = await within(pipe.execute())
            assert values[1::2] == [2_000_000] * 20
            assert all(values[2 * i] == bytes([i]) * 2_000_000 for i in range(20))


async def test_a_reply_over_the_cap_fails_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capped(*args: Any) -> dict[str, Any]:
        return {**channel_options(*args), "max_reply_bytes": 100_000}

    monkeypatch.setattr(connection_module, "channel_options", capped)
    async with aioredis.Redis(**server.unix) as client:
        await client.set("large", b"x" * 200_000)
        await client.set("small", "s")
        pipe = client.pipeline(transaction=False).get("small").get("large").get("small")
        values = await pipe.execute(raise_on_error=False)
        assert values[::2] == [b"s", b"s"]
        assert type(values[1]) is RedisError
        assert "over the cap" in str(values[1])
        with pytest.raises(RedisError, match=r"Command # 2 \(GET large\).*over the cap"):
            await pipe.get("small").get("large").get("nothing").execute()
        with pytest.raises(RedisError, match="over the cap"):
            await client.pipeline().get("small").get("large").execute()
        assert await client.pipeline().get("small").execute() == [b"s"]
        assert client.stats()["connects"] == 1


async def test_a_server_that_stops_reading_until_its_replies_are_taken() -> None:
    """Both directions are full: whoever writes everything before it reads, waits for ever."""

    def script(peer: Peer, args: list[bytes]) -> None:
        peer.send(bulk(args[1]))  # blocks while nobody takes it, and nothing is read meanwhile

    with FakeServer(script) as fake:
        async with aioredis.Redis(host="127.0.0.1", port=fake.port, protocol=2) as client:
            pipe = client.pipeline(transaction=False)
            words = [b"%d:" % number + b"x" * 200_000 for number in range(200)]
            for word in words:
                pipe.echo(word)
            assert await within(pipe.execute(), 200) == words
            assert fake.connections == 1


# --- closing, forking, leaving --------------------------------------------------------


async def test_closed_while_it_is_under_way(own_server: Server) -> None:
    client = aioredis.Redis(**own_server.unix)
    await client.ping()
    own_server.pause()
    tasks = [asyncio.create_task(counting(client).execute()) for _ in range(5)]
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0.05)
    own_server.resume()
    await within(closing)
    # Those under way are finished first.
    assert sorted(value[0] for value in await outcomes(tasks)) == [1, 2, 3, 4, 5]


def test_several_loops_in_several_threads(server: Server) -> None:
    client = aioredis.Redis(**server.unix)
    failures: list[Any] = []

    async def work() -> None:
        for _ in range(100):
            values = await counting(client).execute()
            assert len(set(values)) == 1

    def drive() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert counters(server) == [400] * len(KEYS)
    asyncio.run(client.aclose())


def test_in_a_forked_child(server: Server) -> None:
    quiet(
        run_child(
            """
            import asyncio, os, sys, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            import offloop.redis as aioredis
            client = aioredis.Redis(unix_socket_path=sys.argv[1])
            async def once(pipe):
                return await pipe.execute()
            assert asyncio.run(once(client.pipeline().incr("n").incr("n"))) == [1, 2]
            queued = client.pipeline().incr("n")
            pid = os.fork()
            if pid == 0:
                assert asyncio.run(once(queued.incr("n"))) == [3, 4]
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert asyncio.run(once(queued)) == [5]
            asyncio.run(client.aclose())
            """,
            server.path,
        )
    )


@pytest.mark.parametrize("how", ["sys.exit(3)", "os._exit(3)", "loop.stop(); code(3)"])
def test_the_interpreter_ends_with_pipelines_under_way(server: Server, how: str) -> None:
    done = run_child(
        f"""
        import asyncio, os, sys
        import offloop.redis as aioredis
        client = aioredis.Redis(unix_socket_path=sys.argv[1])
        def code(number):
            sys.exit(number)
        async def main():
            loop = asyncio.get_running_loop()
            await client.ping()
            tasks = []
            for _ in range(20):
                pipe = client.pipeline(transaction=False)
                for _ in range(2000):
                    pipe.echo("x" * 100)
                tasks.append(asyncio.create_task(pipe.execute()))
            await asyncio.sleep(0)
            {how}
        asyncio.run(main())
        """,
        server.path,
    )
    assert done.returncode == 3, done.stderr
    assert "Segmentation" not in done.stderr
    assert "Fatal" not in done.stderr
