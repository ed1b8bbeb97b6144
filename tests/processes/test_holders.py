"""Which processes have a file."""

from __future__ import annotations

import subprocess
from pathlib import Path

from flux_endpoint.processes.holders import holders_of


def test_only_processes_that_can_write_the_file_are_holders(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.touch()
    with file.open("rb") as read, file.open("r+b") as write:
        looks, has = (
            subprocess.Popen(["sleep", "60"], pass_fds=(each.fileno(),)) for each in (read, write)
        )
    try:
        assert [(each.pid, each.deleted) for each in holders_of(file)] == [(has.pid, False)]
        file.unlink()
        assert [(each.pid, each.deleted) for each in holders_of(file)] == [(has.pid, True)]
    finally:
        for each in (looks, has):
            each.kill()
            each.wait()
