"""What a task does to its worker's process does not reach the next task, on either executor."""

from __future__ import annotations

import psutil
import pytest
from engine_world import PATIENCE

from flux_endpoint.functions import ShellFunction
from waiting import until


@pytest.fixture(scope="module")
def one_worker(kind, tmp_path_factory):
    """An engine whose tasks all run on one worker, or on the one that takes its place."""
    from engine_world import World

    local = {"local_nodes": 1, "local_cores_per_node": 1} if kind == "local" else {}
    world = World(kind, tmp_path_factory.mktemp("endpoint"), max_workers=1, min_workers=1, **local)
    yield world
    world.stop()


def pid():
    import os

    return os.getpid()


def state():
    """Return what the worker's process is like for a task, in plain data."""
    import gc
    import locale
    import os
    import resource
    import signal
    import sys
    import time
    from pathlib import Path

    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    per_task = ("GC_TASK_UUID", "GC_TASK_SANDBOX_DIR")
    return {
        "handlers": {
            int(number): str(signal.getsignal(number))
            for number in signal.valid_signals()
            if number != signal.SIGALRM  # the walltime's
        },
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "timers": [signal.getitimer(which)[0] for which in range(3)],
        "umask": (os.umask(0o77), os.umask(0o22))[0],
        "locale": locale.setlocale(locale.LC_ALL),
        "zone": time.tzname,
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in names},
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cpus": sorted(os.sched_getaffinity(0)),
        "environment": {k: v for k, v in os.environ.items() if k not in per_task},
        "directory": str(Path.cwd()),
        "files": [
            str(Path(f"/proc/self/fd/{number}").readlink()).partition(":")[0] for number in range(3)
        ],
        "streams": [(s.fileno(), s.closed) for s in (sys.stdin, sys.stdout, sys.stderr)],
        "path": sys.path,
        "trace": (str(sys.gettrace()), str(sys.getprofile())),
        "recursion": sys.getrecursionlimit(),
        "collects": gc.isenabled(),
    }


def ignores_children():
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def ignores_children_in_c():
    import ctypes
    import signal

    ctypes.CDLL(None).signal(int(signal.SIGCHLD), ctypes.c_void_p(1))


def ignores_signals():
    import signal

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def blocks_signals():
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGALRM})
    signal.raise_signal(signal.SIGALRM)


def arms_timers():
    import faulthandler
    import signal

    signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
    signal.setitimer(signal.ITIMER_REAL, 1000, 0)
    signal.setitimer(signal.ITIMER_PROF, 1000, 0)
    faulthandler.dump_traceback_later(1000, exit=True)


def closes_streams():
    import sys

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def detaches_streams():
    import sys

    sys.stdout.detach()
    sys.stderr = None


def replaces_streams():
    import io
    import sys

    sys.stdout, sys.stderr, sys.stdin = io.StringIO(), object(), None


def closes_descriptors():
    import os

    for number in range(3):
        os.close(number)


def redirects_descriptors():
    import os
    from pathlib import Path

    with Path("somewhere.txt").open("w") as file:
        for number in range(3):
            os.dup2(file.fileno(), number)


def lowers_soft_limits():
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    resource.prlimit(0, resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def lowers_hard_limits():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def changes_the_rest():
    import gc
    import locale
    import os
    import sys
    import time

    os.umask(0o777)
    locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")
    os.environ["TZ"] = "Pacific/Apia"
    time.tzset()
    os.environ["SOMETHING"] = "new"
    os.putenv("BESIDE", "os.environ")
    os.environ["PATH"] = "/nowhere"
    del os.environ["HOME"]
    os.chdir("/")
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    sys.setrecursionlimit(200)
    gc.disable()


def replaces_the_environment():
    import os

    os.environ.clear()
    os.environ = {"PATH": "/nowhere"}  # noqa: B003


def changes_its_priority():
    import os

    os.nice(1)


def changes_its_cpus():
    import os

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def leaves_descriptors():
    import os
    import resource

    for _ in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 + 50):
        os.open("/dev/null", os.O_RDONLY)


def leaves_a_thread():
    import threading

    threading.Thread(target=threading.Event().wait, name="left").start()


DISTURBING = [
    ignores_children,
    ignores_children_in_c,
    ignores_signals,
    blocks_signals,
    arms_timers,
    closes_streams,
    detaches_streams,
    replaces_streams,
    closes_descriptors,
    redirects_descriptors,
    lowers_soft_limits,
    lowers_hard_limits,
    changes_the_rest,
    replaces_the_environment,
    changes_its_priority,
    changes_its_cpus,
    leaves_a_thread,
]


@pytest.mark.parametrize("disturb", DISTURBING, ids=lambda function: function.__name__)
def test_the_next_task_gets_the_process_in_its_initial_state(one_worker, disturb):
    before = one_worker.call(state).value

    assert one_worker.call(disturb).value is None

    assert one_worker.call(state).value == before


@pytest.mark.parametrize("ignore", [ignores_children, ignores_children_in_c])
def test_an_exit_code_is_itself_after_a_task_that_ignored_sigchld(one_worker, ignore):
    one_worker.call(ignore)

    assert one_worker.call(ShellFunction("exit 7")).value.returncode == 7


def prints():
    import sys

    print("to standard output")
    print("to standard error \udcff", file=sys.stderr)
    return sys.stdin.read()


@pytest.mark.parametrize("disturb", [closes_streams, replaces_streams, closes_descriptors])
def test_a_task_can_print_after_one_that_took_the_streams(one_worker, disturb):
    one_worker.call(disturb)

    assert one_worker.call(prints).value == ""


def environment_of_a_command():
    import subprocess

    return subprocess.run(["env"], capture_output=True, text=True, check=True).stdout


def test_a_command_does_not_see_what_a_function_set(one_worker):
    one_worker.call(changes_the_rest)

    text = one_worker.call(environment_of_a_command).value

    assert "SOMETHING=" not in text
    assert "BESIDE=" not in text
    assert "PATH=/nowhere" not in text


def rings_when_the_task_has_ended():
    import signal

    def ring(*_):
        raise RuntimeError("too late")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)


def test_a_timer_of_a_task_ends_with_it(one_worker):
    same = one_worker.call(pid).value
    for _ in range(20):
        end = one_worker.call(rings_when_the_task_has_ended)
        assert end.code is None or "too late" in end.text

    assert one_worker.call(pid).value == same


# What stays.


def imports_a_module_with_a_thread(directory):
    import os
    import pathlib
    import sys

    pathlib.Path(directory, "with_a_thread.py").write_text(
        "import threading\n"
        "threading.Thread(target=threading.main_thread().join, name='of the module').start()\n"
    )
    sys.path.insert(0, directory)
    import with_a_thread  # noqa: F401

    return os.getpid()


def test_a_thread_started_by_an_import_does_not_replace_the_worker(one_worker, tmp_path):
    first = one_worker.call(imports_a_module_with_a_thread, str(tmp_path)).value
    assert [one_worker.call(pid).value for _ in range(3)] == [first] * 3


def remember(directory):
    import os
    import sys
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    Path(directory, "kept_by_worker.py").write_text(
        "import os\nos.environ['SET_BY_IMPORT'] = 'yes'\nvalues = []\n"
    )
    sys.path.insert(0, directory)
    sys.path.insert(0, directory)
    import kept_by_worker

    os.environ["SET_BY_TASK"] = "yes"
    kept_by_worker.values.append(os.open("/dev/null", os.O_RDONLY))
    kept_by_worker.pool = ThreadPoolExecutor(1)
    kept_by_worker.pool.submit(int).result()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return os.getpid()


def recall():
    import os
    import sys

    import kept_by_worker

    os.fstat(kept_by_worker.values[0])
    return (
        os.getpid(),
        kept_by_worker.pool.submit(os.environ.get, "SET_BY_IMPORT").result(),
        os.environ.get("SET_BY_TASK"),
        len(sys.path) - len(set(sys.path)),
    )


def test_modules_and_their_globals_are_kept(one_worker, tmp_path):
    same = one_worker.call(remember, str(tmp_path)).value

    assert one_worker.call(recall).value == (same, "yes", None, 0)


def lose_path(how):
    import sys

    if how == "emptied":
        sys.path[:] = []
    elif how == "shortened and lengthened":
        sys.path[1:] = [f"/nowhere/{number}" for number in range(len(sys.path) - 1)]
    else:
        sys.path = how


def import_late():
    import colorsys

    return colorsys.__name__


@pytest.mark.parametrize("how", ["emptied", "shortened and lengthened", None, ("/nowhere", 1, [])])
def test_the_module_search_path_is_restored(one_worker, how):
    one_worker.call(lose_path, how)

    assert one_worker.call(import_late).value == "colorsys"


# What can't be put back.


@pytest.mark.parametrize("disturb", [blocks_signals, changes_its_priority, leaves_a_thread])
def test_a_worker_that_cannot_be_restored_is_replaced(one_worker, disturb):
    before = one_worker.call(pid).value

    assert one_worker.call(disturb).code is None

    assert one_worker.call(pid).value != before


def test_leaked_descriptors_are_closed_by_replacing_the_worker(one_worker):
    for _ in range(3):
        assert one_worker.call(leaves_descriptors).code is None


def spins():
    import os
    import threading

    def spin():
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()
    return os.getpid()


def test_a_worker_with_a_busy_thread_is_replaced(one_worker):
    spinning = one_worker.call(spins).value

    until(lambda: not psutil.pid_exists(spinning), PATIENCE)

    assert one_worker.call(pid).value != spinning


def test_tasks_sent_ahead_to_a_worker_that_leaves_run_once_each(one_worker, tmp_path):
    one_worker.ends([one_worker.submit(pid) for _ in range(200)])  # short: several at a time
    record = tmp_path / "runs"

    ids = [one_worker.submit(leaves_a_thread_and_notes, str(record), i) for i in range(60)]

    assert all(end.code is None for end in one_worker.ends(ids))
    assert sorted(map(int, record.read_text().split())) == list(range(60))


def leaves_a_thread_and_notes(record, number):
    import threading
    from pathlib import Path

    if number % 5 == 0:
        threading.Thread(target=threading.Event().wait).start()
    with Path(record).open("a") as file:
        file.write(f"{number}\n")


def closes_everything():
    import os

    os.closerange(3, 4096)
    return [os.open("victim.txt", os.O_CREAT | os.O_RDWR) for _ in range(600)]


def test_a_task_that_closes_its_workers_connection_fails_with_the_reason(one_worker):
    end = one_worker.call(closes_everything)

    assert "closed a descriptor that was not its own" in end.text
    assert one_worker.call(pid).code is None
