"""Version-1 jobspecs (RFC 14, RFC 25) as plain data, built without Flux."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint.protocol.resources import ResourceSpecification, ResourceSpecificationError

#: Begins a template, which Flux's job shell expands in a job's command and in its output paths. It
#: can't be escaped there, but the contents of files and variables are not expanded.
TEMPLATE = "{{"
_SCRIPT = "script"


@dataclass(frozen=True)
class JobRequest:
    """The command, environment and resources of a job."""

    #: The command's arguments, passed unchanged: Flux expands no templates in them.
    command: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    resources: ResourceSpecification = field(default_factory=ResourceSpecification)
    #: Run the command for each rank, once on each node, or once in total.
    launch: str = "rank"  # "rank", "node" or "once"
    #: Path of the file that every task reads as its standard input; `None`: none has one.
    stdin: str | None = None
    #: Paths of output files; may contain `{{id}}`. Output is appended if `append`.
    stdout: str | None = None
    stderr: str | None = None
    append: bool = False
    #: Further options of the job shell; those of `resources` take precedence.
    shell_options: Mapping[str, Any] = field(default_factory=dict)
    #: Text of a script; the path of its file becomes the command's last argument.
    script: str | None = None
    #: Further files by name, in the script's directory. All are executable.
    files: Mapping[str, str] = field(default_factory=dict)
    #: The attribute `user.flux_endpoint`, by which sites recognize an endpoint's jobs.
    mark: Mapping[str, str] | None = None


def build_jobspec(request: JobRequest) -> dict[str, Any]:
    """Return the jobspec of `request`, ready to be encoded as JSON."""
    wanted = request.resources
    command, files = _command(request)
    system: dict[str, Any] = {
        "duration": wanted.walltime,
        "cwd": request.cwd,
        "environment": _environment(request),
        "shell": {"options": _shell_options(request)},
    }
    if wanted.job_name is not None:
        system["job"] = {"name": wanted.job_name}
    optional = {
        "queue": wanted.queue,
        "bank": wanted.bank,
        "constraints": wanted.constraints,
        "dependencies": _dependencies(wanted),
        "files": _archive(files),
    }
    system |= {key: value for key, value in optional.items() if value}
    resources, count = _resources(request)
    attributes: dict[str, Any] = {"system": system}
    for name, value in wanted.attributes.items():
        _set_attribute(attributes, name, value)
    if request.mark is not None:  # set last, so that a submission can't override it
        _set_attribute(attributes, "user.flux_endpoint", dict(request.mark))
    return {
        "version": 1,
        "resources": [resources],
        "tasks": [{"command": command, "slot": "task", "count": count}],
        "attributes": attributes,
    }


def _command(request: JobRequest) -> tuple[list[str], dict[str, str]]:
    """Return the command for the jobspec, and the files that it needs."""
    words, files = list(request.command), dict(request.files)
    if request.script is not None:
        files[_SCRIPT] = request.script
    elif any(TEMPLATE in word for word in words):
        files[_SCRIPT] = f"exec {shlex.join(words)}\n"
        words = ["/bin/sh"]
    else:
        return words, files
    return [*words, f"{{{{tmpdir}}}}/{_SCRIPT}"], files


def _environment(request: JobRequest) -> dict[str, str]:
    variables: dict[str, str | None] = {**request.environment, **request.resources.environment}
    return {name: value for name, value in variables.items() if value is not None}


def _resources(request: JobRequest) -> tuple[dict[str, Any], dict[str, int]]:
    wanted = request.resources
    within = [{"type": "core", "count": wanted.cores_per_rank}]
    if wanted.gpus_per_rank:
        within.append({"type": "gpu", "count": wanted.gpus_per_rank})
    slot: dict[str, Any] = {"type": "slot", "count": wanted.num_ranks, "label": "task"}
    slot["with"] = within
    once = {"total": 1} if request.launch == "once" else None
    if wanted.num_nodes is None:
        return slot, once or {"per_slot": 1}
    per_node = math.ceil(wanted.num_ranks / wanted.num_nodes)
    slot["count"] = per_node // wanted.tasks_per_slot
    node: dict[str, Any] = {"type": "node", "count": wanted.num_nodes, "with": [slot]}
    if wanted.exclusive:
        node["exclusive"] = True
    # Flux's job shell supports one task per slot only.
    uneven = slot["count"] * wanted.num_nodes != wanted.num_ranks and request.launch == "rank"
    return node, once or ({"total": wanted.num_ranks} if uneven else {"per_slot": 1})


def _shell_options(request: JobRequest) -> dict[str, Any]:
    # By default nobody writes to it; left open, a program that reads it would wait forever. (The
    # timeout, in seconds, delays each job's end; Flux's default is 0.5.)
    path = request.stdin or "/dev/null"
    stdin = {"stdin": {"type": "file", "path": path}, "batch-timeout": 0.001}
    options = {"input": stdin, **request.shell_options, **request.resources.shell_options}
    if request.launch == "node":
        options["per-resource"] = {"type": "node"}
    paths = {"stdout": request.stdout, "stderr": request.stderr}
    output: dict[str, Any] = {
        stream: {"type": "file", "path": path} for stream, path in paths.items() if path is not None
    }
    if output and request.append:
        output["mode"] = "append"
    if output:
        options["output"] = {**output, **options.get("output", {})}
    return options


def _dependencies(wanted: ResourceSpecification) -> list[dict[str, str]]:
    pairs = [item.partition(":") for item in wanted.dependencies]
    dependencies = [{"scheme": scheme, "value": value} for scheme, _, value in pairs]
    if wanted.begin_time is not None:
        dependencies.append({"scheme": "begin-time", "value": str(wanted.begin_time)})
    return dependencies


def _archive(files: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: {"mode": 0o100700, "data": text, "encoding": "utf-8"} for name, text in files.items()
    }


def _set_attribute(attributes: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted attribute; one outside `system` and `user` goes below `system`, as in Flux."""
    path = name.split(".")
    if path[0] not in {"system", "user"}:
        path.insert(0, "system")
    for part in path[:-1]:
        attributes = attributes.setdefault(part, {})
        if not isinstance(attributes, dict):
            raise ResourceSpecificationError(
                f"resource_specification: attributes[{name!r}] can't be set: {part!r} is no object"
            )
    attributes[path[-1]] = value
