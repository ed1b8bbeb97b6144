"""A forked child has its parent's objects, and none of their threads: it is told so."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

FORKED = """
    import os, sys, traceback
    executor = Executor(ENDPOINT)
    future = executor.submit(pow, 2, 1)
    assert future.wait_submitted(30)
    child = os.fork()
    if child == 0:
        try:
            {code}
        except RuntimeError as error:
            print(error, flush=True)
        sys.exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), child, os.getpid())
    executor.shutdown(wait=False, cancel_futures=True)
"""


def test_submitting_in_the_child_is_refused_with_what_to_do(run_script: Any) -> None:
    done = run_script(FORKED.format(code="executor.submit(pow, 2, 2)"))
    assert done.returncode == 0, done.stderr
    said, ended = done.stdout.splitlines()
    status, child, parent = ended.split()
    assert status == "3"  # it ended, and by itself
    assert said == (
        f"this Executor was created in process {parent}. This process {child} is a fork of it, "
        "without its threads and connections. Create an Executor here, or start processes with "
        "multiprocessing.get_context('spawn')"
    )


def test_waiting_in_the_child_is_refused_instead_of_hanging(run_script: Any) -> None:
    done = run_script(FORKED.format(code="future.result()"))
    assert "its result arrives there" in done.stdout.splitlines()[0]
    assert "reload_tasks()" in done.stdout


def test_the_child_does_not_end_its_parents_executor(run_script: Any) -> None:
    done = run_script(FORKED.format(code="executor.shutdown(); del executor; print('left')"))
    assert done.stdout.splitlines()[0] == "left"
    assert done.stdout.splitlines()[1].startswith("3 ")


def test_the_child_may_make_an_executor_of_its_own(run_script: Any) -> None:
    code = "print(Executor(ENDPOINT).submit(pow, 2, 2).wait_submitted(30) is not None, flush=True)"
    done = run_script(FORKED.format(code=code))
    assert done.stdout.splitlines()[0] == "True"
    assert done.stdout.splitlines()[1].startswith("3 ")


#: A fork while another thread has all locks that the Executors of a process share.
FORK_AMID = """\
    import threading
    from flux_endpoint.client import future as futures, streams
    locked, forked = threading.Event(), threading.Event()
    def hold():
        with streams._shared.lock, futures._recording, futures._submitted:
            locked.set()
            forked.wait()
    os.register_at_fork(before=lambda: (threading.Thread(target=hold).start(), locked.wait()))
    os.register_at_fork(after_in_parent=forked.set)
    child = os.fork()
"""


def test_the_child_does_not_wait_for_locks_held_by_other_threads_at_the_fork(
    run_script: Any,
) -> None:
    own = "Executor(ENDPOINT).submit(pow, 2, 2).add_jobid_callback(id)"
    code = f"print({own}.wait_submitted(30) is not None, flush=True)"
    amid = FORKED.replace("    child = os.fork()\n", FORK_AMID)
    done = run_script(amid.format(code=code))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "True"
    assert done.stdout.splitlines()[1].startswith("3 ")


def test_a_client_opens_new_connections_in_the_child(service: Any, run_script: Any) -> None:
    done = run_script("""
        import os, sys
        client, task = Client(), "00000000-0000-4000-8000-000000000001"
        client.get_task(task)
        child = os.fork()
        client.get_task(task)
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert done.returncode == 0, done.stderr
    before, *after = (request.peer for request in service.seen("/v2/tasks/"))
    assert after.count(before) == 1  # the parent's
    assert len(after) == 2


#: A fork while another thread has the locks of one future.
FORK_AMID_ITS_END = """\
    import threading
    record = future._job_record()
    locked, forked = threading.Event(), threading.Event()
    def hold():
        with future._condition, record._settled, executor._submitter._lock:
            locked.set()
            forked.wait()
    os.register_at_fork(before=lambda: (threading.Thread(target=hold).start(), locked.wait()))
    os.register_at_fork(after_in_parent=forked.set)
    child = os.fork()
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("future.result()", "its result arrives there"),
        ("print(future.done(), future.cancelled())", "False False"),
        ("executor.__exit__(ValueError, None, None); print('left')", "left"),
    ],
)
def test_the_child_does_not_wait_for_the_lock_of_a_future(
    run_script: Any, code: str, said: str
) -> None:
    amid = FORKED.replace("    child = os.fork()\n", FORK_AMID_ITS_END)
    done = run_script(amid.format(code=code))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1].startswith("3 ")


def test_waiting_in_the_child_for_a_tasks_id_is_refused(run_script: Any) -> None:
    waits = FORKED.replace(
        "    assert future.wait_submitted(30)\n", "    future = ComputeFuture()\n"
    )
    script = textwrap.dedent(waits.format(code="future.wait_submitted()"))
    done = run_script(f"from flux_endpoint import ComputeFuture\n{script}")
    assert "its result arrives there" in done.stdout.splitlines()[0]
