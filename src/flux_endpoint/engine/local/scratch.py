"""The private directory of an instance, removed with it, or by a later one if it was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "flux-endpoint-jobs-"
_LOCK = "lock"


class ScratchDirectory:
    """A new directory below the system's one for temporary files."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Held for as long as we live: how another instance knows that somebody needs the directory.
        # It gets its name when it is locked: one that starts just now must not find it free.
        unnamed = self.path / f"{_LOCK}.new"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / _LOCK)

    def remove(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep(parent: Path) -> None:
    """Remove what this user's instances that were killed left in `parent`."""
    for path in parent.glob(f"{_PREFIX}*"):
        # In use, removed just now, or nested so deeply that it can't be removed.
        with contextlib.suppress(OSError, RecursionError):
            if path.lstat().st_uid != os.getuid():
                continue
            descriptor = os.open(path / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)
