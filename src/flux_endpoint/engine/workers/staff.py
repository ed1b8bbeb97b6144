"""The workers of a node: which of them runs what, and what waits for one of them."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import psutil
import zmq

from flux_endpoint import logs
from flux_endpoint.engine.outcome import ENDED_BY_SIGTERM
from flux_endpoint.engine.output import OutputPipe
from flux_endpoint.engine.workers.begun import BegunTasks
from flux_endpoint.engine.workers.claims import Claims
from flux_endpoint.engine.workers.frames import FrameSocket, NoFrameError
from flux_endpoint.engine.workers.handle import WorkerHandle
from flux_endpoint.engine.workers.node_queue import NodeQueue
from flux_endpoint.engine.workers.process_tree import end_of, kill_tree, signal_tree
from flux_endpoint.engine.workers.settings import ManagerSettings
from flux_endpoint.engine.workers.spool import EndHeader
from flux_endpoint.engine.workers.template import request_worker, start_template
from flux_endpoint.engine.workers.told import (
    Ended,
    Late,
    Leaves,
    Skipped,
    UntrueFrameError,
    told_by,
)
from flux_endpoint.functions import command_of

log = logging.getLogger(__name__)

#: Seconds between asking a cancelled task to end and killing it.
KILL_GRACE = 3.0
#: Tasks shorter than this many seconds are sent to a worker several at a time.
_SHORT = 0.002
_MOST_AHEAD = 16
#: Seconds for which a task may run before those sent after it are taken back.
_TAKE_BACK_AFTER = 0.05
#: Seconds after which the pool is told that a task runs.
_TELL_AFTER = 1.0
#: A task with a larger buffer (bytes) waits for an idle worker.
_LARGE = 1 << 16
#: So many workers in a row that end before their first task mean that none can start.
_MOST_STILLBORN = 4
#: Seconds after which a worker is ended that has nothing to do and does not come across what was
#: taken back from it: whatever it does, it is no task's.
_SILENT = 10.0
#: Why a task was lost that a worker had whose connection was written to by a task.
_FORGED = (
    "something that is not the worker's own was written to its connection, perhaps by the task (a "
    "descriptor that is not its own?), so that the worker was ended"
)
#: Most workers that the template is asked for at a time: the kernel takes few more requests.
_MOST_UNBORN = 64


class Listener(Protocol):
    """Who is told what becomes of the tasks."""

    def ended(self, header: EndHeader, body: bytes) -> None:
        """A task has ended; see `spool.EndHeader`."""

    def late(self, task_ids: list[str]) -> None:
        """Tasks were not started in time, and are not here any more."""

    def runs(self, task_id: str, began: float) -> None:
        """A task runs for a while already, since `began`, in seconds since the epoch."""

    def printed(self, data: bytes) -> None:
        """There is something to say to whoever reads what workers print."""


class Staff:
    """The node's workers, forked from a template, and the tasks that wait for them.

    Args:
        settings: the manager's.
        output: what workers print to.
        listener: told what becomes of the tasks.

    Raises:
        EngineError: the workers' gpus are not here.
    """

    def __init__(self, settings: ManagerSettings, output: OutputPipe, listener: Listener) -> None:
        self._listener = listener
        self._template_pid, control = start_template(settings, output, _begun_tasks(settings))
        self._control_socket = control
        self._control = FrameSocket(control)
        self._queue = NodeQueue()
        #: Whether tasks may be started.
        self.may_start = False
        #: Why what ends of SIGTERM is lost, once all was sent it.
        self._terminated = ""
        #: Tasks whose ends nobody wants.
        self._unwanted: set[str] = set()
        self._workers: list[WorkerHandle] = []
        self._unborn: deque[WorkerHandle] = deque()
        self._free_places = list(range(settings.workers))
        self._task_seconds = 1.0
        self._stillborn = 0
        #: Whether workers can't be had.
        self.is_useless = False
        #: Whether a worker has ended whose processes may live on.
        self._orphans = False
        self._deadlines: list[tuple[float, Callable[[], None]]] = []
        self._poller: zmq.Poller

    def start(self, poller: zmq.Poller) -> None:
        """Start the workers; `poller` gets what is to be served."""
        self._poller = poller
        poller.register(self._control, zmq.POLLIN)
        self._fill_places()

    def serve(self, source: object) -> None:
        """Deal with what has become ready."""
        if source == self._control.fileno():
            self._receive_from_template()
            return
        worker = next((w for w in self._workers if w.channel.fileno() == source), None)
        if worker is not None and not worker.eof:
            self._receive_from_worker(worker)

    # Tasks

    @property
    def ahead(self) -> int:
        """How many tasks a worker may hold: one, or more where tasks are short."""
        return max(1, min(_MOST_AHEAD, int(_SHORT / max(self._task_seconds, 1e-6))))

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs."""
        return not any(worker.tasks for worker in self._workers)

    def add(self, header: dict[str, Any], buffer: bytes) -> None:
        """Queue a task behind all others."""
        self._queue.add((header, buffer))

    def hold(self) -> None:
        """Start nothing more, and take back what no worker has begun."""
        self.may_start = False
        for worker in list(self._workers):
            self._settle(worker)

    def waiting(self) -> list[str]:
        """Return the tasks that have not begun; all of them after `hold`."""
        return self._queue.task_ids

    def running(self) -> dict[str, float]:
        """Return when each task began that a worker has, in seconds since the epoch."""
        return {
            task_id: worker.began
            for worker in self._workers
            for task_id in worker.tasks
            if task_id not in self._unwanted
        }

    def give_back(self, count: int) -> list[str]:
        """Take at most so many tasks out that have not begun, the last first."""
        return self._queue.take_last(count)

    def drop(self, task_ids: Collection[str]) -> None:
        """Forget tasks that nobody wants any more, and end those that run."""
        self._queue.remove(task_ids)
        for worker in self._workers:
            for task_id in worker.tasks:
                if task_id in task_ids:
                    self._unwanted.add(task_id)
                    self._end_running(worker, task_id)

    def dispatch(self) -> None:
        """Give workers what waits, if that may be started."""
        if not self._queue or not self.may_start:
            return
        for most in (1, self.ahead):
            for worker in self._workers:
                while self._queue and len(worker.tasks) < most and worker.takes_tasks:
                    if worker.tasks and self._queue.next_size > _LARGE:
                        break
                    self._send(worker, *self._queue.take())

    def _send(self, worker: WorkerHandle, header: dict[str, Any], buffer: bytes) -> None:
        if not worker.tasks:
            worker.starts(time.monotonic())
        task_id = str(header["id"])
        worker.tasks.append(task_id)
        worker.sent[task_id] = (header, buffer)
        if worker.ended == task_id:  # it is run again
            worker.ended = ""
        if worker.claims.add():
            worker.channel.send(header, buffer)
            self._watch(worker)
        else:
            worker.has_miscounted = True
            self._distrust(worker)

    def _take_back(self, worker: WorkerHandle) -> None:
        """Put the tasks that `worker` has not started at the head of the queue again."""
        not_begun = _not_begun(worker)
        if worker.has_miscounted:
            self._distrust(worker)
            return
        for _ in range(not_begun):
            task_id = worker.tasks.pop()
            self._queue.put_back(worker.sent.pop(task_id))
            worker.skipping += 1

    def _settle(self, worker: WorkerHandle) -> None:
        """Have `worker` be left with no task but the one that it runs, if it runs one.

        What it has finished may not have been read yet. It goes on to the next task only if it has
        the claim, and only when its result is written: so first nobody must have one any more.
        """
        self._take_back(worker)
        if not worker.eof:
            self._receive_from_worker(worker)

    # Workers

    def _fill_places(self) -> None:
        while self._free_places and len(self._unborn) < _MOST_UNBORN:
            self._new_worker()

    def _new_worker(self) -> None:
        claims = Claims()
        place = self._free_places.pop(0)
        channel = FrameSocket(request_worker(self._control_socket, claims, place))
        worker = WorkerHandle(channel, claims, place)
        self._workers.append(worker)
        self._unborn.append(worker)
        self._poller.register(worker.channel, zmq.POLLIN)

    def _receive_from_template(self) -> None:
        try:
            for header, _ in self._control.receive():
                if "forked" in header:
                    self._born(self._unborn.popleft(), header["forked"])
                else:
                    self._worker_exited(header["exited"], header["status"])
        except EOFError:
            logs.event(log, logging.ERROR, "template process lost")
            self.is_useless = True

    def _born(self, worker: WorkerHandle, pid: int) -> None:
        worker.pid = pid
        for action in worker.once_born:
            action()
        worker.once_born.clear()
        self._end_orphans()
        self._fill_places()

    def _receive_from_worker(self, worker: WorkerHandle) -> None:
        try:
            for header, body in worker.channel.receive():
                self._heed(worker, header, body)
                if worker.eof:
                    break
        except (NoFrameError, UntrueFrameError):
            self._distrust(worker)
        except EOFError:
            self._unhear(worker)
        if not worker.eof:
            worker.channel.flush()
            self._watch(worker)

    def _heed(self, worker: WorkerHandle, header: dict[str, Any], body: bytes) -> None:
        match told_by(worker, header, body):
            case Skipped():
                worker.skipping -= 1
            case Late(task_id):
                self._not_started(worker, task_id)
            case Leaves(reason):
                self._replaced(worker, reason)
            case Ended(task_id, returncode) if task_id != worker.ended:
                self._finished(worker, task_id, body, returncode)

    def _unhear(self, worker: WorkerHandle) -> None:
        """Read no more from a worker."""
        if not worker.eof:
            worker.eof = True
            self._poller.unregister(worker.channel)

    def _distrust(self, worker: WorkerHandle) -> None:
        """End a worker whose connection a task has written to: nothing it says can be believed."""
        if worker.is_distrusted:
            return
        worker.is_distrusted = True
        self._unhear(worker)
        if worker.pid is None:
            worker.once_born.append(partial(self._kill, worker))
        else:
            self._kill(worker)

    def _watch(self, worker: WorkerHandle) -> None:
        flags = zmq.POLLIN | (zmq.POLLOUT if worker.channel.wants_write else 0)
        self._poller.modify(worker.channel, flags)

    def _replaced(self, worker: WorkerHandle, reason: str) -> None:
        """A worker ends on its own account, between two tasks; another takes its place."""
        logs.event(log, logging.INFO, "worker replaced", pid=worker.pid, reason=reason)
        self._listener.printed(f"worker {worker.pid} is replaced: {reason}\n".encode())
        worker.leaves = True
        self._take_back(worker)
        if worker.tasks:  # it says so in the middle of one
            raise UntrueFrameError
        self._deadlines.append((time.monotonic() + KILL_GRACE, partial(self._kill, worker)))

    def _not_started(self, worker: WorkerHandle, task_id: str) -> None:
        """A worker came to a task when its time had passed."""
        worker.tasks.remove(task_id)
        del worker.sent[task_id]
        worker.starts(time.monotonic())
        if worker.cancelled == task_id:
            self._tell_cancelled(task_id)
        else:
            self._listener.late([task_id])

    def _finished(
        self, worker: WorkerHandle, task_id: str, body: bytes, returncode: int | None
    ) -> None:
        worker.tasks.remove(task_id)
        worker.ended = task_id
        formats = worker.sent.pop(task_id)[0].get("format")
        worker.served += 1
        worker.signalled = None
        self._stillborn = 0
        now, began = time.monotonic(), worker.began
        # Weighted towards the recent: one long task at once ends sending ahead.
        self._task_seconds += (now - worker.since - self._task_seconds) * 0.2
        worker.starts(now)
        if worker.cancelled == task_id:  # it may have come to an end because of that
            self._tell_cancelled(task_id, began)
        elif self._terminated and returncode in ENDED_BY_SIGTERM:
            self._tell_lost(task_id, self._terminated, began)
        else:
            self._ended({"id": task_id, "format": True} if formats else {"id": task_id}, body)

    def _worker_exited(self, pid: int, status: int) -> None:
        worker = next((w for w in self._workers if w.pid == pid), None)
        if worker is None:
            return  # something that outlived its worker
        if not worker.eof:
            self._receive_from_worker(worker)  # what it had finished counts
        self._unhear(worker)
        worker.channel.close()
        not_begun = _not_begun(worker)
        worker.claims.close()
        self._workers.remove(worker)
        self._free_places.append(worker.place)
        self._orphans = True
        self._end_orphans()
        self._account_for(worker, status, not_begun)
        if self._stillborn < _MOST_STILLBORN:
            self._fill_places()
        else:
            logs.event(log, logging.ERROR, "workers end before their first task", status=status)
            self.is_useless = True

    def _account_for(self, worker: WorkerHandle, status: int, not_begun: int) -> None:
        # What was sent ahead has not been started; it keeps its place.
        for _ in range(not_begun):
            task_id = worker.tasks.pop()
            if worker.cancelled == task_id:
                self._tell_cancelled(task_id)
            else:
                self._queue.put_back(worker.sent[task_id])
        if not worker.tasks:
            self._stillborn += 0 if worker.served or worker.is_distrusted else 1
            return
        running, *others = worker.tasks
        wanted = worker.signalled is not None and worker.signalled == os.WTERMSIG(status)
        if self._terminated and wanted and worker.cancelled != running:
            self._tell_lost(running, self._terminated, worker.began)
        elif worker.cancelled == running or wanted:
            self._tell_cancelled(running, worker.began)
        else:
            reason = _FORGED if worker.is_distrusted else end_of(status)
            logs.event(log, logging.WARNING, "worker lost", pid=worker.pid, reason=reason)
            self._tell_lost(running, reason, worker.began)
        for task_id in others:  # begun after one whose end could not be read
            self._tell_lost(task_id, _FORGED, worker.began)

    def _end_orphans(self) -> None:
        """Kill what a dead worker left: its children, and theirs, now belong to the template.

        While a new worker's process id is not known it would look like one of them.
        """
        if not self._orphans or self._unborn:
            return
        self._orphans = False
        workers = {worker.pid for worker in self._workers}
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._template_pid).children():
                if child.pid not in workers:
                    kill_tree(child.pid)

    # Ends

    def _ended(self, header: EndHeader, body: bytes) -> None:
        if header["id"] in self._unwanted:
            self._unwanted.remove(header["id"])
        else:
            self._listener.ended(header, body)

    def _tell_cancelled(self, task_id: str, began: float | None = None) -> None:
        self._ended({"id": task_id, "end": "cancelled", "began": began}, b"")

    def _tell_lost(self, task_id: str, reason: str, began: float) -> None:
        self._ended({"id": task_id, "end": "lost", "began": began}, reason.encode())

    def cancel(self, task_id: str) -> None:
        """End a task, wherever it is."""
        for worker in self._workers:
            if task_id in worker.tasks:
                self._settle(worker)  # the others that it held have nothing to do with it
                if task_id in worker.tasks:
                    self._end_running(worker, task_id)
                    return
                break
        if self._queue.remove({task_id}):
            self._tell_cancelled(task_id)

    def terminate(self, reason: str) -> list[str]:
        """Tell all that runs to end, since its node will soon be gone; return what has not begun.

        What ends of that is lost for `reason`.
        """
        self._terminated = reason
        for worker in list(self._workers):
            self._settle(worker)
        returned = self.give_back(len(self._queue))
        for worker in self._workers:
            for task_id in list(worker.tasks):
                self._signal_running(worker, signal.SIGTERM, task_id)
        return returned

    def signal(self, signum: int, task_id: str) -> None:
        """Send a signal to what a running task has started, or to a Python function itself."""
        for worker in self._workers:
            if task_id in worker.tasks:
                self._settle(worker)  # another task may have followed it
                self._signal_running(worker, signum, task_id)

    def _signal_running(self, worker: WorkerHandle, signum: int, task_id: str) -> None:
        """Signal a running task: what a command has started, or a Python function's worker too."""
        if task_id not in worker.tasks:
            return
        if worker.pid is None:
            worker.once_born.append(partial(self._signal_running, worker, signum, task_id))
            return
        _, buffer = worker.sent[task_id]
        if command_of(buffer.decode()) is not None:
            signal_tree(worker.pid, signum, itself=False)
        else:
            worker.signalled = signum
            signal_tree(worker.pid, signum)

    def _end_running(self, worker: WorkerHandle, task_id: str) -> None:
        """End the task that `worker` runs, and the worker with it: ask first, then kill."""
        worker.cancelled = task_id
        if worker.pid is None:
            worker.once_born.append(partial(self._end_running, worker, task_id))
            return
        signal_tree(worker.pid, signal.SIGTERM)
        self._deadlines.append((time.monotonic() + KILL_GRACE, partial(self._kill, worker)))

    def _kill(self, worker: WorkerHandle) -> None:
        if worker in self._workers and worker.pid is not None:
            kill_tree(worker.pid)

    # Time

    def moments(self) -> Iterator[float]:
        """Yield the monotonic times at which something is due."""
        yield from (moment for moment, _ in self._deadlines)
        yield from (w.since + _TAKE_BACK_AFTER for w in self._workers if len(w.tasks) > 1)
        yield from (w.since + _TELL_AFTER for w in self._workers if w.tasks and not w.told)
        yield from (w.since + _SILENT for w in self._workers if w.is_astray)
        yield time.monotonic() + self._queue.late_at - time.time()

    def expire(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        due = [action for moment, action in self._deadlines if moment <= now]
        self._deadlines = [entry for entry in self._deadlines if entry[0] > now]
        for action in due:
            action()
        if time.time() >= self._queue.late_at and (late := self._queue.take_late(time.time())):
            self._listener.late(late)
        for worker in list(self._workers):
            if len(worker.tasks) > 1 and now - worker.since >= _TAKE_BACK_AFTER:
                self._take_back(worker)
                worker.since = now  # so that an unread result does not bring us back at once
            elif worker.tasks and not worker.told and now - worker.since >= _TELL_AFTER:
                # A task that has told its own end may go on: what was sent then is not begun.
                self._take_back(worker)
                worker.told = True
                if worker.tasks:
                    self._listener.runs(worker.tasks[0], worker.began)
            elif worker.is_astray and now - worker.since >= _SILENT:
                self._distrust(worker)

    def close(self) -> dict[str, float]:
        """Kill all workers; return what they had begun and not finished, and when it began."""
        self.hold()
        for child in psutil.Process().children():
            kill_tree(child.pid)
        with suppress(ChildProcessError):
            os.waitpid(self._template_pid, 0)
        for worker in self._workers:  # what was done before they were killed
            if not worker.eof:
                self._receive_from_worker(worker)
        return self.running()


def _begun_tasks(settings: ManagerSettings) -> BegunTasks | None:
    try:
        return BegunTasks(settings.files.begun, settings.workers)
    except OSError as error:  # the node may not see the endpoint's directory
        logs.event(log, logging.WARNING, "not noted what is begun", reason=error)
        return None


def _not_begun(worker: WorkerHandle) -> int:
    """Return how many of its tasks a worker has not begun, and let it begin none of them.

    Where a task has counted up: all but the first, which may be that task.
    """
    there = len(worker.tasks)
    left = worker.claims.take_all(there + 1)
    worker.has_miscounted |= left > there
    return max(0, there - 1) if worker.has_miscounted else left
