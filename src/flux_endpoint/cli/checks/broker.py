"""RabbitMQ: whether clients can reach it from here, its version, and its local installation."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from flux_endpoint.amqp import AmqpConnection, ConnectionState, StateChange
from flux_endpoint.amqp.url import address_of
from flux_endpoint.cli.checks.finding import Finding, failed, ok, skipped, warning
from flux_endpoint.cli.checks.service import LOOPBACK
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.errors import AmqpError, ConfigurationError, FluxEndpointError
from flux_endpoint.stack.installation import find_rabbitmq

#: The oldest tested RabbitMQ.
OLDEST = (3, 10)
#: Timeout (s) of one attempt to connect.
_TIMEOUT = 20.0


def check_broker(api: OperatorApi | None) -> Iterator[Finding]:
    """Yield findings on the broker at the address that clients are given."""
    yield _installed()
    if api is None:
        yield skipped("broker.reach", "the service does not say where it is")
        return
    try:
        url = api.result_url()
    except FluxEndpointError as error:
        yield skipped("broker.reach", f"the service does not say where it is: {error}")
        return
    address = address_of(url)
    yield from _address(url, address, api.url)
    try:
        server = _connect(url)
    except AmqpError as error:
        yield failed(
            "broker.reach",
            f"can't reach RabbitMQ at {address}: {error}",
            "start it, open that port to this machine, or correct what the service tells clients: "
            "its --client-amqp-url (for endpoints: --endpoint-amqp-url)",
        )
        return
    yield ok("broker.reach", f"{server or 'a broker'} at {address} accepts connections from here")
    yield _version(server)


def _installed() -> Finding:
    try:
        found = find_rabbitmq()
    except ConfigurationError:
        return skipped("broker.installed", "not installed here; only `up` would need it")
    return ok("broker.installed", f"for `up`: {found.server}")


def _address(url: str, address: str, service_url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    if parts.hostname in LOOPBACK and urlsplit(service_url).hostname not in LOOPBACK:
        yield failed(
            "broker.url",
            f"the service tells clients to find RabbitMQ at {address}, which is this machine",
            "run the service with --client-amqp-url and --endpoint-amqp-url that name its host",
        )
    elif parts.scheme == "amqp" and parts.hostname not in LOOPBACK:
        yield warning(
            "broker.url",
            f"the connection to {address} is not encrypted",
            "use amqps:// in the service's --client-amqp-url and --endpoint-amqp-url",
        )


def _connect(url: str) -> str:
    """Connect once; return product and version.

    Raises:
        AmqpError: it fails; the text says why.
    """
    changes: queue.SimpleQueue[StateChange] = queue.SimpleQueue()
    connection = AmqpConnection(url, name="doctor", on_state=changes.put)
    connection.start()
    try:
        change = changes.get(timeout=_TIMEOUT)
    except queue.Empty:
        raise AmqpError(f"no answer in {_TIMEOUT:g} s") from None
    finally:
        connection.close(0)
    if change.state is not ConnectionState.CONNECTED:
        raise AmqpError(change.reason)
    return change.server


def _version(server: str) -> Finding:
    numbers = re.search(r"RabbitMQ (\d+)\.(\d+)", server)
    if numbers is None:
        return warning(
            "broker.version",
            f"{server or 'it'} is not RabbitMQ",
            "use RabbitMQ: nothing else is tested",
        )
    if (int(numbers[1]), int(numbers[2])) < OLDEST:
        return warning(
            "broker.version",
            f"{server} is older than the tested releases",
            f"use RabbitMQ {'.'.join(map(str, OLDEST))} or newer",
        )
    return ok("broker.version", f"{server} is recent enough")
