"""A file system of 4 MiB for tests of full disks; they are skipped if it can't be mounted."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A small file system.

    Args:
        path: its mount point.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filling = path / "filling"

    def fill(self) -> None:
        """Use all free space."""
        with (
            contextlib.suppress(OSError),
            self._filling.open("ab", buffering=0) as file,
        ):
            while file.write(b"x" * 4096):
                pass

    def clear(self) -> None:
        """Free the space again."""
        self._filling.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"not run: no file system can be mounted here ({done.stderr.strip()})")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)
