"""The tasks of an engine with blocks: which block has which task, also after a restart."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from flux_endpoint import logs
from flux_endpoint.engine import results
from flux_endpoint.engine.attempts import KeptAttempts, failure_text, overdue
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.blocks import deadline
from flux_endpoint.engine.blocks.block import Block, Held
from flux_endpoint.engine.blocks.states import BlockState
from flux_endpoint.engine.blocks.waiting import WaitingTasks
from flux_endpoint.engine.config import BlocksConfig
from flux_endpoint.engine.workers.recovery import Recovery
from flux_endpoint.engine.workers.spool import SpooledEnd
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)

#: A task is given up after this many new blocks had too little time left for it.
_MAX_TOO_LATE = 3


class BlockTasks:
    """Assigns tasks to blocks and handles their ends. Used by the blocks' thread only.

    Args:
        blocks: all blocks by name.
        waiting: the tasks without a block.
        config: options of the blocks.
        retries: how often a task is retried after a system failure.
        kept: attempts by earlier engines.
        on_result: called with the end of each task.
    """

    def __init__(
        self,
        blocks: dict[str, Block],
        waiting: WaitingTasks,
        config: BlocksConfig,
        *,
        retries: int,
        kept: KeptAttempts,
        on_result: Callable[[EngineResult], None],
    ) -> None:
        self._blocks = blocks
        self._waiting = waiting
        self._config = config
        self._retries = retries
        self._kept = kept
        self._attempts = kept.load()
        self._on_result = on_result
        #: Recovered blocks, by task id.
        self._homes: dict[str, Block] = {}
        #: Blocks from before a restart that may have tasks, and ends that ended blocks have left.
        self._recovery = Recovery((), (), 0.0)

    def begin(
        self, homes: dict[str, Block], holders: list[str], ends: Iterable[SpooledEnd]
    ) -> None:
        """Set what earlier blocks have.

        Args:
            homes: blocks in which jobs of tasks were submitted, by task id.
            holders: names of the blocks whose workers may have tasks.
            ends: task ends that ended blocks have left.
        """
        self._homes = homes
        self._recovery = Recovery(holders, ends, time.monotonic())

    def take(self, task: EngineTask) -> None:
        """Queue a task, or refuse it if no block can run it."""
        attempts = list(self._attempts.pop(task.task_id, ()))
        if (end := self._recovery.end(task.task_id)) is not None:
            self._conclude(Held(task, attempts=attempts), end)
            return
        self._add(task, attempts)

    def _add(self, task: EngineTask, attempts: list[str]) -> None:
        try:
            self._waiting.add(task, attempts, runs=task.task_id in self._homes)
        except FluxEndpointError as error:
            self.fail(task.task_id, ErrorCode.ENGINE_REFUSED, f"{type(error).__name__}: {error}")

    def settle(self, task_ids: Collection[str]) -> None:
        """Discard ends that the submitter has on disk."""
        self._recovery.settle(task_ids)
        for block in self._blocks.values():
            if block.engine is not None:
                block.engine.settle(task_ids)

    def found(self, block: Block, task_ids: Collection[str]) -> None:
        """Record the tasks that the workers of a recovered block report."""
        self._recovery.reported(block.name, {})
        waiting = {held.task.task_id for held in self._waiting}
        for task_id in task_ids:
            if not self._recovery.is_complete or task_id in waiting:
                self._homes[task_id] = block

    def complete_recovery(self) -> None:
        """Record that all earlier tasks are here; the blocks' other tasks are discarded."""
        self._recovery.complete()
        waiting = {held.task.task_id for held in self._waiting}
        self._homes = {each: home for each, home in self._homes.items() if each in waiting}

    def _report_recovered(self) -> None:
        """Have the engines of blocks discard tasks that nobody submitted again."""
        if not self._recovery.is_complete or self._recovery.is_pending:
            return
        for block in self._blocks.values():
            if block.engine is not None and not block.is_recovered:
                block.is_recovered = True
                block.engine.recovered()

    def _conclude(self, held: Held, end: SpooledEnd) -> None:
        """Process a task's end that its block has left on disk."""
        task_id, kind = held.task.task_id, end.header.get("end", "result")
        try:
            body = end.body()
        except OSError as error:
            logs.event(log, logging.ERROR, "a result on disk can't be read", reason=error)
            kind, body = "unread", b""
        if kind == "result" and not end.header.get("format"):
            self._end(EngineResult(task_id, body))
        elif kind == "cancelled":
            self._fail_cancelled(task_id)
        elif kind == "overdue":
            text, details = overdue(float(body))
            code = ErrorCode.REMOTE_EXECUTION
            self._end(EngineResult(task_id, results.failure(task_id, code, text, details=details)))
        else:
            self._recovery.settle([task_id])
            attempts = [*held.attempts, body.decode(errors="replace")]
            if kind != "lost":
                self._add(held.task, held.attempts)
            elif len(attempts) <= self._retries:
                self._add(held.task, attempts)
            else:
                self.fail(task_id, ErrorCode.WORKER_LOST, failure_text("WorkerLost", attempts))

    def take_leftovers(self, block: Block, ends: list[SpooledEnd]) -> None:
        """Take the ends that an ended block's workers have left on disk."""
        self._recovery.gone(block.name, ends)
        there = {end.header["id"] for end in ends}
        for held in [held for held in self._waiting if held.task.task_id in there]:
            if (end := self._recovery.end(held.task.task_id)) is not None:
                self._waiting.remove(held)
                self._conclude(held, end)
        if self._recovery.is_complete:
            self._recovery.complete()

    def follow_output(self, task_id: str, seconds: float, known: tuple[int, int]) -> None:
        """Report what a task prints that runs in a block."""
        for block in self._blocks.values():
            if task_id in block.tasks and block.engine is not None:
                block.engine.follow_output(task_id, seconds, known)

    def cancel(self, task_id: str, signum: int | None) -> None:
        """End a task wherever it is, or send `signum` to its processes."""
        held = self._waiting.find(task_id)
        if held is not None:
            if signum is None:
                self._waiting.remove(held)
                self._fail_cancelled(task_id)
            return
        for block in self._blocks.values():
            if (running := block.tasks.get(task_id)) is not None:
                running.cancelled = running.cancelled or signum is None
                if block.engine is not None:
                    block.engine.cancel(task_id, signum)

    def set_urgency(self, task_id: str, urgency: int) -> None:
        """Set a task's urgency; without a block, only a hold has an effect."""
        waiting = self._waiting.find(task_id)
        if waiting is not None:
            waiting.task = replace(waiting.task, urgency=urgency)
        for block in self._blocks.values():
            if (held := block.tasks.get(task_id)) is not None:
                held.task = replace(held.task, urgency=urgency)
                if block.engine is not None:
                    block.engine.set_urgency(task_id, urgency)

    def _fail_cancelled(self, task_id: str) -> None:
        self.fail(task_id, ErrorCode.CANCELLED, "TaskCancelled: the task was ended on request")

    def fail(self, task_id: str, code: ErrorCode, text: str) -> None:
        """End a task that has no block with a failure."""
        self._end(EngineResult(task_id, results.failure(task_id, code, text)))

    def _end(self, result: EngineResult) -> None:
        self._kept.forget(result.task_id)
        self._homes.pop(result.task_id, None)
        self._on_result(result)

    def finished(self, block: Block, result: EngineResult) -> None:
        """Handle a task's end that a block reports."""
        if block.tasks.pop(result.task_id, None) is not None:
            block.meter.finished(time.monotonic())
            self._end(result)

    def left(self, block: Block, task_id: str, attempts: list[str]) -> None:
        """Take a task back that a block has not started, or that may be retried."""
        held = block.tasks.get(task_id)
        if held is None:
            return
        ran = len(attempts) > len(held.attempts)
        held.attempts = attempts
        held.avoid = block.name
        if not (ran and block.state.is_ending):  # else its processes must end before the retry
            self.requeue(block, held)

    def requeue(self, block: Block, held: Held) -> None:
        """Queue a block's task again."""
        task_id = held.task.task_id
        del block.tasks[task_id]
        if held.cancelled:
            self._fail_cancelled(task_id)
        else:
            self._waiting.put_back(held)

    def assign(self, *, may_start: bool) -> None:
        """Assign tasks to the blocks that run them already, and if allowed start others."""
        for held in list(self._waiting) if self._homes else ():
            home = self._homes.get(held.task.task_id)
            if home is not None and home.engine is not None:
                self._waiting.remove(held)
                self._send(home, held)  # it is running there
        self._report_recovered()
        if self._recovery.is_pending:
            return  # a recovered block may still report any of them
        ready = [block for block in self._blocks.values() if block.state is BlockState.READY]
        if may_start and self._waiting and ready:
            for block, held in self._waiting.assign(ready, self._homes, time.time()):
                self._send(block, held)

    def _send(self, block: Block, held: Held) -> None:
        assert block.engine is not None
        before = deadline.start_before(block.expires, held.walltime, self._config)
        if not block.tasks:
            block.meter.begins(time.monotonic())
        block.tasks[held.task.task_id] = held
        self._homes.pop(held.task.task_id, None)
        block.engine.submit(replace(held.task, start_before=before), held.attempts)

    @property
    def unserved(self) -> int:
        """Return the number of cores that the tasks without a block take."""
        return 0 if self._recovery.is_pending else self._waiting.cores(but=self._homes)

    def fail_too_long(self, fresh: Block) -> None:
        """Fail tasks that a new block, like others before, has too little time for.

        One block that started slowly is no reason: the next may be faster.
        """
        for held in list(self._waiting):
            if held.walltime is None or held.task.task_id in self._homes:
                continue
            before = deadline.start_before(fresh.expires, held.walltime, self._config)
            held.too_late += time.time() >= before
            if held.too_late >= _MAX_TOO_LATE:
                self._waiting.remove(held)
                text = deadline.too_late(held.walltime, held.too_late, self._config)
                self.fail(held.task.task_id, ErrorCode.ENGINE_REFUSED, f"EngineError: {text}")

    def expects(self, block: Block) -> bool:
        """Return whether a recovered block has tasks that were not submitted again yet."""
        return block in self._homes.values()

    def forget_homes(self, block: Block) -> None:
        """Record that a block has no earlier tasks any more."""
        for task_id in [each for each, home in self._homes.items() if home is block]:
            del self._homes[task_id]
