"""The cache of results: a call that succeeded before gets its result, and is not run again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.backlog import Accepted, PendingTask, SubmissionRoute
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.registry import FunctionRegistration
from flux_endpoint.client.results import STATUS_CHUNK, TaskEnd, from_document, load, resolve
from flux_endpoint.data import is_reference
from flux_endpoint.errors import DataStoreError, ServiceError, ServiceUnreachableError
from flux_endpoint.functions import ShellResult
from flux_endpoint.logs import event
from flux_endpoint.protocol.envelope import RETURNCODE
from flux_endpoint.protocol.process_options import PROCESS_CHECKS
from flux_endpoint.protocol.rest import MAX_CACHE_KEYS

log = logging.getLogger(__name__)
_Item = TypeVar("_Item")

#: Changes with what a key is made of.
_VERSION = 1


def call_key(
    route: SubmissionRoute, function: FunctionRegistration, payload: str, environment: str
) -> str:
    """Return the key of a call: a hash of all that its result may depend on.

    Args:
        route: the settings of its request. The task group is left out, and so are options such as
            retries, which do not affect the result of a task that succeeds; those of its process,
            such as `stdin`, do.
        function: its function.
        payload: its packed arguments.
        environment: the user's name of the environment, e.g. a version of the data.
    """
    options = json.loads(route.run_options or "{}")
    process = {name: value for name, value in options.items() if name in PROCESS_CHECKS}
    of_process = json.dumps(process, sort_keys=True) if process else ""
    settings = route._replace(task_group_id="", run_options=of_process)
    of_call = (_VERSION, environment, function.digest, settings, payload)
    return hashlib.sha256(json.dumps(of_call).encode()).hexdigest()


class ResultCache:
    """Resolves futures of calls that were made before. For the submitter's thread.

    Its errors only cost time: then the calls are run.

    Args:
        api: the service.
    """

    def __init__(self, api: ServiceApi) -> None:
        self._api = api
        self._has_failed = False

    def resolve(self, tasks: Sequence[PendingTask]) -> list[PendingTask]:
        """Resolve the tasks whose calls are known; return the others."""
        keys = list({task.key for task in tasks if task.key})
        found: dict[str, str] = {}
        documents: dict[str, dict[str, Any]] = {}
        try:
            for part in _parts(keys, MAX_CACHE_KEYS):
                found |= self._api.cached_tasks(part)
            for part in _parts(list(set(found.values())), STATUS_CHUNK):
                documents |= self._api.batch_status(part)
        except (ServiceError, ServiceUnreachableError) as error:
            self._failed(error)
            return list(tasks)
        ends = {
            task_id: from_document({**document, "task_id": task_id})
            for task_id, document in documents.items()
        }
        left: list[PendingTask] = []
        for task in tasks:
            end = ends.get(found.get(task.key, ""))
            if end is None or not _succeeded(task, end) or not _is_there(task, end):
                left.append(task)
                continue
            task.future._is_cached = True
            ComputeFuture._accepted([Accepted(task.future, end.task_id, task.function.function_id)])
            resolve(task.future, end)
        return left

    def note(self, tasks: Sequence[PendingTask]) -> None:
        """Let the service note the calls of tasks that it has accepted."""
        entries = {task.key: task.future.task_id for task in tasks if task.key}
        known = [(key, task_id) for key, task_id in entries.items() if task_id is not None]
        try:
            for part in _parts(known, MAX_CACHE_KEYS):
                self._api.cache_tasks(dict(part))
        except (ServiceError, ServiceUnreachableError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            event(log, logging.WARNING, f"the cache of results can't be used: {error}")


def _succeeded(task: PendingTask, end: TaskEnd) -> bool:
    """Return whether an earlier task is there and has succeeded: a command with exit code 0."""
    if end.error is not None:  # it may have been removed in between
        return False
    code = (end.details or {}).get(RETURNCODE)
    if code is None and task.function.may_be_command:  # an official endpoint's is in the value
        try:
            value = load(end, task.future._load)
        except Exception:  # noqa: BLE001 - then it can't be used
            return False
        code = value.returncode if isinstance(value, ShellResult) else value["returncode"]
    return code in (None, 0)


def _is_there(task: PendingTask, end: TaskEnd) -> bool:
    """Return whether a value that is in a store can be loaded here; otherwise the call is run."""
    if is_reference(end.value):
        try:
            load(end, task.future._load)
        except DataStoreError:
            return False
        except BaseException:  # noqa: BLE001 - the future raises it, and the other calls go on
            return True
    return True


def _parts(items: Sequence[_Item], size: int) -> list[list[_Item]]:
    return [list(items[at : at + size]) for at in range(0, len(items), size)]
