"""Our engine inside the official user endpoint: on the embedded executor, and on Flux."""

from __future__ import annotations

import contextlib
import subprocess
import uuid

import pytest
from tests.engine.engine_world import buffer_of
from tests.interop.plugin_world import UserEndpoint

from flux_endpoint.functions import MPIFunction, OfficialShellResult, ShellFunction, official_code
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.messages import Result, Task, pack
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.serialize import ComputeSerializer, reading_as

pytestmark = [pytest.mark.interop, pytest.mark.rabbitmq, pytest.mark.timeout(300)]

#: For what lies before the executor, each with an official endpoint of its own.
ON_THE_EMBEDDED_EXECUTOR = pytest.mark.parametrize("flux", ["local"], indirect=True)
OFFICIAL_RESULT = ("globus_compute_sdk.sdk.shell_function", "ShellResult")
TWO_RANKS = {"num_nodes": 1, "ranks_per_node": 2}


@pytest.fixture(scope="module", params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def flux(request):
    """The URI of a Flux instance, `None` for the embedded executor."""
    return request.getfixturevalue("flux_uri") if request.param == "flux" else None


@pytest.fixture(scope="module")
def make(environment, broker, flux, tmp_path_factory):
    """Makes user endpoints, each for a `with`."""

    @contextlib.contextmanager
    def new():
        home = tmp_path_factory.mktemp("home")
        with broker.virtual_host() as url:
            endpoint = UserEndpoint(environment, home, url, flux)
            try:
                yield endpoint
            finally:
                endpoint.close()

    return new


@pytest.fixture(scope="module")
def shared(make):
    """One that most tests use."""
    with make() as endpoint:
        endpoint.start(
            max_nodes=1,
            workers_per_node=2,
            local_nodes=2,
            local_cores_per_node=2,
            run_in_sandbox=True,
        )
        yield endpoint


@pytest.fixture
def own(make):
    """One of a test's own, not started yet."""
    with make() as endpoint:
        yield endpoint


def area(width, height=2):
    return width * height


def fail():
    raise ZeroDivisionError("by zero")


def surroundings():
    import os
    from pathlib import Path

    names = ("GC_TASK_UUID", "GC_TASK_SANDBOX_DIR")
    return str(Path.cwd()), {name: os.environ.get(name) for name in names}


def large():
    return "x" * (11 << 20)


def end_of_own_worker(path):
    """Take the worker along at the first attempt."""
    import os
    import signal
    from pathlib import Path

    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "again"


def noted(path, gate):
    """Note each run, and wait to be let go."""
    import time
    from pathlib import Path

    with Path(path).open("a") as file:
        file.write("run\n")
    deadline = time.monotonic() + 60
    while not Path(gate).exists():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)
    return "done"


def official_task(function, **kwargs):
    """A packed task as the official client sends it."""
    serializer = ComputeSerializer()
    buffers = [official_code(function), serializer.serialize(()), serializer.serialize(kwargs)]
    return serializer.pack_buffers(buffers)


def official_value(end):
    """A result's value, as the official client sees it: its ShellResult is one by name."""
    assert end.code is None, end.text
    with reading_as({OFFICIAL_RESULT: OfficialShellResult}):
        return ComputeSerializer().deserialize(end.message.data)


class TestTasks:
    def test_a_function_returns_its_value(self, shared):
        tasks = {shared.submit(area, width): width * 2 for width in range(30)}
        assert {shared.end(task).value for task in tasks} == set(tasks.values())

    def test_an_exception_arrives_with_its_traceback(self, shared):
        end = shared.end(shared.submit(fail))
        assert end.code == "RemoteExecutionError"
        assert "ZeroDivisionError: by zero" in end.text

    def test_the_result_says_where_it_comes_from(self, shared):
        details = shared.end(shared.submit(area, 1)).message.details
        assert details["endpoint_id"] == shared.endpoint_id
        assert details["dill_version"] == "0.3.9"

    def test_an_official_shell_function_returns_an_official_result(self, shared):
        task = official_task(ShellFunction("echo {x}; exit 3"), x="$((1 + 1))")
        result = official_value(shared.end(shared.submit(None, buffer=task)))
        assert (result.stdout, result.returncode) == ("2\n", 3)
        assert isinstance(result, OfficialShellResult)

    def test_an_official_mpi_function_is_started_on_every_rank(self, shared):
        task = official_task(MPIFunction("bash -c 'echo rank of $PARSL_NUM_RANKS {x}'"), x=7)
        end = shared.end(shared.submit(None, buffer=task, spec=TWO_RANKS))
        result = official_value(end)
        assert result.stdout == "rank of 2 7\n" * 2
        assert result.cmd.startswith("$PARSL_MPI_PREFIX bash")

    def test_a_shell_function_with_resources_has_the_prefix_to_start_ranks_with(self, shared):
        task = official_task(ShellFunction("$PARSL_MPI_PREFIX echo rank; echo once"))
        end = shared.end(shared.submit(None, buffer=task, spec=TWO_RANKS))
        assert official_value(end).stdout == "rank\nrank\nonce\n"

    def test_a_python_function_with_resources_runs_on_every_rank(self, shared):
        assert shared.end(shared.submit(area, 4, spec=TWO_RANKS)).value == [8, 8]

    def test_every_task_has_its_sandbox(self, shared):
        task = shared.submit(surroundings)
        directory, variables = shared.end(task).value
        assert directory == str(shared.directory / "tasks_working_dir" / task)
        assert variables == {"GC_TASK_UUID": task, "GC_TASK_SANDBOX_DIR": directory}

    def test_the_result_is_written_as_asked_for(self, shared):
        json_data = ["globus_compute_sdk.serialize.concretes.JSONData"]
        end = shared.end(shared.submit(area, 3, serializers=json_data))
        assert end.message.data == "11\n6"

    def test_a_result_that_is_too_large_is_refused(self, shared):
        end = shared.end(shared.submit(large))
        assert end.code == ErrorCode.MAX_RESULT_SIZE

    def test_a_wrong_specification_is_refused_by_name(self, shared):
        end = shared.end(shared.submit(area, 1, spec={"num_nodez": 1}))
        assert end.code == ErrorCode.REMOTE_EXECUTION  # as of the official engines
        assert "did you mean 'num_nodes'?" in end.text

    @pytest.mark.parametrize(
        ("body", "code", "text"),
        [
            (
                pack(Result(task_id=uuid.UUID(int=7), data="x")),
                ErrorCode.COULD_NOT_EXECUTE,
                "Non Task-type message received: result",
            ),
            (b"\x01{broken", ErrorCode.REMOTE_EXECUTION, "InvalidMessageError: "),
        ],
    )
    def test_a_message_without_a_task_gets_a_result(self, shared, body, code, text):
        task = str(uuid.uuid4())
        shared.send_body(task, body)
        end = shared.end(task)
        assert end.code == code
        assert text in end.text
        assert shared.end(shared.submit(area, 1)).value == 2, "the others go on"

    def test_status_reports_have_the_official_names(self, shared, flux):
        state = shared.report(lambda state: state["total_workers"] == 2)
        assert state["engine_type"] == "FluxEngine"
        assert state["provider_type"] == ("local" if flux is None else "flux")
        counters = ("managers", "idle_workers", "pending_tasks", "outstanding_tasks", "total_tasks")
        assert all(isinstance(state[name], int) for name in counters)
        assert state["active"] is True

    def test_the_engine_logs_to_the_endpoints_log(self, shared):
        assert "FluxEngine" in shared.log()
        assert "engine runs on" in shared.log()


class TestWhatASiteAllows:
    @ON_THE_EMBEDDED_EXECUTOR
    def test_functions_and_serializers(self, own):
        allowed = ["globus_compute_sdk.serialize.PureSourceTextInspect",
                   "globus_compute_sdk.serialize.DillDataBase64"]  # fmt: skip
        own.start(
            allowed_functions=[str(uuid.UUID(int=1))],
            allowed_serializers=allowed,
            local_cores_per_node=1,
            max_nodes=1,
            workers_per_node=1,
        )
        end = own.end(own.submit(area, 1))
        assert "DillCodeSource disabled" in end.text

    @ON_THE_EMBEDDED_EXECUTOR
    def test_a_function_that_is_not_listed_never_reaches_the_engine(self, own):
        own.start(allowed_functions=[], local_cores_per_node=1, max_nodes=1, workers_per_node=1)
        assert own.end(own.submit(area, 1)).code == "FUNCTION_NOT_ALLOWED"


class TestLostWorkers:
    SMALL = {"local_cores_per_node": 1, "max_nodes": 1, "workers_per_node": 1}  # noqa: RUF012

    def test_the_task_of_a_lost_worker_is_tried_again_as_often_as_asked(self, own, tmp_path):
        own.start(max_retries_on_system_failure=1, **self.SMALL)
        assert own.end(own.submit(end_of_own_worker, str(tmp_path / "runs"))).value == "again"

    def test_a_lost_task_without_retries_fails_with_the_reason(self, own, tmp_path):
        own.start(**self.SMALL)
        end = own.end(own.submit(end_of_own_worker, str(tmp_path / "runs")))
        assert end.code == ErrorCode.REMOTE_EXECUTION  # as of the official engines
        assert end.text.startswith("WorkerLost: ")
        assert "signal 9" in end.text


class TestTheEndOfTheProcess:
    """What the official endpoint had acknowledged would be lost with it."""

    SMALL = {  # noqa: RUF012
        "local_cores_per_node": 2, "max_nodes": 1, "workers_per_node": 2, "shutdown_grace": 0.1
    }  # fmt: skip

    @pytest.mark.parametrize("how", ["kill", "stop"])
    def test_every_task_of_a_killed_endpoint_is_answered_by_the_next(self, own, tmp_path, how):
        gate, runs = tmp_path / "gate", tmp_path / "runs"
        own.start(**self.SMALL)
        done = own.submit(area, 1)
        own.end(done)
        tasks = [own.submit(noted, str(runs), str(gate)) for _ in range(6)]
        own.until(lambda: runs.exists() and len(runs.read_text().split()) == 2)
        own.until(lambda: own.accepted() == len(tasks))
        getattr(own, how)()
        own.lose_queue()  # as if all had been acknowledged: nobody else has them any more
        gate.touch()
        own.start(**self.SMALL)
        assert [own.end(task).value for task in tasks] == ["done"] * 6

    def test_a_running_job_is_found_again(self, own, tmp_path, flux):
        gate, runs = tmp_path / "gate", tmp_path / "runs"
        own.start(**self.SMALL)
        task = own.submit(noted, str(runs), str(gate), spec={"num_ranks": 1})
        own.until(lambda: runs.exists() and runs.read_text() == "run\n")
        # It runs a moment before the engine has noted its id.
        own.until(lambda: list(own.directory.rglob("job.json")))
        own.kill()
        own.lose_queue()
        own.start(**self.SMALL)
        gate.touch()
        assert own.end(task).value == ["done"]
        # Those of the embedded executor end with the process, and start again.
        assert runs.read_text() == ("run\nrun\n" if flux is None else "run\n")

    @ON_THE_EMBEDDED_EXECUTOR
    def test_a_result_that_may_not_have_been_sent_is_sent_again(self, own):
        own.start(**self.SMALL)
        task = own.submit(area, 3)
        first = own.end(task)
        own.kill()
        own.start(**self.SMALL)
        # Once more again if the broker had not seen yet that the task was acknowledged.
        own.until(lambda: len(own.ends(task)) > 1)
        assert len(set(own.ends(task))) == 1
        assert first.value == 6

    @ON_THE_EMBEDDED_EXECUTOR
    def test_a_task_that_the_broker_sends_again_runs_once(self, own, tmp_path):
        gate, runs = tmp_path / "gate", tmp_path / "runs"
        own.start(**self.SMALL)
        task = str(uuid.uuid4())
        buffer = buffer_of(noted, str(runs), str(gate))
        own.send(task, buffer)
        own.until(runs.exists)
        own.send(task, buffer)
        own.report(lambda state: state["total_tasks"] == 2)
        gate.touch()
        assert own.end(task).value == "done"
        own.send(task, buffer)  # it has ended, and is answered once more
        own.until(lambda: len(own.ends(task)) == 2)
        assert own.ends(task)[1] == own.ends(task)[0]
        assert runs.read_text() == "run\n"


@pytest.mark.flux
def test_the_endpoint_ends_with_its_flux_instance(environment, amqp_vhost, tmp_path):
    program = 'echo "$FLUX_URI"; cat > /dev/null'
    instance = subprocess.Popen(
        ["flux", "start", "--test-size=1", "sh", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment.variables(tmp_path),
    )
    with instance:
        endpoint = UserEndpoint(
            environment, tmp_path, amqp_vhost, instance.stdout.readline().strip()
        )
        try:
            endpoint.start(workers_per_node=1)
            assert endpoint.end(endpoint.submit(area, 1)).value == 2
            instance.stdin.close()
            endpoint.process.wait(60)
            assert "the Flux instance has ended" in endpoint.log()
        finally:
            endpoint.close()


def test_a_future_gets_the_ids_of_its_task_job_and_block(environment, flux, tmp_path):
    program = """
import sys, uuid
from globus_compute_endpoint.engines.base import GCFuture
from flux_endpoint.integrations.globus_compute import FluxEngine

engine = FluxEngine(local_cores_per_node=1, max_nodes=1, workers_per_node=1, shutdown_grace=0)
engine.start(endpoint_id=uuid.uuid4(), run_dir=sys.argv[1])
told = []
for spec in (None, {"num_nodes": 1}):
    future = GCFuture(uuid.uuid4())
    for name in ("executor_task_id", "job_id", "block_id"):
        future.bind(name, lambda _, value, name=name: told.append((name, value)))
    engine.submit(future, bytes.fromhex(sys.argv[2]), spec)
    future.result(60)
    print(future.executor_task_id, future.job_id, future.block_id)
engine.shutdown()
print([name for name, _ in told if name != "executor_task_id"])
"""
    body = pack(Task(task_id=uuid.uuid4(), task_buffer=buffer_of(area, 2)))
    variables = {} if flux is None else {"FLUX_URI": flux}
    done = environment.run("-c", program, str(tmp_path), body.hex(), **variables)
    on_a_worker, as_a_job, order = done.stdout.splitlines()
    assert on_a_worker == "1 None None"
    number, job, block = as_a_job.split()
    assert (number, job) == ("2", block)
    assert parse_jobid(job) > 0
    assert order == "['job_id', 'block_id']"


def test_the_end_of_the_flux_instance_is_logged_before_the_endpoint_ends(environment):
    program = """
import logging
from pathlib import Path
from flux_endpoint.integrations.globus_compute import FluxEngine

logging.basicConfig(format="%(levelname)s %(message)s")
engine = FluxEngine()
assert engine.executor_exception is None
engine._socket = Path("/nowhere/local-0")
for _ in range(2):
    assert "/nowhere/local-0 is gone" in str(engine.executor_exception)
"""
    said = environment.run("-c", program).stderr
    assert said.count("ERROR the Flux instance has ended: /nowhere/local-0 is gone") == 1


def test_files_are_the_owner_s_alone(shared):
    assert (shared.directory / "engine").stat().st_mode & 0o777 == 0o700
