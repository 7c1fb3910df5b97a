"""redis-py's OpenTelemetry metrics: recorded once an application has switched them on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest import mock

import offloop.redis as aioredis
import pytest
from redis.asyncio.observability import recorder
from redis.observability import providers
from redis.observability.metrics import RedisMetricsCollector
from servers import Server


@pytest.fixture
def collector() -> Iterator[mock.Mock]:
    """redis-py's collector is in place, as after the first command with metrics on."""
    with mock.patch.object(recorder, "_async_metrics_collector", mock.Mock(RedisMetricsCollector)):
        yield recorder._async_metrics_collector


def recorded(collector: mock.Mock) -> list[str]:
    """The names of the commands that were recorded, in order."""
    calls = collector.record_operation_duration.call_args_list
    return [call.kwargs["command_name"] for call in calls]


async def test_commands_are_recorded(server: Server, collector: mock.Mock) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        await client.set("k", 1)
        assert await client.get("k") == b"1"
        await client.execute_command("CLIENT ID")
        assert recorded(collector) == ["SET", "GET", "CLIENT ID"]
        call = collector.record_operation_duration.call_args_list[0].kwargs
        assert call["server_port"] == server.port
        assert call["duration_seconds"] > 0


async def test_pipelines_are_recorded(server: Server, collector: mock.Mock) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        assert await client.pipeline().set("k", 1).get("k").execute() == [True, b"1"]
        assert await client.pipeline(transaction=False).get("k").execute() == [b"1"]
        assert recorded(collector) == ["MULTI", "PIPELINE"]


async def test_errors_are_recorded(server: Server, collector: mock.Mock) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        with pytest.raises(aioredis.ResponseError):
            await client.execute_command("NO SUCH COMMAND")
        (call,) = collector.record_error_count.call_args_list
        assert isinstance(call.kwargs["error_type"], aioredis.ResponseError)
    del call
    collector.reset_mock()  # the error it holds has a traceback, and that the client


async def test_streams_are_recorded(server: Server, collector: mock.Mock) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        await client.xadd("s", {"a": 1})
        assert await client.xread({"s": "0"})
        assert collector.record_streaming_lag.call_count == 1
        await client.xgroup_create("s", "g", "0")
        assert await client.xreadgroup("g", "c", {"s": ">"}, count=1, block=1000)
        assert collector.record_streaming_lag.call_count == 2


async def test_switched_on_later(server: Server) -> None:
    """A client that has commands behind it sees it at the next one."""
    async with aioredis.Redis(**server.tcp) as client:
        await client.set("k", 1)
        with mock.patch.object(
            recorder, "_async_metrics_collector", mock.Mock(RedisMetricsCollector)
        ) as collector:
            await client.get("k")
            assert recorded(collector) == ["GET"]
        native = client.stats()["commands"]
        await client.get("k")
        assert recorded(collector) == ["GET"]
        assert client.stats()["commands"] == native + 1


async def test_a_busy_client_sees_it_soon(server: Server) -> None:
    async with aioredis.Redis(**server.tcp) as client:
        done = False

        async def busy() -> None:
            while not done:
                await client.get("k")

        tasks = [asyncio.create_task(busy()) for _ in range(20)]
        await asyncio.sleep(0.05)
        with mock.patch.object(
            recorder, "_async_metrics_collector", mock.Mock(RedisMetricsCollector)
        ) as collector:
            give_up = asyncio.get_running_loop().time() + 60
            while not recorded(collector):
                assert asyncio.get_running_loop().time() < give_up
                await asyncio.sleep(0.01)
        done = True
        await asyncio.gather(*tasks)


async def test_an_instance_that_was_never_initialised_is_off(server: Server) -> None:
    """redis-py makes one by itself; only init() switches metrics on."""
    with mock.patch.object(providers, "_observability_instance", None):
        instance = providers.get_observability_instance()
        async with aioredis.Redis(**server.tcp) as client:
            await client.ping()
            assert client.stats()["commands"] == 1
            with mock.patch.object(instance, "_provider_manager", mock.Mock()):
                await client.ping()
            assert client.stats()["commands"] == 1
            await client.ping()
            assert client.stats()["commands"] == 2


async def test_the_real_thing(server: Server) -> None:
    metrics = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    api = pytest.importorskip("opentelemetry.metrics")
    config: Any = pytest.importorskip("redis.observability.config")
    reader = export.InMemoryMetricReader()
    api.set_meter_provider(metrics.MeterProvider([reader]))
    recorder.reset_collector()
    instance = providers.get_observability_instance()
    try:
        instance.init(config.OTelConfig(metric_groups=[config.MetricGroup.COMMAND]))
        async with aioredis.Redis(**server.tcp) as client:
            await client.set("k", 1)
        text = reader.get_metrics_data().to_json()
        assert "db.client.operation.duration" in text
        assert '"SET"' in text
    finally:
        instance.shutdown()
        providers.reset_observability_instance()
        recorder.reset_collector()
