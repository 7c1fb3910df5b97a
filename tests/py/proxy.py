"""A TCP proxy in a process of its own, to make a network misbehave on purpose.

Used from tests as `with Proxy(server.path) as proxy: Redis(port=proxy.port)`. It
runs apart so that it shares neither the GIL nor the file descriptors with what is
tested. The test steers it by one JSON line per order on its standard input and
gets one line back:

    proxy.delay(0.001)        every byte is late by that much, each way
    proxy.silence(True)       takes bytes from both sides and passes none on
    proxy.hold(True)          passes no reply on; commands go through as before
    proxy.deafen(True)        stops reading from the client (its send buffer fills)
    proxy.refuse(True)        closes new connections as soon as they are accepted
    proxy.freeze()            the connections there are pass nothing on any more, for ever;
                              new ones are as good as before
    proxy.cut()               resets every connection now, says how many
    proxy.cut_after(low, high, seed)   each connection is reset after a random number
                              of reply bytes, also in the middle of a reply
    proxy.trickle(n, secs)    passes replies on n bytes at a time, secs apart
    proxy.stats()             accepted, open, cuts, up and down bytes
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

CHUNK = 1 << 16


class Proxy:
    """The test's end: starts the process, sends orders, stops it."""

    def __init__(self, upstream: str, *, unix: str | None = None) -> None:
        """`upstream` is a Unix socket path or host:port; `unix` listens on that path."""
        self.upstream = upstream
        self.unix = unix
        self.port = 0

    def __enter__(self) -> Proxy:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), self.upstream, self.unix or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.port = int(self._answer()["port"])
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def delay(self, secs: float) -> None:
        self._order(set={"delay": secs})

    def silence(self, on: bool) -> None:
        self._order(set={"silent": on})

    def hold(self, on: bool) -> None:
        self._order(set={"hold": on})

    def deafen(self, on: bool) -> None:
        self._order(set={"deaf": on})

    def freeze(self) -> int:
        return int(self._order(freeze=True)["frozen"])

    def refuse(self, on: bool) -> None:
        self._order(set={"refuse": on})

    def cut_after(self, low: int, high: int, seed: int) -> None:
        self._order(set={"cut_after": [low, high]}, seed=seed)

    def no_cuts(self) -> None:
        self._order(set={"cut_after": None})

    def trickle(self, count: int, secs: float) -> None:
        self._order(set={"trickle": [count, secs] if count else None})

    def cut(self) -> int:
        return int(self._order(cut=True)["cut"])

    def stats(self) -> dict[str, int]:
        return {name: int(value) for name, value in self._order()["stats"].items()}


class _Settings:
    delay: float = 0.0
    silent: bool = False
    hold: bool = False
    deaf: bool = False
    refuse: bool = False
    cut_after: list[int] | None = None
    trickle: list[float] | None = None


class _Pair:
    """One client connection and the connection to the server behind it."""

    def __init__(self, relay: _Relay, writers: list[asyncio.StreamWriter]) -> None:
        self.relay = relay
        self.writers = writers
        limits = relay.settings.cut_after
        self.left = relay.random.randint(*limits) if limits else None
        self.frozen = False

    def reset(self) -> None:
        """RST towards the client: what is under way in either direction is lost."""
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):  # it is closed already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, down: bool
    ) -> None:
        settings, stats = self.relay.settings, self.relay.stats
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        late = 0  # chunks handed to deliver() and not yet written: nothing may overtake them

        async def deliver() -> None:
            nonlocal late
            while True:
                due, data = await queue.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                if not data:
                    writer.close()
                    return
                while settings.silent or self.frozen or (settings.hold and down):
                    await asyncio.sleep(0.005)
                await self._write(writer, data, down)
                late -= 1

        delivery = asyncio.create_task(deliver())
        try:
            while True:
                while settings.deaf and not down:
                    await asyncio.sleep(0.005)
                data = await reader.read(CHUNK)
                stats["down" if down else "up"] += len(data)
                held = settings.silent or self.frozen or (settings.hold and down)
                if settings.delay or held or late or not data:
                    late += 1
                    queue.put_nowait((loop.time() + settings.delay, data))
                else:
                    await self._write(writer, data, down)
                if not data:
                    await delivery
                    return
        finally:
            delivery.cancel()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, down: bool) -> None:
        if down and self.left is not None:
            if len(data) >= self.left:
                writer.write(data[: self.left])
                self.relay.stats["cuts"] += 1
                # The part must leave before the reset, or the cut is always clean.
                await asyncio.sleep(0)
                self.reset()
                raise ConnectionResetError
            self.left -= len(data)
        step = self.relay.settings.trickle
        if step and down:
            for at in range(0, len(data), int(step[0])):
                writer.write(data[at : at + int(step[0])])
                await asyncio.sleep(step[1])
        else:
            writer.write(data)
        await writer.drain()


class _Relay:
    def __init__(self, upstream: str, unix: str) -> None:
        self.upstream = upstream
        self.unix = unix
        self.settings = _Settings()
        self.random = random.Random(0)
        self.stats = {"accepted": 0, "open": 0, "cuts": 0, "up": 0, "down": 0}
        self.pairs: set[_Pair] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats["accepted"] += 1
        if self.settings.refuse:
            writer.transport.abort()
            return
        try:
            if "/" in self.upstream:
                far = await asyncio.open_unix_connection(self.upstream)
            else:
                host, _, port = self.upstream.rpartition(":")
                far = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(self, [writer, far[1]])
        self.pairs.add(pair)
        self.stats["open"] += 1
        pumps = [
            asyncio.create_task(pair.pump(reader, far[1], False)),
            asyncio.create_task(pair.pump(far[0], writer, True)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in pair.writers:
            end.transport.abort()
        self.pairs.discard(pair)
        self.stats["open"] -= 1

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        if "seed" in order:
            self.random.seed(order["seed"])
        for name, value in order.get("set", {}).items():
            setattr(self.settings, name, value)
        if order.get("cut"):
            answer["cut"] = len(self.pairs)
            for pair in list(self.pairs):
                self.stats["cuts"] += 1
                pair.reset()
        if order.get("freeze"):
            answer["frozen"] = len(self.pairs)
            for pair in self.pairs:
                pair.frozen = True
        answer["stats"] = self.stats
        return answer

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        if self.unix:
            await asyncio.start_unix_server(self.accept, self.unix)
            port = 0
        else:
            listener = await asyncio.start_server(self.accept, "127.0.0.1", 0, backlog=512)
            port = listener.sockets[0].getsockname()[1]
        print(json.dumps({"port": port}), flush=True)
        orders = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        while line := await orders.readline():
            print(json.dumps(self.obey(json.loads(line))), flush=True)


async def _main() -> None:
    # The orders end when the test closes its end: leave without waiting for the pumps.
    await _Relay(sys.argv[1], sys.argv[2]).serve()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
