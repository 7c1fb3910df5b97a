"""TLS: who is trusted and who is not, option by option as redis.asyncio has it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import offloop.redis as aioredis
import pytest
import redis.asyncio as original
from certificates import KEY_PASSWORD, Certificates
from driving import outcome, within
from proxy import Proxy
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError
from secured import SecuredServer

Flags = ssl.VerifyFlags


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


class Servers:
    """One server for each certificate and configuration, started at the first use."""

    def __init__(self, made: Certificates, stack: contextlib.ExitStack) -> None:
        self.made = made
        self.stack = stack
        self.running: dict[tuple[str, ...], SecuredServer] = {}

    def get(self, pair: str, **options: str) -> SecuredServer:
        key = (pair, *sorted(map(str, options.items())))
        if key not in self.running:
            server = SecuredServer(self.made, getattr(self.made, pair), **options)
            self.running[key] = server
            self.stack.enter_context(server)
        return self.running[key]


@pytest.fixture(scope="module")
def servers(made: Certificates) -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(made, stack)


def no_retries() -> Retry:
    return Retry(NoBackoff(), 0)


async def ping(module: Any, **options: Any) -> tuple[Any, bool]:
    """What PING ends in, and whether a native connection was used."""
    client = module.Redis(
        **{"retry": no_retries(), "socket_connect_timeout": 50, "socket_timeout": 50, **options}
    )
    try:
        value = await within(outcome(client.ping()))
        native = module is aioredis and client._open_channel() is not None
        return value, native
    finally:
        await client.aclose()


def text_of(path: str | Path) -> str:
    return Path(path).read_text()


# Server certificate, client options (of the certificates), and how it ends: None for well.
MATRIX: dict[str, tuple[str, Callable[[Certificates], dict[str, Any]], str | None]] = {
    "trusted": ("server", lambda made: {}, None),
    "by address": ("server", lambda made: {"host": "127.0.0.1"}, None),
    "by IPv6 address": ("server", lambda made: {"host": "::1"}, None),
    "name in the subject": ("named", lambda made: {}, None),
    "address not in it": (
        "named",
        lambda made: {"host": "127.0.0.1"},
        "IP address mismatch, certificate is not valid for '127.0.0.1'",
    ),
    "wrong host": (
        "elsewhere",
        lambda made: {},
        "Hostname mismatch, certificate is not valid for 'localhost'",
    ),
    "wrong address": ("elsewhere", lambda made: {"host": "127.0.0.1"}, "IP address mismatch"),
    "wrong host allowed": ("elsewhere", lambda made: {"ssl_check_hostname": False}, None),
    "wrong host, nothing verified": ("elsewhere", lambda made: {"ssl_cert_reqs": "none"}, None),
    "expired": ("expired", lambda made: {}, "certificate has expired"),
    "expired, name unchecked": (
        "expired",
        lambda made: {"ssl_check_hostname": False},
        "certificate has expired",
    ),
    "untrusted": ("untrusted", lambda made: {}, "unable to get local issuer certificate"),
    "untrusted, optional": (
        "untrusted",
        lambda made: {"ssl_cert_reqs": "optional"},
        "unable to get local issuer certificate",
    ),
    "untrusted, optional by number": (
        "untrusted",
        lambda made: {"ssl_cert_reqs": ssl.CERT_OPTIONAL},
        "unable to get local issuer certificate",
    ),
    "untrusted, not verified": ("untrusted", lambda made: {"ssl_cert_reqs": ssl.CERT_NONE}, None),
    "self-signed": ("self_signed", lambda made: {}, "self-signed certificate"),
    "self-signed, trusted itself": (
        "self_signed",
        lambda made: {
            "ssl_ca_certs": str(made.self_signed[0]),
            "ssl_exclude_verify_flags": [Flags.VERIFY_X509_STRICT],
        },
        None,
    ),
    "the system's authorities alone": (
        "server",
        lambda made: {"ssl_ca_certs": None},
        "self-signed certificate in certificate chain",
    ),
    "authority as text": (
        "server",
        lambda made: {"ssl_ca_certs": None, "ssl_ca_data": text_of(made.ca)},
        None,
    ),
    "authorities as text": (
        "server",
        lambda made: {
            "ssl_ca_certs": None,
            "ssl_ca_data": text_of(made.stranger.certificate) + "and\n" + text_of(made.ca),
        },
        None,
    ),
    "authority as DER": (
        "server",
        lambda made: {"ssl_ca_certs": None, "ssl_ca_data": made.ca_der * 2},
        None,
    ),
    "authority in a folder": (
        "server",
        lambda made: {"ssl_ca_certs": None, "ssl_ca_path": str(made.ca_folder)},
        None,
    ),
    "authority by Path": ("server", lambda made: {"ssl_ca_certs": Path(made.ca)}, None),
    "no such authority": (
        "server",
        lambda made: {"ssl_ca_certs": "/nowhere/ca.pem"},
        "No such file or directory",
    ),
    "text that is no certificate": ("server", lambda made: {"ssl_ca_data": "x"}, "no start line"),
    "bytes that are no certificate": (
        "server",
        lambda made: {"ssl_ca_data": b"x"},
        "ssl_ca|cadata",
    ),
    "broken second certificate": (
        "server",
        lambda made: {"ssl_ca_data": made.ca_der + made.ca_der[:40]},
        "ssl_ca_data|not enough data",
    ),
    "version 1.3 wanted": (
        "server",
        lambda made: {"ssl_min_version": ssl.TLSVersion.TLSv1_3},
        None,
    ),
    "a cipher": ("server", lambda made: {"ssl_ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256"}, None),
    "strict": (
        "server",
        lambda made: {"ssl_include_verify_flags": [Flags.VERIFY_X509_STRICT]},
        None,
    ),
    "not strict enough": (
        "loose",
        lambda made: {"ssl_include_verify_flags": [Flags.VERIFY_X509_STRICT]},
        "Missing Authority Key Identifier",
    ),
    "strictness excluded": (
        "loose",
        lambda made: {
            "ssl_include_verify_flags": [Flags.VERIFY_X509_STRICT],
            "ssl_exclude_verify_flags": [Flags.VERIFY_X509_STRICT],
        },
        None,
    ),
    "no list of revocations": (
        "server",
        lambda made: {"ssl_include_verify_flags": [Flags.VERIFY_CRL_CHECK_LEAF]},
        "unable to get certificate CRL",
    ),
    "not revoked": (
        "server",
        lambda made: {
            "ssl_ca_certs": str(made.revocations),
            "ssl_include_verify_flags": [Flags.VERIFY_CRL_CHECK_LEAF],
        },
        None,
    ),
    "revoked": (
        "revoked",
        lambda made: {
            "ssl_ca_certs": str(made.revocations),
            "ssl_include_verify_flags": [Flags.VERIFY_CRL_CHECK_LEAF],
        },
        "certificate revoked",
    ),
}


@pytest.mark.parametrize("case", MATRIX)
async def test_who_is_trusted(servers: Servers, case: str) -> None:
    """As redis.asyncio, and natively."""
    pair, options, text = MATRIX[case]
    server = servers.get(pair)
    wanted = {**server.tls, **options(servers.made)}
    if wanted["host"] == "::1":
        with socket.socket(socket.AF_INET6) as probe:
            if probe.connect_ex(("::1", server.tls_port)):
                pytest.skip("no IPv6 here")
    theirs, _ = await ping(original, **wanted)
    ours, native = await ping(aioredis, **wanted)
    assert native
    if text is None:
        assert (theirs, ours) == (True, True)
        return
    for error in (theirs, ours):
        assert type(error) is ConnectionError, error
        words = text.split("|")
        assert any(word in str(error) for word in words), error
    assert f" connecting to {wanted['host']}:{server.tls_port}. " in str(ours)
    assert "may have run" not in str(ours)


CLIENT: dict[str, tuple[Callable[[Certificates], dict[str, Any]], str | None]] = {
    "none": (lambda made: {}, "certificate required"),
    "certificate and key": (
        lambda made: {"ssl_certfile": str(made.client[0]), "ssl_keyfile": str(made.client[1])},
        None,
    ),
    "in one file": (lambda made: {"ssl_certfile": made.client_in_one}, None),
    "encrypted": (
        lambda made: {
            "ssl_certfile": str(made.client[0]),
            "ssl_keyfile": str(made.encrypted_key),
            "ssl_password": KEY_PASSWORD,
        },
        None,
    ),
    "encrypted, password as bytes": (
        lambda made: {
            "ssl_certfile": str(made.client[0]),
            "ssl_keyfile": str(made.encrypted_key),
            "ssl_password": KEY_PASSWORD.encode(),
        },
        None,
    ),
    "wrong password": (
        lambda made: {
            "ssl_certfile": str(made.client[0]),
            "ssl_keyfile": str(made.encrypted_key),
            "ssl_password": "not " + KEY_PASSWORD,
        },
        "bad decrypt|PEM lib",
    ),
    "key of another": (
        lambda made: {"ssl_certfile": str(made.client[0]), "ssl_keyfile": str(made.server[1])},
        "key values mismatch",
    ),
    "no such certificate": (
        lambda made: {"ssl_certfile": "/nowhere/cert.pem"},
        "No such file or directory",
    ),
    "no such key": (
        lambda made: {"ssl_certfile": str(made.client[0]), "ssl_keyfile": "/nowhere/key.pem"},
        "No such file or directory",
    ),
    "no key in the file": (lambda made: {"ssl_certfile": made.ca}, "the key|PEM lib"),
    "of an authority that the server does not know": (
        lambda made: {
            "ssl_certfile": str(made.untrusted[0]),
            "ssl_keyfile": str(made.untrusted[1]),
        },
        "unknown ca",
    ),
}


@pytest.mark.parametrize("versions", ["TLSv1.3", "TLSv1.2"])
@pytest.mark.parametrize("case", CLIENT)
async def test_client_certificates(servers: Servers, case: str, versions: str) -> None:
    options, text = CLIENT[case]
    server = servers.get("server", tls_auth_clients="yes", tls_protocols=versions)
    wanted = {**server.tls, **options(servers.made)}
    theirs, _ = await ping(original, **wanted)
    ours, native = await ping(aioredis, **wanted)
    assert native
    if text is None:
        assert (theirs, ours) == (True, True)
        return
    assert type(theirs) is ConnectionError, theirs
    assert type(ours) is ConnectionError, ours
    words = [*text.split("|"), *(["handshake failure"] if versions == "TLSv1.2" else [])]
    assert any(word in str(ours) for word in words), ours
    assert f"localhost:{server.tls_port}" in str(ours)
    assert KEY_PASSWORD not in str(ours)


async def test_an_encrypted_key_without_a_password_is_no_question_at_the_terminal(
    servers: Servers,
) -> None:
    made = servers.made
    server = servers.get("server", tls_auth_clients="yes")
    error, native = await ping(
        aioredis,
        **server.tls,
        ssl_certfile=str(made.client[0]),
        ssl_keyfile=str(made.encrypted_key),
    )
    assert native
    assert type(error) is ConnectionError and "without ssl_password" in str(error), error


@pytest.mark.parametrize(
    ("protocols", "options", "text"),
    [
        ("TLSv1.2", {"ssl_min_version": ssl.TLSVersion.TLSv1_3}, "version"),
        ("TLSv1.2", {"ssl_min_version": ssl.TLSVersion.TLSv1_2}, None),
        ("TLSv1.2", {"ssl_min_version": ssl.TLSVersion.MINIMUM_SUPPORTED}, None),
        ("TLSv1.3", {"ssl_min_version": ssl.TLSVersion.TLSv1_2}, None),
        ("TLSv1.2", {"ssl_ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256"}, "handshake failure"),
        ("TLSv1.2", {"ssl_ciphers": "ECDHE-ECDSA-AES256-GCM-SHA384"}, None),
    ],
)
async def test_versions_and_ciphers(
    servers: Servers, protocols: str, options: dict[str, Any], text: str | None
) -> None:
    server = servers.get(
        "server", tls_protocols=protocols, tls_ciphers="ECDHE-ECDSA-AES256-GCM-SHA384"
    )
    for module in (original, aioredis):
        value, native = await ping(module, **server.tls, **options)
        assert native == (module is aioredis)
        if text is None:
            assert value is True
        else:
            assert type(value) is ConnectionError and text in str(value), value


async def test_urls(servers: Servers) -> None:
    server = servers.get("server")
    query = (
        "&ssl_min_version=772&ssl_cert_reqs=required&ssl_check_hostname=true"
        "&ssl_include_verify_flags=[VERIFY_X509_STRICT,VERIFY_X509_PARTIAL_CHAIN]"
        "&ssl_ciphers=ECDHE-ECDSA-AES256-GCM-SHA384"
    )
    async with aioredis.from_url(server.tls_url + query) as client:
        assert await client.ping() is True
        assert client.stats()["tls_handshakes"] == 1
    # The name is checked unless the URL says otherwise.
    other = servers.get("elsewhere")
    async with aioredis.from_url(other.tls_url, retry=no_retries()) as client:
        with pytest.raises(ConnectionError, match="Hostname mismatch"):
            await client.ping()
    async with aioredis.from_url(other.tls_url + "&ssl_check_hostname=no") as client:
        assert await client.ping() is True
        assert client.stats()["tls_handshakes"] == 1


OWN_WAY: dict[str, tuple[Callable[[Certificates], dict[str, Any]], str | None]] = {
    "a password that is a function": (
        lambda made: {
            "ssl_certfile": str(made.client[0]),
            "ssl_keyfile": str(made.encrypted_key),
            "ssl_password": lambda: KEY_PASSWORD,
        },
        None,
    ),
    "a key without a certificate": (
        lambda made: {"ssl_keyfile": str(made.client[1])},
        "certfile should be a valid filesystem path",
    ),
    "no such cipher": (lambda made: {"ssl_ciphers": "NONSENSE"}, "No cipher can be selected"),
    "an empty source": (lambda made: {"ssl_ca_data": ""}, "Empty certificate data"),
    "a version that is none": (lambda made: {"ssl_min_version": 5}, "5"),
}


@pytest.mark.parametrize("case", OWN_WAY)
async def test_what_goes_redis_pys_own_way(servers: Servers, case: str) -> None:
    """What it cannot be natively, it is as before: the same result, the same error."""
    options, text = OWN_WAY[case]
    server = servers.get("server", tls_auth_clients="optional")
    wanted = {**server.tls, **options(servers.made)}
    theirs, _ = await ping(original, **wanted)
    ours, native = await ping(aioredis, **wanted)
    assert not native
    if text is None:
        assert (theirs, ours) == (True, True)
    else:
        assert type(ours) is type(theirs) and text in str(ours) and str(theirs) == str(ours)


async def test_key_log(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants the keys of a session, to look into it, gets them."""
    log = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    value, native = await ping(aioredis, **servers.get("server").tls)
    assert (value, native) == (True, False)
    assert "SECRET" in log.read_text()


async def test_the_systems_authorities(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenSSL's environment variables say."""
    wanted = {**servers.get("server").tls, "ssl_ca_certs": None}
    monkeypatch.setenv("SSL_CERT_FILE", servers.made.ca)
    assert await ping(aioredis, **wanted) == (True, True)
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", str(servers.made.ca_folder))
    assert await ping(aioredis, **wanted) == (True, True)


# ---- what is not TLS ---------------------------------------------------------------------


async def test_a_port_that_answers_in_the_clear(servers: Servers) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        port = listener.getsockname()[1]
        loop = asyncio.get_running_loop()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"-ERR unknown command\r\n")
                peer.recv(1000)

        answered = loop.run_in_executor(None, answer)
        error, _ = await ping(aioredis, **{**servers.get("server").tls, "port": port})
        await answered
    assert type(error) is ConnectionError, error
    assert "WRONG_VERSION_NUMBER" in str(error) and "is it a port for TLS?" in str(error)


async def test_a_plain_port_that_waits(servers: Servers) -> None:
    server = servers.get("server")
    error, _ = await ping(
        aioredis, **{**server.tls, "port": server.port, "socket_connect_timeout": 0.3}
    )
    assert type(error) in (TimeoutError, ConnectionError), error
    assert f"localhost:{server.port}" in str(error)


async def test_a_plain_client_at_the_port_for_tls(servers: Servers) -> None:
    server = servers.get("server")
    error, native = await ping(aioredis, host="localhost", port=server.tls_port)
    assert native
    assert isinstance(error, (ConnectionError, RedisError)), error


async def test_a_stalled_handshake(servers: Servers) -> None:
    server = servers.get("server")
    with Proxy(f"127.0.0.1:{server.tls_port}") as proxy:
        proxy.silence(True)
        wanted = {**server.tls, "port": proxy.port}
        error, _ = await ping(aioredis, **wanted, socket_connect_timeout=1.0)
        assert type(error) is TimeoutError, error
        assert "in the handshake of TLS" in str(error) and "not executed" in str(error)
        # A call's own time ends it as well, and others' go on.
        client = aioredis.Redis(**wanted, socket_timeout=0.2, socket_connect_timeout=60)
        error = await within(outcome(client.ping()))
        assert type(error) is TimeoutError and "not executed" in str(error), error
        proxy.silence(False)
        await client.aclose()


# ---- secrets -----------------------------------------------------------------------------


async def test_no_secret_shows(made: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with SecuredServer(made, requirepass="sesame", tls_auth_clients="yes") as server:
        wanted = {
            **server.tls,
            "ssl_certfile": str(made.client[0]),
            "ssl_keyfile": str(made.encrypted_key),
            "ssl_password": KEY_PASSWORD,
            "retry": no_retries(),
        }
        said = []
        async with aioredis.Redis(**wanted) as client:
            assert await client.ping() is True
            said += [repr(client), repr(client.connection_pool), repr(client._open_channel())]
        wrong: list[tuple[dict[str, Any], type[Exception]]] = [
            ({"password": "wrong-sesame"}, AuthenticationError),
            ({"ssl_password": "wrong " + KEY_PASSWORD}, ConnectionError),
            ({"ssl_ca_certs": "/nowhere"}, ConnectionError),
            ({"host": "127.0.0.2"}, ConnectionError),
        ]
        for change, kind in wrong:
            async with aioredis.Redis(**{**wanted, **change}) as client:
                error = await within(outcome(client.ping()))
                assert isinstance(error, kind), error
                said += ["".join(traceback.format_exception(error)), repr(client), repr(error)]
        for text in [*said, caplog.text]:
            assert "sesame" not in text and KEY_PASSWORD not in text
