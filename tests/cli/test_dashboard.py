"""`flux-endpoint dashboard`: a link to the live page."""

from __future__ import annotations

import json

import httpx
import pytest

pytestmark = [pytest.mark.rabbitmq, pytest.mark.stack]


def test_the_link_logs_one_browser_in(stack):
    said = json.loads(stack.out("dashboard", "--json"))
    base, _, code = said["url"].partition("/#login=")
    assert base == stack.credentials["service_url"]
    assert stack.credentials["token"] not in said["url"]
    assert 0 < said["expires_in"] <= 120

    def log_in() -> httpx.Response:
        headers = {"X-Flux-Endpoint": "page"}
        return httpx.post(f"{base}/page/session", json={"code": code}, headers=headers)

    with httpx.Client(base_url=base, cookies=log_in().cookies) as browser:
        assert browser.get("/page/overview").json()["user"] == "local"
    assert log_in().status_code == 401
