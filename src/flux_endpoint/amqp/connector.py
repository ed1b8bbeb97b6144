"""Attempts to connect to the broker, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from flux_endpoint.amqp.url import address_of, connection_parameters, reason_of
from flux_endpoint.amqp.wire import WireConnection


class Connector:
    """Makes attempts to connect; runs on the connection's thread, and calls back there.

    Args:
        url: the broker's URL, or a callable that returns it before each attempt, on a separate
            thread.
        name: the connection's name in the broker's lists.
        heartbeat: seconds after which a silent peer is given up.
        ioloop: pika's loop, which runs the connection.
        post: runs an action on the connection's thread; called from any thread.
        on_open: called with the connection after its handshake.
        on_fail: called with the reason if the attempt fails.
        on_lost: called with the reason when an opened connection ends.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        *,
        name: str,
        heartbeat: float,
        ioloop: Any,
        post: Callable[[Callable[[], None]], None],
        on_open: Callable[[WireConnection], None],
        on_fail: Callable[[str], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._url = url
        self._name = name
        self._heartbeat = heartbeat
        self._ioloop = ioloop
        self._post = post
        self._on_open = on_open
        self._on_fail = on_fail
        self._on_lost = on_lost
        #: Counts attempts: callbacks of an earlier one are ignored.
        self._number = 0
        #: The broker's `host:port/vhost`, as far as known.
        self.address = address_of(url) if isinstance(url, str) else "the message broker"
        #: The connection, from the begin of its handshake to its end.
        self.connection: WireConnection | None = None

    def attempt(self) -> None:
        """Begin an attempt."""
        self._number += 1
        if isinstance(self._url, str):
            self._connect(self._url)
        else:
            fail, connect = self._if_current(self._on_fail), self._if_current(self._connect)
            asking = partial(self._ask, self._url, fail, connect)
            threading.Thread(target=asking, name=f"{self._name} url", daemon=True).start()

    def give_up(self) -> None:
        """Abandon the present attempt."""
        self._number += 1
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(Exception):  # it may be in any state
                connection.close()

    def _ask(
        self,
        function: Callable[[], str],
        fail: Callable[[str], None],
        connect: Callable[[str], None],
    ) -> None:
        """Get the URL. Runs on its own thread, so that the connection can be closed meanwhile."""
        try:
            url = function()
        except Exception as error:  # noqa: BLE001 - whatever the caller's function raises
            self._post(partial(fail, text_of(error)))
        else:
            self._post(partial(connect, url))

    def _connect(self, url: str) -> None:
        try:
            self.address = address_of(url)
            self.connection = WireConnection(
                connection_parameters(url, name=self._name, heartbeat=self._heartbeat),
                on_open_callback=self._if_current(self._on_open),
                on_open_error_callback=self._if_current(partial(self._ended, self._on_fail)),
                on_close_callback=self._if_current(partial(self._ended, self._on_lost)),
                custom_ioloop=self._ioloop,
            )
        except Exception as error:  # noqa: BLE001 - whatever a wrong URL makes of it
            self.connection = None
            self._on_fail(text_of(error))

    def _ended(
        self, report: Callable[[str], None], _connection: object, error: BaseException
    ) -> None:
        self.connection = None
        report(reason_of(error))

    def _if_current(self, callback: Callable[..., None]) -> Callable[..., None]:
        number = self._number

        def current(*args: Any) -> None:
            if number == self._number:
                callback(*args)

        return current


def text_of(error: Exception) -> str:
    """Return an exception's text, or its type if it has none."""
    return str(error) or type(error).__name__
