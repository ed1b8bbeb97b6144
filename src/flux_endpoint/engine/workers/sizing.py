"""How many workers there should be. Pure: pool state in, actions out.

Workers come in pieces: a piece is the job of one manager, and is released as a whole. The first
`least` workers are *permanent*: managers with exactly this many workers, which stay when idle. The
others start when tasks wait, in pieces that fit the backlog, and end after a long idle time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import Amount

#: Growth is by at least this fraction of the present size: otherwise a slowly growing backlog on
#: large nodes would create one manager per worker.
_LEAST_GROWTH = 8
#: Seconds after which a manager's job that waits although there is room counts as too large.
STALLED_AFTER = 1.0


@dataclass(frozen=True)
class Limits:
    """The limits for the number of workers.

    Attributes:
        least: workers that stay when idle.
        most: the most workers in total.
        per_manager: the most workers of one manager, which is on one node.
        cores_per_worker: less than 1 if workers share cores.
        gpus_per_worker: gpus of each worker, not shared.
    """

    least: int
    most: int
    per_manager: int
    cores_per_worker: float = 1.0
    gpus_per_worker: int = 0

    @classmethod
    def of(cls, config: FluxEngineConfig, resources: Resources, per_manager: int) -> Limits:
        """Return the limits of `config` for an instance; the defaults are whole nodes."""
        most = resources.nodes * per_manager
        if config.max_workers is not None:
            # Workers beyond the available cores or gpus would wait forever.
            fitting = max(per_manager, resources.cores_per_node // config.cores_per_worker)
            if config.gpus_per_worker:
                gpus_per_node = resources.gpus // resources.nodes
                fitting = min(fitting, gpus_per_node // config.gpus_per_worker)
            most = min(config.max_workers, resources.nodes * fitting)
        elif config.max_nodes is not None:
            most = min(config.max_nodes, resources.nodes) * per_manager
        least = config.min_workers
        if least is None:
            least = (1 if config.min_nodes is None else config.min_nodes) * per_manager
        share = min(float(config.cores_per_worker), resources.cores_per_node / per_manager)
        return cls(min(least, most), most, per_manager, share, config.gpus_per_worker)

    def fit(self, free: Amount) -> int:
        """Return how many workers fit into `free`."""
        workers = max(0, int(free.cores / self.cores_per_worker))
        if self.gpus_per_worker:
            workers = min(workers, max(0, free.gpus // self.gpus_per_worker))
        return workers


@dataclass(frozen=True)
class WorkerCounts:
    """The present workers.

    Attributes:
        permanent: workers of permanent managers that stay, including those that are starting.
        total: workers of all managers whose jobs have not ended.
        coming: workers of managers that have not connected yet.
        free: idle workers that may get tasks.
        pending: managers whose jobs have no resources yet.
    """

    permanent: int = 0
    total: int = 0
    coming: int = 0
    free: int = 0
    pending: int = 0


@dataclass(frozen=True)
class Piece:
    """A manager to start."""

    workers: int
    permanent: bool


@dataclass(frozen=True)
class Pending:
    """A manager whose job has no resources yet.

    Attributes:
        name: its id.
        workers: number of its workers.
        permanent: whether it is permanent.
        waited: seconds for which it has waited for resources only.
        stalled: seconds of these during which there was room somewhere.
        behind: whether an earlier job of the endpoint waits, too.
        ahead: whether a later job of the endpoint waits, too.
    """

    name: str
    workers: int
    permanent: bool
    waited: float
    stalled: float
    behind: bool
    ahead: bool = False


class Step:
    """The largest piece that fits now: less than a node if others use part of each node.

    Args:
        most: workers of the largest piece.
    """

    def __init__(self, most: int) -> None:
        self.size = most
        self._most = most
        self._placed = 0

    @property
    def is_reduced(self) -> bool:
        """Whether a larger piece did not fit."""
        return self.size < self._most

    def stalled(self, workers: int) -> None:
        """Record that a piece did not fit: try half of it."""
        self.size = max(1, min(self.size, workers // 2))
        self._placed = 0

    def placed(self, workers: int) -> None:
        """Record that a piece did fit.

        After a stall at twice its size one more should not fit; if a second one does, there is more
        room than before.
        """
        if workers < self.size:
            return
        self._placed += 1
        if self._placed > 1:
            self.size = min(self._most, 2 * self.size)
            self._placed = 0


def to_start(
    limits: Limits,
    counts: WorkerCounts,
    backlog: int,
    step: Step,
    room: Sequence[int] = (),
    *,
    queues: bool = True,
) -> list[Piece]:
    """Return the managers to start.

    Args:
        limits: the instance's limits.
        counts: the present workers.
        backlog: number of tasks for which no worker has had room for more than a moment.
        step: the largest piece that fits now.
        room: for how many workers each node has room, as far as is known.
        queues: whether managers without room wait in Flux's queue.
    """
    more = max(0, limits.most - counts.total)
    stay = max(0, min(limits.least - counts.permanent, more))
    need = backlog - counts.coming - counts.free - stay
    if need > 0:
        need = max(need, counts.total // _LEAST_GROWTH)
    come = max(0, min(need, more - stay))
    size = min(step.size, limits.per_manager)
    left = list(room)
    pieces = [Piece(workers, permanent=True) for workers in _cut(stay, size, left, queues)]
    pieces += [Piece(workers, permanent=False) for workers in _cut(come, size, left, queues)]
    # If it is unknown what fits, start one at a time to find out.
    return pieces[: max(0, 1 - counts.pending)] if step.is_reduced else pieces


def _cut(workers: int, size: int, room: list[int], queues: bool) -> Iterator[int]:
    """Split workers into pieces that fit the room; without room, into the largest pieces.

    The latter wait in Flux's queue until others end, if `queues` allows that.
    """
    while workers > 0:
        piece = min(workers, size)
        largest = max(room, default=0)
        if largest > 0:
            piece = min(piece, largest)
            room[room.index(largest)] -= piece
        elif not queues:
            return
        yield piece
        workers -= piece


def to_withdraw(
    pending: Iterable[Pending], backlog: int, step: Step | None, room: Sequence[int]
) -> list[str]:
    """Return the managers whose jobs should no longer wait for resources.

    These are no longer needed, or not before a job that would come after them, or are too large for
    the free resources: smaller ones replace them. A manager that waits behind a job of the
    endpoint, or while nothing is free, keeps its place in Flux's queue.

    Args:
        pending: the waiting managers.
        backlog: number of tasks for which no worker has room.
        step: gets the sizes that should have fit and did not; `None`: what should fit does, however
            slow Flux is.
        room: for how many workers each node has room, as far as is known.
    """
    largest = max(room, default=0)
    needless, stalled = [], []
    for piece in pending:
        is_unused = piece.waited >= STALLED_AFTER and not piece.permanent
        if backlog <= 0 and (piece.ahead or is_unused):
            needless.append(piece)
        elif piece.stalled >= STALLED_AFTER and not piece.behind and piece.workers > 1:
            stalled.append(piece)
    surprising = [piece for piece in stalled if piece.workers <= largest]
    if step is None:
        stalled = [piece for piece in stalled if piece.workers > largest]
    elif surprising:  # another job has the resources that seem to be free
        step.stalled(max(piece.workers for piece in surprising))
    return [piece.name for piece in (*needless, *stalled)]


class WaitReporter:
    """Reports since when tasks wait for workers whose job waits for resources.

    Args:
        on_change: called with the monotonic time; infinity when none wait any more.
    """

    def __init__(self, on_change: Callable[[float], None]) -> None:
        self._on_change = on_change
        self._since = math.inf

    def observe(self, now: float, *, waits: bool) -> None:
        """Take whether tasks wait now."""
        since = min(self._since, now) if waits else math.inf
        if since != self._since:
            self._since = since
            self._on_change(since)
