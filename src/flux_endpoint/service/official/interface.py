"""The interface of official endpoints to the rest of the service."""

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
    """Manages official endpoints. Safe to use from several threads.

    Most methods that take an `Endpoint` accept any endpoint; for an endpoint of Flux Endpoint they
    do nothing special.

    Args:
        database: the service's database.
        connection: connection to the broker.
        urls: the broker's URLs for endpoints.
        window: maximum number of open tasks that an endpoint is given, unless it reports that it
            can run more at a time.
    """

    def __init__(
        self, database: Database, connection: AmqpConnection, urls: BrokerUrls, window: int
    ) -> None:
        self._database = database
        self._dispatcher = Dispatcher(database, connection, urls, window)

    def start(self) -> None:
        """Start the thread. It does nothing until the broker is connected."""
        self._dispatcher.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop, within `timeout` seconds.

        The connection must be closed first, so that no confirm is outstanding.
        """
        self._dispatcher.close(timeout)

    def connected(self) -> None:
        """Record that the connection to the broker was made."""
        self._dispatcher.connected()

    def disconnected(self) -> None:
        """Record that the connection to the broker was lost."""
        self._dispatcher.disconnected()

    # Submissions

    def running_endpoint(
        self,
        endpoint: Endpoint,
        user: User,
        config: Mapping[str, Any] | None,
        runtime: Mapping[str, Any] | None,
    ) -> str:
        """Return the id of the endpoint that runs a user's tasks; create it if necessary.

        Args:
            endpoint: the endpoint that the user submits to.
            user: the user.
            config: the user's values for the configuration template of a multi-user endpoint.
            runtime: the client's description of its own environment.

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
        """Hold new tasks of an official endpoint in the store until there is room for them.

        Args:
            connection: the transaction that stores the tasks.
            endpoint: the endpoint that they were submitted to.
            runs_at: id of the endpoint that runs them.
            new: the tasks.
            code: the code of functions, by function id.
        """
        if not endpoint.is_own_make:
            sizes = [(each.id, _size(each, code)) for each in new]
            deliveries.add(connection, runs_at, sizes)

    def publishable(self, endpoint: Endpoint, new: Sequence[NewTask]) -> Sequence[NewTask]:
        """Return the new tasks that are not held: all or none.

        Args:
            endpoint: the endpoint that they were submitted to.
            new: the tasks.
        """
        return new if endpoint.is_own_make else []

    @property
    def not_held(self) -> sa.ColumnElement[bool]:
        """SQL condition on `tasks`: the task is not held."""
        return deliveries.NOT_HELD

    def submission_published(self, endpoint_id: str) -> None:
        """Record that held tasks may be given to their endpoint: their group's queue exists."""
        self._dispatcher.post(TasksReady(endpoint_id))

    # Results and reports

    def results_stored(
        self, connection: sa.Connection, endpoint_ids: Mapping[str, str]
    ) -> frozenset[str]:
        """Stop holding tasks that have ended; return the endpoints that may have room for others.

        Args:
            connection: the transaction that stores their results.
            endpoint_ids: by task id, the endpoint that ran it.
        """
        held = deliveries.remove(connection, endpoint_ids)
        return frozenset(endpoint_ids.values() if held else ())

    def have_room(self, endpoint_ids: frozenset[str]) -> None:
        """Give endpoints further tasks, after the transaction of `results_stored` is committed.

        Args:
            endpoint_ids: the return value of `results_stored`.
        """
        if endpoint_ids:
            self._dispatcher.post(TasksEnded(endpoint_ids))

    def reported(self, reports: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Handle status reports of official endpoints.

        Args:
            reports: pairs of endpoint id and report, in order of arrival.
        """
        for endpoint_id, report in reports:
            self._dispatcher.post(EndpointReported(endpoint_id, report))

    # Endpoints

    def registered_again(self, endpoint: Endpoint, timeout: float) -> None:
        """Prepare for the start of an endpoint that was registered again.

        Args:
            endpoint: the endpoint as it was before this registration.
            timeout: time limit in seconds.
        """
        if endpoint.is_own_make:
            return
        item = EndpointRegistered(endpoint.id)
        self._dispatcher.post(item)
        try:
            item.done.result(timeout)
        except Exception as error:  # noqa: BLE001 - the endpoint can start without it
            event(log, logging.WARNING, "endpoint not prepared", id=endpoint.id, reason=error)

    def stop(self, endpoint: Endpoint, timeout: float) -> bool:
        """Stop a multi-user endpoint: it stops when its command queue is deleted.

        Args:
            endpoint: an official endpoint.
            timeout: time limit in seconds.

        Returns:
            Whether the endpoint can be stopped remotely.

        Raises:
            ServiceError: 503, the broker did not delete the queue in time.
        """
        if not endpoint.starts_user_endpoints:
            return False
        item = EndpointStopping(endpoint.id)
        self._dispatcher.post(item)
        try:
            item.done.result(timeout)
        except (AmqpError, TimeoutError) as error:
            raise broker_unavailable() from error
        return True

    def deleted(self) -> None:
        """Clean up after the deletion of endpoints, official or not.

        The thread that does this also declares the queues of official endpoints that are registered
        again, so the two can't conflict.
        """
        self._dispatcher.post(EndpointsDeleted())

    def queue(self, connection: sa.Connection, endpoint: Endpoint) -> QueueDocument | None:
        """Return the open tasks and the running user endpoints of a multi-user endpoint.

        Args:
            connection: a transaction.
            endpoint: the endpoint.

        Returns:
            The two numbers, as messages and consumers. `None`: it is another kind of endpoint,
            which has its own queue.
        """
        if not endpoint.starts_user_endpoints:
            return None
        waiting, running = waiting_and_running(connection, endpoint.id)
        return QueueDocument(messages=waiting, consumers=running)


def _size(task: NewTask, code: Mapping[str, Code]) -> int:
    return len(code[task.function_id or ""].text) + len(task.payload)
