"""Lets Flux's job shell prepare command tasks, with the plugin `shell/flux-endpoint.lua`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flux_endpoint.engine.flux_bindings import import_flux
from flux_endpoint.engine.jobspec import JobRequest
from flux_endpoint.plugins import plugin_directory

#: The file's name; without its suffix, the name of the shell option with the plugin's settings.
_FILE = "flux-endpoint.lua"
_OPTION = "flux-endpoint"
#: Variables that the plugin sets in a task's environment.
_VARIABLES = (
    "GC_TASK_UUID",
    "GC_TASK_SANDBOX_DIR",
    "PARSL_MPI_PREFIX",
    "PARSL_NUM_RANKS",
    "PARSL_NUM_NODES",
    "PARSL_RANKS_PER_NODE",
)


@dataclass(frozen=True)
class ShellPlugin:
    """The plugin, in use.

    Attributes:
        userrc: the file that each job names; `None` if the job shell loads the plugin by itself.
    """

    userrc: Path | None = None

    def prepare(self, request: JobRequest) -> JobRequest:
        """Return a command task's request without the parts that the plugin handles."""
        if self.userrc is not None and "userrc" in request.resources.shell_options:
            return request  # a job has only one such file, and this one brings its own
        environment = dict(request.environment)
        given = {name: environment.pop(name, None) for name in _VARIABLES}
        sandbox = given["GC_TASK_SANDBOX_DIR"]
        if sandbox is not None and sandbox != request.cwd:  # the task has a directory of its own
            environment["GC_TASK_SANDBOX_DIR"], sandbox = sandbox, None
        options = {
            "task": given["GC_TASK_UUID"],
            "launcher": given["PARSL_MPI_PREFIX"] or "",  # none: the job's tasks are the ranks
            "ranks": request.resources.num_ranks,
            "sandbox": sandbox,
        }
        known = {key: value for key, value in options.items() if value is not None}
        more = {_OPTION: known} | ({"userrc": str(self.userrc)} if self.userrc else {})
        return replace(
            request,
            environment=environment,
            shell_options={**request.shell_options, **more},
            # The shell changes to its directory before the plugin can create the sandbox.
            cwd="/" if sandbox else request.cwd,
        )


def find_shell_plugin(mode: Literal["auto", "always", "never"]) -> ShellPlugin | None:
    """Return the plugin if jobs of this Flux instance should use it.

    Args:
        mode: "auto": only if the job shell loads it by itself; "always": otherwise from this
            package, whose files must be readable on the nodes; "never".

    Raises:
        EngineError: Flux's bindings can't be imported.
        FluxEndpointError: the package has no plugins.
    """
    if mode == "never":
        return None
    if (_initrc().parent / "lua.d" / _FILE).is_file():
        return ShellPlugin()
    if mode == "auto":
        return None
    return ShellPlugin(plugin_directory() / "shell" / _FILE)


def _initrc() -> Path:
    """Return the path of the file that initializes the instance's job shells."""
    flux = import_flux()
    try:
        return Path(flux.Flux().attr_get("conf.shell_initrc"))
    except OSError:
        builtin = importlib.import_module("flux.conf_builtin")
        return Path(builtin.conf_builtin_get("shell_initrc"))
