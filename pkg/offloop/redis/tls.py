"""The ssl_* options of a redis-py connection, for a native channel.

What they mean is decided by Python's ssl as before: a context of it is made the way
redis-py makes one, without the files, and what it says of versions, ciphers and
flags is what the native connection is told. So the defaults are those of the Python
that runs, whatever its version.

These keep redis-py's own connections, since they cannot be the same natively: an
``ssl_password`` that is a function; options that Python's ssl refuses (the error is
then redis-py's, too); the environment variable ``SSLKEYLOGFILE``; an ``ssl`` module
whose contexts are not Python's own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import RedisSSLContext, SSLConnection

if TYPE_CHECKING:
    import ssl
else:
    try:
        import ssl
    except ImportError:  # then there is no SSLConnection that could be made, either
        ssl = None

__all__ = ["tls_options"]

_LONGEST_PASSWORD = 1024  # of a key; OpenSSL's limit, and Python's
_REFUSED = (ValueError, TypeError, AttributeError, OSError)  # by Python's ssl


def _context(wanted: RedisSSLContext) -> ssl.SSLContext:
    """RedisSSLContext.get() without the certificates."""
    # Folders of certificates are looked into when one is needed; to name one costs
    # nothing, and to name none has the system's certificates loaded: 50 ms.
    context = ssl.create_default_context(capath=os.devnull)
    context.check_hostname = wanted.check_hostname
    context.verify_mode = ssl.VerifyMode(wanted.cert_reqs)
    for flag in wanted.include_verify_flags or ():
        context.verify_flags |= flag
    for flag in wanted.exclude_verify_flags or ():
        context.verify_flags &= ~flag
    if wanted.min_version is not None:
        context.minimum_version = wanted.min_version
    if wanted.ciphers is not None:
        context.set_ciphers(wanted.ciphers)
    return context


def _version(version: int) -> int:
    """OpenSSL's number; 0 for Python's two that mean no limit."""
    return max(int(version), 0)


def _path(path: Any) -> bytes | None:
    return None if path is None else os.fsencode(path)


def _ca_data(data: Any) -> bytes | None:
    if data is None:
        return None
    if isinstance(data, str):
        return data.encode("ascii")
    return bytes(memoryview(data))


def _password(password: Any) -> bytes | None:
    if password is None:
        return None
    secret = password.encode() if isinstance(password, str) else bytes(memoryview(password))
    if len(secret) > _LONGEST_PASSWORD:
        raise ValueError("the password is too long")
    return secret


def _authorities(wanted: RedisSSLContext) -> dict[str, Any]:
    """Who may have signed the server's certificate."""
    system = ssl.get_default_verify_paths()
    sources = (wanted.ca_certs, wanted.ca_data, wanted.ca_path)
    options: dict[str, Any] = {
        "system_ca_file": _path(system.cafile),
        "system_ca_path": _path(system.capath),
    }
    if not any(sources):
        return options
    if not all(source or source is None for source in sources):
        raise ValueError("an empty source of certificates beside another one")
    return {
        **options,
        "ca_file": _path(wanted.ca_certs),
        "ca_path": _path(wanted.ca_path),
        "ca_data": _ca_data(wanted.ca_data),
        "ca_data_pem": isinstance(wanted.ca_data, str),
    }


def _certificate(wanted: RedisSSLContext) -> dict[str, Any]:
    """What the client shows for itself."""
    if not (wanted.certfile or wanted.keyfile):
        return {}
    if not wanted.certfile:
        raise ValueError("a key without a certificate")
    return {
        "cert_file": _path(wanted.certfile),
        "key_file": _path(wanted.keyfile),
        "key_password": _password(wanted.password),
    }


def _options(connection: SSLConnection) -> dict[str, Any]:
    wanted = connection.ssl_context
    context = _context(wanted)
    ciphers = [row["name"] for row in context.get_ciphers() if row["protocol"] != "TLSv1.3"]
    return {
        "host": str(connection.host).encode("idna"),
        "check_host": context.check_hostname,
        "verify": context.verify_mode != ssl.CERT_NONE,
        "verify_flags": int(context.verify_flags),
        "options": int(context.options) & 0xFFFFFFFFFFFFFFFF,
        "min_version": _version(context.minimum_version),
        "max_version": _version(context.maximum_version),
        "security_level": context.security_level,
        "ciphers": ":".join(ciphers).encode() or None,
        **_authorities(wanted),
        **_certificate(wanted),
    }


def tls_options(connection: SSLConnection) -> dict[str, Any] | None:
    """How a native connection is to be encrypted as connection would be.

    Args:
        connection: one of redis-py's that was made and not connected.

    Returns:
        The option ``tls`` of a native channel, or None where connection has to
        connect itself: see the module's description.
    """
    if os.environ.get("SSLKEYLOGFILE") or ssl.SSLContext.__module__ != "ssl":
        return None
    try:
        return _options(connection)
    except _REFUSED:
        return None
