"""Flux Standard Duration (RFC 23), a number and a unit: `30s`, `1.5h`, `250ms`, `infinity`."""

from __future__ import annotations

import math
import re

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_PATTERN = re.compile(r"((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)(ms|s|m|h|d|)", re.IGNORECASE)


def parse_duration(value: object) -> float:
    """Return a duration in seconds.

    Args:
        value: seconds as a number, or text in Flux Standard Duration.

    Raises:
        ValueError: it is neither, or negative.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            raise ValueError("a duration of more than 1e308 seconds is none") from None
    else:
        seconds = _parse_text(str(value))
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"{value!r} is not a duration: it must not be negative")
    return seconds


def _parse_text(text: str) -> float:
    stripped = text.strip()
    if stripped.lower() in {"inf", "infinity"}:
        return math.inf
    match = _PATTERN.fullmatch(stripped)
    if match is None:
        raise ValueError(
            f"{text!r} is not a duration: write seconds, or a number and ms, s, m, h or d"
        )
    return float(match[1]) * _UNITS[match[2].lower()]


def format_duration(seconds: float) -> str:
    """Return `seconds` as Flux Standard Duration, in the largest unit that gives at least one."""
    if math.isinf(seconds):
        return "infinity"
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.6g}{unit}"
    return f"{seconds * 1000:.6g}ms" if seconds else "0s"
