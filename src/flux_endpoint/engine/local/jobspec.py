"""Reads and checks a version-1 jobspec (RFC 14, RFC 25) as Flux's ingest does, with its errors."""

from __future__ import annotations

import base64
import binascii
import errno
import json
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from flux_endpoint.engine.local.hostlist import expand
from flux_endpoint.engine.local.idset import is_idset
from flux_endpoint.protocol.duration import parse_duration

_OPERATORS = ("and", "or", "not", "properties", "hostlist", "ranks")
#: `attributes.system.shell.options.per-resource.type`
_PER_RESOURCE = ("node", "core")


@dataclass(frozen=True, slots=True)
class Shape:
    """The resources of a job: the number of slots, each with `cores` and `gpus` on one node."""

    slots: int
    cores: int
    gpus: int = 0
    #: Number of nodes over which the slots are spread evenly; 0: wherever they fit.
    nodes: int = 0
    exclusive: bool = False
    constraints: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LocalJobspec:
    """The parts of a jobspec that the embedded executor uses."""

    command: tuple[str, ...]
    #: Resources, or why they are unclear: Flux leaves it to the scheduler to report that.
    shape: Shape | str
    #: Tasks per slot, unless `total` has their total number.
    per_slot: int = 1
    total: int | None = None
    duration: float = 0.0
    cwd: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    shell_options: Mapping[str, Any] = field(default_factory=dict)
    #: Name, content and mode of each file for the tasks' temporary directory.
    files: tuple[tuple[str, bytes, int], ...] = ()
    #: Scheme and value of each dependency.
    dependencies: tuple[tuple[str, str], ...] = ()


def read_jobspec(jobspec: Any, *, pre_signed: bool = False) -> LocalJobspec:
    """Return the parts of `jobspec` that are used here.

    Args:
        jobspec: an object with a method `dumps`, or JSON or YAML text.
        pre_signed: whether the text is wrapped by Flux's signing with the mechanism `none`.

    Raises:
        TypeError: `jobspec` is neither.
        OSError: the text can't be read (EINVAL), or its content is rejected (PermissionError).
    """
    if jobspec is None:
        raise OSError(errno.EINVAL, "jobspec must not be None/NULL")
    text = jobspec.dumps() if hasattr(jobspec, "dumps") else jobspec
    if not isinstance(text, str | bytes):
        raise TypeError("jobspec must be a Jobspec or string (either binary or unicode)")
    document = _decode(_unwrap(text) if pre_signed else text)
    try:
        return _check(document)
    except _Rejected as exc:
        raise PermissionError(errno.EPERM, str(exc)) from None


class _Rejected(Exception):  # noqa: N818
    pass


def _decode(text: str | bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        try:
            document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        except (yaml.YAMLError, ValueError, RecursionError) as exc:
            reason = " ".join(str(exc).split())
            raise OSError(
                errno.EINVAL, f"jobspec: invalid JSON: nor is it YAML: {reason}"
            ) from None
    if not isinstance(document, Mapping):
        raise OSError(errno.EINVAL, "jobspec: invalid JSON: '{' expected: it must be an object")
    return document


def _unwrap(text: str | bytes) -> bytes:
    signed = text.encode() if isinstance(text, str) else text
    try:
        _, payload, signature = signed.split(b".")
        if signature != b"none":
            raise ValueError
        return base64.b64decode(payload, validate=True)
    except (ValueError, binascii.Error):
        raise OSError(errno.EINVAL, "could not unwrap jobspec: Invalid argument") from None


def _check(document: Mapping[str, Any]) -> LocalJobspec:
    _keys(document, ("attributes", "resources", "tasks", "version"))
    if document["version"] != 1:
        raise _Rejected("version must be 1")
    resources = _sequence(document["resources"], "resources")
    for resource in _walk(resources):
        _check_resource(resource)
    tasks = _sequence(document["tasks"], "tasks")
    if len(tasks) != 1:
        raise _Rejected("tasks must have exactly one entry")
    command, count = _check_task(_mapping(tasks[0], "task"))
    attributes = _mapping(document["attributes"], "attributes")
    if "system" not in attributes:
        raise _Rejected("attributes.system is a required key")
    _keys(attributes, ("system", "user"), required=False)
    system = _mapping(attributes["system"], "attributes.system")
    constraints = system.get("constraints")
    if constraints is not None:
        _check_constraints(constraints)
    dependencies = tuple(_dependencies(system))
    options = _shell_options(system)
    shape = _shape(resources, constraints)
    _refuse_queue(system)
    return LocalJobspec(
        command=tuple(command),
        shape=shape,
        per_slot=count.get("per_slot", 1),
        total=count.get("total"),
        duration=_duration(system),
        cwd=_optional_text(system, "cwd"),
        environment=_environment(system),
        name=str(_mapping(system.get("job") or {}, "attributes.system.job").get("name", "")),
        shell_options=options,
        files=tuple(_files(system)),
        dependencies=dependencies,
    )


def _keys(given: Mapping[str, Any], known: Sequence[str], *, required: bool = True) -> None:
    for key in known:
        if required and key not in given:
            raise _Rejected(f"Missing key ({key})")
    for key in given:
        if key not in known:
            raise _Rejected(f"Extraneous key ({key})")


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _Rejected(f"{name} must be a mapping")
    return value


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise _Rejected(f"{name} must be a sequence")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _walk(resources: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for entry in resources:
        resource = _mapping(entry, "resource")
        yield resource
        yield from _walk(_sequence(resource.get("with", []), "with"))


def _check_resource(resource: Mapping[str, Any]) -> None:
    for key in ("type", "count"):
        if key not in resource:
            raise _Rejected(f"{key} is a required key for resources")
    kind, count = resource["type"], resource["count"]
    if not isinstance(kind, str):
        raise _Rejected("type must be a string")
    if not _is_integer(count):
        raise _Rejected(
            f"resource count must be an integer for type '{kind}' (got '{type(count).__name__}')"
        )
    if kind in ("node", "slot", "core") and count < 1:
        raise _Rejected("node, slot, or core count must be > 0")
    if count < 0:
        raise _Rejected("count must be >= 0")
    if not isinstance(resource.get("exclusive", False), bool):
        raise _Rejected("exclusive must be a boolean")
    if kind == "slot" and "label" not in resource:
        raise _Rejected("slots must have labels")


def _check_task(task: Mapping[str, Any]) -> tuple[Sequence[str], Mapping[str, int]]:
    for key in ("command", "slot", "count"):
        if key not in task:
            raise _Rejected(f"Missing key ({key})")
    command, count = task["command"], _mapping(task["count"], "count")
    if len(count) != 1:
        raise _Rejected("count must have exactly one key set")
    if not {"per_slot", "total"} & count.keys():
        raise _Rejected("count per_slot or total must be set")
    for key, value in count.items():
        if not _is_integer(value):
            raise _Rejected(f"count {key} must be an int")
        if value <= 0:
            raise _Rejected(f"count {key} must be > 0")
    if isinstance(command, list) and not command:
        raise _Rejected("command array cannot have length of zero")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise _Rejected("command must be a list of strings")
    return command, count


def _check_constraints(constraint: Any) -> None:
    for operator, values in _mapping(constraint, "constraints").items():
        if operator not in _OPERATORS:
            raise _Rejected(f"unknown constraint operator '{operator}'")
        if not isinstance(values, list):
            raise _Rejected(f"argument to constraint {operator} must be a sequence")
        for value in values:
            if operator in ("and", "or", "not"):
                _check_constraints(value)
            elif operator == "hostlist":
                _check_hosts(value)
            elif operator == "ranks" and not is_idset(value):
                raise _Rejected(f"invalid idset {value!r} in a constraint on ranks")


def _check_hosts(hostlist: Any) -> None:
    """Reject unknown hosts: the only one is this host, whose name all virtual nodes have."""
    try:
        hosts = expand(hostlist)
    except (TypeError, ValueError):
        raise _Rejected(f"Invalid hostlist: {hostlist!r}") from None
    for host in hosts:
        if host != socket.gethostname():
            what = f"hosts '{hostlist}'" if {",", "["} & set(hostlist) else f"host '{host}'"
            raise _Rejected(f"host constraint contains invalid hosts: {what} not found")


def _duration(system: Mapping[str, Any]) -> float:
    if "duration" not in system:
        raise _Rejected("attributes.system.duration is a required key")
    duration = system["duration"]
    if not isinstance(duration, int | float) or isinstance(duration, bool):
        raise _Rejected("attributes.system.duration must be a number")
    return float(duration)


def _optional_text(system: Mapping[str, Any], key: str) -> str | None:
    value = system.get(key)
    if value is not None and not isinstance(value, str):
        raise _Rejected(f"attributes.system.{key} must be a string")
    return value


def _environment(system: Mapping[str, Any]) -> dict[str, str]:
    environment = _mapping(system.get("environment") or {}, "attributes.system.environment")
    return {str(key): str(value) for key, value in environment.items()}


def _files(system: Mapping[str, Any]) -> Iterator[tuple[str, bytes, int]]:
    """Yield the files of RFC 37 as name, content and permissions."""
    for name, given in _mapping(system.get("files") or {}, "attributes.system.files").items():
        what = f"attributes.system.files.{name}"
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise _Rejected(f"{what}: the name of a file, without directories, is wanted")
        entry = _mapping(given, what)
        data, mode = entry.get("data"), entry.get("mode", 0o600)
        if not _is_integer(mode) or stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise _Rejected(f"{what}.mode must be that of a regular file")
        yield name, _content(entry.get("encoding"), data, what), stat.S_IMODE(mode)


def _content(encoding: object, data: Any, what: str) -> bytes:
    if encoding is None:
        return json.dumps(data).encode()
    if encoding not in ("utf-8", "base64") or not isinstance(data, str):
        raise _Rejected(f"{what}: data must be text, its encoding utf-8 or base64")
    try:
        return data.encode() if encoding == "utf-8" else base64.b64decode(data, validate=True)
    except ValueError as exc:
        raise _Rejected(f"{what}: data can't be decoded: {exc}") from None


def _dependencies(system: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    given = system.get("dependencies")
    if not isinstance(given, list | None):
        raise _Rejected("attributes.system.dependencies must be a list")
    for item in given or ():
        dependency = _mapping(item, "dependency")
        for key in ("scheme", "value"):
            if key not in dependency:
                raise _Rejected(f"Missing key ({key})")
            if not isinstance(dependency[key], str):
                raise _Rejected(f"dependency {key} must be a string")
        yield dependency["scheme"], dependency["value"]


def _refuse_queue(system: Mapping[str, Any]) -> None:
    """Reject a queue with OSError, as Flux does where no queues are configured."""
    queue = system.get("queue")
    if queue is not None:
        raise OSError(errno.EINVAL, f"'{queue}' is not a valid queue: there are none here")


def _shell_options(system: Mapping[str, Any]) -> Mapping[str, Any]:
    shell = _mapping(system.get("shell") or {}, "attributes.system.shell")
    options = _mapping(shell.get("options") or {}, "attributes.system.shell.options")
    per_resource = options.get("per-resource")
    if per_resource is not None:
        kind = _mapping(per_resource, "per-resource").get("type")
        if kind not in _PER_RESOURCE:
            raise _Rejected(f"per-resource type must be one of {', '.join(_PER_RESOURCE)}")
        if not _is_integer(per_resource.get("count", 1)) or per_resource.get("count", 1) < 1:
            raise _Rejected("per-resource count must be an integer > 0")
    for direction, stream in (("output", "stdout"), ("output", "stderr"), ("input", "stdin")):
        if not isinstance(stream_options(options, direction, stream).get("path", ""), str):
            raise _Rejected(f"attributes.system.shell.options.{direction}.{stream}.path: no string")
    return options


def stream_options(options: Mapping[str, Any], direction: str, stream: str) -> Mapping[str, Any]:
    """Return the shell options of `stdin`, `stdout` or `stderr`.

    `stderr` inherits the options of `stdout` that it does not set.
    """
    name = f"attributes.system.shell.options.{direction}"
    streams = _mapping(options.get(direction) or {}, name)
    own = _mapping(streams.get(stream) or {}, f"{name}.{stream}")
    if stream != "stderr":
        return own
    return {**_mapping(streams.get("stdout") or {}, f"{name}.stdout"), **own}


def _shape(resources: Sequence[Mapping[str, Any]], constraints: Any) -> Shape | str:
    """Return the shape of `[node >] slot > core, gpu`, or what is missing, as Flux's scheduler."""
    if not resources:
        return "jobspec has no resources"
    outer, nodes, exclusive = resources[0], 0, False
    if outer["type"] == "node":
        nodes, exclusive = outer["count"], outer.get("exclusive", False)
        outer = next((r for r in outer.get("with", []) if r["type"] == "slot"), {})
    if outer.get("type") != "slot":
        return "Unable to determine slot count"
    sizes = {inner["type"]: inner["count"] for inner in outer.get("with", [])}
    if "core" not in sizes:
        return "Unable to determine slot size"
    return Shape(
        slots=outer["count"] * max(nodes, 1),
        cores=sizes["core"],
        gpus=sizes.get("gpu", 0),
        nodes=nodes,
        exclusive=exclusive or outer.get("exclusive", False),
        constraints=constraints,
    )


def seconds_of(value: object, *, default: float) -> float | None:
    """Return a Flux Standard Duration (RFC 23) in seconds; "none" is `None`."""
    if value == "none":
        return None
    try:
        return default if value is None else parse_duration(value)
    except ValueError:
        return default
