"""What tasks ask when their replies come together: in few sends, but not in one."""

from __future__ import annotations

import asyncio
import threading

import offloop.redis as aioredis
from driving import within
from fakeserver import FakeServer, Peer


async def _writes_of_next_commands(tasks: int) -> int:
    """How often was written for one further command of each task, all of whose first
    commands were answered at once."""

    def answer_all_at_once(peer: Peer, args: list[bytes]) -> None:
        waiting.append(args)
        if len(waiting) == tasks:
            waiting.clear()
            goes_on.wait(60)
            peer.send(b"+OK\r\n" * tasks)

    async def task() -> None:
        await client.get("first")
        await client.get("second")

    waiting: list[list[bytes]] = []
    goes_on = threading.Event()
    with FakeServer(answer_all_at_once) as server:
        async with aioredis.Redis(host="127.0.0.1", port=server.port) as client:
            both = asyncio.gather(*[task() for _ in range(tasks)])
            await asyncio.sleep(0.01)  # all is sent
            before = int(client.connection_pool.stats()["writes"])
            goes_on.set()
            await within(both)
            return int(client.connection_pool.stats()["writes"]) - before


# A worker that is at the connection just then takes along what it finds, and a loop that is
# slow sends more often: so neither number is the same each time.


async def test_half_of_what_is_under_way_goes_out_at_a_time() -> None:
    counts = [await _writes_of_next_commands(60) for _ in range(5)]
    assert max(counts) >= 3, "one that is alone, a half, and the rest"
    assert min(counts) <= 30


async def test_a_few_go_out_together() -> None:
    counts = [await _writes_of_next_commands(6) for _ in range(5)]
    assert min(counts) <= 2
