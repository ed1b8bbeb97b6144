"""Reads the tasks and commands that arrive at an endpoint, and keeps its unfinished tasks."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from flux_endpoint.amqp import Delivery
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.followed_output import FollowedOutput
from flux_endpoint.endpoint.inbox import Turn
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.endpoint.outbox import ResultOutbox
from flux_endpoint.endpoint.restrictions import RestrictionError, restricted
from flux_endpoint.endpoint.retries import Attempts, Retries, task_of
from flux_endpoint.endpoint.task_records import RefusedTask, TaskRecords
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.logs import event
from flux_endpoint.protocol.envelope import VERSION_BYTE
from flux_endpoint.protocol.job_events import ATTEMPT_FAILED
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.messages import (
    EndpointStop,
    OutputWanted,
    ReportsWanted,
    Result,
    ResultErrorDetails,
    TaskKill,
    TaskUrgency,
    pack,
    read_json,
    unpack,
)
from flux_endpoint.protocol.queues import (
    ATTACH_HEADER,
    FUNCTION_ID_HEADER,
    FUNCTION_NAME_HEADER,
    RESOURCES_HEADER,
    RESULT_SERIALIZERS_HEADER,
    RUN_OPTIONS_HEADER,
    TASK_ID_HEADER,
)
from flux_endpoint.protocol.resources import HELD
from flux_endpoint.protocol.run_options import (
    RunOptions,
    RunOptionsError,
    check_for_job,
    parse_run_options,
)
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)

#: Requests of the service.
Command = TaskKill | TaskUrgency | EndpointStop | OutputWanted | ReportsWanted

#: The most tasks with urgencies that were asked for.
_MAX_URGENCIES = 100_000
_COMMANDS = frozenset(kind.__name__ for kind in (ShellFunction, MPIFunction))
_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def read_task(
    body: bytes,
    headers: Mapping[str, Any],
    *,
    endpoint_id: str,
    allowed_functions: frozenset[str] | None,
    allowed_environment: Collection[str] = (),
    plain_programs: Collection[str] = (),
) -> EngineTask | RefusedTask:
    """Return the task in a message. Its identity comes from the headers alone.

    Args:
        body: the message body.
        headers: the message headers.
        endpoint_id: this endpoint's UUID.
        allowed_functions: the functions that may run here; `None`: all, with any arguments.
        allowed_environment: `variables` of `restricted`.
        plain_programs: `programs` of `restricted`.

    Raises:
        InvalidMessageError: the headers do not identify the task, so nobody can be notified.
    """
    task_id = _identity(headers, TASK_ID_HEADER)
    function_id = _identity(headers, FUNCTION_ID_HEADER)
    runs_function = ATTACH_HEADER not in headers
    if runs_function and allowed_functions is not None and function_id not in allowed_functions:
        text = f"function {function_id} is not allowed on endpoint {endpoint_id}"
        return refuse(task_id, ErrorCode.FUNCTION_NOT_ALLOWED, text, text)
    try:
        task = EngineTask(
            task_id,
            function_id,
            _buffer(body),
            _named(_resources(headers.get(RESOURCES_HEADER)), headers.get(FUNCTION_NAME_HEADER)),
            _serializers(headers.get(RESULT_SERIALIZERS_HEADER)),
            _attached_job(headers.get(ATTACH_HEADER)),
            options=_options(headers.get(RUN_OPTIONS_HEADER)),
        )
        if task.options is not None and not task.runs_on_worker:
            check_for_job(task.options, task.resource_specification or {})
        if allowed_functions is None:
            return task
        return restricted(task, allowed_environment, plain_programs)
    except RestrictionError as error:
        return refuse(task_id, ErrorCode.TASK_NOT_ALLOWED, str(error), str(error))
    except (InvalidMessageError, RunOptionsError) as error:
        return refuse(
            task_id,
            ErrorCode.COULD_NOT_EXECUTE,
            f"the endpoint can't read the task: {error}",
            "The task's message is malformed; it was not run.",
        )


def refuse(task_id: str, code: ErrorCode, text: str, user_message: str) -> RefusedTask:
    """Return the refusal of a task; `text` becomes the text of the client's exception.

    Args:
        task_id: the task's id.
        code: the kind of failure.
        text: the text of the client's exception.
        user_message: a short message for the user.
    """
    error = ResultErrorDetails(code=code.value, user_message=user_message)
    result = Result(task_id=UUID(task_id), data=text, error_details=error, task_statuses=[])
    return RefusedTask(task_id, text, EngineResult(task_id, pack(result)))


def read_command(delivery: Delivery) -> Command | None:
    """Return the request in a delivery; dead-letter an invalid one and return `None`."""
    try:
        message = unpack(delivery.body)
        if isinstance(message, Command):
            return message
        reason = f"a {message.message_type} message is no command"
    except InvalidMessageError as error:
        reason = str(error)
    event(
        log,
        logging.ERROR,
        "command dead-lettered",
        message_id=delivery.message_id,
        reason=reason,
    )
    delivery.reject()
    return None


def cancelled_before_it_came(task_id: str) -> RefusedTask:
    """Return the end of a task that is not here yet; recorded, it keeps the task from starting."""
    text = "TaskCancelled: the task was ended on request before it was started"
    return refuse(task_id, ErrorCode.CANCELLED, text, "The task was ended on request.")


def _identity(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    if isinstance(value, str):
        if _CANONICAL_UUID.fullmatch(value):
            return value
        try:
            return str(UUID(value))
        except ValueError:
            pass
    what = "is missing" if value is None else f"is {str(value)[:100]!r}, not a UUID"
    raise InvalidMessageError(f"header {name} {what}")


def _buffer(body: bytes) -> str:
    if body[:1] != VERSION_BYTE:
        got = f"{body[0]:#04x}" if body else "nothing"
        raise InvalidMessageError(f"the body must begin with the version byte 0x01, not {got}")
    try:
        envelope = read_json(body)
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"the body is not JSON: {error}") from None
    if not isinstance(envelope, dict) or envelope.get("message_type") != "task":
        kind = envelope.get("message_type") if isinstance(envelope, dict) else None
        raise InvalidMessageError(f"message_type must be 'task', not {str(kind)[:100]!r}")
    data = envelope.get("data")
    buffer = data.get("task_buffer") if isinstance(data, dict) else None
    if not isinstance(buffer, str):
        raise InvalidMessageError("data.task_buffer must be text")
    try:
        buffer.encode()
    except UnicodeEncodeError:  # a lone surrogate passes JSON but neither SQLite nor a socket
        raise InvalidMessageError("data.task_buffer is not valid Unicode") from None
    return buffer


def _resources(value: Any) -> dict[str, Any] | None:
    if value is None or value == "null":
        return None
    try:
        specification = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"header {RESOURCES_HEADER} is not JSON: {error}") from None
    if specification is None:
        return None
    if not isinstance(value, str) or not isinstance(specification, dict):
        raise InvalidMessageError(f"header {RESOURCES_HEADER} must be the JSON of an object")
    return specification


def _options(value: Any) -> RunOptions | None:
    if value is None:
        return None
    try:
        given = json.loads(value) if isinstance(value, str) else None
        if isinstance(given, dict):
            return parse_run_options(given)
    except RunOptionsError as error:
        raise InvalidMessageError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"header {RUN_OPTIONS_HEADER} is not JSON: {error}") from None
    raise InvalidMessageError(f"header {RUN_OPTIONS_HEADER} must be the JSON of an object")


def _named(specification: dict[str, Any] | None, name: object) -> dict[str, Any] | None:
    """Name the job after its function, unless the specification has a name for it.

    The name of an unnamed command function says nothing, so its program's name is used.
    """
    if not specification or specification.get("job_name") is not None or name in _COMMANDS:
        return specification
    return {**specification, "job_name": name} if isinstance(name, str) and name else specification


def _serializers(value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InvalidMessageError(f"header {RESULT_SERIALIZERS_HEADER} must be a list of text")
    return value or None


def _attached_job(value: Any) -> int | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and value.isdecimal():
            return parse_jobid(value)
    except ValueError:
        pass
    raise InvalidMessageError(f"header {ATTACH_HEADER} must be a job id in decimal")


class TasksInFlight:
    """Decides what a turn has to record and to do. Used by the agent's thread only.

    Args:
        endpoint_id: the endpoint's UUID.
        config: the endpoint's configuration.
        journal: tasks that are accepted, and results that are not confirmed.
        outbox: results on their way to the broker.
        records: who had which task run, for logs and audit.
    """

    def __init__(
        self,
        endpoint_id: str,
        config: EndpointConfig,
        journal: Journal,
        outbox: ResultOutbox,
        records: TaskRecords,
    ) -> None:
        self._endpoint_id = endpoint_id
        self._config = config
        allowed = config.allowed_functions
        self._allowed = None if allowed is None else frozenset(allowed)
        self._journal = journal
        self._outbox = outbox
        self._records = records
        #: Tasks that were accepted and have no result yet.
        self.running: set[str] = set()
        #: Those of them that may have several attempts.
        self.retries = Retries()
        self.followed = FollowedOutput(self.retries)

    def received(self, deliveries: list[Delivery], turn: Turn) -> None:
        """Sort new tasks from those that the broker delivers again.

        Args:
            deliveries: messages of the task queue; one that can't be read is rejected.
            turn: gets what is to be recorded and acknowledged.
        """
        fresh: dict[str, tuple[Delivery, EngineTask | RefusedTask]] = {}
        # A task that this turn ends has left `running`, and the journal does not have its end yet.
        ending = {result.task_id for result in turn.finished}.union(turn.confirmed)
        for delivery in deliveries:
            task = self._read(delivery)
            if task is None:
                delivery.reject()
            elif any(task.task_id in each for each in (fresh, self.running, self._outbox, ending)):
                event(log, logging.DEBUG, "task redelivered", task_id=task.task_id)
                turn.answered.append(delivery)
                self._outbox.hurry(task.task_id)
            else:
                fresh[task.task_id] = (delivery, task)
        if not fresh:
            return
        done = self._journal.done(list(fresh))
        self._records.received(
            (task, delivery.headers)
            for task_id, (delivery, task) in fresh.items()
            if task_id not in done
        )
        for task_id, (delivery, task) in fresh.items():
            turn.answered.append(delivery)
            if task_id in done:
                event(log, logging.DEBUG, "finished task redelivered", task_id=task_id)
            elif isinstance(task, RefusedTask):
                event(log, logging.WARNING, "task refused", task_id=task_id, reason=task.reason)
                turn.finished.append(task.result)
            else:
                self.running.add(task_id)
                self.retries.accepted(task)
                turn.accepted.append(self._with_urgency(task, turn))

    def _with_urgency(self, task: EngineTask, turn: Turn) -> EngineTask:
        """Return a new task with the urgency that was asked for, with it or before it came."""
        if task.task_id in self._journal.urgencies:
            asked = self._journal.urgencies[task.task_id]
        elif task.options is not None and task.options.hold:
            asked = HELD
        else:
            return task
        urgency = task.usual_urgency if asked is None else asked
        turn.urgencies[task.task_id] = urgency
        return replace(task, urgency=urgency)

    def _read(self, delivery: Delivery) -> EngineTask | RefusedTask | None:
        try:
            return read_task(
                delivery.body,
                delivery.headers,
                endpoint_id=self._endpoint_id,
                allowed_functions=self._allowed,
                allowed_environment=self._config.allowed_environment,
                plain_programs=self._config.plain_programs,
            )
        except InvalidMessageError as error:
            event(
                log,
                logging.ERROR,
                "task message dead-lettered",
                message_id=delivery.message_id,
                headers={key: str(value)[:100] for key, value in delivery.headers.items()},
                reason=str(error),
            )
            return None

    def finished(self, result: EngineResult, turn: Turn) -> None:
        """Take a result of the engine; a second one for the same task is dropped."""
        task_id = task_of(result.task_id)
        end: Attempts | EngineResult | None = result
        if task_id in self.retries:
            end = self.retries.ended(result)
        if end is None or task_id not in self.running:
            event(log, logging.WARNING, "duplicate result dropped", task_id=result.task_id)
            turn.repeated.append(result.task_id)
        elif isinstance(end, Attempts):
            turn.job_events += self.followed.rest(result)
            self._failed(end, turn)
            turn.repeated.append(result.task_id)
        else:
            self.running.remove(task_id)
            turn.finished.append(end)
            if task_id != result.task_id:
                turn.repeated.append(result.task_id)

    def _failed(self, attempts: Attempts, turn: Turn) -> None:
        """Record a failed attempt, after which there is another one."""
        now, number = time.time(), len(attempts.failures)
        pause = round((attempts.due or now) - now, 3)
        about = {"attempt": number, "reason": attempts.failures[-1], "retry_in": pause}
        event(log, logging.INFO, "an attempt failed", task_id=attempts.task_id, **about)
        turn.attempts.append(attempts)
        turn.job_events.append(EngineEvent(attempts.task_id, None, ATTEMPT_FAILED, now, about))

    def begin_due(self, turn: Turn) -> None:
        """Begin the attempts that are due."""
        for attempts in self.retries.take_due(time.monotonic()):
            task = self._journal.task(attempts.task_id)
            # The journal does not have yet what this turn changes.
            urgency = turn.urgencies.get(attempts.task_id, task.urgency)
            task = replace(task, urgency=urgency)
            turn.attempts.append(attempts)
            turn.begun.append(replace(task, task_id=attempts.engine_id))

    def recover(self) -> Iterator[EngineTask]:
        """Yield the unfinished tasks of an earlier agent that its engine had, or was to have."""
        self.retries.recovered(self._journal.attempts())
        for task in self._journal.pending():
            self.running.add(task.task_id)
            attempt = self.retries.to_run(task)
            if attempt is not None:
                yield attempt

    def kill(self, request: TaskKill, turn: Turn) -> None:
        """Have a running task end; a task that has not arrived ends before it can start."""
        task_id = str(request.task_id)
        event(log, logging.INFO, "asked to end a task", task_id=task_id, signum=request.signum)
        if task_id in self.running:
            self._kill(task_id, request.signum, turn)
        elif request.signum is None and not self._has_ended(task_id, turn):
            turn.finished.append(cancelled_before_it_came(task_id).result)

    def set_urgency(self, request: TaskUrgency, turn: Turn) -> None:
        """Set the urgency of a task, of one that has not arrived when it comes."""
        task_id, urgency = str(request.task_id), request.urgency
        event(log, logging.INFO, "asked to change an urgency", task_id=task_id, urgency=urgency)
        if task_id not in self.running:
            is_full = len(self._journal.urgencies) >= _MAX_URGENCIES  # the journal is bounded
            if not is_full and not self._has_ended(task_id, turn):
                turn.urgencies[task_id] = urgency
            return
        if urgency is None:
            fresh = (each for each in turn.accepted if each.task_id == task_id)
            urgency = (next(fresh, None) or self._journal.task(task_id)).usual_urgency
        turn.urgencies[task_id] = urgency
        if (engine_id := self.retries.engine_id(task_id)) is not None:
            turn.reordered.append((engine_id, urgency))

    def _kill(self, task_id: str, signum: int | None, turn: Turn) -> None:
        engine_id = self.retries.engine_id(task_id)
        if engine_id is not None:
            turn.kills.append((engine_id, signum))
        if signum is None and task_id in self.retries:
            end = self.retries.killed(task_id)
            if isinstance(end, Attempts):
                turn.attempts.append(end)
            else:
                self.running.remove(task_id)
                turn.finished.append(end)

    def _has_ended(self, task_id: str, turn: Turn) -> bool:
        # The journal does not have yet what this turn ends or confirms.
        ending = any(result.task_id == task_id for result in turn.finished)
        ending = ending or task_id in turn.confirmed
        return ending or task_id in self._outbox or bool(self._journal.done([task_id]))
