"""`flux endpoint …`: the command as Flux finds it, its help and its man page."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import click
import pytest
from site_world import PLUGINS

from flux_endpoint.cli.main import cli

PAGE = PLUGINS / "man" / "man1" / "flux-endpoint.1"
SEARCH = {"FLUX_EXEC_PATH": str(PLUGINS / "command"), "MANPATH": f"{PLUGINS / 'man'}:"}
BESIDE = Path(sys.executable).with_name("flux-endpoint")


@pytest.fixture
def flux(bare_site):
    """Runs a command of Flux with nothing of ours but the search paths."""
    path = bare_site.environment["PATH"].partition(os.pathsep)[2]

    def run(*arguments, **options):
        return bare_site.run("flux", *arguments, **{**SEARCH, "PATH": path, **options})

    return run


def commands(group=cli, name="", above=None):
    """Every command, its name with those above it, and the command itself."""
    context = click.Context(group, info_name=name, parent=above)
    for each in group.list_commands(context):
        command = group.get_command(context, each)
        yield f"{name} {each}".strip(), command
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {each}".strip(), context)


@pytest.mark.flux
def test_flux_finds_the_command_under_its_name(flux):
    assert flux("endpoint", "--help", FLUX_ENDPOINT_COMMAND=str(BESIDE)).startswith(
        "Usage: flux endpoint [OPTIONS] COMMAND"
    )
    said = flux("endpoint", "stop", "--help", FLUX_ENDPOINT_COMMAND=str(BESIDE))
    assert said.startswith("Usage: flux endpoint stop ")


@pytest.mark.flux
def test_every_subcommand_is_available(flux):
    said = flux("endpoint", "--help", FLUX_ENDPOINT_COMMAND=str(BESIDE))
    for name in cli.list_commands(click.Context(cli)):
        assert f"\n  {name} " in said


@pytest.mark.flux
def test_arguments_output_and_exit_status_pass_through(flux):
    said = flux("endpoint", "stop", "no where", fails=True, FLUX_ENDPOINT_COMMAND=str(BESIDE))
    assert "Error: 'no where' can't be an endpoint's name" in said


@pytest.mark.flux
def test_the_wrapper_runs_the_command_in_a_bin_directory_above(flux, tmp_path):
    prefix = tmp_path / "env"
    plugins = prefix / "lib" / "python3" / "site-packages" / "plugins" / "command"
    plugins.mkdir(parents=True)
    (plugins / "flux-endpoint").write_bytes((PLUGINS / "command" / "flux-endpoint").read_bytes())
    (plugins / "flux-endpoint").chmod(0o755)
    (prefix / "bin").mkdir()
    (prefix / "bin" / "flux-endpoint").symlink_to(BESIDE)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "flux-endpoint").symlink_to(plugins / "flux-endpoint")
    for directory in (plugins, linked):
        assert "flux endpoint" in flux("endpoint", "--help", FLUX_EXEC_PATH=str(directory))


@pytest.mark.flux
def test_without_the_command_the_wrapper_says_where_it_looked(flux, tmp_path):
    said = flux("endpoint", "list", fails=True, FLUX_ENDPOINT_COMMAND="/nowhere/flux-endpoint")
    assert "neither where FLUX_ENDPOINT_COMMAND (/nowhere/flux-endpoint) says" in said
    alone = tmp_path / "flux-endpoint"
    alone.write_bytes((PLUGINS / "command" / "flux-endpoint").read_bytes())
    alone.chmod(0o755)
    said = flux("endpoint", "list", fails=True, FLUX_EXEC_PATH=str(tmp_path))
    assert f"nor beside {alone}, nor on PATH" in said


@pytest.mark.flux
@pytest.mark.skipif(shutil.which("man") is None, reason="there is no 'man' on PATH")
def test_flux_help_shows_its_man_page(flux):
    as_text = {"MANPAGER": "cat", "MANWIDTH": "100", "LC_ALL": "C.UTF-8"}
    # A Flux that was built without its own manual pages shows none unless it is told to.
    said = flux("help", "endpoint", FLUX_IGNORE_NO_DOCS="1", **as_text)
    assert re.search(r"^NAME\n +flux-endpoint - functions as a service", said, re.MULTILINE)
    assert "flux start --test-size=4 flux endpoint up" in said


def test_the_man_page_has_every_command_and_option():
    page = PAGE.read_text().replace("\\-", "-")
    missing = []
    for name, command in commands():
        section = f".SS flux-endpoint {name} "
        part = page.partition(section)[2].partition("\n.SS ")[0]
        if not part:
            missing.append(name)
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                missing += [f"{name} {flag}" for flag in option.opts if flag not in part]
    assert missing == [], "run: make man"
