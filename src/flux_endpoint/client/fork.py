"""Detects forked children: they lack their parent's threads, and would wait for them forever."""

from __future__ import annotations

import os


class Birthplace:
    """Remembers the process that created an object with threads."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()

    def is_here(self) -> bool:
        """Return whether this is still the same process, and not a forked child."""
        return self.pid == os.getpid()

    def require(self, what: str) -> None:
        """Raise an error in a forked child.

        Args:
            what: the object, for the message.

        Raises:
            RuntimeError: the object was created in another process.
        """
        if not self.is_here():
            raise RuntimeError(
                f"{what} was created in process {self.pid}. This process {os.getpid()} is a fork "
                "of it, without its threads and connections. Create an Executor here, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
