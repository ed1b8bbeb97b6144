"""`FluxEngine`: takes tasks, decides how each is run, and returns every task's end."""

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
from flux_endpoint.engine.ended_blocks import end_all_blocks
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
from flux_endpoint.engine.jobs.shell_plugin import find_shell_plugin
from flux_endpoint.engine.local_backend import LocalBackend
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.task_index import Place, TaskIndex
from flux_endpoint.engine.workers.pool import WorkerPool
from flux_endpoint.engine.workers.spool import SpooledEnd
from flux_endpoint.errors import EngineError
from flux_endpoint.functions import command_of, is_command
from flux_endpoint.paths import OUTPUT_LOG
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)


class FluxEngine:
    """Runs tasks on a Flux instance, or on the embedded executor where there is none.

    Args:
        config: options, as in the endpoint's `config.yaml`.
        endpoint_id: the endpoint's UUID; results name it.
        directory: the endpoint's directory; the engine keeps its own state in `engine/` below it.
        uri: the Flux instance; default: as `config.executor` says.
        lent: whether somebody lends the instance, follows its end, and calls `lose` then.
        output: gets what Python functions print; default: the endpoint's file for that.
        plain_programs: as of `TaskSettings`: given, values in commands are quoted.
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
        self._endpoint_id = endpoint_id
        self._directory = directory / "engine"
        self._tasks = TaskSettings(
            endpoint_id=endpoint_id,
            working_dir=str(directory / config.working_dir),
            run_in_sandbox=config.run_in_sandbox,
            allowed_serializers=config.allowed_serializers,
            plain_programs=plain_programs,
        )
        self._kept = KeptAttempts(self._directory / "attempts")
        self._index = TaskIndex(self._kept)
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
        """Start; the callbacks are called on the engine's threads.

        Args:
            on_result: given every task's end.
            on_event: given every event of every job that a task became.
            on_lost: given the reason, once, if the Flux instance is gone (see `lose`) or begins to
                end: then nothing more is started, and what runs has until `stop` and its grace,
                or until Flux ends it; without a result, it is for an engine to come.
            on_left: given the id of each task that is left without a result, and why attempts at it
                failed: after `lose`, or since its `start_before` has come; default: the attempts
                are kept for an engine to come.
            on_found: given the ids of the tasks that workers of before a restart have, when all of
                these have said it, and again if there are more.

        Raises:
            EngineError: Flux was asked for and can't be used, or the working directory can't be
                made; says what to do.
        """
        self._on_result = on_result
        if on_lost is not None:
            self._on_lost = on_lost
        try:
            Path(self._tasks.working_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"engine.working_dir: {self._tasks.working_dir} can't be made: {error.strerror}"
            ) from error
        left = on_left or self._keep

        def leave(task_id: str, attempts: list[str]) -> None:
            earlier = self._index.leave(task_id)
            left(task_id, attempts or earlier)

        self._index.load()
        self._backend = _backend_for(self._config, self._uri)
        at_end = Fate.AWAITS_LOSS if self._lent else Fate.LEFT
        self._instance = InstanceState(self._backend, at_end, self._instance_changed)
        logs.event(log, logging.INFO, f"engine runs on {self._backend.description}")
        self._pool = WorkerPool(
            self._backend,
            self._config,
            tasks=self._tasks,
            directory=self._directory,
            output=self._output,
            on_result=self._ended,
            on_left=leave,
            instance=self._instance,
            on_found=on_found or _ignore,
        )
        self._jobs = JobRunner(
            self._backend,
            Planner(
                self._backend.kind,
                self._directory / "jobs",
                self._tasks,
                find_shell_plugin(self._config.shell_plugin)
                if self._backend.kind == "flux"
                else None,
            ),
            self._instance,
            JobListener(self._ended, leave, on_event or _ignore, self._pool.make_room),
            endpoint_id=self._endpoint_id,
            retries=self._config.max_retries_on_system_failure,
            output=self._output,
        )
        self._backend.watch(self._instance, self._pool.make_room, self._tasks.mark("workers"))
        ends: list[SpooledEnd] = []
        if not self._lent:  # else it may be in a block itself
            ends = end_all_blocks(self._backend, self._endpoint_id, self._directory / "blocks")
        self._pool.start(ends)
        self._jobs.start()

    def submit(self, task: EngineTask, attempts: Sequence[str] = ()) -> None:
        """Take a task; it ends in exactly one `on_result`, a refusal included.

        Args:
            task: the task.
            attempts: why earlier attempts at it elsewhere have failed.

        Raises:
            EngineError: the engine is not running.
        """
        pool, jobs = self._pool, self._jobs
        if pool is None or jobs is None:
            raise EngineError("the engine is not running")
        place = _place_of(task)
        attempts = self._index.add(task.task_id, place, attempts)
        match place:
            case Place.WORKERS:
                pool.submit(task, attempts)
            case Place.FORMATTING:
                pool.format(task, partial(self._formatted, task))
            case Place.JOBS:
                jobs.submit(task, attempts)

    def recovered(self) -> None:
        """Take note that all tasks of before a restart have been submitted; see `Engine`."""
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            pool.recovered()
            jobs.recovered(self._index.task_ids())

    def settle(self, task_ids: Collection[str]) -> None:
        """Forget tasks whose results are on disk at the submitter; see `Engine`."""
        pool, jobs = self._pool, self._jobs  # another thread may stop the engine meanwhile
        if pool is not None and jobs is not None:
            pool.settle(task_ids)
            jobs.settle(task_ids)

    def _formatted(self, task: EngineTask, result: EngineResult) -> None:
        """Runs on the pool's thread: a task's command has its arguments now, or can't have them."""
        message, jobs = json.loads(result.body[1:])["data"], self._jobs
        if jobs is not None and message["error_details"] is None:
            formatted = replace(task, buffer=message["data"])
            if self._index.begin_job(task.task_id, partial(jobs.submit, formatted)):
                return
        if self._index.was_cancelled(task.task_id):
            text = "TaskCancelled: the task was ended on request"
            failure = results.failure(task.task_id, ErrorCode.CANCELLED, text)
            result = EngineResult(task.task_id, failure)
        self._ended(result)

    def _ended(self, result: EngineResult) -> None:
        """Runs on the pool's or the runner's thread."""
        self._index.end(result.task_id)
        self._on_result(result)

    def lose(self, reason: str) -> None:
        """Give the Flux instance up: it is gone, or its time is over. From any thread.

        The engine finds out by itself that an instance is gone; whoever lends it for a time may say
        so earlier. What ran fails with the reason, unless `max_retries_on_system_failure` lets it
        be tried again. That, what had not been started and what is submitted from now on gets no
        result: it is for an engine to come, which counts the attempts if it has the same
        directory. `on_lost` is called, once; `stop` returns when all others have their results.

        Args:
            reason: why, as a sentence's beginning: "the Flux instance … is gone: …".
        """
        if self._instance is not None:
            self._instance.lose(reason)

    def _instance_changed(self, before: InstancePhase, now: InstanceCondition) -> None:
        """Runs on the thread that found it out."""
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

    def _keep(self, task_id: str, attempts: list[str]) -> None:
        if attempts:
            self._kept.keep(task_id, attempts)

    def terminate(self, reason: str) -> None:
        """Tell all that runs to end (SIGTERM), since its time will soon be over.

        What ends of that is lost for `reason`, or tried again as `max_retries_on_system_failure`
        has it; what ends in a way of its own has its own result.
        """
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            pool.terminate(reason)
            jobs.terminate(reason)

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a task, wherever it is, with its whole process tree; unknown ids are ignored."""
        pool, jobs = self._pool, self._jobs
        if pool is None or jobs is None:
            return
        place = self._index.cancel(task_id) if signum is None else self._index.place(task_id)
        if place is Place.JOBS:
            jobs.cancel(task_id, signum)
        elif place is not None:
            pool.cancel(task_id, signum)

    def status(self) -> dict[str, Any]:
        """Return counters for the status report, and which executor runs the jobs."""
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
        """Return what `status` counts of tasks, workers and jobs."""
        pool, jobs = self._pool, self._jobs
        if pool is None or jobs is None:
            return {}
        return {**pool.status(), **jobs.status()}

    def stop(self, grace: float) -> None:
        """Let running tasks finish for at most `grace` seconds, then let go of them.

        Workers are ended. Jobs in a Flux instance go on, and are found again after a restart; if
        the instance ends too, they have the same grace. Those of the embedded executor end.
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
    """Return the backend that `config.executor` asks for; "auto" is Flux where `FLUX_URI` is set.

    Args:
        config: options.
        uri: a Flux instance, to run jobs in this one whatever `config.executor` and `FLUX_URI` say.

    Raises:
        EngineError: Flux was asked for and can't be used.
    """
    auto = config.executor == "auto" and os.environ.get("FLUX_URI")
    if uri is not None or config.executor == "flux" or auto:
        return FluxBackend(uri)
    return LocalBackend(config)


def _place_of(task: EngineTask) -> Place:
    if not task.resource_specification and task.attach is None:
        return Place.WORKERS
    if is_command(task.buffer) and command_of(task.buffer) is None:
        # Its arguments are Python's: they are read where user code may run.
        return Place.FORMATTING
    return Place.JOBS


def _ignore(_: object) -> None:
    """Stand for a callback that has nothing to do."""
