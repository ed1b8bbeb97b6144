"""Creates futures for the tasks of an existing group."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.results import STATUS_CHUNK, from_document, resolve
from flux_endpoint.client.streams import Streams


def reload_group(
    group: str,
    api: ServiceApi,
    streams: Streams,
    prepare: Callable[[ComputeFuture], None],
    track: Callable[[Future[Any]], None],
) -> list[ComputeFuture]:
    """Return a future for each task of a group.

    Args:
        group: id of the group.
        api: the service.
        streams: the Executor's streams, which receive the results.
        prepare: sets how a future reads its result.
        track: called with each future that a shutdown of the Executor has to wait for.

    Raises:
        ServiceError: the service does not know the group, or it belongs to another user.
        ServiceUnreachableError: the service can't be reached.
    """
    under_way: Future[None] = Future()  # a concurrent shutdown waits for this function, too
    track(under_way)
    try:
        futures = {id_: ComputeFuture(id_, task_group_id=group) for id_ in api.task_group(group)}
        for future in futures.values():
            future.set_running_or_notify_cancel()
            prepare(future)
        ended = _resolve_ended(futures, api)
        pending = [future for task_id, future in futures.items() if task_id not in ended]
        if pending:
            # A task may end in between: the stream requests the states again when it follows them.
            for future in streams.results(group).follow(pending):
                futures[future.task_id or ""] = future
                track(future)
        return list(futures.values())
    finally:
        under_way.set_result(None)


def _resolve_ended(futures: dict[str, ComputeFuture], api: ServiceApi) -> set[str]:
    ids = list(futures)
    ended: set[str] = set()
    for start in range(0, len(ids), STATUS_CHUNK):
        documents = api.batch_status(ids[start : start + STATUS_CHUNK])
        for task_id, document in documents.items():
            end = from_document({**document, "task_id": task_id})
            if end is not None and task_id in futures:
                resolve(futures[task_id], end)
                ended.add(task_id)
    return ended
