"""The command groups of modules, with pipelines of ours.

redis-py's groups (``ft()``, ``json()``, ``ts()``) build pipelines of their own
classes from the client's connection pool. Those of JSON and time series are of its
blocking client, which cannot be awaited; here all three are native pipelines.
"""

from __future__ import annotations

from typing import Any

from redis.commands.json import AsyncJSON
from redis.commands.search import AsyncSearch
from redis.commands.timeseries import AsyncTimeSeries

__all__ = ["JSON", "Search", "TimeSeries"]


class Search(AsyncSearch):
    """``client.ft()``, whose pipeline() is a native one."""

    def __init__(self, client: Any, index_name: Any, pipeline_class: Any) -> None:
        super().__init__(client=client, index_name=index_name)  # type: ignore[no-untyped-call]
        self._pipeline_class = pipeline_class

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """A pipeline that has the commands of the search module too."""
        client: Any = self.client
        made = self._pipeline_class(
            client.connection_pool, client.response_callbacks, transaction, shard_hint
        )
        made.index_name = self.index_name
        return made


class JSON(AsyncJSON):
    """``client.json()``, whose pipeline() is a native one."""

    def __init__(self, client: Any, encoder: Any, decoder: Any, pipeline_class: Any) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            client=client, encoder=encoder, decoder=decoder
        )
        self._pipeline_class = pipeline_class

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """A pipeline that has the commands of the JSON module."""
        client: Any = self.client
        made = self._pipeline_class(
            client.connection_pool, dict(client.response_callbacks), transaction, shard_hint
        )
        made._encode = self._encode
        made._decode = self._decode
        return made


class TimeSeries(AsyncTimeSeries):
    """``client.ts()``, whose pipeline() is a native one."""

    def __init__(self, client: Any, pipeline_class: Any) -> None:
        super().__init__(client=client)  # type: ignore[no-untyped-call]
        self._pipeline_class = pipeline_class

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """A pipeline that has the commands of the time series module."""
        client: Any = self.client
        return self._pipeline_class(
            client.connection_pool, self._MODULE_CALLBACKS, transaction, shard_hint
        )
