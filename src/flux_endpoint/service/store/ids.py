"""Ids of what is stored in great numbers."""

import os
import time
from uuid import UUID


def ordered_ids(count: int) -> list[str]:
    """Return `count` new version-7 UUIDs, each greater than the one before.

    Random ones would touch a page of the index each; these stay on a few, which a commit writes.
    """
    now = time.time_ns() // 1_000_000
    noise = os.urandom(8 * count)
    ids: list[str] = []
    for index in range(count):
        high = (now + (index >> 12)) << 16 | 0x7000 | index & 0xFFF
        low = 1 << 63 | int.from_bytes(noise[8 * index : 8 * index + 8]) >> 2
        text = f"{high:016x}{low:016x}"
        ids.append(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
    return ids


def made_at(text: str) -> float | None:
    """Return when an id was made, in seconds since the epoch; `None` if it doesn't say."""
    try:
        value = UUID(text)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == 7 else None
