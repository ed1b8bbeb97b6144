"""The stores that this user's programs have written to, in the state directory.

Whoever removes what has expired finds them here: the user's endpoints, and `flux-endpoint data`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flux_endpoint import paths
from flux_endpoint.errors import ConfigurationError, DataStoreError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

_noted: set[tuple[int, str, Path]] = set()
#: Stores that could not be noted, which is logged once and not with each object.
_reported: set[Path] = set()


def _folder(name: str, *, create: bool = False) -> Path:
    folder = paths.home() / "data" / name
    if create:
        paths.make_private_directory(folder)
    return folder


def note_directory(directory: Path) -> None:
    """Note that a directory is a store. An error is only logged: other programs note it, too.

    Args:
        directory: its absolute path.
    """
    try:
        folder = _folder("directories", create=True)
        key = (os.getpid(), str(folder), directory)
        if key in _noted:
            return
        name = hashlib.sha256(str(directory).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        text = json.dumps({"directory": str(directory)})
        paths.write_private(folder / f"{name}.json", text, durable=False)
        _noted.add(key)
    except (OSError, ConfigurationError) as error:
        if directory in _reported:
            return
        _reported.add(directory)
        # In the text: a client's program may show no fields.
        text = f"the store {directory} can't be noted, so what expires there may stay: {error}"
        event(log, logging.WARNING, text)


def directories() -> Iterator[tuple[Path, Path]]:
    """Yield the noted directories, each with the file that notes it."""
    for note in sorted(_folder("directories").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            yield Path(json.loads(note.read_text(encoding="utf-8"))["directory"]), note


def note_object(reference: bytes, lifetime: float) -> None:
    """Note an object that a connector keeps, and when its lifetime ends.

    Args:
        reference: its pickled place.
        lifetime: seconds; infinity: it is not noted, as nobody is to remove it.

    Raises:
        DataStoreError: it can't be noted, so that nobody would ever remove the object.
    """
    if lifetime == float("inf"):
        return
    try:
        path = _folder("objects", create=True) / f"{int(time.time() + lifetime)}-{uuid.uuid4().hex}"
        partial = path.with_name(f".{path.name}.partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(reference)
        partial.replace(path)
    except (OSError, ConfigurationError) as error:
        raise DataStoreError(
            f"the lifetime of an object can't be noted in the state directory: {error}"
        ) from error


def objects() -> Iterator[tuple[float, Path]]:
    """Yield the end (s since the epoch) of each noted object, and the file that notes it."""
    for note in sorted(_folder("objects").glob("*-*")):
        ends = note.name.partition("-")[0]
        if ends.isdecimal():
            yield float(ends), note
