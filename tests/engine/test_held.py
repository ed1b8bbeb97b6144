"""Short MPI tasks that share an allocation end as if each were a job of its own.

On the embedded executor, which starts ranks by itself, the same holds without such allocations.
"""

from __future__ import annotations

import signal
import sys

import psutil
import pytest
from engine_world import PATIENCE, World, fresh_seconds, lines_of, processes
from killing import Endpoint

from flux_endpoint.engine.held import allocations
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.protocol.states import ErrorCode
from waiting import until

pytestmark = pytest.mark.mpi

TWO = {"num_nodes": 1, "ranks_per_node": 2}
FAILED = "subprocess.CalledProcessError"
ON_FLUX = pytest.mark.parametrize(
    "kind", [pytest.param("flux", marks=pytest.mark.flux)], indirect=True
)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks wait for an allocation, and are short, however slow the machine is."""
    for name in ("RECENT", "PATIENCE", "LONG"):
        monkeypatch.setattr(allocations, name, PATIENCE)


def in_held(world: World, *functions: MPIFunction, spec=TWO) -> list[str]:
    """Submit tasks that follow another of their shape; return their ids."""
    before = world.submit(MPIFunction("true"), spec=TWO)
    tasks = [world.submit(function, spec=spec) for function in functions]
    assert world.end(before).value.returncode == 0
    return tasks


def allocation(world: World, task: str) -> int:
    """Return the job in whose allocation a task runs, once it has one."""
    jobid = world.event(task, "alloc").jobid
    assert jobid is not None
    return jobid


def host(world: World) -> psutil.Process:
    """The process that holds the allocation of this world."""
    word = str(world.directory / "engine" / "held")
    for process in processes("flux_endpoint.engine.held.host"):
        if process.cwd() == word:
            return process
    raise AssertionError("no allocation is held")


def script(tmp_path, text: str) -> str:
    path = tmp_path / "program.sh"
    path.write_text(f"{text}\n")
    return f"sh {path}"


def test_tasks_are_right_and_share_an_allocation(world: World, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os\nfrom mpi4py import MPI\nw = MPI.COMM_WORLD\nn = w.allreduce(w.rank + 1)\n"
        "all = w.gather(os.environ['FLUX_TASK_RANK'] + os.environ['GC_TASK_UUID'])\n"
        "if w.rank == 0: print(w.size, n, *all, os.environ['FLUX_JOB_ID'], os.getcwd())\n"
    )
    tasks = in_held(world, *[MPIFunction(f"{sys.executable} {program}")] * 3)
    for task, end in zip(tasks, world.ends(tasks), strict=True):
        assert end.value.stderr == ""
        size, sum_, *places, _, _ = end.value.stdout.split()
        assert (size, sum_, places) == ("2", "3", [f"0{task}", f"1{task}"])
    if world.kind == "flux":
        jobids = {allocation(world, task) for task in tasks}
        assert len(jobids) == 1
        names = world.event_names(tasks[0])
        assert [n for n in names if n in ("submit", "alloc", "start", "finish", "clean")] == [
            "submit",
            "alloc",
            "start",
            "finish",
            "clean",
        ]
        assert len(names) == len(set(names))
        assert world.engine.status()["held_allocations"] == 1


def test_each_end_is_that_of_a_job(world: World, tmp_path):
    seconds = fresh_seconds()
    abort = tmp_path / "abort.py"
    abort.write_text(
        "from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 1: MPI.COMM_WORLD.Abort(42)\n"
        "MPI.COMM_WORLD.barrier()\n"
    )
    text = f'[ "$FLUX_TASK_RANK" = 0 ] || eval "$1"; echo "$FLUX_TASK_RANK"; sleep {seconds}'
    program = script(tmp_path, text)
    tasks = in_held(
        world,
        MPIFunction(f"{program} 'exit 3'"),
        MPIFunction(f"{program} 'kill -9 $$'"),
        MPIFunction("no-such-program"),
        MPIFunction(f"sleep {seconds}", walltime=0.3),
        MPIFunction(f"{sys.executable} {abort}"),
    )
    failed, killed, missing, late, aborted = (end.value for end in world.ends(tasks))
    assert (failed.returncode, failed.exception_name) == (3, FAILED)
    assert (killed.returncode, killed.exception_name) == (-9, FAILED)
    assert missing.returncode == 127
    assert (late.returncode, late.exception_name) == (124, "subprocess.TimeoutExpired")
    assert (aborted.returncode, aborted.exception_name) == (42, FAILED)
    assert until(lambda: not processes(seconds))


def test_a_task_is_followed_while_it_runs(world: World, tmp_path):
    gate = tmp_path / "gate"
    program = script(tmp_path, 'echo "a rank"; until [ -e "$1" ]; do sleep 0.05; done; echo end')
    (task,) = in_held(world, MPIFunction(f"{program} {gate}"))
    position, _ = world.follow(task, "stdout", "a rank\n" * 2)
    gate.touch()
    details = world.end(task).message.details
    assert details["stdout"][position:] == "end\n" * 2


def test_output_and_directory_are_those_of_the_task(make_world, tmp_path):
    world = make_world(run_in_sandbox=True)
    out = tmp_path / "out"
    text = script(tmp_path, "pwd; echo error >&2")
    (task,) = in_held(world, MPIFunction(text, stdout=str(out), snippet_lines=1))
    result = world.end(task).value
    assert len(set(lines_of(out))) == 1
    assert lines_of(out)[0].endswith(f"/{task}")
    assert result.stdout == lines_of(out)[0] + "\n"
    assert result.stderr == "error\n"  # the last line


def test_a_task_is_killed_alone_while_it_waits_or_runs(world: World, tmp_path):
    seconds = fresh_seconds()
    text = script(tmp_path, f"trap 'exit 5' USR1; sleep {seconds} & wait")
    running, *waiting = in_held(world, MPIFunction(text), *[MPIFunction("true")] * 2)
    world.event(running, "start")
    if world.kind == "flux":  # elsewhere it has found another node
        world.engine.cancel(waiting[0])
        assert world.end(waiting[0]).code == ErrorCode.CANCELLED
    assert until(lambda: len(processes(seconds)) == 2)
    world.engine.cancel(running, signal.SIGUSR1)
    assert world.end(running).value.returncode == 5
    assert world.end(waiting[1]).value.returncode == 0
    (running,) = in_held(world, MPIFunction(f"sleep {seconds}"))
    world.event(running, "start")
    world.engine.cancel(running)
    end = world.end(running)
    assert (end.code, "ended on request" in end.text) == (ErrorCode.CANCELLED, True)
    assert until(lambda: not processes(seconds))


@ON_FLUX
def test_an_allocation_is_given_back_when_another_job_waits(world: World):
    (task,) = in_held(world, MPIFunction("true"))
    jobid = allocation(world, task)
    assert world.end(task).value.returncode == 0
    whole = {"num_nodes": 4, "exclusive": True}
    assert world.call(ShellFunction("true"), spec=whole).value.returncode == 0
    assert until(lambda: world.engine.status()["held_allocations"] == 0)
    (other,) = in_held(world, MPIFunction("true"))
    assert world.end(other).value.returncode == 0
    assert allocation(world, other) != jobid


@ON_FLUX
def test_tasks_do_not_wait_again_for_what_did_not_come_in_time(make_world, monkeypatch):
    monkeypatch.setattr(allocations, "PATIENCE", 0.0)
    world = make_world()
    tasks = [world.submit(MPIFunction("true"), spec=TWO) for _ in range(2)]
    assert [end.value.returncode for end in world.ends(tasks)] == [0, 0]
    monkeypatch.setattr(allocations, "PATIENCE", PATIENCE)
    tasks += in_held(world, MPIFunction("true"))
    assert world.end(tasks[-1]).value.returncode == 0
    assert len({allocation(world, task) for task in tasks}) == 3
    names = world.event_names(tasks[1])
    assert (names.count("submit"), names.count("start")) == (1, 1)
    assert world.engine.status()["held_allocations"] == 0


@ON_FLUX
def test_a_task_whose_host_is_killed_is_lost_with_it(world: World):
    seconds = fresh_seconds()
    (task,) = in_held(world, MPIFunction(f"sleep {seconds}"))
    world.event(task, "start")
    assert until(lambda: len(processes(seconds)) == 2)
    host(world).kill()
    end = world.end(task)
    assert end.code == ErrorCode.WORKER_LOST
    assert "lost contact with its host" in end.text
    assert not processes(seconds)


@ON_FLUX
def test_an_allocation_that_is_cancelled_cancels_its_task(world: World):
    seconds = fresh_seconds()
    (task,) = in_held(world, MPIFunction(f"sleep {seconds}"))
    world.event(task, "start")
    world.engine._backend.cancel(allocation(world, task), "for a reason")
    end = world.end(task)
    assert (end.code, "for a reason" in end.text) == (ErrorCode.CANCELLED, True)
    assert until(lambda: not processes(seconds))


@ON_FLUX
def test_it_can_be_switched_off(make_world):
    world = make_world(hold_allocations=False)
    first = world.submit(MPIFunction("true"), spec=TWO)
    tasks = [first, *(world.submit(MPIFunction("true"), spec=TWO) for _ in range(2))]
    world.ends(tasks)
    assert len({allocation(world, task) for task in tasks}) == 3


@ON_FLUX
@pytest.mark.parametrize("moment", ["while it runs", "a task gets an allocation"])
def test_a_task_runs_once_though_the_engine_is_killed(kind, moment, tmp_path, mark):
    endpoint = Endpoint(kind, tmp_path, min_nodes=0)
    text = script(tmp_path, f"echo x >> {endpoint.begun}; sleep 2; echo done")
    endpoint.add(MPIFunction("true"), spec=TWO)
    task = endpoint.add(MPIFunction(text), spec=TWO)
    if moment == "while it runs":
        engine = endpoint.start()
        assert until(lambda: len(lines_of(endpoint.begun)) == 2)
        endpoint.kill(engine)
    else:
        endpoint.await_death(endpoint.start(dies_at=moment))
    endpoint.finish(endpoint.start())
    assert endpoint.end(task).value.stdout == "done\n" * 2
    assert len(lines_of(endpoint.begun)) == 2
    word = str(endpoint.directory / "engine" / "held")
    assert until(
        lambda: not any(p.cwd() == word for p in processes("flux_endpoint.engine.held.host"))
    )
    assert list((endpoint.directory / "engine" / "jobs").iterdir()) == []
