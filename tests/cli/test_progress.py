"""Progress of long work is for terminals, on standard error."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
import uuid

import pytest
from tests.cli.conftest import COMMAND, PATIENCE, WAIT, configure

pytestmark = [pytest.mark.rabbitmq, pytest.mark.stack]


def on_a_terminal(terminal, *arguments):
    """Run a command whose standard error is a terminal; return its output and what that showed."""
    master, slave = pty.openpty()
    shown = bytearray()

    def read():
        try:
            while data := os.read(master, 4096):
                shown.extend(data)
        except OSError:  # the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=terminal.environment,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
    )
    os.close(slave)
    out, _ = process.communicate(timeout=PATIENCE)
    reader.join()
    os.close(master)
    return out, shown.decode()


def test_cancelling_many_tasks_shows_a_bar(stack, gate):
    with stack.executor(task_group_id=uuid.uuid4()) as executor:
        futures = [executor.submit(WAIT, gate=str(gate)) for _ in range(20)]
        ids = [future.wait_submitted(PATIENCE) for future in futures]
        out, shown = on_a_terminal(stack, "cancel", *ids)
        assert "20/20" in shown
        assert "20/20" not in out
        for future in futures:
            future.exception(PATIENCE)


def test_waiting_for_an_end_shows_the_elapsed_time_and_clears_it_afterwards(stack):
    configure(stack, "sleeper")
    stack.start("sleeper")
    (entry,) = stack.json("status", "sleeper")["endpoints"]
    os.kill(entry["local"]["pid"], signal.SIGSTOP)
    out, shown = on_a_terminal(stack, "stop", "sleeper", "--timeout", "3")
    assert out.startswith("Endpoint sleeper did not end within 3 s and was killed.")
    assert "Stopping sleeper [#" in shown
    assert "of at most 3 s" in shown
    assert shown.endswith("\r\x1b[K")


def test_without_a_terminal_there_is_no_progress_display(stack):
    configure(stack, "quiet")
    assert stack.run("start", "quiet", "--detach").stderr == ""
    assert stack.run("stop", "quiet").stderr == ""
