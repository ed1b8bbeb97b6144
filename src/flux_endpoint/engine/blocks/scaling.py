"""Decides how many blocks there should be. Pure: blocks and backlog in, decision out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flux_endpoint.engine.config import BlocksConfig


@dataclass(frozen=True)
class BlockView:
    """The properties of a block that the decision depends on.

    Attributes:
        coming: whether it was requested and is not ready yet.
        ready: whether it takes tasks.
        idle_since: monotonic time at which it became idle; `None` while it is busy.
    """

    name: str
    coming: bool = False
    ready: bool = False
    idle_since: float | None = None


@dataclass(frozen=True)
class BlockDemand:
    """Work that no ready block can take now, and how much of it a new block takes (1 or more)."""

    waiting: int
    capacity: int


@dataclass(frozen=True)
class Decision:
    """The blocks to request, the blocks to end, and when to decide again."""

    start: int = 0
    end: tuple[str, ...] = ()
    #: Monotonic time; infinity if time alone changes nothing.
    again: float = math.inf


def decide(
    config: BlocksConfig,
    blocks: Sequence[BlockView],
    demand: BlockDemand,
    *,
    now: float,
    not_before: float,
) -> Decision:
    """Return how many blocks to request and which to end.

    Args:
        config: the limits.
        blocks: all blocks that hold or await nodes, also those that are ending.
        demand: the waiting work.
        now: monotonic time.
        not_before: monotonic time before which no block is requested.
    """
    active = [block for block in blocks if block.coming or block.ready]
    idle = [block for block in active if block.idle_since is not None]
    over = [b for b in idle if now >= (b.idle_since or 0.0) + config.idle_timeout]
    end = [block.name for block in over[: max(0, len(active) - config.min_blocks)]]
    wanted = _wanted(config, active, demand)
    if wanted and len(blocks) >= config.max_blocks:
        # An idle block did not take the waiting work because it ends too soon: replace it.
        useless = [b.name for b in idle if b.ready and b.name not in end]
        end += useless[: max(0, wanted - len(end))]
    start = 0
    again = [
        block.idle_since + config.idle_timeout
        for block in idle
        if block.idle_since is not None and len(active) > config.min_blocks
    ]
    room = min(wanted, config.max_blocks - len(blocks))
    if room > 0 and now >= not_before:
        start = room
    elif room > 0:
        again.append(not_before)
    return Decision(start, tuple(end), min((m for m in again if m > now), default=math.inf))


def _wanted(config: BlocksConfig, active: Sequence[BlockView], demand: BlockDemand) -> int:
    """Return how many more blocks are needed, regardless of the maximum."""
    coming = sum(demand.capacity for block in active if block.coming)
    more = math.ceil(max(0, demand.waiting - coming) / demand.capacity)
    return max(more, config.min_blocks - len(active))
