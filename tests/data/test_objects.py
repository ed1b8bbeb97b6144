"""The format of stored objects."""

from __future__ import annotations

import datetime as dt
import pickle
from typing import Any

import pytest

from flux_endpoint.data.objects import EncodedObject, decoded
from flux_endpoint.errors import DataStoreError


class Array:
    """Has a large buffer that pickle need not copy, as arrays of numpy do."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Array, (pickle.PickleBuffer(self.data),)


def encode(data: Any) -> bytes:
    return b"".join(map(bytes, EncodedObject(data).parts()))


@pytest.mark.parametrize("data", [None, "x" * 5000, [1, (2.5, b"3")] * 100, {"a": {1, 2}}, set])
def test_objects_come_back(data):
    assert decoded(encode(data)) == data


def test_functions_of_a_program_are_objects_too():
    factor = 3
    assert decoded(encode([lambda x: x * factor]))[0](14) == 42


def test_buffers_are_aligned_and_not_copied():
    arrays = [Array(bytearray(b"a" * 100)), Array(bytearray(b"b" * 1000))]
    encoded = EncodedObject(arrays)
    assert 1100 < encoded.content < 2000
    content = bytearray(b"".join(encoded.parts()))
    first, second = decoded(content)
    assert bytes(first.data) == b"a" * 100
    second.data[:3] = b"new"
    assert content.find(b"newbbb") % 64 == 0


def test_digest_and_size_are_those_of_all_bytes():
    import hashlib

    encoded = EncodedObject(Array(bytearray(5000)))
    content = b"".join(map(bytes, encoded.parts()))
    assert encoded.digest() == (hashlib.sha256(content).hexdigest(), len(content))


GOOD = encode(list(range(1000)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"root:x:0:0",
        GOOD[:30],
        GOOD[:200],
        GOOD.replace(b"data 1", b"data 2"),
        b"flux-endpoint data 1\n0000000003\n[]\n",
        b"flux-endpoint data 1\n0000000005\n[-1]\n" + bytes(100),
        b"flux-endpoint data 1\n0000000006\n[1e9]\n" + bytes(100),
        b"flux-endpoint data 1\n0000000003\n{}\n",
    ],
)
def test_other_content_is_refused(content):
    with pytest.raises(DataStoreError, match="another format"):
        decoded(content)


def test_objects_of_modules_and_of_the_program_are_pickled_alike():
    moment = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
    assert decoded(encode([moment, dt.datetime])) == [moment, dt.datetime]
    session = {"__name__": "__main__"}
    exec("class Mesh:\n    cells = 7\n\ndef cells(mesh):\n    return mesh.cells", session)
    content = encode([session["cells"], session["Mesh"]()])
    function, mesh = decoded(content)
    assert function(mesh) == 7
    assert b"_create_code" in content  # by value
