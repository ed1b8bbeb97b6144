"""Submits calls that do nothing, in one of several ways, to an endpoint that need not run."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from typing import Any

from work import PATIENCE, Turn, same


def main() -> None:
    turn = Turn()
    endpoint, way = turn.options["endpoint_id"], turn.options["way"]
    count = turn.counts["submit"]
    if way == "official":
        import globus_compute_sdk as official

        executor = official.Executor(endpoint, api_burst_limit=8, api_burst_window_s=1)
    else:
        from flux_endpoint import Executor

        executor = Executor(endpoint)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    begun = time.monotonic()
    if way == "bulk":
        calls = executor.bulk_submit(same, range(count))
    else:
        calls = [executor.submit(same, each) for each in range(count)]
        deadline = begun + PATIENCE
        while any(each.task_id is None for each in reversed(calls)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{way}: not all {count} calls were submitted in time")
            time.sleep(0.05)
    turn.answer("submit", time.monotonic() - begun)
    turn.answer("memory", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    if turn.options["runs"]:
        taken = sum(1 for _ in values_of(calls))
        if taken != count:
            raise ValueError(f"{way}: {taken} results of {count}")
        turn.answer("results", time.monotonic() - begun)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        turn.answer("memory", (peak - before) / 1024)
    os._exit(0)  # the calls need not end


def values_of(calls: Any) -> Iterator[Any]:
    """Yield the results in order."""
    if hasattr(calls, "results"):
        yield from calls.results()
    else:
        for each in calls:
            yield each.result(PATIENCE)


if __name__ == "__main__":
    main()
