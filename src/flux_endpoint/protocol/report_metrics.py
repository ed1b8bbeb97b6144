"""The numbers of an endpoint's status report as metrics, by Prometheus' conventions.

The service exposes them for all endpoints, and an endpoint for itself, under the same names. A
report comes from another program: what is missing in it, or is not a number, has no sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

PREFIX = "flux_endpoint_"


@dataclass(frozen=True)
class Metric:
    """A metric: its full name (of a counter: without `_total`), its kind, its help and labels."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()


def _metrics(*given: Metric) -> dict[str, Metric]:
    return {each.name: each for each in given}


#: All metrics of reports, by name.
REPORT_METRICS = _metrics(
    Metric(
        f"{PREFIX}engine_tasks",
        "gauge",
        "Unfinished tasks of the engine: functions that wait or that a node has; jobs.",
        ("kind", "state"),
    ),
    Metric(f"{PREFIX}tasks_accepted", "counter", "Tasks that the agent took since its start."),
    Metric(
        f"{PREFIX}tasks_finished", "counter", "Results that the agent recorded since its start."
    ),
    Metric(f"{PREFIX}results_unconfirmed", "gauge", "Results that RabbitMQ has not confirmed."),
    Metric(f"{PREFIX}paused", "gauge", "1: it takes no tasks now, since it has max_in_flight."),
    Metric(
        f"{PREFIX}trouble",
        "gauge",
        "1: it takes no tasks or sends no results; its status says why.",
    ),
    Metric(f"{PREFIX}workers", "gauge", "Workers by state.", ("state",)),
    Metric(f"{PREFIX}worker_nodes", "gauge", "Nodes with workers."),
    Metric(f"{PREFIX}blocks", "gauge", "Blocks by state.", ("state",)),
    Metric(f"{PREFIX}flux_nodes", "gauge", "Nodes of the Flux instance by state.", ("state",)),
    Metric(f"{PREFIX}flux_cores", "gauge", "Cores of the Flux instance by state.", ("state",)),
    Metric(f"{PREFIX}flux_gpus", "gauge", "GPUs of the Flux instance by state.", ("state",)),
    Metric(
        f"{PREFIX}flux_expiration_timestamp_seconds",
        "gauge",
        "When the Flux instance ends (seconds since the epoch).",
    ),
)

#: States of a block that have a sample of their own; all others are "ending".
_BLOCK_STATES = ("pending", "starting", "ready", "draining", "ending")


@dataclass(frozen=True)
class Sample:
    """A value of a metric. The values of its labels are in the order of `Metric.labels`."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


def samples(report: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield the samples of a status report (see `endpoint.report`)."""
    for name, labels, value in _values(report):
        if value is not None:
            yield Sample(REPORT_METRICS[PREFIX + name], labels, value)


def _values(report: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
    agent = _mapping(report.get("agent"))
    yield "tasks_accepted", (), _number(agent.get("accepted"))
    yield "tasks_finished", (), _number(agent.get("finished"))
    yield "results_unconfirmed", (), _number(agent.get("unconfirmed"))
    yield "paused", (), _number(agent.get("paused"))
    yield "trouble", (), float(bool(report.get("trouble")))
    yield from _engine(report)
    yield from _blocks(report.get("blocks"))
    usage, resources = _mapping(report.get("usage")), _mapping(report.get("resources"))
    yield "flux_nodes", ("total",), _number(resources.get("nodes"))
    yield "flux_nodes", ("down",), _number(usage.get("nodes_down"))
    for kind in ("cores", "gpus"):
        for state in ("allocated", "free"):
            yield f"flux_{kind}", (state,), _number(usage.get(f"{kind}_{state}"))
    yield "flux_expiration_timestamp_seconds", (), _number(usage.get("expires")) or None


def _engine(report: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
    workers, idle = _number(report.get("total_workers")), _number(report.get("idle_workers"))
    yield "workers", ("busy",), _difference(workers, idle)
    yield "workers", ("idle",), idle
    yield "workers", ("starting",), _number(report.get("starting_workers"))
    yield "worker_nodes", (), _number(report.get("worker_nodes"))
    tasks, waiting = _number(report.get("outstanding_tasks")), _number(report.get("pending_tasks"))
    yield "engine_tasks", ("function", "waiting"), waiting
    yield "engine_tasks", ("function", "assigned"), _difference(tasks, waiting)
    jobs, queued = _number(report.get("jobs")), _number(report.get("waiting_jobs"))
    yield "engine_tasks", ("job", "waiting"), queued
    yield "engine_tasks", ("job", "running"), _difference(jobs, queued)


def _blocks(blocks: Any) -> Iterator[tuple[str, tuple[str, ...], float]]:
    if not isinstance(blocks, list):
        return
    counts = Counter(str(_mapping(each).get("state")) for each in blocks)
    for state in _BLOCK_STATES[:-1]:
        yield "blocks", (state,), counts.pop(state, 0)
    yield "blocks", (_BLOCK_STATES[-1],), counts.total()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _difference(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else max(whole - part, 0.0)
