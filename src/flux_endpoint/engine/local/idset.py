"""Sets of numbers as text: idsets (RFC 22), such as `0,2-5` or `[0-3]`."""

from __future__ import annotations

import re
from collections.abc import Iterable

_IDSET = re.compile(r"\[?\d+(-\d+)?(,\d+(-\d+)?)*\]?", re.ASCII)


def is_idset(value: object) -> bool:
    """Return whether `value` is the text of a nonempty idset."""
    return isinstance(value, str) and _IDSET.fullmatch(value) is not None


def contains(idset: str, number: int) -> bool:
    """Return whether `number` is in `idset`, which must be valid; it is not expanded."""
    for part in idset.removeprefix("[").removesuffix("]").split(","):
        first, _, last = part.partition("-")
        if int(first) <= number <= int(last or first):
            return True
    return False


def encode(ids: Iterable[int]) -> str:
    """Return `ids` as an idset, with brackets if there is more than one."""
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(runs) == 1 and runs[0][0] == runs[0][1] else f"[{text}]"
