"""Which result streams this process has, and who uses them."""

from __future__ import annotations

import os
import threading
import time

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.event_streams import EventStreams
from flux_endpoint.client.stream import ResultStream

#: Seconds that the orderly end of a stream may take before its user goes on without.
CLOSE_TIMEOUT = 5.0

_Key = tuple[int, tuple[str, str], str, int | None]


class _Shared:
    def __init__(self) -> None:
        self.renew_lock()
        self.streams: dict[_Key, ResultStream] = {}
        self.users: dict[_Key, int] = {}

    def renew_lock(self) -> None:
        self.lock = threading.Lock()


_shared = _Shared()
# A thread that a forked child does not have may hold it in its parent.
os.register_at_fork(after_in_child=_shared.renew_lock)


class ResultStreams:
    """What one Executor uses of the streams that all Executors of the process share.

    There is one stream for each service, task group and AMQP port. It ends with its last user.

    Attributes:
        events: streams of job events, which end with these.
    """

    def __init__(self, api: ServiceApi) -> None:
        self.events = EventStreams(api)
        self._api = api
        self._mine: dict[_Key, ResultStream] = {}
        self._ended: list[ResultStream] = []

    @property
    def amqp_port(self) -> int | None:
        """Port of the broker for streams begun from now on; `None` is the one in its URL."""
        return self.events.amqp_port

    @amqp_port.setter
    def amqp_port(self, value: int | None) -> None:
        self.events.amqp_port = value

    def get(self, task_group_id: str) -> ResultStream:
        """Return the stream of a task group, started if nobody uses it yet."""
        # A forked child has no threads, hence no streams: its process id sets it apart.
        key = (os.getpid(), self._api.identity, task_group_id, self.amqp_port)
        with _shared.lock:
            stream = self._mine.get(key)
            if stream is None:
                stream = _shared.streams.get(key)
                if stream is None:
                    stream = ResultStream(self._api.background(), task_group_id, key[3])
                    stream.start()
                    _shared.streams[key] = stream
                self._mine[key] = stream
                _shared.users[key] = _shared.users.get(key, 0) + 1
            return stream

    def release(self) -> None:
        """Stop using all streams; end those that nobody else uses."""
        with _shared.lock:
            for key, stream in self._mine.items():
                _shared.users[key] -= 1
                if not _shared.users[key]:
                    del _shared.users[key], _shared.streams[key]
                    stream.close()
                    self._ended.append(stream)
            self._mine.clear()
        self.events.release()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the streams that `release` ended are closed, at most `timeout` seconds."""
        deadline = time.monotonic() + (CLOSE_TIMEOUT if timeout is None else timeout)
        while self._ended:
            self._ended.pop().join(max(0.0, deadline - time.monotonic()))
        self.events.join(max(0.0, deadline - time.monotonic()))
