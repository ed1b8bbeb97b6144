"""Allocations that are held for short MPI tasks: which task runs in which, and when they end."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import Demand, placement_of
from flux_endpoint.engine.held import ends
from flux_endpoint.engine.held.ends import HeldEnd
from flux_endpoint.engine.held.hosts import START_TIMEOUT, HostLauncher, HostRecord
from flux_endpoint.engine.held.observations import Observations
from flux_endpoint.engine.held.policy import (
    LIFETIME,
    LINGER,
    LONG,
    PATIENCE,
    QUANTUM,
    RECENT,
    SCARCE,
    TaskShape,
    wanted_hosts,
)
from flux_endpoint.engine.held.states import HostChange, HostState
from flux_endpoint.engine.held.tasks import HeldTask
from flux_endpoint.engine.job_queue import JobQueue
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.jobs.records import JobRecords
from flux_endpoint.engine.local.event_log import EventLogEvent
from flux_endpoint.engine.outcome import end_of_job, error_of
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.protocol.job_events import IN_ORDER, EventRecord
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

#: Seconds for which no allocation of a shape is held after one could not be used.
_BROKEN = 60.0
#: Seconds in which a host without a task must end.
_END_TIMEOUT = 15.0
#: The most waiting tasks whose durations are added up.
_SAMPLE = 64


class HeldAllocations:
    """Owns all hosts of an engine, and the tasks for them. Used by the runner's thread only.

    Args:
        backend: where the jobs run.
        planner: says how tasks run, and where the files of their jobs are.
        config: options of the engine.
        records: the jobs recorded on disk.
        queue: gets the hosts' jobs, which wait for resources like others.
        post: has an action run on the runner's thread.
    """

    def __init__(
        self,
        backend: Backend,
        planner: Planner,
        config: FluxEngineConfig,
        records: JobRecords,
        queue: JobQueue,
        *,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._backend = backend
        self._launcher = HostLauncher(
            backend,
            planner.tasks,
            planner.setup,
            planner.directory.with_name("held"),
            address=config.address,
            on_message=lambda *message: post(partial(self.received, *message)),
        )
        self._records = records
        self._queue = queue
        self._post = post
        #: The embedded executor needs none: it starts ranks by itself.
        self._is_enabled = config.hold_allocations and backend.kind == "flux"
        self._hosts: dict[str, HostRecord] = {}
        self._waiting: dict[TaskShape, deque[HeldTask]] = {}
        self._paused_until: dict[TaskShape, float] = {}
        self.observed = Observations(post)

    def start(self) -> None:
        """End what an earlier agent has left and no task needs."""
        self._launcher.clean_up()

    # Tasks

    def takes(self, shape: TaskShape, program: str) -> bool:
        """Return whether a task should run in a held allocation; remembers that it came."""
        now = time.monotonic()
        before = self.observed.came(shape)
        if not self._is_enabled or self.observed.others(shape).wait:
            return False
        is_long = self.observed.durations.of(shape, program) > LONG
        if is_long or self._paused_until.get(shape, 0.0) > now:
            return False
        return now <= before + RECENT or bool(self._waiting.get(shape) or self._of(shape))

    def submit(  # noqa: PLR0917 - what a job has
        self,
        shape: TaskShape,
        program: str,
        task_id: str,
        directory: Path,
        starts: tuple[int, int],
        jobspec: Mapping[str, Any],
    ) -> HeldTask:
        """Queue a task for an allocation.

        Args:
            shape: the allocation.
            program: the program that its duration is remembered by.
            task_id: the task.
            directory: directory of the task's job.
            starts: sizes of its output files, in bytes.
            jobspec: the jobspec of a job of its own.
        """
        task = self._task(task_id, directory, starts, jobspec)
        task.program = program
        self._waiting.setdefault(shape, deque()).append(task)
        return task

    def _task(
        self,
        task_id: str,
        directory: Path,
        starts: tuple[int, int],
        jobspec: Mapping[str, Any] | None = None,
    ) -> HeldTask:
        return HeldTask(
            task_id=task_id,
            directory=directory,
            starts=starts,
            jobspec=jobspec or {},
            since=time.monotonic(),
            on_cancel=self._cancel,
            on_kill=self._kill,
            job=self._backend,
        )

    def recover(
        self, task_id: str, directory: Path, starts: tuple[int, int], jobid: int
    ) -> HeldTask:
        """Follow a task that an earlier agent gave to a host."""
        task = self._task(task_id, directory, starts)
        task.placed(jobid)
        end = ends.read(directory)
        if end is not None and not end.is_ordered:
            task.ended(end)  # its host may have another task by now
            return task
        future = self._backend.executor.attach(jobid)
        host = HostRecord(f"found-{task_id}", None, future, HostState.LEAVING, jobid, task=task)
        self._hosts[host.host_id] = host
        self._follow(host)
        return task

    def _cancel(self, task: HeldTask, note: str) -> None:
        host = self._host_of(task)
        if host is not None and host.shape is None and host.jobid is not None:
            self._backend.cancel(host.jobid, note)  # it has no other task
        elif host is not None:
            host.end_note = note
            self._launcher.send(host, b"cancel", task.task_id.encode(), note.encode())

    def _kill(self, task: HeldTask, signum: int) -> None:
        host = self._host_of(task)
        if host is not None and host.shape is None and host.jobid is not None:
            self._backend.kill(host.jobid, signum)  # it passes the signal on
        elif host is not None:
            self._launcher.send(host, b"signal", task.task_id.encode(), b"%d" % signum)

    # Reports

    def received(self, host_id: str, kind: bytes, parts: list[bytes]) -> None:
        """Handle a message of a host."""
        host = self._hosts.get(host_id)
        if host is None:
            return
        if kind == b"hello":
            if host.change(HostChange.GREETING):
                host.ready_at = time.monotonic()
            elif host.state is not HostState.STARTING:
                self._leave(host)  # its connection broke: it takes no more tasks
                if host.task is not None and host.end_note is not None:
                    self._cancel(host.task, host.end_note)  # the first may not have arrived
            return
        task = host.task
        if task is None or parts[0].decode() != task.task_id:
            return
        match kind:
            case b"began":
                task.happened([EventLogEvent(**event) for event in json.loads(parts[1])])
            case b"ended":
                self._ended(host, task, HeldEnd.load(parts[1]))
            case b"refused":
                why = parts[1].decode(errors="replace")
                logs.event(log, logging.INFO, "a held allocation refused a task", reason=why)
                host.free()
                self._leave(host)
                task.declined()

    def _ended(self, host: HostRecord, task: HeldTask, end: HeldEnd) -> None:
        task.ended(end)
        host.free()
        if host.shape is not None:
            self.observed.came(host.shape)
            finish = next((e.timestamp for e in end.events if e.name == "finish"), None)
            if finish is not None and task.began_at is not None:
                self.observed.durations.add(host.shape, task.program, finish - task.began_at)

    def counters(self) -> dict[str, int]:
        """Return the counters for the status report."""
        return {"held_allocations": len(self._hosts)}

    # Decisions

    def review(self) -> float:
        """Give tasks to hosts, start and end hosts; return when to look again, in seconds."""
        now = time.monotonic()
        again = math.inf
        for shape, tasks in list(self._waiting.items()):
            again = min(again, self._serve(shape, tasks, now))
        for host in list(self._hosts.values()):
            again = min(again, self._check(host, now))
        return max(0.0, again - time.monotonic())

    def _serve(self, shape: TaskShape, tasks: deque[HeldTask], now: float) -> float:
        """Serve the waiting tasks of a shape; return when to look again."""
        hosts, durations = self._of(shape), self.observed.durations
        stuck = [h for h in hosts if h.state is HostState.BUSY and now >= h.since + LONG]
        for host in stuck:
            assert host.task is not None
            self.observed.durations.exceeds(shape, host.task.program, now - host.since)
        if self.observed.others(shape).are_urgent:
            self._decline(tasks, lambda _: True)
        elif stuck:
            self._decline(tasks, lambda task: durations.of(shape, task.program) > LONG)
        for host in hosts:
            if host.state is HostState.IDLE and host.alloc:
                self._give(host, tasks)
        if not tasks:
            del self._waiting[shape]
            return math.inf
        useful = [host for host in hosts if host not in stuck]
        patient_until = tasks[0].since + PATIENCE
        if now >= patient_until and not any(h.alloc and not h.is_overdue(now) for h in useful):
            self._pause(shape, SCARCE)  # else each task would wait for as long
            return math.inf
        self._grow(shape, tasks, len(useful))
        return patient_until if now < patient_until else math.inf

    def _grow(self, shape: TaskShape, tasks: Sequence[HeldTask], count: int) -> None:
        durations, sample = self.observed.durations, list(islice(tasks, _SAMPLE))
        work = sum(durations.of(shape, t.program) for t in sample) / len(sample) * len(tasks)
        capacity = shape.capacity(self._backend.resources)
        for _ in range(wanted_hosts(work, len(tasks), capacity) - count):
            try:
                host = self._launcher.launch(shape)
            except (FluxEndpointError, OSError, RuntimeError, TypeError, ValueError) as error:
                self._give_up(shape, error)
                return
            self._hosts[host.host_id] = host
            self._follow(host)

    def _check(self, host: HostRecord, now: float) -> float:
        """End a host that nothing needs, or that others need more; return when to look again."""
        if host.shape is None:
            return math.inf
        needed = bool(self._waiting.get(host.shape))
        others_wait = self.observed.anybody.wait
        again = host.ready_at + (QUANTUM if others_wait else LIFETIME)
        match host.state:
            case HostState.STARTING:
                if not needed:
                    self._leave(host)
                elif host.alloc:
                    again = host.since + START_TIMEOUT
            case HostState.IDLE | HostState.BUSY if now >= again:
                self._leave(host)
            case HostState.IDLE if not needed:
                if others_wait or now >= host.since + LINGER:
                    self._leave(host)
                again = host.since + LINGER
            case HostState.BUSY if needed and now < host.since + LONG:
                again = min(again, host.since + LONG)
            case HostState.LEAVING if host.task is None:
                again = host.since + _END_TIMEOUT
                if now >= again:
                    host.since = now
                    self._launcher.cancel(host, "it does not end")
        return again if again > now else math.inf

    def _give(self, host: HostRecord, tasks: deque[HeldTask]) -> None:
        while tasks:
            task = tasks.popleft()
            assert host.jobid is not None
            if task.future.done():  # cancelled, or a job of its own, which has the record now
                continue
            ends.clear(task.directory)
            # Recorded first: if this agent is killed now, the next one must not start it again.
            self._records.given(task.task_id, host.jobid, task.starts)
            if task.placed(host.jobid):
                task.allocated(host.alloc)
                host.task = task
                host.change(HostChange.TASK)
                place = json.dumps([task.task_id, str(task.directory)]).encode()
                self._launcher.send(host, b"task", place, task.encoded)
                return

    def _decline(self, tasks: deque[HeldTask], applies: Callable[[HeldTask], bool]) -> None:
        """Let some of the waiting tasks become jobs of their own."""
        for _ in range(len(tasks)):
            task = tasks.popleft()
            if applies(task):
                task.declined()
            else:
                tasks.append(task)

    # Hosts

    def _of(self, shape: TaskShape) -> list[HostRecord]:
        """Return the hosts of a shape that get tasks."""
        everyone = self._hosts.values()
        return [h for h in everyone if h.shape == shape and h.state is not HostState.LEAVING]

    def _host_of(self, task: HeldTask) -> HostRecord | None:
        return next((host for host in self._hosts.values() if host.task is task), None)

    def _follow(self, host: HostRecord) -> None:
        post, future = self._post, host.future
        future.add_jobid_callback(lambda _: post(partial(self._identified, host)))
        for name in IN_ORDER:
            future.add_event_callback(
                name, lambda _, event: post(partial(self._happened, host, event))
            )
        future.add_done_callback(lambda _: post(partial(self._done, host)))

    def _identified(self, host: HostRecord) -> None:
        if host.jobid is None:
            try:
                host.jobid = int(host.future.jobid(timeout=0))
            except (RuntimeError, CancelledError):
                return  # never submitted; its end says why
        if host.shape is not None:
            job = format_jobid(host.jobid)
            logs.event(log, logging.INFO, "holding an allocation", job=job, ranks=host.shape.ranks)
            demand = Demand(str(host.jobid), slots=host.shape.all_cores)
            self._queue.add(host.jobid, demand)
            self.observed.add_host(demand.name)

    def _happened(self, host: HostRecord, event: EventRecord) -> None:
        if host.jobid is not None and host.shape is not None:
            placement = placement_of(event.context) if event.name == "alloc" else {}
            self._queue.event(host.jobid, event.name, event.context, placement)
        if event.name == "alloc":
            host.allocated(event.context)
            if host.shape is None and host.task is not None:
                host.task.allocated(host.alloc)
        elif event.name == "clean":
            self._gone(host)

    def _done(self, host: HostRecord) -> None:
        error = error_of(host.future)
        if error is None or hasattr(error, "severity") or self._backend.is_lost(error):
            return  # its `clean` event comes, or `lose`
        if host.jobid is not None:  # there are no more events of it, but it may still run
            self._backend.cancel(host.jobid, "it can't be followed any more")
        self._gone(host, has_ended=isinstance(error, ValueError))  # or Flux no longer knows it

    def _leave(self, host: HostRecord) -> None:
        before = host.state
        if host.change(HostChange.LEAVE):
            if before is HostState.STARTING:
                self._launcher.cancel(host, "no task waits for it")
            else:
                self._launcher.send(host, b"stop")

    def _gone(self, host: HostRecord, *, has_ended: bool = True) -> None:
        """Handle the end of a host's job: its files say what became of its task."""
        before = host.state
        if not host.change(HostChange.JOB_ENDED):
            return
        del self._hosts[host.host_id]
        if host.jobid is not None:
            self.observed.discard_host(str(host.jobid))
            self._queue.forget(host.jobid)
        output, why = self._launcher.forget(host), end_of_job(host.future)
        if before is HostState.STARTING and host.shape is not None:
            self._give_up(host.shape, f"{why}\n{output}".strip())
        task, host.task = host.task, None
        if task is None:
            return
        error, end = error_of(host.future), ends.read(task.directory)
        is_fatal = hasattr(error, "severity")
        if end is not None and not (end.is_ordered and is_fatal):
            task.ended(end)
        elif ends.has_begun(task.directory) or not has_ended:
            task.lost(error if is_fatal else None, why)
        else:
            task.declined()

    def _give_up(self, shape: TaskShape, why: object) -> None:
        logs.event(log, logging.WARNING, "can't hold an allocation", ranks=shape.ranks, reason=why)
        self._pause(shape, _BROKEN)

    def _pause(self, shape: TaskShape, seconds: float) -> None:
        """Let the tasks of a shape be jobs of their own for some time."""
        now = time.monotonic()
        paused = {each: until for each, until in self._paused_until.items() if until > now}
        self._paused_until = paused | {shape: now + seconds}
        if (tasks := self._waiting.get(shape)) is not None:
            self._decline(tasks, lambda _: True)

    # Ending

    def hold(self) -> None:
        """Hold no more allocations; running tasks go on."""
        self._is_enabled = False
        self._waiting.clear()  # the runner has withdrawn them
        for host in self._hosts.values():
            if host.state in (HostState.STARTING, HostState.IDLE):
                self._leave(host)

    def lose(self) -> None:
        """Forget everything: the instance is gone, and the runner has handled its tasks."""
        self._is_enabled = False
        self._waiting.clear()
        self._hosts.clear()

    def close(self) -> None:
        """End: hosts without a task end at once, the others after their tasks."""
        self.hold()
        self._launcher.close()
