"""Fork: the child starts anew; the parent's workers, connections and replies stay its own."""

from __future__ import annotations

import pytest
from child import quiet, run_child
from servers import Server

# What follows each program's beginning: a client in use, then `child()` in a fork.
_BEGIN = """
import asyncio, os, pathlib, sys, threading
import offloop
import offloop.redis as aioredis
path, db = sys.argv[1], 0

def make(**options):
    return aioredis.Redis(unix_socket_path=path, protocol=2, **options)

def in_child(body):
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            body()
            code = 0
        except BaseException as error:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    return pid

def in_thread(body):
    '''In a child forked by a task: the loop that runs in its thread is the parent's.'''
    done = []
    def work():
        body()
        done.append(True)
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    assert done

def wait(pid):
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status

async def ids(client, count=20):
    return {await client.client_id() for _ in range(count)}
"""


def fork(server: Server, source: str, *arguments: object) -> str:
    # Python warns about fork beside threads from 3.12 on: that is what is tested here.
    return quiet(
        run_child(
            "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
            + _BEGIN
            + source,
            server.path,
            *arguments,
        )
    )


def test_the_child_uses_the_client_anew(server: Server) -> None:
    fork(
        server,
        """
client = make()
before = asyncio.run(ids(client))
assert len(before) == 1

def child():
    async def main():
        mine = await ids(client)
        assert len(mine) == 1 and not mine & before, (mine, before)
        values = await asyncio.gather(*(client.echo(str(i)) for i in range(500)))
        assert values == [str(i).encode() for i in range(500)]
        await client.aclose()
    asyncio.run(main())

wait(in_child(child))
assert asyncio.run(ids(client)) == before, "the parent's connection was touched"
assert client.stats()["connects"] == 1
asyncio.run(client.aclose())
""",
    )


def test_the_child_leaves_without_closing(server: Server) -> None:
    """Its exit neither closes nor writes to what it inherited."""
    fork(
        server,
        """
client = make(workers=4)
before = asyncio.run(ids(client))
wait(in_child(lambda: None))
wait(in_child(lambda: asyncio.run(ids(client))))
def drop():
    global client
    del client
    import gc; gc.collect()
wait(in_child(drop))
wait(in_child(lambda: asyncio.run(client.aclose())))
assert asyncio.run(ids(client)) == before
assert client.stats()["connects"] == 1
asyncio.run(client.aclose())
""",
    )


def test_the_child_exits_as_python_does(server: Server) -> None:
    fork(
        server,
        """
client = make()
before = asyncio.run(ids(client))
# Its watchdog thread is the parent's: the child's exit would wait for it.
faulthandler.cancel_dump_traceback_later()
pid = os.fork()
if pid == 0:
    asyncio.run(ids(client))
    sys.exit(7)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert asyncio.run(ids(client)) == before
asyncio.run(client.aclose())
""",
    )


def test_what_is_in_flight_stays_the_parents(server: Server) -> None:
    """Fork in the middle of traffic, many times: the parent loses and mixes up nothing."""
    fork(
        server,
        """
client = make(workers=2)

def child():
    async def main():
        values = await asyncio.gather(*(client.echo(f"child{i}") for i in range(100)))
        assert values == [f"child{i}".encode() for i in range(100)]
        await client.aclose()
    asyncio.run(main())

async def main():
    going = True
    count = 0
    async def storm(number):
        nonlocal count
        while going:
            word = f"{number}:{count}"
            count += 1
            assert await client.echo(word) == word.encode()
    tasks = [asyncio.create_task(storm(i)) for i in range(50)]
    loop = asyncio.get_running_loop()
    for _ in range(10):
        await asyncio.sleep(0.005)
        await loop.run_in_executor(None, wait, in_child(lambda: in_thread(child)))
    going = False
    await asyncio.gather(*tasks)
    assert client.stats()["connects"] == 1
    await client.aclose()

asyncio.run(main())
""",
    )


def test_children_of_children(server: Server) -> None:
    fork(
        server,
        """
client = make()
mine = asyncio.run(ids(client))

def grandchild():
    assert not asyncio.run(ids(client)) & mine

def child():
    theirs = asyncio.run(ids(client))
    assert not theirs & mine
    wait(in_child(grandchild))
    assert asyncio.run(ids(client)) == theirs

wait(in_child(child))
assert asyncio.run(ids(client)) == mine
asyncio.run(client.aclose())
""",
    )


def test_a_shared_pool(server: Server) -> None:
    fork(
        server,
        """
pool = offloop.Pool(workers=3)
clients = [make(pool=pool, db=i) for i in range(3)]

async def use():
    return [await client.client_id() for client in clients]

before = asyncio.run(use())

def child():
    after = asyncio.run(use())
    assert not set(after) & set(before)
    assert pool.stats()["workers"] == 3
    names = [(t / "comm").read_text() for t in pathlib.Path("/proc/self/task").iterdir()]
    assert any(name.startswith("offloop-w") for name in names), names
    asyncio.run(pool.aclose())

wait(in_child(child))
assert asyncio.run(use()) == before
asyncio.run(pool.aclose())
for client in clients:
    asyncio.run(client.aclose())
""",
    )


def test_forked_before_first_use(server: Server) -> None:
    fork(
        server,
        """
client = make()
pids = [in_child(lambda: asyncio.run(ids(client))) for _ in range(4)]
for pid in pids:
    wait(pid)
asyncio.run(ids(client))
asyncio.run(client.aclose())
""",
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(server: Server, method: str) -> None:
    quiet(
        run_child(
            "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
            + _BEGIN
            + """
import multiprocessing, operator
client = make()
asyncio.run(ids(client))
# A callable that every way of starting can pickle: the children do plain work; with
# "fork" they carry the client with them and must come to their end.
context = multiprocessing.get_context(sys.argv[2])
with context.Pool(2) as workers:
    assert workers.starmap(operator.add, [(i, 1) for i in range(50)]) == list(range(1, 51))
asyncio.run(ids(client))
asyncio.run(client.aclose())
""",
            server.path,
            method,
        )
    )
