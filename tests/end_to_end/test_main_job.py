"""The main job: a function submitted here runs on an endpoint, and its result streams back."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import httpx
import pytest

from flux_endpoint import Executor, MPIFunction, ShellFunction
from flux_endpoint.errors import (
    PayloadTooLargeError,
    SerializationError,
    ServiceError,
    TaskExecutionFailed,
)

pytestmark = [pytest.mark.stack, pytest.mark.rabbitmq]
EXAMPLES = Path(__file__).parents[2] / "examples"
MIB = 2**20


#: As in a script or a notebook: functions of `__main__` travel by value, those of modules by name.
SESSION = {"__name__": "__main__"}
exec(
    """
def double(x):
    return x * 2

def letters(count):
    return "x" * count

def fail(message):
    raise ValueError(message)

def own_id():
    import os
    return os.environ["GC_TASK_UUID"]

def rank_and_sum():
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    return world.rank, world.allreduce(1)
""",
    SESSION,
)
double, letters, fail = SESSION["double"], SESSION["letters"], SESSION["fail"]
own_id, rank_and_sum = SESSION["own_id"], SESSION["rank_and_sum"]


@pytest.fixture
def executor(home):
    with Executor(endpoint_id=home.endpoint_id) as executor:
        yield executor


class TestResults:
    def test_a_thousand_functions_give_a_thousand_right_answers(self, executor):
        futures = [executor.submit(double, n) for n in range(1000)]
        assert [future.result(timeout=60) for future in futures] == [2 * n for n in range(1000)]

    def test_an_exception_comes_back_with_its_traceback(self, executor):
        with pytest.raises(TaskExecutionFailed) as caught:
            executor.submit(fail, "on purpose").result(timeout=60)
        assert "ValueError: on purpose" in str(caught.value)
        assert "in fail" in caught.value.remote_data
        assert "flux_endpoint/engine" not in caught.value.remote_data
        assert type(caught.value.__cause__) is ValueError
        assert caught.value.__cause__.args == ("on purpose",)

    def test_a_result_of_nine_mib_arrives(self, executor):
        assert len(executor.submit(letters, 9 * MIB).result(timeout=60)) == 9 * MIB

    def test_a_result_of_eleven_mib_is_refused_with_the_sizes(self, executor):
        with pytest.raises(TaskExecutionFailed, match=r"MaxResultSizeExceeded\(1153\d+, 10485760"):
            executor.submit(letters, 11 * MIB).result(timeout=60)
        assert executor.submit(double, 1).result(timeout=60) == 2

    def test_arguments_of_nine_mib_arrive_and_of_eleven_are_refused_at_once(self, executor):
        assert executor.submit(len, "x" * 9 * MIB).result(timeout=60) == 9 * MIB
        with pytest.raises(PayloadTooLargeError, match=r"limit is 10 MiB"):
            executor.submit(len, "x" * 11 * MIB)

    def test_the_error_of_an_unserializable_function_has_its_name_and_the_reason(self, executor):
        numbers = (n for n in range(3))

        def stuck():
            return numbers

        with pytest.raises(SerializationError, match=r"stuck.*generator"):
            executor.submit(stuck)
        assert executor.submit(double, 2).result(timeout=60) == 4

    def test_shell_functions_format_their_arguments(self, executor):
        greet = ShellFunction("echo '{message}'; exit 3")
        result = executor.submit(greet, message="hello").result(timeout=60)
        assert (result.stdout, result.returncode) == ("hello\n", 3)

    def test_tasks_know_their_ids(self, executor):
        future = executor.submit(own_id)
        assert future.result(timeout=60) == future.task_id

    def test_an_mpi_command_runs_on_its_ranks(self, executor):
        executor.resource_specification = {"num_ranks": 2}
        result = executor.submit(MPIFunction("echo {word}"), word="rank").result(timeout=100)
        assert (result.stdout, result.returncode) == ("rank\nrank\n", 0)

    def test_a_python_function_runs_on_every_rank(self, executor):
        executor.resource_specification = {"num_ranks": 2}
        assert executor.submit(rank_and_sum).result(timeout=100) == [(0, 2), (1, 2)]


class TestBadInput:
    """A 4xx with a JSON error that names the field, one clear exception on the client."""

    @pytest.fixture
    def post(self, home):
        credentials = home.credentials
        with httpx.Client(
            base_url=credentials["service_url"],
            headers={"Authorization": f"Bearer {credentials['token']}"},
            timeout=60,
        ) as client:
            yield client.post

    def test_an_unknown_endpoint(self, home):
        with (
            Executor(endpoint_id=str(uuid.uuid4())) as executor,
            pytest.raises(ServiceError, match="endpoint") as caught,
        ):
            executor.submit(double, 1).result(timeout=60)
        assert (caught.value.http_status, caught.value.code) == (404, "ENDPOINT_NOT_FOUND")

    def test_an_unknown_function(self, executor):
        future = executor.submit_to_registered_function(str(uuid.uuid4()), (1,))
        with pytest.raises(ServiceError) as caught:
            future.result(timeout=60)
        assert (caught.value.http_status, caught.value.code) == (404, "FUNCTION_NOT_FOUND")
        assert executor.submit(double, 3).result(timeout=60) == 6

    def test_a_malformed_uuid(self, post):
        with pytest.raises(ValueError, match=r"not-a-uuid"):
            Executor(endpoint_id="not-a-uuid")
        answer = post("/v3/endpoints/not-a-uuid/submit", json={"tasks": {}})
        assert answer.status_code == 422
        assert "not-a-uuid" in answer.text

    def test_a_wrong_token(self, home, monkeypatch):
        monkeypatch.setenv("FLUX_ENDPOINT_SERVICE_URL", home.credentials["service_url"])
        monkeypatch.setenv("FLUX_ENDPOINT_TOKEN", "wrong")
        with (
            Executor(endpoint_id=home.endpoint_id) as executor,
            pytest.raises(ServiceError, match=r"(?i)token") as caught,
        ):
            executor.submit(double, 1).result(timeout=60)
        assert caught.value.http_status == 401

    def test_a_body_that_is_not_json(self, post, home):
        answer = post(f"/v3/endpoints/{home.endpoint_id}/submit", content=b"{nonsense")
        assert answer.status_code in {400, 422}
        assert "JSON" in answer.json()["message"]

    def test_a_payload_over_ten_mib(self, post, home):
        function = str(uuid.uuid4())
        body = {"tasks": {function: ["x" * (10 * MIB + 1)]}}
        answer = post(f"/v3/endpoints/{home.endpoint_id}/submit", json=body)
        assert answer.status_code in {404, 413}
        assert answer.json()["code"] in {"TASK_PAYLOAD_TOO_LARGE", "FUNCTION_NOT_FOUND"}


class TestCommands:
    def test_the_list_says_which_executor_runs_the_jobs(self, stack):
        listed = json.loads(stack.command("list", "--json").stdout)
        executors = {entry["name"]: entry["executor"] for entry in listed}
        assert executors["local"] == stack.executor

    def test_a_second_stack_in_the_same_place_is_refused(self, stack):
        again = stack.command("up", "--detach")
        assert again.returncode == 1
        assert "already running" in again.stdout + again.stderr
