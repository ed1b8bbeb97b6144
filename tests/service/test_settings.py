"""Settings: defaults, and what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from broker_access import NOBODY_ASKS
from flux_endpoint.service.settings import ServiceSettings

DATABASE = "sqlite:////tmp/service.db"
SHARED = {
    "shared_broker_accounts": True,
    "client_amqp_url": "amqps://c:c@h/v",
    "endpoint_amqp_url": "amqps://e:e@h/v?heartbeat=30",
}


def settings(**given: Any) -> ServiceSettings:
    return ServiceSettings(**{"database_url": DATABASE, "amqp_url": "amqp://s:s@h/v", **given})


def test_broker_urls_default_to_the_services_without_its_account() -> None:
    made = settings(**NOBODY_ASKS)
    assert made.client_amqp_url == "amqp://h/v"
    assert made.endpoint_amqp_url == "amqp://h/v?heartbeat=10"


def test_broker_urls_of_clients_and_endpoints_can_be_set() -> None:
    made = settings(
        **NOBODY_ASKS,
        client_amqp_url="amqps://c.example/v",
        endpoint_amqp_url="amqps://e.example/v?heartbeat=30",
    )
    assert made.client_amqp_url == "amqps://c.example/v"
    assert made.endpoint_amqp_url == "amqps://e.example/v?heartbeat=30"


def test_shared_accounts_are_given_by_name() -> None:
    made = settings(**SHARED)
    assert made.client_amqp_url == "amqps://c:c@h/v"
    assert made.endpoint_amqp_url == "amqps://e:e@h/v?heartbeat=30"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "--authorization-url.*--shared-broker-accounts"),
        ({"shared_broker_accounts": True}, "needs --endpoint-amqp-url"),
        ({**SHARED, "client_amqp_url": ""}, "needs --client-amqp-url"),
        ({**SHARED, "client_amqp_url": "amqps://s:s@h/v"}, "--client-amqp-url.*own account"),
        ({**SHARED, "endpoint_amqp_url": "amqp://s:x@other"}, "--endpoint-amqp-url.*own account"),
        (
            {**NOBODY_ASKS, "endpoint_amqp_url": "amqps://e:e@h/v"},
            "--endpoint-amqp-url holds an account",
        ),
    ],
)
def test_the_services_own_account_is_never_handed_out(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(**given)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:81/0123456789abcdef",
        "127.0.0.1:81",
        "http://127.0.0.1:81",
        "http://127.0.0.1:81/short",
        "http://127.0.0.1:81/0123456789abcdef/user",
        "http://127.0.0.1:99999/0123456789abcdef",
        "http://127.0.0.1:81/0123456789abcdef?x",
        "http://127.0.0.1:81/0123456789 abcdef",
    ],
)
def test_the_authorization_url_must_end_in_a_secret(url: str) -> None:
    with pytest.raises(ValidationError, match="authorization_url"):
        settings(authorization_url=url)


@pytest.mark.parametrize(
    "url", ["amqp://ho st", "amqp://a..b", f"amqp://{'a' * 70}", "amqp://h:99999", "amqp://h:0"]
)
def test_a_broker_url_that_names_no_host_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="amqp_url"):
        settings(**NOBODY_ASKS, amqp_url=url)


def test_passwords_are_not_shown() -> None:
    made = settings(
        database_url="postgresql://u:secret1@h/d",
        amqp_url="amqp://u:secret2@h/v",
        authorization_url="http://127.0.0.1:81/secret3-0123456789",
        management_url="http://u:secret4@h:15672",
    )
    assert "secret" not in repr(made)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"amqp_url": "http://h"},
        {"colour": "red"},
        {"publish_timeout": 0},
        {"management_url": "amqp://h"},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        settings(**NOBODY_ASKS, **wrong)
