"""What a redis-py connection is configured with, as options of a native channel."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from redis._parsers.encoders import Encoder
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    DefaultParser,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff, NoBackoff

from offloop.redis.held import OURS
from offloop.redis.tls import tls_options

__all__ = ["channel_options", "is_native"]

# Connection classes that the native channel stands in for. A subclass may connect
# to anywhere in any way, so it keeps redis-py's own.
_CLASSES = (*OURS, *OURS.values())

# What a program can put in place of redis-py's own parts: then these are used.
_OWN_PARTS = ("redis_connect_func", "parser_class", "encoder_class")


def is_native(connection_class: type[AbstractConnection], kwargs: dict[str, Any]) -> bool:
    """Whether connections of this class and configuration can be native ones.

    Of an SSLConnection channel_options() has the last word.
    """
    if connection_class not in _CLASSES:
        return False
    maintenance = kwargs.get("maint_notifications_config")
    if maintenance is not None and maintenance.enabled is True:
        return False  # asked for, not just tried: redis-py's connections heed them
    defaults = {"parser_class": DefaultParser, "encoder_class": Encoder}
    return all(kwargs.get(name) in (None, defaults.get(name)) for name in _OWN_PARTS)


def _keepalive(connection: Connection) -> dict[str, Any]:
    options: Any = connection.socket_keepalive_options or {}
    return {
        "keepalive": bool(connection.socket_keepalive),
        "keep_idle": options.get(socket.TCP_KEEPIDLE),
        "keep_interval": options.get(socket.TCP_KEEPINTVL),
        "keep_count": options.get(socket.TCP_KEEPCNT),
    }


def _backoff(retry: Retry) -> dict[str, Any]:
    """Pauses between attempts to connect, of the same size as redis-py's."""
    backoff = retry._backoff
    options = {"retries": max(retry.get_retries(), -1)}
    if isinstance(backoff, NoBackoff):
        return {**options, "backoff_base": 0, "backoff_cap": 0}
    if isinstance(backoff, ConstantBackoff):
        pause = backoff._backoff
        return {**options, "backoff_base": pause, "backoff_cap": pause}
    return {
        **options,
        "backoff_base": getattr(backoff, "_base", 0.008),
        "backoff_cap": getattr(backoff, "_cap", 0.512),
        "backoff_jitter": "Jitter" in type(backoff).__name__,
    }


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def channel_options(
    connection: AbstractConnection, provider: Callable[..., None]
) -> dict[str, Any] | None:
    """The options of a native channel to where connection would connect.

    Args:
        connection: a redis-py connection that was made and not connected; it has
            checked the configuration and filled in the defaults.
        provider: called when credentials are needed, if connection has a
            credential provider.

    Returns:
        The options, or None where connection has to connect itself: with options
        of TLS that cannot be the same natively (see offloop.redis.tls).
    """
    info = connection.driver_info
    options: dict[str, Any] = {
        "username": _text(connection.username) or None,
        "password": _text(connection.password) or None,
        "provider": provider if connection.credential_provider is not None else None,
        "client_name": connection.client_name,
        "lib_name": info.formatted_name if info else None,
        "lib_version": info.lib_version if info else None,
        "db": int(connection.db or 0),
        "protocol": int(connection.protocol),
        "timeout": connection.socket_timeout,
        "connect_timeout": connection.socket_connect_timeout,
        "health_interval": connection.health_check_interval,
        "encoding": connection.encoder.encoding,
        "encoding_errors": connection.encoder.encoding_errors,
        "decode": connection.encoder.decode_responses,
        **_backoff(connection.retry),
    }
    if isinstance(connection, UnixDomainSocketConnection):
        options["path"] = connection.path
    elif isinstance(connection, Connection):
        host = "localhost" if connection.host is None else connection.host  # asyncio's rule
        options.update(host=host, port=connection.port, **_keepalive(connection))
    if isinstance(connection, SSLConnection):
        options["tls"] = tls_options(connection)
        if options["tls"] is None:
            return None
    return options
