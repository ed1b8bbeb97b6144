"""Counters of this process: tasks, their latencies, and requests."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from flux_endpoint.service.changes import ChangeListener, Outcome, ReportedEnd

PREFIX = "flux_endpoint_service_"

# They would double the number of series, and say what `process_start_time_seconds` says.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: Upper bounds (s) of latencies of tasks: from a short function on an idle worker to a day.
TASK_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
    60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600,
)  # fmt: skip
#: Upper bounds (s) of durations of requests.
REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class ServiceCounters(ChangeListener):
    """Counters and histograms since the start of this process. Safe to use from several threads.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._submitted = Counter(
            f"{PREFIX}tasks_submitted", "Tasks that this service stored.", registry=registry
        )
        self._ended = Counter(
            f"{PREFIX}tasks_ended",
            "Tasks whose end this service stored, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self._result_bytes = Counter(
            f"{PREFIX}result_bytes", "Bytes of their results.", registry=registry
        )
        for outcome in Outcome:  # so that a rate of each is known from the first scrape on
            self._ended.labels(outcome)

        def latency(name: str, text: str) -> Histogram:
            return Histogram(PREFIX + name, text, buckets=TASK_BUCKETS, registry=registry)

        self._queued = latency("task_queue_seconds", "From a task's submission to its start.")
        self._ran = latency("task_run_seconds", "From a task's start to its end.")
        self._returned = latency(
            "task_return_seconds", "From a task's end to the service's record of its result."
        )
        self._whole = latency("task_duration_seconds", "From a task's submission to its result.")
        self._requests = Counter(
            f"{PREFIX}http_requests",
            "Answered requests by method, route and status.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            f"{PREFIX}http_request_duration_seconds",
            "Time to the end of an answer.",
            ["route"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )

    def tasks_submitted(self, owner_id: str, count: int) -> None:
        """See `ChangeListener`."""
        del owner_id
        self._submitted.inc(count)

    def tasks_ended(self, ends: Sequence[ReportedEnd]) -> None:
        """See `ChangeListener`."""
        for each in ends:
            if each.replaces:
                continue
            self._ended.labels(each.outcome).inc()
            self._result_bytes.inc(each.size)
            # The endpoint's clock may be another one: no latency is negative.
            self._whole.observe(max(each.ended - each.submitted, 0.0))
            if each.started is not None:
                self._queued.observe(max(each.started - each.submitted, 0.0))
            if each.started is not None and each.stopped is not None:
                self._ran.observe(max(each.stopped - each.started, 0.0))
                self._returned.observe(max(each.ended - each.stopped, 0.0))

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count a request.

        Args:
            method: HTTP method.
            route: template of its path.
            status: status of the answer.
            seconds: its duration; `None`: it says nothing about the service.
        """
        self._requests.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._request_seconds.labels(route).observe(seconds)
