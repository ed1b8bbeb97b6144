"""Accounts at the broker: everything that they must do works, and every crossing is refused."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import PATIENCE, Peer, Rest, beside
from tests.service.official_world import MultiUserEndpoint

from broker_access import session_broker
from flux_endpoint.amqp.url import parse_url, reason_of, with_credentials
from flux_endpoint.service.access import connections
from flux_endpoint.service.access.trial import Trial, Verdict
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import accounts, users
from flux_endpoint.service.store.engine import Database
from flux_endpoint.stack.ports import free_ports
from waiting import until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.kept_apart]

#: What a broker says to an account that may not.
REFUSALS = (
    pika.exceptions.ProbableAuthenticationError,
    pika.exceptions.ProbableAccessDeniedError,
)


class Account:
    """Somebody at the broker with a URL that the service handed out."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = urlsplit(url).username or ""
        self.connection = pika.BlockingConnection(pika.URLParameters(url))

    def does(self, act: Callable[[Any], Any]) -> Any:
        """Do something on a channel of its own."""
        channel = self.connection.channel()
        channel.confirm_delivery()
        try:
            return act(channel)
        finally:
            if channel.is_open:
                channel.close()

    def may_not(self, act: Callable[[Any], Any]) -> None:
        """Try something that the broker must refuse."""
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            self.does(act)
        assert refused.value.reply_code == 403, refused.value

    def close(self) -> None:
        if self.connection.is_open:
            self.connection.close()


@dataclass
class Party:
    """A user with an endpoint, a task group, and the accounts of both."""

    endpoint_id: str
    group_id: str
    client_id: str
    user: Account
    endpoint: Account

    @property
    def queues(self) -> list[str]:
        mine = (self.group_id, self.client_id)
        return [
            f"{self.endpoint_id}.tasks",
            f"{self.endpoint_id}.commands",
            f"tg.{self.group_id}",
            "tg.{}.{}".format(*mine),
            "ev.{}.{}".format(*mine),
        ]


def party(rest: Rest, headers: dict[str, str]) -> Party:
    client = rest.client
    body = {"endpoint_name": "lab", "metadata": {"flux_endpoint_version": "1"}, "public": True}
    answer = client.post("/v3/endpoints", json=body, headers=headers).json()
    endpoint_id = answer["endpoint_id"]
    function = {"function_name": "double", "function_code": "12\n01\ngASVabcd\n"}
    function_id = client.post("/v3/functions", json=function, headers=headers).json()
    batch = {
        "tasks": {function_id["function_uuid"]: ["8\n00\ngAQp\n8\n00\ngAR9\n"]},
        "create_queue": True,
    }
    path = f"/v3/endpoints/{endpoint_id}/submit"
    group_id = client.post(path, json=batch, headers=headers).json()["task_group_id"]
    client_id = str(uuid.uuid4())
    for kind in ("results", "events"):
        path = f"/v2/taskgroup/{group_id}/{kind}"
        opened = client.post(path, json={"client_id": client_id}, headers=headers).json()
    url = client.get("/v2/get_amqp_result_connection_url", headers=headers).json()
    assert url["connection_url"] == opened["connection_url"]
    urls = {info["connection_url"] for info in answer.values() if isinstance(info, dict)}
    (endpoint_url,) = urls
    return Party(
        endpoint_id, group_id, client_id, Account(opened["connection_url"]), Account(endpoint_url)
    )


@pytest.fixture
def ada(live: Rest) -> Iterator[Party]:
    made = party(live, dict(live.client.headers))
    yield made
    made.user.close()
    made.endpoint.close()


@pytest.fixture
def eve(live: Rest, bob: dict[str, str]) -> Iterator[Party]:
    """Another user, who has what every user has."""
    made = party(live, bob)
    yield made
    made.user.close()
    made.endpoint.close()


def every_use_of_queue(name: str) -> dict[str, Callable[[Any], Any]]:
    return {
        "get": lambda channel: channel.basic_get(name),
        "consume": lambda channel: channel.basic_consume(name, lambda *_: None),
        "purge": lambda channel: channel.queue_purge(name),
        "delete": lambda channel: channel.queue_delete(name),
        "declare": lambda channel: channel.queue_declare(name, durable=True),
        "unbind": lambda channel: channel.queue_unbind(name, "tasks", name),
        "bind": lambda channel: channel.queue_bind(name, "results", "*.results"),
        "publish": lambda channel: channel.basic_publish("", name, b"forged"),
    }


def every_use_of_exchange(name: str, key: str) -> dict[str, Callable[[Any], Any]]:
    return {
        "publish": lambda channel: channel.basic_publish(name, key, b"forged"),
        "delete": lambda channel: channel.exchange_delete(name),
        "declare": lambda channel: channel.exchange_declare(name, "topic", durable=True),
        "bind to another": lambda channel: channel.exchange_bind("results", name, key),
        "bind another": lambda channel: channel.exchange_bind(name, "results", key),
    }


class TestCrossings:
    @pytest.mark.parametrize("who", ["user", "endpoint"])
    def test_accounts_reach_no_queue_of_another_user(
        self, ada: Party, eve: Party, who: str
    ) -> None:
        stranger: Account = getattr(eve, who)
        for queue in ada.queues:
            for act in every_use_of_queue(queue).values():
                stranger.may_not(act)

    @pytest.mark.parametrize("who", ["user", "endpoint"])
    def test_no_account_reaches_the_services_own_queues(self, ada: Party, who: str) -> None:
        for queue in ("results", "heartbeats", "events", "dead-letters"):
            for act in every_use_of_queue(queue).values():
                getattr(ada, who).may_not(act)

    @pytest.mark.parametrize("who", ["user", "endpoint"])
    def test_no_account_publishes_to_exchanges_of_the_service(
        self, ada: Party, eve: Party, who: str
    ) -> None:
        keys = {
            "": f"{ada.endpoint_id}.tasks",
            "tasks": f"{ada.endpoint_id}.tasks",
            "commands": f"{ada.endpoint_id}.commands",
            "task-groups": f"tg.{ada.group_id}",
            "dead-letters": "",
            "amq.topic": "x",
            "amq.fanout": "x",
        }
        for exchange, key in keys.items():
            for name, act in every_use_of_exchange(exchange, key).items():
                if exchange or name == "publish":
                    getattr(eve, who).may_not(act)

    def test_an_endpoint_publishes_only_with_its_own_keys(self, ada: Party, eve: Party) -> None:
        for exchange in ("results", "heartbeats", "events"):
            for key in (f"{ada.endpoint_id}.{exchange}", f"x.{exchange}", "", "#"):
                for act in every_use_of_exchange(exchange, key).values():
                    eve.endpoint.may_not(act)
                    eve.user.may_not(act)

    def test_a_second_routing_key_in_a_header_reaches_nothing_more(
        self, ada: Party, eve: Party, database: Database, live: Rest
    ) -> None:
        """RabbitMQ asks about the first key alone; what counts at the service is that one."""
        forged = (
            b'\x01{"message_type":"ep_status_report","data":{"endpoint_id":"%s",'
            b'"global_state":{"forged":true},"task_statuses":{}}}' % ada.endpoint_id.encode()
        )
        headers = {"CC": [f"{ada.endpoint_id}.heartbeats"], "BCC": [f"{ada.endpoint_id}.tasks"]}
        properties = pika.BasicProperties(headers=headers)
        mine = f"{eve.endpoint_id}.heartbeats"
        eve.endpoint.does(
            lambda channel: channel.basic_publish("heartbeats", mine, forged, properties)
        )
        status = live.client.get(f"/v2/endpoints/{ada.endpoint_id}/status")
        assert "forged" not in status.text

    def test_no_account_declares_anything(self, ada: Party) -> None:
        for account in (ada.user, ada.endpoint):
            name = str(uuid.uuid4())
            account.may_not(lambda channel, name=name: channel.queue_declare(name))
            account.may_not(lambda channel: channel.queue_declare("", exclusive=True))
            account.may_not(lambda channel, name=name: channel.exchange_declare(name))

    def test_another_virtual_host_is_closed(self, ada: Party, broker: Any) -> None:
        for account in (ada.user, ada.endpoint):
            url = with_credentials(broker.url, account.name, urlsplit(account.url).password or "")
            with pytest.raises(REFUSALS):
                Account(url)

    def test_a_wrong_password_and_a_made_up_account_are_refused(self, ada: Party) -> None:
        password = urlsplit(ada.user.url).password or ""
        made_up = ada.user.name[:-1] + ("0" if ada.user.name[-1] != "0" else "1")
        for name, given in (
            (ada.user.name, "wrong"),
            (ada.user.name, ""),
            (ada.endpoint.name, password),
            (made_up, password),
            (f"{ada.user.name} ", password),
            (f"trial-{'0' * 32}", password),
            ("service", password),
            ("endpoint", password),
            ("", ""),
        ):
            with pytest.raises(REFUSALS):
                Account(with_credentials(ada.user.url, name, given))


class TestWhatMustWork:
    def test_an_endpoint_takes_its_tasks_and_commands_and_reports(
        self, live: Rest, ada: Party
    ) -> None:
        endpoint = ada.endpoint
        for queue in ada.queues[:2]:
            endpoint.does(
                lambda channel, queue=queue: channel.basic_consume(
                    queue, lambda *_: None, exclusive=True
                )
            )
        assert endpoint.does(lambda channel: channel.basic_get(ada.queues[0]))[0] is not None
        for exchange in ("results", "heartbeats", "events"):
            key = f"{ada.endpoint_id}.{exchange}"
            endpoint.does(
                lambda channel, exchange=exchange, key=key: channel.basic_publish(
                    exchange, key, b"?", mandatory=True
                )
            )
            endpoint.does(
                lambda channel, exchange=exchange: channel.exchange_declare(exchange, passive=True)
            )
            endpoint.does(
                lambda channel, exchange=exchange: channel.queue_declare(exchange, passive=True)
            )

    def test_a_user_takes_the_results_of_own_groups(self, ada: Party) -> None:
        for queue in ada.queues[2:]:
            ada.user.does(lambda channel, queue=queue: channel.basic_get(queue))
            ada.user.does(
                lambda channel, queue=queue: channel.basic_consume(queue, lambda *_: None)
            )

    def test_every_token_of_a_user_has_an_account_of_its_own(
        self, live: Rest, ada: Party, token_of: Callable[[str], dict[str, str]]
    ) -> None:
        answer = live.client.get("/v2/get_amqp_result_connection_url", headers=token_of("ada"))
        other = Account(answer.json()["connection_url"])
        assert other.name != ada.user.name
        for queue in ada.queues[2:]:
            other.does(lambda channel, queue=queue: channel.basic_get(queue))
        other.close()

    def test_services_on_one_database_issue_the_same_accounts(
        self, live: Rest, ada: Party, live_settings: ServiceSettings
    ) -> None:
        """Another service on the same database hands out the same, and knows them."""
        with TestClient(create_app(beside(live_settings)), headers=live.client.headers) as other:
            answer = other.get("/v2/get_amqp_result_connection_url").json()
        assert answer["connection_url"] == ada.user.url


class TestLimits:
    """RabbitMQ itself limits what an account opens; what others have is not touched."""

    def test_connections_and_channels_of_an_account_are_limited(
        self, live: Rest, live_settings: ServiceSettings, bob: dict[str, str], ada: Party
    ) -> None:
        few = beside(live_settings).model_copy(update={"max_account_connections": 3})
        with TestClient(create_app(few), headers=bob) as other:
            theirs = party(Rest(other), bob)
            opened = [Account(theirs.user.url) for _ in range(2)]
            with pytest.raises(REFUSALS) as refused:
                Account(theirs.user.url)
            assert "has 3 connections to the broker, which is the limit" in reason_of(refused.value)
            assert not is_refused(ada.user.url)
            assert not is_refused(theirs.endpoint.url)
            too_many = pytest.raises(pika.exceptions.ConnectionClosedByBroker, match=r"\(24\)")
            with too_many:
                for _ in range(25):
                    opened[0].connection.channel()
            opened.pop().close()
            assert not is_refused(theirs.user.url)
            for account in (*opened, theirs.user, theirs.endpoint):
                account.close()

    def test_an_endpoint_has_a_lower_limit(self, ada: Party) -> None:
        more = connections.ENDPOINT_CONNECTIONS - 1
        opened = [Account(ada.endpoint.url) for _ in range(more)]
        with pytest.raises(REFUSALS, match="is reached"):
            Account(ada.endpoint.url)
        for account in opened:
            account.close()

    def test_an_accounts_limit_permits_no_login_and_is_deleted_with_the_account(
        self, soon: None, live: Rest, live_settings: ServiceSettings
    ) -> None:
        theirs = party(live, dict(live.client.headers))
        vhost = parse_url(live_settings.amqp_url).virtual_host
        management = connections.Management(live_settings.management_url, live_settings.amqp_url)
        assert {theirs.user.name, theirs.endpoint.name} <= management.limited(vhost)
        assert theirs.user.name not in management.limited(f"{vhost}-other")
        assert is_refused(with_credentials(theirs.user.url, theirs.user.name, ""))
        assert live.client.delete(f"/v2/endpoints/{theirs.endpoint_id}").status_code == 200
        until(lambda: theirs.endpoint.name not in management.limited(vhost))
        assert theirs.user.name in management.limited(vhost)
        management.close()

    def test_an_account_whose_limit_can_not_be_set_is_admitted_and_retried(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        (port,) = free_ports(1)
        management = connections.Management(f"http://127.0.0.1:{port}", "amqp://a:b@h")
        limits = connections.AccountLimits(management, "/", 5)
        account = accounts.parse_account(f"u-{uuid.uuid4()}-{'0' * 12}")
        assert account is not None
        for _ in range(2):
            limits.apply(account)
        assert [record.levelname for record in caplog.records if "limited" in record.message] == [
            "WARNING"
        ]
        management.close()


def is_refused(url: str) -> bool:
    try:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        connection.close()
    except REFUSALS:
        return True
    except pika.exceptions.AMQPConnectionError:
        pass  # it came in, and was ended a moment later
    return False


def is_closed(account: Account) -> bool:
    try:
        account.connection.process_data_events(0)
    except pika.exceptions.AMQPConnectionError:
        return True
    return account.connection.is_closed


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that nobody tells looks each second."""
    monkeypatch.setattr(connections, "PERIOD", 1.0)


class TestRevocation:
    def test_a_revoked_tokens_connections_are_closed_and_refused(
        self,
        soon: None,
        live: Rest,
        database: Database,
        token_of: Callable[[str], dict[str, str]],
    ) -> None:
        headers = token_of("ada")
        theirs = party(live, headers)
        kept = party(live, dict(live.client.headers))
        token = headers["Authorization"].removeprefix("Bearer ")
        with database.write() as connection:
            assert users.revoke_token(connection, token)
        for account in (theirs.user, theirs.endpoint):
            until(lambda account=account: is_closed(account))
        # Within the time for which RabbitMQ keeps its answers.
        for account in (theirs.user, theirs.endpoint):
            until(lambda account=account: is_refused(account.url))
        for account in (kept.user, kept.endpoint):
            assert not is_closed(account)
            account.close()

    def test_a_deleted_endpoints_connections_are_closed_at_once_and_refused(
        self, live: Rest, ada: Party
    ) -> None:
        assert live.client.delete(f"/v2/endpoints/{ada.endpoint_id}").status_code == 200
        until(lambda: is_closed(ada.endpoint))
        until(lambda: is_refused(ada.endpoint.url))
        assert not is_closed(ada.user)

    def test_connections_admitted_by_a_cached_answer_are_closed(
        self, live: Rest, ada: Party
    ) -> None:
        live.client.delete(f"/v2/endpoints/{ada.endpoint_id}")
        until(lambda: is_closed(ada.endpoint))
        late = []
        with contextlib.suppress(*REFUSALS):
            while True:
                late.append(Account(ada.endpoint.url))
        assert late
        for account in late:
            until(lambda account=account: is_closed(account))

    def test_connections_revoked_while_no_service_ran_are_closed_by_the_next(
        self,
        live_settings: ServiceSettings,
        token_of: Callable[[str], dict[str, str]],
        database: Database,
    ) -> None:
        headers = token_of("ada")
        with TestClient(create_app(live_settings), headers=headers) as client:
            theirs = party(Rest(client), headers)
        with database.write() as connection:
            users.revoke_token(connection, headers["Authorization"].removeprefix("Bearer "))
        assert not is_closed(theirs.user)
        with TestClient(create_app(live_settings)):
            until(lambda: is_closed(theirs.user))
            until(lambda: is_closed(theirs.endpoint))


class TestRotation:
    """A user takes a new token, starts what runs with it again, and revokes the old one."""

    def test_an_endpoint_registered_with_the_new_token_stays_connected(
        self,
        soon: None,
        live: Rest,
        database: Database,
        token_of: Callable[[str], dict[str, str]],
    ) -> None:
        old, new = token_of("ada"), token_of("ada")
        first = party(live, old)
        body = {"endpoint_name": "lab", "metadata": {"flux_endpoint_version": "1"}}
        path = f"/v3/endpoints/{first.endpoint_id}"
        answer = live.client.put(path, json=body, headers=new).json()
        second = Account(answer["task_queue_info"]["connection_url"])
        with database.write() as connection:
            users.revoke_token(connection, old["Authorization"].removeprefix("Bearer "))
        until(lambda: is_closed(first.endpoint))
        assert second.does(lambda channel: channel.basic_get(first.queues[0]))[0] is not None
        assert not is_closed(second)
        second.close()

    def test_an_endpoints_own_token_has_the_endpoints_account_and_no_other(
        self, live: Rest, ada: Party, eve: Party
    ) -> None:
        made = live.client.post(f"/v3/endpoints/{ada.endpoint_id}/tokens").json()["token"]
        headers = {"Authorization": f"Bearer {made}"}
        body = {"endpoint_name": "lab", "metadata": {"flux_endpoint_version": "1"}}
        path = f"/v3/endpoints/{ada.endpoint_id}"
        answer = live.client.put(path, json=body, headers=headers).json()
        own = Account(answer["task_queue_info"]["connection_url"])
        assert own.does(lambda channel: channel.basic_get(ada.queues[0]))[0] is not None
        for queue in [*ada.queues[2:], *eve.queues]:
            own.may_not(lambda channel, queue=queue: channel.basic_get(queue))
        own.close()
        asked = live.client.get("/v2/get_amqp_result_connection_url", headers=headers)
        assert asked.status_code == 403

    def test_user_endpoints_have_accounts_of_the_token_that_their_multi_user_endpoint_has_now(
        self,
        live: Rest,
        multi_user: MultiUserEndpoint,
        database: Database,
        token_of: Callable[[str], dict[str, str]],
    ) -> None:
        live.submit(multi_user.id)
        before = multi_user.next_start()["amqp_creds"]["task_queue_info"]["connection_url"]
        child = Account(before)
        until(lambda: child.does(lambda channel: channel.basic_get(f"{_owner(child)}.tasks"))[0])
        old = live.client.headers["Authorization"].removeprefix("Bearer ")
        live.client.headers.update(token_of("ada"))
        multi_user.register_again()
        with database.write() as connection:
            users.revoke_token(connection, old)
        until(lambda: is_refused(before))
        multi_user.report()
        live.submit(multi_user.id, user_endpoint_config={"another": 1})
        after = Account(multi_user.next_start()["amqp_creds"]["task_queue_info"]["connection_url"])
        assert after.name.rpartition("-")[2] != child.name.rpartition("-")[2]
        after.does(lambda channel: channel.basic_get(f"{_owner(after)}.tasks"))
        after.close()


def _owner(account: Account) -> str:
    return account.name[2:].rpartition("-")[0]


class TestTrial:
    def test_a_broker_that_asks_another_service_is_detected(
        self, live: Rest, live_settings: ServiceSettings
    ) -> None:
        """A trial whose questions go elsewhere has none answered."""
        outcome = Trial().run(live_settings.amqp_url)
        assert outcome.verdict is Verdict.DOES_NOT_ASK
        assert "did not ask at all" in outcome.reason

    def test_an_unreachable_broker_gives_no_verdict(self) -> None:
        outcome = Trial().run("amqp://s:s@127.0.0.1:1/v")
        assert outcome.verdict is Verdict.UNREACHABLE
        assert "nothing listens" in outcome.reason


def test_the_number_of_questions_does_not_grow_with_the_results(live: Rest, ada: Party) -> None:
    assert session_broker.dispatcher is not None
    fresh = Account(ada.endpoint.url)
    asked = session_broker.dispatcher.asked
    before = asked.total()

    def publish(channel: Any) -> None:
        for _ in range(5000):
            channel.basic_publish("results", f"{ada.endpoint_id}.results", b"\x01?")

    channel = fresh.connection.channel()
    publish(channel)
    channel.close()  # after all of them
    assert asked.total() - before == 2
    fresh.close()


def test_the_services_own_account_needs_no_authorization_request(peer: Peer) -> None:
    """The service's own account connects without a question."""
    assert session_broker.dispatcher is not None
    before = session_broker.dispatcher.asked.total()
    peer.connection.wait_connected(PATIENCE)
    assert session_broker.dispatcher.asked.total() == before
