"""`BlockEngine`: runs tasks in blocks, which it requests from the enclosing Flux instance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.attempts import KeptAttempts
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.blocks.block import Block, BlockLauncher
from flux_endpoint.engine.blocks.fleet import BlockFleet
from flux_endpoint.engine.blocks.summary import summary
from flux_endpoint.engine.blocks.tasks import BlockTasks
from flux_endpoint.engine.blocks.waiting import WaitingTasks
from flux_endpoint.engine.config import BlocksConfig, FluxEngineConfig
from flux_endpoint.engine.engine import FluxEngine
from flux_endpoint.engine.flux_backend import FluxBackend
from flux_endpoint.engine.instance_state import (
    Fate,
    InstanceCondition,
    InstancePhase,
    InstanceState,
)
from flux_endpoint.engine.jobs.job import JobListener
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.jobs.runner import JobRunner
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.errors import EngineError
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.paths import OUTPUT_LOG

log = logging.getLogger(__name__)

#: Seconds that blocks have to end when the engine stops.
_END_TIMEOUT = 30.0


class BlockEngine:
    """Runs tasks in blocks. One thread owns all state; other threads post messages to it.

    In each block, a `FluxEngine` runs tasks on the block's own Flux instance. Tasks without a
    block wait here. `states.py` has the lifecycle of a block.

    Args:
        config: options, as in the endpoint's `config.yaml`; has `blocks`.
        endpoint_id: the endpoint's UUID; results name it.
        directory: the endpoint's directory; blocks keep their state in `engine/blocks/` below it.
        plain_programs: as of `FluxEngine`.
    """

    def __init__(
        self,
        config: FluxEngineConfig,
        *,
        endpoint_id: str,
        directory: Path,
        plain_programs: list[str] | None = None,
    ) -> None:
        self._config = config
        self._directory = directory / "engine"
        self._output = OutputLog(directory / OUTPUT_LOG)
        self._settings = TaskSettings(
            endpoint_id,
            str(directory / config.working_dir),
            config.run_in_sandbox,
            config.allowed_serializers,
            plain_programs,
        )
        self._kept = KeptAttempts(self._directory / "attempts")
        self._on_lost: Callable[[str], None] = lambda _: None
        self._backend: FluxBackend
        self._launcher: BlockLauncher
        self._waiting: WaitingTasks
        self._blocks: dict[str, Block] = {}
        self._tasks: BlockTasks
        self._fleet: BlockFleet
        self._follower: JobRunner
        self._thread = OwnerThread("blocks", after_turn=self._maintain, at_end=self._keep_attempts)
        self._running = False

    def start(
        self,
        on_result: Callable[[EngineResult], None],
        on_event: Callable[[EngineEvent], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """Start, and find the blocks from before a restart; see `Engine`.

        Raises:
            EngineError: there is no Flux instance to request blocks from; the text says what to do.
        """
        on_event = on_event or (lambda _: None)
        self._on_lost = on_lost or self._on_lost
        config = self._config.blocks or BlocksConfig()
        self._backend = FluxBackend()
        self._launcher = BlockLauncher(
            self._backend,
            config,
            endpoint_id=self._settings.endpoint_id,
            directory=self._directory / "blocks",
        )
        self._waiting = WaitingTasks(config, self._config.workers_per_node, self._backend.resources)
        self._tasks = BlockTasks(
            self._blocks,
            self._waiting,
            config,
            retries=self._config.max_retries_on_system_failure,
            kept=self._kept,
            on_result=on_result,
        )
        self._fleet = BlockFleet(
            self._backend,
            config,
            self._launcher,
            self._tasks,
            waiting=self._waiting,
            blocks=self._blocks,
            new_engine=self._new_engine,
            max_workers=self._config.max_workers,
            on_event=on_event,
            thread=self._thread,
        )
        instance = self._follow_instance(JobListener(on_result, on_event=on_event))
        logs.event(log, logging.INFO, f"engine requests blocks in {self._backend.description}")
        jobids, ends = self._launcher.find()
        blocks = [self._fleet.find(jobid) for jobid in sorted(jobids)]
        holders = [b.name for b in blocks if b.jobid and self._launcher.has_workers(b.jobid)]
        homes = {each: b for b in blocks if b.jobid for each in self._launcher.jobs_in(b.jobid)}
        self._tasks.begin(homes, holders, ends)
        self._backend.watch(instance)
        self._follower.start()
        self._running = True
        self._thread.start()

    def _follow_instance(self, listener: JobListener) -> InstanceState:
        """Create the state of the enclosing instance, and the runner of jobs that are followed."""
        # Tasks in blocks go on until Flux ends the blocks, whatever the enclosing instance's state.
        instance = InstanceState(self._backend, Fate.OWN_END, self._instance_changed)
        self._follower = JobRunner(
            self._backend,
            Planner("flux", self._directory / "jobs", self._settings),
            instance,
            listener,
            output=self._output,
            endpoint_id=self._settings.endpoint_id,
            config=self._config.model_copy(update={"hold_allocations": False}),
        )
        return instance

    def _new_engine(self, jobid: int) -> FluxEngine:
        """Return the engine of a block. Runs on its own thread: waits for the block's instance."""
        settings = self._settings
        return FluxEngine(
            self._config.model_copy(
                update={"executor": "flux", "blocks": None, "working_dir": settings.working_dir}
            ),
            endpoint_id=settings.endpoint_id,
            directory=self._launcher.directory_of(jobid),
            uri=self._backend.instance_of(jobid),
            lent=True,  # the end of a block is followed here, by its job
            output=self._output,
            plain_programs=settings.plain_programs,
        )

    def submit(self, task: EngineTask) -> None:
        """Take a task; it ends in exactly one `on_result`, also if it is refused.

        Raises:
            EngineError: the engine is not running.
        """
        if not self._running:
            raise EngineError("the engine is not running")
        if task.attach is not None:
            self._follower.submit(task, [])
        else:
            self._thread.post(lambda: self._tasks.take(task))

    def recovered(self) -> None:
        """Signal that all tasks of the previous run have been submitted again; see `Engine`."""
        self._thread.post(self._tasks.complete_recovery)

    def settle(self, task_ids: Collection[str]) -> None:
        """Discard tasks whose results the submitter has on disk; see `Engine`."""
        if self._running:
            self._follower.settle(task_ids)
            self._thread.post(lambda: self._tasks.settle(task_ids))

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a task wherever it is, or send `signum` to its processes."""
        if self._running:
            self._follower.cancel(task_id, signum)
            self._thread.post(lambda: self._tasks.cancel(task_id, signum))

    def set_urgency(self, task_id: str, urgency: int) -> None:
        """Set the urgency of a task that has not begun; see `Engine`."""
        if self._running:
            self._follower.set_urgency(task_id, urgency)
            self._thread.post(lambda: self._tasks.set_urgency(task_id, urgency))

    def follow_output(self, task_id: str, seconds: float, known: tuple[int, int]) -> None:
        """Report what a running task prints; see `Engine`."""
        if self._running:
            self._thread.post(lambda: self._tasks.follow_output(task_id, seconds, known))

    def status(self) -> dict[str, Any]:
        """Return the summed counters of all blocks, and `blocks`, a list of them."""
        if not self._running:
            return {"engine_type": "FluxEngine", "executor": None}
        return {
            "engine_type": "FluxEngine",
            "executor": "flux",
            "executor_description": f"blocks in {self._backend.description}",
            "instance": self._backend.instance,
            "resources": asdict(self._backend.resources),
            "usage": self._backend.usage(),
            **summary(self._blocks.copy().values(), self._follower.status(), len(self._waiting)),
        }

    def stop(self, grace: float) -> None:
        """Let running tasks finish for at most `grace` seconds, then end all blocks."""
        if not self._running:
            return
        self._running = False
        self._thread.post(lambda: self._fleet.stop(grace))
        self._thread.join(grace + _END_TIMEOUT)
        self._thread.stop()  # blocks that have not ended by now are given up
        self._thread.join()
        self._follower.stop(keep=True)
        self._launcher.close()
        self._backend.close()
        self._output.close()

    def _instance_changed(self, _: InstancePhase, now: InstanceCondition) -> None:
        """Runs on the thread that detected the change."""
        self._thread.post(partial(self._lose, now.reason))

    # On the blocks' thread

    def _maintain(self) -> float:
        return self._fleet.maintain()

    def _lose(self, reason: str) -> None:
        self._follower.lose()
        self._fleet.lose(reason)
        self._on_lost(reason)

    def _keep_attempts(self) -> None:
        for held in self._waiting:
            if held.attempts:
                self._kept.keep(held.task.task_id, held.attempts)
