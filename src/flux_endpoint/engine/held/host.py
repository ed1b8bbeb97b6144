"""The process in a held allocation: runs the tasks that it is sent, one after the other.

Each task is a jobspec for the embedded executor, on the cores of this allocation.

Messages from the agent:

- `task`, a JSON list: the task's id and the directory of its job; a jobspec as JSON.
- `cancel`, an id, a note; `signal`, an id, a number; `stop`.

Messages to the agent:

- `hello`, first on each connection.
- `began`, an id, JSON: the events up to the task's start.
- `ended`, an id, JSON: a `HeldEnd`.
- `refused`, an id, a reason: the task can't be started here, or the host is about to end.

A host that loses its agent, or that a signal asks to end, ends after its task.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import zmq

from flux_endpoint import logs
from flux_endpoint.engine.held import ends
from flux_endpoint.engine.held.settings import VARIABLE, HostSettings
from flux_endpoint.engine.local.event_log import EventLogEvent
from flux_endpoint.engine.local.instance import LocalInstance
from flux_endpoint.engine.local.jobspec import read_jobspec
from flux_endpoint.engine.local.resources import ResourcePool
from flux_endpoint.engine.workers.link import Change, PoolLink
from flux_endpoint.errors import EngineError
from flux_endpoint.processes.lifeline import watch_parent

log = logging.getLogger(__name__)

#: Signals that Flux, or a person, sends to the job: they are for the task.
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTERM,
    signal.SIGALRM,
    signal.SIGCONT,
    signal.SIGWINCH,
)
#: Those of them by which Flux ends a job.
_ENDING = (signal.SIGTERM, signal.SIGALRM)
#: Variables of the host's own rank.
_OWN = ("PMI_", "FLUX_TASK_", "FLUX_JOB_SIZE", "FLUX_JOB_NNODES", "FLUX_JOB_TMPDIR")
#: Set for each rank by the job shell's plugins that connect MPI ranks: PMIx, and Cray's PALS.
_PLUGINS = ("PMIX_RANK", "PALS_RANKID")


@dataclass(eq=False)
class _Task:
    task_id: str
    directory: Path
    jobid: int | None = None
    events: list[EventLogEvent] = field(default_factory=list)
    #: Requests that came before its job had an id.
    pending: list[Callable[[int], None]] = field(default_factory=list)


class Host:
    """Runs tasks in one allocation. The main thread owns its state.

    Args:
        settings: the host's.
        variables: environment variables from Flux's job shell, for the tasks.
    """

    def __init__(self, settings: HostSettings, variables: dict[str, str]) -> None:
        self._settings = settings
        self._link = PoolLink(settings)
        self._tasks: dict[str, _Task] = {}
        self._leaving = False
        #: Whether a signal told this host to end.
        self._is_ordered = False
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._instance = LocalInstance(
            ResourcePool(1, settings.cores, 0),
            name="tasks",
            on_crash=lambda _: os._exit(1),
            variables=variables,
        )

    def run(self) -> None:
        """Serve until there is nothing more to do."""
        for number in _FORWARDED:
            signal.signal(number, lambda number, _: self._post(partial(self._signalled, number)))
        started = time.monotonic()
        while not self._leaving or self._tasks:
            left = None
            if not self._link.was_met:
                left = started + self._settings.start_timeout - time.monotonic()
                if left <= 0:
                    log.error("the agent at %s can't be reached", self._link.address)
                    break
            self._turn(None if left is None else int(left * 1000) + 1)
        self._instance.close()
        self._link.close()

    def _turn(self, timeout: int | None) -> None:
        poller = zmq.Poller()
        for source in self._link.sources:
            poller.register(source, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        poller.poll(timeout)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._inbox:
            self._inbox.popleft()()
        for change in self._link.changes():
            if change is Change.MET:
                self._link.send(b"hello")
            elif self._link.was_met:
                self._leaving = True  # the agent is gone; its successor reads the ends
        for kind, parts in self._link.receive():
            self._hear(kind, parts)

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.append(action)
        os.eventfd_write(self._wake, 1)

    def _hear(self, kind: bytes, parts: list[bytes]) -> None:
        match kind:
            case b"task":
                task_id, directory = json.loads(parts[0])
                self._start(_Task(task_id, Path(directory)), parts[1])
            case b"cancel":
                self._cancel(parts[0].decode(), parts[1].decode())
            case b"signal":
                self._kill(parts[0].decode(), int(parts[1]))
            case b"stop":
                self._leaving = True

    def _start(self, task: _Task, jobspec: bytes) -> None:
        if self._leaving:
            self._link.send(b"refused", task.task_id.encode(), b"the host is about to end")
            return
        try:
            spec = read_jobspec(jobspec.decode())
            ends.begin(task.directory)
        except (OSError, ValueError, TypeError) as error:
            logs.event(log, logging.WARNING, "task refused", task=task.task_id, reason=error)
            self._link.send(b"refused", task.task_id.encode(), str(error).encode())
            return
        self._tasks[task.task_id] = task
        self._instance.submit(
            spec, 16, 0, partial(self._submitted, task), partial(self._happened, task)
        )

    # On the instance's thread

    def _submitted(self, task: _Task, answer: int | OSError) -> None:
        if isinstance(answer, OSError):
            # Only a jobspec with a dependency is refused here, and the agent sends none.
            raise answer
        task.jobid = answer
        self._post(partial(self._catch_up, task, answer))

    def _happened(self, task: _Task, event: EventLogEvent | None) -> None:
        if event is not None:
            task.events.append(event)
            if event.name == "start":
                began = json.dumps(task.events).encode()
                self._post(lambda: self._link.send(b"began", task.task_id.encode(), began))
            return
        assert task.jobid is not None
        exec_events = self._instance.exec_events(task.jobid)
        end = ends.HeldEnd(task.events, exec_events, self._is_ordered)
        try:
            ends.write(task.directory, end)
        except OSError as error:
            logs.event(log, logging.WARNING, "can't record an end", task=task.task_id, reason=error)
        self._post(partial(self._ended, task, end))

    # On the main thread

    def _ended(self, task: _Task, end: ends.HeldEnd) -> None:
        del self._tasks[task.task_id]
        if not end.is_ordered:  # else Flux knows better why it ended
            self._link.send(b"ended", task.task_id.encode(), end.dump().encode())

    def _catch_up(self, task: _Task, jobid: int) -> None:
        while task.pending:
            task.pending.pop(0)(jobid)

    def _cancel(self, task_id: str, note: str) -> None:
        self._request(task_id, lambda jobid: self._instance.cancel(jobid, note))

    def _kill(self, task_id: str, number: int) -> None:
        self._request(task_id, lambda jobid: self._instance.kill(jobid, number))

    def _request(self, task_id: str, action: Callable[[int], None]) -> None:
        def act(jobid: int) -> None:
            with suppress(OSError):  # it has just ended
                action(jobid)

        task = self._tasks.get(task_id)
        if task is not None and task.jobid is None:
            task.pending.append(act)
        elif task is not None and task.jobid is not None:
            act(task.jobid)

    def _signalled(self, number: int) -> None:
        if number in _ENDING:
            self._leaving = self._is_ordered = True
        for task_id in list(self._tasks):
            self._kill(task_id, number)


def variables_for_tasks(environment: Mapping[str, str], given: Collection[str]) -> dict[str, str]:
    """Return what Flux's job shell has added to a job's environment and its tasks need.

    Args:
        environment: the environment of the job's process.
        given: names of the variables that the job was submitted with.

    Raises:
        EngineError: ranks are connected by a plugin of the job shell. Ranks that a host starts
            would each be alone.
    """
    for name in _PLUGINS:
        if name in environment:
            raise EngineError(
                f"Flux's job shell sets {name}: MPI ranks are connected by one of its plugins, and "
                "not by PMI-1. Set hold_allocations: false in the endpoint's config.yaml"
            )
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(_OWN) and (name not in given or name.startswith("FLUX_"))
    }


def main() -> None:
    """Run a host with the settings in the environment."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        sys.exit(f"{VARIABLE} is not set: a host is started by an endpoint's engine only")
    settings = HostSettings.load(text)
    logs.configure(logging.INFO)
    watch_parent(lambda: os._exit(1))  # a job shell that is killed leaves its tasks behind
    try:
        variables = variables_for_tasks(os.environ, set(settings.given))
    except EngineError as error:
        sys.exit(str(error))
    Host(settings, variables).run()


if __name__ == "__main__":
    main()
