"""A control group with little memory, for what becomes of a task that the kernel kills."""

from __future__ import annotations

import uuid
from pathlib import Path

LIMIT = 64 * 2**20
_ROOT = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """A group of its own below the root, of either version of the kernel's interface.

    Raises:
        OSError: this system, or this user, can't make one.
    """

    def __init__(self) -> None:
        first = (_ROOT / "memory").is_dir()
        self.path = (_ROOT / "memory" if first else _ROOT) / f"test-{uuid.uuid4().hex}"
        self.path.mkdir()
        try:
            if first:
                self._write("memory.limit_in_bytes", LIMIT)
                if (self.path / "memory.memsw.limit_in_bytes").exists():  # swap is accounted for
                    self._write("memory.memsw.limit_in_bytes", LIMIT)
            else:
                self._write("memory.max", LIMIT)
                self._write("memory.swap.max", 0)
        except OSError:
            self.close()
            raise
        self._events = self.path / ("memory.oom_control" if first else "memory.events")

    def __str__(self) -> str:
        return str(self.path)

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed in it."""
        fields = dict(line.split() for line in self._events.read_text().splitlines())
        return int(fields["oom_kill"])

    def _write(self, name: str, value: int) -> None:
        (self.path / name).write_text(str(value))

    def close(self) -> None:
        self.path.rmdir()
