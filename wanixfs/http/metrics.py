"""`/metrics`: figures for Prometheus, counted from the records when they are asked for."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from tasks.service import TaskService


class Metrics:
    """Figures of one node; `sessions` tells how many sessions are in which state."""

    def __init__(self, service: TaskService, sessions: Callable[[], Mapping[str, int]]) -> None:
        self._service = service
        self._sessions = sessions
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        tasks = GaugeMetricFamily("wanixfs_tasks", "Tasks by state and type", labels=["state", "type"])
        known = list(self._service.tasks.values())
        for (state, kind), count in Counter((each.state.shown, each.kind or "none") for each in known).items():
            tasks.add_metric([state, kind], count)
        sessions = GaugeMetricFamily("wanixfs_sessions", "Sessions by state", labels=["state"])
        for state, count in self._sessions().items():
            sessions.add_metric([state], count)
        yield tasks
        yield sessions
        yield CounterMetricFamily("wanixfs_journal_rows", "Rows ever journalled", self._service.journal.last_seq)

    async def __call__(self, request: Request) -> Response:
        return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})
