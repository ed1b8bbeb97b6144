"""The recipes of `spack/`, loaded with a stand-in for Spack, and what Spack's builtin offers."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spack_recorder import RECIPES, ROOT, Recipe, load
from spack_specs import meets


@dataclass(frozen=True)
class Known:
    """What can be installed under one name."""

    versions: tuple[str, ...]
    variants: frozenset[str]

    def satisfying(self, ranges: str) -> list[str]:
        """Return the versions in `ranges`."""
        return [version for version in self.versions if meets(version, ranges)]


@pytest.fixture(scope="session")
def recipes() -> dict[str, Recipe]:
    """Every recipe of our repository, by name."""
    return {recipe.name: recipe for recipe in map(load, RECIPES)}


@pytest.fixture(scope="session")
def builtin() -> dict[str, Any]:
    """Names, versions and variants in Spack's own repository, at the commit that it names."""
    facts: dict[str, Any] = json.loads((Path(__file__).parent / "builtin.json").read_text())
    return facts


@pytest.fixture(scope="session")
def known(recipes: dict[str, Recipe], builtin: dict[str, Any]) -> dict[str, Known]:
    """Every package that a recipe or an environment may name: builtin's, ours, virtual ones."""
    found = {
        name: Known(tuple(facts["versions"]), frozenset(facts["variants"]))
        for name, facts in builtin["packages"].items()
    }
    for name, recipe in recipes.items():
        found[name] = Known(
            tuple(each.value for each in recipe.all("version")),
            frozenset(each.value for each in recipe.all("variant")),
        )
    for name, providers in builtin["virtuals"].items():
        assert all(provider in found for provider in providers)
        found[name] = Known((), frozenset())
    return found


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    """The table `project` of pyproject.toml, and `build-system`."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        content = tomllib.load(file)
    project: dict[str, Any] = content["project"]
    return {**project, "build-system": content["build-system"]}
