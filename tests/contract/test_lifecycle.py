"""An executor from its start to its end."""

from __future__ import annotations

import threading

import pytest
from worlds import PATIENCE, Gate, Recorder, shell, text


def test_leaving_the_context_waits_for_all_futures(world):
    with world.new_executor() as executor:
        futures = [executor.submit(shell("exit 2")) for _ in range(3)]
    assert [future.result(0) for future in futures] == [2, 2, 2]
    assert not executor._broken_event.is_set()


def test_leaving_the_context_waits_for_all_events(world):
    with world.new_executor() as executor:
        recorder = Recorder(executor.submit(text("true")))
    assert recorder.names[-1] == "clean"


def test_after_shutdown_there_are_no_new_futures(world):
    executor = world.new_executor()
    executor.shutdown(wait=True)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(text("true"))
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.attach(5)
    executor.shutdown()  # again


def test_shutdown_need_not_wait(world):
    executor = world.new_executor()
    future = executor.submit(shell("exit 2"))
    executor.shutdown(wait=False)
    assert future.result(PATIENCE) == 2
    executor.shutdown(wait=True)


def test_a_broken_executor_says_so(world):
    with world.new_executor() as executor:
        executor._broken_event.set()
        for call in (lambda: executor.submit(text("true")), lambda: executor.attach(5)):
            with pytest.raises(RuntimeError, match="Executor is broken, new futures cannot be"):
                call()


def test_threads_are_named_and_end(world, tmp_path):
    def mine() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("contract")]

    with world.new_executor(threads=2, thread_name_prefix="contract") as executor:
        names, go = Gate(), tmp_path / "go"
        for _ in range(2):
            # Whoever adds a callback after the end calls it.
            future = executor.submit(shell(f"while [ ! -e {go} ]; do sleep 0.05; done"))
            future.add_done_callback(lambda _: names(threading.current_thread().name))
        go.touch()
        assert {names.wait(), names.wait()} == {("contract-0",), ("contract-1",)}
    assert mine() == []


def test_a_negative_number_of_threads_is_refused(world):
    with pytest.raises(ValueError, match="the number of threads must be > 0"):
        world.new_executor(threads=-1)


def test_a_garbage_collected_executor_ends_its_threads(world):
    executor = world.new_executor(thread_name_prefix="forgotten")
    future = executor.submit(text("true"))
    del executor
    assert future.result(PATIENCE) == 0
    for thread in threading.enumerate():
        if thread.name.startswith("forgotten"):
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_a_hundred_jobs_all_end(world):
    with world.new_executor(threads=2) as executor:
        futures = [executor.submit(shell(f"exit {i % 7}")) for i in range(100)]
    assert [future.result(0) for future in futures] == [i % 7 for i in range(100)]
