"""`flux-endpoint plugins`, and the plugins in an installed package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from site_world import PLUGINS, ROOT, Site

from flux_endpoint.cli.plugins import all_plugins

NAMES = ["command", "cli", "modprobe", "shell", "ingest"]
VARIABLES = {
    "FLUX_EXEC_PATH": "command",
    "FLUX_CLI_PLUGINPATH": "cli",
    "FLUX_MODPROBE_PATH_APPEND": "modprobe",
    "FLUX_SHELL_RC_PATH": "shell",
}


def files():
    """What belongs to the plugins, as the version control has it."""
    found = (path for path in PLUGINS.rglob("*") if path.is_file())
    paths = (path.relative_to(PLUGINS) for path in found)
    return {str(path) for path in paths if "__pycache__" not in path.parts}


def enabled(site, uri=None, **environment):
    listed = json.loads(site.endpoint("plugins", "--json", uri=uri, **environment))
    return {each["name"]: each["enabled"] for each in listed}


class TestCommand:
    def test_plugins_shows_the_path_of_each_plugin_and_how_to_enable_it(self, bare_site):
        said = bare_site.endpoint("plugins")
        for name in NAMES:
            assert f"{PLUGINS / name}\n" in said
        for variable, directory in VARIABLES.items():
            line = f"export {variable}={PLUGINS / directory}${{{variable}:+:${variable}}}\n"
            assert line in said
        assert f'plugins = ["jobspec", "{PLUGINS}/ingest/validator.py"]' in said

    def test_plugins_has_json_output(self, bare_site):
        listed = json.loads(bare_site.endpoint("plugins", "--json"))
        assert [each["name"] for each in listed] == NAMES
        for each in listed:
            assert Path(each["path"]).is_dir()
            assert all(Path(target).exists() for target in each["site"].values())
            assert all(Path(path).is_dir() for path in each["environment"].values())

    def test_the_exported_variables_enable_plugins_that_need_no_configuration(self, bare_site):
        script = 'eval "$("$@" plugins --export)"; exec "$@" plugins --json'
        command = [sys.executable, "-m", "flux_endpoint"]
        said = bare_site.run("sh", "-uc", script.replace("eval", "MANPATH=; eval"), "sh", *command)
        states = {each["name"]: each["enabled"] for each in json.loads(said)}
        assert [states[name] for name in NAMES[:4]] == [True] * 4

    def test_without_a_search_path_a_plugin_is_not_enabled(self, bare_site):
        states = enabled(bare_site, FLUX_EXEC_PATH="/elsewhere:/nowhere")
        assert [states[name] for name in NAMES[:4]] == [False] * 4
        assert states["ingest"] is None

    def test_plugins_installed_by_the_site_are_enabled(self, tmp_path):
        flux = {"confdir": tmp_path / "etc", "exec_path": tmp_path / "cmd"}
        for plugin in all_plugins(PLUGINS, flux)[:4]:
            assert not plugin.enabled
            for file, target in plugin.site.items():
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).symlink_to(target)
        assert all(plugin.enabled for plugin in all_plugins(PLUGINS, flux)[:4])

    @pytest.mark.flux
    def test_an_instance_is_asked_whether_it_loads_the_validator(self, bare_site):
        config = f'[ingest.validator]\nplugins = ["jobspec", "{PLUGINS}/ingest/validator.py"]\n'
        for text, state in ((config, True), ("", False)):
            with bare_site.instance(text) as uri:
                assert enabled(bare_site, uri=uri)["ingest"] is state


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A user of the installed package: its commands, and its modules in place of the checkout's."""
    prefix = tmp_path_factory.mktemp("prefix")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run(
        [*command, "--ignore-installed", "--prefix", str(prefix), str(wheel)],
        check=True,
        capture_output=True,
    )
    site = Site(tmp_path_factory.mktemp("user"))
    packages = sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)})
    without_ours = site.environment["PATH"].partition(os.pathsep)[2]
    site.environment |= {"PYTHONPATH": packages, "PATH": f"{prefix / 'bin'}:{without_ours}"}
    return site, Path(packages) / "flux_endpoint" / "flux_plugins"


class TestInstalled:
    def test_the_wheel_has_exactly_the_files_of_the_plugins(self, wheel):
        beginning = "flux_endpoint/flux_plugins/"
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(beginning)]
        assert {name.removeprefix(beginning) for name in names} == files()

    def test_an_installed_package_finds_its_plugins(self, installed):
        site, plugins = installed
        listed = json.loads(site.run("flux-endpoint", "plugins", "--json"))
        assert [each["path"] for each in listed] == [str(plugins / name) for name in NAMES]
        assert os.access(plugins / "command" / "flux-endpoint", os.X_OK)

    def test_man_finds_the_page_of_an_installed_package(self, installed):
        site, plugins = installed
        program, _, _ = site.environment["PATH"].partition(os.pathsep)
        page = Path(program).parent / "share" / "man" / "man1" / "flux-endpoint.1"
        assert page.read_bytes() == (plugins / "man" / "man1" / page.name).read_bytes()
        if shutil.which("man"):
            assert site.run("man", "-w", "flux-endpoint", MANPATH="").strip() == str(page)

    @pytest.mark.flux
    def test_flux_finds_the_command_and_its_other_plugins_there(self, installed):
        site, plugins = installed
        script = 'eval "$(flux-endpoint plugins --export)"; PATH=${PATH#*:}; exec "$@"'
        said = site.run("sh", "-c", script, "sh", "flux", "endpoint", "plugins", "--json")
        assert json.loads(said)[0]["path"] == str(plugins / "command")
        said = site.run("sh", "-c", script, "sh", "flux", "alloc", "--list-plugins")
        assert f"EndpointPlugin loaded from {plugins}/cli/endpoint.py" in said
