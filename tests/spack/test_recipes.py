"""The Spack recipes ask for what pyproject.toml asks for, and Spack has all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from packaging.requirements import Requirement

from spack_recorder import RECIPES, REPOSITORY, ROOT, Executable, SkipTest, load
from spack_specs import meets, parse

OURS = "py-flux-endpoint"

#: What is called otherwise in Spack: requirement -> (spec's name, variants). Spack builds the
#: driver's C half instead of taking a wheel with a libpq of its own.
OTHER_NAMES = {"psycopg[binary]": ("py-psycopg", {"c"})}

#: In an extra, but in Spack the site's choice among the packages that provide `mpi`.
PROVIDERS = {"mpich": "mpi"}

#: Extras that Spack does not need: it builds Flux with bindings for the same Python. ProxyStore is
#: installed with pip.
NOT_IN_SPACK = {"flux-python", "proxystore"}

#: What a recipe asks for beyond pyproject.toml: Flux itself is no Python package.
BEYOND = {"flux-core"}


@pytest.fixture(scope="module")
def recipe(recipes):
    return recipes[OURS]


@pytest.fixture(scope="module")
def asked(recipe):
    """Name -> (spec, directive) of each dependency."""
    specs = [(parse(each.value), each) for each in recipe.all("depends_on")]
    assert len({spec.name for spec, _ in specs}) == len(specs), "asked for twice"
    return {spec.name: (spec, each) for spec, each in specs}


def spack_name(requirement: Requirement) -> tuple[str, set[str]]:
    text = requirement.name + (f"[{','.join(requirement.extras)}]" if requirement.extras else "")
    if text in OTHER_NAMES:
        return OTHER_NAMES[text]
    assert not requirement.extras, f"{requirement}: what is the extra in Spack?"
    return f"py-{requirement.name}", set()


def floor(requirement: Requirement) -> str:
    """Return the spec's versions for a requirement, which may only have a lowest version."""
    (lowest,) = requirement.specifier
    assert lowest.operator == ">=", f"{requirement}: the recipe can't follow that by itself"
    return f"{lowest.version}:"


class TestRepository:
    def test_the_namespace_is_the_directory_name(self):
        described = yaml.safe_load((REPOSITORY / "repo.yaml").read_text())["repo"]
        assert described["namespace"] == REPOSITORY.name
        assert REPOSITORY.parent.name == "spack_repo"
        assert re.fullmatch(r"v2\.\d+", described["api"])

    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
    def test_each_class_is_named_after_its_directory(self, path):
        wanted = "".join(part.capitalize() for part in path.parent.name.split("_"))
        assert load(path).cls.__name__ == wanted

    def test_the_repository_has_only_packages_that_builtin_lacks(self, recipes, builtin):
        assert set(recipes) == {OURS, *builtin["lacking"]}
        assert not set(recipes) & set(builtin["packages"])


class TestProject:
    def test_python_is_what_the_project_requires(self, asked, pyproject):
        spec, directive = asked["python"]
        assert f">={spec.versions.rstrip(':')}" == pyproject["requires-python"]
        assert directive.options["type"] == ("build", "run")

    def test_the_recipe_uses_the_projects_build_system(self, asked, pyproject):
        for wanted in map(Requirement, pyproject["build-system"]["requires"]):
            spec, directive = asked[f"py-{wanted.name}"]
            assert (spec.versions, directive.options["type"]) == (floor(wanted), "build")

    def test_each_dependency_is_unconditional(self, asked, pyproject):
        for requirement in map(Requirement, pyproject["dependencies"]):
            name, variants = spack_name(requirement)
            spec, directive = asked[name]
            assert (spec.versions, spec.variants) == (floor(requirement), variants)
            assert directive.when == ""
            assert "run" in directive.options["type"]

    def test_each_extra_is_a_variant_with_the_same_dependencies(self, recipe, asked, pyproject):
        variants = {each.value for each in recipe.all("variant")}
        extras = dict(pyproject["optional-dependencies"])
        for extra in NOT_IN_SPACK:
            del extras[extra]
        (everything,) = map(Requirement, extras.pop("all"))
        assert set(everything.extras) <= variants
        assert variants == set(extras)
        for extra, texts in extras.items():
            for requirement in map(Requirement, texts):
                if requirement.name in PROVIDERS:
                    continue
                name, wanted = spack_name(requirement)
                spec, directive = asked[name]
                assert (spec.versions, spec.variants) == (floor(requirement), wanted)
                assert directive.when == f"+{extra}"
                assert "run" in directive.options["type"]

    def test_there_are_no_other_dependencies(self, asked, pyproject):
        texts = [*pyproject["dependencies"], *pyproject["build-system"]["requires"]]
        for extra, requirements in pyproject["optional-dependencies"].items():
            texts += [] if extra in NOT_IN_SPACK else requirements
        named = {Requirement(text).name for text in texts} - {"flux-endpoint", *PROVIDERS}
        python = {f"py-{name}" for name in named}
        assert set(asked) == {"python", *BEYOND, *PROVIDERS.values()} | python

    def test_an_mpi_that_the_project_finds_too_old_is_a_conflict(
        self, recipe, asked, pyproject, builtin, known
    ):
        for requirement in map(Requirement, pyproject["optional-dependencies"]["mpi"]):
            if requirement.name not in PROVIDERS:
                continue
            virtual = PROVIDERS[requirement.name]
            assert requirement.name in builtin["virtuals"][virtual]
            # Spack minds a conflict only with what the recipe depends on itself.
            assert asked[virtual][1].when == "+mpi"
            (conflict,) = (
                parse(each.value).dependency
                for each in recipe.all("conflicts")
                if each.when == "+mpi"
            )
            assert conflict is not None
            assert conflict.name == requirement.name
            lowest = floor(requirement)
            versions = known[requirement.name].versions
            assert {each for each in versions if not meets(each, conflict.versions)} == {
                each for each in versions if meets(each, lowest)
            }

    def test_the_database_driver_comes_only_with_the_service(self, recipe):
        (postgresql,) = (each for each in recipe.all("variant") if each.value == "postgresql")
        assert postgresql.when == "+service"

    def test_the_sources_are_the_clone_that_holds_the_recipe(self, recipe):
        url = urlsplit(recipe.cls.git)
        assert url.scheme == "file"
        assert Path(unquote(url.path)) == ROOT

    def test_no_release_is_named_before_there_is_one(self, recipe):
        (version,) = recipe.all("version")
        assert (version.value, version.options) == ("main", {"branch": "main"})

    def test_the_license_is_that_of_the_project(self, recipe, pyproject):
        assert [each.value for each in recipe.all("license")] == [pyproject["license"]]


class TestEveryRecipe:
    @pytest.fixture(params=RECIPES, ids=lambda path: path.parent.name)
    def any_recipe(self, request):
        return load(request.param)

    def test_a_release_has_a_checksum_and_an_archive_of_its_name(self, any_recipe):
        for version in any_recipe.all("version"):
            if "branch" in version.options:
                continue
            assert re.fullmatch(r"[0-9a-f]{64}", version.options["sha256"])
            assert any_recipe.cls.pypi.endswith(f"-{version.value}.tar.gz")

    def test_every_dependency_exists(self, any_recipe, known):
        for directive in any_recipe.all("depends_on"):
            spec = parse(directive.value)
            assert spec.name in known, f"{directive.value}: neither in builtin nor here"
            assert spec.variants <= known[spec.name].variants, directive.value

    def test_every_range_can_be_met(self, any_recipe, known, builtin):
        for directive in any_recipe.all("depends_on"):
            spec = parse(directive.value)
            if spec.name in builtin["virtuals"]:
                assert spec.versions == ""
                continue
            assert known[spec.name].satisfying(spec.versions), directive.value

    def test_a_condition_names_what_can_be(self, any_recipe, known):
        own = known[any_recipe.name]
        for directive in any_recipe.directives:
            condition = parse(directive.when)
            assert condition.variants <= own.variants, directive
            assert own.satisfying(condition.versions), directive
            if condition.dependency:
                other = known[condition.dependency.name]
                assert other.satisfying(condition.dependency.versions), directive

    def test_every_variant_says_what_it_is_for(self, any_recipe):
        for variant in any_recipe.all("variant"):
            assert variant.options["description"]
            assert variant.options["default"] in (True, False)


class TestSmokeTest:
    """The recipe's own tests, on the environment that runs these."""

    @pytest.fixture
    def package(self, recipe, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        on = {"+service"}
        package = recipe.cls()
        package.prefix = SimpleNamespace(bin=str(Path(sys.executable).parent))
        package.spec = SimpleNamespace(satisfies=on.__contains__)
        package.module = SimpleNamespace(
            python=Executable(sys.executable), python_purelib=sysconfig.get_path("purelib")
        )
        return package

    def test_install_time_tests_exist(self, recipe):
        for name in recipe.cls.install_time_test_callbacks:
            assert callable(getattr(recipe.cls, name))

    @pytest.mark.parametrize("name", ["test_imports", "test_command", "test_job", "test_service"])
    def test_the_smoke_test_passes(self, package, name):
        getattr(package, name)()

    def test_the_service_made_its_database(self, package, tmp_path):
        package.test_service()
        assert (tmp_path / "service" / "service.db").stat().st_size

    @pytest.mark.parametrize("name", ["test_flux", "test_mpi"])
    def test_a_smoke_test_without_its_program_is_skipped(self, package, name):
        with pytest.raises(SkipTest):
            getattr(package, name)()

    def test_a_job_that_fails_fails_it(self, package, monkeypatch):
        fails = json.dumps(self.jobspec("false"))
        monkeypatch.setattr(package, "_command", lambda: lambda *_args, **_options: fails)
        with pytest.raises(subprocess.CalledProcessError):
            package.test_job()

    def test_a_module_that_is_not_there_fails_it(self, package, monkeypatch):
        assert "flux_endpoint.service.server" in package.import_modules
        monkeypatch.setattr(type(package), "import_modules", ["flux_endpoint.nowhere"])
        with pytest.raises(subprocess.CalledProcessError):
            package.test_imports()

    @staticmethod
    def jobspec(command: str) -> Any:
        said = subprocess.run(
            [sys.executable, "-m", "flux_endpoint", "jobspec", "--format", "json", "--", command],
            check=True,
            capture_output=True,
        )
        return json.loads(said.stdout)
