"""The metadata and status of an endpoint that users other than its owner can see.

The owner sees everything. Metadata and status reports can name paths, hosts, accounts and tasks of
other users, so other users see only the keys listed here. These are enough to decide whether and
how to submit.
"""

from collections.abc import Mapping
from typing import Any

from flux_endpoint.service.store.endpoints import OWN_MAKE_KEY, Endpoint
from flux_endpoint.service.store.users import User

#: Public keys of an endpoint's metadata. Users of a multi-user endpoint need its template.
PUBLIC_METADATA = frozenset(
    {
        OWN_MAKE_KEY,
        "department",
        "description",
        "endpoint_version",
        "info_url",
        "keywords",
        "organization",
        "python_version",
        "sdk_version",
        "user_config_schema",
        "user_config_template",
        "user_endpoints_version",
    }
)

#: Public keys of a status report.
PUBLIC_REPORT = frozenset(
    {
        "active",
        "active_managers",
        "agent",
        "draining_managers",
        "ending",
        "endpoint_version",
        "engine_type",
        "executor",
        "heartbeat_period",
        "held_allocations",
        "idle_workers",
        "jobs",
        "managers",
        "max_blocks",
        "max_workers",
        "min_blocks",
        "min_workers",
        "outstanding_tasks",
        "pending_tasks",
        "report_unix",
        "resources",
        "start_unix",
        "starting_workers",
        "total_workers",
        "usage",
        "waiting_jobs",
        "worker_nodes",
    }
)


def shown_metadata(endpoint: Endpoint, caller: User) -> dict[str, Any]:
    """Return the part of an endpoint's metadata that `caller` may see."""
    return _shown(endpoint, caller, endpoint.metadata, PUBLIC_METADATA)


def shown_report(endpoint: Endpoint, caller: User) -> dict[str, Any]:
    """Return the part of an endpoint's last status report that `caller` may see.

    The result is empty if the endpoint has not reported yet.
    """
    return _shown(endpoint, caller, endpoint.last_report or {}, PUBLIC_REPORT)


def _shown(
    endpoint: Endpoint, caller: User, values: Mapping[str, Any], public: frozenset[str]
) -> dict[str, Any]:
    if endpoint.owner_id == caller.id:
        return dict(values)
    return {key: value for key, value in values.items() if key in public}
