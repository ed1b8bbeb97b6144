"""The end of the allocation: a Flux instance of the test's own, whose broker is killed."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from engine_world import PATIENCE, World, buffer_of, fresh_seconds, marked, processes

from flux_endpoint.engine.flux_backend import FluxBackend, local_uri
from flux_endpoint.engine.instance_state import (
    Fate,
    InstanceCondition,
    InstancePhase,
    InstanceState,
)
from flux_endpoint.engine.jobs.runner import JobRunner
from flux_endpoint.engine.lifeline import Lifeline, quiet_executors
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_instance import FluxInstance
from waiting import until

pytestmark = [
    pytest.mark.flux,
    # FluxExecutor's own thread ends with an exception when its broker is gone.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ONE_RANK = {"num_nodes": 1, "ranks_per_node": 1}
TWO_NODES = {"num_nodes": 2, "ranks_per_node": 1}
#: More than an instance of two nodes has left beside a worker.
ALL_NODES = {"num_nodes": 2, "ranks_per_node": 1, "exclusive": True}


@pytest.fixture(autouse=True)
def no_late_finalizers() -> Iterator[None]:
    """Flux's futures fail when they are collected after their broker: here, and not at any time.

    Python 3.11 compiles the failing lines to show them, which breaks a compilation under way.
    """
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("jobs-"):
            thread.join(PATIENCE)
    gc.collect()


@pytest.fixture
def new_instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], FluxInstance]]:
    """Makes instances of two brokers; `FLUX_URI` names the latest."""
    with ExitStack() as stack:

        def make() -> FluxInstance:
            instance = stack.enter_context(FluxInstance(size=2))
            monkeypatch.setenv("FLUX_URI", instance.uri)
            return instance

        yield make


@pytest.fixture
def instance(new_instance: Callable[[], FluxInstance]) -> FluxInstance:
    return new_instance()


def say_and_sleep(path: str) -> None:
    import time
    from pathlib import Path

    Path(path).touch()
    time.sleep(300)


def negative(number: int) -> int:
    return -number


def started(path: Path) -> Callable[[], bool]:
    return path.exists


def wait_for(started: str, go: str) -> str:
    from pathlib import Path

    Path(started).touch()
    Path(go).read_text()
    return "ran"


class Waiting:
    """A function and a job that say when they are running, and wait to be let go."""

    def __init__(self, directory: Path) -> None:
        self._started = [directory / f"{name}-started" for name in ("function", "job")]
        self._go = [directory / f"{name}-go" for name in ("function", "job")]
        for path in self._go:
            os.mkfifo(path)
        self.function = buffer_of(wait_for, str(self._started[0]), str(self._go[0]))
        command = f"touch {self._started[1]}; read line < {self._go[1]}; echo ran"
        self.job = buffer_of(MPIFunction(command))

    def await_start(self) -> None:
        for path in self._started:
            until(started(path))
            path.unlink()

    def let_go(self) -> None:
        for path in self._go:
            path.write_text("\n")


@contextmanager
def stopping(world: World) -> Iterator[None]:
    """Meanwhile the engine stops, with a long grace; at the end, it has to have stopped."""
    thread = threading.Thread(target=world.stop, args=(600.0,), daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the engine hangs"


def stop_soon(world: World) -> None:
    """Stop an engine that has lost its instance: nothing must keep it."""
    with stopping(world):
        pass


def test_running_tasks_fail_with_the_reason_when_the_instance_is_lost(
    instance: FluxInstance, tmp_path: Path, mark: str
) -> None:
    world = World("flux", tmp_path, max_nodes=1, workers_per_node=1)
    function = world.submit(say_and_sleep, str(tmp_path / "function"))
    seconds = fresh_seconds()
    job = world.submit(MPIFunction(f"sleep {seconds}"), spec=ONE_RANK)
    until(started(tmp_path / "function"))
    world.event(job, "start")
    until(lambda: processes(seconds))
    instance.kill()
    assert f"the Flux instance at {instance.uri} is gone" in world.wait_lost()
    for task, kind in ((function, "WorkerLost"), (job, "JobLost")):
        end = world.end(task)
        assert end.code == "WorkerLost"
        assert end.text.startswith(f"{kind}: the Flux instance at {instance.uri} is gone")
    stop_soon(world)
    assert len(world.lost) == 1
    until(lambda: not processes(seconds))
    until(lambda: not marked(mark))


def test_an_error_that_ends_the_flux_executors_thread_counts_as_instance_loss(
    flux_module: ModuleType,
    flux_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = OSError(errno.ENODATA, "No data available")
    lost: list[InstanceCondition] = []
    state = InstanceState(FluxBackend(flux_uri), Fate.LEFT, lambda _, now: lost.append(now))
    lifeline = Lifeline(flux_module, flux_uri, state)
    assert lifeline.explains(error)
    assert lost == [
        InstanceCondition(InstancePhase.GONE, f"the Flux instance at {flux_uri} is gone: {error}")
    ]
    lifeline.close()

    def fail(_: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    quiet_executors()
    thread_class = type("Thread", (threading.Thread,), {"run": fail})
    for module, said in (("flux.job.executor", False), ("users", True)):
        thread_class.__module__ = module
        thread = thread_class()
        thread.start()
        thread.join()
        assert ("No data available" in capsys.readouterr().err) == said


def test_waiting_tasks_are_left_for_the_next_start_when_the_instance_is_lost(
    instance: FluxInstance, tmp_path: Path
) -> None:
    world = World("flux", tmp_path, max_nodes=1, workers_per_node=1)
    running = world.submit(say_and_sleep, str(tmp_path / "running"))
    until(started(tmp_path / "running"))
    waiting = [world.submit(negative, each) for each in range(200)]
    job = world.submit(MPIFunction("true"), spec=ALL_NODES)
    world.event(job, "submit")
    instance.kill()
    world.wait_lost()
    late = world.submit(negative, 1)
    late_job = world.submit(MPIFunction("true"), spec=TWO_NODES)
    stop_soon(world)
    assert world.has_ended(running)
    assert not any(world.has_ended(task) for task in (*waiting, job, late, late_job))


def test_retries_continue_in_the_next_instance_up_to_the_limit(
    new_instance: Callable[[], FluxInstance], tmp_path: Path
) -> None:
    function, job = str(uuid.uuid4()), str(uuid.uuid4())
    seconds = fresh_seconds()
    of_function = buffer_of(say_and_sleep, str(tmp_path / "function"))
    of_job = buffer_of(MPIFunction(f"sleep {seconds}"))
    for attempt in (1, 2):
        instance = new_instance()
        tasks = {function: (of_function, None), job: (of_job, ONE_RANK)}
        world = World(
            "flux",
            tmp_path,
            recovers=tasks,
            max_nodes=1,
            workers_per_node=1,
            max_retries_on_system_failure=1,
        )
        until(started(tmp_path / "function"))
        (tmp_path / "function").unlink()
        world.event(job, "start")
        until(lambda: processes(seconds))
        instance.kill()
        world.wait_lost()
        stop_soon(world)
        assert world.has_ended(function) == world.has_ended(job) == (attempt == 2)
    for task in (function, job):
        text = world.end(task).text
        assert "2 attempts failed" in text
        assert text.count("is gone") == 2


def test_in_an_ending_instance_running_tasks_finish_and_none_starts(
    instance: FluxInstance, tmp_path: Path
) -> None:
    world = World("flux", tmp_path, max_nodes=1, workers_per_node=1)
    tasks = Waiting(tmp_path)
    function = world.submit_buffer(tasks.function)
    job = world.submit_buffer(tasks.job, ONE_RANK)
    tasks.await_start()
    world.event(job, "start")
    waiting = [world.submit(MPIFunction("true"), spec=ALL_NODES)]
    with instance.held_cleanup():
        instance.end()
        assert world.wait_lost() == f"the Flux instance at {instance.uri} is ending"
        assert world.engine.status()["ending"]
        waiting += [world.submit(negative, 1), world.submit(MPIFunction("true"), spec=ONE_RANK)]
        with stopping(world):
            tasks.let_go()
            assert world.end(function).value == "ran"
            assert world.end(job).value.stdout == "ran\n"
    assert [task for task in waiting if world.has_ended(task)] == []
    assert len(world.lost) == 1


def test_tasks_ended_with_their_instance_run_again_in_the_next(
    new_instance: Callable[[], FluxInstance], tmp_path: Path
) -> None:
    function, job = str(uuid.uuid4()), str(uuid.uuid4())
    tasks = Waiting(tmp_path)
    before = {function: (tasks.function, None), job: (tasks.job, ONE_RANK)}
    for last in (False, True):
        instance = new_instance()
        world = World("flux", tmp_path, recovers=before, max_nodes=1, workers_per_node=1)
        tasks.await_start()
        world.event(job, "start")
        if last:
            tasks.let_go()
            assert world.end(function).value == "ran"
            assert world.end(job).value.stdout == "ran\n"
        else:
            instance.end()
            world.wait_lost()
        stop_soon(world)
        assert world.has_ended(function) == world.has_ended(job) == last


@contextmanager
def cancelling(instance: FluxInstance, flux_module: ModuleType) -> Iterator[None]:
    """Meanwhile the instance is ending, and all its jobs are cancelled as they are then."""
    handle = flux_module.Flux(instance.uri)
    with instance.held_cleanup():
        instance.end()
        until(lambda: handle.rpc("state-machine.get").get()["state"] == "cleanup")
        subprocess.run(["flux", "cancel", "--quiet", "--all"], check=True)
        yield


def test_tasks_ended_with_their_instance_are_left_even_without_its_state_event(
    flux_module: ModuleType,
    instance: FluxInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lifeline, "_state_named", lambda *_: None)
    world = World("flux", tmp_path, max_nodes=1, workers_per_node=1)
    tasks = Waiting(tmp_path)
    function = world.submit_buffer(tasks.function)
    job = world.submit_buffer(tasks.job, ONE_RANK)
    tasks.await_start()
    world.event(job, "start")
    with cancelling(instance, flux_module):
        assert world.wait_lost() == f"the Flux instance at {instance.uri} is ending"
        stop_soon(world)
    assert [world.end(task) for task in (function, job) if world.has_ended(task)] == []


@contextmanager
def allocation(
    flux_module: ModuleType, uri: str, hold: Path
) -> Iterator[tuple[str, Callable[[], None]]]:
    """An instance in another, as a batch job is; gives its URI, and what has its time limit come.

    That is a moment later, since Flux takes none that is over already. Its cleanup, once it has
    begun, does not go on while there is a file `hold`.
    """
    environment = {**os.environ, "FLUX_URI": uri}
    submit = ["flux", "batch", "-N1", "-t1h", "--output=none", "--wrap", "sleep", "inf"]
    done = subprocess.run(submit, env=environment, check=True, capture_output=True, text=True)
    handle = flux_module.Flux(uri)
    jobid = flux_module.job.JobID(done.stdout.strip())
    started, inner = 0.0, ""
    for event in flux_module.job.event_watch(handle, jobid):
        if event.name == "start":
            started = event.timestamp
        elif event.name == "memo" and "uri" in event.context:
            inner = local_uri(event.context["uri"])
            break
    broker = flux_module.Flux(inner)
    broker.rpc("state-machine.wait", {}).get()
    wait = f"while test -e {hold} && kill -0 $PPID; do sleep 0.1; done"
    broker.rpc("runat.push", {"name": "cleanup", "commands": [wait]}).get()

    def expire() -> None:
        duration = {"attributes.system.duration": time.time() + 4.0 - started}
        handle.rpc("job-manager.update", {"id": jobid, "updates": duration}).get()

    yield inner, expire
    flux_module.job.event_wait(handle, jobid, "clean", raiseJobException=False)


def test_tasks_cut_off_by_the_allocations_time_limit_are_left_for_the_next_start(
    flux_module: ModuleType, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "flux.toml"
    config.write_text('[exec]\nkill-timeout = "1h"\n')  # nothing is killed before it is seen
    # Flux ends jobs before it says that it ends; here it says nothing at all.
    monkeypatch.setattr(Lifeline, "_state_named", lambda *_: None)
    hold = tmp_path / "hold"
    hold.touch()  # what is ended in the cleanup is cancelled, whatever the time limit
    with (
        FluxInstance(1, f"--config-path={config}") as instance,
        allocation(flux_module, instance.uri, hold) as (uri, expire),
    ):
        world = World("flux", tmp_path, uri=uri, max_nodes=1, workers_per_node=1)
        seconds = fresh_seconds()
        tasks = [
            world.submit(ShellFunction(f"sleep {seconds}")),
            world.submit(MPIFunction(f"sleep {seconds}"), spec=ONE_RANK),
        ]
        until(lambda: len(processes(seconds)) == len(tasks))
        expire()
        assert world.wait_lost() == f"the Flux instance at {uri} reached its time limit"
        stop_soon(world)
        assert [world.end(task) for task in tasks if world.has_ended(task)] == []
        hold.unlink()
    until(lambda: not processes(seconds))
    until(lambda: not marked(mark))


def test_an_expired_instance_can_be_given_up_before_it_ends(
    flux_uri: str, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLUX_URI", raising=False)
    world = World("auto", tmp_path, uri=flux_uri, max_nodes=1, workers_per_node=1)
    function = world.submit(say_and_sleep, str(tmp_path / "function"))
    seconds = fresh_seconds()
    job = world.submit(MPIFunction(f"sleep {seconds}"), spec=TWO_NODES)
    until(started(tmp_path / "function"))
    world.event(job, "start")
    until(lambda: processes(seconds))
    waiting = world.submit(negative, 1)
    world.engine.lose("the allocation's time is over")
    world.engine.lose("and over")
    for task, kind in ((function, "WorkerLost"), (job, "JobLost")):
        assert world.end(task).text.startswith(f"{kind}: the allocation's time is over")
    stop_soon(world)
    assert world.lost == ["the allocation's time is over"]
    assert not world.has_ended(waiting)
    until(lambda: not processes(seconds))
    until(lambda: not marked(mark))


def test_tasks_ended_with_a_lent_instance_are_lost_with_the_lenders_reason(
    flux_module: ModuleType, instance: FluxInstance, tmp_path: Path, mark: str
) -> None:
    world = World("flux", tmp_path, lent=True, max_nodes=1, workers_per_node=1)
    tasks = Waiting(tmp_path)
    function = world.submit_buffer(tasks.function)
    job = world.submit_buffer(tasks.job, ONE_RANK)
    tasks.await_start()
    world.event(job, "start")
    with cancelling(instance, flux_module):
        world.event(job, "clean")
        until(lambda: not marked(mark))
        world.engine.lose("the allocation's time is over")
        for task, kind in ((function, "WorkerLost"), (job, "JobLost")):
            assert world.end(task).text.startswith(f"{kind}: the allocation's time is over")
        stop_soon(world)


def test_a_started_job_counts_as_run_even_without_its_event(
    flux_uri: str, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobRunner, "_event", lambda *_: None)
    world = World("auto", tmp_path, uri=flux_uri, min_nodes=0)
    seconds = fresh_seconds()
    job = world.submit(MPIFunction(f"sleep {seconds}"), spec=ONE_RANK)
    until(lambda: processes(seconds))
    world.engine.lose("the allocation's time is over")
    assert world.end(job).text.startswith("JobLost: the allocation's time is over")
    stop_soon(world)
    until(lambda: not marked(mark))


def test_an_engine_runs_on_another_instance_than_that_of_its_environment(
    flux_uri: str, instance: FluxInstance, tmp_path: Path
) -> None:
    world = World("auto", tmp_path, uri=flux_uri, max_nodes=1, workers_per_node=1)
    assert world.engine.status()["instance"] == flux_uri != instance.uri
    command = MPIFunction("flux getattr local-uri")
    ran_in = world.end(world.submit(command, spec=TWO_NODES)).value.stdout.split()[0]
    assert ran_in.rpartition("/")[0] == flux_uri.rpartition("/")[0]
    world.stop()
