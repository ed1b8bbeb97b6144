"""Cleanup after the deletion of an endpoint: its open tasks fail, and its queues are deleted."""

import logging
from collections.abc import Callable, Iterator

import sqlalchemy as sa

from flux_endpoint.amqp import AmqpConnection, QueueAdmin
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.service.failures import publish_failures
from flux_endpoint.service.store import endpoints, tasks
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

_PAGE = 1000
_TIMEOUT = 20.0


class Removal:
    """Cleans up after deleted endpoints. For one thread.

    Args:
        database: the service's database.
        connection: connection to the broker.
        queue_admin: purges and deletes the queues.
        forget: called in a transaction with the ids of tasks that have failed.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        queue_admin: QueueAdmin,
        forget: Callable[[sa.Connection, list[str]], object],
    ) -> None:
        self._database = database
        self._connection = connection
        self._queue_admin = queue_admin
        self._forget = forget

    def empty_all(self) -> None:
        """Fail the tasks that were submitted before their endpoint's deletion. Idempotent.

        Raises:
            AmqpError: the broker does not confirm.
            TimeoutError: the broker does not answer in time.
        """
        with self._database.read() as connection:
            deleted = endpoints.to_be_emptied(connection)
        for endpoint_id, before in deleted.items():
            self._empty(endpoint_id, before)

    def _empty(self, endpoint_id: str, before: float) -> None:
        with self._database.read() as connection:
            endpoint = endpoints.get_endpoint(connection, endpoint_id, deleted=True)
        assert endpoint is not None
        text = f"endpoint {endpoint.public_id} was deleted before the task had ended"
        failed = 0
        for page in self._pages(endpoint_id, before):
            publish_failures(self._connection, endpoint_id, page, ErrorCode.ENDPOINT_DELETED, text)
            with self._database.write() as connection:
                self._forget(connection, page)
            failed += len(page)
        with self._database.read() as connection:
            registered_again = endpoints.get_endpoint(connection, endpoint_id) is not None
        for name in (queues.tasks_queue(endpoint_id), queues.commands_queue(endpoint_id)):
            act = self._queue_admin.purge if registered_again else self._queue_admin.delete
            act(name).result(_TIMEOUT)
        with self._database.write() as connection:
            endpoints.emptied(connection, endpoint_id, before)
        event(log, logging.INFO, "deleted endpoint emptied", id=endpoint_id, tasks_failed=failed)

    def _pages(self, endpoint_id: str, before: float) -> Iterator[list[str]]:
        last = ""
        while True:
            with self._database.read() as connection:
                page = tasks.open_tasks_of(connection, endpoint_id, before, last, _PAGE)
            if not page:
                return
            yield page
            last = page[-1]
