"""The agent: receives tasks, sends results, and loses nothing in between.

One thread owns the journal and the state of all tasks in flight. Connection and engine put events
into its inbox. Each turn takes the pending events and commits them in one transaction. Then
functions start, results leave, and further turns follow, while another thread synchronizes the
disk. Only after that, the turn is answered: jobs are submitted, messages acknowledged, and results
settled. If the power fails before, functions run again.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from flux_endpoint.amqp import ConnectionState, Delivery, StateChange
from flux_endpoint.endpoint.broker_link import BrokerLink
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.connectivity import Connectivity
from flux_endpoint.endpoint.directory import JOURNAL
from flux_endpoint.endpoint.ending import CONFIRM_GRACE, AgentEnding
from flux_endpoint.endpoint.expired_data import ExpiredData
from flux_endpoint.endpoint.followed_output import FollowRequest
from flux_endpoint.endpoint.inbox import (
    BrokerAlarm,
    CommandDelivery,
    ConsumeRefused,
    EndpointGone,
    EngineLost,
    Event,
    QueueGranted,
    Signal,
    Synchronized,
    Turn,
    TurnRecorder,
)
from flux_endpoint.endpoint.intake import TasksInFlight, read_command, refuse
from flux_endpoint.endpoint.journal import Journal, has_open
from flux_endpoint.endpoint.opening import Opening
from flux_endpoint.endpoint.outbox import Settled
from flux_endpoint.endpoint.registration import BrokerUrl
from flux_endpoint.endpoint.retries import by_task, task_of
from flux_endpoint.endpoint.status import AgentPhase, AgentStatus
from flux_endpoint.endpoint.task_files import TaskFiles
from flux_endpoint.endpoint.task_records import TaskRecords
from flux_endpoint.engine.base import Engine, EngineEvent, EngineResult, EngineTask
from flux_endpoint.logs import event, keep_bounded
from flux_endpoint.protocol.messages import (
    EndpointStop,
    OutputWanted,
    ReportsWanted,
    TaskUrgency,
)
from flux_endpoint.protocol.queues import EndpointQueues
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)


class Agent:
    """Connects one engine to one endpoint's queues.

    Args:
        queues: the answer to the registration.
        engine: runs the tasks; started and stopped by the agent.
        directory: the endpoint's directory, which has the journal.
        config: the endpoint's configuration.
        url: returns the broker's URL for each attempt; default: the URL in `queues`.
        taken: asks the service which unfinished tasks this endpoint took; by default nobody is
            asked, and tasks of a lost journal get no end.
        on_status: called with each change of the agent's status, on the agent's thread.
    """

    def __init__(
        self,
        queues: EndpointQueues,
        engine: Engine,
        directory: Path,
        config: EndpointConfig,
        *,
        url: BrokerUrl | None = None,
        taken: Callable[[], list[str]] | None = None,
        on_status: Callable[[AgentStatus], None] | None = None,
    ) -> None:
        self._endpoint_id = queues.endpoint_id
        self._engine = engine
        self._directory = directory
        self._config = config
        self._taken = taken
        self._on_status = on_status
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        if url is not None:
            url.on_gone = lambda reason: self._inbox.put(EndpointGone(reason))
        self._broker = BrokerLink(queues, config, url, self._inbox.put)
        self._connectivity = Connectivity(queues.task_queue_info.queue)
        self._phase = AgentPhase.CLAIMING
        self._ending = AgentEnding(engine, config, self._begin_to_stop, self._inbox.put)
        self._records = TaskRecords(directory)
        self._journal: Journal
        self._tasks: TasksInFlight
        self._recorder: TurnRecorder

    def stop(self) -> None:
        """Stop gracefully; a second call stops at once. From any thread or signal handler."""
        self._inbox.put(Signal.STOP)

    @property
    def in_flight(self) -> int:
        """Number of accepted tasks whose results the broker has not confirmed."""
        return len(self._tasks.running) + len(self._broker.outbox)

    def run(self) -> None:
        """Work until `stop`, on the caller's thread.

        Raises:
            EndpointInUseError: another agent holds this endpoint's task queue; nothing was started.
            EndpointGoneError: the service does not know the endpoint any more.
            EngineError: the engine can't be started.
            InstanceLostError: the Flux instance is gone; the journal has the tasks to run again.
            RecordError: the journal can't be read or written; unrecorded messages were not
                acknowledged, so the broker still has them.
        """
        path = self._directory / JOURNAL
        self._journal = Journal(path, keep_done=self._config.keep_task_ids)
        try:
            self._tasks = TasksInFlight(
                self._endpoint_id, self._config, self._journal, self._broker.outbox, self._records
            )
            self._recorder = TurnRecorder(
                self._inbox, self._journal, self._publish_status, self._report_if_due
            )
            self._publish_status()
            try:
                ready = self._open()
            finally:
                if not self._connectivity.owns_queue:
                    self._broker.close(0.0)
            if not ready:
                event(log, logging.INFO, "endpoint stopped before it had its task queue")
                return
            self._work()
        finally:
            self._journal.close()
            self._records.close()
        error = self._ending.error(len(self._tasks.running))
        if error is not None:
            raise error

    def _work(self) -> None:
        """Run tasks until the agent's end."""
        self._engine.start(
            self._inbox.put,
            self._inbox.put,
            lambda reason: self._inbox.put(EngineLost(reason)),
        )
        files = TaskFiles(
            self._directory / self._config.engine.working_dir,
            self._config.keep_task_files,
            partial(has_open, self._directory / JOURNAL),
        )
        files.start()
        expired = ExpiredData()
        expired.start()
        self._recorder.start()
        try:
            self._begin()
            while time.monotonic() < self._ending.leave_at:
                due = min(self._broker.reports.due, self._broker.outbox.due, self._ending.due)
                if self._phase is AgentPhase.WORKING:
                    due = min(due, self._tasks.retries.due)
                self._turn(self._recorder.take(due, len(self._tasks.running)))
        finally:
            self._close()
            files.close()
            expired.close()

    def _open(self) -> bool:
        """Do what precedes the first task; return False if a stop is requested in the meantime."""
        opening = Opening(
            self._endpoint_id,
            self._inbox,
            self._connectivity,
            note=self._note,
            publish_status=self._publish_status,
        )
        if self._taken is not None and not opening.account(self._journal, self._taken):
            return False
        self._broker.start()
        return opening.claim()

    def _begin(self) -> None:
        self._phase = AgentPhase.WORKING
        unpublished = self._journal.unpublished()
        self._recover(unpublished)
        event(
            log,
            logging.INFO,
            "endpoint starts",
            endpoint_id=self._endpoint_id,
            executor=self._engine.status().get("executor"),
            unfinished=len(self._tasks.running),
            unpublished=len(unpublished),
        )
        self._publish_status()
        self._broker.reports.due = 0.0
        self._broker.take_commands()
        self._broker.regulate(self.in_flight)

    def _recover(self, unpublished: Iterable[str]) -> None:
        """Resume the work of an earlier agent of this endpoint."""
        self._broker.publish((task_id, self._journal.result(task_id)) for task_id in unpublished)
        for task in self._tasks.recover():
            self._submit([task])
        self._engine.recovered()

    # One turn

    def _turn(self, events: list[Event]) -> None:
        turn = self._sort(events)
        if turn.has_changes:
            self._recorder.record(turn)
        begins = [*turn.accepted, *turn.begun]
        self._submit(task for task in begins if task.runs_on_worker)
        self._broker.publish((result.task_id, result.body) for result in turn.finished)
        self._broker.reports.accepted.add(len(turn.accepted))
        self._broker.reports.finished.add(len(turn.finished))
        for each in self._recorder.to_answer(turn):
            self._answer(each)
        now = time.monotonic()
        if now >= self._broker.outbox.due:
            refused = self._broker.outbox.take_refused()
            self._broker.publish(
                ((each, self._journal.result(each)) for each in refused), alone=True
            )
        if self._phase is AgentPhase.STOPPING:
            self._ending.consider_leaving(
                awaits_confirms=self._connectivity.connected and self._broker.outbox.awaiting
            )
        else:
            self._broker.regulate(self.in_flight)
            self._ending.count(self.in_flight)
        self._report_if_due()  # last, so that the report includes this turn

    def _answer(self, turn: Turn) -> None:
        """Do what must not happen before the disk keeps a turn."""
        if turn.finished or turn.repeated:
            self._engine.settle(turn.settled)
        jobs = [task for task in (*turn.accepted, *turn.begun) if not task.runs_on_worker]
        if self._phase is not AgentPhase.STOPPING:
            self._submit(jobs)
        elif jobs:
            self._ending.leaves_jobs = True
        for engine_id, signum in turn.kills:
            self._engine.cancel(engine_id, signum)
        for engine_id, urgency in turn.reordered:
            self._engine.set_urgency(engine_id, urgency)
        self._broker.events.send(turn.job_events)
        self._acknowledge(turn)

    def _acknowledge(self, turn: Turn) -> None:
        if turn.kills and self._ending.leaves_jobs:
            return  # they may be meant for a job that the next agent has run, which gets them again
        for delivery in turn.answered:
            delivery.ack()

    def _sort(self, events: list[Event]) -> Turn:
        turn = Turn()
        deliveries: list[Delivery] = []
        commands: list[Delivery] = []
        for each in events:
            match each:
                case Delivery():
                    deliveries.append(each)
                case EngineResult():
                    self._tasks.finished(each, turn)
                case EngineEvent():
                    turn.job_events.append(each)
                case CommandDelivery(delivery):
                    commands.append(delivery)
                case Settled():
                    if self._broker.outbox.settled(each):
                        turn.confirmed.extend(each.task_ids)
                case _:
                    self._note(each)
        # A stopping agent leaves these at the broker for the next agent.
        if deliveries and self._phase is not AgentPhase.STOPPING:
            self._tasks.received(deliveries, turn)
        for delivery in commands:
            self._commanded(delivery, turn)
        if self._phase is not AgentPhase.STOPPING:
            self._tasks.begin_due(turn)
        return turn

    def _note(
        self,
        change: StateChange
        | QueueGranted
        | ConsumeRefused
        | BrokerAlarm
        | EngineLost
        | EndpointGone
        | Synchronized
        | Signal,
    ) -> None:
        match change:
            case StateChange():
                if self._connectivity.changed(change):
                    self._publish_status()
                if change.state is ConnectionState.CONNECTED:
                    self._broker.reports.due = 0.0
            case QueueGranted():
                if self._connectivity.granted():
                    self._publish_status()
            case ConsumeRefused(reason):
                self._queue_refused(reason)
            case BrokerAlarm(reason):
                if self._connectivity.alarmed(reason):
                    self._publish_status()
            case EngineLost() | EndpointGone():
                self._ending.lose(change, len(self._tasks.running))
            case Signal.STOP:
                self._ending.request(len(self._tasks.running))
            case Signal.ENGINE_STOPPED:
                self._ending.engine_stopped()

    def _queue_refused(self, reason: str) -> None:
        if self._connectivity.refused(reason):
            self._publish_status()
        if self._phase is AgentPhase.WORKING:
            self._broker.queue_lost()

    def _commanded(self, delivery: Delivery, turn: Turn) -> None:
        command = read_command(delivery)
        if command is None:
            return
        turn.answered.append(delivery)
        if isinstance(command, ReportsWanted):
            self._broker.reports.hurry(command.seconds)
            return
        if isinstance(command, OutputWanted):
            self._follow(self._tasks.followed.wanted(command))
            return
        self._records.requested(command)
        if isinstance(command, EndpointStop):
            event(log, logging.INFO, "asked by the service to stop")
            self._ending.request_once(len(self._tasks.running))
        elif isinstance(command, TaskUrgency):
            self._tasks.set_urgency(command, turn)
        else:
            self._tasks.kill(command, turn)

    def _follow(self, request: FollowRequest | None) -> None:
        if request is not None:
            self._engine.follow_output(*request)

    def _submit(self, tasks: Iterable[EngineTask]) -> None:
        for task in tasks:
            try:
                self._engine.submit(task)
            except Exception as error:
                log.exception("the engine failed to take task %s", task.task_id)
                text = f"the engine failed to take the task: {type(error).__name__}: {error}"
                refused = refuse(task_of(task.task_id), ErrorCode.COULD_NOT_EXECUTE, text, text)
                self._inbox.put(EngineResult(task.task_id, refused.result.body))
            else:
                self._follow(self._tasks.followed.begins(task))

    def _report_if_due(self) -> None:
        if time.monotonic() >= self._broker.reports.due:
            self._report()

    def _report(self, *, active: bool = True) -> None:
        status = {**self._engine.status(), "trouble": self._trouble}
        if "running_tasks" in status:
            status["running_tasks"] = by_task(status["running_tasks"])
        keep_bounded()  # libraries also write to this file, past the logger
        self._broker.report(status, len(self._tasks.running), active=active)

    # The connection

    def _publish_status(self) -> None:
        if self._on_status is None:
            return
        executor = None
        match self._phase:
            case AgentPhase.CLAIMING:
                state = "disconnected"
            case AgentPhase.WORKING:
                state = "connected" if self._connectivity.takes_tasks else "disconnected"
            case AgentPhase.STOPPING:
                state = "stopping"
        if self._phase is not AgentPhase.CLAIMING:
            executor = self._engine.status().get("executor")
        self._on_status(AgentStatus(state, self._trouble, executor, self._connectivity.gives_up_in))

    @property
    def _trouble(self) -> str:
        return (
            self._ending.reason
            or self._connectivity.trouble
            or self._recorder.trouble
            or self._connectivity.alarm
        )

    # Stopping

    def _begin_to_stop(self) -> None:
        self._phase = AgentPhase.STOPPING
        self._broker.take_no_tasks()
        self._publish_status()

    def _close(self) -> None:
        if self._phase is not AgentPhase.STOPPING:
            # After an error: the engine must not go on working for nobody.
            self._phase = AgentPhase.STOPPING
            self._engine.stop(0)
        unanswered = self._recorder.close()
        self._ending.leaves_jobs = True
        for turn in unanswered:
            self._broker.events.send(turn.job_events)
            self._acknowledge(turn)
        self._report(active=False)
        self._broker.close(CONFIRM_GRACE if self._connectivity.connected else 0.0)
        # Process the last events, so that the next agent need not redo that work.
        last = Turn()
        while not self._inbox.empty():
            each = self._inbox.get()
            if isinstance(each, EngineResult):
                self._tasks.finished(each, last)
            elif isinstance(each, Settled) and each.error is None:
                last.confirmed.extend(each.task_ids)
        with self._journal.batch():
            self._journal.attempted(last.attempts)
            self._journal.finish(last.finished)
            self._journal.confirmed(last.confirmed)
        self._engine.settle([each for turn in (*unanswered, last) for each in turn.settled])
        event(
            log,
            logging.INFO,
            "endpoint stopped",
            unfinished=len(self._tasks.running),
            unpublished=len(self._journal.unpublished()),
        )
