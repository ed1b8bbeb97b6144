"""Audit logs: who did what, as one JSON object per line, in files of limited size."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Size in bytes at which a file is rotated, and the number of old files: `audit.jsonl.1` is the
#: newest.
SIZE = 10 * 2**20
KEPT = 4
#: The most characters of a text in a record.
LONGEST = 500


class AuditLog:
    """Appends records to a file that only its user can read. For several threads.

    A record that can't be written, for example on a full disk, is lost; this is logged once.

    Args:
        path: the file; `None`: records are dropped.
        size: size in bytes at which it is rotated.
        kept: number of old files.
    """

    def __init__(self, path: Path | None, *, size: int = SIZE, kept: int = KEPT) -> None:
        self.path = path
        self._size = size
        self._kept = kept
        self._descriptor = -1
        self._lock = threading.Lock()
        self._failed = False

    def write(self, what: str, /, **fields: Any) -> None:
        """Append one record.

        Args:
            what: the event.
            fields: who did it, to what, and so on; `None` values are left out.
        """
        self.write_all([{"event": what, **fields}])

    def write_all(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records, each with its `event`; all get the same time."""
        if self.path is None:
            return
        now = time.time()
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        stamp = {"time": f"{second}.{int(now % 1 * 1000):03}Z"}
        text = "".join(
            json.dumps({**stamp, **_bounded(record)}, default=str) + "\n" for record in records
        )
        if text:
            with self._lock:
                self._append(self.path, text.encode())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._leave()

    def _append(self, path: Path, data: bytes) -> None:
        try:
            self._open(path, len(data))
            # An incomplete line must not corrupt the next one.
            whole = b"\n" + data if self._failed else data
            if os.write(self._descriptor, whole) < len(whole):
                raise OSError("there was no room for the whole of it")
        except OSError as error:
            if not self._failed:
                reason = error.strerror or str(error)
                event(
                    log, logging.ERROR, "the audit log can't be written", file=path, reason=reason
                )
            self._failed = True
        else:
            self._failed = False

    def _open(self, path: Path, more: int) -> None:
        """Open the file that is at `path` now, with room for `more` bytes."""
        if self._descriptor >= 0:
            ours = os.fstat(self._descriptor)
            if not _is_at(path, ours):  # another process has rotated or deleted it
                self._leave()
            elif ours.st_size and ours.st_size + more > self._size:
                self._leave()
                self._set_aside(path)
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)
            os.fchmod(self._descriptor, 0o600)  # regardless of the umask

    def _set_aside(self, path: Path) -> None:
        for number in range(self._kept, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)

    def _leave(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _is_at(path: Path, ours: os.stat_result) -> bool:
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _bounded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value[:LONGEST] if isinstance(value, str) else value
        for key, value in record.items()
        if value is not None
    }


def read_records(
    path: Path, is_wanted: Callable[[Mapping[str, Any]], bool], limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Return the newest records of an audit log and its old files, the oldest first.

    Lines that are no records, such as an incomplete one, are left out.

    Args:
        path: the file.
        is_wanted: the condition on a record.
        limit: the most records.

    Returns:
        The records, and whether there are older ones.

    Raises:
        OSError: a file can't be read; `FileNotFoundError`: there is no file at `path`.
    """
    found: deque[dict[str, Any]] = deque()
    for text in _files(path):
        wanted: deque[dict[str, Any]] = deque(maxlen=limit + 1)
        with text:
            wanted.extend(each for each in _records(text) if is_wanted(each))
        found.extendleft(reversed(wanted))
        if len(found) > limit:
            break
    return list(found)[-limit:], len(found) > limit


def _files(path: Path) -> Iterator[BinaryIO]:
    """Yield the files of a log, the newest first, each once although it is rotated meanwhile."""
    seen: set[tuple[int, int]] = set()
    for number in range(KEPT + 1):
        each = path if number == 0 else path.with_name(f"{path.name}.{number}")
        try:
            opened = each.open("rb")
        except FileNotFoundError:
            if number == 0:
                raise
            continue
        status = os.fstat(opened.fileno())
        if (status.st_dev, status.st_ino) in seen:
            opened.close()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield opened


def _records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
