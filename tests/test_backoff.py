"""Backoff: growing pauses up to a limit, and the reset."""

from __future__ import annotations

from itertools import islice

import pytest

from flux_endpoint import backoff as module
from flux_endpoint.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    assert list(islice(Backoff(1, 5, jitter=0), 5)) == [1, 2, 4, 5, 5]


def test_the_factor_may_be_another() -> None:
    assert list(islice(Backoff(1, 5, factor=1.5, jitter=0), 3)) == [1, 1.5, 2.25]


def test_no_pause_is_longer_than_the_longest() -> None:
    assert next(Backoff(3, 2, jitter=0)) == 2


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.75), (1.0, 1.0)])
def test_jitter_shortens_each_pause_and_not_the_growth(
    monkeypatch: pytest.MonkeyPatch, chance: float, share: float
) -> None:
    monkeypatch.setattr(module.random, "uniform", lambda low, high: low + chance * (high - low))
    pauses = list(islice(Backoff(1, 4, jitter=0.25), 4))
    assert pauses == [share, 2 * share, 4 * share, 4 * share]


def test_a_success_makes_it_begin_with_the_first_pause() -> None:
    backoff = Backoff(1, 8, jitter=0)
    assert (next(backoff), next(backoff), backoff.failures) == (1, 2, 2)
    backoff.reset()
    assert backoff.failures == 0
    assert next(backoff) == 1


def test_any_number_of_failures_is_counted() -> None:
    backoff = Backoff(0.5, 60)
    assert all(0 < pause <= 60 for pause in islice(backoff, 5000))
    assert backoff.failures == 5000
