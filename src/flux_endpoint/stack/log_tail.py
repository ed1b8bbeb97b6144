"""The end of a log file, for an error message."""

from __future__ import annotations

import os
from pathlib import Path

_BYTES = 16 * 1024


def tail(path: Path, lines: int = 12) -> str:
    """Return the last non-empty `lines` of `path`, indented; empty if there are none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    kept = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in kept[-lines:])
