"""A forked child has its parent's objects, and none of their threads: it is told so."""

from __future__ import annotations

from typing import Any

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
        f"this Executor was made in process {parent}, of which this process {child} is a fork: its "
        "threads and connections stayed there. Make an Executor here, or start processes with "
        "multiprocessing.get_context('spawn')"
    )


def test_waiting_in_the_child_is_refused_instead_of_hanging(run_script: Any) -> None:
    done = run_script(FORKED.format(code="future.result()"))
    assert "its result arrives there" in done.stdout.splitlines()[0]
    assert "reload_tasks()" in done.stdout


def test_the_child_leaves_its_parents_executor_alone(run_script: Any) -> None:
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
    from flux_endpoint.client import event_streams, future as futures, streams
    locked, forked = threading.Event(), threading.Event()
    def hold():
        with event_streams._shared.lock, streams._shared.lock:
            with futures._recording, futures._submitted:
                locked.set()
                forked.wait()
    os.register_at_fork(before=lambda: (threading.Thread(target=hold).start(), locked.wait()))
    os.register_at_fork(after_in_parent=forked.set)
    child = os.fork()
"""


def test_the_child_waits_for_no_lock_that_another_thread_of_its_parent_has(run_script: Any) -> None:
    own = "Executor(ENDPOINT).submit(pow, 2, 2).add_jobid_callback(id)"
    code = f"print({own}.wait_submitted(30) is not None, flush=True)"
    amid = FORKED.replace("    child = os.fork()\n", FORK_AMID)
    done = run_script(amid.format(code=code))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "True"
    assert done.stdout.splitlines()[1].startswith("3 ")
