"""`FluxEngine`: takes tasks, decides how each is run, and returns the end of each."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine import results
from flux_endpoint.engine.attempts import KeptAttempts
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import JobDemand
from flux_endpoint.engine.ended_blocks import end_all_blocks
from flux_endpoint.engine.flux_backend import FluxBackend
from flux_endpoint.engine.instance_state import (
    Fate,
    InstanceCondition,
    InstancePhase,
    InstanceState,
)
from flux_endpoint.engine.job_setup import JobSetup
from flux_endpoint.engine.jobs.job import JobListener
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.jobs.runner import JobRunner
from flux_endpoint.engine.jobs.shell_plugin import find_shell_plugin
from flux_endpoint.engine.local_backend import LocalBackend
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.task_index import TaskIndex, TaskPlace
from flux_endpoint.engine.workers.pool import WorkerPool
from flux_endpoint.engine.workers.spool import SpooledEnd
from flux_endpoint.errors import EngineError
from flux_endpoint.functions import command_of, is_command
from flux_endpoint.paths import OUTPUT_LOG
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)


#: Called with a task that is left without a result, and the reasons of its failed attempts.
_Leave = Callable[[str, list[str]], None]


class FluxEngine:
    """Runs tasks on a Flux instance, or on the embedded executor where there is none.

    Args:
        config: options, as in the endpoint's `config.yaml`.
        endpoint_id: the endpoint's UUID; results name it.
        directory: the endpoint's directory; the engine keeps its own state in `engine/` below it.
        uri: the Flux instance; default: chosen by `config.executor`.
        lent: whether the instance has an owner that follows its end and then calls `lose`.
        output: log for the output of Python functions; default: the endpoint's log file.
        plain_programs: as of `TaskSettings`; if given, values in commands are quoted.
    """

    def __init__(
        self,
        config: FluxEngineConfig,
        *,
        endpoint_id: str,
        directory: Path,
        uri: str | None = None,
        lent: bool = False,
        output: OutputLog | None = None,
        plain_programs: list[str] | None = None,
    ) -> None:
        self._output = output or OutputLog(directory / OUTPUT_LOG)
        self._owns_output = output is None
        self._lent = lent
        self._config = config
        self._uri = uri
        self._directory = directory / "engine"
        self._tasks = TaskSettings(
            endpoint_id=endpoint_id,
            working_dir=str(directory / config.working_dir),
            run_in_sandbox=config.run_in_sandbox,
            allowed_serializers=config.allowed_serializers,
            plain_programs=plain_programs,
            output_limit=config.output_limit,
        )
        self._index = TaskIndex(KeptAttempts(self._directory / "attempts"))
        self._instance: InstanceState | None = None
        self._backend: Backend | None = None
        self._pool: WorkerPool | None = None
        self._jobs: JobRunner | None = None
        self._on_result: Callable[[EngineResult], None] = lambda _: None
        self._on_lost: Callable[[str], None] = lambda _: None

    def start(
        self,
        on_result: Callable[[EngineResult], None],
        on_event: Callable[[EngineEvent], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_left: Callable[[str, list[str]], None] | None = None,
        on_found: Callable[[set[str]], None] | None = None,
    ) -> None:
        """Start. The callbacks run on the engine's threads.

        Args:
            on_result: called with the end of each task.
            on_event: called with every event of every task's job.
            on_lost: called once with the reason when the Flux instance is gone (see `lose`) or
                begins to end. Nothing more is started then. Running tasks have until the grace
                of `stop` is over, or until Flux ends them; those without a result are left for the
                next engine.
            on_left: called with the id of each task that is left without a result, after `lose` or
                because its `start_before` has passed, and the reasons of its failed attempts;
                default: the attempts are kept for the next engine.
            on_found: called with the ids of tasks that recovered workers have, once all of these
                workers have reported, and again if there are more.

        Raises:
            EngineError: Flux is required and unusable, or the working directory can't be created;
                the text says what to do.
        """
        self._on_result = on_result
        if on_lost is not None:
            self._on_lost = on_lost
        self._make_working_directory()
        left = on_left or self._index.keep

        def leave(task_id: str, attempts: list[str]) -> None:
            earlier = self._index.leave(task_id)
            left(task_id, attempts or earlier)

        self._index.load()
        self._backend = _backend_for(self._config, self._uri)
        at_end = Fate.AWAITS_LOSS if self._lent else Fate.LEFT
        self._instance = InstanceState(self._backend, at_end, self._instance_changed)
        logs.event(log, logging.INFO, f"engine runs on {self._backend.description}")
        self._pool = self._new_pool(leave, on_found or _ignore, on_event or _ignore)
        self._jobs = self._new_jobs(leave, on_event or _ignore)
        self._backend.watch(self._instance, self._make_room, self._tasks.mark("workers"))
        ends: list[SpooledEnd] = []
        if not self._lent:  # a lent instance may be a block itself
            blocks = self._directory / "blocks"
            ends = end_all_blocks(self._backend, self._tasks.endpoint_id, blocks)
        self._pool.start(ends)
        self._jobs.start()

    def _make_working_directory(self) -> None:
        try:
            Path(self._tasks.working_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"engine.working_dir: {self._tasks.working_dir} can't be created: {error.strerror}"
            ) from error

    def _new_pool(
        self,
        leave: _Leave,
        on_found: Callable[[set[str]], None],
        on_event: Callable[[EngineEvent], None],
    ) -> WorkerPool:
        assert self._backend is not None
        assert self._instance is not None
        return WorkerPool(
            self._backend,
            self._config,
            tasks=self._tasks,
            directory=self._directory,
            output=self._output,
            on_result=self._ended,
            on_left=leave,
            instance=self._instance,
            on_found=on_found,
            on_wait=self._workers_wait,
            on_event=on_event,
        )

    def _new_jobs(self, leave: _Leave, on_event: Callable[[EngineEvent], None]) -> JobRunner:
        assert self._backend is not None
        assert self._instance is not None
        return JobRunner(
            self._backend,
            Planner(
                self._backend.kind,
                self._directory / "jobs",
                self._tasks,
                find_shell_plugin(self._config.shell_plugin)
                if self._backend.kind == "flux"
                else None,
                JobSetup.of(self._config),
            ),
            self._instance,
            JobListener(self._ended, leave, on_event, self._make_room),
            endpoint_id=self._tasks.endpoint_id,
            config=self._config,
            output=self._output,
        )

    def _workers_wait(self, since: float) -> None:
        if self._jobs is not None:
            self._jobs.observe(lambda seen: seen.workers_wait(since))

    def submit(self, task: EngineTask, attempts: Sequence[str] = ()) -> None:
        """Take a task; it ends in exactly one `on_result`, also if it is refused.

        Args:
            task: the task.
            attempts: why earlier attempts elsewhere have failed.

        Raises:
            EngineError: the engine is not running.
        """
        pool, jobs = self._pool, self._jobs
        if pool is None or jobs is None:
            raise EngineError("the engine is not running")
        place = _place_of(task)
        attempts = self._index.add(task.task_id, place, attempts)
        match place:
            case TaskPlace.WORKERS:
                pool.submit(task, attempts)
            case TaskPlace.FORMATTING:
                pool.format(task, partial(self._formatted, task))
            case TaskPlace.JOBS:
                jobs.submit(task, attempts)

    def recovered(self) -> None:
        """Signal that all tasks of the previous run have been submitted again; see `Engine`."""
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            pool.recovered()
            jobs.recovered(self._index.task_ids())

    def settle(self, task_ids: Collection[str]) -> None:
        """Discard tasks whose results the submitter has on disk; see `Engine`."""
        pool, jobs = self._pool, self._jobs  # another thread may stop the engine in the meantime
        if pool is not None and jobs is not None:
            pool.settle(task_ids)
            jobs.settle(task_ids)

    def _formatted(self, task: EngineTask, result: EngineResult) -> None:
        """Handle a command that a worker has formatted, or could not. On the pool's thread."""
        message, jobs = json.loads(result.body[1:])["data"], self._jobs
        if jobs is not None and message.get("error_details") is None:  # arguments may forge it

            def submit(attempts: list[str], urgency: int | None) -> None:
                known = task.urgency if urgency is None else urgency
                jobs.submit(replace(task, buffer=message["data"], urgency=known), attempts)

            if self._index.begin_job(task.task_id, submit):
                return
        if self._index.was_cancelled(task.task_id):
            text = "TaskCancelled: the task was ended on request"
            failure = results.failure(task.task_id, ErrorCode.CANCELLED, text)
            result = EngineResult(task.task_id, failure)
        self._ended(result)

    def _ended(self, result: EngineResult) -> None:
        """Handle the end of a task. Runs on the pool's or the runner's thread."""
        self._index.end(result.task_id)
        self._on_result(result)

    def lose(self, reason: str) -> None:
        """Give up the Flux instance: it is gone, or its time is over. May be called by any thread.

        The engine detects by itself that an instance is gone; the owner of a lent instance may
        report it earlier. Running tasks fail with the reason, or are left for a retry if
        `max_retries_on_system_failure` allows one. Tasks that had not started, that are to be
        retried, or that are submitted later get no result: they are left for the next engine,
        which counts the attempts if it uses the same directory. `on_lost` is called once; `stop`
        returns when all other tasks have their results.

        Args:
            reason: the beginning of a sentence, such as "the Flux instance … is gone: …".
        """
        if self._instance is not None:
            self._instance.lose(reason)

    def _instance_changed(self, before: InstancePhase, now: InstanceCondition) -> None:
        """Act on a change of the instance. Runs on the thread that detected it."""
        logs.event(log, logging.ERROR if now.is_lost else logging.WARNING, now.reason)
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            if now.is_lost:
                pool.lose(now.reason)
                jobs.lose()
            else:
                pool.hold()
                jobs.hold()
        if before is InstancePhase.RUNNING:
            self._on_lost(now.reason)

    def _make_room(self, demand: JobDemand) -> None:
        """Tell workers and held allocations which jobs wait. On the thread that noticed it."""
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            pool.make_room(demand)
            jobs.observe(lambda seen: seen.demand(demand))

    def terminate(self, reason: str) -> None:
        """Send SIGTERM to all running tasks, because their time will soon be over.

        A task that this ends is lost for `reason`, or retried if `max_retries_on_system_failure`
        allows it. A task that ends in its own way has its own result.
        """
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            pool.terminate(reason)
            jobs.terminate(reason)

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a task and its whole process tree, wherever it is; unknown ids are ignored."""
        pool, jobs = self._pool, self._jobs
        if pool is None or jobs is None:
            return
        place = self._index.cancel(task_id) if signum is None else self._index.place(task_id)
        if place is TaskPlace.JOBS:
            jobs.cancel(task_id, signum)
        elif place is not None:
            pool.cancel(task_id, signum)

    def set_urgency(self, task_id: str, urgency: int) -> None:
        """Set the urgency of a task that has not begun; see `Engine`."""
        pool, jobs = self._pool, self._jobs
        if pool is None or jobs is None:
            return
        place = self._index.set_urgency(task_id, urgency)
        if place is TaskPlace.JOBS:
            jobs.set_urgency(task_id, urgency)
        elif place is TaskPlace.WORKERS:
            pool.set_urgency(task_id, urgency)

    def follow_output(self, task_id: str, seconds: float, known: tuple[int, int]) -> None:
        """Report what a running task prints; see `Engine`."""
        pool, jobs, place = self._pool, self._jobs, self._index.place(task_id)
        if pool is not None and place is TaskPlace.WORKERS:
            pool.follow_output({"id": task_id, "seconds": seconds, "known": known})
        elif jobs is not None and place is TaskPlace.JOBS:
            jobs.follow_output(task_id, seconds, known)

    def status(self) -> dict[str, Any]:
        """Return the counters for the status report, and which executor runs the jobs."""
        backend, instance = self._backend, self._instance  # another thread may stop the engine
        if backend is None or instance is None or self._pool is None or self._jobs is None:
            return {"engine_type": "FluxEngine", "executor": None}
        return {
            "engine_type": "FluxEngine",
            "executor": backend.kind,
            "executor_description": backend.description,
            "instance": backend.instance,
            "resources": asdict(backend.resources),
            "usage": backend.usage(),
            "ending": instance.now.phase is not InstancePhase.RUNNING,
            **self.counters(),
        }

    def counters(self) -> dict[str, Any]:
        """Return the counters of tasks, workers and jobs in `status`."""
        pool, jobs = self._pool, self._jobs
        if pool is None or jobs is None:
            return {}
        return {**pool.status(), **jobs.status()}

    def stop(self, grace: float) -> None:
        """Let running tasks finish for at most `grace` seconds, then release them.

        Workers are ended. Jobs in a Flux instance go on and are found again after a restart; if the
        instance ends too, they have the same grace. Jobs of the embedded executor are ended.
        """
        deadline = time.monotonic() + grace
        ending = self._instance is not None and self._instance.is_ending()
        if self._jobs is not None and ending:
            self._jobs.hold()
        if self._pool is not None:
            self._pool.stop(grace)
            self._pool = None
        if self._jobs is not None and self._backend is not None:
            if ending:
                self._jobs.wait(max(0.0, deadline - time.monotonic()))
            self._jobs.stop(keep=self._backend.kind == "flux")
            self._jobs = None
        if self._backend is not None:
            self._backend.close()
            self._backend = self._instance = None
        if self._owns_output:
            self._output.close()


def _backend_for(config: FluxEngineConfig, uri: str | None) -> Backend:
    """Return the backend that `config.executor` selects ("auto": Flux where `FLUX_URI` is set).

    Args:
        config: options.
        uri: a Flux instance that is used whatever `config.executor` and `FLUX_URI` say.

    Raises:
        EngineError: Flux is required and unusable.
    """
    auto = config.executor == "auto" and os.environ.get("FLUX_URI")
    if uri is not None or config.executor == "flux" or auto:
        return FluxBackend(uri)
    return LocalBackend(config)


def _place_of(task: EngineTask) -> TaskPlace:
    if task.runs_on_worker:
        return TaskPlace.WORKERS
    if is_command(task.buffer) and command_of(task.buffer) is None:
        # Its arguments are pickled: only a worker, where user code may run, deserializes them.
        return TaskPlace.FORMATTING
    return TaskPlace.JOBS


def _ignore(_: object) -> None:
    """Default for a callback that is not given."""
