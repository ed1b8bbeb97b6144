"""Host lists as text (RFC 29), such as `node[1-3,7],login`."""

from __future__ import annotations

import re
from collections.abc import Iterator

_RANGE = r"\d+(?:-\d+)?"
_PART = re.compile(rf"([^\[\],\s]+)(?:\[({_RANGE}(?:,{_RANGE})*)\]([^\[\],\s]*))?(?:,|$)")


def expand(hostlist: str) -> Iterator[str]:
    """Yield the hosts of a list; there may be very many.

    Raises:
        ValueError: the text is not a host list.
    """
    parts = []
    at = 0
    while at < len(hostlist):
        part = _PART.match(hostlist, at)
        if part is None:
            raise ValueError(f"Invalid hostlist: '{hostlist}'")
        parts.append(part)
        at = part.end()
    return (host for part in parts for host in _hosts(part))


def _hosts(part: re.Match[str]) -> Iterator[str]:
    before, ranges, after = part.groups()
    if ranges is None:
        yield before
        return
    for entry in ranges.split(","):
        first, _, last = entry.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"{before}{number:0{len(first)}d}{after}"
