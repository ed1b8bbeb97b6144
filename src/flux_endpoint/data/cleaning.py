"""Removes stored objects whose lifetime is over, and counts the others."""

from __future__ import annotations

import logging
import os
import pickle
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flux_endpoint.data import known_stores
from flux_endpoint.data.directory import ABANDONED, GRACE, NEVER, is_object, is_unfinished
from flux_endpoint.logs import event

log = logging.getLogger(__name__)


@dataclass
class StoreContent:
    """The objects of a store.

    Attributes:
        store: its name for people.
        objects: their number.
        size: their bytes; `None`: unknown.
        expired: number of those whose lifetime is over.
        next_end: the earliest end of a lifetime that is not over (s since the epoch).
        reason: why the store can't be read; empty: it can.
    """

    store: str
    objects: int = 0
    size: int | None = 0
    expired: int = 0
    next_end: float | None = None
    reason: str = ""

    def add(self, ends: float, size: int | None) -> None:
        """Count an object.

        Args:
            ends: the end of its lifetime (s since the epoch).
            size: its bytes, if they are known.
        """
        self.objects += 1
        self.size = None if size is None or self.size is None else self.size + size
        if ends < time.time():
            self.expired += 1
        elif ends < NEVER:
            self.next_end = min(ends, self.next_end or ends)


def contents() -> Iterator[StoreContent]:
    """Yield the content of each store that this user's programs have written to."""
    for directory, _ in known_stores.directories():
        content = StoreContent(str(directory))
        try:
            for entry, status in _files(directory):
                if is_object(entry.name):
                    content.add(status.st_mtime, status.st_size)
        except OSError as error:
            content.reason = error.strerror or str(error)
        yield content
    noted = StoreContent("connectors", size=None)
    for ends, _ in known_stores.objects():
        noted.add(ends, None)
    if noted.objects:
        yield noted


def prune(grace: float = GRACE) -> int:
    """Remove what has expired from all stores that this user's programs have written to.

    Args:
        grace: seconds for which objects stay after their lifetime.

    Returns:
        The number of objects that were removed.
    """
    removed = 0
    for directory, note in list(known_stores.directories()):
        try:
            removed += _prune_directory(directory, time.time() - grace)
        except FileNotFoundError:
            if directory.parent.is_dir():  # else a file system is not mounted now
                note.unlink(missing_ok=True)
        except OSError as error:
            event(log, logging.WARNING, "a store can't be read", store=directory, reason=error)
    before = time.time() - grace
    return removed + sum(
        _remove_noted(note) for ends, note in list(known_stores.objects()) if ends < before
    )


def _files(directory: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yield this user's files in a directory."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    yield entry, status


def _prune_directory(directory: Path, before: float) -> int:
    removed = 0
    for entry, status in _files(directory):
        path = directory / entry.name
        try:
            if is_object(entry.name) and status.st_mtime < before:
                removed += _remove_unless_extended(path, before)
            elif is_unfinished(entry.name) and status.st_mtime < time.time() - ABANDONED:
                path.unlink(missing_ok=True)
        except OSError as error:
            event(log, logging.WARNING, "a stored object not removed", path=path, reason=error)
    return removed


def _remove_unless_extended(path: Path, before: float) -> bool:
    """Remove an object, unless it was written again since it was looked at."""
    aside = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        path.rename(aside)
        if aside.lstat().st_mtime >= before:
            aside.rename(path)
            return False
        aside.unlink()
    except FileNotFoundError:  # another program removes it
        return False
    return True


def _remove_noted(note: Path) -> bool:
    try:
        # The file is the user's own, in a directory that is the user's alone.
        pickle.loads(note.read_bytes()).remove()  # noqa: S301
    except FileNotFoundError:
        return False
    except Exception as error:  # noqa: BLE001 - whatever unpickling raises: the others are removed
        event(log, logging.WARNING, "a stored object not removed", note=note, reason=error)
        return False
    note.unlink(missing_ok=True)
    return True
