"""The permissions of accounts at the broker, as one pure function.

| account of | read (consume, get, purge) | write (publish) |
|---|---|---|
| user U | queues `tg.G[.C]` and `ev.G[.C]` of U's task groups | nothing |
| endpoint E | queues `E.tasks` and `E.commands` | exchanges `results`, `heartbeats` and `events`, \
each with E's routing key only |

No account may configure (declare, delete). Nor may an account bind, since that needs write
permission on a queue and read permission on an exchange.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from flux_endpoint.protocol import queues
from flux_endpoint.service.store.accounts import UUID_PATTERN, Account, AccountKind

_PREFIXES = "|".join(map(re.escape, (queues.TASK_GROUP_PREFIX, queues.TASK_GROUP_EVENTS_PREFIX)))
_GROUP_QUEUE = re.compile(rf"(?:{_PREFIXES})({UUID_PATTERN})(?:\.{UUID_PATTERN})?")

_KEYS = {
    queues.RESULTS_EXCHANGE: queues.results_key,
    queues.HEARTBEATS_EXCHANGE: queues.heartbeats_key,
    queues.EVENTS_EXCHANGE: queues.events_key,
}


@dataclass(frozen=True)
class Resource:
    """A use of a queue or of an exchange.

    Attributes:
        kind: `queue` or `exchange`.
        name: its name; `amq.default` is the default exchange.
        permission: `configure`, `write` or `read`.
    """

    kind: str
    name: str
    permission: str


@dataclass(frozen=True)
class Topic:
    """A use of a routing key at a topic exchange; RabbitMQ asks about the exchange first.

    Attributes:
        exchange: name of the exchange.
        routing_key: the key.
        permission: `write` to publish with it, `read` to bind with it.
    """

    exchange: str
    routing_key: str
    permission: str


def may(account: Account, use: Resource | Topic, owns_group: Callable[[str], bool]) -> bool:
    """Return whether an account may use a resource.

    Args:
        account: a valid account.
        use: the requested use.
        owns_group: returns whether the account's user owns the task group with an id; called only
            if necessary.
    """
    match account.kind:
        case AccountKind.USER:
            return _user_may(use, owns_group)
        case AccountKind.ENDPOINT:
            return _endpoint_may(account.owner_id, use)


def _user_may(use: Resource | Topic, owns_group: Callable[[str], bool]) -> bool:
    match use:
        case Resource("queue", name, "read"):
            group = _GROUP_QUEUE.fullmatch(name)
            return group is not None and owns_group(group[1])
    return False


def _endpoint_may(endpoint_id: str, use: Resource | Topic) -> bool:
    match use:
        case Resource("queue", name, "read"):
            return name in {queues.tasks_queue(endpoint_id), queues.commands_queue(endpoint_id)}
        case Resource("exchange", name, "write"):
            return name in _KEYS
        case Topic(exchange, routing_key, "write") if exchange in _KEYS:
            return routing_key == _KEYS[exchange](endpoint_id)
    return False
