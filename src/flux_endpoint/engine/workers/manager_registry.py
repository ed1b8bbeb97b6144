"""All managers: present, starting, and ending so that jobs can run.

`sizing` and `yielding` make the decisions; this module keeps the state for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from flux_endpoint.engine.demand import Demand, JobDemand
from flux_endpoint.engine.workers.book import ManagerRecord
from flux_endpoint.engine.workers.sizing import (
    STALLED_AFTER,
    Limits,
    Pending,
    Piece,
    Step,
    WorkerCounts,
    to_start,
    to_withdraw,
)
from flux_endpoint.engine.workers.states import ManagerChange, ManagerState
from flux_endpoint.engine.workers.yielding import InstanceNodes, ResourceHolder, room, to_drain

#: Seconds that tasks wait before workers are started for them, so that tasks that arrive together
#: are counted together.
_GROW_AFTER = 0.03
#: Seconds after a job waited for resources in which no idle workers take them: while jobs follow
#: each other, each would wait for the end of such workers.
_TAKE_AFTER = 2.0
#: Seconds that a job waits for resources before busy managers make room for it.
_YIELD_AFTER = 0.3
#: Seconds for which busy managers stay after they came up, whatever jobs wait. The time doubles, up
#: to the second value, whenever Flux prefers managers to a waiting job.
_MIN_STAY, _MAX_STAY = 3.0, 3600.0
#: Seconds for which starting managers stay, whatever jobs wait.
_START_TIMEOUT = 60.0
#: Seconds that a job waits although there seems to be room before more nodes are cleared for it.
_MORE_NODES_AFTER = 2.0
#: The least seconds between two checks for managers that should leave or wait in vain.
_REVIEW_AFTER = 0.05
#: States of managers whose workers count as permanent.
_STAYING = (ManagerState.FOUND, ManagerState.STARTING, ManagerState.READY)
#: Urgency of managers' jobs, Flux's default.
_URGENCY = 16


@dataclass(frozen=True)
class Review:
    """The changes that a review has made.

    Attributes:
        draining: managers that begin to leave now.
        starting: managers that should leave but are not up yet: their jobs should be cancelled.
        kept: managers that were leaving and now stay.
    """

    draining: tuple[ManagerRecord, ...] = ()
    starting: tuple[ManagerRecord, ...] = ()
    kept: tuple[ManagerRecord, ...] = ()


class FirstJob:
    """The first of the waiting jobs, and how managers have made room for it so far.

    Args:
        job: the job; `None`: no job waits.
    """

    def __init__(self, job: Demand | None) -> None:
        self.job = job
        #: How many nodes more than it requests are cleared for it, and since when.
        self.extra_nodes = 0
        self._cleared_since = math.inf
        #: How often Flux preferred managers to it, and since when.
        self._preferred = 0
        self._stay_began = -math.inf

    @property
    def due(self) -> float:
        """When busy managers make room for it."""
        return -math.inf if self.job is None else self.job.since + _YIELD_AFTER

    @property
    def stay(self) -> float:
        """Seconds for which busy managers stay after they came up."""
        return min(_MAX_STAY, _MIN_STAY * 2.0 ** max(0, self._preferred - 1))

    @property
    def more_nodes_at(self) -> float:
        """When more nodes are cleared for it; infinity if none are needed."""
        return self._cleared_since + _MORE_NODES_AFTER

    def passed_over(self, now: float) -> None:
        """Record that a manager got resources while it waits."""
        if self.job is not None and now >= self._stay_began + self.stay:
            self._preferred += 1
            self._stay_began = now

    def loses_to(self, began: float) -> bool:
        """Return whether Flux keeps preferring managers, as it did to one that `began` then."""
        return self.job is not None and began >= self.job.since and self._preferred > 1

    def takes_more_nodes(self, now: float, seems_clear: bool) -> bool:
        """Return whether more nodes are cleared from now on.

        Args:
            now: monotonic time.
            seems_clear: whether there seems to be room for it, and more nodes can be cleared.
        """
        if not seems_clear:
            self._cleared_since = math.inf
        elif self._cleared_since == math.inf:
            self._cleared_since = now
        elif now >= self.more_nodes_at:
            self.extra_nodes = max(1, 2 * self.extra_nodes)
            self._cleared_since = math.inf
            return True
        return False


class ManagerRegistry:
    """All managers whose jobs have not ended. Used by the pool's thread only.

    Decisions and the time of the next review use one reading `now` of the monotonic clock: a
    deadline between two readings would be neither handled nor waited for.

    Args:
        limits: how many workers there may be.
        instance: the instance.
        idle_timeout: seconds after which an idle manager that is not permanent ends.
    """

    def __init__(self, limits: Limits, instance: InstanceNodes, idle_timeout: float) -> None:
        self.limits = limits
        self.managers: dict[str, ManagerRecord] = {}
        self._instance = instance
        self._idle_timeout = idle_timeout
        self._step = Step(limits.per_manager)
        #: Since when managers wait for resources although there is room somewhere.
        self._stalled_since = math.inf
        self._search_at = 0.0
        self._searched = True
        self._backlog_since = math.inf
        self._demand = JobDemand()
        #: When idle workers may take the resources that jobs have left.
        self._take_at = 0.0
        self._first = FirstJob(None)
        self._review_at = 0.0
        self._reviewed = True

    @property
    def ready(self) -> list[ManagerRecord]:
        """The managers that may get tasks."""
        return [m for m in self.managers.values() if m.state is ManagerState.READY]

    @property
    def urgency(self) -> int:
        """Urgency with which a manager is queued behind the jobs that already wait."""
        return min(_URGENCY, self._demand.least_urgency)

    # More workers

    def missing(self, backlog: int, now: float) -> list[Piece]:
        """Return the managers to start while `backlog` tasks find no room."""
        if backlog <= 0:
            self._backlog_since = math.inf
        else:
            self._backlog_since = min(self._backlog_since, now)
        if now < self._backlog_since + _GROW_AFTER:
            backlog = 0
        counts = self._counts()
        pieces = to_start(self.limits, counts, backlog, self._step)
        if not pieces:
            return []
        if self._demand.waiting or now < self._take_at:  # free resources are for jobs
            return pieces if backlog > 0 else []
        left = self._room(now)
        for manager in self._pending():
            largest = left.index(max(left))
            left[largest] = max(0, left[largest] - manager.workers)
        # Workers that no task waits for use free resources, but do not queue in Flux.
        queues = backlog > 0 or not self._demand.complete
        return to_start(self.limits, counts, backlog, self._step, left, queues=queues)

    def _room(self, now: float) -> list[int]:
        """Return for how many workers each node has room, as far as is known."""
        holders = [self._holder(m, 0, now) for m in self._holding()]
        free = room(holders, self._demand.held, self._instance)
        return [self.limits.fit(amount) for amount in free]

    def _counts(self) -> WorkerCounts:
        everyone = self.managers.values()
        coming = [m for m in everyone if m.state is ManagerState.STARTING]
        return WorkerCounts(
            permanent=sum(m.workers for m in everyone if m.permanent and m.state in _STAYING),
            total=sum(m.workers for m in everyone),
            coming=sum(m.workers for m in coming),
            free=sum(m.free for m in everyone),
            pending=sum(1 for m in coming if m.times.allocated is None),
        )

    def allocated(self, manager: ManagerRecord, node: str) -> None:
        """Record that a manager's job has its resources, on `node` if that is known."""
        now = time.monotonic()
        manager.times.allocated = now
        manager.node = node
        self._step.placed(manager.workers)
        self._first.passed_over(now)

    def withdraw(self, backlog: int, now: float) -> list[ManagerRecord]:
        """Return the managers whose jobs should no longer wait for resources."""
        pending = self._pending()
        self._searched = now >= self._search_at or not pending
        if not (self._searched and pending):
            return []
        self._search_at = now + _REVIEW_AFTER
        left = self._room(now)
        self._stalled_since = min(self._stalled_since, now) if any(left) else math.inf
        waiting = self._demand.waiting
        latest = max((d.since for d in waiting if now >= d.since + _YIELD_AFTER), default=-math.inf)
        earliest = min((d.since for d in waiting), default=math.inf)
        pieces = [
            Pending(
                name=m.manager_id,
                workers=m.workers,
                permanent=m.permanent,
                waited=now - m.times.eligible,
                stalled=now - max(m.times.eligible, self._stalled_since),
                behind=earliest < m.times.submitted,
                ahead=latest > m.times.submitted,
            )
            for m in pending
        ]
        # If all jobs' resources are known, a job that should fit but waits is not too large.
        step = None if self._demand.complete else self._step
        return [self.managers[name] for name in to_withdraw(pieces, backlog, step, left)]

    @property
    def is_pending(self) -> bool:
        """Whether a manager's job waits for resources."""
        return bool(self._pending())

    def _pending(self) -> list[ManagerRecord]:
        starting = (m for m in self.managers.values() if m.state is ManagerState.STARTING)
        return [m for m in starting if m.times.allocated is None]

    # Fewer workers

    def idle(self, now: float) -> list[ManagerRecord]:
        """Return the managers that have been idle long enough, and drained ones."""
        return [
            m
            for m in self.managers.values()
            if (m.state is ManagerState.DRAINING and not m.tasks)
            or (self._is_spare(m) and now >= m.activity.idle_since + self._idle_timeout)
        ]

    @staticmethod
    def _is_spare(manager: ManagerRecord) -> bool:
        return manager.state is ManagerState.READY and not manager.tasks and not manager.permanent

    # Making room for jobs

    def demand(self, demand: JobDemand) -> None:
        """Set the jobs' resources and requests: of the whole instance, or the endpoint's only."""
        if self._demand.complete and not demand.complete:
            return
        if demand.waiting or self._demand.waiting:
            self._take_at = time.monotonic() + _TAKE_AFTER
        self._demand = demand
        self._review_at = 0.0
        self._reviewed = False
        head = demand.waiting[0] if demand.waiting else None
        if head != self._first.job:
            self._first = FirstJob(head)

    def review(self, backlog: int, now: float) -> Review:
        """Decide again which managers make room for jobs.

        Args:
            backlog: number of tasks that find no room.
            now: monotonic time.
        """
        if now < self._review_at:
            self._reviewed = False
            return Review()
        self._reviewed = True
        if self._first.job is None:
            return self._drain(frozenset())
        self._review_at = now + _REVIEW_AFTER
        holders = [self._holder(m, backlog, now) for m in self._holding()]
        waiting, extra = self._demand.waiting, self._first.extra_nodes
        leaving = to_drain(waiting, holders, self._demand.held, self._instance, extra)
        seems_clear = leaving.served > 0 and not leaving.managers
        if self._first.takes_more_nodes(now, seems_clear and extra < self._instance.nodes):
            self._review_at = 0.0
            self._reviewed = False
        return self._drain(leaving.managers)

    def _holding(self) -> list[ManagerRecord]:
        return [m for m in self.managers.values() if m.times.allocated is not None]

    def _holder(self, manager: ManagerRecord, backlog: int, now: float) -> ResourceHolder:
        return ResourceHolder(
            name=manager.manager_id,
            node=manager.place,
            amount=manager.amount,
            running=min(len(manager.tasks), manager.workers),
            leaving=manager.state is ManagerState.DRAINING or manager.state.is_ending,
            stays=manager.state in (ManagerState.STARTING, ManagerState.READY)
            and now < max(self._end_of_stay(manager), self._first.due)
            and self._may_stay(manager, backlog),
        )

    def _end_of_stay(self, manager: ManagerRecord) -> float:
        if manager.times.greeted is None:
            return (manager.times.allocated or 0.0) + _START_TIMEOUT
        return manager.times.greeted + self._first.stay

    def _may_stay(self, manager: ManagerRecord, backlog: int) -> bool:
        """Return whether a manager may go on: it has work, or Flux keeps preferring managers.

        The latter means that Flux has preferred managers to the first job repeatedly.
        """
        if manager.tasks or backlog > 0:
            return True
        return self._first.loses_to(manager.times.allocated or 0.0)

    def _drain(self, leaving: frozenset[str]) -> Review:
        draining, starting, kept = [], [], []
        for name, manager in self.managers.items():
            if name not in leaving:
                if manager.state is ManagerState.DRAINING and manager.is_current:
                    manager.change(ManagerChange.KEEP)
                    kept.append(manager)
            elif manager.state is ManagerState.READY:
                manager.change(ManagerChange.DRAIN)
                draining.append(manager)
            elif manager.state is ManagerState.STARTING:
                starting.append(manager)
        return Review(tuple(draining), tuple(starting), tuple(kept))

    # Times and numbers

    def moments(self, now: float) -> Iterator[float]:
        """Yield the monotonic times at which something may be due.

        Args:
            now: the clock reading of the latest decisions.
        """
        yield from (
            m.activity.idle_since + self._idle_timeout for m in self.ready if self._is_spare(m)
        )
        for manager in self._pending():
            since = (manager.times.eligible, max(manager.times.eligible, self._stalled_since))
            yield from (each + STALLED_AFTER for each in since if now - each < STALLED_AFTER)
        if self._backlog_since + _GROW_AFTER > now:
            yield self._backlog_since + _GROW_AFTER
        if self._take_at > now:
            yield self._take_at
        if not self._reviewed:
            yield self._review_at
        if not self._searched:
            yield self._search_at
        if self._first.job is None:
            return
        yield self._first.more_nodes_at
        ends_of_stays = (self._end_of_stay(m) for m in self._holding())
        yield from (moment for moment in (self._first.due, *ends_of_stays) if moment > now)

    def counters(self) -> dict[str, int]:
        """Return the managers' counters for the status report."""
        serving = [m for m in self.managers.values() if m.state.is_serving]
        return {
            "managers": len(serving),
            "active_managers": sum(1 for m in serving if m.tasks),
            "draining_managers": sum(1 for m in serving if m.state is ManagerState.DRAINING),
            "worker_nodes": len({m.place for m in serving}),
            "total_workers": sum(m.workers for m in serving),
            "idle_workers": sum(max(0, m.workers - len(m.tasks)) for m in serving),
            "starting_workers": self._counts().coming,
            "min_workers": self.limits.least,
            "max_workers": self.limits.most,
        }
