"""Flux Standard Duration, and plain seconds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.protocol.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("30s", 30),
        (" 30s ", 30),
        ("250ms", 0.25),
        ("1.5h", 5400),
        (".5m", 30),
        ("2.d", 172800),
        ("90M", 5400),
        ("1e3s", 1000),
        ("inf", math.inf),
        (" Infinity", math.inf),
        (0, 0),
        (7, 7),
        (2.5, 2.5),
        (math.inf, math.inf),
    ],
)
def test_a_duration_is_a_number_and_a_unit_or_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "s", "5 s", "5x", "1:30", "-1s", "1s30", "nan", "--", ".", True, None, [], b"5s"]
)
def test_an_invalid_duration_is_refused_and_shown(value):
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration(value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, 10**400])
def test_numbers_that_are_not_a_duration_are_refused(value):
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (30, "30s"),
        (90, "1.5m"),
        (5400, "1.5h"),
        (86400, "1d"),
        (math.inf, "infinity"),
    ],
)
def test_a_duration_is_written_in_its_largest_unit(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_formatted_durations_can_be_parsed(seconds):
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-5)
