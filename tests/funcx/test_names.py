"""funcX's names are ours."""

from __future__ import annotations

import pytest

from flux_endpoint import Client, ComputeFuture, Executor
from flux_endpoint.funcx import FuncXClient, FuncXExecutor
from flux_endpoint.funcx.sdk.executor import FuncXExecutor as SameExecutor
from flux_endpoint.funcx.sdk.executor import FuncXFuture

ENDPOINT = "00000000-0000-4000-8000-00000000000e"


@pytest.fixture
def client():
    return FuncXClient("http://127.0.0.1:1", "token")


def test_funcx_names_refer_to_our_classes(client):
    assert isinstance(client, Client)
    assert issubclass(FuncXExecutor, Executor)
    assert FuncXFuture is ComputeFuture
    assert SameExecutor is FuncXExecutor


def test_the_executor_takes_funcxs_arguments(client):
    with FuncXExecutor(endpoint_id=ENDPOINT, funcx_client=client, label="mine") as executor:
        assert executor.funcx_client is client is executor.client
        assert str(executor.endpoint_id) == ENDPOINT
        assert executor.label == "mine"


def test_unsupported_arguments_are_refused(client):
    with pytest.raises(ValueError, match="inside of the container"):
        FuncXExecutor(ENDPOINT, container_id=ENDPOINT, funcx_client=client)
    with pytest.raises(TypeError, match="did you mean 'batch_size'"):
        FuncXExecutor(ENDPOINT, funcx_client=client, batchsize=3)
