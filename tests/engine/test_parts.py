"""The small parts: frames, claims, ends, result messages, environment, the tail of a text."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from engine_world import fresh_seconds, processes

from flux_endpoint.engine import flux_backend, results
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.engine import FluxEngine
from flux_endpoint.engine.environment import job_environment
from flux_endpoint.engine.tail import Tail
from flux_endpoint.engine.task import Failure, Value, checked_size
from flux_endpoint.engine.task_index import TaskPlace
from flux_endpoint.engine.workers import process_tree
from flux_endpoint.engine.workers.backlog import TaskBacklog, TaskEntry, TaskTimes
from flux_endpoint.engine.workers.book import ManagerRecord, StartTimes, TaskBook
from flux_endpoint.engine.workers.frames import (
    Claims,
    FrameReader,
    FrameSocket,
    combined,
    divided,
    write_frame,
)
from flux_endpoint.engine.workers.handle import WorkerChannel, WorkerHandle
from flux_endpoint.protocol.messages import Result, unpack
from flux_endpoint.protocol.states import ErrorCode
from waiting import until

TASK = str(uuid.UUID(int=3))


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


# Frames


def test_frames_arrive_in_order_from_either_kind_of_socket(pair):
    ours, theirs = pair
    frames = FrameSocket(ours)
    write_frame(theirs, {"id": "1"}, b"body")
    write_frame(theirs, {"id": "2"})
    assert list(frames.receive()) == [({"id": "1"}, b"body"), ({"id": "2"}, b"")]
    frames.send({"id": "ü"}, b"\x00" * 10)
    assert FrameReader(theirs).read() == ({"id": "ü"}, b"\x00" * 10)


def test_a_frame_in_pieces_comes_out_when_it_is_whole(pair):
    ours, theirs = pair
    frames = FrameSocket(ours)
    copy, end = socket.socketpair()
    with copy, end:
        write_frame(copy, {"n": 1}, b"0123456789")
        copy.close()
        data = b"".join(iter(lambda: end.recv(4096), b""))
    for byte in data[:-1]:
        theirs.send(bytes([byte]))
        assert list(frames.receive()) == []
    theirs.send(data[-1:])
    assert list(frames.receive()) == [({"n": 1}, b"0123456789")]


def test_a_body_larger_than_any_buffer_passes_both_ways(pair):
    ours, theirs = pair
    frames = FrameSocket(ours)
    body = os.urandom(5_000_000)
    writer = threading.Thread(target=write_frame, args=(theirs, {"n": 1}, body))
    writer.start()
    got = []
    while not got:
        got = list(frames.receive())
    writer.join()
    assert got == [({"n": 1}, body)]
    frames.send({"n": 2}, body)
    assert frames.wants_write
    answers = []
    reader = threading.Thread(target=lambda: answers.append(FrameReader(theirs).read()))
    reader.start()
    while frames.wants_write:
        frames.flush()
    reader.join()
    assert answers == [({"n": 2}, body)]


def test_the_end_of_a_stream_comes_after_every_whole_frame(pair):
    ours, theirs = pair
    frames = FrameSocket(ours)
    write_frame(theirs, {"n": 1})
    theirs.send(b"\x00\x00")
    theirs.close()
    arriving = frames.receive()
    assert next(arriving) == ({"n": 1}, b"")
    with pytest.raises(EOFError):
        list(arriving) or list(frames.receive())
    assert frames.wants_write is False
    frames.send({"n": 2})  # nobody is there: not an error here
    assert frames.wants_write is False


def test_frames_that_arrived_together_are_read_at_once_and_returned_one_by_one(pair):
    ours, theirs = pair
    frames, reader = FrameSocket(ours), FrameReader(theirs)
    for number in range(3):
        frames.send({"n": number}, b"x" * number)
    assert reader.read() == ({"n": 0}, b"")
    assert reader.has_data
    assert reader.read() == ({"n": 1}, b"x")
    assert reader.read() == ({"n": 2}, b"xx")
    assert not reader.has_data


def test_a_blocking_reader_gets_an_error_at_an_end_within_a_frame(pair):
    ours, theirs = pair
    ours.send(b"\x00\x00\x00\x04\x00")
    ours.close()
    assert FrameReader(theirs).read() is None


# Claims


def test_every_claim_is_taken_once():
    claims = Claims()
    copy = Claims(os.dup(claims.fileno()))
    assert not claims.take()
    for _ in range(3):
        claims.add(1)
    assert copy.take()
    assert claims.take_all(9) == 2
    assert not copy.take()
    claims.close()
    copy.close()


def test_claims_are_never_shared_by_two_takers():
    claims, total = Claims(), 2000
    for _ in range(total):
        claims.add(1)
    counts = []

    def take():
        counts.append(claims.take_all(total))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claims.close()
    assert sum(counts) == total


# Ends


def test_the_time_of_a_task_begins_when_its_worker_is_there():
    output: Any = None
    frames: Any = None
    worker = WorkerHandle(WorkerChannel(frames), Claims(), output, 0)
    worker.tasks.add(({"id": TASK, "limit": 5.0}, b""))
    worker.tasks.first_starts(time.monotonic() - 10)
    assert worker.overdue_at == math.inf
    before = time.monotonic()
    worker.process.forked(1)
    assert before + 5 <= worker.overdue_at <= time.monotonic() + 5
    worker.cancelled = TASK
    assert worker.overdue_at == math.inf
    worker.tasks.close()


def test_a_process_tree_is_killed_completely_even_after_the_time_limit(monkeypatch):
    monkeypatch.setattr(process_tree, "_KILL_TIMEOUT", 0.0)  # when it goes on, the time is over
    seconds = fresh_seconds()
    with subprocess.Popen(["sh", "-c", f"sleep {seconds} & sleep {seconds} & wait"]) as tree:
        until(lambda: len(processes(seconds)) == 3)
        process_tree.kill_tree(tree.pid)
    try:
        until(lambda: not processes(seconds))
    finally:
        for process in processes(seconds):
            process.kill()


#: A template is killed; then its manager ends all that is left.
LOST_TEMPLATE = """
import os, signal
from flux_endpoint.engine.workers.template import adopt_orphans
from flux_endpoint.engine.workers.template_link import TemplateLink
adopt_orphans()
reader, writer = os.pipe()
template = os.fork()
if template == 0:
    left = os.fork()
    signal.alarm(30)
    if left:
        os.write(writer, b"%d" % left)
    signal.pause()
left = int(os.read(reader, 20))
os.kill(template, signal.SIGKILL)
os.waitid(os.P_PID, template, os.WEXITED | os.WNOWAIT)
link = object.__new__(TemplateLink)
link._pid = template
link.kill()
print(os.WTERMSIG(os.waitpid(left, 0)[1]), end="")
"""


def test_what_a_lost_template_has_left_is_killed():
    command = [sys.executable, "-c", LOST_TEMPLATE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == str(int(signal.SIGKILL)), done.stderr


# Results


def test_a_value_is_a_result_message():
    statuses = [results.transition(results.TaskState.EXEC_START)]
    message = unpack(results.body_of(TASK, Value("00\nabc"), {"os": "x"}, statuses))
    assert isinstance(message, Result)
    assert (str(message.task_id), message.data, message.error_details) == (TASK, "00\nabc", None)
    assert message.details == {"os": "x"}
    assert message.task_statuses is not None
    assert message.task_statuses[0].state == "execution-start"


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_failure_has_a_code_a_sentence_and_its_text(code):
    message = unpack(results.body_of(TASK, Failure(code, "why ü \ud800"), None, []))
    assert isinstance(message, Result)
    assert message.error_details is not None
    assert message.error_details.code == code.value
    assert message.error_details.user_message.endswith(".")
    assert message.data.startswith("why ü")


def test_details_have_the_keys_that_clients_read():
    details = results.worker_details("e")
    assert details["endpoint_id"] == "e"
    assert details.keys() >= {"python_version", "dill_version", "globus_compute_sdk_version", "os"}
    json.dumps(details)


def test_the_size_limit_counts_what_base64_carries():
    assert isinstance(checked_size("00\n" + "A" * (13 * 2**20)), Value)
    assert isinstance(checked_size("00\n" + "A" * (14 * 2**20)), Failure)
    assert isinstance(checked_size("11\n" + "A" * (11 * 2**20)), Failure)


# Environment


def test_variables_of_another_job_and_secrets_are_omitted():
    base = {
        "PATH": "/bin",
        "FLUX_URI": "local:///x",
        "FLUX_JOB_ID": "1",
        "FLUX_TASK_RANK": "0",
        "FLUX_KVS_NAMESPACE": "n",
        "PMI_FD": "3",
        "PMIX_RANK": "0",
        "PALS_RANKID": "0",
        "HYDRA_X": "1",
        "FLUX_ENDPOINT_TOKEN": "secret",
        "FLUX_ENDPOINT_SERVICE_SECRET": "secret",
        "FLUX_ENDPOINT_HOME": "/h",
    }
    kept = {"PATH": "/bin", "FLUX_URI": "local:///x", "FLUX_ENDPOINT_HOME": "/h"}
    assert job_environment(base) == kept


def test_the_environment_is_this_process_by_default(monkeypatch):
    monkeypatch.setenv("SOME_THING", "x")
    monkeypatch.setenv("FLUX_ENDPOINT_TOKEN", "x")
    environment = job_environment()
    assert environment["SOME_THING"] == "x"
    assert "FLUX_ENDPOINT_TOKEN" not in environment


# Tail


@pytest.mark.flux
def test_ctrl_c_still_goes_to_its_handler_when_flux_does_not_answer(flux_uri, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    instance = flux_backend.FluxBackend(flux_uri)
    try:
        monkeypatch.setattr(flux_backend, "_ANSWER_TIMEOUT", 0.0)
        assert instance.usage() == {}
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        instance.close()


def test_the_tail_keeps_the_last_thousand_lines():
    tail = Tail()
    for n in range(5000):
        tail.add(f"line {n}\n")
    lines = tail.text.splitlines()
    assert (len(lines), lines[0], lines[-1]) == (1000, "line 4000", "line 4999")


def test_the_tail_is_bounded_however_long_its_lines_are():
    tail, chance = Tail(), random.Random(1)
    for _ in range(200):
        tail.add("x" * chance.randrange(100_000))
        assert sum(map(len, tail._pieces)) <= 3 * 2**20
    tail.add("\nend")
    assert len(tail.text) <= 2**20
    assert tail.text.endswith("x\nend")


def test_a_tail_of_many_short_lines_copies_what_it_keeps_only_now_and_then(monkeypatch):
    joined, text = [], Tail.text.fget
    monkeypatch.setattr(Tail, "text", property(lambda self: joined.append(1) or text(self)))
    tail = Tail()
    for n in range(100_000):
        tail.add(f"{n}\n")
    assert tail.text.endswith("\n99999\n")
    assert len(joined) < 100


def test_an_empty_tail_is_empty():
    assert Tail().text == ""


def test_a_manager_starts_without_what_only_the_engine_needs():
    program = "import sys, flux_endpoint.engine.workers.manager; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(answer.stdout.split())
    assert "flux_endpoint.engine.workers.manager" in loaded
    assert not {f"flux_endpoint.engine.{part}" for part in ("engine", "backend", "local")} & loaded
    assert "yaml" not in loaded


def test_a_task_that_the_machine_delays_lengthens_no_pause():
    times = TaskTimes()
    for _ in range(40):
        times.add(0.0001)
    times.add(0.5)
    assert times.usual > 0.05
    assert times.least < 0.00012


def test_pauses_follow_tasks_that_are_longer_than_before():
    times = TaskTimes()
    times.add(0.0001)
    for _ in range(100):
        times.add(0.01)
    assert times.usual == pytest.approx(0.01)
    assert times.least == 0.01


LARGE = b"L" * 100_000


@pytest.mark.parametrize(
    ("parts", "frames"),
    [
        ([], 1),
        ([b""], 1),
        ([b"a", b"", b"bc"], 1),
        ([b"a", LARGE, b"b", b"c", LARGE, LARGE], 7),
        ([LARGE, b"", b"end"], 3),
    ],
)
def test_small_parts_of_a_message_share_a_frame(parts, frames):
    sizes, found = combined(parts)
    assert len(found) == frames
    assert [*divided(sizes, found)] == parts
    assert sum(each is LARGE for each in found) == parts.count(LARGE)  # not copied


@pytest.mark.parametrize("frames", [[], [b"ab"], [b"a", b"bcd"]])
def test_a_message_with_other_frames_than_its_sizes_is_an_error(frames):
    with pytest.raises(ValueError, match="frame"):
        list(divided([3], frames))


def test_an_end_that_can_not_be_handled_loses_no_other_of_its_message():
    ended = []

    def take(result):
        if result.task_id == "bad":
            raise KeyError(result.task_id)
        ended.append(result.task_id)

    book = TaskBook(TaskBacklog(0, lambda *_: None), lambda *_: None)
    manager = ManagerRecord("m", 1, None, StartTimes(0.0))
    for name in ("bad", "good"):
        manager.tasks[name] = TaskEntry(EngineTask(name, "f", ""), take)
    sizes, frames = combined([b"1", b"2"])
    report = {"seconds": 1.0, "headers": [{"id": "bad"}, {"id": "good"}], "sizes": sizes}
    book.take_ends(manager, [json.dumps(report).encode(), *frames])
    assert ended == ["good"]


def test_a_formatted_command_that_its_arguments_have_forged_ends(tmp_path):
    submitted = []
    engine = FluxEngine(FluxEngineConfig(), endpoint_id=TASK, directory=tmp_path)
    engine._jobs = SimpleNamespace(submit=lambda task, _: submitted.append(task.buffer))
    engine._index.add(TASK, TaskPlace.FORMATTING, [])
    message = {"message_type": "result", "data": {"task_id": TASK, "data": "no command"}}
    body = b"\x01" + json.dumps(message).encode()
    engine._formatted(EngineTask(TASK, "f", "", {"num_ranks": 1}), EngineResult(TASK, body))
    assert submitted == ["no command"]  # which fails as a job
