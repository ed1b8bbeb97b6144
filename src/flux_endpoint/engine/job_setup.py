"""The set-up of a job: variables, a shell snippet, and the Python that runs it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import flux_endpoint
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.environment import job_environment
from flux_endpoint.engine.jobspec import JobRequest
from flux_endpoint.extras import install_command

#: Variables with the engine's snippet and the task's. Flux expands templates in a job's command,
#: but not in variables.
_SNIPPETS = ("FLUX_ENDPOINT_WORKER_INIT", "FLUX_ENDPOINT_TASK_INIT")
#: Runs the snippets, then the command in its arguments. A command that fails ends it, and so does
#: `exit`: the program must not start without what the snippets set up.
_RUN_SNIPPETS = """\
flux_endpoint_option=engine.worker_init
trap 's=$?; echo "flux-endpoint: $flux_endpoint_option failed on $(uname -n) with exit status $s\
${flux_endpoint_command:+: $flux_endpoint_command}" >&2; exit $((s ? s : 1))' EXIT
trap 'flux_endpoint_command=$BASH_COMMAND' ERR
set -eE
eval "$FLUX_ENDPOINT_WORKER_INIT"
flux_endpoint_option='worker_init of the resource_specification'
eval "$FLUX_ENDPOINT_TASK_INIT"
set +eE
trap - EXIT ERR
unset flux_endpoint_option flux_endpoint_command FLUX_ENDPOINT_WORKER_INIT FLUX_ENDPOINT_TASK_INIT
exec "$@"
"""
#: Checks another Python, then executes a module with it. Its text is sent along, because that
#: Python may not have this package.
_OTHER_PYTHON = Path(__file__).with_name("other_python.py")


@dataclass(frozen=True)
class JobSetup:
    """The set-up of a job, before its program starts.

    Attributes:
        variables: variables to set, or with `None` to unset.
        snippet: shell code that runs on each node before the program; empty: none.
        python: the Python that runs functions, as a path or a name on `PATH`; empty: this one.
    """

    variables: Mapping[str, str | None] = field(default_factory=dict)
    snippet: str = ""
    python: str = ""

    @classmethod
    def of(cls, config: FluxEngineConfig) -> JobSetup:
        """Return the setup that an engine's options describe."""
        return cls(config.environment, config.worker_init, config.python or "")

    def environment(self) -> dict[str, str]:
        """Return the environment in which jobs start."""
        variables = {**job_environment(), **self.variables}
        return {name: value for name, value in variables.items() if value is not None}

    def python_command(self, *arguments: str, python: str = "") -> list[str]:
        """Return the command that runs a Python with this package.

        Args:
            arguments: Python's arguments.
            python: another Python, of this task only.
        """
        # -P: do not import a dill.py that a task has left in the working directory.
        words = ["-P", *arguments]
        chosen = python or self.python
        if not chosen:
            return [sys.executable, *words]
        option = "python of the resource_specification" if python else "engine.python"
        program = str(Path(chosen).expanduser())
        check = _OTHER_PYTHON.read_text(encoding="utf-8")
        version = flux_endpoint.__version__
        return [program, "-c", check, option, version, install_command(), *words]

    def prepare(self, request: JobRequest) -> JobRequest:
        """Return a request whose command runs after the snippets, the engine's and the task's."""
        snippets = dict(zip(_SNIPPETS, (self.snippet, request.resources.worker_init), strict=True))
        if not any(snippets.values()):
            return request
        command = ["/bin/bash", "-c", _RUN_SNIPPETS, "worker_init", *request.command]
        return replace(request, command=command, environment={**request.environment, **snippets})
