"""The images: what is copied exists, what is installed is ours, what is run is a command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deploy_files import DEPLOY, Containerfile, command, variables_of

ROOT = DEPLOY.parent

#: Python of the distributions that Flux's published images are made for.
PYTHONS = {"bookworm": "3.11", "noble": "3.12"}


@pytest.fixture(scope="module")
def file():
    return Containerfile(DEPLOY / "Containerfile")


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied(file: Containerfile) -> list[str]:
    """Return what is copied from the clone."""
    sources = []
    for stage in file.stages:
        for text in file.all(stage, "COPY"):
            if "--from=" not in text:
                *some, _ = (word for word in text.split() if not word.startswith("--"))
                sources += some
    return [source.rstrip("/") for source in sources]


def extras(file: Containerfile, stage: str) -> set[str]:
    """Return the extras with which a stage installs the wheel."""
    (found,) = re.findall(r'"\$wheel\[([\w,]+)\]"', " ".join(file.all(stage, "RUN")))
    return set(found.split(","))


def test_the_endpoint_is_built_on_an_image_that_flux_publishes(file, pyproject):
    image = file.arguments()["FLUX_IMAGE"]
    found = re.fullmatch(r"docker\.io/fluxrm/flux-(core|sched):(\w+)-v\d+\.\d+\.\d+", image)
    assert found, image
    assert PYTHONS[found[2]] in SpecifierSet(pyproject["project"]["requires-python"])
    assert file.all("endpoint", "FROM") == ["${FLUX_IMAGE} AS endpoint"]


def test_the_services_python_is_one_that_the_project_names(file, pyproject):
    found = re.search(r"/python:(3\.\d+)\.\d+-", file.arguments()["PYTHON_IMAGE"])
    assert found
    assert f"Programming Language :: Python :: {found[1]}" in pyproject["project"]["classifiers"]


def test_copied_files_exist_and_are_not_ignored(file):
    allowed = [
        line.removeprefix("!")
        for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for source in copied(file):
        assert (ROOT / source).exists(), source
        assert any(source == each or source.startswith(f"{each}/") for each in allowed), source
    for each in allowed:
        assert (ROOT / each).exists(), each


def test_the_copied_files_suffice_to_build_the_wheel(file, pyproject, tmp_path):
    for source in copied(file):
        if source.startswith("deploy/"):
            continue
        if (ROOT / source).is_dir():
            # Other processes write bytecode there meanwhile, by files that they rename.
            shutil.copytree(
                ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / source, tmp_path / source)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    (run,) = file.all("wheel", "RUN")
    variable = run.partition('="$VERSION"')[0]
    env = {**os.environ, variable: "7.1"}
    subprocess.run(build, cwd=tmp_path, env=env, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("flux_endpoint-7.1-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for each in pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]:
        inside = each.removeprefix("src/")
        assert any(f"{inside}/" in name for name in packed), each
    assert "flux_endpoint/cli/main.py" in packed


def test_each_image_installs_the_extras_that_it_is_for(file, pyproject):
    offered = set(pyproject["project"]["optional-dependencies"])
    assert extras(file, "service") == {"service", "postgresql"} <= offered
    assert extras(file, "endpoint") == {"flux"} <= offered


def test_the_database_driver_of_the_image_is_the_one_that_urls_are_for(pyproject):
    (driver,) = pyproject["project"]["optional-dependencies"]["postgresql"]
    assert Requirement(driver).name == "psycopg"


def test_the_settings_of_the_image_are_options_of_the_service(file):
    settings = {
        name for name in file.environment("service") if name.startswith("FLUX_ENDPOINT_SERVICE_")
    }
    assert settings
    assert settings <= variables_of("service", "run")


@pytest.mark.parametrize("stage", ["service", "endpoint"])
def test_no_image_runs_as_root(file, stage):
    assert file.all(stage, "USER")[-1] not in ("", "root", "0")


def test_the_state_directory_is_the_users_own(file):
    for stage in ("service", "endpoint"):
        home = file.environment(stage)["FLUX_ENDPOINT_HOME"]
        assert home in " ".join(file.all(stage, "RUN"))
        assert file.all(stage, "WORKDIR") == [home]


def test_the_service_image_runs_the_service(file):
    assert json.loads(file.all("service", "ENTRYPOINT")[0]) == ["flux-endpoint"]
    command(*json.loads(file.all("service", "CMD")[0]))


class TestRunEndpoint:
    """The entry point of the endpoint's image; the programs that it calls only take notes."""

    @pytest.fixture
    def run(self, tmp_path):
        programs = tmp_path / "bin"
        programs.mkdir()
        home = tmp_path / "home"
        calls = tmp_path / "calls"
        for name in ("flux", "flux-endpoint"):
            program = programs / name
            program.write_text(
                f'#!/bin/sh\necho {name} "$@" >> {calls}\n'
                f'[ "$1" != configure ] || {{ mkdir -p "{home}/endpoints/$2" && '
                f'touch "{home}/endpoints/$2/config.yaml"; }}\n'
            )
            program.chmod(0o755)

        def call(*arguments: str, **variables: str) -> list[str]:
            calls.unlink(missing_ok=True)
            path = f"{programs}{os.pathsep}{os.defpath}"
            subprocess.run(
                [DEPLOY / "container" / "run-endpoint", *arguments],
                env={"PATH": path, "FLUX_ENDPOINT_HOME": str(home), **variables},
                check=True,
                capture_output=True,
            )
            return calls.read_text().splitlines()

        return call

    def test_the_first_start_configures_the_endpoint(self, run):
        configure, start = run(FLUX_ENDPOINT_NAME="lab")
        assert configure == "flux-endpoint configure lab"
        assert start == "flux start flux-endpoint start lab"

    def test_a_later_start_keeps_the_configuration(self, run):
        run(FLUX_ENDPOINT_NAME="lab")
        assert run(FLUX_ENDPOINT_NAME="lab") == ["flux start flux-endpoint start lab"]

    def test_arguments_go_to_flux(self, run):
        *_, start = run("--test-size=4", FLUX_ENDPOINT_NAME="lab")
        assert start == "flux start --test-size=4 flux-endpoint start lab"

    def test_without_a_name_the_entry_point_fails(self, run):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            run()
        assert b"the name of the endpoint" in caught.value.stderr

    def test_the_image_has_it_and_names_an_endpoint(self, file):
        (entry,) = json.loads(file.all("endpoint", "ENTRYPOINT")[0])
        assert f"/usr/local/bin/{entry}" in file.all("endpoint", "COPY")[-1]
        assert os.access(DEPLOY / "container" / entry, os.X_OK)
        assert file.environment("endpoint")["FLUX_ENDPOINT_NAME"]
        assert command("configure")
        assert command("start")
        assert Path(DEPLOY / "container" / entry).read_text().startswith("#!/bin/sh\n")
