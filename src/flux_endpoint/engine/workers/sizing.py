"""How many workers there should be. Pure: the pool says what there is, and does what comes out.

Workers come in pieces: a manager's job is one piece, and gives its cores back as a whole. The first
`least` workers are *permanent*: managers of exactly so many that stay when there is nothing to do.
The others come as tasks wait, in pieces that fit the backlog, and go when they are idle for long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import Amount

#: Growth is by at least this part of what there is: a slowly growing backlog on large nodes must
#: not end in a manager for each worker.
_LEAST_GROWTH = 8
#: Seconds after which a manager's job that waits although there is some room does not fit.
STALLED_AFTER = 1.0


@dataclass(frozen=True)
class Limits:
    """How many workers there may be.

    Attributes:
        least: these stay when there is nothing to do.
        most: at once, in all.
        per_manager: of one manager, which is on one node.
        cores_per_worker: less than 1 where workers share cores.
        gpus_per_worker: of each worker's own.
    """

    least: int
    most: int
    per_manager: int
    cores_per_worker: float = 1.0
    gpus_per_worker: int = 0

    @classmethod
    def of(cls, config: FluxEngineConfig, resources: Resources, per_manager: int) -> Limits:
        """Return what `config` says for an instance; what it leaves open is in whole nodes."""
        most = resources.nodes * per_manager
        if config.max_workers is not None:
            # More than there are cores, or gpus, for would wait for ever.
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
        """Return for how many workers there is room in `free`."""
        workers = max(0, int(free.cores / self.cores_per_worker))
        if self.gpus_per_worker:
            workers = min(workers, max(0, free.gpus // self.gpus_per_worker))
        return workers


@dataclass(frozen=True)
class Force:
    """The workers that there are.

    Attributes:
        permanent: workers of permanent managers that stay, those on their way included.
        total: workers of all managers whose jobs have not ended.
        coming: workers of managers that have not greeted yet.
        free: workers that have nothing to do, and may get tasks.
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
        workers: how many it would have.
        permanent: whether it would stay.
        waited: seconds for which only resources were missing.
        stalled: seconds of them in which there was room somewhere.
        behind: whether a job of the endpoint that came before it waits too.
        ahead: whether one that came after it does.
    """

    name: str
    workers: int
    permanent: bool
    waited: float
    stalled: float
    behind: bool
    ahead: bool = False


class Step:
    """The largest piece that fits now: less than a node where others have a part of each node."""

    def __init__(self, most: int) -> None:
        self.size = most
        self._most = most
        self._placed = 0

    @property
    def is_reduced(self) -> bool:
        """Whether a larger piece did not find room."""
        return self.size < self._most

    def stalled(self, workers: int) -> None:
        """Take note that a piece found no room: try half of it."""
        self.size = max(1, min(self.size, workers // 2))
        self._placed = 0

    def placed(self, workers: int) -> None:
        """Take note that a piece found room.

        After a stall at twice its size one more does not fit: if a second one did, there is more
        room than there was.
        """
        if workers < self.size:
            return
        self._placed += 1
        if self._placed > 1:
            self.size = min(self._most, 2 * self.size)
            self._placed = 0


def to_start(
    limits: Limits,
    force: Force,
    backlog: int,
    step: Step,
    room: Sequence[int] = (),
    *,
    queues: bool = True,
) -> list[Piece]:
    """Return the managers to start.

    Args:
        limits: the site's bounds.
        force: what there is.
        backlog: tasks for which no worker has room, for longer than a moment.
        step: the largest piece that fits now.
        room: for how many workers there is room on each node, as far as is known.
        queues: whether those for which there is none wait in Flux's queue.
    """
    more = max(0, limits.most - force.total)
    stay = max(0, min(limits.least - force.permanent, more))
    need = backlog - force.coming - force.free - stay
    if need > 0:
        need = max(need, force.total // _LEAST_GROWTH)
    come = max(0, min(need, more - stay))
    size = min(step.size, limits.per_manager)
    left = list(room)
    pieces = [Piece(workers, permanent=True) for workers in _cut(stay, size, left, queues)]
    pieces += [Piece(workers, permanent=False) for workers in _cut(come, size, left, queues)]
    # Where it is not known what fits, one at a time finds out.
    return pieces[: max(0, 1 - force.pending)] if step.is_reduced else pieces


def _cut(workers: int, size: int, room: list[int], queues: bool) -> Iterator[int]:
    """Cut workers into pieces that fit the room there is; where there is none, as large as may be.

    The latter wait in Flux's queue until others end, if they may.
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

    Those that nobody needs any more, or not before a job that would come after them; and those that
    are too large for what is free: smaller ones take their place. What waits behind a job of the
    endpoint, or where nothing is free, keeps its place in Flux's queue.

    Args:
        pending: the managers that wait.
        backlog: tasks for which no worker has room.
        step: is told of what should have found room, and did not; `None`: what should find room
            does so, be Flux as slow as it may.
        room: for how many workers there is room on each node, as far as is known.
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
    elif surprising:  # somebody else has what seems to be free
        step.stalled(max(piece.workers for piece in surprising))
    return [piece.name for piece in (*needless, *stalled)]
