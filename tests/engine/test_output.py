"""What functions print comes with their results, and reaches one log, on either executor."""

from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.engine.output import LogAllowance, OutputLog
from flux_endpoint.engine.results import body_of, with_output
from flux_endpoint.engine.tail import StreamTail
from flux_endpoint.engine.task import Value
from flux_endpoint.engine.workers import output_reader
from flux_endpoint.engine.workers.output_reader import OutputReader
from flux_endpoint.engine.workers.pipes import WorkerPipes
from flux_endpoint.paths import OUTPUT_LOG
from waiting import until


def printed(directory):
    path = directory / OUTPUT_LOG
    return path.read_text(errors="replace") if path.exists() else ""


def prints(text):
    import os
    import sys

    print(text, "to standard output \udcff")
    print(text, "to standard error", file=sys.stderr)
    os.write(1, f"{text} of a library in C\n".encode())
    os.system(f"echo {text} of a command")


def prints_and_ends(text):
    import os

    print(text)
    os._exit(3)


def prints_much(lines):
    for number in range(lines):
        print(f"line {number} ".ljust(1000, "x"))


def prints_its_number(number):
    """Print something if the number is even, in one of five ways."""
    import ctypes
    import os
    import sys

    match number % 10:
        case 0:
            print("number", number)
        case 2:
            print("number", number, file=sys.stderr, end="")
        case 4:
            ctypes.CDLL(None).printf(b"number %d", ctypes.c_int(number))  # buffered by C
        case 6:
            os.system(f"echo number {number}")
        case 8:
            print("number", number, file=os.fdopen(1, "w", closefd=False), flush=True)
    return number


def prints_until(path, lines):
    """Print lines, then wait for a file, then print one more and raise."""
    import sys
    import time
    from pathlib import Path

    for number in range(lines):
        print(f"line {number} ä".ljust(100, "x"))
        print(number, file=sys.stderr)
    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    sys.stdout.write("the end")
    raise ValueError("bad")


def prints_and_returns_much(size):
    import time

    print("first")
    time.sleep(0.2)  # meanwhile its manager becomes the reader
    print("last")
    return "x" * size


def closes_everything():
    import os

    print("before")
    os.closerange(0, 2000)


def leaves_a_thread():
    import threading

    threading.Thread(target=threading.Event().wait, name="left").start()


def test_the_output_of_functions_is_in_the_endpoints_log(make_world, tmp_path):
    world = make_world()

    world.call(prints, "first")

    for words in ("output \\udcff", "error", "library in C", "command"):
        until(lambda words=words: words in printed(tmp_path))


def test_each_result_brings_the_output_of_its_task(make_world):
    world = make_world()
    tasks = [world.submit(prints_its_number, number) for number in range(200)]

    for number, end in enumerate(world.ends(tasks)):
        details = end.message.details
        text = f"number {number}" + "\n" * (number % 10 in (0, 6, 8))
        stream, other = ("stderr", "stdout") if number % 10 == 2 else ("stdout", "stderr")
        assert end.value == number
        assert details.get(stream, "") == ("" if number % 2 else text)
        assert other not in details


def test_a_long_task_brings_the_end_of_its_output_whatever_its_end(make_world, tmp_path):
    world = make_world(output_limit="10K")
    end = tmp_path / "end"
    failing = world.submit(prints_until, str(end), 2000)
    ended = world.submit(prints_until, str(tmp_path / "never"), 5)
    until(lambda: "line 1999" in printed(tmp_path) and printed(tmp_path).count("line 4 ") > 1)
    world.engine.cancel(ended)
    end.touch()

    whole = "".join(f"line {number} ä".ljust(100, "x") + "\n" for number in range(2000)) + "the end"
    details = world.end(failing).message.details
    assert world.end(failing).text.endswith("ValueError: bad\n")
    assert 9_000 < len(details["stdout"]) <= 10_240
    assert details["stdout"].startswith("line ")
    assert whole.encode()[details["stdout_dropped"] :].decode() == details["stdout"]
    assert details["stderr"] == "".join(f"{number}\n" for number in range(2000))
    assert "stderr_dropped" not in details
    assert world.end(ended).code == "TaskCancelled"
    assert world.end(ended).message.details["stderr"] == "0\n1\n2\n3\n4\n"
    # Its next task has nothing of it.
    assert world.call(prints_its_number, 0).message.details["stdout"] == "number 0\n"
    # Its manager reads on while the large result arrives.
    assert world.call(prints_and_returns_much, 8 << 20).message.details["stdout"] == "first\nlast\n"


def test_the_last_output_of_a_lost_worker_is_in_its_tasks_end(make_world):
    world = make_world(output_limit=0)
    assert "stdout" not in world.call(prints_its_number, 0).message.details
    world.stop()
    world = make_world()

    end = world.call(prints_and_ends, "last words")
    assert end.code == "WorkerLost"
    assert end.message.details["stdout"] == "last words\n"
    assert world.call(closes_everything).message.details["stdout"] == "before\n"


def test_the_output_of_ranks_is_in_the_endpoints_log(make_world, tmp_path):
    world = make_world()

    end = world.call(prints, "on a rank", spec={"num_ranks": 1})
    assert end.value == [None]
    streams = [end.message.details[name].splitlines() for name in ("stdout", "stderr")]
    assert sorted(streams[0])[:2] == ["on a rank of a command", "on a rank of a library in C"]
    assert streams[1] == ["on a rank to standard error"]
    assert "stdout_dropped" not in end.message.details

    until(lambda: "on a rank to standard output" in printed(tmp_path))
    assert "on a rank to standard error" in printed(tmp_path)


def test_the_output_is_kept_after_the_workers_ended(make_world, tmp_path):
    world = make_world()
    world.call(prints, "before the end")
    world.stop()

    assert "before the end to standard output" in printed(tmp_path)
    assert list((tmp_path / "engine").glob("workers-*.log")) == []


def test_the_last_output_of_a_lost_worker_is_in_the_log(make_world, tmp_path):
    world = make_world()

    assert world.call(prints_and_ends, "last words").code == "WorkerLost"

    until(lambda: "last words\n" in printed(tmp_path))


def test_the_reason_for_replacing_a_worker_is_in_the_log(make_world, tmp_path):
    world = make_world()

    world.call(leaves_a_thread)

    until(lambda: "is replaced: a task has left the thread left running" in printed(tmp_path))


def test_a_function_that_prints_much_ends_and_the_log_stays_small(make_world, tmp_path):
    world = make_world()

    assert world.call(prints_much, 30_000).code is None
    world.stop()

    files = list(tmp_path.glob(f"{OUTPUT_LOG}*"))
    assert sum(path.stat().st_size for path in files) <= 2 * (5 << 20)
    assert "line " in "".join(path.read_text() for path in files)
    assert "were dropped here" in "".join(path.read_text() for path in files)


# The log


@pytest.fixture
def log(tmp_path):
    log = OutputLog(tmp_path / OUTPUT_LOG, 1000)
    yield log
    log.close()


def test_a_full_log_is_rotated(log, tmp_path):
    for number in range(100):
        log.write(f"{number:099}\n".encode())
    log.close()

    current, before = tmp_path / OUTPUT_LOG, tmp_path / f"{OUTPUT_LOG}.1"
    assert current.stat().st_size <= 1000
    assert before.stat().st_size <= 1000
    assert current.read_text().endswith("99\n")
    assert {path.name for path in tmp_path.iterdir()} == {current.name, before.name}
    assert current.stat().st_mode & 0o777 == 0o600


def test_a_chunk_larger_than_the_log_is_cut_to_its_end(log, tmp_path):
    log.write(b"x" * 5500 + b"the end")
    log.close()

    assert (tmp_path / OUTPUT_LOG).read_bytes().endswith(b"xthe end")
    assert (tmp_path / f"{OUTPUT_LOG}.1").stat().st_size == 1000


def test_an_unwritable_log_affects_no_task(tmp_path, caplog):
    log = OutputLog(tmp_path / "missing" / OUTPUT_LOG)
    log.write(b"one")
    log.write(b"two")
    log.close()

    assert caplog.text.count("can't write functions' output") >= 1
    assert "missing" in caplog.text


def test_output_beyond_the_rate_limit_is_dropped_and_counted():
    allowance = LogAllowance()
    written = 40 * (1 << 18)  # 10 MiB at once, as far as this machine is concerned
    taken = b"".join(allowance.cut(b"x" * (1 << 18)) for _ in range(40)) + allowance.note()

    counted = sum(int(part.split(b" ")[0]) for part in taken.split(b"[")[1:])
    assert taken.count(b"x") + counted == written
    assert b"were dropped here" in taken


# A manager's side


class Heard:
    """What a reader of output has reported."""

    def __init__(self):
        self.log = b""
        self.parts = []

    def printed(self, data):
        self.log += data

    def followed(self, task_id, streams):
        self.parts.append((task_id, streams))


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def reader(heard):
    return OutputReader(1000, heard)


@pytest.fixture
def pipes():
    pipes = WorkerPipes.new()
    yield pipes
    pipes.leave_writing_to_others()


def test_output_that_waits_to_be_reported_is_forgotten_with_its_worker(
    reader, heard, pipes, monkeypatch
):
    monkeypatch.setattr(output_reader, "_REPORT_PAUSE", 3600.0)
    output = reader.add(pipes)
    reader.follow({"id": "task", "seconds": 3600, "known": (0, 0)}, output)
    assert output.become_reader()
    for text in (b"one", b"two"):
        os.write(pipes.writers[0], text)
        output.read()
        reader.belongs_to("task", output)
    assert heard.parts == [("task", {"stdout": (0, 3, "one")})]
    assert min(reader.moments()) < math.inf

    assert reader.lost(output) == {"stdout": "onetwo"}
    assert min(reader.moments()) == math.inf
    assert reader.read_due() == []


def test_more_than_one_report_takes_is_reported_later_without_more_output(heard, pipes):
    reader = OutputReader(200_000, heard)
    output = reader.add(pipes)
    reader.follow({"id": "task", "seconds": 3600, "known": (0, 0)}, output)
    output._add([b"x" * 100_000, b""])
    reader.report("task", output)
    until(reader.read_due)
    reader.report("task", output)
    assert [streams["stdout"][:2] for _, streams in heard.parts] == [(0, 65_536), (65_536, 100_000)]
    assert min(reader.moments()) == math.inf


def test_a_task_is_followed_on_where_no_more_can_be_followed(heard, reader, pipes, monkeypatch):
    monkeypatch.setattr(output_reader, "MOST_FOLLOWED", 1)
    output = reader.add(pipes)
    output._add([b"one", b""])
    for task_id, position in (("task", 0), ("task", 1), ("other", 0)):
        reader.follow({"id": task_id, "seconds": 3600, "known": (position, 0)}, output)
    expected = [("task", {"stdout": (0, 3, "one")}), ("task", {"stdout": (1, 3, "ne")})]
    assert heard.parts == expected


def test_a_task_that_fills_the_counter_of_readers_does_not_end_its_manager(reader, pipes):
    output = reader.add(pipes)
    assert output.become_reader()
    os.eventfd_write(pipes.token, 2**64 - 2)
    output.give_up()
    assert output.become_reader()


# Text


@given(st.lists(st.binary(max_size=60), max_size=30), st.integers(0, 50))
def test_the_kept_end_of_a_stream_is_the_end_of_its_text(pieces, most):
    tail = StreamTail(most)
    for piece in pieces:
        tail.add(piece)
    whole = b"".join(pieces)

    assert tail.data == whole[tail.dropped :]
    assert len(tail.data) <= most
    assert tail.total == len(whole)
    assert tail.text == tail.data.decode(errors="backslashreplace")
    if len(whole) <= most:
        assert tail.data == whole


@given(st.text(), st.integers(0, 50))
def test_no_character_is_cut_in_two(text, most):
    tail = StreamTail(most)
    tail.add(text.encode(errors="replace"))

    assert tail.data.decode() == tail.text


@given(st.dictionaries(st.sampled_from(["stdout", "stderr"]), st.text()), st.text())
def test_output_is_added_to_the_details_of_any_result(printed, value):
    value += ',"details":{'
    body = body_of("id", Value(value), {"node": 'n,"details":{'}, [])
    message = json.loads(with_output(body, printed)[1:])["data"]

    assert message.pop("details") == {"node": 'n,"details":{', **printed}
    assert message["data"] == value


def test_output_is_added_only_where_there_are_details():
    for details in ("null", "{}", "{ }"):
        body = b'\x01{"data":{"task_id":"1","details":%s}}' % details.encode()
        message = json.loads(with_output(body, {"stdout": "x"})[1:])
        assert message["data"]["details"] in (None, {"stdout": "x"})
