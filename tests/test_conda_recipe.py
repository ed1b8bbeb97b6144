"""The conda recipe asks for what pyproject.toml asks for."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "conda" / "recipe.yaml"

#: What is called otherwise by conda-forge; its psycopg has the C half.
OTHER_NAMES = {"prometheus-client": "prometheus_client", "psycopg[binary]": "psycopg"}
#: conda-forge's flux-core has bindings for the same Python; `all` is two of the others; ProxyStore
#: is installed with pip.
NO_OUTPUT = {"flux-python", "all", "proxystore"}
#: The package that an extra's package needs, if it is not the first.
BELOW = {"postgresql": "flux-endpoint-service"}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def outputs(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each output by its name."""
    return {each["package"]["name"]: each for each in recipe["outputs"]}


def specs(texts: list[str]) -> set[str]:
    """Return the specs of conda for requirements."""
    found = set()
    for requirement in map(Requirement, texts):
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        name = OTHER_NAMES.get(requirement.name + extras, requirement.name + extras)
        found.add(f"{name} {requirement.specifier}")
    return found


def test_the_package_needs_what_the_project_needs(
    outputs: dict[str, Any], pyproject: dict[str, Any]
) -> None:
    project, needed = pyproject["project"], outputs["flux-endpoint"]["requirements"]
    python = f"python {project['requires-python']}"
    assert set(needed["run"]) == {python} | specs(project["dependencies"])
    assert set(needed["host"]) == {python, "pip"} | specs(pyproject["build-system"]["requires"])


def test_each_extra_is_a_package(outputs: dict[str, Any], pyproject: dict[str, Any]) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    names = {f"flux-endpoint-{extra}": extra for extra in extras if extra not in NO_OUTPUT}
    assert set(outputs) == {"flux-endpoint", *names}
    for name, extra in names.items():
        run = set(outputs[name]["requirements"]["run"])
        below = BELOW.get(extra, "flux-endpoint")
        pin = f'${{{{ pin_subpackage("{below}", exact=True) }}}}'
        assert run == {pin} | specs(extras[extra])


def test_version_license_and_command_are_the_projects(
    recipe: dict[str, Any], outputs: dict[str, Any], pyproject: dict[str, Any]
) -> None:
    version = pyproject["tool"]["hatch"]["version"]["fallback-version"]
    assert f'default="{version}"' in recipe["context"]["version"]
    assert recipe["about"]["license"] == pyproject["project"]["license"]
    assert recipe["about"]["summary"] == pyproject["project"]["description"]
    (entry,) = outputs["flux-endpoint"]["build"]["python"]["entry_points"]
    assert dict([entry.split(" = ")]) == pyproject["project"]["scripts"]


def test_it_builds_the_clone_that_holds_it(recipe: dict[str, Any], outputs: dict[str, Any]) -> None:
    assert (RECIPE.parent / recipe["source"]["path"]).resolve() == ROOT
    imported = outputs["flux-endpoint"]["tests"][0]["python"]["imports"]
    assert all(importlib.util.find_spec(name) for name in imported)
