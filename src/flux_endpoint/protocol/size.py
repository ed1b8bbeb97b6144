"""Sizes in bytes as text: `512`, `64M`, `10G`, `1.5T`, `infinity`."""

from __future__ import annotations

import math
import re

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PATTERN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(value: object) -> float:
    """Return a number of bytes.

    Args:
        value: bytes as a number, or text with one of the units K, M, G and T (powers of 1024).

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value) or value < 0:
            raise ValueError(f"{value!r} is not a size: it must not be negative")
        return float(value)
    text = str(value).strip()
    if text.lower() in {"inf", "infinity"}:
        return math.inf
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number and K, M, G or T")
    return float(match[1]) * _UNITS[match[2].upper()]
