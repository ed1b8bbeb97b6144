"""Nothing outlives the owner of a keeper, however it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

OWNER = """
import os, sys
from flux_endpoint.processes import Command, ProcessKeeper

nothing = lambda *_: None
keeper = ProcessKeeper(nothing, nothing, nothing, nothing)
keeper.start()
script = "(setsid sh -c 'echo daemon; exec sleep 1000' &); trap '' TERM; echo up; sleep 1000"
keeper.spawn("g", [Command(["sh", "-c", script], dict(os.environ), "/", stdout=1)])
os.close(1)
"""


def start_owner(lives, then: str) -> subprocess.Popen[bytes]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER + then], stdin=subprocess.PIPE, stdout=lives.writable
    )
    lives.close_ours()
    assert {lives.read_line(), lives.read_line()} == {"up", "daemon"}
    return owner


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_if_a_signal_kills_the_owner(lives, signum):
    # A handler does not run in a wait that begins at the very moment of the signal: wait anew.
    waits = "\nimport select\nwhile not select.select([0], [], [], 0.5)[0]: pass"
    with start_owner(lives, waits) as owner:
        owner.send_signal(signum)
        lives.wait_until_all_are_dead()


def test_processes_end_if_the_owner_exits_without_close(lives):
    with start_owner(lives, "sys.stdin.read(); os._exit(0)") as owner:
        owner.stdin.close()
        lives.wait_until_all_are_dead()


def test_processes_end_if_a_forked_child_of_the_owner_survives(lives):
    fork = "\nif os.fork() == 0: sys.stdin.read(); os._exit(0)\nsys.stdin.read()"
    with start_owner(lives, fork) as owner:
        os.kill(owner.pid, signal.SIGKILL)
        lives.wait_until_all_are_dead()
