"""Futures as `concurrent.futures` and `asyncio` know them."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import logging
import threading
from typing import Any

import pytest

from flux_endpoint import Client, ComputeFuture, Executor
from flux_endpoint.client.backlog import PendingTask, SubmissionBacklog, SubmissionRoute
from flux_endpoint.client.registry import FunctionRegistration

TIMEOUT = 20
ENDPOINT = "00000000-0000-4000-8000-00000000000e"


@pytest.fixture
def stuck(caplog: pytest.LogCaptureFixture) -> Any:
    """An Executor whose submitter tries to reach a service that is not there."""
    client = Client("http://127.0.0.1:9", "token")
    executor = Executor(ENDPOINT, client, give_up_after=float("inf"))
    first = executor.submit(pow, 2, 1)
    taken = threading.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is unreachable" in record.getMessage():
                taken.set()

    heard = Heard()
    logging.getLogger("flux_endpoint").addHandler(heard)
    assert taken.wait(TIMEOUT)
    logging.getLogger("flux_endpoint").removeHandler(heard)
    assert first.running()
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)


def test_a_future_cancelled_before_it_is_sent_ends_every_wait_for_it(stuck: Executor) -> None:
    future, rest = stuck.submit(pow, 2, 2), stuck.submit(pow, 2, 3)
    assert future.cancel()
    assert cf.wait([future], timeout=TIMEOUT).not_done == set()
    assert list(cf.as_completed([future], timeout=TIMEOUT)) == [future]
    assert cf.wait([future, rest], TIMEOUT, cf.FIRST_COMPLETED).done == {future}
    with pytest.raises(cf.CancelledError):
        future.result(TIMEOUT)


def test_a_wait_that_has_begun_ends_with_the_cancellation(stuck: Executor) -> None:
    future = stuck.submit(pow, 2, 2)
    with cf.ThreadPoolExecutor() as pool:
        waits = [pool.submit(cf.wait, [future], TIMEOUT) for _ in range(2)]
        future.cancel()
        assert [wait.result(TIMEOUT).done for wait in waits] == [{future}] * 2


def test_a_shutdown_that_cancels_ends_every_wait(stuck: Executor) -> None:
    futures = [stuck.submit(pow, 2, i) for i in range(5)]
    stuck.shutdown(wait=False, cancel_futures=True)
    assert cf.wait(futures, TIMEOUT).not_done == set()
    assert all(future.cancelled() for future in futures)


def test_callbacks_run_once_if_several_threads_cancel(
    stuck: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    futures = [stuck.submit(pow, 2, i) for i in range(200)]
    start = threading.Barrier(4)

    def cancel() -> None:
        start.wait()
        assert all(future.cancel() for future in futures)

    with cf.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(cancel) for _ in range(4)]:
            done.result(TIMEOUT)
    assert cf.wait(futures, TIMEOUT).not_done == set()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_cancelled_task_frees_its_place_in_the_backlog() -> None:
    backlog = SubmissionBacklog(max_tasks=1)
    route, function = SubmissionRoute("g", "e"), FunctionRegistration("f", function_id="id")
    first, second = (PendingTask(ComputeFuture(), route, function, "x" * n) for n in (1, 2))
    assert backlog.put(first)
    backlog.discard(second.future)  # which is not there
    backlog.discard(first.future)
    assert len(backlog) == 0
    assert backlog.put(second)  # does not wait
    assert backlog.take(10, 100) == [second]


# asyncio.


def test_awaiting_a_future_returns_its_result_without_blocking_the_loop() -> None:
    async def main() -> Any:
        future = ComputeFuture()
        asyncio.get_running_loop().call_later(0.01, future._try_result, 7)
        return await future, await asyncio.gather(future, future)

    assert asyncio.run(main()) == (7, [7, 7])


def test_awaiting_a_future_raises_its_error() -> None:
    async def main() -> None:
        future = ComputeFuture()
        asyncio.get_running_loop().call_later(0.01, future._try_exception, KeyError("x"))
        await future

    with pytest.raises(KeyError, match="x"):
        asyncio.run(main())


def test_cancelling_a_wait_in_asyncio_cancels_an_unsent_task(stuck: Executor) -> None:
    async def main(future: ComputeFuture) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0.01)

    asyncio.run(main(future := stuck.submit(pow, 2, 2)))
    assert future.cancelled()
    asyncio.run(main(running := stuck.submit_to_registered_function(ENDPOINT)))
    assert running.cancelled()


def test_a_task_that_was_sent_survives_the_end_of_a_wait_in_asyncio() -> None:
    future = ComputeFuture()
    assert future._begin()

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0.01)

    asyncio.run(main())
    future._try_result(7)
    assert future.result() == 7


def test_awaiting_a_future_of_a_parent_process_is_refused(run_script: Any) -> None:
    done = run_script("""
        import asyncio, os, sys
        executor = Executor(ENDPOINT)
        future = executor.submit(pow, 2, 1)
        async def main():
            await future
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(main())
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        executor.shutdown(wait=False, cancel_futures=True)
    """)
    said, status = done.stdout.splitlines()
    assert "its result arrives there" in said
    assert status == "3"


def test_the_repr_names_task_and_state() -> None:
    future = ComputeFuture()
    assert repr(future) == "<ComputeFuture task=None state=pending>"
    future.task_id = "f6f5ea0c-9a47-4c7c-8f5c-ecd8c0e3f2b1"
    future.set_running_or_notify_cancel()
    assert repr(future) == f"<ComputeFuture task={future.task_id} state=running>"
    future.set_result(1)
    assert repr(future) == f"<ComputeFuture task={future.task_id} state=finished returned int>"
    failed = ComputeFuture("t")
    failed.set_exception(ValueError())
    assert repr(failed) == "<ComputeFuture task=t state=finished raised ValueError>"
