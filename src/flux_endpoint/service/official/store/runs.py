"""The runs of official endpoints that may have tasks: at most one per endpoint."""

from dataclasses import dataclass

import sqlalchemy as sa

from flux_endpoint.service.store.tables import endpoints


@dataclass(frozen=True)
class Run:
    """A run of an endpoint that may have tasks. Times are in seconds since the epoch.

    Attributes:
        start: start of the run by the endpoint's own clock; 0 if unknown.
        seen: arrival of its last report.
        ends: when it counts as lost, unless it reports again.
    """

    start: float
    seen: float
    ends: float


def set_run(connection: sa.Connection, endpoint_id: str, run: Run | None) -> None:
    """Store the run of an endpoint.

    Args:
        connection: a transaction that writes.
        endpoint_id: the endpoint.
        run: the run that may have tasks; `None`: there is none.
    """
    values: dict[str, float | None] = {"run": None, "run_left": None}  # `run_seen` stays
    if run is not None:
        values = {"run": run.start, "run_seen": run.seen, "run_ends": run.ends}
    connection.execute(sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(**values))


def set_run_left(connection: sa.Connection, endpoint_id: str, at: float | None) -> None:
    """Store when the tasks were determined that a run had taken.

    Args:
        connection: a transaction that writes.
        endpoint_id: the endpoint.
        at: seconds since the epoch; `None`: they are not known.
    """
    connection.execute(
        sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(run_left=at)
    )


def running_endpoints(connection: sa.Connection) -> list[str]:
    """Return the endpoints that have a run."""
    return list(connection.scalars(sa.select(endpoints.c.id).where(endpoints.c.run.is_not(None))))
