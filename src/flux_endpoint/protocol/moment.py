"""A time as in `flux submit --begin-time`, in the formats that are unambiguous."""

from __future__ import annotations

import math
from datetime import datetime

from flux_endpoint.protocol.duration import parse_duration


def parse_moment(value: object, now: float) -> float:
    """Return a time in seconds since the epoch.

    Args:
        value: seconds since the epoch; or text: `now`; `+` or `-` and a duration from now (`+2h`);
            or a date, with or without a time (`2027-01-31 15:00`, ISO 8601), in local time unless
            it has a time zone.
        now: the current time, in seconds since the epoch.

    Raises:
        ValueError: it is none of these, or before the epoch.
    """
    if isinstance(value, str):
        moment = _parse_text(value.strip(), now)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        moment = value if value < 2**63 else math.inf
    else:
        raise ValueError("neither a number nor text")  # noqa: TRY004 - as for any other value
    if not 0 <= moment < 2**63:  # false for NaN, too
        raise ValueError("before the epoch, or too far away")
    return float(moment)


def _parse_text(text: str, now: float) -> float:
    if text == "now":
        return now
    if text.startswith(("+", "-")):
        seconds = parse_duration(text[1:])
        return now + seconds if text[0] == "+" else now - seconds
    try:
        return datetime.fromisoformat(text).timestamp()  # local time, as in Flux
    except (ValueError, OverflowError, OSError):
        raise ValueError("neither an offset nor a date") from None
