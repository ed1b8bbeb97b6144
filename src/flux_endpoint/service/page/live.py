"""Server-sent events: which parts of the page have changed.

An event has no data of a user, only topics; the page then asks for what it shows. So a burst of
changes costs one event and one request, and rights are checked in one place.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from enum import StrEnum

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from flux_endpoint.errors import ServiceError
from flux_endpoint.service.changes import ChangeListener, ReportedEnd

#: Maximum number of open streams, of all users and of each.
MOST_LISTENERS = 256
MOST_OF_USER = 12
#: Least seconds between two events of a stream: changes in between are combined.
PAUSE = 0.5
#: Seconds after which a silent stream sends a comment, so that proxies keep it.
KEEPALIVE = 15.0
#: Seconds after which a stream ends; the browser opens another, which checks the session anew.
LONGEST = 3600.0
#: Milliseconds that a browser waits before it opens a lost stream again.
_RETRY = 3000


class PageTopic(StrEnum):
    """Parts of the page."""

    TASKS = "tasks"
    ENDPOINTS = "endpoints"
    SERVICE = "service"


class PageListener:
    """One open page. Its event belongs to the event loop; `wake` may be called by any thread."""

    def __init__(self, user_id: str, endpoint_ids: Iterable[str]) -> None:
        self.user_id = user_id
        self.endpoint_ids = frozenset(endpoint_ids)
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._lock = threading.Lock()
        self._topics: set[PageTopic] = set()

    def wake(self, topic: PageTopic | None) -> None:
        """Report a change; `None`: the stream ends."""
        with self._lock:
            known = topic in self._topics
            if topic is None:
                self.closed = True
            else:
                self._topics.add(topic)
        if not known:
            self._loop.call_soon_threadsafe(self._event.set)

    async def changes(self) -> set[PageTopic]:
        """Wait for changes and return their topics; none after `KEEPALIVE` seconds."""
        try:
            await asyncio.wait_for(self._event.wait(), KEEPALIVE)
        except TimeoutError:
            return set()
        self._event.clear()
        with self._lock:
            topics, self._topics = self._topics, set()
        return topics


class LiveListeners(ChangeListener):
    """All open pages. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[PageListener, None] = {}
        self._by_user: Counter[str] = Counter()
        self._is_closed = False

    def add(self, listener: PageListener) -> None:
        """Add an open page.

        Raises:
            ServiceError: 429 or 503, there are too many, or the service ends.
        """
        with self._lock:
            if self._by_user[listener.user_id] >= MOST_OF_USER:
                raise _too_many(f"{MOST_OF_USER} of your pages are live", 429)
            if self._is_closed or len(self._listeners) >= MOST_LISTENERS:
                raise _too_many(f"{MOST_LISTENERS} pages are live", 503)
            self._listeners[listener] = None
            self._by_user[listener.user_id] += 1

    def remove(self, listener: PageListener) -> None:
        """Forget a page."""
        with self._lock:
            if self._listeners.pop(listener, listener) is None:
                self._by_user[listener.user_id] -= 1
                if not self._by_user[listener.user_id]:
                    del self._by_user[listener.user_id]

    def close(self) -> None:
        """End all streams, and accept no more: the service ends."""
        with self._lock:
            self._is_closed = True
        for each in self._all():
            each.wake(None)

    def tasks_submitted(self, owner_id: str, count: int) -> None:
        """See `ChangeListener`."""
        del count
        self._of_users({owner_id})

    def tasks_ended(self, ends: Sequence[ReportedEnd]) -> None:
        """See `ChangeListener`."""
        self._of_users({each.owner_id for each in ends})

    def events_stored(self, owner_ids: Collection[str]) -> None:
        """See `ChangeListener`."""
        self._of_users(owner_ids)

    def reports_stored(self, endpoint_ids: Collection[str]) -> None:
        """See `ChangeListener`."""
        for each in self._all():
            if not each.endpoint_ids.isdisjoint(endpoint_ids):
                each.wake(PageTopic.ENDPOINTS)

    def endpoints_changed(self) -> None:
        """See `ChangeListener`."""
        for each in self._all():
            each.wake(PageTopic.SERVICE)

    def broker_changed(self) -> None:
        """See `ChangeListener`."""
        for each in self._all():
            each.wake(PageTopic.SERVICE)

    def _of_users(self, user_ids: Collection[str]) -> None:
        if not self._listeners:  # nobody looks, as mostly
            return
        for each in self._all():
            if each.user_id in user_ids:
                each.wake(PageTopic.TASKS)

    def _all(self) -> list[PageListener]:
        with self._lock:
            return list(self._listeners)


class LiveResponse(StreamingResponse):
    """The events of a page, until it is closed or has been open for `LONGEST` seconds.

    Args:
        listeners: all open pages.
        listener: this page, which was added to them; it is removed at the end.
        headers: additional headers.
    """

    def __init__(
        self, listeners: LiveListeners, listener: PageListener, headers: Mapping[str, str]
    ) -> None:
        # nginx must pass on what it gets at once.
        more = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(
            _events(listener), media_type="text/event-stream", headers={**headers, **more}
        )
        self._listeners = listeners
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # the client may have gone before the first event
            self._listeners.remove(self._listener)


async def _events(listener: PageListener) -> AsyncIterator[bytes]:
    ends = time.monotonic() + LONGEST
    yield f"retry: {_RETRY}\n\n".encode()
    while not listener.closed and time.monotonic() < ends:
        topics = await listener.changes()
        if topics:
            yield f"event: changed\ndata: {json.dumps(sorted(topics))}\n\n".encode()
            await asyncio.sleep(PAUSE)
        elif not listener.closed:
            yield b": still here\n\n"


def _too_many(what: str, status: int) -> ServiceError:
    return ServiceError(
        f"{what}, which is the limit: this one is refreshed now and then instead",
        http_status=status,
        code="TOO_MANY_LISTENERS",
        retry_after=30,
    )
