"""Connections of accounts that have ended are closed, however often RabbitMQ lets one in again."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest

from flux_endpoint.service.access import connections
from flux_endpoint.service.access.connections import AccountLimits, ConnectionCloser
from flux_endpoint.service.store.accounts import parse_account

PATIENCE = 60


class FakeManagement:
    """A broker that lets an ended account in twice, as RabbitMQ does while it keeps an answer."""

    def __init__(self) -> None:
        self.left = 2
        self.done = threading.Event()

    def users(self, vhost: str) -> set[str]:
        return {"u"} if self.left else set()

    def close_connections(self, user: str) -> None:
        self.left -= 1
        if not self.left:
            self.done.set()

    def limited(self, vhost: str) -> set[str]:
        return set()

    def close(self) -> None: ...


def test_the_closer_scans_again_after_closing_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "AGAIN", 0.1)
    monkeypatch.setattr(connections, "PERIOD", 10.0 * PATIENCE)
    management: Any = FakeManagement()
    management.left = 3  # when it starts, the look after that, and one more
    closer = ConnectionCloser(
        management, "/", lambda users: users, AccountLimits(management, "/", 1)
    )
    closer.start()
    try:
        assert management.done.wait(PATIENCE)
    finally:
        closer.close()


def test_a_limit_that_the_broker_lost_while_it_was_set_is_set_again() -> None:
    account = parse_account(f"u-{uuid.uuid4()}-{'0' * 12}")
    assert account is not None
    management: Any = FakeManagement()
    limits = AccountLimits(management, "/", 1)
    calls: list[str] = []

    def limit(name: str, *_: object) -> None:
        calls.append(name)
        if len(calls) == 1:
            limits.forget()

    management.limit = limit
    for _ in range(3):
        limits.apply(account)
    assert calls == [account.name] * 2
