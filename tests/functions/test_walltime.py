"""When its time is over nothing of a command survives; ending by itself it leaves its children."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flux_endpoint.functions import ShellFunction, execution
from foreground import interrupt

OUT_OF_TIME = (124, "subprocess.TimeoutExpired")


def run_out_of_time(command):
    """Run `command`, which says `ready` when all its processes are there, past its walltime."""
    for walltime in (0.5, 2.0, 8.0, 32.0):  # a busy machine may need longer to get there
        result = ShellFunction(command, walltime=walltime)()
        assert (result.returncode, result.exception_name) == OUT_OF_TIME
        if "ready\n" in result.stdout:
            return result
    return pytest.fail(f"never got ready: {command}")


@pytest.mark.parametrize(
    "command",
    [
        "echo ready; exec sleep 61",
        "sleep 61 & setsid sleep 62 & echo ready; wait",
        "sleep 61 | sleep 62 & echo ready; wait",
        "(setsid sleep 61 &) ; (setsid bash -c 'sleep 62 & sleep 63' &); echo ready; sleep 64",
        "trap '' TERM; sleep 61 & echo ready; while :; do wait; done",
        "set -m; sleep 61 & sleep 62 & echo ready; wait",
        "bash -c 'kill -STOP $$' & echo ready; wait",
    ],
)
def test_the_whole_tree_is_ended_before_the_call_returns(family, command, monkeypatch):
    monkeypatch.setattr(execution, "GRACE", 0.2)
    run_out_of_time(command)
    assert family.alive() == []


def test_output_before_the_walltime_is_returned(family):
    result = run_out_of_time("echo so far; echo and >&2; echo ready; sleep 61")
    assert (result.stdout, result.stderr) == ("so far\nready\n", "and\n")


def test_processes_get_the_chance_to_clean_up(family, directory, monkeypatch):
    monkeypatch.setattr(execution, "GRACE", 30.0)  # on a machine that is busy, too
    run_out_of_time(
        "trap 'echo cleaned > trace; exit' TERM; echo ready; while :; do sleep .1; done"
    )
    assert (directory / "trace").read_text() == "cleaned\n"


def test_a_walltime_of_zero_ends_at_once(family):
    result = ShellFunction("sleep 61", walltime=0)()
    assert (result.returncode, result.exception_name) == OUT_OF_TIME
    assert family.alive() == []


@pytest.mark.parametrize("walltime", [None, 60, float("inf"), 1e12])
def test_a_command_that_ends_in_time_ends_as_it_does(walltime):
    assert ShellFunction("exit 3", walltime=walltime)().returncode == 3


@pytest.mark.parametrize("walltime", [None, 60])
def test_background_processes_neither_block_the_call_nor_are_ended(family, walltime):
    result = ShellFunction("sleep 61 & setsid sleep 62 & echo started", walltime=walltime)()
    assert (result.returncode, result.stdout) == (0, "started\n")
    family.become(["sleep 61", "sleep 62"])


def test_processes_of_other_commands_are_not_ended(family):
    ShellFunction("setsid sleep 71 & sleep 72 &", walltime=60)()
    bystander = subprocess.Popen(["sleep", "73"], start_new_session=True)
    try:
        run_out_of_time("setsid sleep 61 & echo ready; wait")
        family.become(["sleep 71", "sleep 72", "sleep 73"])
    finally:
        bystander.kill()
        bystander.wait()


def test_concurrent_commands_end_only_their_own_processes(family, directory):
    os.mkfifo(directory / "gate")
    outcomes = {}

    def long():
        outcomes["long"] = ShellFunction(
            "setsid sleep 71 & pid=$!; read < gate; kill -0 $pid && echo alive; kill $pid",
            walltime=100,
        )().stdout

    thread = threading.Thread(target=long)
    thread.start()
    run_out_of_time("setsid sleep 61 & echo ready; wait")
    (directory / "gate").write_text("go\n")
    thread.join()
    assert outcomes == {"long": "alive\n"}


def is_subreaper():
    value = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0)
    return bool(value.value)


def test_the_caller_adopts_orphans_only_while_it_waits(family):
    before = is_subreaper()
    ShellFunction("true", walltime=60)()
    assert is_subreaper() == before
    run_out_of_time("echo ready; sleep 61")
    assert is_subreaper() == before


WORKER = """
import ctypes, json, os, sys, time
sys.path[:0] = json.loads(sys.argv[1])
from flux_endpoint.functions import ShellFunction, execution
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
ShellFunction("setsid sleep 71 &")()
for walltime in (0.5, 2.0, 8.0, 32.0):
    result = ShellFunction("(env -i setsid sleep 61 &); echo ready; sleep 62", walltime=walltime)()
    if "ready" in result.stdout:
        break
value = ctypes.c_int()
ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0)
deadline = time.monotonic() + 30
children = [["bash"]]  # which it becomes `sleep` from, by and by
while any(child[:1] in (["bash"], ["setsid"]) for child in children):
    if time.monotonic() > deadline:
        break
    children = [open(f"/proc/{pid}/cmdline").read().split("\\0")[:-1]
                for pid in open("/proc/self/task/%d/children" % os.getpid()).read().split()]
print(json.dumps([result.returncode, value.value, children]))
"""


def test_a_worker_also_finds_what_cleaned_its_environment_and_stays_a_subreaper(family):
    run = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(sys.path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert json.loads(run.stdout) == [124, 1, [["sleep", "71"]]]


INTERRUPTED = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from flux_endpoint.functions import ShellFunction, execution
try:
    ShellFunction("sleep 61 & echo ready > gate; wait")()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_while_a_command_is_started_ends_it_too(family, monkeypatch):
    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ShellFunction("sleep 61 & sleep 62", walltime=60)()
    assert family.alive() == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_while_a_command_is_ended_leaves_no_process(family, monkeypatch):
    end, ended = execution.CommandTree.end, []

    def interrupted(self, grace):
        ended.append(self)
        if len(ended) == 1:
            signal.raise_signal(signal.SIGINT)
        end(self, grace)

    monkeypatch.setattr(execution.CommandTree, "end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ShellFunction("sleep 61 & sleep 62", walltime=0.1)()
    assert family.alive() == []


def test_ctrl_c_ends_the_command_too(family, directory):
    os.mkfifo(directory / "gate")
    program = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, json.dumps(sys.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert Path(directory / "gate").read_text() == "ready\n"
        interrupt(program)
        assert program.communicate(timeout=60)[0] == "interrupted\n"
        assert family.alive() == []
    finally:
        program.kill()
        program.wait()
