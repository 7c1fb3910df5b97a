"""docs/compatibility.md against redis-py's public API: nothing is missing, nothing is made up."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import offloop.redis
import offloop.redis.connection
import pytest
import redis.asyncio
import redis.asyncio.connection

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "compatibility.md").read_text()


def section(title: str) -> str:
    """The text of a `## title` section."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found.group(1)


def table(title: str) -> dict[str, str]:
    """Each name in the first column of a section's table, and what its row says."""
    rows: dict[str, str] = {}
    for line in section(title).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `"):
            continue
        for name in re.findall(r"`([^`]+)`", cells[0]):
            assert name not in rows, f"{name} is there twice"
            rows[name] = cells[1]
    assert rows
    return rows


def modules() -> Iterator[str]:
    """The names of redis.asyncio's public modules, without the prefix."""
    for found in pkgutil.walk_packages(redis.asyncio.__path__, "redis.asyncio."):
        name = found.name.removeprefix("redis.asyncio.")
        if not any(part.startswith("_") for part in name.split(".")):
            yield name


def ours(name: str) -> ModuleType:
    """Our module of that name; skips where redis-py's needs an extra that is not here."""
    try:
        importlib.import_module(f"redis.asyncio.{name}")
    except ModuleNotFoundError as error:
        pytest.skip(f"redis.asyncio.{name} needs {error.name}")
    return importlib.import_module(f"offloop.redis.{name}")


def test_every_name_is_exported_and_on_the_page() -> None:
    exported = set(redis.asyncio.__all__)
    assert set(offloop.redis.__all__) == exported
    assert set(table("Names")) == exported


@pytest.mark.parametrize("name", redis.asyncio.__all__)
def test_a_name_is_whose_the_page_says(name: str) -> None:
    same = getattr(offloop.redis, name) is getattr(redis.asyncio, name)
    says = table("Names")[name]
    if says.startswith("redis-py's own"):
        assert same
    elif says.startswith("ours"):
        assert not same


def test_every_module_is_on_the_page() -> None:
    assert set(table("Modules")) == set(modules())


@pytest.mark.parametrize("name", list(modules()))
def test_a_module_has_what_redis_pys_has(name: str) -> None:
    mine, theirs = ours(name), importlib.import_module(f"redis.asyncio.{name}")
    # A package is its modules, which are tested each by itself.
    if table("Modules")[name].startswith("the very same") and not hasattr(theirs, "__path__"):
        assert mine is theirs
    missing = [
        attribute
        for attribute in vars(theirs)
        if not attribute.startswith("__") and not hasattr(mine, attribute)
    ]
    assert missing == []


def test_modules_are_reached_by_path() -> None:
    for name, value in vars(redis.asyncio).items():
        if isinstance(value, ModuleType) and not name.startswith("_"):
            # Some are there only once somebody has imported them, here as there.
            importlib.import_module(f"offloop.redis.{name}")
            assert isinstance(getattr(offloop.redis, name), ModuleType), name
    assert offloop.redis.cluster.RedisCluster.ALL_NODES == "all"
    assert offloop.redis.lock.Lock is redis.asyncio.lock.Lock
    parsed = offloop.redis.connection.parse_url("redis://h:7/2")
    assert (parsed["host"], parsed["port"], parsed["db"]) == ("h", 7, 2)


def test_a_missing_attribute_of_a_module_is_an_attribute_error() -> None:
    for name in ("client", "connection", "sentinel"):
        with pytest.raises(AttributeError):
            _ = ours(name).no_such_thing


def parameters(function: Any) -> set[str]:
    """The named parameters of a method."""
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def all_options() -> set[str]:
    """Every option of redis-py's clients, pools and connections."""
    connection = redis.asyncio.connection
    classes = [
        redis.asyncio.Redis,
        connection.ConnectionPool,
        connection.BlockingConnectionPool,
        connection.AbstractConnection,
        connection.Connection,
        connection.SSLConnection,
        connection.UnixDomainSocketConnection,
    ]
    options: set[str] = set()
    for each in classes:
        options |= parameters(each.__init__)
    return options


def test_every_option_is_on_the_page() -> None:
    assert set(table("Options")) == all_options() | {"workers", "pool"}


def test_what_differs_says_where() -> None:
    titles = {title.lower().replace(" ", "-") for title in re.findall(r"^### (.*)$", PAGE, re.M)}
    links = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert links
    assert set(links) <= titles
    for name, says in table("Options").items():
        assert not says.startswith("differs") or "](#" in says, name


# A value for each option of the client that differs from the default, so that an option
# which were not accepted, or not kept, is found.
class _Provider(redis.CredentialProvider):
    def get_credentials(self) -> tuple[str]:
        return ("secret",)


CLIENT_VALUES: dict[str, Any] = {
    "host": "127.0.0.2",
    "port": 7777,
    "db": 3,
    "password": "secret",
    "username": "somebody",
    "socket_timeout": 3.5,
    "socket_connect_timeout": 2.5,
    "socket_read_size": 1024,
    "socket_keepalive": False,
    "socket_keepalive_options": {},
    "unix_socket_path": "/tmp/nothing",
    "encoding": "latin-1",
    "encoding_errors": "replace",
    "decode_responses": True,
    "retry": redis.asyncio.retry.Retry(redis.asyncio.default_backoff(), 3),
    "retry_on_error": [redis.BusyLoadingError],
    "ssl_keyfile": "key",
    "ssl_certfile": "cert",
    "ssl_cert_reqs": "optional",
    "ssl_include_verify_flags": [],
    "ssl_exclude_verify_flags": [],
    "ssl_ca_certs": "ca",
    "ssl_ca_data": "data",
    "ssl_ca_path": "path",
    "ssl_check_hostname": False,
    "ssl_min_version": 771,
    "ssl_ciphers": "AES",
    "ssl_password": "pw",
    "max_connections": 7,
    "health_check_interval": 5,
    "client_name": "me",
    "credential_provider": _Provider(),
    "protocol": 2,
    "legacy_responses": False,
}
# Not kept in connection_kwargs under their own names.
OTHERS = {
    "auto_close_connection_pool",
    "connection_pool",
    "driver_info",
    "event_dispatcher",
    "lib_name",
    "lib_version",
    "maint_notifications_config",
    "redis_connect_func",
    "retry_on_timeout",
    "single_connection_client",
    "ssl",
}


def test_every_option_of_the_client_is_tried_below() -> None:
    assert set(CLIENT_VALUES) | OTHERS == parameters(redis.asyncio.Redis.__init__)


@pytest.mark.parametrize("name", CLIENT_VALUES)
def test_an_option_arrives_where_redis_py_puts_it(name: str) -> None:
    extra: dict[str, Any] = {"ssl": True} if name.startswith("ssl_") else {}
    value = CLIENT_VALUES[name]
    theirs = redis.asyncio.Redis(**{name: value}, **extra).connection_pool
    mine = offloop.redis.Redis(**{name: value}, **extra).connection_pool
    if name == "max_connections":
        assert mine.max_connections == theirs.max_connections == value
        return
    key = {"unix_socket_path": "path"}.get(name, name)
    assert mine.connection_kwargs[key] == theirs.connection_kwargs[key] == value
    assert mine.connection_kwargs.keys() == theirs.connection_kwargs.keys()


@pytest.mark.parametrize("name", CLIENT_VALUES)
def test_a_pool_takes_the_option(name: str) -> None:
    key = {"unix_socket_path": "path"}.get(name, name)
    for kind in ("ConnectionPool", "BlockingConnectionPool"):
        mine = getattr(offloop.redis, kind)(**{key: CLIENT_VALUES[name]})
        theirs = getattr(redis.asyncio, kind)(**{key: CLIENT_VALUES[name]})
        assert mine.connection_kwargs.keys() == theirs.connection_kwargs.keys()
        assert mine.max_connections == theirs.max_connections


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://user:p%40ss@h:1/2",
        "redis://h?db=4&socket_timeout=1.5&socket_keepalive=no&protocol=2&health_check_interval=3",
        "redis://h?decode_responses=True&client_name=me&max_connections=9&socket_read_size=9",
        "unix:///a/b.sock?db=1&password=x",
        "unix://user@/a/b.sock",
        "rediss://h?ssl_check_hostname=no&ssl_ca_certs=x&ssl_min_version=771",
    ],
)
def test_a_url_says_what_it_says_in_redis_py(url: str) -> None:
    theirs = redis.asyncio.Redis.from_url(url).connection_pool
    for client in (offloop.redis.Redis.from_url(url), offloop.redis.from_url(url)):
        mine = client.connection_pool
        assert mine.connection_class.__name__ == theirs.connection_class.__name__
        assert mine.max_connections == theirs.max_connections
        ignored = {"himport_registry", "maint_notifications_pool_handler"}
        for key, value in theirs.connection_kwargs.items():
            if key not in ignored and not key.startswith("maint"):
                assert mine.connection_kwargs[key] == value, key


@pytest.mark.parametrize("bad", ["http://h", "redis://h?db=x", "redis://h?socket_timeout=soon"])
def test_a_bad_url_is_the_same_error(bad: str) -> None:
    with pytest.raises(ValueError) as theirs:
        redis.asyncio.Redis.from_url(bad)
    with pytest.raises(ValueError) as mine:
        offloop.redis.Redis.from_url(bad)
    assert str(mine.value) == str(theirs.value)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        offloop.redis.Redis(no_such_option=1)
    with pytest.raises(TypeError):
        offloop.redis.Redis.from_url("redis://h?no_such_option=1").connection_pool.make_connection()


def methods(owner: type) -> set[str]:
    """The public attributes of a class."""
    return {name for name in dir(owner) if not name.startswith("__")}


@pytest.mark.parametrize("name", ["Redis", "ConnectionPool", "BlockingConnectionPool", "Sentinel"])
def test_a_class_of_ours_has_what_redis_pys_has(name: str) -> None:
    mine, theirs = getattr(offloop.redis, name), getattr(redis.asyncio, name)
    assert issubclass(mine, theirs)
    assert methods(theirs) <= methods(mine)


def test_signatures_allow_what_redis_pys_allow() -> None:
    """Whoever asks a method for its parameters finds redis-py's, or any."""
    for name in ("Redis", "ConnectionPool", "BlockingConnectionPool", "Sentinel"):
        mine, theirs = getattr(offloop.redis, name), getattr(redis.asyncio, name)
        for method in sorted(methods(theirs)):
            function = inspect.getattr_static(theirs, method)
            if not inspect.isfunction(function):
                continue
            expected = inspect.signature(getattr(theirs, method))
            found = inspect.signature(getattr(mine, method))
            any_options = any(
                parameter.kind is inspect.Parameter.VAR_KEYWORD
                for parameter in found.parameters.values()
            )
            for parameter in expected.parameters:
                assert any_options or parameter in found.parameters, f"{name}.{method}"


def test_no_attribute_of_a_client_raises() -> None:
    client = offloop.redis.Redis()
    for name in dir(client):
        getattr(client, name)
