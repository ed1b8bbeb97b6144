"""Tasks that are jobs: their ranks, their events, their end, and jobs of others."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from flux_endpoint import Executor, MPIFunction, ShellFunction
from flux_endpoint.errors import TaskCancelled, TaskExecutionFailed
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.resources import ResourceSpecificationError
from waiting import until

pytestmark = [pytest.mark.stack, pytest.mark.rabbitmq]
EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 60


@pytest.fixture
def executor(home):
    with Executor(endpoint_id=home.endpoint_id) as executor:
        executor.resource_specification = {"num_ranks": 1}
        yield executor


@pytest.fixture
def flux(stack):
    """Runs a command of Flux in the stack's instance; skips where there is none."""
    if stack.executor != "flux":
        pytest.skip("this is about somebody else's Flux jobs")

    def run(*arguments):
        done = subprocess.run(
            ["flux", *arguments], env=stack.environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return run


#: Seconds that no other process sleeps, of another run of these tests beside this one.
OURS = f"4{os.getpid()}"


def assert_ended(command):
    """Wait until the processes of a task that has ended are gone: the kernel takes its time."""
    until(lambda: subprocess.run(["pgrep", "-f", f"^{command}$"], check=False).returncode, PATIENCE)


def names_of(future, *names):
    """Return the list of a future's events and an event that is set at the last of `names`."""
    seen, last = [], threading.Event()

    def note(_future, event):
        seen.append(event.name)
        if event.name == names[-1]:
            last.set()

    for name in names:
        future.add_event_callback(name, note)
    return seen, last


class TestCommands:
    def test_a_script_runs_once_and_its_prefix_on_every_rank(self, executor):
        executor.resource_specification = {"num_ranks": 2}
        script = MPIFunction("true;\n$PARSL_MPI_PREFIX echo rank\necho once")
        result = executor.submit(script).result(PATIENCE)
        assert (result.stdout, result.returncode) == ("rank\nrank\nonce\n", 0)

    def test_the_walltime_gives_124(self, executor):
        result = executor.submit(ShellFunction(f"sleep {OURS}7", walltime=1)).result(PATIENCE)
        assert (result.returncode, result.exception_name) == (124, "subprocess.TimeoutExpired")
        assert_ended(f"sleep {OURS}7")

    def test_a_signal_is_distinguished_from_an_exit_code(self, executor):
        killed = executor.submit(ShellFunction("kill -9 $$")).result(PATIENCE)
        exited = executor.submit(ShellFunction("exit 137")).result(PATIENCE)
        assert (killed.returncode, exited.returncode) == (-9, 137)

    def test_a_job_that_can_never_run_is_refused_with_the_reason(self, executor):
        executor.resource_specification = {"num_nodes": 999}
        with pytest.raises(TaskExecutionFailed, match=r"unsatisfiable request"):
            executor.submit(ShellFunction("true")).result(PATIENCE)

    def test_a_wrong_specification_is_refused_by_the_client(self, executor):
        with pytest.raises(ResourceSpecificationError, match=r"did you mean 'num_nodes'"):
            executor.resource_specification = {"num_node": 1}

    def test_arguments_that_json_cannot_carry_reach_the_command(self, executor):
        result = executor.submit(ShellFunction("echo {where}"), where=Path("/etc")).result(PATIENCE)
        assert result.stdout == "/etc\n"


class TestEvents:
    def test_a_job_tells_its_id_and_its_events_in_order(self, executor):
        future = executor.submit(ShellFunction("true"))
        seen, last = names_of(future, "submit", "alloc", "start", "finish", "clean")
        assert future.jobid(PATIENCE) > 0
        assert last.wait(PATIENCE)
        assert seen == ["submit", "alloc", "start", "finish", "clean"]

    def test_late_callbacks_get_past_events(self, executor):
        future = executor.submit(ShellFunction("true"))
        future.result(PATIENCE)
        _, last = names_of(future, "finish")
        assert last.wait(PATIENCE)
        told = threading.Event()
        future.add_jobid_callback(lambda _: told.set())
        assert told.wait(PATIENCE)

    def test_a_task_on_a_resident_worker_has_no_job(self, home):
        with Executor(endpoint_id=home.endpoint_id) as executor:
            future = executor.submit(ShellFunction("true"))
            future.result(PATIENCE)
            with pytest.raises(RuntimeError):
                future.jobid(PATIENCE)


class TestKill:
    @pytest.mark.parametrize("resources", [{"num_ranks": 1}, None], ids=["job", "worker"])
    def test_a_running_task_ends_with_its_processes(self, home, tmp_path, resources):
        started = tmp_path / "started"
        os.mkfifo(started)
        command = ShellFunction(f"setsid sleep {OURS}3 & echo > {{started}}; wait")
        with Executor(endpoint_id=home.endpoint_id) as executor:
            executor.resource_specification = resources
            future = executor.submit(command, started=str(started))
            started.read_text()
            future.kill()
            with pytest.raises(TaskCancelled):
                future.result(PATIENCE)
        assert_ended(f"sleep {OURS}3")

    def test_a_signal_reaches_the_processes_of_a_job(self, executor, tmp_path):
        started = tmp_path / "started"
        os.mkfifo(started)
        command = ShellFunction(
            "trap 'echo caught; exit 5' USR1; echo > {started}; sleep 59 & wait"
        )
        future = executor.submit(command, started=str(started))
        started.read_text()
        future.jobid(PATIENCE)
        future.kill(signal.SIGUSR1)
        result = future.result(PATIENCE)
        assert (result.stdout, result.returncode) == ("caught\n", 5)

    def test_a_task_that_waits_for_resources_is_ended_too(self, executor):
        executor.resource_specification = {"num_ranks": 1, "urgency": 0}  # held
        future = executor.submit(ShellFunction("true"))
        future.jobid(PATIENCE)
        future.kill()
        with pytest.raises(TaskCancelled):
            future.result(PATIENCE)

    def test_a_task_can_be_cancelled_by_its_id(self, executor):
        executor.resource_specification = {"num_ranks": 1, "urgency": 0}
        future = executor.submit(ShellFunction("true"))
        future.wait_submitted(PATIENCE)
        executor.client.cancel_task(future.task_id)
        with pytest.raises(TaskCancelled):
            future.result(PATIENCE)


class TestAttach:
    def test_a_job_submitted_elsewhere_is_followed_to_its_end(self, executor, flux):
        jobid = flux("submit", "sh", "-c", "echo out; echo err >&2; exit 3")
        future = executor.attach(jobid)
        seen, last = names_of(future, "start", "finish")
        result = future.result(PATIENCE)
        assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 3)
        assert last.wait(PATIENCE)
        assert seen == ["start", "finish"]
        assert format_jobid(future.jobid(PATIENCE)) == jobid

    def test_an_unknown_job_id_is_a_clear_error(self, executor):
        with pytest.raises(TaskExecutionFailed, match=r"does not match any job"):
            executor.attach(12345).result(PATIENCE)

    def test_an_invalid_job_id_is_refused_at_once(self, executor):
        with pytest.raises(ValueError, match=r"nonsense"):
            executor.attach("nonsense")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("mpi_hello.py", "rank 3 of 4"),
        ("mpi_python.py", "3.141592654"),
        ("events.py", "TaskCancelled"),
        ("attach.py", "exit code: 3"),
    ],
)
def test_the_examples(stack, script, expected):
    if stack.executor != "flux" and script != "events.py":
        pytest.skip("this example needs several nodes, or Flux's own commands")
    done = stack.python(str(EXAMPLES / script), stack.endpoint_id)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_jobs_are_named_after_their_functions(executor, flux):
    futures = [
        executor.submit(pow, 2, 5),
        executor.submit(MPIFunction("printenv PMI_SIZE")),
        executor.submit(ShellFunction("true", name="prepare")),
    ]
    ids = [format_jobid(future.jobid(PATIENCE)) for future in futures]
    named = flux("jobs", "--no-header", "--format={name}", *ids).splitlines()
    assert named == ["pow", "printenv", "prepare"]
    for future in futures:
        future.result(PATIENCE)
