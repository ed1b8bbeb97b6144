"""Objects behind ProxyStore's connectors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint.data import ConnectorStore, cleaning
from flux_endpoint.errors import DataStoreError

DATA = list(range(5000))


@pytest.fixture
def connector(tmp_path: Path) -> Any:
    files = pytest.importorskip(
        "proxystore.connectors.file", reason="not run: the extra proxystore is not installed"
    )
    return files.FileConnector(str(tmp_path / "store"), clear=False)


@pytest.fixture
def store(connector: Any) -> ConnectorStore:
    return ConnectorStore(connector, lifetime="1d", threshold=1000)


def test_a_reference_needs_nothing_of_the_writer(store):
    handle = store.put(DATA)
    assert pickle.loads(pickle.dumps([handle])) == [DATA]
    assert pickle.loads(pickle.dumps(store)).offload(DATA).get() == DATA
    assert handle.size > 5000


def test_what_is_gone_or_damaged_is_reported(store, connector, tmp_path):
    handle = store.put(DATA)
    (file,) = [each for each in (tmp_path / "store").iterdir() if each.suffix != ".ready"]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(DataStoreError, match="behind FileConnector is damaged"):
        handle.get()
    handle.delete()
    with pytest.raises(DataStoreError, match="behind FileConnector is not there: its lifetime"):
        handle.get()


def test_what_the_connector_raises_is_reported(store, tmp_path, monkeypatch):
    (tmp_path / "store").rmdir()
    with pytest.raises(DataStoreError, match=r"can't store .*FileNotFoundError"):
        store.put(DATA)


def test_what_has_expired_goes(store, tmp_path):
    store.put(DATA)
    store.put("kept", lifetime="infinity")
    (content,) = cleaning.contents()
    assert (content.store, content.objects, content.size) == ("connectors", 1, None)
    assert cleaning.prune() == 0
    assert cleaning.prune(grace=-90_000) == 1
    assert len(list((tmp_path / "store").iterdir())) == 2  # a file and its mark
    assert list(cleaning.contents()) == []


def test_an_object_whose_lifetime_can_not_be_noted_is_not_kept(store, tmp_path, monkeypatch):
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", "/proc/nothing")
    with pytest.raises(DataStoreError, match="lifetime of an object can't be noted"):
        store.put(DATA)
    assert list((tmp_path / "store").iterdir()) == []


def test_something_else_is_no_connector():
    with pytest.raises(TypeError, match="expected a connector of ProxyStore, got dict, which has"):
        ConnectorStore({}, lifetime="1d")
