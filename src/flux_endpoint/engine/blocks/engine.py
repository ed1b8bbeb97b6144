"""`BlockEngine`: runs tasks in allocations of its own, which it asks the Flux instance for."""

from __future__ import annotations

import itertools
import logging
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.attempts import KeptAttempts
from flux_endpoint.engine.backend import FluxBackend, JobEvent
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.blocks import deadline
from flux_endpoint.engine.blocks.block import Block, BlockLauncher
from flux_endpoint.engine.blocks.scaling import Backoff, BlockView, Demand, decide
from flux_endpoint.engine.blocks.summary import summary
from flux_endpoint.engine.blocks.tasks import BlockTasks
from flux_endpoint.engine.blocks.waiting import Waiting
from flux_endpoint.engine.config import BlocksConfig, FluxEngineConfig
from flux_endpoint.engine.engine import FluxEngine
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.jobs.runner import JobRunner
from flux_endpoint.engine.outcome import end_of_job, error_of
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.errors import EngineError, FluxEndpointError
from flux_endpoint.paths import OUTPUT_LOG
from flux_endpoint.protocol.duration import format_duration
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)

#: Seconds that blocks have to end when the engine stops.
_END_PATIENCE = 30.0
#: Seconds after which a decision that failed is made again.
_AFTER_FAILURE = 1.0


class BlockEngine:
    """Runs tasks in blocks. One thread owns all state; other threads leave messages.

    In each block a `FluxEngine` runs tasks on the block's own Flux instance. What no block has
    waits here.

    Args:
        config: options, as in the endpoint's `config.yaml`; with `blocks`.
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
        self._blocks_config = config.blocks or BlocksConfig()
        self._endpoint_id = endpoint_id
        self._directory = directory / "engine"
        self._output = OutputLog(directory / OUTPUT_LOG)
        working_dir = str(directory / config.working_dir)
        self._inner_config = config.model_copy(
            update={"executor": "flux", "blocks": None, "working_dir": working_dir}
        )
        self._settings = TaskSettings(
            endpoint_id,
            working_dir,
            config.run_in_sandbox,
            config.allowed_serializers,
            plain_programs,
        )
        self._kept = KeptAttempts(self._directory / "attempts")
        self._blocks: dict[str, Block] = {}
        self._names = (f"block-{number}" for number in itertools.count())
        self._backoff = Backoff(random.random)
        self._stopping = False
        #: Monotonic time until which running tasks may finish when the engine stops.
        self._stop_at = math.inf
        self._done = threading.Event()
        #: Seconds until the number of blocks is looked at again; infinity: when something happens.
        self._again = 0.0
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="blocks", daemon=True)
        self._on_result: Callable[[EngineResult], None] = lambda _: None
        self._on_event: Callable[[EngineEvent], None] = lambda _: None
        self._on_lost: Callable[[str], None] = lambda _: None
        self._backend: FluxBackend
        self._launcher: BlockLauncher
        self._waiting: Waiting
        self._tasks: BlockTasks
        self._follower: JobRunner
        self._running = False

    def start(
        self,
        on_result: Callable[[EngineResult], None],
        on_event: Callable[[EngineEvent], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """Start, and find the blocks of before a restart; see `Engine`.

        Raises:
            EngineError: there is no Flux instance to ask for blocks; says what to do.
        """
        self._on_result = on_result
        self._on_event = on_event or self._on_event
        self._on_lost = on_lost or self._on_lost
        self._backend = FluxBackend()
        self._launcher = BlockLauncher(
            self._backend,
            self._blocks_config,
            endpoint_id=self._endpoint_id,
            directory=self._directory / "blocks",
        )
        self._waiting = Waiting(
            self._blocks_config, self._config.workers_per_node, self._backend.resources
        )
        self._tasks = BlockTasks(
            self._blocks,
            self._waiting,
            self._blocks_config,
            retries=self._config.max_retries_on_system_failure,
            kept=self._kept,
            on_result=on_result,
        )
        # Jobs that are only followed run in the enclosing instance.
        self._follower = JobRunner(
            self._backend,
            Planner("flux", self._directory / "jobs", self._settings),
            output=self._output,
            endpoint_id=self._endpoint_id,
            retries=0,
            on_result=on_result,
            on_event=self._on_event,
            on_demand=lambda _: None,
            on_left=lambda _task_id, _attempts: None,
            is_over=lambda: False,
            awaits_loss=lambda: False,
        )
        logs.event(log, logging.INFO, f"engine asks for blocks in {self._backend.description}")
        jobids, ends = self._launcher.find()
        blocks = [self._find(jobid) for jobid in sorted(jobids)]
        holders = [b.name for b in blocks if b.jobid and self._launcher.has_workers(b.jobid)]
        homes = {each: b for b in blocks if b.jobid for each in self._launcher.jobs_in(b.jobid)}
        self._tasks.begin(homes, holders, ends)
        self._backend.watch(
            lambda _: None,  # what is in a block goes on till Flux ends that
            lambda reason: self._tell(partial(self._lose, reason)),
        )
        self._follower.start()
        self._running = True
        self._thread.start()

    def submit(self, task: EngineTask) -> None:
        """Take a task; it ends in one `on_result`, a refusal included.

        Raises:
            EngineError: the engine is not running.
        """
        if not self._running:
            raise EngineError("the engine is not running")
        if task.attach is not None:
            self._follower.submit(task, [])
        else:
            self._tell(lambda: self._tasks.take(task))

    def recovered(self) -> None:
        """Take note that all tasks of before a restart have been submitted; see `Engine`."""
        self._tell(self._tasks.complete_recovery)

    def settle(self, task_ids: Collection[str]) -> None:
        """Forget tasks whose results are on disk at the submitter; see `Engine`."""
        if self._running:
            self._follower.settle(task_ids)
            self._tell(lambda: self._tasks.settle(task_ids))

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a task, wherever it is; with `signum` signal what it runs instead."""
        if self._running:
            self._follower.cancel(task_id, signum)
            self._tell(lambda: self._tasks.cancel(task_id, signum))

    def status(self) -> dict[str, Any]:
        """Return the counters of all blocks together, and `blocks`, a list of them."""
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
        """Let running tasks finish for at most `grace` seconds, then end every block."""
        if not self._running:
            return
        self._running = False
        self._tell(lambda: self._stop(grace))
        self._done.wait(grace + _END_PATIENCE)
        self._tell(self._done.set)  # what has not ended by now is given up
        self._thread.join()
        self._follower.stop(keep=True)
        self._launcher.close()
        self._backend.close()
        self._output.close()

    def _tell(self, message: Callable[[], None]) -> None:
        self._inbox.put(message)

    # The thread of the blocks

    def _run(self) -> None:
        while not self._done.is_set():
            patience = self._again if self._again < math.inf else None
            self._again = _AFTER_FAILURE  # should anything below fail
            with suppress(queue.Empty):
                self._safely(self._inbox.get(timeout=patience))
            for _ in range(self._inbox.qsize()):
                self._safely(self._inbox.get())
            self._safely(self._keep_time)
            self._safely(partial(self._tasks.assign, may_start=not self._stopping))
            self._safely(self._scale)
        for held in self._waiting:
            if held.attempts:
                self._kept.keep(held.task.task_id, held.attempts)

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            log.exception("something about a block could not be dealt with; the others go on")

    # Blocks

    def _scale(self) -> None:
        """Ask for blocks and end them, and note when there may be more to do."""
        now = time.monotonic()
        for block in self._blocks.values():
            needed = bool(block.tasks) or (block.state != "ready" and bool(self._waiting))
            if needed or self._tasks.expects(block):
                block.idle_since = None
            elif block.idle_since is None:
                block.idle_since = now
        moments = [self._next_time(block) for block in self._blocks.values()]
        if not self._stopping:
            views = [_seen(block) for block in self._blocks.values()]
            decision = decide(
                self._blocks_config,
                views,
                Demand(self._tasks.unserved, self._waiting.capacity),
                now=now,
                not_before=self._backoff.not_before,
            )
            for name in decision.end:
                self._safely(partial(self._close, self._blocks[name]))
            for _ in range(decision.start):
                self._safely(self._request)
            moments.append(decision.again - now)
            if self._backoff.not_before > now:  # by a failure just now, too
                moments.append(self._backoff.not_before - now)
        elif not self._blocks:
            self._done.set()
        self._again = max(0.0, min(moments, default=math.inf))

    def _request(self) -> None:
        try:
            future = self._launcher.submit()
        except (OSError, RuntimeError, ValueError) as error:
            if not self._backend.is_lost(error):
                self._start_failed(f"its job can't be submitted: {error}")
            return
        self._follow(Block(next(self._names), future))

    def _find(self, jobid: int) -> Block:
        """Take a block of before a restart over."""
        future = self._backend.executor.attach(jobid)
        block = Block(next(self._names), future, jobid=jobid, found=True)
        logs.event(log, logging.INFO, f"{block.label} is looked for")
        self._follow(block)
        return block

    def _follow(self, block: Block) -> None:
        self._blocks[block.name] = block
        future = block.future
        future.add_jobid_callback(lambda _: self._tell(lambda: self._identified(block)))
        for name in ("start", "exception", "clean"):
            future.add_event_callback(
                name, lambda _, event: self._tell(partial(self._event, block, event))
            )
        future.add_done_callback(lambda _: self._tell(lambda: self._over(block)))

    def _identified(self, block: Block) -> None:
        try:
            block.jobid = int(block.future.jobid(timeout=0))
        except (RuntimeError, CancelledError, OSError, ValueError):
            return  # never submitted; its end says why
        self._launcher.record(block.jobid)
        logs.event(log, logging.INFO, f"{block.label} was asked for", nodes=self._nodes)
        if block.state == "ending":
            self._backend.cancel(block.jobid, "not needed any more")

    @property
    def _nodes(self) -> int:
        return self._blocks_config.nodes_per_block

    def _event(self, block: Block, event: JobEvent) -> None:
        if event.name == "start" and block.state == "pending":
            block.state, block.started, block.opening = "starting", event.timestamp, True
            threading.Thread(
                target=self._open, args=(block,), name=f"{block.name} opens", daemon=True
            ).start()
        elif event.name == "exception" and event.context.get("severity") == 0:
            note = event.context.get("note") or event.context.get("type")
            self._ended_by_others(block, f"was ended: {note}")
        elif event.name == "clean":
            block.clean = True
            self._over(block)

    def _open(self, block: Block) -> None:
        """Start the engine of a block; runs on a thread of its own."""
        assert block.jobid is not None
        try:
            engine = FluxEngine(
                self._inner_config,
                endpoint_id=self._endpoint_id,
                directory=self._launcher.directory_of(block.jobid),
                uri=self._backend.instance_of(block.jobid),
                heeds_end=False,  # a block's end is followed here, by its job
                output=self._output,
                plain_programs=self._settings.plain_programs,
            )
            engine.start(
                lambda result: self._tell(lambda: self._tasks.finished(block, result)),
                self._on_event,
                lambda reason: self._tell(lambda: self._close(block, f"{block.label}: {reason}")),
                lambda task, attempts: self._tell(lambda: self._tasks.left(block, task, attempts)),
                lambda task_ids: self._tell(lambda: self._tasks.found(block, task_ids)),
            )
        except Exception as error:
            if not isinstance(error, (FluxEndpointError, OSError, RuntimeError)):
                log.exception("the engine of a block could not be started")
            reason = str(error)
            self._tell(lambda: self._not_opened(block, reason))
        else:
            status = engine.status()
            self._tell(lambda: self._opened(block, engine, status))

    def _not_opened(self, block: Block, reason: str) -> None:
        block.opening = False
        self._ended_by_others(block, f"can't be used: {reason}")
        self._forget_if_over(block)

    def _opened(self, block: Block, engine: FluxEngine, status: dict[str, Any]) -> None:
        block.opening = False
        block.engine = engine
        block.nodes = int(status["resources"]["nodes"])
        workers = self._waiting.workers * block.nodes
        block.capacity = min(workers, self._config.max_workers or workers)
        block.cores = max(1, int(status["resources"]["cores"]))
        expires = (status.get("usage") or {}).get("expires")
        block.expires = float(expires or block.started + self._blocks_config.walltime)
        if block.state == "ending":
            self._stop_engine(block, 0.0)
            return
        block.state = "ready"
        block.meter.workers = block.capacity
        self._backoff.succeeded()
        logs.event(log, logging.INFO, f"{block.label} is ready", nodes=block.nodes)
        if not block.found:
            self._tasks.give_up_what_is_too_long(block)

    def _keep_time(self) -> None:
        """Tell the tasks of blocks that are about to end, and give up what goes on regardless."""
        now = time.time()
        for block in list(self._blocks.values()):
            if self._stopping and block.state in ("ready", "draining"):
                self._finish(block)
            if block.state == "ready" and now >= self._moment(block):
                block.state = "draining"
                logs.event(log, logging.INFO, f"{block.label} ends soon", tasks=len(block.tasks))
                assert block.engine is not None
                block.engine.terminate(self._out_of_time(block))
            if block.state == "draining":
                unsent = self._tasks.expects(block)
                if now >= self._moment(block):
                    self._close(block, self._out_of_time(block))
                elif not block.tasks and not unsent:
                    self._close(block)

    def _finish(self, block: Block) -> None:
        """End a block as the engine stops: its workers finish what they run, and jobs may end."""
        left = max(0.0, self._stop_at - time.monotonic())
        if not left or not block.load(jobs=True):
            block.state = "ending"
            self._stop_engine(block, left)

    def _out_of_time(self, block: Block) -> str:
        walltime = format_duration(self._blocks_config.walltime)
        return f"{block.label} reached its walltime of {walltime}"

    def _moment(self, block: Block) -> float:
        """Return when something about a block is due, in seconds since the epoch."""
        if block.state == "ready":
            return deadline.signal_time(block.expires, self._blocks_config)
        if block.state == "draining":
            return deadline.end_time(block.expires, self._blocks_config)
        return math.inf

    def _next_time(self, block: Block) -> float:
        """Return the seconds until something about a block is due."""
        stop_at = self._stop_at if block.state != "ending" else math.inf
        return min(self._moment(block) - time.time(), stop_at - time.monotonic())

    def _ended_by_others(self, block: Block, why: str) -> None:
        """A block comes to an end that we had not planned."""
        if block.state == "ending":
            return
        if block.found and block.state in ("pending", "starting"):
            logs.event(log, logging.WARNING, f"{block.label} {why}")
            self._close(block)
        elif block.state in ("pending", "starting"):
            tail = "" if block.jobid is None else self._launcher.log_tail(block.jobid)
            self._start_failed(f"{block.label} {why}" + (f"\n{tail}" if tail else ""))
            self._close(block)
        else:
            self._close(block, f"{block.label} {why}")

    def _start_failed(self, why: str) -> None:
        self._backoff.failed(time.monotonic())
        failures = self._backoff.failures
        logs.event(log, logging.ERROR, "a block did not start", reason=why, failures=failures)
        if not self._backoff.hopeless or any(b.state == "ready" for b in self._blocks.values()):
            return
        for held in self._waiting.take_all():
            text = f"EngineError: no block could be started in {failures} attempts: {why}"
            self._tasks.fail(held.task.task_id, ErrorCode.WORKER_LOST, text)

    def _close(self, block: Block, reason: str = "") -> None:
        """End a block; `reason` is why what runs in it is lost."""
        if block.state == "ending":
            return
        if reason:
            logs.event(log, logging.WARNING, reason, tasks=len(block.tasks))
        else:
            logs.event(log, logging.INFO, f"{block.label} is ended")
        block.state = "ending"
        if block.engine is not None:
            if reason:
                block.engine.lose(reason)
            self._stop_engine(block, 0.0)
        else:
            self._end_job(block)  # which ends the opening, too

    def _stop_engine(self, block: Block, grace: float) -> None:
        engine = block.engine
        assert engine is not None

        def stop() -> None:
            try:
                engine.stop(grace)
            except Exception:
                log.exception("the engine of a block did not stop in good order")
            self._tell(lambda: self._stopped(block))

        threading.Thread(target=stop, name=f"{block.name} ends", daemon=True).start()

    def _stopped(self, block: Block) -> None:
        """All results of a block are here."""
        block.engine = None
        self._end_job(block)
        self._forget_if_over(block)

    def _end_job(self, block: Block) -> None:
        if block.over:
            return
        if block.jobid is not None:
            self._backend.cancel(block.jobid, "not needed any more")
        else:
            block.future.cancel()  # else `_identified` cancels the job

    def _over(self, block: Block) -> None:
        """The job of a block has come to its end, or never to be."""
        error = error_of(block.future) if block.future.done() else None
        of_the_job = hasattr(error, "severity")
        if block.over or (of_the_job and not block.clean):
            return  # its processes are being ended
        if not block.future.done() or (not of_the_job and self._backend.is_lost(error)):
            return  # its result comes yet, or all blocks are lost together
        if error is not None and not of_the_job:
            self._end_job(block)  # it may go on, where nobody gets to know of its end
        block.over = True
        self._ended_by_others(block, f"is gone: {end_of_job(block.future)}")
        self._forget_if_over(block)

    def _forget_if_over(self, block: Block) -> None:
        if not block.over or block.engine is not None or block.opening:
            return
        if self._blocks.pop(block.name, None) is None:
            return
        for held in reversed(list(block.tasks.values())):
            self._tasks.requeue(block, held)
        self._tasks.forget_homes(block)
        if block.jobid is not None:
            self._tasks.take_what_is_left(block, self._launcher.forget(block.jobid))

    # The end

    def _lose(self, reason: str) -> None:
        """The enclosing instance is gone, and with it all blocks."""
        self._stopping = True
        self._follower.lose(reason)
        for block in list(self._blocks.values()):
            self._close(block, reason)
            block.over = True
            self._forget_if_over(block)
        self._on_lost(reason)

    def _stop(self, grace: float) -> None:
        self._stopping = True
        self._stop_at = time.monotonic() + grace
        for block in self._blocks.values():
            if block.engine is None:
                self._close(block)


def _seen(block: Block) -> BlockView:
    coming = block.state in ("pending", "starting")
    return BlockView(block.name, coming, block.state == "ready", block.idle_since)
