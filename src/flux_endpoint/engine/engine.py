"""`FluxEngine`: takes tasks, decides how each is run, and returns every task's end."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine import results
from flux_endpoint.engine.attempts import KeptAttempts
from flux_endpoint.engine.backend import Backend, choose_backend
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.ended_blocks import end_all_blocks
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.jobs.runner import JobRunner
from flux_endpoint.engine.jobs.shell_plugin import find_shell_plugin
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
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
        heeds_end: whether it follows the instance's orderly end; else whoever started it does.
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
        heeds_end: bool = True,
        output: OutputLog | None = None,
        plain_programs: list[str] | None = None,
    ) -> None:
        self._output = output or OutputLog(directory / OUTPUT_LOG)
        self._owns_output = output is None
        self._heeds_end = heeds_end
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
        #: What earlier engines have tried.
        self._attempts: dict[str, list[str]] = {}
        #: Tasks that are formatted now, and whether each was cancelled meanwhile.
        self._formatting: dict[str, bool] = {}
        self._formats = threading.Lock()
        #: Tasks that were submitted before `recovered`.
        self._recovering: set[str] | None = set()
        self._losing = threading.Lock()
        self._lost = False
        self._lost_because = ""
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
            self._formatting.pop(task_id, None)
            left(task_id, attempts or self._attempts.pop(task_id, []))

        self._attempts = self._kept.load()
        self._backend = choose_backend(self._config, self._uri)
        logs.event(log, logging.INFO, f"engine runs on {self._backend.description}")
        self._pool = WorkerPool(
            self._backend,
            self._config,
            tasks=self._tasks,
            directory=self._directory,
            output=self._output,
            on_result=self._ended,
            on_left=leave,
            is_over=self._is_over,
            awaits_loss=self._awaits_loss,
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
            output=self._output,
            endpoint_id=self._endpoint_id,
            retries=self._config.max_retries_on_system_failure,
            on_result=self._ended,
            on_left=leave,
            is_over=self._is_over,
            awaits_loss=self._awaits_loss,
            on_event=on_event or (lambda _: None),
            on_demand=self._pool.make_room,
        )
        self._backend.watch(
            self._end_soon if self._heeds_end else _ignore,
            self.lose,
            self._pool.make_room,
            self._tasks.mark("workers"),
        )
        ends: list[SpooledEnd] = []
        if self._heeds_end:  # else it may be in a block itself
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
        if self._recovering is not None:
            self._recovering.add(task.task_id)
        if attempts:
            self._attempts[task.task_id] = list(attempts)
        if not task.resource_specification and task.attach is None:
            pool.submit(task, self._attempts_at(task))
        elif is_command(task.buffer) and command_of(task.buffer) is None:
            # Its arguments are Python's: they are read where user code may run.
            self._formatting[task.task_id] = False
            pool.format(task, partial(self._formatted, task))
        else:
            jobs.submit(task, self._attempts_at(task))

    def recovered(self) -> None:
        """Take note that all tasks of before a restart have been submitted; see `Engine`."""
        task_ids, self._recovering = self._recovering or set(), None
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            pool.recovered()
            jobs.recovered(task_ids)

    def settle(self, task_ids: Collection[str]) -> None:
        """Forget tasks whose results are on disk at the submitter; see `Engine`."""
        pool, jobs = self._pool, self._jobs  # another thread may stop the engine meanwhile
        if pool is not None and jobs is not None:
            pool.settle(task_ids)
            jobs.settle(task_ids)

    def _attempts_at(self, task: EngineTask) -> list[str]:
        return list(self._attempts.get(task.task_id, ()))

    def _formatted(self, task: EngineTask, result: EngineResult) -> None:
        """Runs on the pool's thread: a task's command has its arguments now, or can't have them."""
        message = json.loads(result.body[1:])["data"]
        with self._formats:  # from now on, the runner is asked to cancel it
            if self._formatting.pop(task.task_id, False):
                text = "TaskCancelled: the task was ended on request"
                failure = results.failure(task.task_id, ErrorCode.CANCELLED, text)
                result = EngineResult(task.task_id, failure)
            elif (jobs := self._jobs) is not None and message["error_details"] is None:
                formatted = replace(task, buffer=message["data"])
                jobs.submit(formatted, self._attempts_at(task))
                return
        self._ended(result)

    def _ended(self, result: EngineResult) -> None:
        """Runs on the pool's or the runner's thread."""
        if self._attempts.pop(result.task_id, None) is not None:
            self._kept.forget(result.task_id)
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
        with self._losing:
            if self._lost:
                return
            self._lost = True
        logs.event(log, logging.ERROR, reason)
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            pool.lose(reason)
            jobs.lose(reason)
        self._tell_lost(reason)

    def _end_soon(self, reason: str) -> None:
        """Runs on the lifeline's thread: the Flux instance is ending."""
        logs.event(log, logging.WARNING, reason)
        pool, jobs = self._pool, self._jobs
        if pool is not None and jobs is not None:
            pool.hold()
            jobs.hold()
        self._tell_lost(reason)

    def _is_over(self) -> bool:
        """Return whether the Flux instance has come to its time limit, or to its end.

        Runs on the pool's or the runner's thread: Flux ends jobs before it says that it ends, and
        what it says may be heard later than their ends.
        """
        backend = self._backend
        if backend is None or not self._heeds_end:
            return False
        if self._lost_because or backend.is_lost(None):
            return True
        if backend.is_expired():
            self._end_soon(f"the Flux instance at {backend.instance} reached its time limit")
        elif backend.is_ending():
            self._end_soon(f"the Flux instance at {backend.instance} is ending")
        else:
            return False
        return True

    def _awaits_loss(self) -> bool:
        """Return whether the Flux instance is ending, and `lose` is on its way, which says why.

        Runs on the pool's or the runner's thread.
        """
        backend = self._backend
        return backend is not None and not self._heeds_end and backend.is_ending()

    def _tell_lost(self, reason: str) -> None:
        with self._losing:
            if self._lost_because:
                return
            self._lost_because = reason
        self._on_lost(reason)

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
        if pool is not None and jobs is not None:
            with self._formats:
                if signum is None and task_id in self._formatting:
                    self._formatting[task_id] = True
            jobs.cancel(task_id, signum)
            pool.cancel(task_id, signum)

    def status(self) -> dict[str, Any]:
        """Return counters for the status report, and which executor runs the jobs."""
        backend = self._backend  # another thread may stop the engine meanwhile
        if backend is None or self._pool is None or self._jobs is None:
            return {"engine_type": "FluxEngine", "executor": None}
        return {
            "engine_type": "FluxEngine",
            "executor": backend.kind,
            "executor_description": backend.description,
            "instance": backend.instance,
            "resources": asdict(backend.resources),
            "usage": backend.usage(),
            "ending": bool(self._lost_because),
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
        ending = self._heeds_end and bool(self._lost_because)
        if self._heeds_end and self._backend is not None and not ending:
            ending = self._backend.is_ending()
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
            self._backend = None
        if self._owns_output:
            self._output.close()


def _ignore(_: object) -> None:
    """Stand for a callback that has nothing to do."""
