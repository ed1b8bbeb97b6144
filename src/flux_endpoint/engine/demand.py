"""The resources that jobs have of an instance, and the resources that waiting jobs request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint.protocol.resources import ResourceSpecification

#: One part of a resource summary: broker ranks, and the ids of the resources on each.
_SHARE = re.compile(r"rank(\[[\d,-]+\]|\d+)/(\S+)", re.ASCII)
_KIND = re.compile(r"(core|gpu)(\[[\d,-]+\]|\d+)", re.ASCII)


@dataclass(frozen=True)
class Amount:
    """Cores and gpus of a node."""

    cores: int = 0
    gpus: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.cores + other.cores, self.gpus + other.gpus)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.cores - other.cores, self.gpus - other.gpus)

    def covers(self, other: Amount) -> bool:
        """Return whether this has at least the cores and the gpus of `other`."""
        return self.cores >= other.cores and self.gpus >= other.gpus


@dataclass(frozen=True)
class Demand:
    """A job that waits for resources only.

    Attributes:
        name: identifies the job.
        nodes: number of nodes it needs; `None`: its slots may be anywhere.
        slots: number of slots on each node, or in total if `nodes` is `None`.
        slot: resources of one slot.
        exclusive: whether it needs exclusive nodes.
        urgency: Flux's urgency, 0 to 31.
        since: monotonic time at which it began to wait.
    """

    name: str
    nodes: int | None = 1
    slots: int = 1
    slot: Amount = Amount(1)
    exclusive: bool = False
    urgency: int = 16
    since: float = 0.0

    @classmethod
    def of(cls, name: str, wanted: ResourceSpecification) -> Demand:
        """Return the demand of a job with the resource specification `wanted`."""
        slots = wanted.num_ranks
        if wanted.num_nodes is not None:
            slots = math.ceil(wanted.num_ranks / wanted.num_nodes) // wanted.tasks_per_slot
        return cls(
            name=name,
            nodes=wanted.num_nodes,
            slots=slots,
            slot=Amount(wanted.cores_per_rank, wanted.gpus_per_rank),
            exclusive=wanted.exclusive,
            urgency=wanted.urgency,
        )

    @classmethod
    def of_jobspec(cls, name: str, jobspec: Any) -> Demand:
        """Return the demand of a job by its jobspec (RFC 14), from any source.

        A range counts as its minimum. A job whose resources have an unknown shape counts as one
        core.
        """
        shape = _Shape()
        try:
            shape.read(jobspec["resources"])
        except (LookupError, TypeError, ValueError, AttributeError):
            return cls(name)
        # A node without cores below it is requested as a whole.
        exclusive = shape.exclusive or (shape.nodes is not None and not shape.cores)
        slot = Amount(max(1, shape.cores), shape.gpus)
        return cls(name, shape.nodes, shape.slots, slot, exclusive=exclusive)

    @property
    def per_node(self) -> Amount:
        """Resources that it needs on each of its nodes."""
        return Amount(self.slot.cores * self.slots, self.slot.gpus * self.slots)


@dataclass(frozen=True)
class JobDemand:
    """The requests of waiting jobs, and the resources that are not available.

    Attributes:
        waiting: the first jobs that wait for resources only, in Flux's scheduling order.
        held: resources of each node, by name, that jobs have; all resources of a node that is down.
        complete: whether this covers all jobs of the instance except our workers'; else it covers
          the endpoint's own jobs only.
        least_urgency: the lowest urgency among all waiting jobs.
    """

    waiting: tuple[Demand, ...] = ()
    held: Mapping[str, Amount] = field(default_factory=dict)
    complete: bool = False
    least_urgency: int = 31


class _Shape:
    """The resources of a jobspec, counted."""

    def __init__(self) -> None:
        self.nodes: int | None = None
        self.slots, self.cores, self.gpus = 1, 0, 0
        self.exclusive = False

    def read(self, resources: Iterable[Mapping[str, Any]], times: int = 1) -> None:
        for resource in resources:
            count, within = _least(resource.get("count", 1)), resource.get("with", ())
            self.exclusive |= resource.get("exclusive") is True
            match resource["type"]:
                case "node":  # slots around nodes count as nodes
                    self.nodes, self.slots = self.slots * count, 1
                    self.read(within)
                case "slot":
                    self.slots *= count * times
                    self.read(within)
                case "core":
                    self.cores += count * times
                case "gpu":
                    self.gpus += count * times
                case _:  # sockets and other groups of nodes or cores
                    self.read(within, times * count)


def _least(count: Any) -> int:
    """Return a count; for a range, its minimum: `{"min": 2, "max": 4}` or `"2-4"`."""
    if isinstance(count, Mapping):
        count = count["min"]
    return int(re.split(r"\D", count, maxsplit=1)[0]) if isinstance(count, str) else int(count)


def placement_in(allocated: Any) -> dict[str, Amount]:
    """Return the resources of each node in a resource set (RFC 20); empty if it is unreadable."""
    found: dict[str, Amount] = {}
    try:
        for share in allocated["execution"]["R_lite"]:
            children = share["children"]
            cores, gpus = (_numbers(str(children.get(kind, ""))) for kind in ("core", "gpu"))
            for rank in _numbers(str(share["rank"])):
                found[f"rank {rank}"] = Amount(len(cores), len(gpus))
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}
    return found


def placement_of(alloc: Mapping[str, Any]) -> dict[str, Amount]:
    """Return the resources that a job got on each node, from the context of its `alloc` event.

    Flux's schedulers may annotate the event with a summary such as
    `rank[0-1]/core[0-3],gpu0 rank2/core0`; without one the placement is unknown, and empty here.
    """
    try:
        summary = str(alloc["annotations"]["sched"]["resource_summary"])
    except (LookupError, TypeError):
        return {}
    found: dict[str, Amount] = {}
    for ranks, ids in _SHARE.findall(summary):
        counts = {kind: len(_numbers(idset)) for kind, idset in _KIND.findall(ids)}
        amount = Amount(counts.get("core", 0), counts.get("gpu", 0))
        for rank in _numbers(ranks):
            name = f"rank {rank}"
            found[name] = found.get(name, Amount()) + amount
    return found


def _numbers(idset: str) -> list[int]:
    numbers: list[int] = []
    for part in filter(None, idset.strip("[]").split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
