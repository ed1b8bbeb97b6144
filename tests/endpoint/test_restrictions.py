"""On an endpoint with `allowed_functions` a task is a chosen function and data."""

from __future__ import annotations

import base64
import json
import pickle
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint.endpoint.intake import read_task
from flux_endpoint.endpoint.restrictions import KEYS, VARIABLES, RestrictionError, restricted
from flux_endpoint.endpoint.task_records import RefusedTask
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.task import Failure, TaskRunner, TaskSettings, Value
from flux_endpoint.functions import (
    OUR_RESULT,
    MPIFunction,
    ShellFunction,
    ShellResult,
    command_of,
    official_code,
    serialize_arguments,
)
from flux_endpoint.protocol.resources import parse_resources
from flux_endpoint.protocol.run_options import parse_run_options
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.serialize import (
    AllDataStrategies,
    ComputeSerializer,
    DillCode,
    JSONData,
    pack_buffers,
    reading_as,
    unpack_buffers,
)
from trap import Trap


def echo(*args: Any, **kwargs: Any) -> Any:
    """What is registered as a Python function."""
    return [args, kwargs]


def task_of(
    function: Any, *args: Any, serializer: ComputeSerializer | None = None, **kwargs: Any
) -> EngineTask:
    """Return the task that a client sends for a call."""
    serializer = serializer or ComputeSerializer()
    arguments = serialize_arguments(serializer, function, args, kwargs)
    return EngineTask("t", "f", pack_buffers([serializer.serialize(function), *arguments]))


def with_specification(**given: Any) -> EngineTask:
    """Return a task with a resource specification."""
    return EngineTask("t", "f", pack_buffers(["01\ncode", "11\n[]", "11\n{}"]), given)


def run(task: EngineTask, directory: Path) -> Any:
    """Return the value of a task that passed, as a worker of a restricted endpoint makes it."""
    runner = TaskRunner(TaskSettings("e", str(directory), False, None, plain_programs=[]))
    end = runner.run(task.task_id, task.buffer, None)
    assert isinstance(end, Value), end
    with reading_as(OUR_RESULT):
        return ComputeSerializer().deserialize(end.data)


class TestArguments:
    """Arguments are read, never unpickled."""

    @pytest.mark.parametrize("data", [None, "JSONData", "AllDataStrategies"])
    def test_plain_data_arrive(self, data: str | None, tmp_path: Path) -> None:
        strategies = {"JSONData": JSONData, "AllDataStrategies": AllDataStrategies}
        serializer = ComputeSerializer(strategy_data=strategies[data] if data else None)
        task = restricted(task_of(echo, 1, "é", [1.5, None], serializer=serializer, x={"a": True}))
        args, kwargs = run(task, tmp_path)
        assert (list(args), kwargs) == ([1, "é", [1.5, None]], {"x": {"a": True}})

    def test_types_that_json_lacks_arrive(self, tmp_path: Path) -> None:
        args, _ = run(restricted(task_of(echo, (1, 2), b"x", {3}, {1: 2})), tmp_path)
        assert args == ((1, 2), b"x", {3}, {1: 2})

    @pytest.mark.parametrize("data", [None, "AllDataStrategies"])
    @pytest.mark.parametrize("function", [echo, ShellFunction("echo {x}")])
    def test_a_malicious_pickle_is_not_executed(
        self, function: Any, data: str | None, tmp_path: Path
    ) -> None:
        sprung = tmp_path / "sprung"
        serializer = ComputeSerializer(strategy_data=AllDataStrategies if data else None)
        task = task_of(function, x=Trap(sprung), serializer=serializer)
        with pytest.raises(RestrictionError, match="the kwargs of the call are not plain data"):
            restricted(task)
        assert not sprung.exists()
        if data is None and function is echo:  # as it does elsewhere
            TaskRunner(TaskSettings("e", str(tmp_path), False, None)).run("t", task.buffer, None)
            assert sprung.exists()

    def test_a_pickle_after_an_unreadable_alternative_is_refused(self, tmp_path: Path) -> None:
        """`AllDataStrategies` holds several; where the first can't be read the next one is."""
        sprung = tmp_path / "sprung"
        trap = "00\n" + base64.encodebytes(pickle.dumps((Trap(sprung),))).decode()
        both = "13\n" + pack_buffers(["11\n[}", trap])
        code = ComputeSerializer().serialize(echo)
        with pytest.raises(RestrictionError, match="the args of the call"):
            restricted(EngineTask("t", "f", pack_buffers([code, both, "11\n{}"])))
        assert not sprung.exists()

    @pytest.mark.parametrize("kind", ["01", "02", "10", "12", "st", "fc", "??"])
    def test_code_is_no_argument(self, kind: str) -> None:
        code = ComputeSerializer().serialize(echo)
        with pytest.raises(RestrictionError, match="the args of the call"):
            restricted(EngineTask("t", "f", pack_buffers([code, f"{kind}\n[]", "11\n{}"])))

    @pytest.mark.parametrize("buffers", [[], ["a"], ["01\na", "11\n[]"]])
    def test_a_task_is_three_buffers(self, buffers: list[str]) -> None:
        with pytest.raises(RestrictionError, match="three buffers"):
            restricted(EngineTask("t", "f", pack_buffers(buffers)))

    def test_results_of_other_tasks_are_no_arguments(self) -> None:
        code = ComputeSerializer().serialize(echo)
        with pytest.raises(RestrictionError, match=r"result of another task.*allowed_functions"):
            restricted(EngineTask("t", "f", pack_buffers([code, "11\n[]", "11\n{}", "11\n1"])))


class TestCommands:
    """Values in a command are words, or parts of one."""

    @pytest.mark.parametrize("function", [ShellFunction("echo Hello {name}"), "official"])
    @pytest.mark.parametrize("serializer", [None, ComputeSerializer(strategy_data=JSONData)])
    def test_a_value_is_no_code(
        self, function: Any, serializer: ComputeSerializer | None, tmp_path: Path
    ) -> None:
        task = task_of(ShellFunction("echo Hello {name}"), name="x; id", serializer=serializer)
        if function == "official":
            code = official_code(ShellFunction("echo Hello {name}"))
            task = EngineTask("t", "f", pack_buffers([code, *unpack_buffers(task.buffer)[1:]]))
        passed = restricted(task)
        assert vars(run(passed, tmp_path))["stdout"] == "Hello x; id\n"
        found = command_of(passed.buffer)  # what becomes a job of its own
        assert found is not None
        assert found[0].format_command(found[1]) == "echo Hello 'x; id'"

    def test_a_rank_command_is_quoted(self) -> None:
        task = task_of(MPIFunction("app {x}"), x="a b")
        with pytest.raises(RestrictionError, match="app is not known to take every text for data"):
            restricted(task)
        found = command_of(restricted(task, programs=["app"]).buffer)
        assert found is not None
        assert isinstance(found[0], MPIFunction)
        assert found[0].format_command({}) == "app 'a b'"

    def test_a_command_sent_as_byte_code_is_quoted_by_its_worker(self, tmp_path: Path) -> None:
        serializer = ComputeSerializer(strategy_code=DillCode)
        passed = restricted(task_of(ShellFunction("echo {x}"), x="$(id)", serializer=serializer))
        result = run(passed, tmp_path)
        assert isinstance(result, ShellResult)
        assert result.stdout == "$(id)\n"

    def test_values_that_can_not_be_quoted_are_refused(self) -> None:
        with pytest.raises(RestrictionError, match=r"\{x\} must be a number here: .* bash is not"):
            restricted(task_of(ShellFunction("bash -c 'echo {x}'"), x="$(id)"))

    @pytest.mark.parametrize("path", ["/tmp/x", "../x"])
    def test_output_stays_below_the_directory(self, path: str, tmp_path: Path) -> None:
        with pytest.raises(RestrictionError, match=r"stdout is .* below the task's directory"):
            restricted(task_of(ShellFunction("date", stdout=path)))
        serializer = ComputeSerializer(strategy_code=DillCode)
        passed = restricted(task_of(ShellFunction("date", stderr=path), serializer=serializer))
        end = TaskRunner(TaskSettings("e", str(tmp_path), False, None, plain_programs=[])).run(
            "t", passed.buffer, None
        )
        assert isinstance(end, Failure)
        assert "stderr is" in end.text
        assert restricted(task_of(ShellFunction("date", stdout="logs/x")))


class TestSpecification:
    """A specification says how much, where and when; it brings nothing along."""

    @pytest.mark.parametrize(
        "key", ["shell_options", "attributes", "launcher_options", "worker_init", "python", "zzz"]
    )
    def test_specification_keys_outside_the_list_are_refused(self, key: str) -> None:
        said = f"'{key}' can't be used here: .*; it takes bank, .*walltime$"
        with pytest.raises(RestrictionError, match=said):
            restricted(with_specification(num_ranks=1, **{key: {}}))

    def test_each_key_that_is_taken_exists(self) -> None:
        for key in KEYS:
            restricted(with_specification(**{key: {}}))
            with pytest.raises(ValueError) as refusal:  # noqa: PT011 - not that it is unknown
                parse_resources({key: object()})
            assert "unknown key" not in str(refusal.value)

    @pytest.mark.parametrize(
        "name",
        [
            "BASH_ENV",
            "BASH_FUNC_echo%%",
            "ENV",
            "FLUX_SHELL_RC_PATH",
            "GCONV_PATH",
            "HOME",
            "IFS",
            "LD_AUDIT",
            "LD_LIBRARY_PATH",
            "LD_PRELOAD",
            "LUA_INIT",
            "OMP_TOOL_LIBRARIES",
            "PARSL_MPI_PREFIX",
            "PATH",
            "PERL5OPT",
            "PS4",
            "PYTHONPATH",
            "PYTHONSTARTUP",
            "SHELLOPTS",
            "TMPDIR",
        ],
    )
    @pytest.mark.parametrize("value", ["x", None])
    def test_variables_of_loaders_and_shells_are_refused(
        self, name: str, value: str | None
    ) -> None:
        with pytest.raises(RestrictionError, match=r"it takes BLIS_NUM_THREADS, .*OMP_NUM_THREADS"):
            restricted(with_specification(environment={name: value}))

    def test_variables_that_are_data_are_taken(self) -> None:
        restricted(with_specification(environment=dict.fromkeys(VARIABLES, "1")))
        restricted(with_specification(environment={"MODEL": "a"}), ["MODEL"])


@pytest.mark.parametrize(
    "options", [{"stdin": "x"}, {"stdin": ""}, {"cwd": "x"}, {"env": {"LD_PRELOAD": "x"}}]
)
def test_a_place_of_ones_own_is_refused(options: dict[str, Any]) -> None:
    task = replace(with_specification(), options=parse_run_options(options))
    with pytest.raises(RestrictionError, match=f"{next(iter(options))}.* can't be set here"):
        restricted(task)


def test_variables_of_a_task_on_a_worker_may_be_data() -> None:
    options = parse_run_options({"env": {"MODEL": "a", "OMP_NUM_THREADS": "2"}, "retries": 1})
    task = replace(with_specification(), options=options)
    assert restricted(task, ["MODEL"]).options == options


def test_a_job_that_is_followed_brings_nothing_along() -> None:
    task = EngineTask("t", "f", "", None, None, attach=7)
    assert restricted(task) is task


@pytest.mark.parametrize("is_restricted", [True, False])
def test_a_message_that_breaks_a_rule_is_refused_alone(is_restricted: bool) -> None:
    task_id, function_id = str(uuid.uuid4()), str(uuid.uuid4())
    headers = {
        "task_uuid": task_id,
        "function_uuid": function_id,
        "resource_specification": json.dumps({"environment": {"BASH_ENV": "/tmp/x"}}),
    }
    data = {"task_buffer": pack_buffers(["01\ncode", "11\n[]", "11\n{}"])}
    body = b"\x01" + json.dumps({"message_type": "task", "data": data}).encode()
    allowed = frozenset({function_id}) if is_restricted else None
    read = read_task(body, headers, endpoint_id="e", allowed_functions=allowed)
    assert isinstance(read, RefusedTask if is_restricted else EngineTask)
    if isinstance(read, RefusedTask):
        told = json.loads(read.result.body[1:])["data"]
        assert told["error_details"]["code"] == ErrorCode.TASK_NOT_ALLOWED
        assert "environment['BASH_ENV'] can't be set here" in told["data"]


def test_the_documentation_lists_the_keys() -> None:
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `resource_specification`"))
    taken = row.split("|")[2].split(";")[0]
    assert set(taken.replace("`", "").replace(",", " ").split()) == KEYS
