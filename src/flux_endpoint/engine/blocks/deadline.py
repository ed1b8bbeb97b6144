"""When a task may start in a block that ends, and whether it may at all. Pure."""

from __future__ import annotations

import math

from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.config import BlocksConfig
from flux_endpoint.errors import DeserializationError
from flux_endpoint.functions import is_command, read_command
from flux_endpoint.protocol.duration import format_duration
from flux_endpoint.protocol.resources import ResourceSpecification
from flux_endpoint.serialize import unpack_buffers

#: A block's tasks are given up this many seconds before its end, or a quarter of its grace if that
#: is less: by us, who can say why, before Flux does it.
_MARGIN = 2.0


def walltime_of(task: EngineTask, resources: ResourceSpecification) -> float | None:
    """Return for how many seconds a task may run at most; `None` if nothing says that.

    Args:
        task: the task; nothing of the user's is run.
        resources: its resource specification.
    """
    limits: list[float] = [resources.walltime] if resources.walltime else []
    if is_command(task.buffer):
        try:
            function = read_command(unpack_buffers(task.buffer)[0])
        except (DeserializationError, IndexError):
            function = None  # whoever runs it will say what is wrong with it
        if function is not None and function.walltime is not None:
            limits.append(function.walltime)
    shortest = min(limits, default=math.inf)
    return shortest if math.isfinite(shortest) else None


def refusal(
    walltime: float | None, resources: ResourceSpecification, config: BlocksConfig
) -> str | None:
    """Return why no block can ever run a task, with the numbers; `None` if one can."""
    if walltime is not None and walltime > config.longest_task:
        return (
            f"the task's walltime is {format_duration(walltime)}, and this endpoint's blocks run "
            f"tasks of at most {format_duration(config.longest_task)}: their walltime of "
            f"{format_duration(config.walltime)} less a grace of {format_duration(config.grace)} "
            "(engine.blocks in its config.yaml)"
        )
    if resources.num_nodes is not None and resources.num_nodes > config.nodes_per_block:
        return (
            f"the task asks for {resources.num_nodes} nodes, and a block of this endpoint has "
            f"{config.nodes_per_block} (engine.blocks.nodes_per_block in its config.yaml)"
        )
    return None


def too_late(walltime: float, blocks: int, config: BlocksConfig) -> str:
    """Return why a task is given up for which `blocks` fresh blocks had too little time left."""
    return (
        f"the task's walltime is {format_duration(walltime)}, and {blocks} blocks had less than "
        f"that left, with a grace of {format_duration(config.grace)}, when they came up: their "
        f"walltime of {format_duration(config.walltime)} runs from the start of their jobs "
        "(engine.blocks in the endpoint's config.yaml)"
    )


def signal_time(expires: float, config: BlocksConfig) -> float:
    """Return when the tasks of a block are told to end; all times in seconds since the epoch."""
    return expires - config.grace


def end_time(expires: float, config: BlocksConfig) -> float:
    """Return when a block's tasks that still run are given up, shortly before Flux does it."""
    return expires - min(_MARGIN, config.grace / 4)


def start_before(expires: float, walltime: float | None, config: BlocksConfig) -> float:
    """Return the moment from which on a task must not be started in a block.

    Args:
        expires: the end of the block.
        walltime: of the task; one without may start until its block's tasks are told to end.
        config: of the blocks.
    """
    return signal_time(expires, config) - (walltime or 0.0)
