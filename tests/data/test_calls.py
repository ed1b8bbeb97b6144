"""Arguments and results that go by a store."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from flux_endpoint.client.registry import serialize_call
from flux_endpoint.data import SharedDirectory, is_reference, stores
from flux_endpoint.engine.task import Failure, TaskRunner, TaskSettings, Value
from flux_endpoint.errors import DataStoreError, DeserializationError
from flux_endpoint.functions.transport import read_arguments
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.serialize import ComputeSerializer, JSONData, StrategyError

LARGE = b"x" * (MAX_PAYLOAD_BYTES + 1)


def count(store: SharedDirectory) -> int:
    return sum(1 for _ in store.directory.iterdir()) if store.directory.exists() else 0


@pytest.fixture
def serializer(store: SharedDirectory) -> ComputeSerializer:
    return ComputeSerializer(store=store)


@pytest.fixture
def run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, serializer: ComputeSerializer) -> Any:
    """Runs a call as a worker does."""
    monkeypatch.chdir(tmp_path)

    def run(function: Any, *args: Any, strategies: Any = None, **kwargs: Any) -> Value | Failure:
        runner = TaskRunner(TaskSettings("endpoint", str(tmp_path), False, None))
        code = serializer.serialize(function)
        call = serialize_call(serializer, "f", args, kwargs, may_be_command=False)
        assert len(call) < MAX_PAYLOAD_BYTES
        return runner.run("task", f"{len(code)}\n{code}{call}", strategies)

    return run


def test_small_arguments_and_results_stay_in_the_message(run, store, serializer):
    end = run(lambda a, b: a + b, 40, b=2)
    assert serializer.deserialize(end.data) == 42
    assert not is_reference(end.data)
    assert count(store) == 0


def test_large_arguments_go_by_the_store(run, store, serializer):
    end = run(lambda a, b, more: len(a) + len(b) + len(more), LARGE, b=LARGE, more=[1] * 10**6)
    assert serializer.deserialize(end.data) == 2 * len(LARGE) + 10**6
    assert count(store) == 2  # args and kwargs


def test_a_handle_is_its_object_wherever_it_stands(run, store, serializer):
    handle = store.put(LARGE)
    end = run(lambda a, b: (a[0] is a[1], a[0] == b["b"]), [handle, handle], b={"b": handle})
    assert serializer.deserialize(end.data) == (True, True)
    assert count(store) == 1


def test_sending_a_handle_prolongs_the_lifetime(store, serializer, monkeypatch):
    monkeypatch.setattr(stores, "_PERIOD", 0.0)
    handle = store.put(LARGE)
    (file,) = store.directory.iterdir()
    soon = time.time() + 60
    os.utime(file, (soon, soon))
    serialize_call(serializer, "f", (handle,), {}, may_be_command=False)
    assert file.stat().st_mtime > soon + 6 * 86_400
    handle.delete()
    assert serializer.serialize(handle)  # whoever reads it says that it is gone


def test_a_large_result_goes_to_the_store_of_the_call(run, store, serializer):
    end = run(lambda size: b"x" * size, len(LARGE))
    assert is_reference(end.data)
    assert len(end.data) < 1000
    assert serializer.deserialize(end.data) == LARGE


def test_a_result_that_can_not_be_stored_fails_the_task(run, store):
    store.directory = store.directory / "away" / "more"
    end = run(lambda size: b"x" * size, len(LARGE))
    assert isinstance(end, Failure)
    assert end.code == ErrorCode.COULD_NOT_EXECUTE
    assert "the function ran, but its result can't be stored: the store" in end.text
    assert "away/more on" in end.text


def test_a_missing_argument_is_reported_in_one_line(run, store):
    handle = store.put(LARGE)
    handle.delete()
    end = run(len, handle)
    assert end.code == ErrorCode.COULD_NOT_EXECUTE
    last = end.text.splitlines()[-1]
    assert "DataStoreError: an argument can't be loaded on this worker: the object" in last
    assert "task.py" not in end.text


def test_a_chosen_serializer_of_results_is_used_as_it_is(run, store):
    path = "globus_compute_sdk.serialize.concretes.JSONData"
    assert run(lambda: [1] * 10_000, strategies=[path]).data.startswith("11\n")
    assert count(store) == 0


def test_without_a_store_the_error_says_that_there_are_some(run, serializer):
    serializer.store = None
    end = run(lambda size: b"x" * size, len(LARGE))
    assert end.code == ErrorCode.MAX_RESULT_SIZE
    assert "Executor(store=...)" in end.text


def test_a_result_that_can_not_be_pickled_is_reported_as_ever(run):
    end = run(lambda: [(n for n in range(3))] * 100)
    assert "its result can't be serialized" in end.text


def test_references_are_read_only_where_dill_is(store, serializer):
    text = serializer.serialize(store.put(LARGE))
    only_json = ComputeSerializer(allowed_deserializer_types=["flux_endpoint.*Code", JSONData])
    with pytest.raises(DeserializationError, match="DillDataBase64 disabled"):
        only_json.deserialize(text)
    with pytest.raises(ValueError, match="opcode"):
        read_arguments(text)  # as an endpoint with `allowed_functions` does
    with pytest.raises(StrategyError, match="references to a store are serialized by"):
        ComputeSerializer(strategy_data=JSONData(), store=store)


def test_equal_calls_are_serialized_equally(serializer):
    calls = {
        serialize_call(serializer, "f", (LARGE, n), {}, may_be_command=False) for n in (1, 1, 2)
    }
    assert len(calls) == 2


def test_commands_go_without(serializer, store):
    text = serialize_call(serializer, "f", (), {"name": "x" * 10_000}, may_be_command=True)
    assert read_arguments(serializer.unpack_buffers(text)[1]) == {"name": "x" * 10_000}
    assert count(store) == 0


def test_an_error_is_not_hidden_by_the_serializer(store, serializer):
    handle = store.put(LARGE)
    text = serializer.serialize([handle])
    handle.delete()
    with pytest.raises(DataStoreError, match="its lifetime is over"):
        serializer.deserialize(text)


@pytest.mark.parametrize("text", ["", "11\n[1]", "00\n*", "00\ngASVAwAAAAAAAABLKi4=\n", "00\né"])
def test_other_values_are_no_references(text):
    assert not is_reference(text)
