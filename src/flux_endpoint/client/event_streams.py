"""Which event streams this process has, and who uses them."""

from __future__ import annotations

import os
import threading
import time

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.job import JobRecord
from flux_endpoint.client.job_events import EventStream

_Key = tuple[int, tuple[str, str], str, int | None]


class _Shared:
    def __init__(self) -> None:
        self.renew_lock()
        self.streams: dict[_Key, EventStream] = {}
        self.users: dict[EventStream, int] = {}

    def renew_lock(self) -> None:
        self.lock = threading.Lock()


_shared = _Shared()
# A thread that a forked child does not have may hold it in its parent.
os.register_at_fork(after_in_child=_shared.renew_lock)


class EventStreams:
    """What the futures of one Executor use of the streams that all of the process share.

    A stream begins with the first future that wants events. It ends when it has no user and no
    future wants anything more of it, so it may outlive the Executors, or begin after them.

    Attributes:
        api: the service.
        amqp_port: port of the broker for streams begun from now on; `None` is the one in its URL.
    """

    def __init__(self, api: ServiceApi) -> None:
        self.api = api
        self.amqp_port: int | None = None
        self._mine: dict[_Key, EventStream] = {}
        self._ending: list[EventStream] = []
        self._released = False

    def follow(self, future: ComputeFuture, job: JobRecord) -> None:
        """Have `job` filled with the events of `future`'s task, whose id is known."""
        key = (os.getpid(), self.api.identity, future.task_group_id or "", self.amqp_port)
        with _shared.lock:
            stream = _shared.streams.get(key)
            if stream is None:
                stream = EventStream(self.api.background(), key[2], key[3], _retire)
                _shared.streams[key] = stream
                _shared.users[stream] = 0
                stream.start()
            if not self._released and self._mine.get(key) is not stream:
                self._mine[key] = stream
                _shared.users[stream] += 1
                stream.hold()
            # Under the lock: a stream that is about to end looks into its inbox first.
            stream.follow(future, job)

    def release(self) -> None:
        """Stop using all streams; those that nobody else uses end when they have nothing to do."""
        with _shared.lock:
            self._released = True
            for stream in self._mine.values():
                if stream in _shared.users:
                    _shared.users[stream] -= 1
                    if not _shared.users[stream]:
                        stream.release()
                        self._ending.append(stream)
            self._mine.clear()

    def join(self, timeout: float) -> None:
        """Wait until the streams that `release` let go have ended, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._ending:
            self._ending.pop().join(max(0.0, deadline - time.monotonic()))


def end_event_streams(timeout: float) -> None:
    """End all streams of this process, at most within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    with _shared.lock:
        streams = [stream for key, stream in _shared.streams.items() if key[0] == os.getpid()]
        _shared.streams.clear()
        _shared.users.clear()
    for stream in streams:
        stream.close()
    for stream in streams:
        stream.join(max(0.0, deadline - time.monotonic()))


def _retire(stream: EventStream) -> bool:
    """Forget `stream` if nobody uses it; runs on its thread."""
    with _shared.lock:
        if _shared.users.get(stream) or not stream.idle:
            return False
        for key, known in list(_shared.streams.items()):
            if known is stream:
                del _shared.streams[key]
        _shared.users.pop(stream, None)
        return True
