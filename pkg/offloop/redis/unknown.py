"""Commands in no table of ours: a module's, a newer server's, a renamed one.

Whether such a command may share a connection, the server knows: COMMAND INFO tells its
flags. It is asked once for each name and connection pool, before the first command of
that name is sent.

Source: https://redis.io/docs/latest/commands/command/ (flags, ACL categories).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from offloop import _core
from offloop.redis.connection import wire


def name_of(args: Sequence[Any]) -> str:
    """The first word of a command as it was called; '?' for what no UTF-8 can be."""
    name = args[0] if args else ""
    if isinstance(name, (bytes, bytearray, memoryview)):
        name = bytes(name).decode(errors="surrogateescape")
    words = str(name).encode(errors="replace").decode().split(None, 1)
    word = words[0] if words else ""
    return word.upper() if word.isascii() else word


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def judged(reply: Any) -> str | None:
    """What a command needs, by what COMMAND INFO says of it.

    Args:
        reply: one reply to COMMAND INFO of one name.

    Returns:
        ``"shared"``, ``"blocking"`` or ``"stateful"``; None where the server does not
        know the command.
    """
    row = reply[0] if reply else None
    if row is None:
        return None
    flags = {_text(flag) for flag in row[2]}
    categories = {_text(category) for category in row[6]} if len(row) > 6 else set()
    if flags & {"pubsub", "no_multi"} or "@connection" in categories:
        return "stateful"
    return "blocking" if "blocking" in flags else "shared"


async def learn(channel: _core.Channel, names: Iterable[str]) -> list[str]:
    """Ask the server about commands, those that are known left out.

    Args:
        channel: of the client.
        names: first words of commands, in any case.

    Returns:
        Those to ask about again, with forget(), once they are sent: the server does not
        know them either, and a module may be loaded later; or it could not say, since a
        script keeps it busy.

    Raises:
        ConnectionError, TimeoutError: the server cannot be asked; nothing was sent of
            the commands themselves.
    """
    nowhere, unsaid = [], []
    for name in names:
        if channel.sharing(name) != "unknown":
            continue
        try:
            sharing = judged(await channel._send_wire(wire(["COMMAND", "INFO", name])))
        except ResponseError as error:
            sharing = "stateful"  # its own connection is always right
            if not isinstance(error, NoPermissionError) and "unknown command" not in str(error):
                unsaid.append(name)  # neither a proxy nor not allowed: it may pass
        except (TypeError, IndexError, KeyError) as error:
            raise RedisError(f"COMMAND INFO {name}: an unexpected reply") from error
        if sharing is None:
            nowhere.append(name)
        else:
            channel.learn(name, sharing)
    # As good as shared ones: they will be refused.  Another task may have been told more
    # meanwhile.
    nowhere = [name for name in nowhere if channel.sharing(name) == "unknown"]
    for name in nowhere:
        channel.learn(name, "shared")
    return nowhere + unsaid


def forget(channel: _core.Channel, names: Iterable[str]) -> None:
    """Ask about them again the next time."""
    for name in names:
        channel.learn(name, "unknown")
