"""The lifecycle of a block: its job starts and ends; its engine is started and stopped."""

from __future__ import annotations

from enum import Enum

from flux_endpoint.engine.state_table import StateTable


class BlockState(Enum):
    """The state of a block. The value has its name in the status report."""

    #: Its job waits for nodes.
    PENDING = "pending", "pending"
    #: Its Flux instance starts, and a thread starts its engine.
    STARTING = "starting", "starting"
    READY = "ready", "ready"
    #: Its tasks got SIGTERM because its walltime is nearly over.
    DRAINING = "draining", "draining"
    #: It should end while its engine is still starting.
    ABANDONED = "abandoned", "ending"
    #: Its engine is being stopped.
    STOPPING = "stopping", "ending"
    #: It has no engine, and its job was cancelled.
    CLEARING = "clearing", "ending"
    #: Its job has ended while its engine is still starting, or stopping.
    OVER_STARTING = "over, starting", "ending"
    OVER_STOPPING = "over, stopping", "ending"
    #: Its job and its engine have ended.
    GONE = "gone", "ending"

    @property
    def reported(self) -> str:
        """The state's name in the status report."""
        return self.value[1]

    @property
    def is_coming(self) -> bool:
        """Whether it can't run tasks yet, but will."""
        return self in (BlockState.PENDING, BlockState.STARTING)

    @property
    def is_open(self) -> bool:
        """Whether it has an engine that is not being stopped."""
        return self in (BlockState.READY, BlockState.DRAINING)

    @property
    def is_ending(self) -> bool:
        """Whether it is ending."""
        return not (self.is_coming or self.is_open)


class BlockChange(Enum):
    """Events of a block."""

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
