"""When status reports are sent."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import pytest

from flux_endpoint.endpoint import report as reports
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.report import LONGEST_HURRY, OFTEN, AgentCounts, StatusReporter


class Target:
    """Takes reports as a connection's queue would."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def publish(self, _connection: Any, body: bytes) -> Future[None]:
        self.bodies.append(body)
        sent: Future[None] = Future()
        sent.set_result(None)
        return sent


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, which stands still until it is changed."""
    moment = [1000.0]

    class Clock:
        monotonic = staticmethod(lambda: moment[0])
        time = staticmethod(time.time)

    monkeypatch.setattr(reports, "time", Clock)
    return moment


def test_reports_are_frequent_while_somebody_looks_and_rare_again_afterwards(
    now: list[float],
) -> None:
    target = Target()
    reporter = StatusReporter("5a3b1c9e-0d5f-4c6c-9a51-0e4b7c8c1d2e", target, EndpointConfig())  # type: ignore[arg-type]

    def send() -> float:
        """Send one when it is due; return the seconds until the next."""
        reporter.send(None, {}, AgentCounts(0, 0, paused=False))  # type: ignore[arg-type]
        return reporter.due - now[0]

    send()
    assert send() == 30.0
    now[0] += 10
    reporter.hurry(5)
    assert reporter.due <= now[0]  # the last is older than that
    assert send() == OFTEN
    now[0] += 6
    assert send() == 30.0
    reporter.hurry(1e9)
    assert reporter.due == now[0] + OFTEN
    now[0] += LONGEST_HURRY + 1
    assert send() == 30.0
