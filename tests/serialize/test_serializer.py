"""`ComputeSerializer`: which strategy is used, which may read, and what the errors say."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest

from flux_endpoint import serialize
from flux_endpoint.errors import DeserializationError, SerializationError
from flux_endpoint.serialize import (
    AllowlistWildcard,
    ComputeSerializer,
    DillCode,
    DillDataBase64,
    JSONData,
    PureSourceTextInspect,
    SerializationStrategy,
    StrategyError,
    prefer_for_type,
    validate_strategylike,
)

OFFICIAL = "globus_compute_sdk.serialize.concretes"


def add(x, y=1):
    return x + y


@pytest.mark.parametrize(
    "given",
    [
        JSONData,
        JSONData(),
        "flux_endpoint.serialize.JSONData",
        "flux_endpoint.serialize.strategies.JSONData",
        f"{OFFICIAL}.JSONData",
        "globus_compute_sdk.serialize.JSONData",
    ],
)
def test_a_strategy_is_given_as_class_instance_or_import_path(given):
    assert ComputeSerializer(strategy_data=given).serialize([1]) == "11\n[1]"
    assert ComputeSerializer.serialize_from_list([1], [given]) == "11\n[1]"
    assert validate_strategylike(given).import_path == f"{OFFICIAL}.JSONData"


def test_a_class_of_the_official_package_means_ours_of_the_same_name():
    theirs = type("JSONData", (), {"__module__": OFFICIAL})
    assert ComputeSerializer(strategy_data=theirs).serialize([1]) == "11\n[1]"
    assert ComputeSerializer(strategy_data=theirs()).serialize([1]) == "11\n[1]"


def test_the_official_package_is_not_imported_for_its_paths():
    code = (
        "import sys\n"
        "from flux_endpoint.serialize import ComputeSerializer\n"
        f"ComputeSerializer(strategy_data='{OFFICIAL}.JSONData',"
        " allowed_deserializer_types=['globus_compute_sdk.*Code', 'globus_compute_sdk.*Data'])\n"
        "print([m for m in sys.modules if m.startswith('globus')])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == "[]\n", run.stderr


@pytest.mark.parametrize(
    "given",
    [
        "",
        "JSONData",
        "json.JSONData",
        "os.system",
        f"{OFFICIAL}.Nothing",
        "flux_endpoint.x.Y",
        "flux_endpoint.serialize",
        5,
        dict,
        SerializationStrategy,
    ],
)
def test_an_unknown_strategy_is_refused_with_the_list_of_the_known(given):
    with pytest.raises(StrategyError, match=r"Known are .*DillDataBase64.*JSONData") as caught:
        ComputeSerializer(strategy_data=given)
    assert repr(given) in str(caught.value)


def test_a_strategy_of_the_wrong_kind_is_refused_with_those_of_the_right():
    with pytest.raises(
        StrategyError, match=r"is a data serialization strategy, .* a code .*Known are .*DillCode"
    ):
        ComputeSerializer(strategy_code=JSONData)
    with pytest.raises(
        StrategyError, match=r"is a code serialization strategy, .* a data .*Known are .*DillData"
    ):
        ComputeSerializer(strategy_data=DillCode)


def test_a_strategy_that_only_reads_is_refused():
    with pytest.raises(StrategyError, match="PickleCode only reads"):
        ComputeSerializer(strategy_code="flux_endpoint.serialize.PickleCode")


def test_callables_are_code_and_everything_else_is_data():
    serializer = ComputeSerializer(PureSourceTextInspect, JSONData)
    assert serializer.serialize(add).startswith("st\n")
    assert serializer.serialize([1]).startswith("11\n")
    assert isinstance(serializer.code_serializer, PureSourceTextInspect)
    assert isinstance(serializer.data_serializer, JSONData)


def test_the_defaults_are_dill():
    assert isinstance(ComputeSerializer().code_serializer, DillCode)
    assert isinstance(ComputeSerializer().data_serializer, DillDataBase64)


class Commandlike:
    def __call__(self):
        return 1


class Words(SerializationStrategy):
    identifier = "wo\n"
    for_code = True

    def serialize(self, data):
        return self.identifier

    def deserialize(self, payload):
        return Commandlike()


def test_a_type_may_prefer_a_strategy_which_holds_unless_another_was_chosen():
    prefer_for_type(Commandlike, Words)
    assert ComputeSerializer().serialize(Commandlike()) == "wo\n"
    assert ComputeSerializer.serialize_from_list(Commandlike(), None) == "wo\n"
    assert ComputeSerializer(strategy_code=DillCode).serialize(Commandlike())[:3] == "01\n"


def test_a_subclass_does_not_inherit_what_its_base_prefers():
    class More(Commandlike):
        pass

    prefer_for_type(Commandlike, Words)
    assert ComputeSerializer().serialize(More())[:3] == "01\n"


def test_check_strategies_returns_what_would_arrive():
    function, args, kwargs = ComputeSerializer().check_strategies(add, 3, y=4)
    assert function(*args, **kwargs) == 7
    function, args, kwargs = ComputeSerializer(strategy_data=JSONData).check_strategies(add, 3)
    assert args == [3]
    assert ComputeSerializer().check_strategies(dict, function=1)[2] == {"function": 1}


def test_check_strategies_fails_as_the_submission_would():
    with pytest.raises(SerializationError, match="generator"):
        ComputeSerializer().check_strategies(add, (i for i in ()))
    with pytest.raises(DeserializationError, match="PureSourceTextInspect"):
        ComputeSerializer(strategy_code=PureSourceTextInspect).check_strategies(lambda x: x)


def test_a_task_has_exactly_three_buffers():
    serializer = ComputeSerializer()
    for count in (0, 1, 2, 4):
        with pytest.raises(DeserializationError, match=f"is three buffers.*has {count}"):
            serializer.unpack_and_deserialize(serializer.pack_buffers(["11\n1"] * count))
    assert serializer.unpack_and_deserialize(serializer.pack_buffers(["11\n1"] * 3)) == [1, 1, 1]


@pytest.mark.parametrize("text", ["", "0", "zz\nabc", "00", "00x"])
def test_an_unknown_identifier_is_named(text):
    with pytest.raises(DeserializationError) as caught:
        ComputeSerializer().deserialize(text)
    assert repr(text[:3]) in str(caught.value)


class TestWhatCannotBeSerialized:
    """The error names the object, the part that is to blame, and the reason."""

    def test_a_function_by_its_name_with_the_variable(self):
        source = (i for i in ())

        def consume():
            return list(source)

        with pytest.raises(SerializationError) as caught:
            ComputeSerializer().serialize(consume)
        text = str(caught.value)
        assert "DillCode failed for function 'consume': " in text
        assert "cannot pickle 'generator' object" in text
        assert "found at: closure variable 'source'" in text

    def test_an_object_by_its_type_with_the_way_to_the_part(self):
        holder = Holder({"streams": [1, (i for i in ())]})
        with pytest.raises(SerializationError) as caught:
            ComputeSerializer().serialize(((), {"holder": holder}))
        text = str(caught.value)
        assert "DillDataBase64 failed for an object of type 'tuple'" in text
        assert "found at: [1] > ['holder'] > .inside > ['streams'] > [1]" in text

    def test_defaults_partials_and_methods_are_looked_into_as_well(self):
        stream = (i for i in ())

        def with_default(x, source=stream):
            return x

        for function, where in (
            (with_default, r"default of 'source'"),
            (functools.partial(print, stream), r"partial's arguments > \[0\]"),
            (Holder(stream).method, r"its object > \.inside"),
        ):
            with pytest.raises(SerializationError, match=where):
                ComputeSerializer().serialize(function)

    def test_an_object_that_resists_inspection_still_gets_an_error(self):
        with pytest.raises(SerializationError, match="ValueError: not me"):
            ComputeSerializer().serialize(Resisting())

    def test_json_says_which_type_it_does_not_know(self):
        with pytest.raises(SerializationError, match=r"JSONData .*set is not JSON serializable"):
            ComputeSerializer(strategy_data=JSONData).serialize({"a": {1}})

    def test_an_object_nested_too_deep_is_an_error_and_not_a_crash(self):
        nested: list = []
        for _ in range(100_000):
            nested = [nested]
        with pytest.raises(SerializationError, match="RecursionError"):
            ComputeSerializer().serialize(nested)


class Holder:
    def __init__(self, inside):
        self.inside = inside

    def method(self):
        return self.inside


class Resisting:
    def __reduce_ex__(self, protocol):
        raise ValueError("not me")

    def __getattribute__(self, name):
        if name == "__dict__":
            raise RuntimeError("no")
        return super().__getattribute__(name)


class TestSerializeFromList:
    """The first strategy that works is taken."""

    def test_serialize_from_list_tries_strategies_in_order(self):
        assert ComputeSerializer.serialize_from_list([1], [JSONData, DillDataBase64])[:3] == "11\n"
        assert ComputeSerializer.serialize_from_list({1}, [JSONData, DillDataBase64])[:3] == "00\n"
        assert ComputeSerializer.serialize_from_list(add, [JSONData, DillCode])[:3] == "01\n"

    @pytest.mark.parametrize("strategies", [None, [], ()])
    def test_without_a_list_it_is_the_default_of_the_kind(self, strategies):
        assert ComputeSerializer.serialize_from_list([1], strategies)[:3] == "00\n"
        assert ComputeSerializer.serialize_from_list(add, strategies)[:3] == "01\n"

    def test_when_all_fail_each_is_listed_with_its_reason(self):
        with pytest.raises(SerializationError) as caught:
            ComputeSerializer.serialize_from_list(
                (i for i in ()), [JSONData, "no.Such", DillCode, f"{OFFICIAL}.DillDataBase64"]
            )
        first, *rest = str(caught.value).split("\n")
        assert first.startswith("All strategies failed.")
        assert "generator" in first
        assert len(rest) == 4
        assert "JSONData: TypeError: Object of type generator is not JSON" in rest[0]
        assert "no.Such: Invalid strategy-like 'no.Such' (it can't be imported" in rest[1]
        assert "DillCode: DillCode is a code serialization strategy" in rest[2]
        assert "DillDataBase64: " in rest[3]
        assert "cannot pickle 'generator'" in rest[3]


class TestSerializeResult:
    """The submitter names strategies; for its names nothing is imported."""

    @pytest.mark.parametrize(
        "home", [OFFICIAL, "globus_compute_sdk.serialize", JSONData.__module__]
    )
    def test_registered_strategies_are_found_by_every_path(self, home):
        assert ComputeSerializer.serialize_result([1], [f"{home}.JSONData"]) == "11\n[1]"

    @pytest.mark.parametrize("names", [None, [], ()])
    def test_without_names_it_is_the_default_of_the_kind(self, names):
        assert ComputeSerializer.serialize_result([1], names)[:3] == "00\n"

    @pytest.mark.parametrize(
        "name", ["unittest.__main__.x", "antigravity.x", "builtins.exec", "x", "", "a" * 5000]
    )
    def test_no_module_is_imported_for_a_name(self, name, monkeypatch):
        monkeypatch.delitem(sys.modules, name.rpartition(".")[0], raising=False)
        before = set(sys.modules)
        with pytest.raises(SerializationError, match="is registered where the task ran") as caught:
            ComputeSerializer.serialize_result([1], [name])
        assert set(sys.modules) == before
        assert len(str(caught.value)) < 1000 + len(name)
        # The next one that is registered serves.
        names = [name, f"{OFFICIAL}.JSONData"]
        assert ComputeSerializer.serialize_result([1], names) == "11\n[1]"


BUFFERS = {
    "DillCode": "01\ngASVGAAAAAAAAACMBmJhc2U2NJSMCWI2NGVuY29kZZSTlC4=\n",
    "PureSourceDill": "sd\nf:f = 1\n",
    "DillDataBase64": "00\ngARLAS4=\n",
    "JSONData": "11\n1",
}


def readable(*allowed):
    serializer = ComputeSerializer(allowed_deserializer_types=allowed)

    def reads(buffer):
        try:
            serializer.deserialize(buffer)
        except DeserializationError:
            return False
        return True

    return {name for name, buffer in BUFFERS.items() if reads(buffer)}


class TestAllowlist:
    """What is not on the list is not read."""

    def test_an_empty_list_forbids_nothing(self):
        assert readable() == set(BUFFERS)

    def test_only_listed_strategies_are_read(self):
        assert readable(PureSourceDill_PATH, JSONData) == {"PureSourceDill", "JSONData"}

    @pytest.mark.parametrize("package", ["globus_compute_sdk", "flux_endpoint"])
    def test_wildcards_stand_for_a_kind(self, package):
        assert readable(f"{package}.*Code", JSONData) == {"DillCode", "PureSourceDill", "JSONData"}
        assert readable(DillCode, f"{package}.*Data") == {"DillCode", "DillDataBase64", "JSONData"}
        assert readable(f"{package}.*Code", f"{package}.*Data") == set(BUFFERS)

    def test_wildcards_can_be_given_as_constants(self):
        assert readable(AllowlistWildcard.CODE, AllowlistWildcard.DATA) == set(BUFFERS)

    def test_the_error_names_what_is_allowed(self):
        serializer = ComputeSerializer(allowed_deserializer_types=[DillCode, JSONData])
        with pytest.raises(
            DeserializationError,
            match=r"DillDataBase64 disabled.*data; .*DillCode, JSONData",
        ):
            serializer.deserialize(BUFFERS["DillDataBase64"])

    def test_a_forbidden_buffer_is_not_deserialized(self):
        serializer = ComputeSerializer(allowed_deserializer_types=[DillCode, JSONData])
        bomb = "sd\nf:raise SystemExit('ran')\n"
        with pytest.raises(DeserializationError, match="not allowed"):
            serializer.deserialize(bomb)

    def test_a_combined_strategy_does_not_bypass_the_list(self):
        serializer = ComputeSerializer(
            allowed_deserializer_types=[DillCode, "flux_endpoint.serialize.AllDataStrategies"]
        )
        bomb = "sd\nf:raise SystemExit('ran')\n"
        with pytest.raises(DeserializationError, match="no part of AllDataStrategies"):
            serializer.deserialize("13\n" + serializer.pack_buffers([bomb]))

    @pytest.mark.parametrize(
        ("entries", "why"),
        [
            ([DillCode], "at least one code and one data"),
            ([JSONData], "at least one code and one data"),
            (["flux_endpoint.*Code"], "at least one code and one data"),
            (["globus_compute_sdk.*Data", JSONData, DillCode], r"Cannot mix 'globus.*\*Data' with"),
            ([DillCode, JSONData, "no.Such"], r"'no.Such' \(it can't be imported"),
            (["flux_endpoint.serialize.PickleCode", JSONData], "only reads"),
        ],
    )
    def test_an_invalid_list_is_refused_with_the_reason(self, entries, why):
        with pytest.raises(StrategyError, match=why):
            ComputeSerializer(allowed_deserializer_types=entries)


PureSourceDill_PATH = "globus_compute_sdk.serialize.concretes.PureSourceDill"


def test_all_names_in_dunder_all_are_exported():
    for name in serialize.__all__:
        assert getattr(serialize, name) is not None


async def coroutine():
    return 1


async def asynchronous_generator():
    yield 1


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: (i for i in range(3)), r"generator.*make a list of it first, `list\(\.\.\.\)`"),
        (asynchronous_generator, r"async_generator.*make a list of it first, `\[item async for"),
        (coroutine, r"coroutine.*return `asyncio\.run"),
    ],
)
def test_objects_bound_to_a_process_are_refused_with_a_hint(make, hint):
    value = make()
    for whole in (value, [value]):
        with pytest.raises(SerializationError, match=hint):
            ComputeSerializer().serialize(whole)
        with pytest.raises(SerializationError, match=hint):
            ComputeSerializer.serialize_from_list(whole)
    if hasattr(value, "close"):
        value.close()  # nobody is to warn that it was never awaited
