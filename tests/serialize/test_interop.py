"""Both packages, ours and the official one, write the same text and read each other's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import dill
import pytest
import samples

from flux_endpoint import serialize
from flux_endpoint.serialize import ComputeSerializer, pack_buffers

pytestmark = pytest.mark.interop

CODE = ("DillCode", "DillCodeTextInspect", "DillCodeSource", "PureSourceTextInspect",
        "PureSourceDill", "CombinedCode", "AllCodeStrategies")  # fmt: skip
DATA = ("DillDataBase64", "JSONData", "AllDataStrategies")
VALUES = [
    None,
    [1, 2.5, "ä😀", True],
    {"a": {"b": [None]}},
    "x" * 1000,
    list(range(1001)),
    {"key\n": "3\nvalue: "},
]
#: Its base64 is one line, the official package's has many.
LARGE = "x" * 20_000

OFFICIAL_PROGRAM = """
import json, sys
import samples
from globus_compute_sdk import serialize
from globus_compute_sdk.serialize import ComputeSerializer

order = json.load(sys.stdin)
answer = {"written": {}, "read": [], "packed": None}
for name in order["code"]:
    s = ComputeSerializer(strategy_code=getattr(serialize, name)())
    answer["written"][name] = [s.serialize(samples.area)]
for name in order["data"]:
    s = ComputeSerializer(strategy_data=getattr(serialize, name)())
    answer["written"][name] = [s.serialize(value) for value in order["values"]]
for text in order["texts"]:
    value = ComputeSerializer().deserialize(text)
    answer["read"].append(value(3, height=5) if callable(value) else value)
answer["packed"] = ComputeSerializer.pack_buffers(order["texts"])
answer["unpacked"] = ComputeSerializer.unpack_buffers(order["packed"])
answer["multiplier"] = ComputeSerializer().serialize(samples.Multiplier(4))
json.dump(answer, sys.stdout)
"""


def ours(name, value):
    strategy = getattr(serialize, name)
    kind = "strategy_code" if strategy.for_code else "strategy_data"
    return ComputeSerializer(**{kind: strategy}).serialize(value)


@pytest.fixture(scope="module")
def texts():
    code = [ours(name, samples.area) for name in CODE]
    data = [ours(name, value) for name in DATA for value in VALUES]
    return code + data + [ours("DillDataBase64", LARGE)]


@pytest.fixture(scope="module")
def official(tmp_path_factory, texts, official_python):
    """What the official package writes of the same objects, and reads of our texts."""
    # The same dill on both sides, whichever version the official environment has.
    path = tmp_path_factory.mktemp("path")
    (path / "dill").symlink_to(Path(dill.__file__).parent)
    (path / "samples.py").symlink_to(samples.__file__)
    order = {
        "code": CODE,
        "data": DATA,
        "values": VALUES,
        "texts": texts,
        "packed": pack_buffers(texts),
    }
    run = subprocess.run(
        [official_python, "-c", OFFICIAL_PROGRAM],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(path), "HOME": str(path)},
        cwd=path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CODE)
def test_a_function_is_the_same_text(official, name):
    assert ours(name, samples.area) == official["written"][name][0]


@pytest.mark.parametrize("name", DATA)
def test_data_is_the_same_text(official, name):
    assert [ours(name, value) for value in VALUES] == official["written"][name]


def test_a_callable_object_is_the_same_text(official):
    assert ComputeSerializer().serialize(samples.Multiplier(4)) == official["multiplier"]


def test_the_official_package_reads_what_our_package_writes(official):
    assert official["read"] == [15] * len(CODE) + VALUES * len(DATA) + [LARGE]


def test_our_package_reads_what_the_official_package_writes(official):
    for name in CODE:
        assert ComputeSerializer().deserialize(official["written"][name][0])(3, height=5) == 15
    for name in DATA:
        assert [
            ComputeSerializer().deserialize(text) for text in official["written"][name]
        ] == VALUES


def test_packing_is_the_same_in_both_directions(official, texts):
    assert official["packed"] == pack_buffers(texts)
    assert official["unpacked"] == texts
