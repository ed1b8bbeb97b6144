"""The blocks of an engine: when they are requested, followed and ended."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

from flux_endpoint import logs
from flux_endpoint.backoff import Backoff
from flux_endpoint.engine.base import EngineEvent
from flux_endpoint.engine.blocks import deadline
from flux_endpoint.engine.blocks.block import Block, BlockLauncher
from flux_endpoint.engine.blocks.scaling import BlockDemand, BlockView, decide
from flux_endpoint.engine.blocks.states import BLOCK_STATES, BlockChange, BlockState
from flux_endpoint.engine.blocks.tasks import BlockTasks
from flux_endpoint.engine.blocks.waiting import WaitingTasks
from flux_endpoint.engine.config import BlocksConfig
from flux_endpoint.engine.engine import FluxEngine
from flux_endpoint.engine.flux_backend import FluxBackend
from flux_endpoint.engine.outcome import end_of_job, error_of
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.protocol.duration import format_duration
from flux_endpoint.protocol.job_events import EventRecord
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)

#: Seconds after which a decision that failed is made again.
_AFTER_FAILURE = 1.0
#: The first and the longest pause (s) before a block is asked for again, since one did not start.
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 300.0
#: So many failures to start in a row end the tasks that wait.
MAX_FAILURES = 4


class BlockFleet:
    """Requests blocks, follows them and ends them. Used by the blocks' thread only.

    Args:
        backend: the enclosing instance.
        config: options of the blocks.
        launcher: submits their jobs.
        tasks: the tasks in blocks.
        waiting: the tasks without a block.
        blocks: all blocks by name; shared with `tasks`.
        new_engine: returns the engine of the block with this job id; may take long.
        max_workers: the most workers of one engine; `None`: no limit.
        on_event: called with every event of every job in the blocks.
        thread: the blocks' thread.
    """

    def __init__(
        self,
        backend: FluxBackend,
        config: BlocksConfig,
        launcher: BlockLauncher,
        tasks: BlockTasks,
        *,
        waiting: WaitingTasks,
        blocks: dict[str, Block],
        new_engine: Callable[[int], FluxEngine],
        max_workers: int | None,
        on_event: Callable[[EngineEvent], None],
        thread: OwnerThread,
    ) -> None:
        self._backend = backend
        self._config = config
        self._launcher = launcher
        self._tasks = tasks
        self._waiting = waiting
        self._blocks = blocks
        self._new_engine = new_engine
        self._max_workers = max_workers
        self._on_event = on_event
        self._thread = thread
        self._names = (f"block-{number}" for number in itertools.count())
        self._backoff = Backoff(FIRST_BACKOFF, LAST_BACKOFF)
        #: Monotonic time before which no block is asked for, since one did not start.
        self._not_before = 0.0
        #: Monotonic time until which running tasks may finish, once the engine stops.
        self._stop_at = math.inf

    def find(self, jobid: int) -> Block:
        """Recover a block from before a restart; may be called before the thread runs."""
        future = self._backend.executor.attach(jobid)
        block = Block(next(self._names), future, jobid=jobid, was_found=True)
        logs.event(log, logging.INFO, f"recovering {block.label}")
        self._follow(block)
        return block

    def stop(self, grace: float) -> None:
        """End all blocks, then the thread; running tasks may finish for `grace` seconds."""
        self._stop_at = time.monotonic() + grace
        for block in self._blocks.values():
            if block.state.is_coming:
                self._advance(block, BlockChange.CLOSE)

    def lose(self, reason: str) -> None:
        """Give up all blocks, because the enclosing instance is gone."""
        self._stop_at = time.monotonic()
        for block in list(self._blocks.values()):
            self._advance(block, BlockChange.JOB_ENDED, reason)

    def maintain(self) -> float:
        """Do what is due or newly possible; return the seconds until the next call."""
        again = [math.inf]
        assign = partial(self._tasks.assign, may_start=not self._is_stopping)
        done = [self._safely(step) for step in (self._keep_time, assign)]
        done.append(self._safely(lambda: again.append(self._scale())))
        return min(again) if all(done) else _AFTER_FAILURE

    @property
    def _is_stopping(self) -> bool:
        return not math.isinf(self._stop_at)

    def _safely(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception:
            log.exception("an action on a block failed; the other blocks go on")
            return False
        return True

    # The number of blocks

    def _scale(self) -> float:
        """Request and end blocks; return the seconds until the next decision."""
        now = time.monotonic()
        for block in self._blocks.values():
            needed = block.tasks or (block.state is not BlockState.READY and bool(self._waiting))
            if needed or self._tasks.expects(block):
                block.idle_since = None
            elif block.idle_since is None:
                block.idle_since = now
        moments = [self._next_time(block) for block in self._blocks.values()]
        if not self._is_stopping:
            decision = decide(
                self._config,
                [_seen(block) for block in self._blocks.values()],
                BlockDemand(self._tasks.unserved, self._waiting.capacity),
                now=now,
                not_before=self._not_before,
            )
            for name in decision.end:
                self._safely(partial(self._advance, self._blocks[name], BlockChange.CLOSE))
            for _ in range(decision.start):
                self._safely(self._request)
            moments.append(decision.again - now)
            if self._not_before > now:  # also set by a failure just now
                moments.append(self._not_before - now)
        elif not self._blocks:
            self._thread.stop()
        return max(0.0, min(moments, default=math.inf))

    def _request(self) -> None:
        try:
            future = self._launcher.submit()
        except (OSError, RuntimeError, ValueError) as error:
            if not self._backend.is_lost(error):
                self._start_failed(f"its job can't be submitted: {error}")
            return
        self._follow(Block(next(self._names), future))

    def _start_failed(self, why: str) -> None:
        self._not_before = time.monotonic() + next(self._backoff)
        failures = self._backoff.failures
        logs.event(log, logging.ERROR, "a block did not start", reason=why, failures=failures)
        is_there = any(block.state is BlockState.READY for block in self._blocks.values())
        if failures < MAX_FAILURES or is_there:
            return
        for held in self._waiting.take_all():
            text = f"EngineError: no block could be started in {failures} attempts: {why}"
            self._tasks.fail(held.task.task_id, ErrorCode.WORKER_LOST, text)

    # Events of one block

    def _follow(self, block: Block) -> None:
        self._blocks[block.name] = block
        future, post = block.future, self._thread.post
        future.add_jobid_callback(lambda _: post(lambda: self._identified(block)))
        for name in ("start", "exception", "clean"):
            future.add_event_callback(
                name, lambda _, event: post(partial(self._event, block, event))
            )
        future.add_done_callback(lambda _: post(lambda: self._check_job(block)))

    def _identified(self, block: Block) -> None:
        try:
            block.jobid = int(block.future.jobid(timeout=0))
        except (RuntimeError, CancelledError, OSError, ValueError):
            return  # never submitted; its end says why
        self._launcher.record(block.jobid)
        nodes = self._config.nodes_per_block
        logs.event(log, logging.INFO, f"{block.label} was requested", nodes=nodes)
        if block.state.is_ending:
            self._end_job(block)

    def _event(self, block: Block, event: EventRecord) -> None:
        if event.name == "start":
            block.started = event.timestamp
            self._advance(block, BlockChange.START)
        elif event.name == "exception" and event.context.get("severity") == 0:
            note = event.context.get("note") or event.context.get("type")
            self._ended_by_others(block, BlockChange.CLOSE, f"was ended: {note}")
        elif event.name == "clean":
            block.is_clean = True
            self._check_job(block)

    def _check_job(self, block: Block) -> None:
        """Check whether a block's job has ended, or can't be followed any more."""
        if not block.future.done():
            return  # its future is not done yet
        error = error_of(block.future)
        if hasattr(error, "severity"):
            if not block.is_clean:
                return  # its processes are being ended
        elif error is not None:
            if self._backend.is_lost(error):
                return  # all blocks are lost together
            self._end_job(block)  # it may still run, but its end could not be seen
        self._ended_by_others(block, BlockChange.JOB_ENDED, f"is gone: {end_of_job(block.future)}")

    def _ended_by_others(self, block: Block, event: BlockChange, why: str) -> None:
        """Handle the end of a block that the fleet may not have asked for."""
        reason = ""
        if block.state.is_open:
            reason = f"{block.label} {why}"
        elif block.state.is_coming and block.was_found:
            logs.event(log, logging.WARNING, f"{block.label} {why}")
        elif block.state.is_coming:
            tail = "" if block.jobid is None else self._launcher.log_tail(block.jobid)
            self._start_failed(f"{block.label} {why}" + (f"\n{tail}" if tail else ""))
        self._advance(block, event, reason)

    def _advance(
        self, block: Block, event: BlockChange, reason: str = "", grace: float = 0.0
    ) -> None:
        """Move a block to its next state and perform the actions that belong to it.

        Args:
            block: the block.
            event: what has happened, or is wanted.
            reason: why its tasks are lost or asked to end; default: no task is lost.
            grace: seconds that running tasks have, if the block ends.
        """
        before, block.state = block.state, BLOCK_STATES.after(block.state, event)
        if block.state is before:
            return
        if block.state.is_ending and not before.is_ending:
            level = logging.WARNING if reason else logging.INFO
            what = reason or f"{block.label} is ended"
            logs.event(log, level, what, tasks=len(block.tasks))
        match block.state:
            case BlockState.STARTING:
                name = f"{block.name} opens"
                threading.Thread(target=self._open, args=(block,), name=name, daemon=True).start()
            case BlockState.READY:
                self._is_ready(block)
            case BlockState.DRAINING:
                logs.event(log, logging.INFO, f"{block.label} ends soon", tasks=len(block.tasks))
                assert block.engine is not None
                block.engine.terminate(reason)
            case BlockState.STOPPING | BlockState.OVER_STOPPING:
                if before is not BlockState.STOPPING:
                    self._stop_engine(block, reason, grace)
            case BlockState.ABANDONED | BlockState.CLEARING:
                self._end_job(block)  # this also ends the start of its engine
            case BlockState.GONE:
                self._forget(block)

    # A block's engine

    def _open(self, block: Block) -> None:
        """Start the engine of a block; runs on its own thread."""
        assert block.jobid is not None
        post, tasks = self._thread.post, self._tasks
        try:
            engine = self._new_engine(block.jobid)
            engine.start(
                lambda result: post(lambda: tasks.finished(block, result)),
                self._on_event,
                lambda reason: post(partial(self._lost, block, reason)),
                lambda task, attempts: post(lambda: tasks.left(block, task, attempts)),
                lambda task_ids: post(lambda: tasks.found(block, task_ids)),
            )
        except Exception as error:
            if not isinstance(error, (FluxEndpointError, OSError, RuntimeError)):
                log.exception("the engine of a block could not be started")
            why = f"can't be used: {error}"
            post(lambda: self._ended_by_others(block, BlockChange.NOT_OPENED, why))
        else:
            status = engine.status()
            post(lambda: self._opened(block, engine, status))

    def _lost(self, block: Block, reason: str) -> None:
        """Handle that the engine of a block has lost its instance."""
        self._advance(block, BlockChange.CLOSE, f"{block.label}: {reason}")

    def _opened(self, block: Block, engine: FluxEngine, status: dict[str, Any]) -> None:
        block.engine = engine
        block.nodes = int(status["resources"]["nodes"])
        workers = self._waiting.workers * block.nodes
        block.meter.workers = min(workers, self._max_workers or workers)
        block.cores = max(1, int(status["resources"]["cores"]))
        expires = (status.get("usage") or {}).get("expires")
        block.expires = float(expires or block.started + self._config.walltime)
        self._advance(block, BlockChange.OPENED)

    def _is_ready(self, block: Block) -> None:
        self._backoff.reset()
        self._not_before = 0.0
        logs.event(log, logging.INFO, f"{block.label} is ready", nodes=block.nodes)
        if not block.was_found:
            self._tasks.fail_too_long(block)

    def _stop_engine(self, block: Block, reason: str, grace: float) -> None:
        engine = block.engine
        assert engine is not None
        if reason:
            engine.lose(reason)

        def stop() -> None:
            try:
                engine.stop(grace)
            except Exception:
                log.exception("the engine of a block did not stop cleanly")
            self._thread.post(lambda: self._engine_stopped(block))

        threading.Thread(target=stop, name=f"{block.name} ends", daemon=True).start()

    def _engine_stopped(self, block: Block) -> None:
        """Handle that a block's engine has stopped: all of its results are here."""
        block.engine = None
        self._advance(block, BlockChange.STOPPED)

    # A block's time limit and end

    def _keep_time(self) -> None:
        """Send SIGTERM to tasks of blocks that are about to end; later give up what still runs."""
        now = time.time()
        for block in list(self._blocks.values()):
            if self._is_stopping and block.state.is_open:
                self._finish(block)
            if block.state is BlockState.READY and now >= self._moment(block):
                self._advance(block, BlockChange.DRAIN, self._out_of_time(block))
            if block.state is BlockState.DRAINING:
                unsent = self._tasks.expects(block)
                if now >= self._moment(block):
                    self._advance(block, BlockChange.CLOSE, self._out_of_time(block))
                elif not block.tasks and not unsent:
                    self._advance(block, BlockChange.CLOSE)

    def _finish(self, block: Block) -> None:
        """End a block because the engine stops: workers finish their tasks, and jobs may end."""
        left = max(0.0, self._stop_at - time.monotonic())
        if not left or not block.load(jobs=True):
            self._advance(block, BlockChange.CLOSE, grace=left)

    def _out_of_time(self, block: Block) -> str:
        walltime = format_duration(self._config.walltime)
        return f"{block.label} reached its walltime of {walltime}"

    def _moment(self, block: Block) -> float:
        """Return when the next action on a block is due, in seconds since the epoch."""
        if block.state is BlockState.READY:
            return deadline.signal_time(block.expires, self._config)
        if block.state is BlockState.DRAINING:
            return deadline.end_time(block.expires, self._config)
        return math.inf

    def _next_time(self, block: Block) -> float:
        """Return the seconds until the next action on a block is due."""
        stop_at = math.inf if block.state.is_ending else self._stop_at
        return min(self._moment(block) - time.time(), stop_at - time.monotonic())

    def _end_job(self, block: Block) -> None:
        if block.jobid is not None:
            self._backend.cancel(block.jobid, "no longer needed")
        else:
            block.future.cancel()  # if that is too late, `_identified` cancels the job

    def _forget(self, block: Block) -> None:
        del self._blocks[block.name]
        for held in reversed(list(block.tasks.values())):
            self._tasks.requeue(block, held)
        self._tasks.forget_homes(block)
        if block.jobid is not None:
            self._tasks.take_leftovers(block, self._launcher.forget(block.jobid))


def _seen(block: Block) -> BlockView:
    is_ready = block.state is BlockState.READY
    return BlockView(block.name, block.state.is_coming, is_ready, block.idle_since)
