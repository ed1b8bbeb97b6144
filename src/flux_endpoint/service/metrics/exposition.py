"""The text of `GET /metrics`: what was counted, and the state of everything at this moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint import __version__
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.report_metrics import PREFIX as OF_ENDPOINTS
from flux_endpoint.protocol.report_metrics import REPORT_METRICS, samples
from flux_endpoint.service import topology
from flux_endpoint.service.metrics.counters import PREFIX
from flux_endpoint.service.observer import BrokerObserver
from flux_endpoint.service.store import numbers
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.health import database_health

#: Seconds for which a text is repeated, so that several scrapers cost as much as one.
_REPEATED = 1.0
#: Seconds that the broker has to report the lengths of queues.
_QUEUE_TIMEOUT = 2.0
#: Labels of every metric of an endpoint.
_ENDPOINT = ("endpoint_id", "endpoint", "owner")


class Exposition:
    """Writes the metrics, at most once a second. Safe to use from several threads.

    Args:
        counted: the registry of what the process counts.
        database: the service's database.
        observer: knows the broker.
    """

    def __init__(
        self, counted: CollectorRegistry, database: Database, observer: BrokerObserver
    ) -> None:
        self._registries = (counted, CollectorRegistry(auto_describe=False))
        self._registries[1].register(_State(database, observer))
        ProcessCollector(registry=self._registries[1])
        self._lock = threading.Lock()
        self._text = b""
        self._until = 0.0

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._text = b"".join(generate_latest(each) for each in self._registries)
                self._until = time.monotonic() + _REPEATED
            return self._text


class _State(Collector):
    """Values read at each scrape: database, broker, and the last reports of endpoints."""

    def __init__(self, database: Database, observer: BrokerObserver) -> None:
        self._database = database
        self._observer = observer

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield _gauge("info", "The running release.", {("version",): {(__version__,): 1}})
        found: list[Endpoint] = []
        try:
            health = database_health(self._database)
            with self._database.read() as connection:
                totals = numbers.totals(connection)
                found = list(numbers.reporting_endpoints(connection))
        except (SQLAlchemyError, OSError):
            yield _value("database_up", "1: the database can be used.", 0)
        else:
            yield _value("database_up", "1: the database can be used.", 1)
            yield _value("database_query_seconds", "Duration of a small query.", health.seconds)
            if health.free_bytes is not None:
                free = health.free_bytes
                yield _value("database_free_bytes", "Free space on the database's disk.", free)
            yield _value("users", "Users of the service.", totals.users)
            yield _value("unfinished_tasks", "Tasks without a result.", totals.open_tasks)
            yield _value(
                "unfinished_task_bytes", "Bytes of the arguments of these tasks.", totals.open_bytes
            )
            yield _value(
                "unpublished_submissions",
                "Submissions that RabbitMQ does not have completely.",
                totals.unpublished_submissions,
            )
        yield from self._broker(found)
        yield from _of_endpoints(found)

    def _broker(self, found: list[Endpoint]) -> Iterator[Metric]:
        broker = self._observer.broker()
        yield _value("broker_up", "1: RabbitMQ is connected.", broker.connected)
        yield _value(
            "broker_alarm",
            "1: RabbitMQ takes no messages, for lack of disk or memory.",
            broker.alarm,
        )
        of_tasks = {queues.tasks_queue(each.id): each for each in found}
        lengths = self._observer.queues([*topology.SERVICE_QUEUES, *of_tasks], _QUEUE_TIMEOUT)
        own = {name: each for name, each in lengths.items() if name not in of_tasks}
        yield _gauge(
            "queue_messages",
            "Messages that wait in the service's queues.",
            {("queue",): {(name,): each.messages for name, each in own.items()}},
        )
        yield _gauge(
            "queue_consumers",
            "Consumers of the service's queues.",
            {("queue",): {(name,): each.consumers for name, each in own.items()}},
        )
        waiting = GaugeMetricFamily(
            f"{OF_ENDPOINTS}queue_messages",
            "Messages in the endpoint's task queue, of one or more tasks each.",
            labels=_ENDPOINT,
        )
        for name, endpoint in of_tasks.items():
            if name in lengths:
                waiting.add_metric(_labels(endpoint), lengths[name].messages)
        yield waiting


def _of_endpoints(found: list[Endpoint]) -> Iterator[Metric]:
    now = time.time()
    online = GaugeMetricFamily(
        f"{OF_ENDPOINTS}online", "1: the endpoint reports.", labels=_ENDPOINT
    )
    seen = GaugeMetricFamily(
        f"{OF_ENDPOINTS}last_report_timestamp_seconds",
        "When the last report of the endpoint came (seconds since the epoch).",
        labels=_ENDPOINT,
    )
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
        name: (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
            name, metric.help, labels=(*_ENDPOINT, *metric.labels)
        )
        for name, metric in REPORT_METRICS.items()
    }
    for endpoint in found:
        is_online = endpoint.is_online(now)
        online.add_metric(_labels(endpoint), is_online)
        seen.add_metric(_labels(endpoint), endpoint.last_seen or 0)
        # What an endpoint said before it went away is not true any more.
        for each in samples(endpoint.last_report or {}) if is_online else ():
            families[each.metric.name].add_metric((*_labels(endpoint), *each.labels), each.value)
    yield online
    yield seen
    yield from families.values()


def _labels(endpoint: Endpoint) -> tuple[str, str, str]:
    return endpoint.id, endpoint.name, endpoint.owner


def _value(name: str, text: str, value: object) -> Metric:
    number = value if isinstance(value, int | float) else bool(value)
    return GaugeMetricFamily(PREFIX + name, text, value=float(number))


def _gauge(
    name: str, text: str, values: dict[tuple[str, ...], dict[tuple[str, ...], float]]
) -> Metric:
    ((labels, by_label),) = values.items()
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in by_label.items():
        family.add_metric(key, value)
    return family
