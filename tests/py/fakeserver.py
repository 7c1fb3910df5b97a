"""A server that speaks RESP as badly as a test asks for.

`FakeServer(script)` listens on a free TCP port. Each connection is greeted like a
Redis 7 would (HELLO, AUTH, SELECT, CLIENT SETNAME, CLIENT SETINFO, PING); every
other command is handed to `script(peer, args)`, which answers by `peer.send(...)`,
keeps silent, or raises `Close`. `greeting=` replaces the greeting as well.

This is no stand-in for the code under test: it is the other end of its wire.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class Close(Exception):
    """Raised by a script: close this connection."""


Script = Callable[["Peer", "list[bytes]"], None]


class Peer:
    """One accepted connection, on a thread of its own."""

    def __init__(self, server: FakeServer, sock: socket.socket, number: int) -> None:
        self.server = server
        self.sock = sock
        self.number = number
        self.protocol = 2
        self.buffer = bytearray()
        self.commands: list[list[bytes]] = []

    def send(self, data: bytes) -> None:
        """Write raw bytes."""
        self.sock.sendall(data)

    def drip(self, data: bytes, secs: float) -> None:
        """Write one byte every so many seconds."""
        for at in range(len(data)):
            self.sock.sendall(data[at : at + 1])
            if self.server.closing.wait(secs):
                raise Close

    def _fill(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise Close
        self.buffer += data

    def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            self._fill()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    def _read(self, count: int) -> bytes:
        while len(self.buffer) < count + 2:
            self._fill()
        data = bytes(self.buffer[:count])
        del self.buffer[: count + 2]
        return data

    def command(self) -> list[bytes]:
        """The next command of the client."""
        head = self._line()
        assert head[:1] == b"*", f"the client sent {head!r}"
        args = []
        for _ in range(int(head[1:])):
            size = self._line()
            assert size[:1] == b"$", f"the client sent {size!r}"
            args.append(self._read(int(size[1:])))
        return args

    def run(self) -> None:
        try:
            while True:
                args = self.command()
                self.commands.append(args)
                if not self.server.greeting(self, args):
                    self.server.script(self, args)
        except (Close, OSError):
            pass
        finally:
            self.sock.close()


def greet(peer: Peer, args: list[bytes]) -> bool:
    """Answer what a client says on connecting; False for any other command."""
    words = [word.upper() for word in args[:2]]
    if words[0] == b"HELLO":
        if len(args) > 1:
            peer.protocol = int(args[1])
        head = b"%7\r\n" if peer.protocol == 3 else b"*14\r\n"
        peer.send(
            head
            + b"$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n"
            + b"$5\r\nproto\r\n:%d\r\n$2\r\nid\r\n:%d\r\n" % (peer.protocol, peer.number)
            + b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
            + b"$7\r\nmodules\r\n*0\r\n"
        )
    elif words[0] in (b"AUTH", b"SELECT") or words in (
        [b"CLIENT", b"SETNAME"],
        [b"CLIENT", b"SETINFO"],
    ):
        peer.send(b"+OK\r\n")
    elif words[0] == b"PING":
        peer.send(b"+PONG\r\n")
    else:
        return False
    return True


class FakeServer:
    """Listens until the end of the `with` block; then every thread is joined."""

    def __init__(
        self, script: Script, *, greeting: Callable[[Peer, list[bytes]], bool] = greet
    ) -> None:
        self.script = script
        self.greeting = greeting
        self.closing = threading.Event()
        self.peers: list[Peer] = []
        self.threads: list[threading.Thread] = []
        self.port = 0

    def __enter__(self) -> FakeServer:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.acceptor = threading.Thread(target=self._accept, name="fake-accept")
        self.acceptor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        # Closing a listener does not wake accept(); a connection does.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        self.acceptor.join(10)
        self.listener.close()
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            if self.closing.is_set():
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(self, sock, len(self.peers) + 1)
            thread = threading.Thread(target=peer.run, name=f"fake-{peer.number}")
            self.peers.append(peer)
            self.threads.append(thread)
            thread.start()

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        return len(self.peers)

    def commands(self, name: bytes) -> list[list[bytes]]:
        """Every command of that name, on any connection."""
        return [
            args for peer in self.peers for args in peer.commands if args[0].upper() == name.upper()
        ]


def bulk(data: bytes) -> bytes:
    """A RESP bulk string."""
    return b"$%d\r\n%s\r\n" % (len(data), data)
