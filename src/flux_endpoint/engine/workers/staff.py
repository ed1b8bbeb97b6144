"""The workers of a node: their tasks, and the tasks that wait for them."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Collection, Iterator
from typing import Any

import zmq

from flux_endpoint import logs
from flux_endpoint.engine import results
from flux_endpoint.engine.outcome import ENDED_BY_SIGTERM
from flux_endpoint.engine.workers.backlog import NodeQueue, TaskTimes, tasks_ahead
from flux_endpoint.engine.workers.frames import NoFrameError
from flux_endpoint.engine.workers.handle import WorkerHandle
from flux_endpoint.engine.workers.outbox import FORGED, Listener, TaskEnds
from flux_endpoint.engine.workers.output_reader import OutputReader, WorkerOutput
from flux_endpoint.engine.workers.process_tree import end_of
from flux_endpoint.engine.workers.settings import ManagerSettings
from flux_endpoint.engine.workers.template_link import TemplateLink
from flux_endpoint.engine.workers.termination import WorkerTermination
from flux_endpoint.engine.workers.worker_reports import (
    FalseReportError,
    Late,
    Leaves,
    Skipped,
    TaskEnded,
    Writes,
    report_in,
)

log = logging.getLogger(__name__)

#: Seconds that a task runs before tasks that were sent after it are taken back.
_TAKE_BACK_AFTER = 0.05
#: Seconds after which a running task is reported to the pool.
_REPORT_AFTER = 1.0
#: A task with a larger buffer (bytes) is only sent to an idle worker.
_LARGE = 1 << 16
#: If this many workers in a row end before their first task, none can start.
_MAX_FAILED_STARTS = 4
#: Seconds after which an idle worker is ended that does not skip the tasks that were taken back
#: from it: it is busy with something that is not a task.
_UNRESPONSIVE_AFTER = 10.0


class Staff:
    """The node's workers, forked from a template, and the tasks that wait for them.

    Args:
        settings: the manager's.
        listener: callbacks for what becomes of the tasks.

    Raises:
        EngineError: the workers' gpus are not visible here.
    """

    def __init__(self, settings: ManagerSettings, listener: Listener) -> None:
        self._listener = listener
        self._output = OutputReader(settings.tasks.output_limit, listener)
        self._template = TemplateLink(settings, self._output)
        self._queue = NodeQueue()
        #: Whether tasks may start.
        self.may_start = False
        #: After a SIGTERM to all tasks: why the tasks that it ends are lost.
        self._terminated = ""
        self._ends = TaskEnds(listener)
        self._termination = WorkerTermination()
        self._workers: list[WorkerHandle] = []
        self.times = TaskTimes()
        self._failed_starts = 0
        #: Whether workers can't start.
        self.has_failed = False
        self._poller: zmq.Poller

    def start(self, poller: zmq.Poller) -> None:
        """Start the workers; `poller` gets the descriptors to serve."""
        self._poller = poller
        poller.register(self._template, zmq.POLLIN)
        poller.register(self._output, zmq.POLLIN)
        self._start_workers()

    def serve(self, source: object) -> None:
        """Process a descriptor that is ready."""
        if source == self._template.fileno():
            self._receive_from_template()
            return
        if source == self._output.fileno():
            self._output.serve()
        worker = next((w for w in self._workers if w.channel.fileno() == source), None)
        if worker is not None and not worker.channel.eof:
            self._receive_from_worker(worker)

    # Waiting tasks

    @property
    def reserve(self) -> float:
        """Seconds for which each busy worker has, at least, tasks not begun; 0: none is busy."""
        fewest = min((len(w.tasks) for w in self._workers if w.tasks), default=1)
        return (fewest - 1) * self.times.least

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs."""
        return not any(worker.tasks for worker in self._workers)

    def add(self, header: dict[str, Any], buffer: bytes) -> None:
        """Append a task."""
        self._queue.add((header, buffer))

    def hold(self) -> None:
        """Start no more tasks, and take back those that no worker has begun."""
        self.may_start = False
        for worker in list(self._workers):
            self._settle(worker)

    def waiting(self) -> list[str]:
        """Return the tasks that have not begun; after `hold`, that is all of them."""
        return self._queue.task_ids

    def running(self) -> dict[str, float]:
        """Return the running tasks with their starts, in seconds since the epoch."""
        return {
            task_id: worker.tasks.began
            for worker in self._workers
            for task_id in worker.tasks
            if task_id not in self._ends.unwanted
        }

    def give_back(self, count: int) -> list[str]:
        """Remove at most `count` tasks that have not begun, the last first; return their ids."""
        return self._queue.take_last(count)

    def drop(self, task_ids: Collection[str]) -> None:
        """Forget unwanted tasks, and end those of them that run."""
        self._queue.remove(task_ids)
        for worker in self._workers:
            for task_id in worker.tasks:
                if task_id in task_ids:
                    self._ends.unwanted.add(task_id)
                    self._termination.end(worker, task_id)

    def dispatch(self) -> None:
        """Send waiting tasks to workers, if tasks may start."""
        if not self._queue or not self.may_start:
            return
        takers = [worker for worker in self._workers if worker.takes_tasks]
        # The same number for each, so that none idles while another has several left.
        share = math.ceil(
            (len(self._queue) + sum(len(w.tasks) for w in takers)) / max(1, len(takers))
        )
        for most in (1, min(share, tasks_ahead(self.times.usual))):
            for worker in takers:
                if self._queue and len(worker.tasks) < most and worker.takes_tasks:
                    self._send(worker, most)

    def _send(self, worker: WorkerHandle, most: int) -> None:
        """Send tasks to a worker until it has `most`: small ones in one piece."""
        if not worker.tasks:
            worker.tasks.first_starts(time.monotonic())
        before = len(worker.tasks)
        while self._queue and len(worker.tasks) < most:
            if worker.tasks and self._queue.next_size > _LARGE:
                break
            task = self._queue.take()
            worker.tasks.add(task)
            worker.channel.put(task)
        worker.tasks.allow(len(worker.tasks) - before)
        if worker.tasks.has_miscounted:
            self._distrust(worker)
        else:
            worker.channel.flush()

    def _take_back(self, worker: WorkerHandle) -> None:
        """Put the tasks that `worker` has not started back at the head of the queue."""
        not_begun = worker.tasks.revoke()
        if worker.tasks.has_miscounted:
            self._distrust(worker)
            return
        for _ in range(not_begun):
            self._queue.put_back(worker.tasks.take_back())

    def _settle(self, worker: WorkerHandle) -> None:
        """Make sure that `worker` has no task but the running one.

        A result may be written but not read yet. The worker goes on to the next task only with a
        claim, and only after writing its result: so all claims are taken first.
        """
        self._take_back(worker)
        if not worker.channel.eof:
            self._receive_from_worker(worker)

    # Workers

    def _start_workers(self) -> None:
        for worker in self._template.new_workers():
            self._workers.append(worker)
            worker.channel.open(self._poller)

    def _receive_from_template(self) -> None:
        try:
            for pid, status in self._template.exits():
                self._worker_exited(pid, status)
        except EOFError:
            logs.event(log, logging.ERROR, "template process lost")
            self.has_failed = True
        self._template.end_orphans(self._workers)
        if not self.has_failed:
            self._start_workers()

    def _receive_from_worker(self, worker: WorkerHandle) -> None:
        try:
            for header, body in worker.channel.receive():
                self._handle(worker, header, body)
                if worker.channel.eof:
                    break
        except (NoFrameError, FalseReportError):
            self._distrust(worker)
        except EOFError:
            worker.channel.stop_reading()
        if not worker.channel.eof:
            worker.channel.flush()

    def _handle(self, worker: WorkerHandle, header: dict[str, Any], body: bytes) -> None:
        match report_in(worker, header, body):
            case Skipped():
                worker.tasks.skipping -= 1
            case Late(task_id):
                self._late(worker, task_id)
            case Leaves(reason):
                self._replaced(worker, reason)
            case Writes(task_id, output):
                self._output.writes(task_id, output)
            case TaskEnded(task_id) as end:
                is_cancelled = worker.cancelled == task_id  # its files are the only ones with it
                printed = self._output.ended(
                    task_id, worker.output, end.streams, with_files=is_cancelled
                )
                if task_id != worker.tasks.ended:
                    self._finished(worker, end, printed)

    def _distrust(self, worker: WorkerHandle) -> None:
        """End a worker with invalid data on its connection: none of its messages can be trusted."""
        if worker.is_distrusted:
            return
        worker.is_distrusted = True
        worker.channel.stop_reading()
        self._termination.kill(worker)

    def _replaced(self, worker: WorkerHandle, reason: str) -> None:
        """Replace a worker that ends by itself between two tasks."""
        pid = worker.process.pid
        logs.event(log, logging.INFO, "worker replaced", pid=pid, reason=reason)
        self._listener.printed(f"worker {pid} is replaced: {reason}\n".encode())
        worker.leaves = True
        self._take_back(worker)
        if worker.tasks:  # it announced its end during a task
            raise FalseReportError
        self._termination.kill_later(worker)

    def _late(self, worker: WorkerHandle, task_id: str) -> None:
        """Handle that a worker did not start a task because its `start_before` had passed."""
        worker.tasks.remove(task_id)
        worker.tasks.first_starts(time.monotonic())
        if worker.cancelled == task_id:
            self._ends.cancelled(task_id)
        else:
            self._listener.late([task_id])

    def _finished(self, worker: WorkerHandle, end: TaskEnded, printed: dict[str, Any]) -> None:
        task_id = end.task_id
        formats = worker.tasks.remove(task_id)[0].get("format")
        worker.tasks.ended = task_id
        worker.served += 1
        worker.signalled = None
        self._failed_starts = 0
        now, began = time.monotonic(), worker.tasks.began
        # What the worker says leaves out how long its messages took.
        self.times.add(now - worker.tasks.since if end.seconds is None else end.seconds)
        worker.tasks.first_starts(now)
        if worker.cancelled == task_id:  # the cancellation may have ended it
            self._ends.cancelled(task_id, began, printed)
        elif self._terminated and end.returncode in ENDED_BY_SIGTERM:
            self._ends.lost(task_id, self._terminated, began, printed)
        else:
            header = {"id": task_id, "format": True} if formats else {"id": task_id}
            self._ends.result(header, results.with_output(end.body, printed))

    def _printed(self, output: WorkerOutput) -> None:
        """Find the task whose output was read, which may have ended before that."""
        worker = next(each for each in self._workers if each.output is output)
        if not worker.channel.eof:
            self._receive_from_worker(worker)
        self._output.belongs_to(next(iter(worker.tasks), None), output)

    def follow(self, request: dict[str, Any]) -> None:
        """Report what a task prints, if it runs here; the request is as in `messages`."""
        running = {next(iter(each.tasks)): each.output for each in self._workers if each.tasks}
        self._output.follow(request, running.get(request["id"]))

    def _worker_exited(self, pid: int, status: int) -> None:
        worker = next((w for w in self._workers if w.process.pid == pid), None)
        if worker is None:
            return  # a process that outlived its worker
        if not worker.channel.eof:
            self._receive_from_worker(worker)  # results that it wrote before it ended
        worker.channel.stop_reading()
        worker.channel.close()
        not_begun = worker.tasks.revoke()
        worker.tasks.close()
        worker.process.has_exited = True
        self._workers.remove(worker)
        self._template.replace(worker)
        self._template.end_orphans(self._workers)
        self._account_for(worker, pid, status, not_begun)
        if self._failed_starts >= _MAX_FAILED_STARTS:
            logs.event(log, logging.ERROR, "workers end before their first task", status=status)
            self.has_failed = True

    def _account_for(self, worker: WorkerHandle, pid: int, status: int, not_begun: int) -> None:
        # Tasks that were sent ahead have not started; they keep their places.
        for _ in range(not_begun):
            task = worker.tasks.remove_last()
            task_id = str(task[0]["id"])
            if worker.cancelled == task_id:
                self._ends.cancelled(task_id)
            else:
                self._queue.put_back(task)
        printed = self._output.lost(worker.output, next(iter(worker.tasks), ""))
        if not worker.tasks:
            self._failed_starts += 0 if worker.served or worker.is_distrusted else 1
            return
        (running, *others), began = worker.tasks, worker.tasks.began
        wanted = worker.signalled is not None and worker.signalled == os.WTERMSIG(status)
        if self._terminated and wanted and worker.cancelled != running:
            self._ends.lost(running, self._terminated, began, printed)
        elif worker.cancelled == running or wanted:
            self._ends.cancelled(running, began, printed)
        else:
            reason = FORGED if worker.is_distrusted else end_of(status)
            logs.event(log, logging.WARNING, "worker lost", pid=pid, reason=reason)
            self._ends.lost(running, reason, began, printed)
        for task_id in others:  # begun after a task whose end could not be read
            self._ends.lost(task_id, FORGED, began)

    # Ending tasks

    def cancel(self, task_id: str) -> None:
        """End a task, wherever it is."""
        if (worker := self._settled(task_id)) is not None:
            self._termination.end(worker, task_id)
        elif self._queue.remove({task_id}):
            self._ends.cancelled(task_id)

    def take(self, task_id: str) -> list[str]:
        """Remove a task that has not begun; return its id, or nothing."""
        self._settled(task_id)
        return [task_id] if self._queue.remove({task_id}) else []

    def _settled(self, task_id: str) -> WorkerHandle | None:
        """Return the worker that runs a task; its other tasks are put back, and not affected."""
        for worker in self._workers:
            if task_id in worker.tasks:
                self._settle(worker)  # it may have gone on to another task
                return worker if task_id in worker.tasks else None
        return None

    def terminate(self, reason: str) -> list[str]:
        """Send SIGTERM to all tasks, because the node is about to end; return those not begun.

        Tasks that this ends are lost for `reason`.
        """
        self._terminated = reason
        for worker in list(self._workers):
            self._settle(worker)
        returned = self.give_back(len(self._queue))
        for worker in self._workers:
            for task_id in list(worker.tasks):
                self._termination.signal(worker, signal.SIGTERM, task_id)
        return returned

    def signal(self, signum: int, task_id: str) -> None:
        """Send a signal to the processes that a running task started, or to a Python function."""
        if (worker := self._settled(task_id)) is not None:
            self._termination.signal(worker, signum, task_id)

    # Timers

    def moments(self) -> Iterator[float]:
        """Yield the monotonic times at which something is due."""
        yield from self._termination.moments()
        yield from self._output.moments()
        for worker in self._workers:
            tasks = worker.tasks
            if len(tasks) > 1:
                yield tasks.since + _TAKE_BACK_AFTER
            if tasks and not tasks.is_reported:
                yield tasks.since + _REPORT_AFTER
            if worker.is_unresponsive:
                yield tasks.since + _UNRESPONSIVE_AFTER
            yield worker.overdue_at
        yield time.monotonic() + self._queue.late_at - time.time()

    def expire(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        self._termination.expire(now)
        for output in self._output.read_due():
            self._printed(output)
        if time.time() >= self._queue.late_at and (late := self._queue.take_late(time.time())):
            self._listener.late(late)
        for worker in list(self._workers):
            if worker.overdue_at <= now:
                self._end_overdue(worker, now)
            tasks, passed = worker.tasks, now - worker.tasks.since
            if len(tasks) > 1 and passed >= _TAKE_BACK_AFTER:
                self._take_back(worker)
                tasks.since = now  # so that an unread result does not wake us again at once
            elif tasks and not tasks.is_reported and passed >= _REPORT_AFTER:
                # A task that reported its own end may go on running: later tasks do not begin.
                self._take_back(worker)
                tasks.is_reported = True
                if tasks:
                    self._listener.running(next(iter(tasks)), tasks.began)
            elif worker.is_unresponsive and passed >= _UNRESPONSIVE_AFTER:
                self._distrust(worker)

    def _end_overdue(self, worker: WorkerHandle, now: float) -> None:
        """End the running task of a worker, whose time is over, and the worker with it."""
        self._settle(worker)  # its other tasks are not affected; it may have ended just now
        if worker.overdue_at <= now:
            task_id = next(iter(worker.tasks))
            logs.event(log, logging.INFO, "task overdue", task=task_id, limit=worker.tasks.limit)
            self._ends.overdue[task_id] = worker.tasks.limit
            self._termination.end(worker, task_id)

    def close(self) -> dict[str, float]:
        """Kill all workers; return the tasks that they had begun and not finished, with starts."""
        self.hold()
        self._template.kill()
        for worker in self._workers:  # results from before they were killed
            if not worker.channel.eof:
                self._receive_from_worker(worker)
        self._output.close()
        return self.running()
