"""The summed counters of all blocks, for the status report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from flux_endpoint.engine.blocks.block import Block

_COUNTERS = (
    "managers",
    "active_managers",
    "draining_managers",
    "worker_nodes",
    "total_workers",
    "idle_workers",
    "starting_workers",
    "pending_tasks",
    "outstanding_tasks",
    "jobs",
    "waiting_jobs",
    "held_allocations",
)


def summary(blocks: Iterable[Block], followed: Mapping[str, Any], waiting: int) -> dict[str, Any]:
    """Return the sums over `blocks`, and an entry for each block.

    Args:
        blocks: all blocks.
        followed: counters of the jobs that are only followed.
        waiting: number of tasks without a block.
    """
    views = []
    sums: Counter[str] = Counter(dict.fromkeys(_COUNTERS, 0))
    running: dict[str, float] = {}
    sums.update({key: followed[key] for key in ("jobs", "waiting_jobs")})
    for block in blocks:
        views.append(block.view())
        engine = block.engine
        if engine is not None:
            counters = engine.counters()
            sums.update({key: counters.get(key, 0) for key in _COUNTERS})
            running.update(counters.get("running_tasks", {}))
    sums.update({"pending_tasks": waiting, "outstanding_tasks": waiting})
    return {**sums, "running_tasks": running, "blocks": views}
