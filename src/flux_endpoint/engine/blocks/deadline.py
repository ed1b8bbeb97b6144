"""Whether and until when a task may start in a block with a time limit. Pure functions."""

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
#: is less. So the endpoint, which knows the reason, ends them before Flux does.
_MARGIN = 2.0


def walltime_of(task: EngineTask, resources: ResourceSpecification) -> float | None:
    """Return the time limit of a task in seconds; `None` if it has none.

    Args:
        task: the task; none of the user's code is run.
        resources: its resource specification.
    """
    limits: list[float] = [resources.walltime] if resources.walltime else []
    if is_command(task.buffer):
        try:
            function = read_command(unpack_buffers(task.buffer)[0])
        except (DeserializationError, IndexError):
            function = None  # the worker or job that runs it reports the error
        if function is not None and function.walltime is not None:
            limits.append(function.walltime)
    shortest = min(limits, default=math.inf)
    return shortest if math.isfinite(shortest) else None


def refusal(
    walltime: float | None, resources: ResourceSpecification, config: BlocksConfig
) -> str | None:
    """Return why no block can ever run a task, with the numbers; `None` if a block can."""
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
    """Return why a task is given up that `blocks` new blocks had too little time for."""
    return (
        f"the task's walltime is {format_duration(walltime)}, and {blocks} blocks had less than "
        f"that left, with a grace of {format_duration(config.grace)}, when they came up: their "
        f"walltime of {format_duration(config.walltime)} runs from the start of their jobs "
        "(engine.blocks in the endpoint's config.yaml)"
    )


def signal_time(expires: float, config: BlocksConfig) -> float:
    """Return when a block's tasks get SIGTERM; all times in seconds since the epoch."""
    return expires - config.grace


def end_time(expires: float, config: BlocksConfig) -> float:
    """Return when a block's remaining tasks are given up, shortly before Flux ends them."""
    return expires - min(_MARGIN, config.grace / 4)


def start_before(expires: float, walltime: float | None, config: BlocksConfig) -> float:
    """Return the time from which on a task must not start in a block.

    Args:
        expires: the end of the block.
        walltime: the task's; a task without one may start until the block's tasks get SIGTERM.
        config: options of the blocks.
    """
    return signal_time(expires, config) - (walltime or 0.0)
