"""The worker manager: one on each node, itself a job, between the pool and the node's workers.

Run as `python -m flux_endpoint.engine.workers.manager`; its settings come in the environment.

From the pool: `tasks`, then header and buffer of each; `return`, how many tasks are wanted back;
`held?`; `cancel`, a task's id; `signal`, a number and a task's id; `terminate`, why; `stop`.
To the pool: `hello`, its token and a JSON object; `results`, a JSON object, then id and body of
each; `output`, what workers have printed; `running`, id and start of a task that takes long, or
ends without a result; `returned`, ids of tasks that were not started; `late`, ids of those that
must not be any more; `held`, ids of those that are here; `lost`, a task's id and why; `cancelled`,
its id.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import zmq
import zmq.utils.monitor

from flux_endpoint import logs
from flux_endpoint.engine.outcome import ENDED_BY_SIGTERM
from flux_endpoint.engine.output import OutputPipe
from flux_endpoint.engine.workers.claims import Claims
from flux_endpoint.engine.workers.ends import end_of, kill_tree, signal_tree
from flux_endpoint.engine.workers.frames import FrameSocket
from flux_endpoint.engine.workers.settings import VARIABLE, ManagerSettings
from flux_endpoint.engine.workers.sleep import milliseconds_until
from flux_endpoint.engine.workers.template import adopt_orphans, request_worker, start_template
from flux_endpoint.errors import EngineError
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
#: Most workers that the template is asked for at a time: the kernel takes few more requests.
_MOST_UNBORN = 64
#: Seconds between two looks at what workers print.
_OUTPUT_PAUSE = 0.02


@dataclass(eq=False)
class _Worker:
    channel: FrameSocket
    claims: Claims
    #: Which of the node's workers it is: one that takes a lost one's place gets the same gpus.
    place: int
    pid: int | None = None
    #: What is to be done as soon as that is known.
    once_born: list[Callable[[], None]] = field(default_factory=list)
    #: Ids of the tasks that were sent, in order; the first is running.
    tasks: deque[str] = field(default_factory=deque)
    #: Those tasks, for the case that the worker is lost.
    sent: dict[str, tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    since: float = 0.0  # monotonic time at which the first of them was started
    began: float = 0.0  # the same in seconds since the epoch
    #: Whether the pool was told that it runs.
    told: bool = False
    #: How many tasks were taken back that it has not yet come across.
    skipping: int = 0
    served: int = 0
    cancelled: str | None = None
    #: The signal that somebody had us send to its running task.
    signalled: int | None = None
    #: Whether it starts nothing more, since a task has spoilt its process.
    leaves: bool = False
    eof: bool = False

    @property
    def takes_tasks(self) -> bool:
        ends = self.eof or self.leaves or self.cancelled is not None
        return not ends and not self.skipping

    def starts(self, now: float) -> None:
        """Take note that the first of the tasks is started, if there is one."""
        self.since, self.began = now, time.time()
        self.told = False


class Manager:
    """One thread, one poller: everything that happens on this node passes through `run`."""

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        adopt_orphans()  # should the template be lost, what was below it comes here
        # Before the first ZeroMQ thread exists.
        self._output = OutputPipe()
        self._template_pid, control = start_template(settings, self._output)
        self._control_socket = control
        self._control = FrameSocket(control)
        self._queue: deque[tuple[dict[str, Any], bytes]] = deque()
        #: When the first of them must not be started any more, in seconds since the epoch.
        self._late_at = math.inf
        #: Why what ends of SIGTERM is lost, once all was sent it.
        self._terminated = ""
        self._workers: list[_Worker] = []
        self._unborn: deque[_Worker] = deque()
        self._free_places = list(range(settings.workers))
        self._outbox: list[bytes] = []
        self._task_seconds = 1.0
        self._stillborn = 0
        #: Whether a worker has ended whose processes may live on.
        self._orphans = False
        self._deadlines: list[tuple[float, Callable[[], None]]] = []
        self._orphaned_at: float | None = time.monotonic()
        #: Whether it ever had a connection to the agent.
        self._greeted = False
        self._running = True
        self._context = zmq.Context()
        self._socket = self._new_socket()
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._socket.connect(settings.connect)  # only now: the monitor must not miss it
        self._poller = zmq.Poller()
        for source in (self._socket, self._monitor, self._control, self._output.reader):
            self._poller.register(source, zmq.POLLIN)

    def _new_socket(self) -> zmq.Socket[bytes]:
        connection = self._context.socket(zmq.DEALER)
        connection.setsockopt(zmq.IDENTITY, self._settings.manager_id.encode())
        connection.setsockopt(zmq.LINGER, 1000)
        connection.setsockopt(zmq.SNDHWM, 0)
        connection.setsockopt(zmq.RCVHWM, 0)  # the pool bounds what it sends
        connection.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        connection.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20000)
        connection.setsockopt(zmq.RECONNECT_IVL, 100)
        connection.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        if self._settings.server_key:
            connection.curve_serverkey = self._settings.server_key.encode()
            connection.curve_publickey = self._settings.public_key.encode()
            connection.curve_secretkey = self._settings.secret_key.encode()
        return connection

    def run(self) -> int:
        """Serve until told to stop, or until the agent is gone too long; return the exit code."""
        self._wake_on_signals()
        self._fill_places()
        while self._running:
            for source, _ in self._poller.poll(self._patience()):
                self._serve(source)
            self._expire()
            self._dispatch()
            self._send_results()
        self._end()
        return 1 if self._stillborn >= _MOST_STILLBORN else 0

    def _wake_on_signals(self) -> None:
        self._signal_read, signal_write = os.pipe()
        os.set_blocking(signal_write, False)
        signal.set_wakeup_fd(signal_write)
        # Flux sends SIGALRM when the instance's time limit has come.
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(signum, lambda _signum, _frame: setattr(self, "_running", False))
        self._poller.register(self._signal_read, zmq.POLLIN)

    def _patience(self) -> int | None:
        """Return milliseconds until something must be done even if nothing happens."""
        moments = [moment for moment, _ in self._deadlines]
        moments.extend(w.since + _TAKE_BACK_AFTER for w in self._workers if len(w.tasks) > 1)
        moments.extend(w.since + _TELL_AFTER for w in self._workers if w.tasks and not w.told)
        moments.append(time.monotonic() + self._late_at - time.time())
        if self._orphaned_at is not None:
            moments.append(self._orphaned_at + self._settings.orphan_timeout)
        return milliseconds_until(moments, time.monotonic())

    def _serve(self, source: object) -> None:
        if source is self._socket:
            self._receive_from_pool()
        elif source is self._monitor:
            self._connection_changed()
        elif source == self._control.fileno():
            self._receive_from_template()
        elif source == self._signal_read:
            os.read(self._signal_read, 4096)
        elif source == self._output.reader:
            self._take_output()
        else:
            worker = next((w for w in self._workers if w.channel.fileno() == source), None)
            if worker is not None and not worker.eof:
                self._receive_from_worker(worker)

    # The pool

    def _receive_from_pool(self) -> None:
        while True:
            try:
                kind, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if kind == b"tasks":
                for text, buffer in zip(parts[::2], parts[1::2], strict=True):
                    header = json.loads(text)
                    self._queue.append((header, buffer))
                    self._late_at = min(self._late_at, header.get("before", math.inf))
            elif kind == b"return":
                self._return(int(parts[0]))
            elif kind == b"held?":
                self._socket.send_multipart([b"held", *(i.encode() for i in self._held())])
            elif kind == b"cancel":
                self._cancel(parts[0].decode())
            elif kind == b"signal":
                self._signal(int(parts[0]), parts[1].decode())
            elif kind == b"terminate":
                self._terminate(parts[0].decode())
            elif kind == b"stop":
                self._running = False

    def _connection_changed(self) -> None:
        while self._monitor.poll(0):
            change = zmq.utils.monitor.recv_monitor_message(self._monitor)
            if change["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._orphaned_at = None
                self._greet()
            elif self._orphaned_at is None:  # else a connection that came to nothing
                self._orphaned_at = time.monotonic()

    def _greet(self) -> None:
        self._greeted = True
        greeting = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "workers": self._settings.workers,
        }
        self._socket.send_multipart(
            [b"hello", self._settings.token.encode(), json.dumps(greeting).encode()]
        )

    def _held(self) -> list[str]:
        self._send_results()  # what is done is told before
        held = [str(header["id"]) for header, _ in self._queue]
        for worker in self._workers:
            held.extend(worker.tasks)
        return held

    def _return(self, count: int) -> None:
        """Give tasks back that were not started: another node has nothing to do."""
        returned: list[bytes] = []
        while self._queue and len(returned) < count:
            header, _ = self._queue.pop()
            returned.append(str(header["id"]).encode())
        self._socket.send_multipart([b"returned", *returned])

    def _return_late(self) -> None:
        """Give back what waits and must not be started any more."""
        now = time.time()
        late = [entry for entry in self._queue if entry[0].get("before", math.inf) <= now]
        for entry in late:
            self._queue.remove(entry)
        if late:
            ids = (str(header["id"]).encode() for header, _ in late)
            self._socket.send_multipart([b"late", *ids])
        moments = (header.get("before", math.inf) for header, _ in self._queue)
        self._late_at = min(moments, default=math.inf)

    def _send_results(self) -> None:
        if self._outbox:
            report = json.dumps({"ahead": self._ahead()}).encode()
            self._socket.send_multipart([b"results", report, *self._outbox])
            self._outbox = []

    def _take_output(self) -> None:
        """Send what workers have printed, and look again in a moment: each line would wake us."""
        self._send_output(self._output.take())
        self._poller.unregister(self._output.reader)
        if not self._output.ended:
            again = partial(self._poller.register, self._output.reader, zmq.POLLIN)
            self._deadlines.append((time.monotonic() + _OUTPUT_PAUSE, again))

    def _send_output(self, data: bytes) -> None:
        if data:
            self._socket.send_multipart([b"output", data])

    # Workers

    def _fill_places(self) -> None:
        while self._free_places and len(self._unborn) < _MOST_UNBORN:
            self._new_worker()

    def _new_worker(self) -> None:
        claims = Claims()
        place = self._free_places.pop(0)
        channel = FrameSocket(request_worker(self._control_socket, claims, place))
        worker = _Worker(channel, claims, place)
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
            self._running = False

    def _born(self, worker: _Worker, pid: int) -> None:
        worker.pid = pid
        for action in worker.once_born:
            action()
        worker.once_born.clear()
        self._end_orphans()
        self._fill_places()

    def _receive_from_worker(self, worker: _Worker) -> None:
        try:
            for header, body in worker.channel.receive():
                if "skipped" in header:
                    worker.skipping -= 1
                elif "late" in header:
                    self._not_started(worker, header["late"])
                elif "leaves" in header:
                    self._replaced(worker, header["leaves"])
                else:
                    self._finished(worker, header["id"], body, header["returncode"])
        except EOFError:
            worker.eof = True
            self._poller.unregister(worker.channel)
            return
        worker.channel.flush()
        self._watch(worker)

    def _replaced(self, worker: _Worker, reason: str) -> None:
        """A worker ends on its own account, between two tasks; another takes its place."""
        logs.event(log, logging.INFO, "worker replaced", pid=worker.pid, reason=reason)
        self._send_output(f"worker {worker.pid} is replaced: {reason}\n".encode())
        worker.leaves = True
        self._take_back(worker)

    def _not_started(self, worker: _Worker, task_id: str) -> None:
        """A worker came to a task when its time had passed."""
        worker.tasks.remove(task_id)
        del worker.sent[task_id]
        worker.starts(time.monotonic())
        if worker.cancelled == task_id:
            self._tell_cancelled(task_id)
        else:
            self._socket.send_multipart([b"late", task_id.encode()])

    def _finished(self, worker: _Worker, task_id: str, body: bytes, returncode: int | None) -> None:
        worker.tasks.remove(task_id)
        del worker.sent[task_id]
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
            self._outbox += (task_id.encode(), body)

    def _ahead(self) -> int:
        """Return how many tasks a worker may hold: one, or more where tasks are short."""
        return max(1, min(_MOST_AHEAD, int(_SHORT / max(self._task_seconds, 1e-6))))

    def _dispatch(self) -> None:
        if not self._queue:
            return
        for most in (1, self._ahead()):
            for worker in self._workers:
                while self._queue and len(worker.tasks) < most and worker.takes_tasks:
                    if worker.tasks and len(self._queue[0][1]) > _LARGE:
                        break
                    self._send(worker, *self._queue.popleft())

    def _send(self, worker: _Worker, header: dict[str, Any], buffer: bytes) -> None:
        if not worker.tasks:
            worker.starts(time.monotonic())
        task_id = str(header["id"])
        worker.tasks.append(task_id)
        worker.sent[task_id] = (header, buffer)
        worker.claims.add()
        worker.channel.send(header, buffer)
        self._watch(worker)

    def _take_back(self, worker: _Worker) -> None:
        """Put the tasks that `worker` has not started at the head of the queue again."""
        for _ in range(worker.claims.take_all()):
            task_id = worker.tasks.pop()
            self._put_back(worker.sent.pop(task_id))
            worker.skipping += 1

    def _settle(self, worker: _Worker) -> None:
        """Have `worker` be left with no task but the one that it runs, if it runs one.

        What it has finished may not have been read yet. It goes on to the next task only if it has
        the claim, and only when its result is written: so first nobody must have one any more.
        """
        self._take_back(worker)
        if not worker.eof:
            self._receive_from_worker(worker)

    def _put_back(self, entry: tuple[dict[str, Any], bytes]) -> None:
        self._queue.appendleft(entry)
        self._late_at = min(self._late_at, entry[0].get("before", math.inf))

    def _watch(self, worker: _Worker) -> None:
        flags = zmq.POLLIN | (zmq.POLLOUT if worker.channel.wants_write else 0)
        self._poller.modify(worker.channel, flags)

    def _worker_exited(self, pid: int, status: int) -> None:
        worker = next((w for w in self._workers if w.pid == pid), None)
        if worker is None:
            return  # something that outlived its worker
        if not worker.eof:
            self._receive_from_worker(worker)  # what it had finished counts
        if not worker.eof:
            self._poller.unregister(worker.channel)
        worker.channel.close()
        worker.claims.close()
        self._workers.remove(worker)
        self._free_places.append(worker.place)
        self._orphans = True
        self._end_orphans()
        self._account_for(worker, status)
        if self._stillborn < _MOST_STILLBORN:
            self._fill_places()
        else:
            logs.event(log, logging.ERROR, "workers end before their first task", status=status)
            self._running = False

    def _account_for(self, worker: _Worker, status: int) -> None:
        if not worker.tasks:
            self._stillborn += 0 if worker.served else 1
            return
        running, *waiting = worker.tasks
        # What was sent ahead has not been started; it keeps its place.
        for task_id in reversed(waiting):
            self._put_back(worker.sent[task_id])
        self._send_results()  # in order: what it finished, then what it lost
        wanted = worker.signalled is not None and worker.signalled == os.WTERMSIG(status)
        if self._terminated and wanted and worker.cancelled != running:
            self._tell_lost(running, self._terminated, worker.began)
        elif worker.cancelled == running or wanted:
            self._tell_cancelled(running, worker.began)
        else:
            reason = end_of(status)
            logs.event(log, logging.WARNING, "worker lost", pid=worker.pid, reason=reason)
            self._tell_lost(running, reason, worker.began)

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

    # Cancelling

    def _cancel(self, task_id: str) -> None:
        for worker in self._workers:
            if task_id in worker.tasks:
                self._settle(worker)  # the others that it held have nothing to do with it
                if task_id in worker.tasks:
                    self._end_running(worker, task_id)
                    return
                break
        for entry in self._queue:
            if entry[0]["id"] == task_id:
                self._queue.remove(entry)
                self._tell_cancelled(task_id)
                return

    def _tell_cancelled(self, task_id: str, began: float | None = None) -> None:
        if began is not None:
            self._tell_running(task_id, began)
        self._socket.send_multipart([b"cancelled", task_id.encode()])

    def _tell_lost(self, task_id: str, reason: str, began: float) -> None:
        self._send_results()  # in order
        self._tell_running(task_id, began)
        self._socket.send_multipart([b"lost", task_id.encode(), reason.encode()])

    def _terminate(self, reason: str) -> None:
        """Tell all that runs to end: its node will soon be gone."""
        self._terminated = reason
        for worker in self._workers:
            self._settle(worker)
        self._return(len(self._queue))
        for worker in self._workers:
            for task_id in list(worker.tasks):
                self._signal_running(worker, signal.SIGTERM, task_id)

    def _signal(self, signum: int, task_id: str) -> None:
        for worker in self._workers:
            if task_id in worker.tasks:
                self._settle(worker)  # another task may have followed it
                self._signal_running(worker, signum, task_id)

    def _signal_running(self, worker: _Worker, signum: int, task_id: str) -> None:
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

    def _end_running(self, worker: _Worker, task_id: str) -> None:
        """End the task that `worker` runs, and the worker with it: ask first, then kill."""
        worker.cancelled = task_id
        if worker.pid is None:
            worker.once_born.append(partial(self._end_running, worker, task_id))
            return
        signal_tree(worker.pid, signal.SIGTERM)
        self._deadlines.append((time.monotonic() + KILL_GRACE, partial(self._kill, worker)))

    def _kill(self, worker: _Worker) -> None:
        if worker in self._workers and worker.pid is not None:
            kill_tree(worker.pid)

    def _expire(self) -> None:
        now = time.monotonic()
        due = [action for moment, action in self._deadlines if moment <= now]
        self._deadlines = [entry for entry in self._deadlines if entry[0] > now]
        for action in due:
            action()
        if time.time() >= self._late_at:
            self._return_late()
        for worker in self._workers:
            if len(worker.tasks) > 1 and now - worker.since >= _TAKE_BACK_AFTER:
                self._take_back(worker)
                worker.since = now  # so that an unread result does not bring us back at once
            elif worker.tasks and not worker.told and now - worker.since >= _TELL_AFTER:
                worker.told = True
                self._tell_running(worker.tasks[0], worker.began)
        if (
            self._orphaned_at is not None
            and now - self._orphaned_at >= self._settings.orphan_timeout
        ):
            self._say_that_agent_is_away()
            self._running = False

    def _say_that_agent_is_away(self) -> None:
        what = "agent gone, ending"
        if not self._greeted:
            what = (
                "this node never reached the endpoint, whose address may be another one: "
                "engine.address in its configuration sets it"
            )
        logs.event(log, logging.WARNING, what, address=self._settings.connect)

    def _tell_running(self, task_id: str, began: float) -> None:
        self._socket.send_multipart([b"running", task_id.encode(), b"%.3f" % began])

    def _end(self) -> None:
        for child in psutil.Process().children():
            kill_tree(child.pid)
        with suppress(ChildProcessError):
            os.waitpid(self._template_pid, 0)
        self._send_output(self._output.take())
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()


def main() -> None:
    """Run a manager with the settings in the environment."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        sys.exit(f"{VARIABLE} is not set: a manager is started by an endpoint's engine only")
    logs.configure(logging.INFO)
    # Flux leaves a job's standard input open for whoever attaches; a task must not wait for that.
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        manager = Manager(ManagerSettings.load(text))
    except EngineError as error:
        sys.exit(str(error))
    sys.exit(manager.run())


if __name__ == "__main__":
    main()
