"""The resource specification of a task, which client and endpoint validate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint.errors import FluxEndpointError, suggestion
from flux_endpoint.protocol.constraints import parse_constraints
from flux_endpoint.protocol.duration import parse_duration
from flux_endpoint.protocol.moment import parse_moment

MAX_URGENCY = 31
#: Flux's urgencies of a job that is held, and of one without.
HELD, DEFAULT_URGENCY = 0, 16
#: The largest count, the limit of Flux's own counts.
_MAX_COUNT = 2**31 - 1
#: The most ranks of a slot. No resources limit it, and each rank is a process.
_MAX_PER_SLOT = 4096
#: Longest snippet, in characters: it travels in a variable, which Linux limits to 128 KiB.
MAX_SNIPPET = 32 * 1024
#: The most characters of an invalid value that an error shows.
_SHOWN = 200


class ResourceSpecificationError(FluxEndpointError, ValueError):
    """A resource specification has an invalid key or value; the text names the key and the rule."""


@dataclass(frozen=True)
class ResourceShape:
    """The ranks of a task, and their nodes, cores and gpus.

    Attributes:
        num_ranks: number of ranks.
        num_nodes: number of nodes over which they are spread; `None`: Flux chooses.
        cores_per_rank: cores of each rank, or of each slot if ranks share slots.
        gpus_per_rank: gpus of each rank, or of each slot if ranks share slots.
        tasks_per_slot: number of ranks that share one slot with its cores and gpus.
        exclusive: whether the task needs exclusive nodes.
    """

    num_ranks: int = 1
    num_nodes: int | None = None
    cores_per_rank: int = 1
    gpus_per_rank: int = 0
    tasks_per_slot: int = 1
    exclusive: bool = False

    @property
    def ranks_per_node(self) -> int | None:
        """The most ranks on one node; `None` if Flux chooses the nodes."""
        return None if self.num_nodes is None else math.ceil(self.num_ranks / self.num_nodes)


@dataclass(frozen=True)
class ResourceSpecification(ResourceShape):
    """A valid specification, with the derived values filled in.

    Attributes:
        walltime: seconds after which the task is ended; 0: no limit.
        queue: Flux queue.
        bank: bank that is charged.
        urgency: 0 (held) to 31 (expedite).
        environment: variables to set, or with `None` to unset, in addition to the endpoint's.
        constraints: constraint object (RFC 31).
        dependencies: conditions on other jobs, as `scheme:value` (`afterok:f2ByGc`).
        begin_time: earliest start, in seconds since the epoch; an offset counts from the time of
            parsing.
        job_name: name of the Flux job.
        shell_options: options of the job shell, as set by `flux run -o`.
        attributes: further jobspec attributes by dotted name, as set by `flux run --setattr`.
        launcher_options: arguments added to the launcher prefix.
        worker_init: shell code that runs before the command or the function; empty: none.
        python: Python that runs the function; empty: the endpoint's choice.
    """

    walltime: float = 0.0
    queue: str | None = None
    bank: str | None = None
    urgency: int = DEFAULT_URGENCY
    environment: Mapping[str, str | None] = field(default_factory=dict)
    constraints: Mapping[str, Any] | None = None
    dependencies: tuple[str, ...] = ()
    begin_time: float | None = None
    job_name: str | None = None
    shell_options: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    launcher_options: str = ""
    worker_init: str = ""
    python: str = ""


def parse_resources(given: Mapping[str, Any]) -> ResourceSpecification:
    """Validate a specification, and derive the values that it leaves out.

    Any consistent subset of `num_nodes`, `ranks_per_node` and `num_ranks` is accepted.

    Raises:
        ResourceSpecificationError: a key is unknown, a value invalid, or the counts contradict.
    """
    if not isinstance(given, Mapping):
        raise ResourceSpecificationError(
            f"resource_specification must be a dict, got {type(given).__name__}"
        )
    values: dict[str, Any] = {}
    for key, value in given.items():
        check = _CHECKS.get(key)
        if check is None:
            raise ResourceSpecificationError(_unknown_key(key))
        if value is not None:
            values[key] = check(key, value)
    per_node = values.pop("ranks_per_node", None)
    num_ranks, num_nodes = _counts(values.pop("num_nodes", None), per_node, values.get("num_ranks"))
    values["num_ranks"] = num_ranks
    if values.get("exclusive") and num_nodes is None:
        raise ResourceSpecificationError("exclusive needs num_nodes (or ranks_per_node)")
    _check_sharing(num_ranks, num_nodes, values.get("tasks_per_slot", 1))
    return ResourceSpecification(num_nodes=num_nodes, **values)


def _counts(nodes: int | None, per_node: int | None, ranks: int | None) -> tuple[int, int | None]:
    """Return (ranks, nodes) from any subset of the three counts."""
    if per_node is None:
        if nodes is not None and ranks is not None and ranks < nodes:
            raise ResourceSpecificationError(
                f"num_ranks={ranks} is less than num_nodes={nodes}: every node needs a rank"
            )
        return ranks or nodes or 1, nodes
    if ranks is None:
        nodes = nodes or 1
        return nodes * per_node, nodes
    if nodes is None:
        return ranks, math.ceil(ranks / per_node)
    if nodes * per_node != ranks:
        raise ResourceSpecificationError(
            f"num_nodes={nodes} times ranks_per_node={per_node} is {nodes * per_node}, "
            f"but num_ranks={ranks}; leave one of the three out"
        )
    return ranks, nodes


def _check_sharing(ranks: int, nodes: int | None, tasks_per_slot: int) -> None:
    """Check that slots are full on every node: no rule says how other ranks would share."""
    if tasks_per_slot == 1:
        return
    if nodes is None:
        raise ResourceSpecificationError("tasks_per_slot needs num_nodes (or ranks_per_node)")
    if ranks % (nodes * tasks_per_slot):
        raise ResourceSpecificationError(
            f"tasks_per_slot={tasks_per_slot} does not divide the ranks of each node: "
            f"num_ranks={ranks} on num_nodes={nodes}; make num_ranks a multiple of "
            f"{nodes * tasks_per_slot}"
        )


def _unknown_key(key: object) -> str:
    if key == "priority":  # an option of GlobusComputeEngine
        return (
            "resource_specification: 'priority' is for endpoints of Globus Compute; Flux orders "
            f"jobs by 'urgency', 0 to {MAX_URGENCY}"
        )
    hint = suggestion(key, _CHECKS, "known keys:")
    return f"resource_specification has the unknown key '{key}'; {hint}"


def _wrong(key: str, value: object, rule: str) -> ResourceSpecificationError:
    got = repr(value)
    if len(got) > _SHOWN:
        got = f"{got[:_SHOWN]}…"
    return ResourceSpecificationError(f"resource_specification: {key} must be {rule}, got {got}")


def _integer(least: int, most: int = _MAX_COUNT) -> Callable[[str, Any], int]:
    rule = f"an integer from {least} to {most}"

    def check(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(key, value, rule)
        if not least <= value <= most:
            raise _wrong(key, value, rule)
        return value

    return check


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(key, value, "a non-empty string")
    return value


def _snippet(key: str, value: Any) -> str:
    text = _text(key, value)
    if len(text) > MAX_SNIPPET or "\0" in text:
        raise _wrong(key, text, f"at most {MAX_SNIPPET} characters, without NUL")
    return text


def _object(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _wrong(key, value, "a dict with string keys")
    return dict(value)


def _environment(key: str, value: Any) -> dict[str, str | None]:
    variables = _object(key, value)
    for name, setting in variables.items():
        if setting is not None and not isinstance(setting, str):
            raise _wrong(f"{key}[{name!r}]", setting, "a string (or None to unset it)")
        try:
            f"{name}{setting}".encode()
        except UnicodeError:  # the message omits the value, which may be secret
            raise ResourceSpecificationError(
                f"resource_specification: {key}[{name!r}] must be text that UTF-8 has; it holds "
                "a lone surrogate, in general of a variable that is not UTF-8 where it comes from"
            ) from None
    return variables


def _walltime(key: str, value: Any) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise _wrong(key, value, f"seconds or a Flux Standard Duration ({error})") from error
    return 0.0 if math.isinf(seconds) else seconds


def _begin_time(key: str, value: Any) -> float:
    try:
        return parse_moment(value, time.time())
    except ValueError as error:
        rule = f"seconds since the epoch, '+2h', or a date such as '2027-01-31 15:00' ({error})"
        raise _wrong(key, value, rule) from error


def _constraints(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        return _object(key, value)
    try:
        return parse_constraints(value)
    except ValueError as error:
        rule = f"as `flux run --requires` takes it, or an object of RFC 31 ({error})"
        raise _wrong(key, value, rule) from error


def _dependencies(key: str, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise _wrong(key, value, "a string 'scheme:value' or a list of such")
    for item in items:
        scheme, _, what = item.partition(":") if isinstance(item, str) else ("", "", "")
        if not scheme or (not what and scheme.startswith(("after", "begin-time"))):
            raise _wrong(key, item, "of the form 'scheme:value', e.g. 'afterok:f2ByGc'")
    return tuple(items)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "num_nodes": _integer(1),
    "ranks_per_node": _integer(1),
    "num_ranks": _integer(1),
    "cores_per_rank": _integer(1),
    "gpus_per_rank": _integer(0),
    "tasks_per_slot": _integer(1, _MAX_PER_SLOT),
    "exclusive": _boolean,
    "walltime": _walltime,
    "queue": _text,
    "bank": _text,
    "urgency": _integer(0, MAX_URGENCY),
    "environment": _environment,
    "constraints": _constraints,
    "dependencies": _dependencies,
    "begin_time": _begin_time,
    "job_name": _text,
    "shell_options": _object,
    "attributes": _object,
    "launcher_options": _text,
    "worker_init": _snippet,
    "python": _snippet,
}
