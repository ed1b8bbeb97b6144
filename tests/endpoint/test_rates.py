"""Rates over the last minutes."""

from __future__ import annotations

import pytest

from flux_endpoint.endpoint.rates import RateMeter


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def meter(clock):
    return RateMeter(clock)


def test_a_new_meter_has_rates_of_zero(meter):
    assert (meter.total, meter.rates()) == (0, {"1m": 0, "5m": 0, "15m": 0})


def test_before_a_window_is_full_the_rate_is_that_since_the_beginning(meter, clock):
    clock.now += 10
    meter.add(30)
    assert meter.rates() == {"1m": 3, "5m": 3, "15m": 3}


def test_the_rate_in_the_first_moment_does_not_divide_by_zero(meter):
    meter.add(7)
    assert meter.rates()["1m"] == 7


def test_events_older_than_a_window_do_not_count(meter, clock):
    meter.add(600)
    clock.now += 90
    meter.add(60)
    clock.now += 30
    rates = meter.rates()
    assert rates["1m"] == pytest.approx(1, rel=0.1)
    assert rates["5m"] == pytest.approx(660 / 120, rel=0.01)
    clock.now += 1000
    assert meter.rates() == {"1m": 0, "5m": 0, "15m": 0}
    assert meter.total == 660


def test_a_steady_stream_has_the_same_rate_over_every_window(meter, clock):
    for _ in range(2000):
        clock.now += 1
        meter.add(5)
    assert meter.rates() == {name: pytest.approx(5, rel=0.02) for name in ("1m", "5m", "15m")}


def test_the_meter_keeps_no_more_than_the_longest_window(meter, clock):
    for _ in range(5000):
        clock.now += 5
        meter.add(1)
    assert len(meter._buckets) <= 182
