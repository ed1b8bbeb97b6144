"""Each strategy: what it writes, what it reads, and what it says when it can't."""

from __future__ import annotations

import base64
import functools
import pickle
import subprocess
import sys
from enum import IntEnum
from fractions import Fraction

import dill
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint import serialize
from flux_endpoint.errors import DeserializationError, SerializationError
from flux_endpoint.functions import ShellFunction
from flux_endpoint.serialize import (
    ComputeSerializer,
    PureSourceTextInspect,
    SerializationStrategy,
    pack_buffers,
)
from flux_endpoint.serialize.strategies import dill_from_text, dill_to_text

IDENTIFIERS = {
    "DillCode": "01\n",
    "PickleCode": "02\n",
    "DillCodeTextInspect": "03\n",
    "DillCodeSource": "04\n",
    "PureSourceTextInspect": "st\n",
    "PureSourceDill": "sd\n",
    "CombinedCode": "10\n",
    "AllCodeStrategies": "12\n",
    "DillDataBase64": "00\n",
    "JSONData": "11\n",
    "AllDataStrategies": "13\n",
}
WRITERS_OF_CODE = [
    name for name in IDENTIFIERS if ("Code" in name or "Source" in name) and name != "PickleCode"
]
FROM_SOURCE = [name for name in WRITERS_OF_CODE if name != "DillCode"]


def add(x, y=1):
    return x + y


def colons(x: dict) -> dict:
    table = {"a:b": 1, ":st\n:": 2}
    return {**table, **x}


def strategy(name):
    return getattr(serialize, name)()


@pytest.mark.parametrize(("name", "identifier"), IDENTIFIERS.items())
def test_every_strategy_has_its_identifier_and_is_found_by_it(name, identifier):
    kind = getattr(serialize, name)
    assert kind.identifier == identifier
    assert type(SerializationStrategy.get_cached_by_id(identifier)) is kind
    assert kind.for_code == (name not in ("DillDataBase64", "JSONData", "AllDataStrategies"))


def test_the_default_for_data_writes_base64_of_dill_in_lines():
    assert ComputeSerializer().serialize(((1, 2), {})) == "00\ngASVCwAAAAAAAABLAUsChpR9lIaULg==\n"
    text = ComputeSerializer().serialize("x" * 100)
    lines = text.split("\n")
    assert lines[0] == "00"
    assert len(lines[1]) == 76
    assert text.endswith("\n")


def test_large_data_is_one_line_of_base64():
    value = bytes(range(256)) * 65
    text = ComputeSerializer().serialize(value)
    assert text.count("\n") == 2
    assert dill.loads(base64.b64decode(text[3:-1], validate=True)) == value
    assert ComputeSerializer().deserialize(text) == value


def test_the_default_for_code_writes_an_importable_function_by_its_name():
    text = ComputeSerializer().serialize(base64.b64encode)
    assert text == "01\ngASVGAAAAAAAAACMBmJhc2U2NJSMCWI2NGVuY29kZZSTlC4=\n"


def test_json_is_written_as_it_is():
    assert (
        strategy("JSONData").serialize({"a": [1, None, "é"]}) == '11\n{"a": [1, null, "\\u00e9"]}'
    )


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.binary(), st.lists))
def test_data_round_trips(value):
    serializer = ComputeSerializer()
    assert serializer.deserialize(serializer.serialize(value)) == value


@pytest.mark.parametrize("name", WRITERS_OF_CODE)
def test_a_function_round_trips(name):
    function = strategy(name).deserialize(strategy(name).serialize(add))
    assert function(2) == 3
    assert function(2, y=5) == 7


@pytest.mark.parametrize("name", WRITERS_OF_CODE)
def test_a_function_may_have_colons(name):
    function = strategy(name).deserialize(strategy(name).serialize(colons))
    assert function({"c": 3}) == {"a:b": 1, ":st\n:": 2, "c": 3}


@pytest.mark.parametrize("name", ["DillCodeTextInspect", "PureSourceTextInspect"])
def test_source_of_an_inner_function_is_brought_to_the_margin(name):
    def inner(x):
        return x * 2

    assert strategy(name).deserialize(strategy(name).serialize(inner))(4) == 8


def test_pure_source_is_the_name_a_colon_and_the_source():
    text = strategy("PureSourceTextInspect").serialize(add)
    assert text == "st\nadd:def add(x, y=1):\n    return x + y\n"
    assert strategy("PureSourceDill").serialize(add) == "sd\n" + text[3:]


def test_a_lambda_travels_as_code_and_as_source_it_says_why_not():
    twice = ComputeSerializer().check_strategies(lambda x: 2 * x)[0]
    assert twice(3) == 6
    named = "st\n<lambda>:f = lambda x: x\n"
    with pytest.raises(
        DeserializationError, match=r"PureSourceTextInspect .*defines no '<lambda>'"
    ):
        ComputeSerializer().deserialize(named)


def test_old_pickled_functions_can_be_read_but_not_written():
    text = "02\n" + base64.encodebytes(pickle.dumps(base64.b64encode)).decode()
    assert ComputeSerializer().deserialize(text) is base64.b64encode
    with pytest.raises(SerializationError, match="only reads"):
        strategy("PickleCode").serialize(add)


def test_all_code_strategies_write_what_works_in_their_order():
    text = strategy("AllCodeStrategies").serialize(add)
    parts = serialize.unpack_buffers(text[3:])
    assert [part[:3] for part in parts] == ["st\n", "sd\n", "01\n"]
    partial = strategy("AllCodeStrategies").serialize(functools.partial(add, 1))
    assert [part[:3] for part in serialize.unpack_buffers(partial[3:])] == ["01\n"]


def test_all_data_strategies_write_what_works_in_their_order():
    both = serialize.unpack_buffers(strategy("AllDataStrategies").serialize([1])[3:])
    assert [part[:3] for part in both] == ["11\n", "00\n"]
    dill_only = serialize.unpack_buffers(strategy("AllDataStrategies").serialize({1})[3:])
    assert [part[:3] for part in dill_only] == ["00\n"]


def test_the_first_part_that_can_be_read_is_taken():
    packed = "13\n" + pack_buffers(["11\n{broken", "00\n!!!", "11\n[7]"])
    assert ComputeSerializer().deserialize(packed) == [7]
    old = "10\n04\n:!!!:01\n:" + base64.encodebytes(dill.dumps(base64.b64encode)).decode()
    assert ComputeSerializer().deserialize(old) is base64.b64encode


def test_a_combination_of_nothing_readable_says_of_each_part_why():
    packed = "13\n" + pack_buffers(["11\n{broken", "01\nabc", "zz\nabc"])
    with pytest.raises(DeserializationError) as caught:
        ComputeSerializer().deserialize(packed)
    text = str(caught.value)
    assert "JSONData: " in text
    assert "'01' is no part of AllDataStrategies" in text
    assert "'zz' is no part of AllDataStrategies" in text


def test_a_combination_of_nothing_writable_says_of_each_strategy_why():
    with pytest.raises(SerializationError) as caught:
        strategy("AllDataStrategies").serialize(i for i in ())
    assert "JSONData: TypeError" in str(caught.value)
    assert "DillDataBase64: TypeError" in str(caught.value)


def test_a_text_of_another_strategy_is_refused():
    with pytest.raises(DeserializationError, match=r"'00\\n', the identifier .*, but with '11"):
        strategy("DillDataBase64").deserialize("11\n[]")


@pytest.mark.parametrize(
    "text",
    ["00\n", "00\n!", "00\nQUJD\n", "11\n", "11\n{", "st\nx", "st\nf:def (", "sd\nf:g = 1\n",
     "01\n====", "03\nS0s=\n", "04\n", "10\n", "10\nzz:zz", "12\n5\nab", "13\n", "02\nxx"],
)  # fmt: skip
def test_damaged_texts_are_our_own_error_that_names_the_strategy(text):
    name = next(name for name, identifier in IDENTIFIERS.items() if text.startswith(identifier))
    with pytest.raises(DeserializationError, match=name):
        ComputeSerializer().deserialize(text)


def test_a_missing_module_is_named_and_what_to_do():
    import types

    module = types.ModuleType("only_on_the_laptop")
    exec("def f(): pass", module.__dict__)
    sys.modules["only_on_the_laptop"] = module
    try:
        text = ComputeSerializer().serialize(module.f)
    finally:
        del sys.modules["only_on_the_laptop"]
    with pytest.raises(DeserializationError, match=r"'only_on_the_laptop'.*must be installed"):
        ComputeSerializer().deserialize(text)


def test_functions_of_main_travel_by_value():
    writer = (
        "from flux_endpoint.serialize import ComputeSerializer\n"
        "class Point:\n    x = 4\n"
        "def plus(y):\n    return Point.x + y\n"
        "factor = 3\n"
        "def outer():\n    k = factor\n    return lambda y: k * y\n"
        "s = ComputeSerializer()\n"
        "print(s.pack_buffers([s.serialize(outer()), s.serialize(Point()), s.serialize(plus)]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", writer], capture_output=True, text=True, check=True, timeout=60
    )
    buffers = serialize.unpack_buffers(run.stdout[:-1])
    times, point, plus = (ComputeSerializer().deserialize(buffer) for buffer in buffers)
    assert times(5) == 15
    assert point.x == 4
    assert plus.__name__ == "plus"


def test_a_strategy_of_ones_own_is_registered_by_its_definition():
    class Reversed(SerializationStrategy):
        identifier = "rv\n"
        for_code = False

        def serialize(self, data):
            return self.identifier + data[::-1]

        def deserialize(self, payload):
            return self.chomp(payload)[::-1]

    serializer = ComputeSerializer(strategy_data=Reversed)
    assert serializer.serialize("abc") == "rv\ncba"
    assert ComputeSerializer().deserialize("rv\ncba") == "abc"


@pytest.mark.parametrize("bad", ["", "x\n", "abc", "abc\n", "ab"])
def test_an_identifier_is_two_characters_and_a_newline(bad):
    with pytest.raises(ValueError, match=r"3 characters long|end with a newline"):
        type("Bad", (SerializationStrategy,), {"identifier": bad, "for_code": True})


def test_an_identifier_belongs_to_one_strategy():
    with pytest.raises(ValueError, match="is already used by JSONData"):
        type("Thief", (SerializationStrategy,), {"identifier": "11\n", "for_code": False})
    assert ComputeSerializer().deserialize("11\n[1]") == [1]


def test_a_variation_of_a_combination_can_be_chosen():
    combined = strategy("CombinedCode")
    parts = "10\n04\n:!!!:01\n:" + base64.encodebytes(dill.dumps(base64.b64encode)).decode()
    assert combined.deserialize(parts, variation=2) is base64.b64encode
    with pytest.raises(DeserializationError, match="DillCodeSource"):
        combined.deserialize(parts, variation=1)
    for missing in (3, -1):
        with pytest.raises(DeserializationError, match=f"2 variations, no #{missing}"):
            combined.deserialize(parts, variation=missing)


class Colour(IntEnum):
    RED = 1


class Name(str):
    pass


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(
    value=PLAIN
    | st.lists(PLAIN, max_size=5)
    | st.lists(PLAIN, max_size=5).map(tuple)
    | st.dictionaries(st.text(), PLAIN, max_size=5)
)
def test_plain_values_are_serialized_as_dill_does(value):
    assert dill_to_text(value) == base64.encodebytes(dill.dumps(value)).decode()


@pytest.mark.parametrize("command", ["echo hi", "exit 3"])
def test_a_commands_result_is_written_as_dill_writes_it(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the files of its output
    value = ShellFunction(command)()
    assert dill_to_text(value) == base64.encodebytes(dill.dumps(value)).decode()
    assert vars(dill_from_text(dill_to_text(value))) == vars(value)


@pytest.mark.parametrize(
    "value",
    [
        (1, [2.5, {"a": {b"c"}}], frozenset({None})),
        complex(1, 2),
        [range(3), Fraction(1, 3)],
        Colour.RED,
        Name("a name"),
    ],
)
def test_values_that_refer_to_classes_are_read(value):
    again = dill_from_text(dill_to_text(value))
    assert again == value
    assert type(again).__name__ == type(value).__name__


def test_a_function_from_source_is_new_each_time():
    source = "def count(seen=[]):\n    global total\n    total = globals().get('total', 0) + 1\n"
    source += "    seen.append(1)\n    return total, len(seen)\n"
    payload = f"st\ncount:{source}"
    for _ in range(3):
        assert PureSourceTextInspect().deserialize(payload)() == (1, 1)
