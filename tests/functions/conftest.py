"""Where commands run, and what they leave running."""

from __future__ import annotations

import contextlib
import os
import time
import uuid

import psutil
import pytest

MARK = "FUNCTIONS_TEST_MARK"


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """Where commands run: empty, and no sandbox."""
    for name in ("GC_TASK_SANDBOX_DIR", "GC_TASK_UUID"):
        monkeypatch.setenv(name, "")  # so that what a task sets in this process goes with the test
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Family:
    """The processes that a test started, wherever they have gone: known by their environment."""

    def __init__(self, mark):
        self.mark = mark

    def alive(self, word=""):
        """Return the command lines of those that run and have `word` in theirs."""
        return [line for _, line in self._members() if word in line]

    def become(self, lines):
        """Wait until exactly these run: a process that was just forked still has other words."""
        deadline = time.monotonic() + 30
        while sorted(self.alive()) != lines:
            if time.monotonic() > deadline:
                pytest.fail(f"expected {lines}, there are {sorted(self.alive())}")

    def end(self):
        while members := self._members():
            for process, _ in members:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def _members(self):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                running = process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
                if running and process.environ().get(MARK) == self.mark:
                    found.append((process, " ".join(process.cmdline())))
        return found


@pytest.fixture
def family(monkeypatch):
    """The processes that this test starts; none of them survives it."""
    members = Family(uuid.uuid4().hex)
    monkeypatch.setenv(MARK, members.mark)
    yield members
    members.end()
