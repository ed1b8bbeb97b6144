"""Moments as `flux submit --begin-time` takes them."""

from __future__ import annotations

import math
from datetime import datetime

import pytest

from flux_endpoint.protocol.moment import parse_moment

NOW = 1_800_000_000.0


def local(*date: int) -> float:
    return datetime(*date).timestamp()  # noqa: DTZ001 - that is the point


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (5, 5.0),
        (0, 0.0),
        ("now", NOW),
        ("+2s", NOW + 2),
        (" +1.5h ", NOW + 5400),
        ("-1d", NOW - 86400),
        ("2027-01-31", local(2027, 1, 31)),
        ("2027-01-31 15:00", local(2027, 1, 31, 15)),
        ("2027-01-31T15:00:00+00:00", 1801407600.0),
        ("2027-01-31T15:00:00Z", 1801407600.0),
    ],
)
def test_a_moment_is_a_number_an_offset_or_a_date(value, moment):
    assert parse_moment(value, NOW) == moment


TEXTS = ("", "soon", "+", "+2x", "+inf", "5", "15:00", "1960-01-01", "-60000d")


@pytest.mark.parametrize(
    "value", [*TEXTS, -1, math.nan, math.inf, 10**400, True, None, []], ids=repr
)
def test_an_invalid_moment_is_refused(value):
    with pytest.raises(ValueError, match=r"\w"):
        parse_moment(value, NOW)
