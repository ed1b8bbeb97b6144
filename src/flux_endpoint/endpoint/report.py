"""The status report of an endpoint, which is also its heartbeat.

The report is a JSON object, which the service stores; `flux-endpoint status` shows it.

| key | value |
|---|---|
| `active` | false in the last report |
| `heartbeat_period` | seconds until the next |
| `start_unix`, `report_unix` | start of the agent, and time of this report (seconds since the epoch) |
| `endpoint_version`, `hostname`, `pid` | the agent's |
| `agent` | `AgentCounts`; tasks `accepted` and `finished` since the start; rates of both |
| `executor`, `executor_description` | "flux" or "local", and a line about it |
| `instance`, `resources` | URI of the Flux instance; its total nodes, cores and gpus |
| `usage` | their present use, and the end of the instance; see `Backend.usage` |
| `trouble` | why it takes no tasks, or can't send results; empty if there is no trouble |
| `ending` | whether the instance is ending or gone: nothing more is started |
| `total_workers`, `idle_workers`, `starting_workers` | numbers of workers: ready, idle, starting |
| `workers_error` | why the latest managers did not start; empty once one has |
| `min_workers`, `max_workers` | workers that stay when idle; the most workers |
| `managers`, `worker_nodes` | number of managers; of nodes with workers |
| `active_managers`, `draining_managers` | managers with tasks; managers that make room for a job |
| `outstanding_tasks`, `pending_tasks` | unfinished tasks for workers; those that no manager has |
| `running_tasks` | tasks that have been running on workers for a second or more, with their starts |
| `jobs`, `waiting_jobs` | tasks that are jobs; those that wait for resources |
| `held_allocations` | allocations that are held for short MPI tasks |
"""  # noqa: E501 - a table

from __future__ import annotations

import logging
import os
import socket
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from flux_endpoint import __version__
from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.metrics import EndpointMetrics, parse_address
from flux_endpoint.endpoint.outbox import PublishTarget
from flux_endpoint.endpoint.rates import RateMeter
from flux_endpoint.errors import PublishError
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import EPStatusReport, pack

log = logging.getLogger(__name__)

#: Seconds between two reports while somebody looks, and the longest time that a request asks for.
OFTEN, LONGEST_HURRY = 2.0, 60.0
#: Seconds after the first report for the second: an instance that has just begun, in an allocation
#: of its own, knows its nodes and workers by then.
_SECOND_AFTER = 3.0


@dataclass(frozen=True)
class AgentCounts:
    """The agent's counters.

    Attributes:
        running: tasks that it has accepted and that have not ended.
        unconfirmed: results that the broker has not confirmed.
        paused: whether it takes no tasks now, since it has `max_in_flight` of them.
    """

    running: int
    unconfirmed: int
    paused: bool


class StatusReporter:
    """Sends the status reports; belongs to the agent's thread.

    Args:
        endpoint_id: whose reports they are.
        target: where they go.
        config: says how often, and whether Prometheus may read them here.

    Raises:
        ConfigurationError: the metrics can't be served.
    """

    def __init__(self, endpoint_id: str, target: PublishTarget, config: EndpointConfig) -> None:
        self._endpoint_id = endpoint_id
        self._target = target
        self._period = config.heartbeat_period
        self._metrics: EndpointMetrics | None = None
        if config.metrics is not None:
            self._metrics = EndpointMetrics(endpoint_id, parse_address(config.metrics))
        self._started = time.time()
        self._last: Future[None] | None = None
        self._sent = 0
        #: Monotonic time until which reports are sent often.
        self._often_until = 0.0
        self._last_at = 0.0
        #: Monotonic time at which the next is to be sent; the first when there is a connection.
        self.due = time.monotonic() + self._period
        #: Tasks that were accepted, and results.
        self.accepted = RateMeter()
        self.finished = RateMeter()

    def send(
        self,
        connection: AmqpConnection,
        engine_status: dict[str, Any],
        counts: AgentCounts,
        *,
        active: bool = True,
    ) -> None:
        """Send one, and note when the next is due.

        Args:
            connection: to the broker.
            engine_status: the engine's counters.
            counts: the agent's.
            active: false in the last one.
        """
        self._last_at = time.monotonic()
        state = self._state(engine_status, counts, active)
        if self._metrics is not None:
            self._metrics.reported(state)
            if not active:
                self._metrics.close()
                self._metrics = None
        # While the connection is down they must not pile up.
        if not active or self._last is None or self._last.done():
            report = EPStatusReport(
                endpoint_id=UUID(self._endpoint_id), global_state=state, task_statuses={}
            )
            try:
                self._last = self._target.publish(connection, pack(report))
                self._sent += 1
            except PublishError:
                event(log, logging.DEBUG, "status report not sent: the connection is closed")
        wait = self._period if self._sent > 1 else min(_SECOND_AFTER, self._period)
        now = time.monotonic()
        self.due = now + (min(wait, OFTEN) if now < self._often_until else wait)

    def hurry(self, seconds: float) -> None:
        """Send reports often for the next `seconds`."""
        self._often_until = time.monotonic() + min(seconds, LONGEST_HURRY)
        self.due = min(self.due, self._last_at + OFTEN)

    def _state(
        self, engine_status: dict[str, Any], counts: AgentCounts, active: bool
    ) -> dict[str, Any]:
        return {
            **engine_status,
            "agent": {
                **asdict(counts),
                "accepted": self.accepted.total,
                "finished": self.finished.total,
                "accepted_rates": self.accepted.rates(),
                "finished_rates": self.finished.rates(),
            },
            "endpoint_version": __version__,
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "start_unix": self._started,
            "report_unix": time.time(),
            "heartbeat_period": self._period,
            "active": active,
        }
