"""What is submitted is what the callable is at that moment."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from flux_endpoint import ComputeSerializer, Executor, MPIFunction, ShellFunction
from flux_endpoint.client.backlog import PendingTask, SubmissionBacklog, SubmissionRoute
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.registry import FunctionRegistration, FunctionRegistry
from flux_endpoint.errors import SerializationError
from flux_endpoint.serialize import CombinedCode, SerializationStrategy, unpack_buffers

TIMEOUT = 30
SERIALIZER = ComputeSerializer()


class Model:
    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def __call__(self, x: int) -> Any:
        return self.weight * x

    def run(self, x: int) -> Any:
        return self(x)


def triple(x: int) -> int:
    return 3 * x


def registered(registration: FunctionRegistration) -> Any:
    """Return the function as the service gets it."""
    assert registration.body is not None
    return SERIALIZER.deserialize(unpack_buffers(registration.body["function_code"])[0])


def over_an_object() -> tuple[Callable[..., Any], Callable[[], None]]:
    model = Model(2)
    return model, lambda: setattr(model, "weight", 5)


def over_a_method() -> tuple[Callable[..., Any], Callable[[], None]]:
    model = Model(2)
    return model.run, lambda: setattr(model, "weight", 5)


def over_a_partial() -> tuple[Callable[..., Any], Callable[[], None]]:
    factors = [2]
    product = functools.partial(lambda factors, x: factors[0] * x, factors)
    return product, lambda: factors.__setitem__(0, 5)


def over_a_closure() -> tuple[Callable[..., Any], Callable[[], None]]:
    factor = 2

    def product(x: int) -> int:
        return factor * x

    def change() -> None:
        nonlocal factor
        factor = 5

    return product, change


def over_a_list_in_a_closure() -> tuple[Callable[..., Any], Callable[[], None]]:
    factors = [2]

    def product(x: int) -> int:
        return factors[0] * x

    return product, lambda: factors.__setitem__(0, 5)


def over_defaults() -> tuple[Callable[..., Any], Callable[[], None]]:
    def product(x: int, factor: int = 2) -> int:
        return factor * x

    return product, lambda: setattr(product, "__defaults__", (5,))


def over_a_mutable_default() -> tuple[Callable[..., Any], Callable[[], None]]:
    def product(x: int, factors: list[int] = [2]) -> int:  # noqa: B006 - what this is for
        return factors[0] * x

    return product, lambda: product.__defaults__[0].__setitem__(0, 5)  # type: ignore[index]


def over_an_attribute() -> tuple[Callable[..., Any], Callable[[], None]]:
    def product(x: int) -> int:
        return product.factor * x  # type: ignore[attr-defined,no-any-return]

    product.factor = 2  # type: ignore[attr-defined]
    return product, lambda: setattr(product, "factor", 5)


def over_globals() -> tuple[Callable[..., Any], Callable[[], None]]:
    namespace: dict[str, Any] = {"factor": 2}
    exec("def product(x): return factor * x", namespace)
    return namespace["product"], lambda: namespace.update(factor=5)


def over_what_is_wrapped() -> tuple[Callable[..., Any], Callable[[], None]]:
    inner, change = over_a_closure()

    @functools.wraps(inner)
    def product(*args: int) -> Any:
        return inner(*args)

    return product, change


KINDS = [
    over_an_object,
    over_a_method,
    over_a_partial,
    over_a_closure,
    over_a_list_in_a_closure,
    over_defaults,
    over_a_mutable_default,
    over_an_attribute,
    over_globals,
    over_what_is_wrapped,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_callable_that_changed_is_registered_as_it_is_now(kind: Any) -> None:
    function, change = kind()
    functions = FunctionRegistry()
    first = functions.prepare(function, SERIALIZER)
    assert functions.prepare(function, SERIALIZER) is first
    change()
    second = functions.prepare(function, SERIALIZER)
    assert second is not first
    assert (registered(first)(3), registered(second)(3), function(3)) == (6, 15, 15)
    assert functions.prepare(function, SERIALIZER) is second


def test_a_callable_that_is_changed_back_is_not_registered_again() -> None:
    model = Model(1)
    functions = FunctionRegistry()
    first = functions.prepare(model, SERIALIZER)
    model.weight = 2
    assert functions.prepare(model, SERIALIZER) is not first
    model.weight = 1
    assert functions.prepare(model, SERIALIZER) is first


@pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])
def test_a_command_function_that_changed_is_registered_as_it_is_now(kind: Any) -> None:
    function = kind("echo one")
    functions = FunctionRegistry()
    first = functions.prepare(function, SERIALIZER)
    function.cmd = "echo two"
    second = functions.prepare(function, SERIALIZER)
    assert (registered(first).cmd, registered(second).cmd) == ("echo one", "echo two")


def test_a_function_that_did_not_change_is_serialized_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    functions = FunctionRegistry()
    function = over_a_closure()[0]
    functions.prepare(function, SERIALIZER)
    strategy = type(SERIALIZER.code_serializer)
    monkeypatch.setattr(strategy, "serialize", lambda _, data: pytest.fail(f"serialized {data}"))
    for _ in range(3):
        functions.prepare(function, SERIALIZER)


def test_every_submission_runs_what_the_callable_is_then(service: Any, executor: Executor) -> None:
    model = Model(1)
    futures = [executor.submit(model, 2)]
    model.weight = 5
    futures += [executor.submit(model, 2), executor.submit(model, 2)]
    for future in futures:
        assert future.wait_submitted(TIMEOUT)
    sent = [request.body["function_code"] for request in service.seen("/v3/functions")]
    weights = [SERIALIZER.deserialize(unpack_buffers(code)[0]).weight for code in sent]
    assert weights == [1, 5]
    assert futures[0].function_id != futures[1].function_id == futures[2].function_id


def test_map_runs_what_the_callable_is_when_each_call_is_submitted(
    service: Any, executor: Executor
) -> None:
    model = Model(1)
    executor.map(model, [1, 2])
    model.weight = 2
    executor.map(model, [1, 2])
    executor.submit(triple, 1).wait_submitted(TIMEOUT)
    assert len(service.seen("/v3/functions")) == 3


def test_a_function_registered_beforehand_that_changed_is_registered_again(
    service: Any, executor: Executor
) -> None:
    model = Model(1)
    known = executor.register_function(model, public=True)
    with pytest.raises(ValueError, match=known):
        executor.register_function(model)
    same = executor.submit(model, 1)
    model.weight = 2
    other = executor.submit(model, 1)
    assert same.wait_submitted(TIMEOUT)
    assert other.wait_submitted(TIMEOUT)
    assert same.function_id == known != other.function_id
    model.weight = 3
    assert executor.register_function(model) not in {known, other.function_id}


def test_a_given_function_id_is_used_even_if_its_callable_changes(
    service: Any, executor: Executor
) -> None:
    model = Model(1)
    given = str(uuid.uuid4())
    executor.register_function(model, function_id=given)
    model.weight = 2
    future = executor.submit(model, 1)
    assert future.wait_submitted(TIMEOUT)
    assert future.function_id == given
    assert service.seen("/v3/functions") == []


def test_a_function_registered_beforehand_keeps_its_serializer(
    service: Any, executor: Executor
) -> None:
    known = executor.register_function(triple)
    executor.serializer = ComputeSerializer(strategy_code=CombinedCode.instance())
    future = executor.submit(triple, 1)
    assert future.wait_submitted(TIMEOUT)
    assert future.function_id == known


def test_equal_callables_that_were_registered_keep_their_own_ids(
    service: Any, executor: Executor
) -> None:
    models = [Model(1), Model(1)]
    known = [executor.register_function(model) for model in models]
    futures = [executor.submit(model, 1) for model in models]
    for future in futures:
        assert future.wait_submitted(TIMEOUT)
    assert [future.function_id for future in futures] == known


def test_a_name_and_a_docstring_that_are_not_unicode_are_sent_escaped(
    service: Any, executor: Executor
) -> None:
    def odd() -> None:
        return None

    odd.__name__, odd.__doc__ = "bad \udcff", "worse \ud800"
    assert executor.submit(odd).wait_submitted(TIMEOUT)
    body = service.seen("/v3/functions")[0].body
    assert (body["function_name"], body["description"]) == ("bad \\udcff", "worse \\ud800")


class Surrogates(SerializationStrategy):
    """Writes what no request can carry."""

    identifier = "zu\n"
    for_code = False

    def serialize(self, data: Any) -> str:
        return self.identifier + "".join(map(str, data))

    def deserialize(self, payload: str) -> Any:
        return self.chomp(payload)


def test_arguments_that_are_not_unicode_are_refused_and_nothing_else_is_lost(
    executor: Executor,
) -> None:
    executor.serializer = ComputeSerializer(strategy_data=Surrogates.instance())
    good = executor.submit(triple, 1)
    with pytest.raises(SerializationError, match=r"arguments of 'triple' .* lone surrogates"):
        executor.submit(triple, "\udcff")
    assert good.wait_submitted(TIMEOUT)


def test_code_that_was_sent_is_not_kept() -> None:
    registration = FunctionRegistry().prepare(Model("x" * 10_000), SERIALIZER)
    assert registration.body is not None
    registration.registered_as("an id")
    assert registration.body is None
    assert not registration.may_be_command


def test_code_that_waits_to_be_sent_counts_once_against_the_backlog() -> None:
    registration = FunctionRegistry().prepare(Model("x" * 10_000), SERIALIZER)
    route = SubmissionRoute("group", "endpoint")
    tasks = [PendingTask(ComputeFuture(), route, registration, "args") for _ in range(2)]
    assert tasks[0].size > 10_000
    assert tasks[1].size == len("args")
    backlog = SubmissionBacklog(max_bytes=10_000)
    assert backlog.put(tasks[0])
    registration.registered_as("an id")
    assert backlog.take(1, 1) == [tasks[0]]
    assert backlog.put(tasks[1])  # there is room again
