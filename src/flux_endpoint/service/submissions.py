"""Stores submissions: once per idempotency key, in a task group of the caller."""

from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.rest import IDEMPOTENCY_HEADER
from flux_endpoint.service.errors import endpoint_unknown
from flux_endpoint.service.quotas import Quotas
from flux_endpoint.service.store import endpoints, task_groups, tasks
from flux_endpoint.service.store.engine import Database

#: Maximum length of an idempotency key.
MAX_KEY = 256

# Two requests may store the same key, or create the same group, at the same time.
_STORE_ATTEMPTS = 3


def earlier(connection: sa.Connection, submission: tasks.Submission) -> tasks.Submission | None:
    """Return the stored submission with the same idempotency key, or `None`.

    Args:
        connection: a transaction.
        submission: the new submission.

    Raises:
        ServiceError: 422, the key was used for another request.
    """
    if submission.idempotency_key is None:
        return None
    found = tasks.submission_by_key(connection, submission.owner_id, submission.idempotency_key)
    if found is not None and found.body_hash != submission.body_hash:
        raise ServiceError(
            f"this {IDEMPOTENCY_HEADER} was used for another request: use a new one for each",
            http_status=422,
            code="IDEMPOTENCY_KEY_REUSED",
            field=IDEMPOTENCY_HEADER,
        )
    return found


def store(
    database: Database,
    quotas: Quotas,
    submission: tasks.Submission,
    new: Sequence[tasks.NewTask],
    also: Callable[[sa.Connection], None] = lambda _: None,
) -> tasks.Submission:
    """Store a submission and return it, or return the earlier one with the same key.

    Args:
        database: the service's database.
        quotas: the limits of users.
        submission: the submission, of which `earlier` has just found no other.
        new: its tasks.
        also: stores further records in the same transaction.

    Raises:
        ServiceError: 403, the task group belongs to another user, or the user has too many; 404,
            the endpoint was deleted in the meantime; 422, the key was used for another request;
            429, the user has too many open tasks.
    """
    size = sum(_bytes(task.payload) for task in new)
    attempt = 0
    while True:
        attempt += 1
        try:
            with database.write() as connection:
                # Another request may have stored the key since the caller's check: then the unique
                # index refuses this one, and the next attempt finds that one.
                found = earlier(connection, submission) if attempt > 1 else None
                if found is not None:
                    return found
                if not endpoints.lock_existing(connection, submission.endpoint_id):
                    raise endpoint_unknown(submission.endpoint_id)
                _join(connection, quotas, submission.group_id, submission.owner_id)
                if submission.create_queue:
                    task_groups.send_results(connection, submission.group_id, bundles=False)
                tasks.add_submission(connection, submission, new)
                also(connection)
                # Last, since it locks the user's row, for which concurrent submissions wait.
                quotas.add_tasks(connection, submission.owner_id, len(new), size)
        except IntegrityError:
            if attempt == _STORE_ATTEMPTS:
                raise
        else:
            return submission


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def join_group(
    database: Database,
    quotas: Quotas,
    group_id: str,
    user_id: str,
    *,
    bundles: bool | None = None,
) -> None:
    """Create a task group of a user, unless it exists.

    Args:
        database: the service's database.
        quotas: the limits of users.
        group_id: the group.
        user_id: its owner.
        bundles: kind of queue that gets the group's results from now on: with several results per
            message, or with one; `None`: no queue.

    Raises:
        ServiceError: 403, the group belongs to another user, or the user has too many.
    """
    for attempt in range(1, _STORE_ATTEMPTS + 1):
        try:
            with database.write() as connection:
                _join(connection, quotas, group_id, user_id)
                if bundles is not None:
                    task_groups.send_results(connection, group_id, bundles=bundles)
        except IntegrityError:
            if attempt == _STORE_ATTEMPTS:
                raise
        else:
            return


def _join(connection: sa.Connection, quotas: Quotas, group_id: str, user_id: str) -> None:
    owner_id = task_groups.group_owner(connection, group_id)
    if owner_id is None:
        quotas.check_groups(connection, user_id)
        task_groups.add_group(connection, group_id, user_id)
    elif owner_id != user_id:
        raise ServiceError(
            f"task group {group_id} belongs to another user",
            http_status=403,
            code="TASK_GROUP_NOT_PERMITTED",
            field="task_group_id",
        )
