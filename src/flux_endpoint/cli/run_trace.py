"""A run as bars on lanes: which worker, or job, had which task when. Pure."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from flux_endpoint.protocol.operations import ENDED_STATES, ListedTask

#: Group of the tasks whose node nobody has reported.
UNKNOWN_NODE = "node unknown"
#: Group of the tasks that were jobs.
JOBS = "jobs"
#: The most workers of a node that have lanes of their own.
_MANY_WORKERS = 64
#: The most workers that the name of a lane has.
_MOST_NAMED = 3


@dataclass(slots=True)
class Bar:
    """A task while it ran; times in seconds since the epoch."""

    task: ListedTask
    start: float
    end: float


@dataclass
class Lane:
    """Bars that do not overlap: of one worker, or of jobs one after another.

    Attributes:
        group: its node, `JOBS` or `UNKNOWN_NODE`.
        name: what it is for people.
        bars: in order of their starts.
    """

    group: str
    name: str
    bars: list[Bar] = field(default_factory=list)


@dataclass
class RunTrace:
    """Tasks of a run by lane.

    Attributes:
        lanes: by group, nodes first.
        left_out: numbers of tasks that have no bar, by the reason.
    """

    lanes: list[Lane]
    left_out: Counter[str]

    @property
    def bars(self) -> Iterator[Bar]:
        """All bars."""
        return (bar for lane in self.lanes for bar in lane.bars)

    @property
    def start(self) -> float:
        """Start of the first bar; 0 if there is none."""
        return min((lane.bars[0].start for lane in self.lanes), default=0.0)

    @property
    def end(self) -> float:
        """End of the last bar; 0 if there is none."""
        return max((bar.end for bar in self.bars), default=0.0)


def trace_of(tasks: Iterable[ListedTask], now: float) -> RunTrace:
    """Return tasks as bars on lanes.

    Args:
        tasks: the tasks, in any order.
        now: the present time; running tasks end there.
    """
    left_out: Counter[str] = Counter()
    of_workers: dict[str, dict[int, list[Bar]]] = defaultdict(lambda: defaultdict(list))
    others: dict[str, list[Bar]] = defaultdict(list)
    for task in tasks:
        end = task.stopped if task.state in ENDED_STATES else now
        if task.started is None or end is None:
            left_out[_why_left_out(task)] += 1
            continue
        bar = Bar(task, task.started, max(task.started, end))
        if task.node is not None and task.worker is not None:
            of_workers[task.node][task.worker].append(bar)
        else:
            others[JOBS if task.jobid is not None else task.node or UNKNOWN_NODE].append(bar)
    lanes: list[Lane] = []
    for node in sorted({*of_workers, *others} - {JOBS, UNKNOWN_NODE}):
        lanes += _of_node(node, of_workers.get(node, {}), others.get(node, []))
    for group in (JOBS, UNKNOWN_NODE):
        lanes += _packed(group, others.get(group, []))
    return RunTrace(lanes, left_out)


def _why_left_out(task: ListedTask) -> str:
    if task.state in ENDED_STATES:
        return "ended, but nobody has reported when it ran"
    return "not started, as far as is known"


def _of_node(node: str, workers: dict[int, list[Bar]], others: list[Bar]) -> list[Lane]:
    """Return the lanes of a node: one for each worker, unless there were very many."""
    lanes: list[Lane] = []
    free: list[tuple[float, int]] = []  # end of the last bar, and number, of each lane
    for bars in workers.values():
        bars.sort(key=lambda bar: bar.start)
    for pid, bars in sorted(workers.items(), key=lambda each: (each[1][0].start, each[0])):
        if len(workers) > _MANY_WORKERS and free and free[0][0] <= bars[0].start:
            _, place = heapq.heappop(free)  # that worker was replaced, or idle from then on
            if lanes[place].name.count(",") < _MOST_NAMED - 1:
                lanes[place].name += f", {pid}"
        else:
            place = len(lanes)
            lanes.append(Lane(node, f"worker {pid}"))
        lanes[place].bars += bars
        heapq.heappush(free, (max(bar.end for bar in bars), place))
    return [*lanes, *_packed(node, others)]


def _packed(group: str, bars: Sequence[Bar]) -> list[Lane]:
    """Return as few lanes as show all bars."""
    lanes: list[Lane] = []
    free: list[tuple[float, int]] = []
    for bar in sorted(bars, key=lambda bar: bar.start):
        if free and free[0][0] <= bar.start:
            _, place = heapq.heappop(free)
        else:
            place = len(lanes)
            lanes.append(Lane(group, str(place + 1)))
        lanes[place].bars.append(bar)
        heapq.heappush(free, (bar.end, place))
    return lanes
