"""Decides which job a task becomes. Pure: submits nothing and runs none of the user's code."""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.job_setup import JobSetup
from flux_endpoint.engine.jobs.command import program_of, simple_words
from flux_endpoint.engine.jobs.shell_plugin import ShellPlugin
from flux_endpoint.engine.jobspec import TEMPLATE, JobRequest
from flux_endpoint.engine.local.pmi import MAX_RANKS
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.errors import EngineError
from flux_endpoint.functions import MPIFunction, ShellFunction, command_of
from flux_endpoint.protocol.resources import (
    ResourceSpecification,
    ResourceSpecificationError,
    parse_resources,
)
from flux_endpoint.protocol.run_options import RunOptions
from flux_endpoint.serialize import ComputeSerializer, unpack_buffers

#: Lets OpenMPI's launcher run as root and with more ranks than cores, as on a laptop.
_LOCAL_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
_LAUNCH = str(Path(__file__).with_name("mpiexec.sh"))
#: Sent along with a script, because the nodes may not see this package.
_LAUNCH_RANKS = Path(__file__).with_name("launch.sh")
#: Ranks may end at any distance in time; a failed one ends the others, which may wait for it.
RANKS_END = {"exit-timeout": "none", "exit-on-error": 1}
#: Name of the file with a task's standard input, in the task's directory.
STDIN_FILE = "stdin"
#: Longest argument with which Linux starts a program, in bytes (MAX_ARG_STRLEN).
_LONGEST_WORD = 1 << 17
#: Timeout (s) for asking an MPI launcher for its version.
_VERSION_TIMEOUT = 5.0
#: The shortest walltime, in seconds.
_SHORTEST = 0.01
_NO_MPIEXEC = (
    "a task with several ranks needs an MPI launcher on the embedded executor, and there is no "
    "'mpiexec' on PATH: pip install mpich (or apt-get install mpich), or run the endpoint inside a "
    "Flux instance"
)


@dataclass(frozen=True)
class CommandPlan:
    """A command function as a job; its value is a `ShellResult`."""

    request: JobRequest
    function: ShellFunction
    #: The command line that the result reports.
    command: str
    stdout: Path
    stderr: Path


@dataclass(frozen=True)
class RanksPlan:
    """A Python function on every rank; its value is the list of the ranks' values."""

    request: JobRequest
    #: The directory of the task and of the ranks' values.
    directory: Path
    ranks: int
    stdout: Path
    stderr: Path


@dataclass(frozen=True)
class FollowPlan:
    """Somebody else's job, which is only followed; its value is a `ShellResult`."""

    jobid: int


JobPlan = CommandPlan | RanksPlan | FollowPlan


@dataclass(frozen=True)
class Planner:
    """Turns tasks into plans.

    Attributes:
        kind: the backend's kind.
        directory: directory for the files of this endpoint's jobs.
        tasks: how tasks run here.
        shell_plugin: prepares command tasks on their nodes, if it is in use.
        setup: what precedes the program of each job.
    """

    kind: Literal["flux", "local"]
    directory: Path
    tasks: TaskSettings
    shell_plugin: ShellPlugin | None = None
    setup: JobSetup = field(default_factory=JobSetup)

    def plan(self, task: EngineTask) -> JobPlan:
        """Return the job that `task` becomes.

        Raises:
            ResourceSpecificationError: the specification is invalid; the text names key and rule.
            EngineError: there is no MPI launcher.
            DeserializationError: the endpoint does not allow the task's serialization strategy.
            TypeError, ValueError: the command can't be formatted with its arguments.
        """
        if task.attach is not None:
            return FollowPlan(task.attach)
        resources = parse_resources(task.resource_specification or {})
        if task.urgency is not None:
            resources = replace(resources, urgency=task.urgency)
        options = task.options or RunOptions()
        if options.env:
            environment = {**resources.environment, **options.env}
            resources = replace(resources, environment=environment)
        command = command_of(task.buffer)
        if command is None:
            return self._ranks(task, resources, options)
        if self.tasks.allowed_serializers is not None:
            # A command task contains no code, but a site's list of strategies applies to it too.
            allowed = ComputeSerializer(allowed_deserializer_types=self.tasks.allowed_serializers)
            for buffer in unpack_buffers(task.buffer):
                allowed.allowed_strategy(buffer)
        return self._command(task.task_id, *command, resources, options)

    def task_directory(self, task_id: str) -> Path:
        """Return the directory for the files of a task's job."""
        return self.directory / task_id

    def _cwd(self, task_id: str, options: RunOptions) -> Path:
        """Return a task's working directory."""
        return self.tasks.directory(task_id) / options.cwd

    def _stdin(self, task_id: str, options: RunOptions) -> str | None:
        """Return the path of a task's standard input; a text gets a file of its own."""
        if options.stdin is None:
            return None
        if isinstance(options.stdin, str):
            return str(self.task_directory(task_id) / STDIN_FILE)
        return str(self._cwd(task_id, options) / options.stdin)

    def _command(
        self,
        task_id: str,
        function: ShellFunction,
        arguments: Mapping[str, Any],
        resources: ResourceSpecification,
        options: RunOptions,
    ) -> CommandPlan:
        if function.walltime is not None and math.isfinite(function.walltime):
            # A duration of 0 would mean no limit.
            limit = min(max(function.walltime, _SHORTEST), resources.walltime or math.inf)
            resources = replace(resources, walltime=limit)
        if resources.python:
            raise ResourceSpecificationError(
                "resource_specification: python is for Python functions; a command names its "
                "programs itself"
            )
        command = function.format_command(arguments)
        cwd, files = self._cwd(task_id, options), self.tasks.directory(task_id)
        stdout = cwd / function.stdout if function.stdout else files / f"{task_id}.stdout"
        stderr = cwd / function.stderr if function.stderr else files / f"{task_id}.stderr"
        request = JobRequest(
            command=(),
            cwd=str(cwd),
            environment=self._environment(task_id, resources),
            resources=_named(resources, _name_of(function, command)),
            stdin=self._stdin(task_id, options),
            stdout=self._output(stdout, task_id, "stdout"),
            stderr=self._output(stderr, task_id, "stderr"),
            append=True,
            mark=self.tasks.mark("task", task_id),
        )
        is_mpi = isinstance(function, MPIFunction)
        request = self.setup.prepare(self._launched(request, command, is_mpi=is_mpi))
        if self.shell_plugin is not None:
            request = self.shell_plugin.prepare(request)
        whole = function.command_prefix + command
        return CommandPlan(request, function, whole, stdout, stderr)

    def _output(self, path: Path, task_id: str, stream: str) -> str:
        """Return the path that Flux writes to: a link to `path` if Flux would expand that."""
        return str(self.task_directory(task_id) / stream if TEMPLATE in str(path) else path)

    def _launched(self, request: JobRequest, command: str, *, is_mpi: bool) -> JobRequest:
        """Choose how a command is started."""
        prefix = self._prefix(request.resources, needed=is_mpi)
        environment = {**request.environment, "PARSL_MPI_PREFIX": prefix}
        words = simple_words(command) if is_mpi else None
        script = f"$PARSL_MPI_PREFIX {command}" if is_mpi else command
        if self.kind == "local":
            request = replace(request, environment={**environment, **_LOCAL_MPI}, launch="once")
            if words is not None and _is_launched_here(request.resources):
                return _on_ranks(request, words)
            if words is None and (is_mpi or request.resources.num_ranks > 1):
                return replace(request, command=("/bin/bash",), script=script)
            return _by_bash(request, script)
        if words is not None:
            return _on_ranks(request, words)
        if not is_mpi and request.resources.num_ranks == 1:
            environment["PARSL_MPI_PREFIX"] = ""  # the one rank is the job's only task
            return _by_bash(replace(request, environment=environment, launch="rank"), command)
        launched = 'PARSL_MPI_PREFIX="/bin/bash ${0%/*}/launch $PARSL_MPI_PREFIX --"'
        # A Flux instance of the task's own holds the allocation while the script runs; the prefix
        # launches the ranks in it.
        return replace(
            request,
            command=("flux", "broker"),
            environment=environment,
            launch="node",
            shell_options={"mpi": "none", "exit-timeout": "none"},
            script=f"#!/bin/bash\n{launched}; {script}\n",
            files={"launch": _LAUNCH_RANKS.read_text(encoding="utf-8")},
        )

    def _prefix(self, resources: ResourceSpecification, *, needed: bool) -> str:
        """Return the command that launches exactly the specified ranks."""
        if self.kind == "local":
            mpiexec = find_mpiexec()
            if mpiexec is None:
                if needed:
                    raise EngineError(_NO_MPIEXEC)
                return ""
            words = ["/bin/bash", _LAUNCH, sys.executable, mpiexec, "-n", str(resources.num_ranks)]
            return " ".join(filter(None, [*words, resources.launcher_options, "--"]))
        if resources.tasks_per_slot > 1:  # the nodes are known then, and evenly filled
            per_node = resources.num_ranks // (resources.num_nodes or 1)
            words = ["flux", "run", "-N", str(resources.num_nodes), f"--tasks-per-node={per_node}"]
            if resources.gpus_per_rank:
                gpus = resources.gpus_per_rank * per_node // resources.tasks_per_slot
                words += [f"--gpus-per-node={gpus}"]
        else:
            words = ["flux", "run", "-n", str(resources.num_ranks)]
            if resources.num_nodes is not None:
                words += ["-N", str(resources.num_nodes)]
            words += ["-c", str(resources.cores_per_rank)]
            if resources.gpus_per_rank:
                words += ["-g", str(resources.gpus_per_rank)]
        return " ".join([*words, resources.launcher_options]).strip()

    def _ranks(
        self, task: EngineTask, resources: ResourceSpecification, options: RunOptions
    ) -> RanksPlan:
        directory = self.task_directory(task.task_id)
        words = ("-m", "flux_endpoint.engine.jobs.rank", str(directory))
        program = self.setup.python_command(*words, python=resources.python)
        request = JobRequest(
            command=program,
            cwd=str(self._cwd(task.task_id, options)),
            environment=self._environment(task.task_id, resources),
            resources=_named(resources, "python"),
            stdin=self._stdin(task.task_id, options),
            stdout=str(directory / "stdout"),
            stderr=str(directory / "stderr"),
            shell_options=_options_of_ranks(resources),
            mark=self.tasks.mark("task", task.task_id),
        )
        if self.kind == "local" and resources.num_ranks > 1:
            prefix = self._prefix(resources, needed=True).split()
            request = replace(request, environment={**request.environment, **_LOCAL_MPI})
            if not _is_launched_here(resources):
                request = replace(request, command=(*prefix, *program), launch="once")
        return RanksPlan(
            self.setup.prepare(request),
            directory,
            resources.num_ranks,
            directory / "stdout",
            directory / "stderr",
        )

    def _environment(self, task_id: str, resources: ResourceSpecification) -> dict[str, str]:
        variables = {**self.setup.environment(), **self.tasks.variables(task_id)}
        variables["PARSL_NUM_RANKS"] = str(resources.num_ranks)
        if resources.num_nodes is not None:
            variables["PARSL_NUM_NODES"] = str(resources.num_nodes)
            variables["PARSL_RANKS_PER_NODE"] = str(resources.ranks_per_node)
        return {name: value for name, value in variables.items() if value is not None}


def _by_bash(request: JobRequest, command: str) -> JobRequest:
    if len(command.encode(errors="replace")) < _LONGEST_WORD:
        return replace(request, command=("/bin/bash", "-c", command))
    return replace(request, command=("/bin/bash",), script=command)


def _on_ranks(request: JobRequest, words: Sequence[str]) -> JobRequest:
    """Return a request for a job whose tasks are the ranks."""
    options = _options_of_ranks(request.resources)
    return replace(request, command=words, launch="rank", shell_options=options)


def _is_launched_here(resources: ResourceSpecification) -> bool:
    """Return whether the embedded executor starts the ranks itself, and serves them PMI.

    That is MPICH's protocol; other libraries need their own launcher.
    """
    if resources.num_ranks > MAX_RANKS or resources.launcher_options:
        return False
    mpiexec = find_mpiexec()
    return mpiexec is not None and _is_hydra(mpiexec)


@functools.cache
def _is_hydra(mpiexec: str) -> bool:
    """Return whether a launcher is MPICH's."""
    try:
        done = subprocess.run(
            [mpiexec, "--version"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_VERSION_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return b"HYDRA" in done.stdout


def _options_of_ranks(resources: ResourceSpecification) -> dict[str, Any]:
    return dict(RANKS_END) if resources.num_ranks > 1 else {}


def _named(resources: ResourceSpecification, name: str) -> ResourceSpecification:
    return resources if resources.job_name is not None else replace(resources, job_name=name)


def _name_of(function: ShellFunction, command: str) -> str:
    """Return a command function's name: the one that its user gave it, else its program's."""
    name = function.__name__
    return (program_of(command) or name) if name == type(function).__name__ else name


def find_mpiexec() -> str | None:
    """Return the path of an MPI launcher: next to this Python (as with wheels), or on `PATH`."""
    beside = Path(sys.executable).parent
    return shutil.which("mpiexec", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
