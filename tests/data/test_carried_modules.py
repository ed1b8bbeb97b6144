"""Modules that travel with functions: large ones are sent once, by the store."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from flux_endpoint.client.registry import FunctionRegistry
from flux_endpoint.data import SharedDirectory
from flux_endpoint.errors import SerializationError
from flux_endpoint.serialize import ComputeSerializer, same_state

LOAD = """
import sys
from flux_endpoint.serialize import ComputeSerializer
functions = [ComputeSerializer().deserialize(open(path).read()) for path in sys.argv[1:]]
print([function() for function in functions])
"""


@pytest.fixture
def sandpile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that stays large when it is compressed."""
    (tmp_path / "here").mkdir()
    grains = random.Random(1).randbytes(40_000).hex()
    (tmp_path / "here" / "sandpile.py").write_text(
        f"GRAINS = '{grains}'\ndef height():\n    return len(GRAINS)\n"
        "def base():\n    return GRAINS[:0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "here")
    import sandpile

    yield sandpile
    del sys.modules["sandpile"]


@pytest.fixture
def serializer(sandpile, store) -> ComputeSerializer:
    return ComputeSerializer(modules=[sandpile], store=store)


def test_functions_of_large_modules_are_small_and_run_elsewhere(
    serializer, sandpile, store, tmp_path
):
    texts = [serializer.serialize(each) for each in (sandpile.height, sandpile.base)]
    assert len(list(store.directory.iterdir())) == 1
    assert max(map(len, texts)) < 20_000
    paths = [tmp_path / f"{number}.txt" for number in range(2)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.stdout == "[80000, '']\n", done.stderr


def test_small_modules_stay_in_the_function(serializer, sandpile, store):
    store.threshold = 10**6
    assert len(serializer.serialize(sandpile.height)) > 40_000
    assert not store.directory.exists()


def test_a_program_that_goes_on_prolongs_their_lifetime(serializer, sandpile, store, monkeypatch):
    registry = FunctionRegistry()
    first = registry.prepare(sandpile.height, serializer)
    state = serializer.state(sandpile.height)
    (file,) = store.directory.iterdir()
    ends = file.stat().st_mtime
    assert registry.prepare(sandpile.height, serializer) is first
    assert same_state(state, serializer.state(sandpile.height))
    assert file.stat().st_mtime == ends
    monkeypatch.setattr(store, "_period_ends", 0.0)
    assert registry.prepare(sandpile.height, serializer) is first  # and is not registered again
    assert file.stat().st_mtime > ends


def test_a_store_that_can_not_take_them_is_named(sandpile, tmp_path):
    store = SharedDirectory(tmp_path / "not" / "there", lifetime="1d", threshold=0)
    serializer = ComputeSerializer(modules=[sandpile], store=store)
    with pytest.raises(SerializationError, match=r"'height' .*not/there on .* is not there"):
        FunctionRegistry().prepare(sandpile.height, serializer)
