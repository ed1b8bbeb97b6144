"""Where the service is and who we are: environment first, then the file, and nothing by halves."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from flux_endpoint.credentials import Credentials, load_credentials
from flux_endpoint.errors import ConfigurationError


def write(home: Path, content: object, mode: int = 0o600) -> Path:
    path = home / "credentials.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def test_the_environment_wins_over_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, {"service_url": "http://file", "token": "f"})
    monkeypatch.setenv("FLUX_ENDPOINT_SERVICE_URL", "http://environment/")
    monkeypatch.setenv("FLUX_ENDPOINT_TOKEN", "e")
    credentials = load_credentials()
    assert (credentials.service_url, credentials.token) == ("http://environment", "e")


def test_the_file_is_used_if_the_environment_has_no_credentials(home: Path) -> None:
    path = write(home, {"service_url": "https://host:1/base//", "token": " t\n"})
    credentials = load_credentials()
    assert (credentials.service_url, credentials.token) == ("https://host:1/base", "t")
    assert credentials.source == str(path)


def test_the_token_is_not_shown(home: Path) -> None:
    assert "secret" not in repr(Credentials("http://host", "secret"))


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("FLUX_ENDPOINT_SERVICE_URL", "FLUX_ENDPOINT_TOKEN"),
        ("FLUX_ENDPOINT_TOKEN", "FLUX_ENDPOINT_SERVICE_URL"),
    ],
)
def test_only_one_of_the_two_variables_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, given: str, missing: str
) -> None:
    write(home, {"service_url": "http://file", "token": "f"})
    monkeypatch.setenv(given, "http://x")
    with pytest.raises(ConfigurationError, match=f"{given} is set but {missing} is not"):
        load_credentials()


def test_without_any_credentials_the_error_says_where_to_put_them(home: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_credentials()
    for word in ("FLUX_ENDPOINT_TOKEN", str(home / "credentials.json"), "flux-endpoint up"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ({"token": "t"}, "has no 'service_url'"),
        ({"service_url": "http://host", "token": ""}, "needs a non-empty string in 'token'"),
        ({"service_url": 7, "token": "t"}, "needs a non-empty string in 'service_url'"),
        ({"service_url": "host:80", "token": "t"}, "must look like"),
        ({"service_url": "http://host:port", "token": "t"}, "must look like"),
        ({"service_url": "http://host?a=b", "token": "t"}, "must look like"),
        ({"service_url": "http://host", "token": "a b"}, "characters that no token has"),
        ({"service_url": "http://host", "token": "a\nb"}, "characters that no token has"),
    ],
    ids=str,
)
def test_a_malformed_file_is_named_with_what_is_wrong(
    home: Path, content: object, said: str
) -> None:
    path = write(home, content)
    with pytest.raises(ConfigurationError) as caught:
        load_credentials()
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_others_can_read_is_used_with_a_warning(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(home, {"service_url": "http://host", "token": "t"}, mode=0o644)
    with caplog.at_level(logging.WARNING, "flux_endpoint"):
        assert load_credentials().token == "t"
    assert f"chmod 600 {path}" in caplog.text


@pytest.mark.parametrize(
    "host",
    ["ho st", "a..b", ".x", "a" * 64, f"{'a' * 64}.example", "☃", "host:0", "host:65536", "[::1"],
)
def test_a_service_url_that_names_no_host_is_refused(home: Path, host: str) -> None:
    with pytest.raises(ConfigurationError, match="must look like"):
        Credentials(f"http://{host}", "t")


@pytest.mark.parametrize("host", ["my_host:80", "bücher.example", "[::1]:80", "[fe80::1%25eth0]"])
def test_a_service_url_may_have_any_valid_host(home: Path, host: str) -> None:
    assert Credentials(f"http://{host}", "t").service_url == f"http://{host}"
