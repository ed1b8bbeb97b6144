"""Command functions travel as data: readable without running, or unpickling, anything."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.errors import DeserializationError
from flux_endpoint.functions import (
    CommandFunctionCode,
    MPIFunction,
    ShellFunction,
    command_of,
    serialize_arguments,
)
from flux_endpoint.functions.transport import is_plain_json
from flux_endpoint.serialize import (
    ComputeSerializer,
    DillCode,
    DillDataBase64,
    JSONData,
    pack_buffers,
)
from trap import Trap

FULL = {
    "cmd": "echo {x}: \u00e4\n",
    "stdout": "o",
    "stderr": "e",
    "walltime": 1.5,
    "snippet_lines": 7,
    "name": "say",
    "return_dict": True,
}

texts = st.text()
numbers = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
BOTH = "flux_endpoint.serialize.AllDataStrategies"


def task(function, kwargs, serializer=None, args=()):
    serializer = serializer or ComputeSerializer()
    buffers = [
        serializer.serialize(function),
        *serialize_arguments(serializer, function, args, kwargs),
    ]
    return serializer.pack_buffers(buffers)


def test_a_command_function_is_its_options_as_json():
    text = ComputeSerializer().serialize(MPIFunction(**FULL))
    assert text[:3] == "fc\n"
    assert json.loads(text[3:]) == {"kind": "mpi", **FULL}
    assert json.loads(ComputeSerializer().serialize(ShellFunction("date"))[3:]) == {
        "kind": "shell",
        "cmd": "date",
        "stdout": None,
        "stderr": None,
        "walltime": None,
        "snippet_lines": 1000,
        "name": "ShellFunction",
        "return_dict": False,
    }


@pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])
@pytest.mark.parametrize("options", [{"cmd": "date"}, FULL])
def test_a_command_function_round_trips(kind, options):
    serializer = ComputeSerializer()
    function = serializer.deserialize(serializer.serialize(kind(**options)))
    assert type(function) is kind
    assert vars(function) == vars(kind(**options))


def test_an_infinite_walltime_arrives_as_none():
    text = ComputeSerializer().serialize(ShellFunction("date", walltime=math.inf))
    assert ComputeSerializer().deserialize(text).walltime is None


def test_a_chosen_strategy_is_respected():
    text = ComputeSerializer(strategy_code=DillCode).serialize(ShellFunction("date"))
    assert text[:3] == "01\n"
    assert vars(ComputeSerializer().deserialize(text)) == vars(ShellFunction("date"))


class Louder(ShellFunction):
    def format_command(self, arguments):
        return super().format_command(arguments).upper()


def test_a_subclass_travels_as_any_object_does_because_it_may_do_more():
    text = ComputeSerializer().serialize(Louder("echo {x}"))
    assert text[:3] == "01\n"
    with pytest.raises(Exception, match="not Louder"):
        ComputeSerializer(strategy_code=CommandFunctionCode).serialize(Louder("x"))


def test_importing_the_package_is_all_that_a_worker_needs():
    program = (
        "import sys, flux_endpoint.functions\n"
        "from flux_endpoint.serialize import ComputeSerializer\n"
        "f, a, k = ComputeSerializer().unpack_and_deserialize(sys.stdin.read())\n"
        "print(f.cmd, a, k)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        input=task(ShellFunction("date {x}"), {"x": 1}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout == "date {x} [] {'x': 1}\n"


def test_the_strategy_counts_as_code_for_allow_lists():
    text = ComputeSerializer().serialize(ShellFunction("date"))
    for code in ("flux_endpoint.*Code", "flux_endpoint.functions.CommandFunctionCode"):
        allowed = [code, JSONData]
        serializer = ComputeSerializer(allowed_deserializer_types=allowed)
        assert serializer.deserialize(text).cmd == "date"
    with pytest.raises(DeserializationError, match="CommandFunctionCode disabled"):
        ComputeSerializer(allowed_deserializer_types=[DillCode, JSONData]).deserialize(text)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ("", "Expecting value"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "kind is one of shell, mpi, got None"),
        ('{"kind": "ssh", "cmd": "x"}', "kind is one of shell, mpi, got 'ssh'"),
        ('{"kind": ["shell"], "cmd": "x"}', "kind is one of"),
        ('{"kind": "shell"}', "lacks its 'cmd'"),
        ('{"kind": "shell", "cmd": "x", "b": 1, "a": 2}', "unknown fields a, b"),
        ('{"kind": "shell", "cmd": 5}', "cmd must be a string"),
        ('{"kind": "shell", "cmd": "x", "walltime": -1}', "walltime must not be negative"),
    ],
)
def test_a_malformed_one_is_refused_with_the_reason(payload, why):
    with pytest.raises(DeserializationError, match=f"CommandFunctionCode .*{why}"):
        ComputeSerializer().deserialize("fc\n" + payload)


class TestCommandOf:
    """A look into a task, which runs nothing of the user's."""

    @given(st.dictionaries(texts, plain, max_size=4))
    def test_a_command_function_with_plain_arguments_is_recognized(self, kwargs):
        function, arguments = command_of(task(MPIFunction(**FULL), kwargs))
        assert vars(function) == vars(MPIFunction(**FULL))
        assert arguments == kwargs

    @pytest.mark.parametrize("data", [DillDataBase64, BOTH])
    def test_a_command_function_with_pickled_plain_arguments_is_recognized(self, data):
        kwargs = {"x": {"a": 1.5}, "y": [b"b", 2**70]} if data is DillDataBase64 else {"x": [1]}
        serializer = ComputeSerializer(strategy_data=data)
        _, arguments = command_of(task(ShellFunction("echo {x}"), kwargs, serializer))
        assert arguments == kwargs
        _, arguments = command_of(task(ShellFunction("echo {x}"), {"x": (1, {2})}))
        assert arguments == {"x": (1, {2})}

    def test_other_tasks_are_not_recognized_and_not_unpickled(self, tmp_path):
        shell = ShellFunction("echo {x}")
        trap = Trap(tmp_path / "trace")
        for buffer in (
            task(len, {}),
            task(shell, {"x": trap}),
            task(shell, {"x": 1}, args=(1,)),
            task(shell, {"x": 1}, ComputeSerializer(strategy_code=DillCode)),
            task(shell, {"x": trap}, ComputeSerializer(strategy_data=BOTH)),
        ):  # fmt: skip
            assert command_of(buffer) is None
        assert not trap.trace.exists()

    GOOD = ('fc\n{"kind": "shell", "cmd": "x"}', "11\n[]", '11\n{"a": 1}')

    def test_a_task_of_three_valid_buffers_is_recognized(self):
        assert command_of(pack_buffers(self.GOOD))[1] == {"a": 1}

    @pytest.mark.parametrize(
        ("which", "buffer"),
        [
            (0, ""),
            (0, "fc\n"),
            (0, "fc\n[1,2]"),
            (0, "fc\n{}"),
            (0, 'fc\n{"kind": "shell", "cmd": 5}'),
            (0, 'fd\n{"kind": "shell", "cmd": "x"}'),
            (1, ""),
            (1, "11\n{}"),
            (1, "11\n[1]"),
            (1, "00\ngAQpL"),
            (1, "13\n"),
            (2, ""),
            (2, "11\n[]"),
            (2, "00\ngAQpLg==\n"),
            (2, "00\n" + DillDataBase64().serialize({1: 2})[3:]),
            (2, "11\n{a}"),
            (2, "11\n" + "[" * 100_000),
        ],
    )
    def test_a_task_with_a_malformed_buffer_is_not_recognized(self, which, buffer):
        buffers = list(self.GOOD)
        buffers[which] = buffer
        assert command_of(pack_buffers(buffers)) is None

    @pytest.mark.parametrize("count", [0, 1, 2, 4])
    def test_a_task_with_another_number_of_buffers_is_not_recognized(self, count):
        assert command_of(pack_buffers((self.GOOD * 2)[:count])) is None

    def test_a_text_that_is_not_packed_is_not_recognized(self):
        assert command_of("x") is None
        assert command_of("5\nabc") is None

    @given(texts)
    def test_no_text_raises(self, text):
        assert command_of(text) is None


class TestArguments:
    """JSON where nothing is lost, else the serializer's own strategy."""

    def test_plain_arguments_of_a_command_function_are_json(self):
        buffers = serialize_arguments(ComputeSerializer(), ShellFunction("x"), (), {"a": [1, "b"]})
        assert buffers == ["11\n[]", '11\n{"a": [1, "b"]}']

    @pytest.mark.parametrize(
        ("serializer", "function", "args", "kwargs"),
        [
            (ComputeSerializer(), len, (), {"a": 1}),
            (ComputeSerializer(), ShellFunction("x"), (1,), {}),
            (ComputeSerializer(), ShellFunction("x"), (), {"a": (1,)}),
            (ComputeSerializer(), ShellFunction("x"), (), {"a": {1: 2}}),
            (ComputeSerializer(), Louder("x"), (), {"a": 1}),
            (ComputeSerializer(), "a function's id", [], {"a": 1}),
        ],
    )
    def test_other_arguments_are_pickled(self, serializer, function, args, kwargs):
        buffers = serialize_arguments(serializer, function, args, kwargs)
        assert [buffer[:3] for buffer in buffers] == ["00\n", "00\n"]
        assert [serializer.deserialize(buffer) for buffer in buffers] == [tuple(args), kwargs]

    def test_a_chosen_strategy_is_respected(self):
        serializer = ComputeSerializer(strategy_data=BOTH)
        buffers = serialize_arguments(serializer, ShellFunction("x"), (), {"a": 1})
        assert [buffer[:3] for buffer in buffers] == ["13\n", "13\n"]

    @given(plain)
    def test_plain_values_round_trip_exactly(self, value):
        if is_plain_json(value):
            again = json.loads(json.dumps(value))
            assert repr(again) == repr(value)
        else:
            assert any(len(part) > 300 for part in repr(value).split(","))  # a huge integer

    @pytest.mark.parametrize(
        "value",
        [(1,), {1: 2}, {"a": {None: 1}}, math.nan, [math.inf], {1}, b"x", object(), 1j, 10**500,
         type("S", (str,), {})("x"), type("I", (int,), {})(1), type("D", (dict,), {})(), [[()]]],
    )  # fmt: skip
    def test_values_that_json_would_change_are_not_plain(self, value):
        assert not is_plain_json(value)

    def test_endless_nesting_is_not_plain(self):
        value = []
        value.append(value)
        assert not is_plain_json(value)


def test_a_task_s_result_can_be_read_where_functions_was_not_imported():
    text = ComputeSerializer().serialize(ShellFunction("echo x")())
    assert text[:3] == DillDataBase64.identifier
    program = (
        "import sys\n"
        "from flux_endpoint.serialize import ComputeSerializer\n"
        "print(ComputeSerializer().deserialize(sys.stdin.read()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout == "exit code: 0\n   stdout:\nx\n"
