"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from collections.abc import Iterator


def delays(first: float = 0.25, longest: float = 15.0) -> Iterator[float]:
    """Yield seconds to wait: doubling from `first` to `longest`, each with jitter, without end."""
    delay = first
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        delay = min(delay * 2, longest)
