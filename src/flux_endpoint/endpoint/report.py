"""What an endpoint says of itself: the status report that is its heartbeat."""

from __future__ import annotations

import os
import socket
from typing import Any
from uuid import UUID

from flux_endpoint import __version__
from flux_endpoint.protocol.messages import EPStatusReport, pack


def status_report(
    endpoint_id: str,
    engine_status: dict[str, Any],
    *,
    period: float,
    started: float,
    active: bool,
) -> bytes:
    """Return the body of a status report.

    Args:
        endpoint_id: whose it is.
        engine_status: the engine's counters.
        period: seconds until the next.
        started: seconds since the epoch at which the agent started.
        active: false in the last one.
    """
    state = {
        **engine_status,
        "endpoint_version": __version__,
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "start_unix": started,
        "heartbeat_period": period,
        "active": active,
    }
    report = EPStatusReport(endpoint_id=UUID(endpoint_id), global_state=state, task_statuses={})
    return pack(report)
