"""The official package's command functions: read without it, and without running anything."""

from __future__ import annotations

import base64
import io
import json
import pickle
import subprocess
from pathlib import Path
from typing import ClassVar

import dill
import pytest

from flux_endpoint.engine.task import TaskRunner, TaskSettings, Value
from flux_endpoint.errors import DeserializationError
from flux_endpoint.functions import (
    OUR_RESULT,
    MPIFunction,
    OfficialShellResult,
    ShellFunction,
    ShellResult,
    command_of,
    formatted_task,
    is_command,
    official_code,
    read_function,
)
from flux_endpoint.functions.official import (
    MPI_MODULE,
    SHELL_MODULE,
    OfficialMPIFunction,
    OfficialShellFunction,
)
from flux_endpoint.serialize import (
    AllCodeStrategies,
    AllDataStrategies,
    CombinedCode,
    ComputeSerializer,
    DillDataBase64,
    JSONData,
    pack_buffers,
    reading_as,
)
from trap import Trap

FULL = {
    "cmd": "echo {x}",
    "stdout": "o",
    "stderr": "e",
    "walltime": 1.5,
    "snippet_lines": 7,
    "name": "say",
    "return_dict": True,
}
NO_ARGUMENTS = ("00\ngAQpLg==\n", DillDataBase64().serialize({}))


def buffer_of(module, name, state):
    """A function's buffer, of a class that exists nowhere."""
    cls = type(name, (), {"__module__": module})
    instance = cls()
    vars(instance).update(state)

    class ByName(pickle._Pickler):
        dispatch: ClassVar = dict(pickle._Pickler.dispatch)

        def save_class(self, obj):
            self.save(obj.__module__)
            self.save(obj.__name__)
            self.write(pickle.STACK_GLOBAL)
            self.memoize(obj)

        dispatch[type] = save_class

    file = io.BytesIO()
    ByName(file, protocol=4).dump(instance)
    return "01\n" + base64.encodebytes(file.getvalue()).decode()


STATE = {
    "cmd": "echo {x}",
    "stdout": None,
    "stderr": None,
    "walltime": None,
    "snippet_lines": 1000,
    "__name__": "ShellFunction",
    "return_dict": False,
}


class TestReading:
    """From a buffer to one of our functions."""

    def test_a_shell_function_is_one_of_ours(self):
        function = read_function(buffer_of(SHELL_MODULE, "ShellFunction", STATE))
        assert isinstance(function, ShellFunction)
        assert not isinstance(function, MPIFunction)
        assert vars(function) == vars(ShellFunction("echo {x}"))

    def test_an_mpi_function_is_one_of_ours(self):
        function = read_function(buffer_of(MPI_MODULE, "MPIFunction", STATE))
        assert isinstance(function, MPIFunction)
        assert function.format_command({"x": 1}) == "echo 1"

    @pytest.mark.parametrize("strategy", [AllCodeStrategies, CombinedCode])
    def test_a_function_is_found_in_a_buffer_of_combined_strategies(self, strategy):
        source = "04\n" + base64.encodebytes(b"class ShellFunction: ...").decode()
        own = official_code(ShellFunction("date"))
        parts = [source, own, "sd\nShellFunction:class ShellFunction:\n  a: 1\n"]
        text = (
            "12\n" + pack_buffers(parts)
            if strategy is AllCodeStrategies
            else "10\n" + ":".join(f"{part[:3]}:{part[3:]}" for part in parts)
        )
        assert read_function(text).cmd == "date"

    @pytest.mark.parametrize(
        ("module", "name", "change"),
        [
            (SHELL_MODULE, "ShellResult", {}),
            (SHELL_MODULE, "Shell", {}),
            ("os", "system", {}),
            ("globus_compute_sdk.sdk.client", "Client", {}),
            (MPI_MODULE, "ShellFunction", {}),
            (SHELL_MODULE, "ShellFunction", {"cmd": 5}),
            (SHELL_MODULE, "ShellFunction", {"cmd": None}),
            (SHELL_MODULE, "ShellFunction", {"walltime": -1}),
            (SHELL_MODULE, "ShellFunction", {"of_a_later_release": 1}),
            (SHELL_MODULE, "ShellFunction", {"stdout": Path("x")}),
            (SHELL_MODULE, "ShellFunction", {"__name__": "no name"}),
        ],
    )
    def test_other_functions_are_left_to_a_worker(self, module, name, change):
        assert read_function(buffer_of(module, name, {**STATE, **change})) is None

    def test_reading_a_buffer_neither_runs_nor_unpickles_it(self, tmp_path):
        trap = Trap(tmp_path / "trace")
        for buffer in (
            buffer_of(SHELL_MODULE, "ShellFunction", {**STATE, "stdout": trap}),
            "01\n" + base64.encodebytes(dill.dumps(trap)).decode(),
        ):
            assert read_function(buffer) is None
            assert command_of(pack_buffers([buffer, *NO_ARGUMENTS])) is None
        assert not trap.trace.exists()

    @pytest.mark.parametrize("text", ["", "01\n", "01\n=", "01\nä", "10\n", "12\n", "12\n3\n", "x"])
    def test_malformed_buffers_are_not_read(self, text):
        assert read_function(text) is None
        assert not is_command(pack_buffers([text, *NO_ARGUMENTS]))

    def test_a_truncated_buffer_is_not_read(self):
        whole = buffer_of(SHELL_MODULE, "ShellFunction", STATE)
        for length in range(len(whole) - 6):
            assert read_function(whole[:length]) is None


class TestWriting:
    """What the official package reads as its own."""

    @pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])
    def test_a_function_comes_back_as_it_was(self, kind):
        again = read_function(official_code(kind(**FULL)))
        assert vars(again) == vars(kind(**FULL))
        assert isinstance(again, MPIFunction) == (kind is MPIFunction)

    def test_our_package_is_not_needed_to_read_it(self):
        for text in (
            official_code(ShellFunction(**FULL)),
            official_code(MPIFunction(**FULL)),
            ComputeSerializer().serialize(OfficialShellResult("c", "o", "e", 0)),
        ):
            assert b"flux_endpoint" not in base64.decodebytes(text[3:].encode())

    def test_a_user_s_subclass_is_no_official_class(self):
        class Louder(OfficialShellFunction):
            pass

        pickled = dill.dumps(Louder("x"))
        assert b"Louder" in pickled
        assert isinstance(dill.loads(dill.dumps(int)), type)


class TestACommandTask:
    """What the endpoint sees of it before anything runs."""

    def task(self, function, kwargs):
        return pack_buffers([official_code(function), NO_ARGUMENTS[0],
                             DillDataBase64().serialize(kwargs)])  # fmt: skip

    def test_function_and_arguments_are_known(self):
        function, arguments = command_of(self.task(MPIFunction("echo {x}"), {"x": (1, "a")}))
        assert isinstance(function, OfficialMPIFunction)
        assert arguments == {"x": (1, "a")}

    def test_the_same_function_of_ours_runs_the_same_command(self):
        for kind in (ShellFunction, MPIFunction):
            function, _ = command_of(self.task(kind(**FULL), {}))
            assert function.command_prefix == kind.command_prefix
            assert function.format_command({"x": "{}"}) == kind(**FULL).format_command({"x": "{}"})

    def test_arguments_that_only_python_reads_are_formatted_elsewhere(self):
        buffer = self.task(MPIFunction("echo {x}", return_dict=True), {"x": Path("{a}")})
        assert is_command(buffer)
        assert command_of(buffer) is None
        function = read_function(official_code(MPIFunction("echo {x}", return_dict=True)))
        again, arguments = command_of(formatted_task(function, (), {"x": Path("{a}")}))
        assert (again.format_command(arguments), again.return_dict) == ("echo {a}", True)
        assert isinstance(again, OfficialMPIFunction)

    def test_options_that_only_python_reads_are_formatted_elsewhere(self):
        state = {**STATE, "stdout": Path("x")}
        buffer = buffer_of(SHELL_MODULE, "ShellFunction", state)
        assert is_command(pack_buffers([buffer, *NO_ARGUMENTS]))
        theirs = type("ShellFunction", (), {"__module__": SHELL_MODULE})
        for kind in (theirs, OfficialShellFunction):  # as the worker has it, real or a stand-in
            vars(function := kind.__new__(kind)).update(state)
            function, _ = command_of(formatted_task(function, (), {"x": 1}))
            assert (function.stdout, function.cmd) == ("x", "echo 1")

    def test_a_script_may_be_as_long_as_the_wire_carries(self):
        script = "true {x}\n" * 1_000_000
        function, _ = command_of(self.task(ShellFunction(script), {"x": "y"}))
        assert function.cmd == script
        assert command_of(formatted_task(function, (), {"x": "y"})) is not None

    def test_a_formatted_command_above_the_limit_is_refused(self):
        function = ShellFunction("{x}" * 2000)
        with pytest.raises(ValueError, match="longer than 16777216 characters"):
            formatted_task(read_function(official_code(function)), (), {"x": "y" * 10_000})

    def test_an_object_that_is_not_a_command_function_is_named(self):
        vars(thing := Trap("x")).update(STATE)
        with pytest.raises(DeserializationError, match="Trap that can't be used"):
            formatted_task(thing, (), {})


class TestOnAWorker:
    """It runs as ours do, and its result is what the official client expects."""

    @pytest.fixture
    def run(self, tmp_path):
        def run(function, kwargs, strategies=None, allowed=None):
            runner = TaskRunner(TaskSettings("e", str(tmp_path), False, allowed))
            buffers = [official_code(function), NO_ARGUMENTS[0], DillDataBase64().serialize(kwargs)]
            return runner.run("t", pack_buffers(buffers), strategies)

        return run

    def test_the_result_is_an_official_one(self, run):
        end = run(ShellFunction("echo {x}; exit 3"), {"x": 1})
        assert isinstance(end, Value)
        pickled = base64.decodebytes(end.data[3:].encode())
        assert SHELL_MODULE.encode() in pickled
        assert b"flux_endpoint" not in pickled

    def test_our_client_reads_it_as_one_of_ours(self, run):
        end = run(ShellFunction("echo {x}; exit 3"), {"x": 1})
        with reading_as(OUR_RESULT):
            result = ComputeSerializer().deserialize(end.data)
        assert type(result) is ShellResult
        assert (result.stdout, result.returncode) == ("1\n", 3)
        assert result.exception_name == "subprocess.CalledProcessError"

    def test_the_walltime_is_kept(self, run):
        function = ShellFunction("sleep 600", walltime=0.1, return_dict=True)
        assert json.loads(run(function, {}, [JSON]).data[3:])["returncode"] == 124

    def test_return_dict_and_the_serializers_asked_for_are_respected(self, run):
        data = run(ShellFunction("echo {x}", return_dict=True), {"x": 1}, [JSON]).data
        assert data.startswith("11\n")
        assert json.loads(data[3:]) == {
            "cmd": "echo 1",
            "stdout": "1\n",
            "stderr": "",
            "returncode": 0,
            "exception_name": None,
        }

    def test_an_object_that_json_can_not_encode_uses_the_next_strategy(self, run):
        data = run(ShellFunction("true"), {}, [JSON, ALL]).data
        assert data.startswith("13\n")
        assert "globus" in base64.b64decode(data.split("00\n")[1]).decode("latin-1")

    def test_positional_arguments_are_refused(self, tmp_path):
        buffers = [official_code(ShellFunction("true")), "11\n[1]", "11\n{}"]
        runner = TaskRunner(TaskSettings("e", str(tmp_path), False, None))
        assert "keyword arguments only" in runner.run("t", pack_buffers(buffers), None).text

    def test_a_site_s_allow_list_holds_for_it(self, run):
        allowed = ["globus_compute_sdk.serialize.AllCodeStrategies", "globus_compute_sdk.*Data"]
        assert "DillCode disabled" in run(ShellFunction("true"), {}, None, allowed).text


JSON = f"{JSONData.__module__}.JSONData"
ALL = f"{AllDataStrategies.__module__}.AllDataStrategies"

PROGRAM = """
import json, sys
import globus_compute_sdk as gc
from globus_compute_sdk import serialize
from globus_compute_sdk.serialize import ComputeSerializer

assert "flux_endpoint" not in sys.modules
order = json.load(sys.stdin)
functions = [kind(**options) for options in order["options"]
             for kind in (gc.ShellFunction, gc.MPIFunction)]
written = {
    name: [ComputeSerializer(strategy_code=getattr(serialize, name)()).serialize(each)
           for each in functions]
    for name in ("DillCode", "CombinedCode", "AllCodeStrategies")
}
arguments = {
    name: [ComputeSerializer(strategy_data=getattr(serialize, name)()).serialize(each)
           for each in ((), {"x": [1, "a", None, 1.5]})]
    for name in ("DillDataBase64", "JSONData", "AllDataStrategies")
}
result = gc.ShellResult(*order["result"])
read = [ComputeSerializer().deserialize(text) for text in order["texts"]]
assert [type(each) for each in read] == [type(each) for each in [*functions, result]]
json.dump({
    "written": written,
    "arguments": arguments,
    "result": ComputeSerializer().serialize(result),
    "read": [vars(each) for each in read],
}, sys.stdout)
"""


OPTIONS = ({"cmd": "echo {x}"}, FULL)
RESULT = ("c", "o\n", "", 1, "subprocess.CalledProcessError")
OURS = [kind(**options) for options in OPTIONS for kind in (ShellFunction, MPIFunction)]


@pytest.fixture(scope="module")
def official(official_python):
    """What the official package writes, and reads of what we write."""
    result = ComputeSerializer().serialize(OfficialShellResult(*RESULT))
    texts = [*map(official_code, OURS), result]
    run = subprocess.run(
        [official_python, "-c", PROGRAM],
        input=json.dumps({"options": OPTIONS, "result": RESULT, "texts": texts}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.interop
class TestWithTheOfficialPackage:
    """Each side reads what the other writes."""

    def test_the_official_package_reads_our_functions(self, official):
        *functions, result = official["read"]
        assert functions == [vars(each) for each in OURS]
        assert result == vars(ShellResult(*RESULT))

    def test_a_result_is_the_same_text(self, official):
        ours = ComputeSerializer().serialize(OfficialShellResult(*RESULT))
        assert ours == official["result"]

    @pytest.mark.parametrize("strategy", ["DillCode", "CombinedCode", "AllCodeStrategies"])
    def test_our_package_reads_official_functions(self, official, strategy):
        read = [read_function(text) for text in official["written"][strategy]]
        assert [vars(each) for each in read] == [vars(each) for each in OURS]

    @pytest.mark.parametrize("strategy", ["DillDataBase64", "JSONData", "AllDataStrategies"])
    def test_our_package_reads_official_arguments(self, official, strategy):
        for function in official["written"]["DillCode"]:
            buffers = [function, *official["arguments"][strategy]]
            assert command_of(pack_buffers(buffers))[1] == {"x": [1, "a", None, 1.5]}
