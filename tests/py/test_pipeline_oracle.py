"""The reply-identity oracle with pipelines and transactions among the single commands."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
from child import run_child
from driving import outcome, run, within
from oracle import NESTED, Oracle
from proxy import Proxy
from servers import Server
from test_oracle import Chaos, answered

COUNT = 6000
LOOPS = 3


class PipelineOracle(Oracle):
    """Every second question is a pipeline; each of its commands carries the number."""

    async def _one(self, client: Any, number: int) -> None:
        if self.random.random() < 0.5:
            await super()._one(client, number)
            return
        text = str(number).encode()
        pipe = client.pipeline(transaction=self.random.random() < 0.5)
        wanted: list[Any] = []
        for index in range(self.random.choice((1, 2, 5, 20, 100))):
            kind = self.random.randrange(4)
            if kind == 0:
                padding = self.random.choice((0, 3, 500, 20_000 if index < 3 else 0))
                word = b"%d.%d:" % (number, index) + b"x" * padding
                pipe.echo(word)
                wanted.append(word)
            elif kind == 1:
                pipe.execute_command("EVAL", NESTED, 0, number)
                wanted.append([text, [text, number]])
            elif kind == 2:
                pipe.set(f"p:{number}:{index}", number).get(f"p:{number}:{index}")
                wanted += [True, text]
            else:
                pipe.incrby(f"i:{number}:{index}", number)
                wanted.append(number)
        await self._ask(lambda: asyncio.ensure_future(pipe.execute()), wanted)


async def _recovered(client: aioredis.Redis) -> None:
    for number in range(1000):
        pipe = client.pipeline().echo(f"last {number}")
        if await within(outcome(pipe.execute())) == [f"last {number}".encode()]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the client did not recover")


@pytest.mark.limit(400)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_identity_of_pipelines_under_fire(server: Server, proxy: Proxy, workers: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    pool = offloop.Pool(workers=workers)
    clients = [
        aioredis.Redis(host="127.0.0.1", port=proxy.port, pool=pool, socket_timeout=20),
        aioredis.Redis(**server.unix, pool=pool, socket_timeout=20),
        aioredis.Redis(**server.tcp, pool=pool, protocol=2, socket_timeout=0.05),
        aioredis.Redis(**server.unix, pool=pool, socket_timeout=0.002),
    ]
    share = COUNT // LOOPS
    oracles = [PipelineOracle(clients, share, seed + i, first=1 + i * share) for i in range(LOOPS)]
    failures: list[BaseException] = []

    def drive(oracle: PipelineOracle) -> None:
        try:
            run(oracle.run(40), limit=350)
        except BaseException as error:
            failures.append(error)

    async def close() -> None:
        for client in clients[:2]:
            await _recovered(client)
        for client in clients:
            await client.aclose()
        await pool.aclose()

    chaos = Chaos(server, proxy, seed, lambda: answered(oracles))
    chaos.start()
    threads = [threading.Thread(target=drive, args=(oracle,)) for oracle in oracles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chaos.over.set()
    chaos.join()
    seen: Counter[str] = sum((oracle.seen for oracle in oracles), Counter())
    print(dict(seen), "killed", chaos.killed)
    run(close())
    assert failures == []
    assert [wrong for oracle in oracles for wrong in oracle.wrong] == []
    assert seen["answered"] > COUNT / 10
    assert seen["cancelled"] > COUNT / 50


def test_a_planted_bug_in_the_matching_is_caught(server: Server) -> None:
    """The debug build answers the command behind a cancelled one: the oracle says so."""
    if not offloop._core.build_info()["debug"]:
        pytest.skip("only a debug build can plant it")
    done = run_child(
        """
        import asyncio, sys
        import offloop._core as core
        import offloop.redis as aioredis
        from test_pipeline_oracle import PipelineOracle
        core._debug_mutate("match-off-by-one-after-cancel")
        async def main():
            client = aioredis.Redis(unix_socket_path=sys.argv[1], socket_timeout=5)
            oracle = PipelineOracle([client], 2000, 1, first=1)
            await asyncio.wait_for(oracle.run(40), 25)
            print(len(oracle.wrong))
            await client.aclose()
        asyncio.run(main())
        """,
        server.path,
    )
    # Either it saw wrong replies, or the mess ended the program.
    assert done.returncode != 0 or int(done.stdout.split()[-1]) > 0, done.stderr
