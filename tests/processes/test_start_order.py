"""Programs that are started together wait for each other."""

import os
import socket
import subprocess
import sys

import pytest

from flux_endpoint.processes import Gate, StartOrder
from flux_endpoint.processes.start_order import NOTIFY_SOCKET, START_AFTER

WAIT = """
import os
from flux_endpoint.processes import StartOrder
order = StartOrder()
print("waits", "FLUX_ENDPOINT_START_AFTER" in os.environ, flush=True)
order.wait()
print("goes on", flush=True)
"""
HOLD = """
import sys
from pathlib import Path
from flux_endpoint.processes import Gate
gate = Gate(Path(sys.argv[1]))
print("closed", flush=True)
sys.stdin.read()
"""


def start(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_program_waits_until_the_gate_is_opened(tmp_path):
    gate = Gate(tmp_path / "gate")
    with start(WAIT, **gate.environment) as waiting:
        assert waiting.stdout.readline() == "waits False\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
        gate.open()
        assert waiting.stdout.readline() == "goes on\n"
    gate.open()
    assert gate.environment == {}


def test_a_gate_is_open_when_its_owner_was_killed(tmp_path):
    with start(HOLD, tmp_path / "gate") as owner:
        assert owner.stdout.readline() == "closed\n"
        with start(WAIT, **{START_AFTER: str(tmp_path / "gate")}) as waiting:
            assert waiting.stdout.readline() == "waits False\n"
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.3)
            owner.kill()
            assert waiting.stdout.readline() == "goes on\n"


def test_who_was_not_told_to_wait_and_whose_gate_is_gone_do_not_wait(tmp_path, monkeypatch):
    StartOrder().wait()
    monkeypatch.setenv(START_AFTER, str(tmp_path / "gone"))
    StartOrder().wait()


@pytest.mark.parametrize("kind", ["abstract", "file"])
def test_readiness_is_told_as_sd_notify_has_it(tmp_path, monkeypatch, kind):
    name = {"abstract": f"@{tmp_path}", "file": str(tmp_path / "socket")}[kind]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name[1:]}" if kind == "abstract" else name)
        receiver.settimeout(10)
        monkeypatch.setenv(NOTIFY_SOCKET, name)
        order = StartOrder()
        assert NOTIFY_SOCKET not in os.environ
        assert order.environment == {NOTIFY_SOCKET: name}
        order.tell_ready()
        assert receiver.recv(100) == b"READY=1"
    order.tell_ready()  # its starter has ended


def test_nobody_is_told_where_nobody_asked():
    order = StartOrder()
    assert order.environment == {}
    order.tell_ready()
