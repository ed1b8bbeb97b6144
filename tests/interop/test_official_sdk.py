"""The official SDK, unmodified, on our service and our endpoint: what it promises holds here."""

from __future__ import annotations

import json
import platform
import threading
from pathlib import Path

import psutil
import pytest

from flux_endpoint.client import Client
from flux_endpoint.rest import RestClient
from waiting import until

pytestmark = [
    pytest.mark.interop,
    pytest.mark.rabbitmq,
    pytest.mark.stack,
    pytest.mark.timeout(300),
]

PROGRAMS = Path(__file__).parent / "programs"
SHELL_RESULT = "globus_compute_sdk.sdk.shell_function.ShellResult"
NO_ERROR = {"stderr": "", "returncode": 0, "exception_name": None}


@pytest.fixture(scope="module")
def seen(official_world):
    """What a session of the official SDK has seen."""
    return official_world.run(PROGRAMS / "session.py")


class TestFunctions:
    """Functions, commands and MPI applications through the Executor."""

    def test_a_function_returns_its_value(self, seen):
        assert seen["function"] == 15

    def test_an_exception_arrives_with_its_traceback(self, seen):
        assert seen["exception"]["type"] == "TaskExecutionFailed"
        assert "ZeroDivisionError: by zero" in seen["exception"]["text"]
        assert "session.py" in seen["exception"]["text"]

    def test_a_shell_function_returns_the_official_result(self, seen):
        result = seen["shell"]
        assert result["type"] == SHELL_RESULT
        assert result["stdout"].endswith("/a b\n")
        assert (result["stderr"], result["returncode"]) == ("oops\n", 0)

    def test_a_command_that_fails_is_a_result_that_says_so(self, seen):
        result = seen["shell_failed"]
        assert result["returncode"] == 3
        assert result["exception_name"] == "subprocess.CalledProcessError"

    def test_return_dict_makes_it_a_dictionary(self, seen):
        assert seen["return_dict"] == {"cmd": "echo 1", "stdout": "1\n", **NO_ERROR}

    def test_a_walltime_ends_the_command_and_all_that_it_started(self, seen):
        result = seen["walltime"]
        assert result["returncode"] == 124
        assert result["exception_name"] == "subprocess.TimeoutExpired"
        said = result["stdout"].split()  # a second may be over before it comes to that
        assert not any(still_sleeps(int(pid)) for pid in said)

    def test_a_missing_argument_is_named(self, seen):
        assert "no such keyword argument (it has: x)" in seen["missing"]["text"]

    def test_command_functions_can_be_used_inside_a_function(self, seen):
        result, text = seen["own_command"]
        assert result == {
            "type": SHELL_RESULT,
            "cmd": "echo hello",
            "stdout": "hello\n",
            **NO_ERROR,
        }
        assert text == "hello\n"

    def test_a_result_can_be_passed_on_to_the_next_function(self, seen):
        assert seen["of_result"] == [True, "out"]

    def test_a_result_that_is_too_large_is_refused_with_both_numbers(self, seen):
        assert "MaxResultSizeExceeded(11534345, 10485760)" in seen["large"]["text"]
        assert "error with serialization" not in seen["large"]["text"]  # nothing to advise

    def test_source_code_is_registered_and_run(self, seen):
        assert seen["source"] == 27

    def test_many_tasks_go_in_batches_and_executors_share_their_group(self, seen):
        assert seen["many"] == [3 * n for n in range(200)]
        assert seen["groups"] == 1

    def test_arguments_that_are_too_large_are_an_error_that_says_so(self, seen):
        assert seen["too_large"]["type"] == "ComputeAPIError"
        assert "TASK_PAYLOAD_TOO_LARGE" in seen["too_large"]["text"]
        assert "is shutdown" in seen["after_an_error"]  # which is up to that package

    def test_a_configuration_that_no_template_takes_is_an_error_that_says_so(self, seen):
        assert seen["template"]["type"] == "ComputeAPIError"
        assert "has no configuration template" in seen["template"]["text"]

    def test_the_sdk_gets_the_workers_hardware(self, seen):
        assert f"host: {platform.node()}\n" in seen["hardware"]

    def test_the_sdk_reports_what_it_does_not_support(self, seen):
        assert seen["map"] == "NotImplementedError"
        assert seen["cancel"] is False


class TestJobs:
    """With a resource specification."""

    def test_an_mpi_function_runs_on_every_rank(self, seen):
        assert seen["mpi"]["type"] == SHELL_RESULT
        assert seen["mpi"]["stdout"] == "rank 7\nrank 7\n"
        assert seen["mpi"]["cmd"] == "$PARSL_MPI_PREFIX bash -c 'echo rank 7'"
        assert len(seen["mpi_dict"]["stdout"].split()) == 2

    def test_arguments_and_options_that_only_python_can_read_work(self, seen):
        assert seen["mpi_path"]["cmd"] == "$PARSL_MPI_PREFIX ls /"
        assert seen["mpi_path"]["stdout"].count("tmp\n") == 2

    def test_a_walltime_ends_the_job(self, seen):
        assert seen["mpi_walltime"]["returncode"] == 124

    @pytest.mark.parametrize("task", ["mpi", "mpi_dict", "mpi_path"])
    def test_an_mpi_function_is_exactly_one_job(self, seen, official_world, task):
        ours = RestClient(official_world.service.credentials)
        events = events_until(ours, seen["task_ids"][task], "clean")
        assert [each["name"] for each in events].count("submit") == 1
        assert len({each["jobid"] for each in events}) == 1

    def test_a_python_function_runs_on_every_rank_too(self, seen):
        assert seen["ranks"] == [6, 6]

    def test_a_misspelt_specification_is_refused_by_name(self, seen):
        assert "unknown key 'num_nodez'; did you mean 'num_nodes'?" in seen["refused"]["text"]


class TestSerialization:
    """Whichever strategy is selected."""

    def test_every_strategy_for_code_and_for_data_works(self, seen):
        assert len(seen["strategies"]) == 9
        assert {value for value, _ in seen["strategies"].values()} == {8}

    def test_command_functions_work_with_every_strategy_that_can_encode_them(self, seen):
        carried = {name: shell for name, (_, shell) in seen["strategies"].items() if shell}
        assert set(carried) == {
            "DillCode, DillDataBase64",
            "CombinedCode, DillDataBase64",
            "AllCodeStrategies, DillDataBase64",
            "DillCode, JSONData",
            "DillCode, AllDataStrategies",
        }
        assert all(shell == ["1\n"] for shell in carried.values())

    def test_the_result_is_written_as_asked_for(self, seen):
        written = {name: identifier for name, (identifier, _) in seen["result_serializers"].items()}
        assert written == {
            "JSONData": "11",
            "DillDataBase64": "00",
            "AllDataStrategies": "13",
            "JSONData,DillDataBase64": "11",
        }

    def test_a_shell_result_takes_the_first_that_can_carry_it(self, seen):
        kinds = {name: kind for name, (_, kind) in seen["result_serializers"].items()}
        assert kinds.pop("JSONData").count("Object of type ShellResult is not JSON") > 0
        assert set(kinds.values()) == {"ShellResult"}


class TestClient:
    """Without an Executor."""

    def test_a_batch_of_several_functions_is_run_and_read(self, seen):
        assert seen["batch"] == [*range(0, 60, 3), 8]
        assert seen["batch_shell"] == "batched\n"
        assert seen["batch_failed"] is False  # the SDK leaves those out of the answer

    def test_a_single_task_is_read(self, seen):
        assert (seen["get_result"], seen["get_task"]) == (8, "success")
        kind, text = seen["get_result_failed"]
        assert kind == "TaskExecutionFailed"
        assert "in a batch" in text

    def test_functions_and_endpoints_are_described(self, seen, official_world):
        assert seen["get_function"] == [True, "area"]
        assert seen["endpoints"] == [official_world.endpoint_id]
        assert (seen["status"], seen["allowed"]) == ("online", False)
        assert seen["metadata"] == official_world.endpoint_id

    def test_an_unknown_endpoint_is_an_error_that_says_so(self, seen):
        assert "ENDPOINT_NOT_FOUND" in seen["unknown_endpoint"]
        assert "is unknown" in seen["unknown_endpoint"]


class User:
    """A program that does what it is told."""

    def __init__(self, world, gate, **order):
        self.process = world.started(PROGRAMS / "gated.py", gate=str(gate), **order)
        self._errors = []
        self._reader = threading.Thread(target=self._errors.extend, args=(self.process.stderr,))
        self._reader.start()

    def does(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def says(self, *words):
        self.does(*words)
        line = self.process.stdout.readline()
        assert line, "".join(self._errors)
        return json.loads(line)

    def end(self):
        """End in good order; return what it wrote to standard error."""
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self._close()
        return "".join(self._errors)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self):
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


@pytest.fixture
def user(official_world, gate):
    """Starts users; none is left behind."""
    users = []

    def start(**order):
        users.append(User(official_world, gate, **order))
        return users[-1]

    yield start
    gate.touch()
    for each in users:
        if each.process.returncode is None:
            each.kill()


def test_tasks_of_a_killed_process_are_found_again_by_their_group(user, gate):
    first = user()
    first.says("submit", 0, 6)
    sent = first.says("ids")
    first.kill()

    second = user(task_group_id=sent["task_group_id"])
    assert second.says("reload") == {"reloaded": 6}
    gate.touch()
    ends = second.says("ends")["ends"]
    second.end()
    assert [ends[task] for task in sent["task_ids"]][:3] == [0, 1, 2]
    assert "number three" in ends[sent["task_ids"][3]]

    third = user(task_group_id=sent["task_group_id"])  # all of them have ended by now
    assert third.says("reload") == {"reloaded": 6}
    assert third.says("ends")["ends"].keys() == set(sent["task_ids"])
    third.end()


def test_a_restart_of_the_service_during_a_run_loses_nothing(official_world, user, gate):
    ada = user()
    ada.says("submit", 0, 3)
    ada.says("ids")
    official_world.service.stop()
    ada.says("submit", 4, 8)  # the SDK tries again and again
    official_world.service.start()
    gate.touch()
    assert list(ada.says("ends")["ends"].values()) == [0, 1, 2, 4, 5, 6, 7]
    ada.end()


class TestWhatTheOfficialClientCanNotDo:
    """It is not disturbed by what only our client can do."""

    @pytest.fixture
    def ours(self, official_world):
        return RestClient(official_world.service.credentials)

    def test_events_and_attached_jobs_do_not_reach_it(self, official_world, user, ours, gate):
        ada = user()
        ada.does("job", f"bash -c 'until [ -e {gate} ]; do sleep 0.05; done'")
        sent = ada.says("ids")
        group, (task,) = sent["task_group_id"], sent["task_ids"]
        ours.request("POST", f"/v2/taskgroup/{group}/events")
        jobid = str(events_until(ours, task, "start")[0]["jobid"])
        attach = {"jobid": jobid, "task_group_id": group, "create_queue": True}
        path = f"/v3/endpoints/{official_world.endpoint_id}/attach"
        attached = ours.request("POST", path, json=attach)["task_id"]

        gate.touch()
        assert ada.says("ends")["ends"] == {task: ""}
        assert ended(ours, attached)["status"] == "success"
        # The next result comes on the same queue, behind whatever else was sent there.
        ada.does("shell", "echo still here")
        (end,) = ada.says("ends")["ends"].values()
        assert end == "still here\n"
        # After a reload the one task whose result is an object of ours is the one that fails.
        bob = user(task_group_id=group)
        assert bob.says("reload") == {"reloaded": 3}
        ends = bob.says("ends")["ends"]
        bob.end()
        assert "No module named 'flux_endpoint'" in ends[attached]
        assert "still here\n" in ends.values()
        complaints = ada.end()
        for word in ("Traceback", "Malformed", "nexpected"):
            assert word not in complaints

    def test_a_cancelled_sdk_future_continues_and_its_result_is_dropped(self, user, gate, ours):
        ada = user()
        ada.says("submit", 0, 1)
        (task,) = ada.says("ids")["task_ids"]
        assert ada.says("cancel") == {"cancelled": True}  # the future alone
        gate.touch()
        assert ended(ours, task)["status"] == "success"
        ada.kill()  # its own shutdown waits for such a future for ever

    def test_our_client_ends_and_reads_its_tasks(self, official_world, user, gate, monkeypatch):
        ada = user()
        ada.says("submit", 0, 1)
        (task,) = ada.says("ids")["task_ids"]
        monkeypatch.setenv("FLUX_ENDPOINT_SERVICE_URL", official_world.service.url)
        monkeypatch.setenv("FLUX_ENDPOINT_TOKEN", official_world.service.credentials.token)
        Client().cancel_task(task)
        (end,) = ada.says("ends")["ends"].values()
        assert "TaskCancelled" in end
        ada.end()


def still_sleeps(pid: int) -> bool:
    """Whether this is a command that sleeps, and not another process that has its number now."""
    try:
        return "sleep" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def events_until(ours: RestClient, task: str, name: str) -> list[dict]:
    """Wait for an event of a task's job; return all that have come."""

    def events() -> list[dict]:
        come: list[dict] = ours.request("GET", f"/v2/tasks/{task}/events")["events"]
        return come if any(each["name"] == name for each in come) else []

    return until(events)


def ended(ours: RestClient, task: str) -> dict:
    """Wait until a task has ended; return what the service knows of it."""
    until(lambda: ours.request("GET", f"/v2/tasks/{task}").get("completion_t"))
    return ours.request("GET", f"/v2/tasks/{task}")


class TestUsers:
    """Who may run tasks at an endpoint of somebody else's; the last tests here, as other users."""

    def test_a_permitted_user_runs_tasks(self, official_world):
        official_world.become("eve")
        said = official_world.run(PROGRAMS / "guest.py")
        assert (said["sees"], said.get("value")) == (True, 42), said

    def test_another_user_sees_a_public_endpoint_and_is_refused_with_the_reason(
        self, official_world
    ):
        official_world.become("mallory")
        said = official_world.run(PROGRAMS / "guest.py")
        assert said["sees"]
        assert "ENDPOINT_NOT_PERMITTED" in said["error"]
        assert "of the users: and groups: in its config.yaml" in said["error"]
