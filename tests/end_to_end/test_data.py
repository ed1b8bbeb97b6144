"""Arguments and results above 10 MiB, over a whole stack."""

from __future__ import annotations

import uuid

import pytest

from flux_endpoint import Executor, TaskExecutionFailed
from flux_endpoint.data import ConnectorStore, SharedDirectory
from flux_endpoint.errors import DataStoreError

pytestmark = [pytest.mark.stack, pytest.mark.rabbitmq]

PATIENCE = 100
SIZE = 12 * 2**20

#: As in a script: its functions travel by value.
SESSION = {"__name__": "__main__"}
exec(
    """
def filled(size, value=b"x"):
    return value * size

def ends(data, more=b""):
    return len(data), len(more), (data[:1] + more[-1:]).decode()
""",
    SESSION,
)
filled, ends = SESSION["filled"], SESSION["ends"]


@pytest.fixture
def executor(home, tmp_path):
    store = SharedDirectory(tmp_path / "store", lifetime="1d")
    with Executor(endpoint_id=home.endpoint_id, store=store) as executor:
        yield executor


def test_large_data_goes_there_and_back_and_on(executor, tmp_path):
    shared = executor.store.put(b"s" * SIZE)
    made = executor.submit(filled, SIZE)
    chained = executor.submit(ends, made, more=shared)
    both = [executor.submit(ends, b"a" * SIZE, more=shared) for _ in range(2)]
    assert made.result(PATIENCE) == b"x" * SIZE
    assert chained.result(PATIENCE) == (SIZE, SIZE, "xs")
    assert [each.result(PATIENCE) for each in both] == [(SIZE, SIZE, "as")] * 2
    assert len(list((tmp_path / "store").iterdir())) == 3


def test_a_job_with_ranks_takes_and_leaves_large_data(executor):
    job = executor.using(num_nodes=1, num_ranks=1)
    (value,) = job.submit(filled, SIZE, b"yy").result(PATIENCE)
    assert (len(value), value[-2:]) == (2 * SIZE, b"yy")


def test_an_object_that_is_gone_fails_the_task_and_not_the_client(executor, tmp_path):
    executor.task_group_id = group = uuid.uuid4()
    shared = executor.store.put(b"s" * SIZE)
    made = executor.submit(filled, SIZE)
    made.result(PATIENCE)
    for each in (tmp_path / "store").iterdir():
        each.unlink()
    with pytest.raises(TaskExecutionFailed, match="can't be loaded on this worker") as caught:
        executor.submit(ends, shared).result(PATIENCE)
    assert "error with serialization" not in str(caught.value)
    (again,) = [each for each in executor.reload_tasks(group) if each.task_id == made.task_id]
    with pytest.raises(DataStoreError, match=rf"task {made.task_id} succeeded, but the object"):
        again.result(PATIENCE)


def test_a_connector_of_proxystore_is_a_store(home, tmp_path):
    files = pytest.importorskip("proxystore.connectors.file", reason="not run: no proxystore")
    connector = files.FileConnector(str(tmp_path / "store"), clear=False)
    store = ConnectorStore(connector, lifetime="1d")
    with Executor(endpoint_id=home.endpoint_id, store=store) as executor:
        future = executor.submit(ends, executor.submit(filled, SIZE), more=b"z" * SIZE)
        assert future.result(PATIENCE) == (SIZE, SIZE, "xz")
