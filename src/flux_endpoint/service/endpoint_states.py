"""An endpoint's state as its users see it."""

from __future__ import annotations

import time

from flux_endpoint.protocol.operations import Absence, EndpointStateAnswer, QueueDocument
from flux_endpoint.service.disclosure import shown_report
from flux_endpoint.service.store.endpoints import Endpoint, heartbeat_period
from flux_endpoint.service.store.users import User


def state_of(endpoint: Endpoint, user: User, queue: QueueDocument | None) -> EndpointStateAnswer:
    """Return the state of an endpoint.

    Args:
        endpoint: the endpoint.
        user: who asks.
        queue: its task queue, if known.
    """
    absence = _absence(endpoint)
    return EndpointStateAnswer(
        endpoint_id=endpoint.id,
        name=endpoint.name,
        display_name=endpoint.display_name,
        owner=endpoint.owner,
        status="offline" if absence else "online",
        absence=absence,
        since=endpoint.last_seen if absence else _started(endpoint),
        last_seen=endpoint.last_seen,
        report=shown_report(endpoint, user),
        queue=queue,
    )


def _absence(endpoint: Endpoint) -> Absence | None:
    if endpoint.is_online(time.time()):
        return None
    if endpoint.last_report is None:
        return Absence.NEVER
    ends = heartbeat_period(endpoint.last_report) <= 0  # the last report of a multi-user endpoint
    stopped = ends or endpoint.last_report.get("active") is False
    return Absence.STOPPED if stopped else Absence.SILENT


def _started(endpoint: Endpoint) -> float | None:
    started = (endpoint.last_report or {}).get("start_unix")
    return float(started) if isinstance(started, int | float) else None
