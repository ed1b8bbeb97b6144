"""`flux-endpoint plugins`: the plugins for Flux, and how to enable them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from flux_endpoint.cli.table import Column, Row, Tone, color_option, render
from flux_endpoint.plugins import plugin_directory

_TIMEOUT = 20.0  # seconds for a command of Flux that prints one line
_COLUMNS = [Column("PLUGIN"), Column("ENABLED"), Column("PATH")]
_STATES: dict[bool | None, tuple[str, Tone | None]] = {
    True: ("yes", "good"),
    False: ("no", "quiet"),
    None: ("unknown", None),
}


@dataclass(frozen=True)
class Plugin:
    """A plugin for Flux.

    Attributes:
        name: its name here.
        does: its purpose.
        path: its directory.
        enabled: whether Flux finds it from here; `None` if there is no instance to ask.
        environment: Flux's search paths by variable, with the directory to add to each.
        site: links that install it for everybody: path in Flux's installation, and target.
        configuration: lines for the configuration of a Flux instance, in TOML.
    """

    name: str
    does: str
    path: str
    enabled: bool | None
    environment: Mapping[str, str] = field(default_factory=dict)
    site: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""


@dataclass(frozen=True)
class _Searched:
    """A plugin that Flux finds in a search path, or in a directory of its installation.

    Attributes:
        name: its name here.
        does: its purpose.
        paths: Flux's search paths by variable, Flux's own first, with our directory for each.
        site: our files, each with its place in Flux's installation: a directory that
          `flux config builtin` prints, and the path below it.
        configuration: see `Plugin`.
    """

    name: str
    does: str
    paths: Mapping[str, str]
    site: Mapping[str, tuple[str, str]]
    configuration: str = ""

    def found(self, root: Path, flux: Mapping[str, Path]) -> Plugin:
        """Return the plugin's state on this machine."""
        site = {
            str(flux[base] / below): str(root / file)
            for file, (base, below) in self.site.items()
            if base in flux
        }
        variable, directory = next(iter(self.paths.items()))
        by_path = (root / directory).resolve() in _search_path(variable)
        return Plugin(
            self.name,
            self.does,
            str(root / directory),
            by_path or (bool(site) and all(Path(file).exists() for file in site)),
            {name: str(root / below) for name, below in self.paths.items()},
            site,
            self.configuration,
        )


_SEARCHED = (
    _Searched(
        "command",
        "`flux endpoint …` and its manual page",
        {"FLUX_EXEC_PATH": "command", "MANPATH": "man"},
        {"command/flux-endpoint": ("exec_path", "flux-endpoint")},
    ),
    _Searched(
        "cli",
        "--endpoint=NAME for `flux batch` and `flux alloc`",
        {"FLUX_CLI_PLUGINPATH": "cli"},
        {"cli/endpoint.py": ("confdir", "cli/plugins/endpoint.py")},
    ),
    _Searched(
        "modprobe",
        "endpoints that start and end with an instance",
        {"FLUX_MODPROBE_PATH_APPEND": "modprobe"},
        {
            file: ("confdir", file)
            for file in ("modprobe/rc1.d/flux-endpoint.py", "modprobe/rc3.d/flux-endpoint.py")
        },
        '[flux-endpoint]\nstart = ["NAME"]\n',
    ),
    _Searched(
        "shell",
        "command tasks that need neither Python nor a wrapper on their nodes",
        {"FLUX_SHELL_RC_PATH": "shell"},
        {"shell/flux-endpoint.lua": ("confdir", "shell/lua.d/flux-endpoint.lua")},
    ),
)


def all_plugins(root: Path, flux: Mapping[str, Path]) -> list[Plugin]:
    """Return the plugins.

    Args:
        root: the directory of the plugins.
        flux: directories of the Flux on `PATH`, by their names in `flux config builtin`; empty if
            there is no Flux.
    """
    ingest = Plugin(
        "ingest",
        "a site's defaults and limits for jobs that come from endpoints",
        str(root / "ingest"),
        _is_configured(),
        configuration=_ingest(root / "ingest"),
    )
    return [*(each.found(root, flux) for each in _SEARCHED), ingest]


def _search_path(variable: str) -> list[Path]:
    parts = os.environ.get(variable, "").split(os.pathsep)
    return [Path(part).resolve() for part in parts if part]


def _ingest(directory: Path) -> str:
    def quoted(name: str) -> str:
        return json.dumps(str(directory / name))

    return (
        "[ingest.frobnicator]\n"
        f'plugins = [{quoted("frobnicator.py")}, "defaults", "constraints"]\n'
        "[ingest.validator]\n"
        f'plugins = ["jobspec", {quoted("validator.py")}]\n'
        "[flux-endpoint.tasks]\n"
        "max-nodes = 16\n"
        'max-duration = "4h"\n'
    )


def _is_configured() -> bool | None:
    """Return whether the present instance loads the validator; `None` if there is no instance."""
    answer = _ask_flux("config", "get", "--default=[]", "ingest.validator.plugins")
    try:
        plugins = json.loads(answer) if answer else None
    except ValueError:
        return None
    if not isinstance(plugins, list):
        return None
    return any(str(each).endswith("ingest/validator.py") for each in plugins)


def _ask_flux(*arguments: str) -> str:
    """Return the output of a Flux command; empty if there is no Flux, or no instance."""
    command = shutil.which("flux")
    if command is None:
        return ""
    try:
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _flux_directories() -> dict[str, Path]:
    names = ("confdir", "exec_path")
    found = {name: _ask_flux("config", "builtin", name) for name in names}
    return {name: Path(path) for name, path in found.items() if path}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option(
    "--export",
    is_flag=True,
    help='Print only the environment that enables them: eval "$(flux-endpoint plugins --export)".',
)
@color_option
def plugins(*, as_json: bool, export: bool, color: bool) -> None:
    """List the plugins for Flux: where they are, and the lines that enable each."""
    found = all_plugins(plugin_directory(), _flux_directories())
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=2))
    elif export:
        click.echo("\n".join(line for each in found for line in _exports(each)))
    else:
        _show(found, color=color)


def _exports(plugin: Plugin) -> list[str]:
    """Return shell lines that put a plugin at the front of its search paths."""
    return [
        # An empty entry at the end of MANPATH means the system's own pages.
        f"export {name}={shlex.quote(path)}:${name}"
        if name == "MANPATH"
        else f"export {name}={shlex.quote(path)}${{{name}:+:${name}}}"
        for name, path in plugin.environment.items()
    ]


def _links(plugin: Plugin) -> list[str]:
    """Return shell lines that install a plugin for everybody."""
    return [
        f"mkdir -p {shlex.quote(str(Path(at).parent))} && ln -s {shlex.quote(to)} $_"
        for at, to in plugin.site.items()
    ]


def _show(found: list[Plugin], *, color: bool) -> None:
    rows = []
    for each in found:
        word, tone = _STATES[each.enabled]
        rows.append(Row((each.name, word, each.path), tone))
    click.echo(render(_COLUMNS, rows, color=color), color=color)
    for each in found:
        click.echo(f"\n{each.name}: {each.does}")
        _lines("for yourself, in your shell", _exports(each))
        _lines("for everybody, on each node", _links(each))
        _lines("in the configuration of an instance", each.configuration.splitlines())


def _lines(title: str, lines: list[str]) -> None:
    if lines:
        click.echo(f"  {title}:")
        click.echo("\n".join(f"    {line}" for line in lines))
