"""A process tree is ended as a whole."""

from __future__ import annotations

import subprocess
import sys

from flux_endpoint.processes import end_tree

TREE = "sh -c 'echo up; sleep 1000' & sh -c 'setsid sleep 1000' & wait"


def start(lives, script: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sh", "-c", script], stdout=lives.writable)
    lives.close_ours()
    assert lives.read_line() == "up"
    return process


def test_root_and_descendants_end(lives):
    with start(lives, TREE) as root:
        end_tree(root.pid)
        lives.wait_until_all_are_dead()
        assert root.wait() == -9


def test_with_a_grace_they_may_clean_up(lives):
    script = "trap 'echo cleaned; exit 3' TERM; echo up; while :; do sleep 0.01; done"
    with start(lives, script) as root:
        end_tree(root.pid, grace=20)
        assert lives.read_line() == "cleaned"
        lives.wait_until_all_are_dead()


def test_those_who_ignore_the_grace_are_killed(lives):
    with start(lives, "trap '' TERM; echo up; sleep 1000 & wait") as root:
        end_tree(root.pid, grace=0.05)
        lives.wait_until_all_are_dead()


def test_a_process_that_is_gone_is_no_error():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    end_tree(process.pid)


def test_all_descendants_of_the_calling_process_end(lives):
    program = (
        "import subprocess, sys\n"
        "from flux_endpoint.processes import end_descendants\n"
        f"child = subprocess.Popen(['sh', '-c', {TREE!r}])\n"
        "sys.stdin.read(1)\n"
        "end_descendants()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=lives.writable) as process:
        lives.close_ours()
        assert lives.read_line() == "up"
        process.communicate(b"x")
        lives.wait_until_all_are_dead()
