"""A pickle is read as data, or refused; nothing in it ever runs."""

from __future__ import annotations

import collections
import contextlib
import pickle
import struct

import dill
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.functions import ShellFunction
from flux_endpoint.functions.safe_pickle import (
    LARGEST,
    MOST_OPCODES,
    Instance,
    NotInertError,
    read_inert,
    require_plain,
)
from trap import Trap

keys = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
atoms = keys | st.binary()
plain = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
    ),
    max_leaves=12,
)


class Point:
    """An object whose state is plain."""

    def __init__(self):
        self.x = [1, (2, "y")]


@given(plain)
def test_plain_data_is_read_as_dill_reads_it(value):
    for dumps in (dill.dumps, pickle.dumps, lambda v: pickle.dumps(v, protocol=5)):
        again = read_inert(dumps(value))
        assert repr(again) == repr(pickle.loads(dumps(value)))
        require_plain(again)


def test_shared_parts_and_large_values_are_read(tmp_path):
    part = ["x" * 300, "y" * 70_000, 2**4000, b"z" * 70_000, list(range(3000))]
    assert read_inert(dill.dumps([part, part, {"p": part}])) == [part, part, {"p": part}]


def test_an_object_is_its_class_s_name_and_its_state():
    instance = read_inert(pickle.dumps(Point(), protocol=4))
    assert isinstance(instance, Instance)
    assert (instance.type_.module, instance.type_.name) == (Point.__module__, "Point")
    assert instance.state == {"x": [1, (2, "y")]}


def test_the_class_need_not_exist():
    text = pickle.dumps(Point(), protocol=4).replace(b"Point", b"Nowhe")
    assert read_inert(text).type_.name == "Nowhe"


def test_a_class_or_an_object_is_not_plain_data():
    for value in (Point(), [Point()], {"a": (Point(),)}, Point, [len]):
        with pytest.raises(NotInertError):
            require_plain(read_inert(dill.dumps(value)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_callables_in_a_pickle_are_not_called(protocol, tmp_path):
    trap = Trap(tmp_path / "trace")
    for value in (trap, [trap], {"x": trap}, (1, trap), collections.OrderedDict(a=1), 1j):
        with pytest.raises(NotInertError, match="opcode"):
            read_inert(pickle.dumps(value, protocol=protocol))
    assert not trap.trace.exists()


def test_functions_are_refused_at_the_first_thing_they_would_call():
    with pytest.raises(NotInertError, match="opcode REDUCE"):
        read_inert(dill.dumps(lambda: 1))


def nested(depth):
    return b"\x80\x04)" + b"\x85" * depth + b"."


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04.",
        b"\x80\x04)).",
        b"\x80\x04e.",
        b"\x80\x04(e.",
        b"\x80\x04)(K\x01e.",
        b"\x80\x04}(K\x01u.",
        b"\x80\x04h\x07.",
        b"\x80\x04)b.",
        b"\x80\x04))\x81.",
        b"\x80\x04\x8c\x01a)\x93.",
        b"\x80\x04\x8c\x01a\x8c\x01b\x93)}b.",
        b"\x80\x04\x8c\x01a\x8c\x01b\x93]\x81.",
        b"\x80\x04}" + nested(1_000)[2:-1] + b"K\x01s.",
        b"\x80\x04\x8f(" + nested(1_000)[2:-1] + b"\x90.",
        b"\x80\x04r" + struct.pack("<I", 2**32 - 1) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04" + b"N" * MOST_OPCODES,
        b"garbage",
    ],
)
def test_malformed_ones_are_refused(pickled):
    with pytest.raises(NotInertError):
        read_inert(pickled)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for pickled in (data, b"\x80\x04" + data):
        with contextlib.suppress(NotInertError):
            require_plain(read_inert(pickled))


def test_data_is_not_plain_if_it_is_nested_too_deep_or_contains_itself():
    endless = []
    endless.append(endless)
    for pickled in (nested(5_000), dill.dumps(endless)):
        with pytest.raises(NotInertError, match="deep"):
            require_plain(read_inert(pickled))


def test_data_is_not_plain_if_it_grows_when_it_is_written_out():
    laughs = "ha"
    for _ in range(40):
        laughs = [laughs, laughs]
    for value in (laughs, ["x" * 10_000] * (LARGEST // 10_000 + 1), [[2**20_000]] * 3000):
        pickled = dill.dumps(value)
        assert len(pickled) < LARGEST // 100
        with pytest.raises(NotInertError, match="more than"):
            require_plain(read_inert(pickled))


def test_an_object_of_the_user_s_is_data_only():
    state = read_inert(dill.dumps(ShellFunction("echo {x}"))).state
    assert state["cmd"] == "echo {x}"
