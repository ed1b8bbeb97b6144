"""Tasks without a block, and the choice of a block for each."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Sequence

from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.blocks import deadline
from flux_endpoint.engine.blocks.block import Block, Held
from flux_endpoint.engine.config import BlocksConfig
from flux_endpoint.errors import EngineError
from flux_endpoint.protocol.resources import HELD, ResourceSpecification, parse_resources

#: The most very short tasks that may queue per worker in a block.
_AHEAD = 4


class WaitingTasks:
    """The tasks without a block, in the order of their arrival.

    Args:
        config: options of the blocks.
        workers_per_node: workers of each node, if configured.
        resources: of the enclosing instance.
    """

    def __init__(
        self, config: BlocksConfig, workers_per_node: int | None, resources: Resources
    ) -> None:
        self._config = config
        self._cores_per_node = resources.cores_per_node
        #: Workers of each node.
        self.workers = workers_per_node or resources.cores_per_node
        self._tasks: deque[Held] = deque()

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._tasks)

    @property
    def capacity(self) -> int:
        """Number of cores of a block that its workers can use."""
        return self.workers * self._config.nodes_per_block

    def add(self, task: EngineTask, attempts: list[str], *, runs: bool) -> None:
        """Append a task.

        Args:
            task: the task.
            attempts: why earlier attempts have failed.
            runs: whether a block has run it since before a restart.

        Raises:
            EngineError: no block can ever run it; the text says why, with the numbers.
            ResourceSpecificationError: its resource specification is invalid.
        """
        resources = parse_resources(task.resource_specification or {})
        walltime = deadline.walltime_of(task, resources)
        why = deadline.refusal(walltime, resources, self._config)
        if why is not None and not runs:
            raise EngineError(why)
        job = bool(task.resource_specification)
        cores = self._cores(resources) if job else 1
        self._tasks.append(Held(task, walltime, job, cores, attempts))

    def _cores(self, resources: ResourceSpecification) -> int:
        """Return how many of a block's cores a job takes."""
        if resources.exclusive:
            cores = (resources.num_nodes or 1) * self._cores_per_node
        else:
            slots = math.ceil(resources.num_ranks / resources.tasks_per_slot)
            cores = slots * resources.cores_per_rank
        return min(cores, self._cores_per_node * self._config.nodes_per_block)

    def put_back(self, held: Held) -> None:
        """Put a block's task back before all others."""
        self._tasks.appendleft(held)

    def find(self, task_id: str) -> Held | None:
        """Return a waiting task, or `None`."""
        return next((held for held in self._tasks if held.task.task_id == task_id), None)

    def remove(self, held: Held) -> None:
        """Remove a waiting task."""
        self._tasks.remove(held)

    def take_all(self) -> list[Held]:
        """Remove and return all tasks that may start."""
        taken = [each for each in self._tasks if each.task.urgency != HELD]
        self._tasks = deque(each for each in self._tasks if each.task.urgency == HELD)
        return taken

    def cores(self, but: Collection[str]) -> int:
        """Return the number of cores that the waiting tasks take, except those in `but`."""
        return sum(
            held.cores
            for held in self._tasks
            if held.task.urgency != HELD and held.task.task_id not in but
        )

    def assign(
        self, ready: Sequence[Block], but: Collection[str], now: float
    ) -> list[tuple[Block, Held]]:
        """Remove and return tasks that may start, each with the ready block with the most room.

        Jobs and other tasks are counted separately, so that neither blocks the other.

        Args:
            ready: blocks that take tasks.
            but: ids of tasks that wait for one particular block.
            now: seconds since the epoch.
        """
        room = {jobs: {b: self._room(b, jobs=jobs) for b in ready} for jobs in (False, True)}
        is_open = {jobs: any(each > 0 for each in room[jobs].values()) for jobs in room}
        chosen: list[tuple[Block, Held]] = []
        left: deque[Held] = deque()
        while self._tasks and any(is_open.values()):
            held = self._tasks.popleft()
            rooms = room[held.job]
            fitting = [block for block in ready if self._fits(held, block, rooms[block], now)]
            if not fitting or held.task.urgency == HELD or held.task.task_id in but:
                left.append(held)
                continue
            block = max(fitting, key=rooms.__getitem__)
            rooms[block] -= held.cores
            is_open[held.job] = any(each > 0 for each in rooms.values())
            chosen.append((block, held))
        self._tasks.extendleft(reversed(left))
        return chosen

    def _fits(self, held: Held, block: Block, room: int, now: float) -> bool:
        before = deadline.start_before(block.expires, held.walltime, self._config)
        # A block without jobs may get any job: Flux decides whether it has the resources.
        needed = min(held.cores, block.cores) if held.job else held.cores
        return room >= needed and now < before and held.avoid != block.name

    def _room(self, block: Block, *, jobs: bool) -> int:
        """Return how many more cores' worth of jobs, or of other tasks, a block may get now."""
        most = block.cores if jobs else block.meter.workers * block.meter.ahead(_AHEAD)
        return most - block.load(jobs=jobs)
