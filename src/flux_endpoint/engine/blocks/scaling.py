"""How many blocks there should be. Pure: blocks and backlog in, what to do out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flux_endpoint.engine.config import BlocksConfig


@dataclass(frozen=True)
class BlockView:
    """What the decision needs to know of a block.

    Attributes:
        coming: whether it is asked for and not ready yet.
        ready: whether it takes tasks.
        idle_since: monotonic time since when it has had nothing to do, `None` while it has.
    """

    name: str
    coming: bool = False
    ready: bool = False
    idle_since: float | None = None


@dataclass(frozen=True)
class BlockDemand:
    """Work that no ready block can take now, and how much a new block takes (1 or more)."""

    waiting: int
    capacity: int


@dataclass(frozen=True)
class Decision:
    """What to do now: blocks to ask for, blocks to end, and when to look again."""

    start: int = 0
    end: tuple[str, ...] = ()
    #: Monotonic time; infinity if nothing will change by itself.
    again: float = math.inf


def decide(
    config: BlocksConfig,
    blocks: Sequence[BlockView],
    demand: BlockDemand,
    *,
    now: float,
    not_before: float,
) -> Decision:
    """Return what to do about the number of blocks.

    Args:
        config: the limits.
        blocks: all that hold or ask for nodes, those that end included.
        demand: what waits.
        now: monotonic time.
        not_before: monotonic time before which no block is asked for.
    """
    active = [block for block in blocks if block.coming or block.ready]
    idle = [block for block in active if block.idle_since is not None]
    over = [b for b in idle if now >= (b.idle_since or 0.0) + config.idle_timeout]
    end = [block.name for block in over[: max(0, len(active) - config.min_blocks)]]
    wanted = _wanted(config, active, demand)
    if wanted and len(blocks) >= config.max_blocks:
        # An idle block ends too soon for what waits, else it would have it: make room for another.
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
    """Return how many more blocks are called for, whatever the most may be."""
    coming = sum(demand.capacity for block in active if block.coming)
    more = math.ceil(max(0, demand.waiting - coming) / demand.capacity)
    return max(more, config.min_blocks - len(active))
