"""Calls of command functions that would fail at the endpoint are refused at submission."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from flux_endpoint import Client, Executor, MPIFunction, ShellFunction
from flux_endpoint.serialize.packing import unpack_buffers
from waiting import until

TIMEOUT = 30
FIELD = r"has the field \{print \$1\} .* literal braces are written \{\{ \}\}"
KINDS = pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])


@KINDS
def test_single_braces_are_found_at_submission(service: Any, executor: Executor, kind: Any) -> None:
    executor.resource_specification = {"num_ranks": 1}
    with pytest.raises(TypeError, match=FIELD):
        executor.submit(kind("awk '{print $1}' {f}"), f="data")
    future = executor.submit(kind("awk '{{print $1}}' {f}"), f="data")
    assert future.wait_submitted(TIMEOUT)
    assert len(service.seen("/v3/functions")) == 1


@pytest.mark.parametrize("chunksize", [1, 5])
def test_map_of_a_command_function_is_refused(executor: Executor, chunksize: int) -> None:
    with pytest.raises(TypeError, match="keyword arguments only"):
        executor.map(ShellFunction("echo {x}"), range(5), chunksize=chunksize)


@KINDS
def test_map_gives_the_fields_of_a_command_by_name(
    service: Any, executor: Executor, kind: Any
) -> None:
    executor.resource_specification = {"num_ranks": 1}
    function = kind("echo {x} {y}")

    def sent() -> list[Any]:
        payloads = [
            text
            for request in service.submissions()
            for texts in request.body["tasks"].values()
            for text in texts
        ]
        return [
            [executor.serializer.deserialize(part) for part in unpack_buffers(payload)]
            for payload in payloads
        ]

    values = executor.map(function, x=range(3), y="abcd")
    until(lambda: len(sent()) == 3)
    assert sent() == [[[], {"x": number, "y": "abc"[number]}] for number in range(3)]
    values.close()
    with pytest.raises(TypeError, match=r"the field \{y\}"):
        executor.map(function, x=range(3))
    with pytest.raises(ValueError, match="chunksize must be 1"):
        executor.map(function, x=range(3), y="abc", chunksize=2)


@KINDS
def test_a_registered_command_function_is_checked_by_its_id(
    service: Any, client: Client, kind: Any
) -> None:
    known = client.register_function(kind("echo {x} {y}"))
    batch = client.create_batch()
    with pytest.raises(TypeError, match=r"the field \{y\} .*\(it has: x\)"):
        batch.add(known, kwargs={"x": 1})
    with pytest.raises(TypeError, match=r"the field \{y\} .*\(it has: x\)"):
        client.run(endpoint_id=str(uuid.uuid4()), function_id=known, x=1)
    batch.add(known, kwargs={"x": 1, "y": 2})
    assert len(batch) == 1


def test_a_registered_command_function_is_checked_as_it_was_registered(
    service: Any, executor: Executor
) -> None:
    function = ShellFunction("echo {x}")
    known = executor.register_function(function)
    function.cmd = "echo {y}"
    with pytest.raises(TypeError, match=r"the field \{x\} .*\(it has: y\)"):
        executor.submit_to_registered_function(known, kwargs={"y": 1})
    with pytest.raises(TypeError, match="keyword arguments only"):
        executor.submit_to_registered_function(known, (1,))
    assert executor.submit_to_registered_function(known, kwargs={"x": 1}).wait_submitted(TIMEOUT)


def test_functions_of_other_programs_are_not_checked(service: Any, executor: Executor) -> None:
    future = executor.submit_to_registered_function(str(uuid.uuid4()), (1,), {"x": 1})
    assert future.wait_submitted(TIMEOUT)
