"""The moments at which endpoints of another make need something of the service."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.errors import AmqpError
from flux_endpoint.logs import event
from flux_endpoint.protocol.operations import QueueDocument
from flux_endpoint.service.access.urls import BrokerUrls
from flux_endpoint.service.errors import broker_unavailable
from flux_endpoint.service.official.dispatcher import Dispatcher
from flux_endpoint.service.official.inbox import (
    EndpointRegistered,
    EndpointReported,
    EndpointsDeleted,
    EndpointStopping,
    TasksEnded,
    TasksReady,
)
from flux_endpoint.service.official.store import deliveries
from flux_endpoint.service.official.store.user_endpoints import waiting_and_running
from flux_endpoint.service.official.user_endpoints import running_endpoint
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.functions import Code
from flux_endpoint.service.store.tasks import NewTask
from flux_endpoint.service.store.users import User

log = logging.getLogger(__name__)


class OfficialEndpoints:
    """Looks after endpoints of another make; its methods are for any thread.

    Methods that take an `Endpoint` may be called with one of this project's, for which they do
    nothing in particular.

    Args:
        database: endpoints, and what waits for them.
        connection: the way to the broker.
        urls: what endpoints are told to connect to.
        window: most tasks that an endpoint may have been given and not ended, unless it says that
            it can run more at a time.
    """

    def __init__(
        self, database: Database, connection: AmqpConnection, urls: BrokerUrls, window: int
    ) -> None:
        self._database = database
        self._dispatcher = Dispatcher(database, connection, urls, window)

    def start(self) -> None:
        """Begin; work begins with the connection."""
        self._dispatcher.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop, within `timeout` seconds.

        The connection must be closed first, so that its confirms have all come.
        """
        self._dispatcher.close(timeout)

    def connected(self) -> None:
        """Tell that the connection to the broker was made."""
        self._dispatcher.connected()

    def disconnected(self) -> None:
        """Tell that the connection to the broker was lost."""
        self._dispatcher.disconnected()

    # Submissions

    def running_endpoint(
        self,
        endpoint: Endpoint,
        user: User,
        config: Mapping[str, Any] | None,
        runtime: Mapping[str, Any] | None,
    ) -> str:
        """Return the id of the endpoint that runs a user's tasks, and create it if need be.

        Args:
            endpoint: what the user submits to.
            user: who.
            config: the user's values for the template of a multi-user endpoint's configuration.
            runtime: what the user's program says of itself.

        Raises:
            ServiceError: 422, `config` is too large, or the endpoint has no template.
        """
        return running_endpoint(self._database, endpoint, user, config, runtime)

    def hold(
        self,
        connection: sa.Connection,
        endpoint: Endpoint,
        runs_at: str,
        new: Sequence[NewTask],
        code: Mapping[str, Code],
    ) -> None:
        """Have new tasks wait in the store until there is room for them.

        Args:
            connection: of the transaction that stores them.
            endpoint: what they were submitted to.
            runs_at: the id of the endpoint that runs them.
            new: the tasks.
            code: their functions by their ids.
        """
        if not endpoint.is_own_make:
            sizes = [(each.id, _size(each, code)) for each in new]
            deliveries.add(connection, runs_at, sizes)

    def publishable(self, endpoint: Endpoint, new: Sequence[NewTask]) -> Sequence[NewTask]:
        """Return those of an endpoint's new tasks that are not held: all or none."""
        return new if endpoint.is_own_make else []

    @property
    def not_held(self) -> sa.ColumnElement[bool]:
        """Which rows of `tasks` are those of tasks that are not held."""
        return deliveries.NOT_HELD

    def submission_published(self, endpoint_id: str) -> None:
        """Tell that held tasks of an endpoint may be given to it: their group has its queue."""
        self._dispatcher.tell(TasksReady(endpoint_id))

    # Results and reports

    def results_stored(
        self, connection: sa.Connection, endpoint_ids: Mapping[str, str]
    ) -> frozenset[str]:
        """Hold tasks no longer that have ended; return the endpoints that may have room for others.

        Args:
            connection: of the transaction that stores their results.
            endpoint_ids: by task id, where each ran.
        """
        held = deliveries.remove(connection, endpoint_ids)
        return frozenset(endpoint_ids.values() if held else ())

    def have_room(self, endpoint_ids: frozenset[str]) -> None:
        """Tell what `results_stored` has returned, once its transaction is committed."""
        if endpoint_ids:
            self._dispatcher.tell(TasksEnded(endpoint_ids))

    def reported(self, reports: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Tell what endpoints of another make have reported, in the order in which it came."""
        for endpoint_id, report in reports:
            self._dispatcher.tell(EndpointReported(endpoint_id, report))

    # Endpoints

    def registered_again(self, endpoint: Endpoint, timeout: float) -> None:
        """Prepare, within `timeout` seconds, for the start of an endpoint.

        Args:
            endpoint: as it was before its registration.
            timeout: seconds.
        """
        if endpoint.is_own_make:
            return
        item = EndpointRegistered(endpoint.id)
        self._dispatcher.tell(item)
        try:
            item.done.result(timeout)
        except Exception as error:  # noqa: BLE001 - it can start all the same
            event(log, logging.WARNING, "endpoint not prepared", id=endpoint.id, reason=error)

    def stop(self, endpoint: Endpoint, timeout: float) -> bool:
        """Have an endpoint stop; return whether it can be stopped from afar.

        A multi-user endpoint stops when its command queue is gone.

        Args:
            endpoint: of another make.
            timeout: seconds.

        Raises:
            ServiceError: 503, the broker did not do it within `timeout`.
        """
        if not endpoint.starts_user_endpoints:
            return False
        item = EndpointStopping(endpoint.id)
        self._dispatcher.tell(item)
        try:
            item.done.result(timeout)
        except (AmqpError, TimeoutError) as error:
            raise broker_unavailable() from error
        return True

    def deleted(self) -> None:
        """Tell that endpoints were deleted, of whichever make.

        What a deletion leaves behind is removed on the same thread that declares the queues of an
        endpoint of another make that is registered again.
        """
        self._dispatcher.tell(EndpointsDeleted())

    def queue(self, connection: sa.Connection, endpoint: Endpoint) -> QueueDocument | None:
        """Return what waits for, and runs at, the user endpoints of a multi-user endpoint.

        `None`: it is another kind of endpoint, which has a queue of its own.

        Args:
            connection: of a transaction.
            endpoint: which.
        """
        if not endpoint.starts_user_endpoints:
            return None
        waiting, running = waiting_and_running(connection, endpoint.id)
        return QueueDocument(messages=waiting, consumers=running)


def _size(task: NewTask, code: Mapping[str, Code]) -> int:
    return len(code[task.function_id or ""].text) + len(task.payload)
