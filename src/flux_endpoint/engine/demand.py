"""What the endpoint's jobs have of the instance, and what those that wait ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint.protocol.resources import ResourceSpecification

#: A part of a resource summary: broker ranks, and ids of what is taken of each.
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
        """Return whether there is as much of each as in `other`."""
        return self.cores >= other.cores and self.gpus >= other.gpus


@dataclass(frozen=True)
class Demand:
    """A job that waits for nothing but resources.

    Attributes:
        name: what it is known by.
        nodes: how many nodes it needs; `None`: its slots may be anywhere.
        slots: slots on each node, or in all where `nodes` is `None`.
        slot: what a slot is made of.
        exclusive: whether the nodes must be its alone.
        urgency: Flux's: 0 to 31.
        since: monotonic time from which on it waited.
    """

    name: str
    nodes: int | None = 1
    slots: int = 1
    slot: Amount = Amount(1)
    exclusive: bool = False
    urgency: int = 16
    since: float = 0.0

    @classmethod
    def of(cls, name: str, wanted: ResourceSpecification, since: float) -> Demand:
        """Return what a job with the resources `wanted` asks for."""
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
            since=since,
        )

    @property
    def per_node(self) -> Amount:
        """What it needs of each of its nodes."""
        return Amount(self.slot.cores * self.slots, self.slot.gpus * self.slots)


@dataclass(frozen=True)
class JobDemand:
    """All jobs of the endpoint: what those that wait ask for, and what the others have."""

    #: In the order in which Flux looks at them.
    waiting: tuple[Demand, ...] = ()
    #: What they have of each node, by its name.
    held: Mapping[str, Amount] = field(default_factory=dict)


def placement_of(alloc: Mapping[str, Any]) -> dict[str, Amount]:
    """Return what a job got of which node, from the context of its `alloc` event.

    Flux's schedulers may annotate it with a summary such as `rank[0-1]/core[0-3],gpu0 rank2/core0`;
    without one the placement is unknown, and empty here.
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
    for part in idset.strip("[]").split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
