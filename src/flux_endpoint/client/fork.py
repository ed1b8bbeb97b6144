"""Threads and connections stay behind when a process forks: say so, instead of waiting for ever."""

from __future__ import annotations

import os


class Birthplace:
    """The process in which something with threads of its own was made."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()

    def is_here(self) -> bool:
        """Return whether this is that process, and not a forked child."""
        return self.pid == os.getpid()

    def require(self, what: str) -> None:
        """Refuse to go on in a forked child.

        Raises:
            RuntimeError: this is another process than that where `what` was made.
        """
        if not self.is_here():
            raise RuntimeError(
                f"{what} was made in process {self.pid}, of which this process {os.getpid()} is a "
                "fork: its threads and connections stayed there. Make an Executor here, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
