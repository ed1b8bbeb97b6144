"""Ends of tasks on disk that wait for an agent.

The file has frames as they are sent (see `frames`): a JSON header and a body each. An incomplete
frame at the end, which a killed manager was writing, is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_endpoint.engine.workers.frames import LENGTHS
from flux_endpoint.protocol.envelope import compact_json

#: Header of an end: the task's `id`; `end`: "result" (the default, left out), "lost", "cancelled",
#: or "overdue" (its body is the limit in seconds); `began`: for a task that ran without a result,
#: its start in seconds since the epoch; `printed`: what such a task has printed, as entries of a
#: result's details; `format`: set if the result is a formatted command.
EndHeader = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SpooledEnd:
    """An end in a file: its header, and the position of its body."""

    path: Path
    header: EndHeader
    offset: int
    length: int

    def body(self) -> bytes:
        """Return the body.

        Raises:
            OSError: the file can't be read.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.length)
        if len(data) != self.length:
            raise OSError(f"{self.path} was truncated")
        return data


class Spool:
    """The file of one manager, created with its first entry.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def add(self, header: EndHeader, body: bytes) -> SpooledEnd:
        """Write an end.

        Raises:
            OSError: it can't be written; the file is unchanged.
        """
        if self._descriptor < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        text = compact_json(header)
        start = os.fstat(self._descriptor).st_size
        data = memoryview(LENGTHS.pack(len(text), len(body)) + text + body)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise
        return SpooledEnd(self._path, header, start + LENGTHS.size + len(text), len(body))

    def clear(self) -> None:
        """Remove the file: nothing in it is needed any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._path.unlink(missing_ok=True)


def read_spool(path: Path) -> Iterator[SpooledEnd]:
    """Yield the ends in a manager's file, oldest first; none if the file does not exist."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(lengths := file.read(LENGTHS.size)) == LENGTHS.size:
            header_length, body_length = LENGTHS.unpack(lengths)
            if file.tell() + header_length + body_length > size:
                return
            header = json.loads(file.read(header_length))
            if not isinstance(header, dict) or not isinstance(header.get("id"), str):
                return
            yield SpooledEnd(path, header, file.tell(), body_length)
            file.seek(body_length, os.SEEK_CUR)
