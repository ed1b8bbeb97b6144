"""The Spack environments can be solved: what they name exists, in versions we know."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from spack_recorder import REPOSITORY, ROOT
from spack_specs import meets, parse

ENVIRONMENTS = sorted((ROOT / "spack" / "environments").glob("*/spack.yaml"))

#: Sections of a `spack.yaml` that are used here.
SECTIONS = {"specs", "repos", "concretizer", "packages", "view", "modules"}


@pytest.fixture(params=ENVIRONMENTS, ids=lambda path: path.parent.name)
def path(request):
    return request.param


@pytest.fixture
def environment(path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert list(content) == ["spack"]
    return content["spack"]


def required(environment: dict[str, Any], name: str) -> str:
    """Return the versions, or the name, that `packages: NAME: require:` asks for."""
    return str(environment.get("packages", {}).get(name, {}).get("require", ""))


def test_there_are_environments_for_a_cluster_and_for_a_service_host():
    assert [path.parent.name for path in ENVIRONMENTS] == ["compute", "service"]


def test_the_sections_are_known_to_spack(environment):
    assert set(environment) <= SECTIONS
    assert environment["concretizer"] == {"unify": True}


def test_each_spec_names_a_package_its_variants_and_a_version_of_it(environment, known):
    for text in environment["specs"]:
        spec = parse(text)
        assert spec.name in known
        assert spec.variants <= known[spec.name].variants
        assert known[spec.name].satisfying(spec.versions), text


def test_our_recipes_are_found_from_where_the_file_is(environment, path):
    assert (path.parent / environment["repos"]["flux_endpoint"]).resolve() == REPOSITORY


def test_spacks_recipes_are_those_that_ours_were_checked_against(environment, builtin):
    described = environment["repos"]["builtin"]
    assert described["git"] == f"https://github.com/{builtin['repository']}.git"
    assert described["branch"] == builtin["branch"]


def test_every_python_is_one_that_the_project_names(environment, known, pyproject):
    classifier = "Programming Language :: Python :: 3."
    named = [
        text.removeprefix(classifier.removesuffix("3."))
        for text in pyproject["classifiers"]
        if text.startswith(classifier)
    ]
    allowed = known["python"].satisfying(required(environment, "python").removeprefix("@"))
    assert allowed
    for version in allowed:
        assert any(meets(version, each) for each in named), version


def test_a_required_provider_is_asked_for_too(environment, builtin):
    for virtual, providers in builtin["virtuals"].items():
        provider = required(environment, virtual)
        if provider:
            assert provider in providers
            assert provider in {parse(text).name for text in environment["specs"]}


def test_files_of_an_installation_are_ignored_by_git(path):
    ignored = (ROOT / ".gitignore").read_text()
    assert "/spack/environments/*/spack.lock" in ignored
    assert "/spack/environments/*/.spack-env/" in ignored
    assert path.parent.parent == ROOT / "spack" / "environments"


class TestCompute:
    @pytest.fixture
    def environment(self):
        return yaml.safe_load(ENVIRONMENTS[0].read_text())["spack"]

    def test_the_compute_environment_has_flux_and_mpi_but_no_service(self, environment):
        assert "py-flux-endpoint@main +flux +mpi" in environment["specs"]

    def test_the_modules_are_inside_the_environment(self, environment):
        assert environment["modules"]["default"]["roots"]["lmod"].startswith("$env/")


class TestService:
    def test_the_service_environment_has_the_service_and_its_database_but_no_flux(self):
        specs = yaml.safe_load(ENVIRONMENTS[1].read_text())["spack"]["specs"]
        assert specs == [
            "py-flux-endpoint@main ~flux +service +postgresql",
            "postgresql",
            "nginx",
        ]

    def test_spacks_rabbitmq_is_too_old_for_the_service_environment(self, known):
        assert not known["rabbitmq"].satisfying("3.10:")
