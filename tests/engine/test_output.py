"""What Python functions print reaches one log of the endpoint, on either executor."""

from __future__ import annotations

import os

import pytest

from flux_endpoint.engine.output import OutputLog, OutputPipe
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


def leaves_a_thread():
    import threading

    threading.Thread(target=threading.Event().wait, name="left").start()


def test_the_output_of_functions_is_in_the_endpoints_log(make_world, tmp_path):
    world = make_world()

    world.call(prints, "first")

    for words in ("output \\udcff", "error", "library in C", "command"):
        until(lambda words=words: words in printed(tmp_path))


def test_the_output_of_ranks_is_in_the_endpoints_log(make_world, tmp_path):
    world = make_world()

    assert world.call(prints, "on a rank", spec={"num_ranks": 1}).value == [None]

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
    assert "line 0 " in "".join(path.read_text() for path in sorted(files))
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
    pipe = OutputPipe()
    taken = b""
    written = 0
    for _ in range(40):  # 10 MiB at once, as far as this machine is concerned
        for _ in range(4):
            written += len(b"x" * (1 << 16))
            os.write(pipe.writer, b"x" * (1 << 16))
            taken += pipe.take()
    pipe.leave_writing_to_others()
    taken += pipe.take()

    counted = sum(int(part.split(b" ")[0]) for part in taken.split(b"[")[1:])
    assert taken.count(b"x") + counted == written
    assert pipe.ended
    pipe.leave_reading_to_others()
