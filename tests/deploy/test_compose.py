"""The compose files: they fit each other, the images, and the settings of what they run."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

import pytest

from deploy_files import (
    DEPLOY,
    Containerfile,
    fill_in,
    read_settings,
    read_variables,
    variables_in,
)
from flux_endpoint import credentials
from flux_endpoint.amqp.authorization import PLUGINS, configuration
from flux_endpoint.paths import HOME_VARIABLE
from flux_endpoint.service.http_protocol import ConnectionLimits
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.stack import broker_files

_PREFIX = "FLUX_ENDPOINT_SERVICE_"


def _is_secret(name: str) -> bool:
    return "PASSWORD" in name or "SECRET" in name


@pytest.fixture(scope="module")
def services(compose, answers):
    """The services, with everything filled in."""
    return fill_in(compose["services"], answers)


@pytest.fixture(scope="module")
def settings(services):
    environment = services["service"]["environment"]
    return ServiceSettings(
        **{name.removeprefix(_PREFIX).lower(): value for name, value in environment.items()}
    )


class TestVariables:
    def test_each_variable_is_in_the_example(self, compose, tls):
        example = read_variables(DEPLOY / "example.env")
        assert set(variables_in(compose)) | set(variables_in(tls)) == set(example)

    def test_each_password_must_be_given_and_is_not_in_the_example(self, compose):
        passwords = {name: must for name, must in variables_in(compose).items() if _is_secret(name)}
        example = read_variables(DEPLOY / "example.env")
        assert len(passwords) == 3
        assert all(passwords.values())
        assert not any(example[name] for name in passwords)

    def test_without_a_password_compose_fails(self, compose, answers):
        for name in answers:
            if _is_secret(name):
                with pytest.raises(KeyError, match=name):
                    fill_in(compose, {**answers, name: ""})

    def test_the_example_values_are_the_defaults(self, compose, answers):
        must = {name for name, must in variables_in(compose).items() if must}
        only = {name: value for name, value in answers.items() if name in must}
        assert (
            fill_in(compose, only)["services"]["service"]
            == (fill_in(compose, answers)["services"]["service"])
        )


class TestService:
    def test_every_setting_is_an_option_of_the_service(self, services, service_variables):
        assert set(services["service"]["environment"]) <= service_variables

    def test_the_settings_are_valid(self, settings):
        assert settings.database_url.startswith("postgresql://")

    def test_the_service_uses_the_database_user_that_compose_creates(self, services, settings):
        url = urlsplit(settings.database_url)
        made = services["postgresql"]["environment"]
        assert url.hostname in services
        assert (url.username, url.password) == (made["POSTGRES_USER"], made["POSTGRES_PASSWORD"])
        assert url.path == f"/{made['POSTGRES_DB']}"

    def test_the_service_uses_its_broker_account_with_the_created_password(
        self, services, settings
    ):
        url = urlsplit(settings.amqp_url)
        made = services["accounts"]["environment"]
        assert (url.username, url.password) == ("service", made["AMQP_SERVICE_PASSWORD"])

    def test_all_urls_have_the_same_virtual_host(self, settings):
        urls = (settings.amqp_url, settings.endpoint_amqp_url, settings.client_amqp_url)
        assert {urlsplit(url).path for url in urls} == {"/flux_endpoint"}

    def test_the_broker_asks_at_the_services_address_which_is_not_published(
        self, compose, services, answers, settings
    ):
        listens = urlsplit(settings.authorization_url)
        asks = f"http://service:{listens.port}{listens.path}"
        text = fill_in(compose["configs"]["authorization"]["content"], answers)
        fixed = read_settings((DEPLOY / "rabbitmq" / "flux-endpoint.conf").read_text())
        wanted = configuration(asks)
        assert read_settings(text) | fixed == fixed | wanted
        assert not any(f":{listens.port}" in port for port in services["service"]["ports"])
        mounted = {each["target"]: each["source"] for each in services["rabbitmq"]["configs"]}
        assert mounted == {"/etc/rabbitmq/conf.d/22-authorization.conf": "authorization"}

    def test_connections_are_closed_by_the_management_api_of_the_broker(self, services, settings):
        url = urlsplit(settings.management_url)
        assert (url.hostname, url.port) == ("rabbitmq", 15672)
        assert not any("15672" in port for port in services["rabbitmq"]["ports"])

    def test_the_service_uses_the_brokers_inner_port_and_others_the_published_one(
        self, services, settings
    ):
        assert urlsplit(settings.amqp_url).hostname in services
        (published,) = services["rabbitmq"]["ports"]
        outside, _, inside = published.rpartition(":")
        assert urlsplit(settings.amqp_url).port == int(inside)
        assert urlsplit(settings.client_amqp_url).netloc == outside

    def test_the_published_port_is_the_one_the_service_listens_on(self, services):
        image = Containerfile(DEPLOY / "Containerfile").environment("service")
        (published,) = services["service"]["ports"]
        assert published.endswith(f":{image['FLUX_ENDPOINT_SERVICE_PORT']}")
        assert (
            f":{image['FLUX_ENDPOINT_SERVICE_PORT']}/health"
            in (services["service"]["healthcheck"]["test"][-1])
        )

    def test_the_service_starts_after_database_and_accounts(self, services):
        assert services["service"]["depends_on"] == {
            "postgresql": {"condition": "service_healthy"},
            "accounts": {"condition": "service_completed_successfully"},
        }


class TestEndpoint:
    def test_the_endpoint_is_started_only_with_its_profile(self, services):
        assert [name for name, each in services.items() if "profiles" in each] == ["endpoint"]

    def test_the_endpoint_finds_the_service_by_the_usual_variables(self, services):
        environment = services["endpoint"]["environment"]
        assert environment[credentials.URL_VARIABLE] == "http://127.0.0.1:8080"
        assert environment[credentials.TOKEN_VARIABLE]
        assert set(environment) == {
            credentials.URL_VARIABLE,
            credentials.TOKEN_VARIABLE,
            "FLUX_ENDPOINT_NAME",
        }

    def test_the_state_of_the_endpoint_is_in_a_volume(self, services):
        home = Containerfile(DEPLOY / "Containerfile").environment("endpoint")[HOME_VARIABLE]
        assert services["endpoint"]["volumes"] == [f"endpoint:{home}"]


class TestFiles:
    def test_each_volume_is_declared_or_a_file_that_exists(self, compose, services):
        for each in services.values():
            for volume in each.get("volumes", []):
                source = volume.partition(":")[0]
                if source.startswith("."):
                    assert (DEPLOY / source).is_file(), source
                else:
                    assert source in compose["volumes"]

    def test_each_image_that_is_not_built_has_an_exact_version(self, services, tls):
        images = [
            each["image"]
            for each in (*services.values(), *tls["services"].values())
            if "image" in each
        ]
        assert len(images) == 4
        for image in images:
            assert re.search(r":\d+\.\d+(\.\d+)?$", image), image

    def test_each_image_that_is_built_is_a_stage(self, services):
        stages = Containerfile(DEPLOY / "Containerfile").stages
        for each in services.values():
            if "build" in each:
                assert each["build"]["target"] in stages
                context = (DEPLOY / each["build"]["context"]).resolve()
                assert (context / each["build"]["dockerfile"]) == DEPLOY / "Containerfile"

    def test_every_dependency_has_a_healthcheck_or_ends(self, services):
        for each in services.values():
            for name, how in each.get("depends_on", {}).items():
                if how["condition"] == "service_healthy":
                    assert services[name]["healthcheck"]["test"][0] == "CMD"
                else:
                    assert services[name]["restart"] == "no"

    def test_accounts_are_made_with_the_brokers_own_tools_and_cookie(self, services):
        assert services["accounts"]["image"] == services["rabbitmq"]["image"]
        assert services["accounts"]["volumes"][0] == services["rabbitmq"]["volumes"][0]
        assert services["accounts"]["environment"]["RABBITMQ_NODENAME"] == (
            f"rabbit@{services['rabbitmq']['hostname']}"
        )
        assert os.access(DEPLOY / "rabbitmq" / "accounts", os.X_OK)

    def test_the_broker_has_the_plugins_by_which_it_asks(self):
        text = (DEPLOY / "rabbitmq" / "enabled_plugins").read_text()
        assert text == f"[{','.join(PLUGINS)}].\n"

    def test_the_package_example_asks_at_the_same_address_as_containers(self):
        template = (DEPLOY / "rabbitmq" / "authorization.conf.template").read_text()
        url = "http://127.0.0.1:8081/SECRET"
        filled = read_settings(fill_in(template, {"AUTHORIZATION_URL": url}))
        assert filled.items() <= configuration(url).items()
        assert len(filled) == 4

    def test_the_brokers_limits_are_those_of_a_stack(self):
        text = (DEPLOY / "rabbitmq" / "flux-endpoint.conf").read_text()
        limits = dict(re.findall(r"^(\w+) = (\d+)$", text, re.MULTILINE))
        assert limits == {
            "max_message_size": str(broker_files.MAX_MESSAGE_SIZE),
            "consumer_timeout": str(broker_files.CONSUMER_TIMEOUT),
        }


class TestNetwork:
    def test_without_tls_all_ports_are_on_loopback(self, services):
        for each in services.values():
            for port in each.get("ports", []):
                assert port.startswith("127.0.0.1:")

    def test_with_tls_only_https_and_amqps_are(self, tls, answers):
        services = fill_in(tls["services"], answers)
        assert sorted(port for each in services.values() for port in each.get("ports", [])) == [
            "443:443",
            "5671:5671",
        ]

    def test_the_tls_file_names_existing_files_and_services(self, tls, answers, services):
        for each in fill_in(tls["services"], answers).values():
            for volume in each.get("volumes", []):
                source = volume.partition(":")[0]
                assert not source.startswith(".") or (DEPLOY / source).is_file(), source
            assert set(each.get("depends_on", {})) <= set(services)

    def test_nginx_limits_connections_by_address_in_place_of_the_service(self, tls):
        template = (DEPLOY / "nginx" / "flux-endpoint.conf.template").read_text()
        limits = ConnectionLimits()
        assert f"limit_conn flux_endpoint {limits.per_address};" in template
        assert f"client_header_timeout {limits.header_seconds}s;" in template
        assert f"client_body_timeout {limits.transfer_seconds}s;" in template
        told = tls["services"]["service"]["environment"]
        assert told["FLUX_ENDPOINT_SERVICE_MAX_CONNECTIONS_PER_ADDRESS"] == "0"

    def test_nginx_gets_every_variable_of_its_template(self, tls, answers, services):
        template = (DEPLOY / "nginx" / "flux-endpoint.conf.template").read_text()
        told = fill_in(tls["services"]["nginx"]["environment"], answers)
        assert set(re.findall(r"\$\{(\w+)\}", template)) == set(told)
        host, _, port = told["SERVICE_ADDRESS"].partition(":")
        assert host in services
        assert services["service"]["ports"][0].endswith(f":{port}")

    def test_rabbitmq_and_nginx_read_the_certificates_where_they_are_mounted(self, tls):
        for path in ("rabbitmq/tls.conf", "nginx/flux-endpoint.conf.template"):
            text = (DEPLOY / path).read_text()
            for name in ("fullchain.pem", "key.pem"):
                assert f"/etc/flux-endpoint/tls/{name}" in text
        for name in ("rabbitmq", "nginx"):
            assert tls["services"][name]["volumes"][-1].endswith(":/etc/flux-endpoint/tls:ro")
