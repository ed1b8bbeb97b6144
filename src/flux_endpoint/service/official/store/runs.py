"""The runs of endpoints of another make that may hold tasks: one of each endpoint at most."""

from dataclasses import dataclass

import sqlalchemy as sa

from flux_endpoint.service.store.tables import endpoints


@dataclass(frozen=True)
class Run:
    """A run of an endpoint that may hold tasks.

    Attributes:
        start: when it began, by its own clock; 0 if it doesn't say.
        seen: when its last report came.
        ends: when it counts as gone, unless it reports again.
    """

    start: float
    seen: float
    ends: float


def set_run(connection: sa.Connection, endpoint_id: str, run: Run | None) -> None:
    """Note the run of an endpoint that may hold tasks, or that there is none."""
    values: dict[str, float | None] = {"run": None, "run_left": None}  # when it was seen stays
    if run is not None:
        values = {"run": run.start, "run_seen": run.seen, "run_ends": run.ends}
    connection.execute(sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(**values))


def set_run_left(connection: sa.Connection, endpoint_id: str, at: float | None) -> None:
    """Note when it was known what a run had taken that consumes no more; `None`: it is not."""
    connection.execute(
        sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(run_left=at)
    )


def running_endpoints(connection: sa.Connection) -> list[str]:
    """Return the endpoints that have a run."""
    return list(connection.scalars(sa.select(endpoints.c.id).where(endpoints.c.run.is_not(None))))
