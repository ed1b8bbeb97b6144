"""Modules that travel with a function, to a process that does not have them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flux_endpoint.client.registry import FunctionRegistry
from flux_endpoint.errors import SerializationError
from flux_endpoint.serialize import (
    ComputeSerializer,
    DillCode,
    PureSourceDill,
    StrategyError,
    same_state,
)
from flux_endpoint.serialize import modules as carried

FILES = {
    "mesh/__init__.py": "from mesh.grid.cells import Cell\nVERSION = 1\n",
    "mesh/grid/cells.py": "class Cell:\n    def __init__(self, size):\n        self.size = size\n",
    "mesh/run.py": (
        "# -*- coding: latin-1 -*-\n"
        "from mesh import VERSION, Cell\n"
        "from .grid.cells import Cell as Same\n"
        "NAME = 'M\xfcller'\n"
        "def refine(cell):\n"
        "    if cell.size == 0:\n"
        "        raise ValueError('flat')  # where it goes wrong\n"
        "    return VERSION, NAME, Cell is Same and isinstance(cell, Cell), Cell(cell.size / 2)\n"
    ),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the package `mesh` importable here; again, with other files, if it is called again."""
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mesh"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def make(**changed: str) -> ModuleType:
        for name, text in {**FILES, **changed}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("latin-1"))
        forget()
        importlib.import_module("mesh.run")
        return importlib.import_module("mesh")

    yield make
    forget()


def elsewhere(tmp_path: Path, code: str) -> str:
    """Run code where neither the package nor this project is."""
    start = "import sys; sys.modules['flux_endpoint'] = None; sys.path[:] = " + repr(
        [path for path in sys.path if path not in (str(tmp_path), "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{start}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = """
import base64, dill
def load(text):
    return dill.loads(base64.decodebytes(text[3:].encode()))
"""


def test_a_function_of_a_package_that_is_not_there_runs(
    package: Callable[..., ModuleType], tmp_path: Path
) -> None:
    mesh = package()
    serializer = ComputeSerializer(modules=[mesh])
    parts = [serializer.serialize(each) for each in (mesh.run.refine, (mesh.Cell(3.0),))]
    code = (
        f"{LOAD}\nfunction, args = [load(text) for text in {parts!r}]\nresult = function(*args)\n"
    )
    shown = elsewhere(tmp_path, f"{code}\nprint(result[:3], result[3].size, function.__module__)")
    assert shown == "(1, 'Müller', True) 1.5 mesh.run\n"


def test_a_traceback_has_the_lines_of_the_modules(
    package: Callable[..., ModuleType], tmp_path: Path
) -> None:
    mesh = package()
    serializer = ComputeSerializer(modules="mesh.run")
    parts = [serializer.serialize(each) for each in (mesh.run.refine, (mesh.Cell(0),))]
    code = f"""{LOAD}
import traceback
function, args = [load(text) for text in {parts!r}]
try:
    function(*args)
except ValueError:
    print(traceback.format_exc())
"""
    shown = elsewhere(tmp_path, code)
    assert 'File "carried/mesh/run.py", line 7, in refine' in shown
    assert "raise ValueError('flat')  # where it goes wrong" in shown


def test_changed_modules_replace_the_earlier_ones(
    package: Callable[..., ModuleType], tmp_path: Path
) -> None:
    texts = []
    for version in (1, 2):
        mesh = package(
            **{"mesh/__init__.py": f"VERSION = {version}\nfrom mesh.grid.cells import Cell"}
        )
        serializer = ComputeSerializer(modules=[mesh])
        texts.append([serializer.serialize(each) for each in (mesh.run.refine, (mesh.Cell(1),))])
    code = f"""{LOAD}
for parts in {[*texts, texts[1], texts[0]]!r}:
    function, args = [load(text) for text in parts]
    print(function(*args)[0], function(*args)[2])
"""
    assert elsewhere(tmp_path, code).split() == ["1", "True", "2", "True", "2", "True", "1", "True"]


def test_a_single_module_travels_too(package: Callable[..., ModuleType], tmp_path: Path) -> None:
    package(**{"single.py": "def double(x):\n    return 2 * x\n"})
    single = importlib.import_module("single")
    try:
        text = ComputeSerializer(modules=["single"]).serialize(single.double)
        assert elsewhere(tmp_path, f"{LOAD}\nprint(load({text!r})(4))") == "8\n"
    finally:
        del sys.modules["single"]


def test_the_state_of_a_function_changes_with_the_modules(
    package: Callable[..., ModuleType],
) -> None:
    mesh = package()
    without, with_modules = ComputeSerializer(), ComputeSerializer(modules=[mesh])
    later = ComputeSerializer(modules=[mesh])  # sources may have changed on disk
    states = [each.state(mesh.run.refine) for each in (without, with_modules, later)]
    assert None not in states
    assert not same_state(states[0], states[1])
    assert not same_state(states[1], states[2])
    assert same_state(states[1], with_modules.state(mesh.run.refine))


def test_a_new_serializer_registers_its_modules(package: Callable[..., ModuleType]) -> None:
    mesh, registry = package(), FunctionRegistry()
    first = registry.prepare(mesh.run.refine, ComputeSerializer())
    second = registry.prepare(mesh.run.refine, ComputeSerializer(modules=[mesh]))
    assert first is not second
    assert registry.prepare(mesh.run.refine, ComputeSerializer(modules=[mesh])) is second


def test_the_program_that_sends_the_modules_keeps_its_own(
    package: Callable[..., ModuleType],
) -> None:
    mesh = package()
    serializer = ComputeSerializer(modules=[mesh])
    function, (cell,), _ = serializer.check_strategies(mesh.run.refine, mesh.Cell(3.0))
    assert sys.modules["mesh"] is mesh
    assert (function, type(cell)) == (mesh.run.refine, mesh.Cell)
    serializer.serialize((mesh.Cell(1.0),))


def test_a_module_knows_its_file(package: Callable[..., ModuleType], tmp_path: Path) -> None:
    text = "import pathlib\nHERE = pathlib.Path(__file__).parent\ndef here(): return str(HERE)\n"
    mesh = package(**{"mesh/place.py": text})
    importlib.import_module("mesh.place")
    function = ComputeSerializer(modules=[mesh]).serialize(mesh.place.here)
    assert elsewhere(tmp_path, f"{LOAD}\nprint(load({function!r})())") == "carried/mesh\n"


def test_replaced_modules_take_the_others_of_their_list_along(
    package: Callable[..., ModuleType], tmp_path: Path
) -> None:
    package(**{"other.py": "from mesh import Cell\n"})
    mesh, other = sys.modules["mesh"], importlib.import_module("other")
    try:
        both = ComputeSerializer(modules=[mesh, other]).serialize(mesh.run.refine)
        one = ComputeSerializer(modules=[mesh]).serialize(mesh.run.refine)
    finally:
        del sys.modules["other"]
    code = f"{LOAD}\nload({both!r})\nimport other, sys\nload({one!r})"
    code += "\nprint('other' in sys.modules)"
    assert elsewhere(tmp_path, code) == "False\n"


def test_the_lock_of_an_editor_does_not_travel(
    package: Callable[..., ModuleType], tmp_path: Path
) -> None:
    mesh = package()
    (tmp_path / "mesh" / ".#run.py").symlink_to("user@host.1234:56")
    (tmp_path / "mesh" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "mesh" / ".ipynb_checkpoints" / "run-checkpoint.py").touch()
    text = ComputeSerializer(modules=[mesh]).serialize(mesh.run.refine)
    assert elsewhere(tmp_path, f"{LOAD}\nprint(load({text!r}).__name__)") == "refine\n"


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ([3], TypeError, "modules or their names"),
        (["no_such_module"], ImportError, "no_such_module"),
        (["math"], SerializationError, "no source file"),
        (["_json"], SerializationError, "no source file"),
        (["__main__"], SerializationError, "__main__ can't travel as a module"),
    ],
)
def test_what_can_not_travel_is_refused(wrong: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ComputeSerializer(modules=wrong)


def test_a_package_with_compiled_modules_is_refused(
    package: Callable[..., ModuleType], tmp_path: Path
) -> None:
    mesh = package()
    (tmp_path / "mesh" / "fast.abi3.so").touch()
    with pytest.raises(SerializationError, match=r"compiled modules, such as fast\.abi3\.so"):
        ComputeSerializer(modules=[mesh])


def test_too_many_sources_are_refused(
    package: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried, "MAX_SOURCES", 10)
    with pytest.raises(SerializationError, match="bytes of source, the limit is 10"):
        ComputeSerializer(modules=[package()])


def test_other_strategies_take_no_modules() -> None:
    with pytest.raises(StrategyError, match="not with those of PureSourceDill"):
        ComputeSerializer(PureSourceDill, modules=["json"])
    assert ComputeSerializer(DillCode, modules=["json"]).serialize(len)
