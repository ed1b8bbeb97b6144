"""The streams of this process, which its Executors share."""

from __future__ import annotations

import os
import threading
import time
from typing import TypeVar

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.group_stream import GroupStream
from flux_endpoint.client.job import JobRecord
from flux_endpoint.client.job_events import EventStream
from flux_endpoint.client.results import ResultStream

#: Time (s) for the orderly end of the streams that an Executor has used; then it does not wait.
CLOSE_TIMEOUT = 5.0

_Key = tuple[int, type[GroupStream], tuple[str, str], str, int | None]
_Stream = TypeVar("_Stream", ResultStream, EventStream)


class _Shared:
    """The streams of this process; its lock guards them and the numbers of their users."""

    def __init__(self) -> None:
        self.renew_lock()
        self.streams: dict[_Key, GroupStream] = {}

    def renew_lock(self) -> None:
        self.lock = threading.Lock()


_shared = _Shared()
# At the fork, a thread of the parent may hold the lock; in the child nobody releases it.
os.register_at_fork(after_in_child=_shared.renew_lock)


class Streams:
    """The streams that one Executor and its futures use.

    All Executors of a process share one stream of results, and one of job events, for each service,
    user, task group and AMQP port. A stream of results ends with its last user. A stream of events
    starts with the first future that wants events, and ends when it has no user and no future needs
    it any more. It may therefore outlive the Executors, or start after their end.

    Args:
        api: the service.

    Attributes:
        api: the service.
        amqp_port: port of the broker for new streams; `None`: the port that the service returns.
    """

    def __init__(self, api: ServiceApi) -> None:
        self.api = api
        self.amqp_port: int | None = None
        self._mine: set[GroupStream] = set()
        self._ending: list[GroupStream] = []
        self._released = False

    def results(self, task_group_id: str) -> ResultStream:
        """Return the stream of a task group's results; start it if it does not exist."""
        with _shared.lock:
            return self._use(self._get(ResultStream, task_group_id))

    def follow(self, future: ComputeFuture, job: JobRecord) -> None:
        """Add the events of a task's job to `job`, as they arrive.

        Args:
            future: the task's future; its `task_id` is known.
            job: the record.
        """
        with _shared.lock:
            stream = self._get(EventStream, future.task_group_id or "")
            if not self._released:
                self._use(stream)
            # Under the lock, so that the stream does not end: `_retire` checks its inbox.
            stream.follow(future, job)

    def release(self) -> None:
        """Stop using all streams; streams without users end when they have no more work."""
        with _shared.lock:
            self._released = True
            for stream in self._mine:
                stream.users -= 1
                if not stream.users:
                    stream.release()
                    self._ending.append(stream)
            self._mine.clear()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the streams without users have ended.

        Args:
            timeout: the longest time (s) to wait; `None`: `CLOSE_TIMEOUT`.
        """
        _join(self._ending, CLOSE_TIMEOUT if timeout is None else timeout)

    def _get(self, kind: type[_Stream], task_group_id: str) -> _Stream:
        # The process id is part of the key because a forked child has no threads: it needs its own
        # streams.
        key = (os.getpid(), kind, self.api.identity, task_group_id, self.amqp_port)
        stream = _shared.streams.get(key)
        if stream is None:
            stream = kind(self.api.background(), task_group_id, self.amqp_port)
            stream.start(_retire)
            _shared.streams[key] = stream
        assert isinstance(stream, kind)
        return stream

    def _use(self, stream: _Stream) -> _Stream:
        if stream not in self._mine:
            self._mine.add(stream)
            stream.users += 1
        return stream


def end_event_streams(timeout: float) -> None:
    """End all streams of events of this process; wait for them at most `timeout` seconds."""
    with _shared.lock:
        keys = [key for key in _shared.streams if key[:2] == (os.getpid(), EventStream)]
        streams = [_shared.streams.pop(key) for key in keys]
    for stream in streams:
        stream.close()
    _join(streams, timeout)


def _join(streams: list[GroupStream], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while streams:
        streams.pop().join(max(0.0, deadline - time.monotonic()))


def _retire(stream: GroupStream) -> bool:
    """Forget a stream that has no user and an empty inbox; return whether. Runs on its thread."""
    with _shared.lock:
        if stream.users or not stream.is_idle:
            return False
        for key in [key for key, known in _shared.streams.items() if known is stream]:
            del _shared.streams[key]
        return True
