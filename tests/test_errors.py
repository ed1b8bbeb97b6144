"""Errors as programs see them."""

from __future__ import annotations

import time

import pytest

from flux_endpoint.errors import (
    ComputeError,
    DeserializationError,
    PackedBufferError,
    ReadOnlyStrategyError,
    SerdeError,
    SerializationError,
    TaskExecutionFailed,
)
from flux_endpoint.serialize import DillDataBase64, PickleCode, StrategyError, unpack_buffers


@pytest.mark.parametrize(
    ("text", "serialization", "lost"),
    [
        ("ValueError: no", False, False),
        ("_pickle.UnpicklingError: pickle data was truncated", True, False),
        ("SerializationError: All strategies failed", True, False),
        ("parsl.executors.high_throughput.errors.WorkerLost: Task failure due to", True, True),
        ("WorkerLost: the worker was killed by SIGSEGV", True, True),
        ("NoWorkerLostHere", False, False),
    ],
)
def test_the_text_of_a_common_failure_has_a_hint(text, serialization, lost):
    said = str(TaskExecutionFailed(text))
    assert said.startswith(f"\n {text}\n")
    assert ("This appears to be an error with serialization." in said) is serialization
    assert ("byte code of another version of Python" in said) is lost


def test_a_failure_of_unknown_time_is_of_now():
    before = time.time()
    assert before <= float(TaskExecutionFailed("x").completion_t) <= time.time()
    assert TaskExecutionFailed("x", "12.5").completion_t == "12.5"


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (PackedBufferError, ValueError),
        (ReadOnlyStrategyError, NotImplementedError),
        (StrategyError, ValueError),
    ],
)
def test_an_error_of_serialization_is_what_the_official_package_raises_too(ours, builtin):
    assert issubclass(ours, builtin)
    assert issubclass(ours, SerdeError)
    assert issubclass(ours, ComputeError)
    assert ours("why").reason == "why"


def test_serialization_errors_match_the_official_exception_types():
    with pytest.raises(NotImplementedError) as refused:
        PickleCode().serialize(len)
    assert isinstance(refused.value, SerializationError)
    with pytest.raises(ValueError, match="Truncated buffer") as malformed:
        unpack_buffers("10\nhello")
    assert isinstance(malformed.value, DeserializationError)
    with pytest.raises(ValueError, match="Length delimiter must be non-negative"):
        unpack_buffers("-1\nhello")
    with pytest.raises(ValueError, match="Missing newline delimiter"):
        unpack_buffers("5")
    with pytest.raises(ValueError, match="Invalid length delimiter"):
        unpack_buffers("abc\nhello")
    with pytest.raises(SerdeError):
        DillDataBase64().deserialize("11\n1")
