"""The cache of results: a call that succeeded before gets its result, and is not run again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.backlog import Accepted, PendingTask, SubmissionRoute
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.registry import FunctionRegistration
from flux_endpoint.client.results import from_document, resolve
from flux_endpoint.errors import ServiceError, ServiceUnreachableError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Changes with what a key is made of.
_VERSION = 1


def call_key(
    route: SubmissionRoute, function: FunctionRegistration, payload: str, environment: str
) -> str:
    """Return the key of a call: a hash of all that its result may depend on.

    Args:
        route: the settings of its request; the task group is left out.
        function: its function.
        payload: its packed arguments.
        environment: the user's name of the environment, e.g. a version of the data.
    """
    of_call = (_VERSION, environment, function.digest, route._replace(task_group_id=""), payload)
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
        try:
            found = self._api.cached_tasks(keys)
            documents = self._api.batch_status(list(set(found.values()))) if found else {}
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
            if end is None or end.error is not None:  # removed in between
                left.append(task)
                continue
            task.future._is_cached = True
            ComputeFuture._accepted([Accepted(task.future, end.task_id, task.function.function_id)])
            resolve(task.future, end)
        return left

    def note(self, tasks: Sequence[PendingTask]) -> None:
        """Let the service note the calls of tasks that it has accepted."""
        entries = {task.key: task.future.task_id for task in tasks if task.key}
        known = {key: task_id for key, task_id in entries.items() if task_id is not None}
        if not known:
            return
        try:
            self._api.cache_tasks(known)
        except (ServiceError, ServiceUnreachableError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            event(log, logging.WARNING, f"the cache of results can't be used: {error}")
