"""The lifecycle of a block: its job comes and ends, and its engine is started and stopped."""

from __future__ import annotations

from enum import Enum

from flux_endpoint.engine.state_table import StateTable


class BlockState(Enum):
    """How far a block is. The value is what the status report calls it."""

    #: Its job waits for its nodes.
    PENDING = "pending", "pending"
    #: Its Flux instance comes up, and a thread starts its engine.
    STARTING = "starting", "starting"
    READY = "ready", "ready"
    #: Its tasks were told to end, since its walltime is nearly over.
    DRAINING = "draining", "draining"
    #: It is to end, and its engine is still being started.
    ABANDONED = "abandoned", "ending"
    #: Its engine is being stopped.
    STOPPING = "stopping", "ending"
    #: It has no engine, and its job was cancelled.
    CLEARING = "clearing", "ending"
    #: Its job has ended, and its engine is still being started, or being stopped.
    OVER_STARTING = "over, starting", "ending"
    OVER_STOPPING = "over, stopping", "ending"
    #: Nothing is left of it.
    GONE = "gone", "ending"

    @property
    def reported(self) -> str:
        """What the status report calls it."""
        return self.value[1]

    @property
    def is_coming(self) -> bool:
        """Whether it can't run tasks yet, and will."""
        return self in (BlockState.PENDING, BlockState.STARTING)

    @property
    def is_open(self) -> bool:
        """Whether it has an engine that is not being stopped."""
        return self in (BlockState.READY, BlockState.DRAINING)

    @property
    def is_ending(self) -> bool:
        """Whether it comes to its end."""
        return not (self.is_coming or self.is_open)


class BlockChange(Enum):
    """What may happen to a block."""

    START = "job starts"
    OPENED = "engine started"
    NOT_OPENED = "no engine"
    DRAIN = "drain"
    CLOSE = "close"
    STOPPED = "engine stopped"
    JOB_ENDED = "job ended"


BLOCK_STATES = StateTable[BlockState, BlockChange](
    (BlockState.PENDING,),
    {
        BlockState.PENDING: {
            BlockChange.START: BlockState.STARTING,
            BlockChange.CLOSE: BlockState.CLEARING,
            BlockChange.JOB_ENDED: BlockState.GONE,
        },
        BlockState.STARTING: {
            BlockChange.OPENED: BlockState.READY,
            BlockChange.NOT_OPENED: BlockState.CLEARING,
            BlockChange.CLOSE: BlockState.ABANDONED,
            BlockChange.JOB_ENDED: BlockState.OVER_STARTING,
        },
        BlockState.READY: {
            BlockChange.DRAIN: BlockState.DRAINING,
            BlockChange.CLOSE: BlockState.STOPPING,
            BlockChange.JOB_ENDED: BlockState.OVER_STOPPING,
        },
        BlockState.DRAINING: {
            BlockChange.CLOSE: BlockState.STOPPING,
            BlockChange.JOB_ENDED: BlockState.OVER_STOPPING,
        },
        BlockState.ABANDONED: {
            BlockChange.OPENED: BlockState.STOPPING,
            BlockChange.NOT_OPENED: BlockState.CLEARING,
            BlockChange.JOB_ENDED: BlockState.OVER_STARTING,
        },
        BlockState.STOPPING: {
            BlockChange.STOPPED: BlockState.CLEARING,
            BlockChange.JOB_ENDED: BlockState.OVER_STOPPING,
        },
        BlockState.CLEARING: {BlockChange.JOB_ENDED: BlockState.GONE},
        BlockState.OVER_STARTING: {
            BlockChange.OPENED: BlockState.OVER_STOPPING,
            BlockChange.NOT_OPENED: BlockState.GONE,
        },
        BlockState.OVER_STOPPING: {BlockChange.STOPPED: BlockState.GONE},
    },
    {"open": (BlockState.READY, BlockState.DRAINING)},
)
