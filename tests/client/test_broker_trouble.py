"""A broker that lets the client in no more, or under another password: no future waits for ever."""

from __future__ import annotations

import logging
import uuid
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from flux_endpoint import Client, Executor
from waiting import until

ENDPOINT = "00000000-0000-4000-8000-00000000000e"


class BrokerUser:
    """A user of the broker whose password changes."""

    def __init__(self, broker: Any, url: str) -> None:
        self._broker = broker
        self._url = urlsplit(url)
        self._name = f"user-{uuid.uuid4().hex}"
        self._vhost = self._url.path[1:]
        broker.ctl("add_user", self._name, "first")
        broker.ctl("set_permissions", "-p", self._vhost, self._name, ".*", ".*", ".*")

    def url(self, password: str) -> str:
        host = f"{self._name}:{password}@{self._url.hostname}:{self._url.port}"
        return urlunsplit(self._url._replace(netloc=host))

    def expire(self, password: str) -> None:
        """Give the user another password, and cut its connections."""
        self._broker.ctl("change_password", self._name, password)
        self._broker.ctl("close_all_connections", "--vhost", self._vhost, "expired")

    def delete(self) -> None:
        self._broker.ctl("delete_user", self._name)


@pytest.fixture
def user(broker: Any, amqp_vhost: str) -> Any:
    user = BrokerUser(broker, amqp_vhost)
    yield user
    user.delete()


def test_credentials_that_expire_during_a_run_are_requested_again(
    service: Any, client: Client, queues: Any, messages: Any, user: BrokerUser
) -> None:
    service.amqp_url = user.url("first")
    with Executor(ENDPOINT, client) as executor:
        first, second = (executor.submit(pow, 2, n) for n in range(2))
        group = executor.task_group_id
        queues_of = [future.wait_submitted(30) for future in (first, second)]
        queues.publish(group, messages.value(queues_of[0], "one"))
        assert first.result(30) == "one"
        service.amqp_url = user.url("second")  # what the service tells from now on
        user.expire("second")
        queues.publish(group, messages.value(queues_of[1], "two"))
        assert second.result(30) == "two"


def test_a_refusing_broker_is_reported_and_results_come_from_the_service(
    service: Any,
    client: Client,
    queues: Any,
    messages: Any,
    user: BrokerUser,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.amqp_url = user.url("first")
    with Executor(ENDPOINT, client) as executor, caplog.at_level(logging.WARNING):
        heard, future = (executor.submit(pow, 2, n) for n in range(2))
        task = future.wait_submitted(30)
        queues.publish(executor.task_group_id, messages.value(heard.task_id, "connected"))
        assert heard.result(30) == "connected"  # hence there is a connection to cut
        user.expire("second")  # and the service goes on telling the first
        assert until(lambda: "trying again" in caplog.text)
        service.ended(task, "from the service")
        assert future.result(30) == "from the service"


def test_without_a_broker_results_come_from_the_service(service: Any, executor: Executor) -> None:
    assert service.amqp_url.split("@")[1].startswith("127.0.0.1:1/")
    future = executor.submit(pow, 2, 1)
    service.ended(future.wait_submitted(30), 2)
    assert future.result(30) == 2
