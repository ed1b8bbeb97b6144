"""An instance's private directory; if the instance is killed, a later one removes it."""

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
    """A new directory in the system's directory for temporary files."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # The lock, held as long as we live, shows other instances that the directory is in use. The
        # directory gets its name after it is locked, so that none finds it unlocked.
        unnamed = self.path / f"{_LOCK}.new"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / _LOCK)

    def remove(self) -> None:
        """Remove the directory and its contents."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep(parent: Path) -> None:
    """Remove the directories that killed instances of this user have left in `parent`."""
    for path in parent.glob(f"{_PREFIX}*"):
        # In use, just removed, or nested too deeply to be removed.
        with contextlib.suppress(OSError, RecursionError):
            if path.lstat().st_uid != os.getuid():
                continue
            descriptor = os.open(path / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)
