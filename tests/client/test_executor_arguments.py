"""What an Executor accepts, and how it says what is wrong."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint import Client, ComputeSerializer, Executor, MPIFunction, ShellFunction
from flux_endpoint.data import SharedDirectory
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.protocol.resources import parse_resources
from flux_endpoint.serialize import JSONData, PureSourceDill, StrategyError

ENDPOINT = "00000000-0000-4000-8000-00000000000e"


def test_an_executor_is_a_concurrent_futures_executor(client: Client) -> None:
    with Executor(ENDPOINT, client) as executor:
        assert isinstance(executor, concurrent.futures.Executor)


def test_an_endpoint_is_given_as_uuid_or_text(client: Client) -> None:
    endpoint = uuid.uuid4()
    assert Executor(endpoint, client).endpoint_id == endpoint
    assert Executor(str(endpoint), client=client).endpoint_id == endpoint


@pytest.mark.parametrize("name", ["endpoint_id", "task_group_id"])
def test_a_malformed_id_is_named(client: Client, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a UUID.*'tutorial'"):
        Executor(client=client, **{name: "tutorial"})
    executor = Executor(client=client)
    with pytest.raises(ValueError, match=f"{name} must be a UUID.*17"):
        setattr(executor, name, 17)


def test_a_misspelt_argument_names_the_right_one(client: Client) -> None:
    with pytest.raises(
        TypeError, match=r"'endpoint' is an invalid argument.*: did you mean 'endpoint_id'"
    ):
        Executor(client=client, endpoint="x")
    with pytest.raises(TypeError, match="did you mean 'resource_specification'"):
        Executor(client=client, resource_spec={})
    with pytest.raises(
        TypeError, match=r"'xyzzy' is .*: it takes endpoint_id, client, task_group_id"
    ):
        Executor(client=client, xyzzy=1)


@pytest.fixture
def unsent(client: Client, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """An executor that takes submissions and sends none."""
    monkeypatch.setattr(Executor, "_put", lambda *_, **_options: None)
    return Executor(ENDPOINT, client)


def test_an_mpi_function_without_resources_is_warned_of_once(unsent: Executor) -> None:
    with pytest.warns(UserWarning, match="MPIFunction .* without a resource_specification") as told:
        unsent.submit(MPIFunction("true"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unsent.submit(MPIFunction("true"))
    assert [warning.filename for warning in told] == [__file__]


def test_an_mpi_function_with_resources_and_other_functions_are_not_warned_of(
    unsent: Executor,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unsent.submit(ShellFunction("true"))
        unsent.resource_specification = {"num_ranks": 1}
        unsent.submit(MPIFunction("true"))


def test_the_official_rate_limits_are_accepted(client: Client) -> None:
    Executor(client=client, api_burst_limit=8, api_burst_window_s=2)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("batch_size", 0, ValueError),
        ("batch_size", "many", ValueError),
        ("amqp_port", 0, ValueError),
        ("amqp_port", 65536, ValueError),
        ("resource_specification", [1], TypeError),
        ("resource_specification", {"nodes": object()}, TypeError),
        ("user_endpoint_config", "yaml", TypeError),
        ("serializer", object(), TypeError),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    client: Client, name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name):
        Executor(client=client, **{name: value})
    executor = Executor(client=client)
    with pytest.raises(error, match=name):
        setattr(executor, name, value)


def test_every_argument_is_an_attribute(client: Client) -> None:
    group = uuid.uuid4()
    serializer = ComputeSerializer()
    executor = Executor(
        client=client,
        task_group_id=group,
        resource_specification={"num_nodes": 2},
        user_endpoint_config={"walltime": "1:00"},
        label="mine",
        batch_size=7,
        amqp_port=5671,
        serializer=serializer,
    )
    assert executor.task_group_id == group
    assert executor.resource_specification == {"num_nodes": 2}
    assert executor.user_endpoint_config == {"walltime": "1:00"}
    assert (executor.label, executor.batch_size, executor.amqp_port) == ("mine", 7, 5671)
    assert executor.serializer is serializer
    assert "mine" in repr(executor)


def test_a_configuration_that_attach_would_ignore_is_refused(client: Client) -> None:
    executor = Executor(str(uuid.uuid4()), client=client, user_endpoint_config={"walltime": "1:00"})
    with pytest.raises(ValueError, match="no effect on a job that is only followed"):
        executor.attach(1)


def test_executors_share_the_task_group_of_the_first(client: Client) -> None:
    first, second = Executor(client=client), Executor(client=client)
    assert first.task_group_id == second.task_group_id
    other = uuid.uuid4()
    assert Executor(client=client, task_group_id=str(other)).task_group_id == other
    assert first.task_group_id != other


def test_a_task_group_can_be_assigned_and_renewed(client: Client) -> None:
    executor = Executor(client=client)
    before = executor.task_group_id
    executor.task_group_id = None
    assert executor.task_group_id is None
    assert Executor(client=client).task_group_id == before, "the default stays"
    with pytest.raises(ValueError, match="must specify a task_group_id in order to reload"):
        executor.reload_tasks()
    executor.endpoint_id = uuid.uuid4()
    groups = {executor.submit(abs, -1).task_group_id for _ in range(2)}
    assert groups == {str(executor.task_group_id)}
    assert executor.task_group_id not in {None, before}
    assert Executor(client=client).task_group_id == executor.task_group_id
    executor.task_group_id = str(before)
    assert executor.task_group_id == before


def test_the_serializer_is_the_clients(client: Client) -> None:
    serializer = ComputeSerializer(strategy_data=JSONData())
    executor = Executor(client=client, serializer=serializer)
    assert client.fx_serializer is serializer
    executor.serializer = ComputeSerializer()
    assert client.fx_serializer is executor.serializer is not serializer
    with pytest.raises(TypeError, match="Expected ComputeSerializer, got str"):
        executor.serializer = "json"  # type: ignore[assignment]


def test_the_store_is_the_serializers(client: Client, tmp_path: Path) -> None:
    store = SharedDirectory(tmp_path, lifetime="1d")
    serializer = ComputeSerializer(strategy_code=PureSourceDill())
    executor = Executor(client=client, serializer=serializer, store=store)
    assert executor.serializer is client.fx_serializer
    assert executor.serializer.code_serializer is serializer.code_serializer
    assert (executor.store, serializer.store) == (store, None)
    executor.store = None
    assert executor.store is None
    executor.serializer = ComputeSerializer(store=store)
    assert executor.store is store
    with pytest.raises(TypeError, match=r"store must be a SharedDirectory .*, got str"):
        executor.store = "/lustre"  # type: ignore[assignment]
    with pytest.raises(StrategyError, match="not by JSONData"):
        Executor(client=client, serializer=ComputeSerializer(strategy_data=JSONData()), store=store)


def test_submit_without_endpoint_says_how_to_set_it(client: Client) -> None:
    executor = Executor(client=client)
    with pytest.raises(ValueError, match=r"No endpoint_id set.*Executor\(endpoint_id=...\)"):
        executor.submit(abs, -1)


def test_without_configuration_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(tmp_path))
    monkeypatch.delenv("FLUX_ENDPOINT_SERVICE_URL", raising=False)
    monkeypatch.delenv("FLUX_ENDPOINT_TOKEN", raising=False)
    with pytest.raises(ConfigurationError, match="FLUX_ENDPOINT_SERVICE_URL"):
        Executor()


def test_importing_the_package_imports_none_of_its_parts() -> None:
    code = (
        "import sys, flux_endpoint;"
        "print([m for m in sys.modules if m in ('dill', 'pika', 'httpx', 'pydantic')"
        " or m.startswith('flux_endpoint.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_offers_each_name_it_lists() -> None:
    import flux_endpoint

    for name in flux_endpoint.__all__:
        assert getattr(flux_endpoint, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Exekutor'"):
        _ = flux_endpoint.Exekutor  # type: ignore[attr-defined]


def test_a_specification_that_was_changed_in_place_is_checked_again(client: Client) -> None:
    with Executor(ENDPOINT, client) as executor:
        executor.resource_specification = {"num_ranks": 2}
        executor.resource_specification["num_rank"] = 3
        with pytest.raises(ValueError, match="did you mean 'num_ranks'"):
            executor.submit(pow, 2, 3)


def test_keys_of_official_endpoints_are_passed_on_unchecked(client: Client) -> None:
    executor = Executor(ENDPOINT, client, resource_specification={"priority": 2})
    assert executor.resource_specification == {"priority": 2}
    executor.shutdown()
    with pytest.raises(ValueError, match="Flux orders jobs by 'urgency'"):
        parse_resources({"priority": 2})


def test_a_misspelt_attribute_names_the_right_one(client: Client) -> None:
    with Executor(ENDPOINT, client) as executor:
        with pytest.raises(AttributeError, match="did you mean 'resource_specification'"):
            executor.resource_specificaton = {"num_nodes": 2}
        executor.note = "whatever else one wants to keep there"
