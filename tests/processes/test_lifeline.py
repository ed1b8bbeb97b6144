"""A process notices that its parent has died."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from flux_endpoint.processes import watch_parent
from foreground import Process

PARENT = """
import subprocess, sys
child = (
    "import threading; from flux_endpoint.processes import watch_parent; "
    "dead = threading.Event(); watch_parent(dead.set); print('up', flush=True); dead.wait(); "
    "print('orphaned', flush=True)"
)
subprocess.Popen([sys.executable, "-c", child])
sys.stdin.read()
"""


def test_a_child_is_notified_of_its_parents_death(lives):
    command = [sys.executable, "-c", PARENT]
    with Process(command, stdin=subprocess.PIPE, stdout=lives.writable) as parent:
        lives.close_ours()
        assert lives.read_line() == "up"
        parent.kill()
        assert lives.read_line() == "orphaned"


def test_a_parent_that_is_dead_already_is_noticed_at_once():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    dead = threading.Event()
    watch_parent(dead.set, parent=process.pid)
    assert dead.wait(20)


def test_a_living_parent_triggers_nothing():
    dead = threading.Event()
    thread = watch_parent(dead.set, parent=os.getppid())
    assert thread.daemon
    assert not dead.is_set()
