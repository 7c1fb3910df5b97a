"""The end of the interpreter, at any moment: the right exit code, no hang, not a word."""

from __future__ import annotations

import random
import signal

import pytest
from child import quiet, run_child
from servers import Server

_BEGIN = """
import asyncio, os, signal, sys, threading, time
import offloop
import offloop.redis as aioredis
path = sys.argv[1]
client = aioredis.Redis(unix_socket_path=path, workers=2)

async def storm(number):
    count = 0
    while True:
        word = f"{number}:{count}"
        count += 1
        assert await client.echo(word) == word.encode()
"""

WAYS = {
    "aclose": (0, "await client.aclose()"),
    "nothing": (0, "return"),
    "sys.exit": (3, "sys.exit(3)"),
    "os._exit": (4, "os._exit(4)"),
    "del": (0, "globals().pop('client')"),
    "reference kept": (0, "sys.keep_client = client"),
    "cycle": (0, "client.me = client"),
    "pending calls": (0, "sys.calls = [client.echo(str(i)) for i in range(200)]"),
    "tasks left": (0, "sys.task = asyncio.get_running_loop().create_task(storm(1))"),
    "pool closed alone": (0, "await client.connection_pool.disconnect()"),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_end(server: Server, way: str) -> None:
    code, line = WAYS[way]
    done = run_child(
        _BEGIN
        + f"""
async def main():
    await client.ping()
    assert await client.echo("x") == b"x"
    {line}
asyncio.run(main())
""",
        server.path,
    )
    quiet(done, code)


def test_an_exception_ends_it(server: Server) -> None:
    done = run_child(
        _BEGIN
        + """
async def main():
    await client.ping()
    calls = [client.echo(str(i)) for i in range(100)]
    raise LookupError("on purpose")
asyncio.run(main())
""",
        server.path,
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("LookupError: on purpose")
    assert done.stderr.count("Traceback") == 1, done.stderr


@pytest.mark.parametrize("way", ["sys.exit(5)", "os._exit(5)", "raise SystemExit(5)"])
@pytest.mark.parametrize("close", [True, False])
def test_at_a_random_moment_under_load(server: Server, way: str, close: bool) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    done = run_child(
        _BEGIN
        + f"""
import random
chance = random.Random(int(sys.argv[2]))
async def main():
    tasks = [asyncio.create_task(storm(i)) for i in range(50)]
    await asyncio.sleep(chance.random() * 0.2)
    if {close}:
        await client.aclose()
    {way}
try:
    asyncio.run(main())
except offloop.redis.RedisError:
    sys.exit(5)
""",
        server.path,
        seed,
    )
    assert done.returncode == 5, done.stderr
    if not close:
        quiet(done, 5)


@pytest.mark.parametrize("where", ["before use", "loop closed", "at import"])
def test_clients_that_nobody_closes(server: Server, where: str) -> None:
    body = {
        "before use": "",
        "loop closed": "asyncio.run(client.get('k'))\n" * 3,
        "at import": "loop = asyncio.new_event_loop()\n"
        "loop.run_until_complete(client.get('k'))\nloop.close()",
    }[where]
    quiet(run_child(_BEGIN + body, server.path))


def test_a_loop_that_is_never_closed(server: Server) -> None:
    """Without the ResourceWarning about the loop, which is asyncio's own."""
    quiet(
        run_child(
            _BEGIN
            + """
import warnings
warnings.simplefilter("ignore")
loop = asyncio.new_event_loop()
loop.run_until_complete(client.get("k"))
""",
            server.path,
        )
    )


def test_daemon_threads_that_use_the_client(server: Server) -> None:
    quiet(
        run_child(
            _BEGIN
            + """
def work():
    async def main():
        await asyncio.gather(*(storm(i) for i in range(20)))
    asyncio.run(main())
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
sys.exit(6)
""",
            server.path,
        ),
        6,
    )


def test_atexit_uses_the_client(server: Server) -> None:
    out = quiet(
        run_child(
            _BEGIN
            + """
import atexit
asyncio.run(client.ping())
def last():
    async def main():
        print(await client.echo("last words"))
        await client.aclose()
    asyncio.run(main())
atexit.register(last)
""",
            server.path,
        )
    )
    assert out == "b'last words'\n"


def test_a_server_that_is_silent_or_away_does_not_hold_up_the_exit(own_server: Server) -> None:
    source = (
        _BEGIN
        + """
async def main():
    calls = [client.echo(str(i)) for i in range(10)]
    await asyncio.sleep(0.2)
    for call in calls:
        call.cancel()
asyncio.run(main())
"""
    )
    own_server.pause()
    quiet(run_child(source, own_server.path))
    own_server.resume()
    own_server.stop()
    quiet(
        run_child(
            _BEGIN
            + """
async def main():
    try:
        await asyncio.wait_for(client.ping(), 0.2)
    except (aioredis.ConnectionError, asyncio.TimeoutError):
        pass
asyncio.run(main())
""",
            own_server.path,
        )
    )


def test_signals_reach_the_main_thread(server: Server) -> None:
    """Workers block all signals: SIGINT interrupts the loop as without them."""
    done = run_child(
        _BEGIN
        + """
# A shell that runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
async def main():
    tasks = [asyncio.create_task(storm(i)) for i in range(20)]
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    await asyncio.gather(*tasks)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
""",
        server.path,
    )
    assert quiet(done) == "interrupted\n"


def test_signals_that_come_all_the_time(server: Server) -> None:
    """Interrupted system calls are taken up again; no reply is lost by one."""
    out = quiet(
        run_child(
            _BEGIN
            + """
count = 0
def tick(number, frame):
    global count
    count += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
async def work(number):
    for i in range(300):
        word = f"{number}:{i}"
        assert await client.echo(word) == word.encode()
async def main():
    await asyncio.gather(*(work(i) for i in range(50)))
    await client.aclose()
asyncio.run(main())
signal.setitimer(signal.ITIMER_REAL, 0)
print(count > 20)
""",
            server.path,
        )
    )
    assert out == "True\n"


def test_sigterm_ends_it(server: Server) -> None:
    done = run_child(
        _BEGIN
        + """
async def main():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    await asyncio.gather(*(storm(i) for i in range(20)))
asyncio.run(main())
""",
        server.path,
    )
    quiet(done, -signal.SIGTERM)


def test_a_peer_that_closes_does_not_kill_the_process(own_server: Server) -> None:
    """No SIGPIPE, whatever disposition it has."""
    out = quiet(
        run_child(
            _BEGIN
            + """
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
import redis
admin = redis.Redis(unix_socket_path=path)
async def main():
    failures = 0
    for _ in range(30):
        admin.client_kill_filter(_type="normal", skipme=True)
        for value in await asyncio.gather(
                *(client.set("k", b"x" * 100_000) for _ in range(10)), return_exceptions=True):
            failures += value is not True
    for _ in range(5):
        try:
            await client.ping()
        except aioredis.ConnectionError:
            pass
    print(await client.ping())
    await client.aclose()
asyncio.run(main())
admin.close()
""",
            own_server.path,
        )
    )
    assert out == "True\n"


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("round_number", range(30))
def test_many_random_ends(server: Server, round_number: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    way = chance.choice(["sys.exit(5)", "os._exit(5)", "return 5"])
    threads = chance.choice([0, 2])
    done = run_child(
        _BEGIN
        + f"""
import random
chance = random.Random(int(sys.argv[2]))
def beside():
    async def main():
        await asyncio.gather(*(storm(i) for i in range(20)))
    asyncio.run(main())
for _ in range({threads}):
    threading.Thread(target=beside, daemon=True).start()
async def main():
    tasks = [asyncio.create_task(storm(i)) for i in range(50)]
    await asyncio.sleep(chance.random() * 0.1)
    for task in tasks[:25]:
        task.cancel()
    {way}
sys.exit(asyncio.run(main()))
""",
        server.path,
        seed,
    )
    quiet(done, 5)
