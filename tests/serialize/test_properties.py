"""Any plain data: what one package writes the other reads, and both write the same."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dill
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_endpoint import serialize
from flux_endpoint.serialize import ComputeSerializer
from foreground import Process

pytestmark = pytest.mark.interop

PROGRAM = """
import base64, json, pickle, sys
from globus_compute_sdk import serialize
from globus_compute_sdk.serialize import ComputeSerializer

for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "write":
        strategy = getattr(serialize, order["strategy"])()
        value = pickle.loads(base64.b64decode(order["value"]))
        answer = ComputeSerializer(strategy_data=strategy).serialize(value)
    elif order["do"] == "read":
        value = ComputeSerializer().deserialize(order["text"])
        answer = base64.b64encode(pickle.dumps(value)).decode()
    elif order["do"] == "pack":
        answer = ComputeSerializer.pack_buffers(order["buffers"])
    else:
        answer = ComputeSerializer.unpack_buffers(order["text"])
    print(json.dumps(answer), flush=True)
"""


class Official:
    """The official serializer, in an interpreter of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, do: str, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def write(self, strategy: str, value: Any) -> str:
        encoded = base64.b64encode(pickle.dumps(value)).decode()
        return str(self("write", strategy=strategy, value=encoded))

    def read(self, text: str) -> Any:
        return pickle.loads(base64.b64decode(self("read", text=text)))


@pytest.fixture(scope="module")
def official(official_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Official]:
    # The same dill on both sides, whichever version the official environment has.
    path = tmp_path_factory.mktemp("path")
    (path / "dill").symlink_to(Path(dill.__file__).parent)
    command = [official_python, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": str(path), "HOME": str(path)}
    pipe = subprocess.PIPE
    with Process(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        yield Official(process)
        assert process.stdin is not None
        process.stdin.close()


text = st.text()
atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
of_json = st.recursive(
    atoms, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20
)
of_python = st.recursive(
    atoms | st.binary() | st.complex_numbers(allow_nan=False) | st.datetimes(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(atoms, inner)
        | st.frozensets(atoms | st.binary())
    ),
    max_leaves=20,
)
in_one_process = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


def ours(strategy: str, value: Any) -> str:
    return ComputeSerializer(strategy_data=getattr(serialize, strategy)).serialize(value)


@pytest.mark.parametrize("strategy", ["DillDataBase64", "AllDataStrategies"])
@in_one_process
@given(value=of_python)
def test_each_package_reads_what_the_other_writes(
    official: Official, strategy: str, value: Any
) -> None:
    if strategy == "AllDataStrategies" and re.match(r"13\n\d+\n11\n", ours(strategy, value)):
        value = json.loads(json.dumps(value))  # JSON, which comes first, brings lists for tuples
    assert official.read(ours(strategy, value)) == value
    assert ComputeSerializer().deserialize(official.write(strategy, value)) == value


@pytest.mark.parametrize("strategy", ["JSONData", "DillDataBase64", "AllDataStrategies"])
@in_one_process
@given(value=of_json)
def test_both_write_the_same(official: Official, strategy: str, value: Any) -> None:
    # Through the same pickle, so that what is one object to one of them is one to the other.
    value = pickle.loads(pickle.dumps(value))
    assert ours(strategy, value) == official.write(strategy, value)


@in_one_process
@given(
    buffers=st.lists(
        st.sampled_from(["00\n", "01\n", "11\n", "st\n"]).flatmap(
            lambda kind: text.map(lambda rest: kind + rest)
        ),
        min_size=1,
    )
)
def test_buffers_of_any_text_are_packed_alike(official: Official, buffers: list[str]) -> None:
    packed = ComputeSerializer.pack_buffers(buffers)
    assert packed == official("pack", buffers=buffers)
    assert official("unpack", text=packed) == buffers
    assert ComputeSerializer.unpack_buffers(packed) == buffers
