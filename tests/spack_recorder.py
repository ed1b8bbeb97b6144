"""A replacement of the Spack modules that recipes import: it records their directives.

The directives have the signatures of Spack's Package API v2.0, so a misspelt argument fails here,
too. Their meaning is not checked, e.g. whether a version range is satisfiable.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "spack" / "spack_repo" / "flux_endpoint"
RECIPES = sorted(REPOSITORY.glob("packages/*/package.py"))

_MODULES = ("spack", "spack.package", "spack_repo", "spack_repo.builtin")
_BUILD_SYSTEMS = "spack_repo.builtin.build_systems"


@dataclass(frozen=True)
class Directive:
    """One line of a recipe.

    Attributes:
        kind: the directive's name.
        value: its first argument.
        when: its condition.
        options: its other arguments.
    """

    kind: str
    value: str
    when: str
    options: dict[str, Any]


@dataclass
class Recipe:
    """A loaded recipe: the name of its package, its class, and its directives."""

    name: str
    cls: type
    directives: list[Directive]

    def all(self, kind: str) -> list[Directive]:
        """Return the directives of one kind."""
        return [each for each in self.directives if each.kind == kind]


class SkipTest(Exception):  # noqa: N818 - Spack's name
    """Raised by a recipe's test that does not apply."""


class Executable:
    """A program; has the parts of Spack's class that the recipes use.

    Args:
        path: path of the program.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._environment: dict[str, str] = {}

    def add_default_env(self, name: str, value: str) -> None:
        """Set a variable for every run."""
        self._environment[name] = value

    def __call__(self, *arguments: str, output: Any = None, error: Any = None) -> str:
        wanted = subprocess.PIPE if output is str.split else None
        together = subprocess.STDOUT if error is str.split else None
        ended = subprocess.run(
            [self.path, *arguments],
            env={**os.environ, **self._environment},
            stdout=wanted,
            stderr=together,
            text=True,
            check=True,
        )
        return ended.stdout or ""


@dataclass
class _Notebook:
    lines: list[Directive] = field(default_factory=list)
    defaults: list[dict[str, Any]] = field(default_factory=list)

    def note(self, kind: str, value: str, **given: Any) -> None:
        usual: dict[str, Any] = {}
        for layer in self.defaults:
            usual |= layer
        options = {
            name: usual.get(name) if option is None else option for name, option in given.items()
        }
        when = options.pop("when", None) or ""
        kept = {name: option for name, option in options.items() if option is not None}
        self.lines.append(Directive(kind, value, when, kept))


def _package_api(notebook: _Notebook) -> dict[str, Any]:
    def depends_on(spec: str, when: Any = None, type: Any = None, *, patches: Any = None) -> None:  # noqa: A002
        notebook.note("depends_on", spec, when=when, type=type, patches=patches)

    def variant(
        name: str,
        default: Any = None,
        description: str = "",
        values: Any = None,
        multi: Any = None,
        validator: Any = None,
        when: Any = None,
        sticky: Any = None,
    ) -> None:
        notebook.note(
            "variant",
            name,
            default=default,
            description=description,
            values=values,
            multi=multi,
            validator=validator,
            when=when,
            sticky=sticky,
        )

    def version(
        ver: str,
        *,
        sha256: Any = None,
        branch: Any = None,
        tag: Any = None,
        commit: Any = None,
        preferred: Any = None,
        deprecated: Any = None,
    ) -> None:
        notebook.note(
            "version",
            ver,
            sha256=sha256,
            branch=branch,
            tag=tag,
            commit=commit,
            preferred=preferred,
            deprecated=deprecated,
        )

    def conflicts(conflict_spec: str, when: Any = None, msg: Any = None) -> None:
        notebook.note("conflicts", conflict_spec, when=when, msg=msg)

    def license_(license_identifier: str, checked_by: Any = None, when: Any = None) -> None:
        notebook.note("license", license_identifier, checked_by=checked_by, when=when)

    @contextlib.contextmanager
    def default_args(**usual: Any) -> Iterator[None]:
        notebook.defaults.append(usual)
        try:
            yield
        finally:
            notebook.defaults.pop()

    @contextlib.contextmanager
    def working_dir(name: str, *, create: bool = False) -> Iterator[None]:
        if create:
            Path(name).mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(name):
            yield

    return {
        "depends_on": depends_on,
        "variant": variant,
        "version": version,
        "conflicts": conflicts,
        "license": license_,
        "default_args": default_args,
        "working_dir": working_dir,
        "join_path": os.path.join,
        "Executable": Executable,
        "SkipTest": SkipTest,
    }


def load(path: Path) -> Recipe:
    """Return the recipe in the file at `path`."""
    notebook = _Notebook()
    modules = {name: ModuleType(name) for name in _MODULES}
    modules["spack.package"].__dict__.update(_package_api(notebook))
    modules[_BUILD_SYSTEMS] = ModuleType(_BUILD_SYSTEMS)
    modules[f"{_BUILD_SYSTEMS}.python"] = ModuleType(f"{_BUILD_SYSTEMS}.python")
    base = type("PythonPackage", (), {"build_system": "python_pip"})
    modules[f"{_BUILD_SYSTEMS}.python"].__dict__["PythonPackage"] = base
    spec = importlib.util.spec_from_file_location(f"recipe_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, modules), mock.patch("sys.dont_write_bytecode", new=True):
        spec.loader.exec_module(module)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    ]
    assert len(found) == 1, f"{path}: one class derived from a build system, not {found}"
    return Recipe(path.parent.name.replace("_", "-"), found[0], notebook.lines)
