"""Virtual nodes with cores and GPUs, allocated and freed as by Flux's scheduler."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint.engine.local import idset
from flux_endpoint.engine.local.hostlist import expand
from flux_endpoint.engine.local.jobspec import Shape


class UnsatisfiableError(Exception):
    """The request can't be met even if nothing else runs."""


@dataclass(frozen=True, slots=True)
class NodeShare:
    """A job's resources on one node."""

    rank: int
    cores: tuple[int, ...]
    gpus: tuple[int, ...]
    slots: int


Allocation = tuple[NodeShare, ...]


@dataclass(slots=True)
class _Node:
    rank: int
    cores: set[int] = field(default_factory=set)  # free ones
    gpus: set[int] = field(default_factory=set)


class ResourcePool:
    """All resources, and which of them are free. Owned by one thread.

    Args:
        nodes: number of virtual nodes.
        cores_per_node: cores of each.
        gpus_per_node: GPUs of each.
    """

    def __init__(self, nodes: int, cores_per_node: int, gpus_per_node: int) -> None:
        self.cores_per_node = cores_per_node
        self.gpus_per_node = gpus_per_node
        self._nodes = [
            _Node(rank, set(range(cores_per_node)), set(range(gpus_per_node)))
            for rank in range(nodes)
        ]

    def check(self, shape: Shape) -> None:
        """Raise UnsatisfiableError, with the text of Flux's scheduler, if `shape` never fits."""
        candidates = [n for n in self._nodes if matches(n.rank, shape.constraints)]
        cores, gpus = self.cores_per_node, self.gpus_per_node
        if shape.exclusive:
            need = max(shape.nodes, 1)
            eligible = len(candidates) if cores >= shape.cores and gpus >= shape.gpus else 0
            if eligible < need:
                raise UnsatisfiableError(f"need {need} exclusive node(s), only {eligible} eligible")
        elif shape.nodes:
            per_node = shape.slots // shape.nodes
            want_cores, want_gpus = per_node * shape.cores, per_node * shape.gpus
            eligible = len(candidates) if cores >= want_cores and gpus >= want_gpus else 0
            if eligible < shape.nodes:
                also = f" and {want_gpus} GPUs" if want_gpus else ""
                raise UnsatisfiableError(
                    f"need {shape.nodes} node(s) with {want_cores} cores{also} each, "
                    f"only {eligible} eligible"
                )
        else:
            fit = len(candidates) * (cores // shape.cores)
            if fit < shape.slots:
                raise UnsatisfiableError(
                    f"need {shape.slots} slot(s) of {shape.cores} core(s), only {fit} such slot(s) "
                    f"available (total cores: {len(candidates) * cores})"
                )
            if shape.gpus:
                fit = len(candidates) * min(cores // shape.cores, gpus // shape.gpus)
                if fit < shape.slots:
                    raise UnsatisfiableError(
                        f"need {shape.slots} slot(s) with {shape.gpus} GPU(s) each, only {fit} "
                        f"available (total GPUs: {len(candidates) * gpus})"
                    )

    def allocate(self, shape: Shape) -> Allocation | None:
        """Allocate the resources of `shape`; `None` if they are not free now."""
        candidates = [n for n in self._nodes if matches(n.rank, shape.constraints)]
        candidates.sort(key=lambda node: (-len(node.cores), node.rank))  # spread the load
        plan = self._plan(shape, candidates)
        if plan is None:
            return None
        return tuple(
            self._take(node, slots, shape)
            for node, slots in sorted(plan, key=lambda entry: entry[0].rank)
        )

    def free(self, allocation: Allocation) -> None:
        """Free an allocation."""
        for share in allocation:
            node = self._nodes[share.rank]
            node.cores.update(share.cores)
            node.gpus.update(share.gpus)

    def _plan(self, shape: Shape, candidates: list[_Node]) -> list[tuple[_Node, int]] | None:
        plan: list[tuple[_Node, int]] = []
        if shape.exclusive:
            candidates = [n for n in candidates if self._idle(n)]
        if shape.nodes:
            per_node = shape.slots // shape.nodes
            fitting = [n for n in candidates if _slots_free(n, shape) >= per_node]
            if len(fitting) >= shape.nodes:
                plan = [(node, per_node) for node in fitting[: shape.nodes]]
            return plan or None
        missing = shape.slots
        for node in candidates:
            slots = min(missing, _slots_free(node, shape))
            if slots:
                plan.append((node, slots))
                missing -= slots
            if not missing:
                return plan
        return None

    def _idle(self, node: _Node) -> bool:
        return len(node.cores) == self.cores_per_node and len(node.gpus) == self.gpus_per_node

    @staticmethod
    def _take(node: _Node, slots: int, shape: Shape) -> NodeShare:
        count = len(node.cores) if shape.exclusive else slots * shape.cores
        cores = tuple(sorted(node.cores)[:count])
        count = len(node.gpus) if shape.exclusive else slots * shape.gpus
        gpus = tuple(sorted(node.gpus)[:count])
        node.cores.difference_update(cores)
        node.gpus.difference_update(gpus)
        return NodeShare(node.rank, cores, gpus, slots)


def _slots_free(node: _Node, shape: Shape) -> int:
    by_cores = len(node.cores) // shape.cores
    return min(by_cores, len(node.gpus) // shape.gpus) if shape.gpus else by_cores


def summary(allocation: Allocation) -> str:
    """Return an allocation as Flux's schedulers write it: `rank[0-1]/core0`."""
    by_ids: dict[str, list[int]] = {}
    for share in allocation:
        kinds = [f"core{idset.encode(share.cores)}"]
        if share.gpus:
            kinds.append(f"gpu{idset.encode(share.gpus)}")
        by_ids.setdefault(",".join(kinds), []).append(share.rank)
    return " ".join(f"rank{idset.encode(ranks)}/{ids}" for ids, ranks in by_ids.items())


def matches(rank: int, constraint: dict[str, Any] | None) -> bool:
    """Return whether the virtual node `rank` meets a constraint (RFC 31).

    All nodes have this machine's host name, and none has a property.
    """
    for operator, values in (constraint or {}).items():
        match operator:
            case "and":
                met = all(matches(rank, value) for value in values)
            case "or":
                met = any(matches(rank, value) for value in values)
            case "not":
                met = not all(matches(rank, value) for value in values)
            case "ranks":
                met = any(idset.contains(value, rank) for value in values)
            case "hostlist":
                here = socket.gethostname()
                met = any(here in expand(value) for value in values)
            case _:  # properties
                met = all(str(value).startswith("^") for value in values)
        if not met:
            return False
    return True
