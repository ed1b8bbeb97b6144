"""`metrics:` in config.yaml: the endpoint's own metrics over HTTP, for Prometheus."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.protocol.report_metrics import PREFIX, REPORT_METRICS, samples

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+)):([0-9]{1,5})")


def parse_address(text: object) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, where a host may be an IPv6 address in brackets.

    Raises:
        ValueError: `text` is something else.
    """
    found = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if found is None or not 0 < int(found[3]) < 2**16:
        raise ValueError("must be HOST:PORT in quotes, such as '127.0.0.1:9101'")
    return found[1] or found[2], int(found[3])


class EndpointMetrics:
    """Serves the numbers of the latest status report on threads of its own.

    Args:
        endpoint_id: the endpoint.
        address: host and port to listen on.

    Raises:
        ConfigurationError: the address can't be used.
    """

    def __init__(self, endpoint_id: str, address: tuple[str, int]) -> None:
        # Imported here: few endpoints need it.
        from prometheus_client import (  # noqa: PLC0415
            CollectorRegistry,
            ProcessCollector,
            start_http_server,
        )
        from prometheus_client.registry import Collector  # noqa: PLC0415

        metrics = self

        class Reported(Collector):
            def collect(self) -> Iterator[Metric]:
                return metrics.families()

        self._endpoint_id = endpoint_id
        self._lock = threading.Lock()
        self._report: Mapping[str, Any] = {}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Reported())
        ProcessCollector(registry=registry)
        host, port = address
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigurationError(
                f"metrics: can't listen on {host}:{port}: {error.strerror}: choose another address"
            ) from error

    def reported(self, report: Mapping[str, Any]) -> None:
        """Take over the numbers of a new report."""
        with self._lock:
            self._report = report

    def families(self) -> Iterator[Metric]:
        """Yield the metrics of the latest report."""
        from prometheus_client.metrics_core import (  # noqa: PLC0415 - see above
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        with self._lock:
            report = self._report
        moment = report.get("report_unix")
        if moment is None:
            return
        name = f"{PREFIX}last_report_timestamp_seconds"
        seen = GaugeMetricFamily(name, "When these numbers were taken.", labels=["endpoint_id"])
        seen.add_metric([self._endpoint_id], moment)
        yield seen
        families = {
            name: (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
                name, metric.help, labels=("endpoint_id", *metric.labels)
            )
            for name, metric in REPORT_METRICS.items()
        }
        for each in samples(report):
            families[each.metric.name].add_metric((self._endpoint_id, *each.labels), each.value)
        yield from families.values()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
