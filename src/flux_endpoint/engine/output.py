"""The output of Python functions, from their processes to the endpoint's log, in bounded size."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

#: Largest size of the log in bytes; a second file has the older output.
_MAX_BYTES = 5 << 20
#: The most bytes that wait for a slow disk.
_MAX_WAITING_BYTES = 4 << 20
#: Seconds in which `close` waits for pending output to be written.
_CLOSE_TIMEOUT = 5.0
#: Bytes per second that the workers of a node may send here, and the size of a burst.
_RATE = 1 << 20
_BURST = 4 << 20


class OutputLog:
    """The endpoint's log of functions' output. For several threads.

    When it is full it is renamed with the suffix `.1`, and a new file is begun.

    Args:
        path: the file; created with the first output.
        most_bytes: largest size of the file; the renamed file may have the same size.
    """

    def __init__(self, path: Path, most_bytes: int = _MAX_BYTES) -> None:
        self._path = path
        self._most = most_bytes
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._left_out = 0
        self._failed = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Hand `data` to the writing thread; data beyond the disk's speed is dropped."""
        with self._changed:
            if self._closed or not data:
                return
            if self._size + len(data) > _MAX_WAITING_BYTES:
                self._left_out += len(data)
                return
            self._waiting.append(data)
            self._size += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="output-log", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Write the pending output; ignore later output."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                data = b"".join(self._waiting) + _note(self._left_out)
                self._waiting.clear()
                self._size = self._left_out = 0
            try:
                for at in range(0, len(data), self._most):
                    self._append(data[at : at + self._most])
                self._failed = False
            except OSError as error:
                if not self._failed:  # log it once
                    log.warning("can't write functions' output: %s", error)
                self._failed = True

    def _append(self, data: bytes) -> None:
        with suppress(FileNotFoundError):
            if self._path.stat().st_size + len(data) > self._most:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


class LogAllowance:
    """Limits how much of their output the workers of a node send to the log, per second."""

    def __init__(self) -> None:
        self._allowance = float(_BURST)
        self._refilled = time.monotonic()
        self._left_out = 0

    def cut(self, data: bytes) -> bytes:
        """Return the beginning of `data`, as far as it is allowed now; the rest is dropped."""
        now = time.monotonic()
        self._allowance = min(_BURST, self._allowance + (now - self._refilled) * _RATE)
        self._refilled = now
        kept = data[: int(self._allowance)]
        self._allowance -= len(kept)
        note = self.note() if kept else b""
        self._left_out += len(data) - len(kept)
        return note + kept

    def note(self) -> bytes:
        """Return a line on what was dropped since the last one, or nothing."""
        note, self._left_out = _note(self._left_out), 0
        return note


def _note(left_out: int) -> bytes:
    if not left_out:
        return b""
    return b"\n[%d bytes of output were dropped here: too much at once]\n" % left_out
