"""Who runs an endpoint's agent, as others see it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from flux_endpoint.endpoint.directory import EndpointDirectory, Holder

HOLD = """
import fcntl, os, sys
fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_who_has_the_lock_and_has_not_written_yet_is_not_taken_for_an_earlier_one(
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
        assert directory.holder() == Holder(holding.pid, socket.gethostname())
        directory.lock.write_text(json.dumps({**earlier, "hostname": "elsewhere"}))
        assert directory.holder() == Holder(os.getpid(), "elsewhere")
