"""Commands in no table of ours: a module's, a newer server's, a renamed one.

Whether such a command may share a connection, the server knows: COMMAND INFO tells its
flags. It is asked once for each name and connection pool, before the first command of
that name is sent.

Source: https://redis.io/docs/latest/commands/command/ (flags, ACL categories).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from offloop import _core
from offloop.redis.connection import wire


def name_of(args: Sequence[Any]) -> str:
    """The first word of a command as it was called; what no command is called by, is '?'."""
    name = args[0] if args else ""
    if isinstance(name, (bytes, bytearray, memoryview)):
        name = bytes(name).decode("ascii", "replace")
    words = str(name).encode("ascii", "replace").decode().split(None, 1)
    return words[0].upper() if words else ""


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


async def learn(channel: _core.Channel, name: str) -> bool:
    """Ask the server about a command, unless it is known.

    Args:
        channel: of the client.
        name: the command's first word, in any case.

    Returns:
        Whether it is known now. Not where the server does not know the command either.

    Raises:
        ConnectionError, TimeoutError: the server cannot be asked; nothing was sent of
            the command itself.
    """
    if channel.sharing(name) != "unknown":
        return True
    try:
        sharing = judged(await channel._send_wire(wire(["COMMAND", "INFO", name])))
    except ResponseError:
        sharing = "stateful"  # a proxy, or not allowed: a connection of its own is always right
    except (TypeError, IndexError, KeyError) as error:
        raise RedisError(f"COMMAND INFO {name}: an unexpected reply") from error
    if sharing is None:
        return False
    channel.learn(name, sharing)
    return True
