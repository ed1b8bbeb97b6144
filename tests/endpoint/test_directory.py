"""Who runs an endpoint's agent, as others see it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from flux_endpoint.endpoint.directory import (
    AgentLock,
    DirectoryHolder,
    EndpointDirectory,
    this_machine,
)

HOLD = """
import fcntl, os, sys
fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_holder_that_has_not_written_its_record_is_identified_by_its_process(
    home: Path,
) -> None:
    directory = EndpointDirectory("lab")
    directory.path.mkdir(parents=True)
    earlier = {"pid": os.getpid(), "hostname": socket.gethostname()}
    directory.lock.write_text(json.dumps(earlier))
    assert directory.holder() is None
    command = [sys.executable, "-c", HOLD, str(directory.lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holding:
        assert holding.stdout is not None
        assert holding.stdout.readline() == "locked\n"
        assert directory.holder() == DirectoryHolder(
            holding.pid, socket.gethostname(), this_machine()
        )
        directory.lock.write_text(json.dumps({**earlier, "hostname": "elsewhere"}))
        assert directory.holder() == DirectoryHolder(os.getpid(), "elsewhere")


def test_a_holder_is_recognized_after_its_host_was_renamed(home: Path) -> None:
    directory = EndpointDirectory("lab")
    directory.path.mkdir(parents=True)
    script = "import json, sys; from pathlib import Path; p = Path(sys.argv[1])"
    script += "; print(json.dumps(json.loads(p.read_text())))"
    with AgentLock(directory):
        # Read by another process: closing the file here would give up the lock.
        command = [sys.executable, "-c", script, str(directory.lock)]
        written = json.loads(subprocess.check_output(command))
    assert written["machine"] == this_machine()
    renamed = DirectoryHolder(os.getpid(), "as-it-was-called", written["machine"])
    assert renamed.is_here
    assert not DirectoryHolder(os.getpid(), socket.gethostname(), "another boot/1").is_here
    assert DirectoryHolder(os.getpid(), socket.gethostname()).is_here
    assert not DirectoryHolder(os.getpid(), "elsewhere").is_here
