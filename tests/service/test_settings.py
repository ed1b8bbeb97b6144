"""Settings: defaults, and what is refused."""

import pytest
from pydantic import ValidationError

from flux_endpoint.service.settings import ServiceSettings

DATABASE = "sqlite:////tmp/service.db"


def test_everybody_gets_the_services_broker_url_unless_told_otherwise() -> None:
    settings = ServiceSettings(database_url=DATABASE, amqp_url="amqp://s:s@h/v")
    assert settings.client_amqp_url == "amqp://s:s@h/v"
    assert settings.endpoint_amqp_url == "amqp://s:s@h/v?heartbeat=10"


def test_each_may_have_a_broker_url_of_its_own() -> None:
    settings = ServiceSettings(
        database_url=DATABASE,
        amqp_url="amqp://s:s@h/v",
        client_amqp_url="amqps://c:c@h/v",
        endpoint_amqp_url="amqps://e:e@h/v?heartbeat=30",
    )
    assert settings.client_amqp_url == "amqps://c:c@h/v"
    assert settings.endpoint_amqp_url == "amqps://e:e@h/v?heartbeat=30"


@pytest.mark.parametrize(
    "url", ["amqp://ho st", "amqp://a..b", f"amqp://{'a' * 70}", "amqp://h:99999", "amqp://h:0"]
)
def test_a_broker_url_that_names_no_host_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="amqp_url"):
        ServiceSettings(database_url=DATABASE, amqp_url=url)


def test_passwords_do_not_show() -> None:
    settings = ServiceSettings(
        database_url="postgresql://u:secret1@h/d", amqp_url="amqp://u:secret2@h/v"
    )
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"amqp_url": "http://h"}, {"colour": "red"}, {"publish_timeout": 0}]
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    given = {"database_url": DATABASE, "amqp_url": "amqp://h/v", **wrong}
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ServiceSettings.model_validate(given)
