"""The pipes that a worker prints to, and who reads them.

Each worker has one pipe for each of its two streams. Either the worker or its manager reads both:

- A worker that has ended a task reads what is in its pipes and sends it along with the end. So the
  output of short tasks is known exactly, and a task that prints nothing costs one system call.
- The manager becomes the reader when output has waited for a moment: it takes the token. A worker
  that finds no token at the end of a task reports that with the end, and waits for the token, which
  the manager returns once it has read what is in the pipes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

#: The most bytes that are read of a pipe at once: a process may print without end.
MOST_READ = 1 << 20
_PIECE = 1 << 16


@dataclass(frozen=True)
class WorkerPipes:
    """Descriptors of the two pipes, of standard output and error, and of the token (an eventfd)."""

    readers: tuple[int, int]
    writers: tuple[int, int]
    token: int

    @classmethod
    def new(cls) -> WorkerPipes:
        """Return new pipes, with a free token.

        Raises:
            OSError: this process has too many descriptors.
        """
        (out_reader, out_writer), (error_reader, error_writer) = os.pipe(), os.pipe()
        for reader in (out_reader, error_reader):
            os.set_blocking(reader, False)
        token = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return cls((out_reader, error_reader), (out_writer, error_writer), token)

    @classmethod
    def received(cls, descriptors: list[int]) -> WorkerPipes:
        """Return the pipes whose `descriptors` another process has sent."""
        out_reader, error_reader, out_writer, error_writer, token = descriptors
        return cls((out_reader, error_reader), (out_writer, error_writer), token)

    @property
    def descriptors(self) -> list[int]:
        """The descriptors, to send them to another process."""
        return [*self.readers, *self.writers, self.token]

    def leave_writing_to_others(self) -> None:
        """Close this process's ends for writing."""
        for writer in self.writers:
            os.close(writer)

    def become_output(self) -> None:
        """Make the pipes this process's standard output and error."""
        for number, writer in enumerate(self.writers, 1):
            os.dup2(writer, number)
        self.leave_writing_to_others()


def read_all(descriptor: int) -> bytes:
    """Return what is in a nonblocking pipe, within limits; nothing if it can't be read."""
    parts: list[bytes] = []
    with suppress(OSError):
        while len(parts) < MOST_READ // _PIECE:
            part = os.read(descriptor, _PIECE)
            if not part:
                break
            parts.append(part)
    return b"".join(parts)
