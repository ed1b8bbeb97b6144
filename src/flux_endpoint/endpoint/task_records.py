"""Records who ran which task: a log line per batch of a function, an audit record per task."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_endpoint.audit import AuditLog
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import DeserializationError
from flux_endpoint.functions import read_command
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import EndpointStop, TaskKill, TaskUrgency
from flux_endpoint.protocol.queues import FUNCTION_ID_HEADER, SUBMITTER_HEADER
from flux_endpoint.serialize import JSONData, unpack_buffers

log = logging.getLogger(__name__)

#: The audit log in an endpoint's directory.
AUDIT_LOG = "audit.jsonl"
#: The most characters of a command, and of its arguments, that are shown.
_BEGINNING = 200
#: The most characters of a function that is remembered.
_REMEMBERED = 64 << 10


@dataclass(frozen=True, slots=True)
class RefusedTask:
    """A message whose task is known but can't run; `result` tells its owner why."""

    task_id: str
    reason: str
    result: EngineResult


class TaskRecords:
    """Records the tasks and requests that an agent takes. Belongs to its thread.

    Args:
        directory: the endpoint's directory.
    """

    def __init__(self, directory: Path) -> None:
        self._audit = AuditLog(directory / AUDIT_LOG)
        #: The latest function, and the beginning of its command: it mostly comes again.
        self._latest: tuple[str, str | None] = ("", None)

    def received(self, tasks: Iterable[tuple[EngineTask | RefusedTask, Mapping[str, Any]]]) -> None:
        """Record accepted and refused tasks, with the headers of their messages."""
        records: list[dict[str, Any]] = []
        batches: dict[tuple[Any, ...], list[str]] = {}
        for task, headers in tasks:
            user = headers.get(SUBMITTER_HEADER)
            if isinstance(task, RefusedTask):
                record = {
                    "event": "task refused",
                    "user": user,
                    "task_id": task.task_id,
                    "function_id": headers.get(FUNCTION_ID_HEADER),
                    "reason": task.reason,
                }
            else:
                record = {
                    "event": "task accepted" if task.attach is None else "job followed",
                    "user": user,
                    "task_id": task.task_id,
                    "function_id": task.function_id if task.attach is None else None,
                    **self._work(task),
                }
                kind = (user, record["function_id"], record.get("command"), record.get("jobid"))
                batches.setdefault(kind, []).append(task.task_id)
            records.append(record)
        for (user, function_id, command, jobid), task_ids in batches.items():
            about = {"function_id": function_id, "command": command, "jobid": jobid}
            event(
                log,
                logging.INFO,
                "task accepted" if len(task_ids) == 1 else "tasks accepted",
                user=user,
                task_id=task_ids[0],
                **({} if len(task_ids) == 1 else {"tasks": len(task_ids)}),
                **{key: value for key, value in about.items() if value is not None},
            )
        self._audit.write_all(records)

    def _work(self, task: EngineTask) -> dict[str, Any]:
        """Return what a task does, as far as its message shows."""
        if task.attach is not None:
            return {"jobid": task.attach}
        work: dict[str, Any] = {"resource_specification": task.resource_specification}
        try:
            function, _, arguments, *_ = unpack_buffers(task.buffer)
        except (DeserializationError, ValueError):
            return work
        command = self._command(function)
        if command is not None:
            work["command"] = command
            if arguments.startswith(JSONData.identifier):
                work["arguments"] = arguments[len(JSONData.identifier) :][:_BEGINNING]
        return work

    def _command(self, function: str) -> str | None:
        """Return the beginning of a command function's command; `None` for another function."""
        known, command = self._latest
        if function != known:
            read = read_command(function)
            command = None if read is None else read.cmd[:_BEGINNING]
            if len(function) <= _REMEMBERED:
                self._latest = function, command
        return command

    def requested(self, request: TaskKill | TaskUrgency | EndpointStop) -> None:
        """Record a request of the service on a user's behalf."""
        if isinstance(request, EndpointStop):
            self._audit.write("asked to stop")
        elif isinstance(request, TaskUrgency):
            self._audit.write(
                "asked to change an urgency", task_id=str(request.task_id), urgency=request.urgency
            )
        else:
            self._audit.write(
                "asked to end a task", task_id=str(request.task_id), signum=request.signum
            )

    def close(self) -> None:
        """Close the audit log."""
        self._audit.close()
