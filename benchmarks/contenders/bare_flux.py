"""Flux's own executor by itself: a job for each command."""

from __future__ import annotations

import os
from typing import Any

from flux_endpoint.engine.flux_bindings import import_flux
from work import COMMAND, PATIENCE, Finish, Turn


def main() -> None:
    turn = Turn()
    job = import_flux().job
    jobspec = job.JobspecV1.from_command(["bash", "-c", COMMAND], num_tasks=1, cores_per_task=1)
    jobspec.cwd = str(turn.directory)
    jobspec.environment = dict(os.environ)
    ranks = job.JobspecV1.from_command(["bash", "-c", COMMAND], num_tasks=2, cores_per_task=1)
    ranks.cwd, ranks.environment = jobspec.cwd, jobspec.environment
    with job.FluxExecutor(**turn.options) as executor:

        def submit(spec: Any) -> Finish:
            future = executor.submit(spec)
            return lambda: future.result(PATIENCE)

        def is_zero(_: int, value: Any) -> bool:
            return bool(value == 0)

        turn.p50("job-p50", lambda _: submit(jobspec), is_zero)
        turn.rate("jobs", lambda _: submit(jobspec), is_zero)
        turn.p50("mpi-p50", lambda _: submit(ranks), is_zero)
        turn.rate("mpi", lambda _: submit(ranks), is_zero)


if __name__ == "__main__":
    main()
