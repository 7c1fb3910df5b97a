"""Passwords, ACL users, credential providers; and that no secret shows anywhere."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Iterator
from typing import Any

import offloop.redis as aioredis
import pytest
from driving import outcome
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    DataError,
    NoPermissionError,
    RedisError,
)
from servers import Server

SECRET = "s3cret-p\xe4ss"
USER_SECRET = "user-s3cret"


@pytest.fixture(scope="module")
def _locked() -> Iterator[Server]:
    with Server(requirepass=SECRET) as server:
        server.cmd("ACL", "SETUSER", "reader", "on", f">{USER_SECRET}", "~*", "+@read", "+ping",
                   "+client", "+hello", "+auth", "+select")  # fmt: skip
        yield server


@pytest.fixture
def locked(_locked: Server) -> Server:
    return _locked


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
async def test_requirepass(locked: Server, transport: str, protocol: int) -> None:
    where = locked.tcp if transport == "tcp" else locked.unix
    async with aioredis.Redis(**where, protocol=protocol) as client:
        assert await client.ping() is True


@pytest.mark.parametrize("protocol", [2, 3])
async def test_an_acl_user(locked: Server, protocol: int) -> None:
    async with aioredis.Redis(
        host="127.0.0.1", port=locked.port, username="reader", password=USER_SECRET,
        protocol=protocol,
    ) as client:  # fmt: skip
        assert await client.get("absent") is None
        with pytest.raises(NoPermissionError):
            await client.set("k", "v")
        # An error of one command leaves the connection as it is.
        assert await client.get("absent") is None
        assert client.stats()["connects"] == 1


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    "credentials", [{"password": "wrong"}, {"username": "nobody", "password": "wrong"}]
)
async def test_wrong_credentials(
    locked: Server, protocol: int, credentials: dict[str, str]
) -> None:
    async with aioredis.Redis(
        host="127.0.0.1", port=locked.port, protocol=protocol, **credentials
    ) as client:
        calls = [client.get("k") for _ in range(20)]
        for call in calls:
            with pytest.raises(AuthenticationError) as raised:
                await call
            assert "wrong" not in str(raised.value).replace("wrong-password", "").replace(
                "WRONGPASS", ""
            )
        with pytest.raises(AuthenticationError):
            await client.ping()


async def test_no_password_given(locked: Server) -> None:
    async with aioredis.Redis(host="127.0.0.1", port=locked.port, protocol=2, retry=None) as client:
        with pytest.raises(AuthenticationError):
            await client.ping()


async def test_from_url_with_quoted_secrets(locked: Server) -> None:
    for url in (
        f"redis://:s3cret-p%C3%A4ss@127.0.0.1:{locked.port}/1",
        f"redis://default:s3cret-p%C3%A4ss@127.0.0.1:{locked.port}",
        f"unix://:s3cret-p%C3%A4ss@{locked.path}",
        f"redis://127.0.0.1:{locked.port}?password=s3cret-p%C3%A4ss",
    ):
        async with aioredis.Redis.from_url(url) as client:
            assert await client.ping() is True


async def test_a_password_with_every_kind_of_byte(own_server: Server) -> None:
    password = 'a b"c\\d\u2603\r\nx'
    own_server.cmd("CONFIG", "SET", "requirepass", password)
    own_server.password = password
    async with aioredis.Redis(**own_server.unix) as client:
        assert await client.ping() is True


# --- credential providers ---------------------------------------------------------------


class Provider(CredentialProvider):
    """Gives what it is told to; counts how often it was asked."""

    def __init__(self, *credentials: str) -> None:
        self.credentials = credentials
        self.asked = 0

    def get_credentials(self) -> Any:
        self.asked += 1
        return self.credentials


class AsyncProvider(Provider):
    """Only the asynchronous face works."""

    def get_credentials(self) -> Any:
        raise AssertionError("the blocking face was asked")

    async def get_credentials_async(self) -> Any:
        await asyncio.sleep(0)
        self.asked += 1
        return self.credentials


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", [Provider, AsyncProvider])
async def test_credential_provider(locked: Server, kind: type[Provider], protocol: int) -> None:
    provider = kind("reader", USER_SECRET)
    async with aioredis.Redis(
        host="127.0.0.1", port=locked.port, credential_provider=provider, protocol=protocol
    ) as client:
        assert await client.get("absent") is None
        assert provider.asked >= 1
        asked = provider.asked
        # Asked again for each new connection: what it gives may have changed.
        locked.kill_clients()
        give_up = time.monotonic() + 60
        while await outcome(client.get("absent")) is not None or provider.asked == asked:
            assert time.monotonic() < give_up, "it was not asked again"
            await asyncio.sleep(0.02)


async def test_a_credential_provider_with_a_password_alone(locked: Server) -> None:
    async with aioredis.Redis(
        host="127.0.0.1", port=locked.port, credential_provider=Provider(SECRET)
    ) as client:
        assert await client.ping() is True


@pytest.mark.parametrize("kind", [Provider, AsyncProvider])
async def test_a_credential_provider_that_raises(locked: Server, kind: type[Provider]) -> None:
    class Broken(kind):  # type: ignore[misc, valid-type]
        broken = True

        def get_credentials(self) -> Any:
            if self.broken:
                raise LookupError("vault is sealed")
            return (SECRET,)

        async def get_credentials_async(self) -> Any:
            return self.get_credentials()

    provider = Broken()
    async with aioredis.Redis(
        host="127.0.0.1", port=locked.port, credential_provider=provider
    ) as client:
        with pytest.raises((LookupError, RedisError), match="sealed"):
            await client.ping()
        provider.broken = False
        assert await client.ping() is True


async def test_password_and_provider_exclude_each_other(locked: Server) -> None:
    with pytest.raises(DataError):
        async with aioredis.Redis(**locked.tcp, credential_provider=Provider("a", "b")) as client:
            await client.ping()


# --- secrets ------------------------------------------------------------------------------


def shown(*things: object) -> str:
    return "\n".join(f"{thing!r} {thing}" for thing in things)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_no_secret_in_repr_logs_or_errors(
    locked: Server, caplog: pytest.LogCaptureFixture, protocol: int
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    secret = "h1dden"
    made = [
        {"password": secret},
        {"username": "reader", "password": secret},
        {"credential_provider": Provider("reader", secret)},
    ]
    for options in made:
        client = aioredis.Redis(
            host="127.0.0.1",
            port=locked.port,
            protocol=protocol,
            **options,  # type: ignore[arg-type]
        )
        call = client.get("k")
        texts.append(shown(client, client.connection_pool, call, client.stats()))
        with pytest.raises(ConnectionError) as raised:
            await call
        texts.append(shown(raised.value, raised.value.__cause__, raised.value.__context__))
        # The source lines of this test name no secret by value: only messages could.
        texts.append("".join(traceback.format_exception(raised.value)))
        texts.append(shown(client, client.connection_pool))
        await client.aclose()
    client = aioredis.Redis.from_url(f"redis://reader:{secret}@127.0.0.1:1/0")
    with pytest.raises(ConnectionError) as raised:
        await client.ping()
    texts.append(shown(client, raised.value))
    await client.aclose()
    texts.append(caplog.text)
    assert secret not in "\n".join(texts)


async def test_a_bad_url_or_option_does_not_show_the_secret() -> None:
    secret = "h1dden"
    for make in (
        lambda: aioredis.Redis.from_url(f"redis://:{secret}@host:1/?workers=none"),
        lambda: aioredis.Redis.from_url(f"http://:{secret}@host:1/"),
        lambda: aioredis.Redis(password=secret, workers=0),
        lambda: aioredis.Redis(password=secret, no_such_option=1),
    ):
        with pytest.raises((ValueError, TypeError)) as raised:
            make()
        assert secret not in shown(raised.value)
