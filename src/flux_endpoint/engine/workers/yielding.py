"""Which managers make room for waiting jobs. Pure: pool state in, decision out.

The model of a node has the known resources of our managers and of jobs. It may be incomplete: Flux
may report the endpoint's own jobs only, or a job may not run everywhere. Then a job keeps waiting
although there seems to be room, and more nodes are cleared for it (`extra_nodes`), twice as many
each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.demand import Amount, Demand


@dataclass(frozen=True)
class InstanceNodes:
    """The instance: its nodes and their resources.

    Attributes:
        nodes: number of nodes.
        node: resources of a node that is not in `each`.
        each: resources of the other nodes, by name.
    """

    nodes: int
    node: Amount
    each: Mapping[str, Amount] = field(default_factory=dict)

    @classmethod
    def of(cls, resources: Resources, nodes: Mapping[str, Amount]) -> InstanceNodes:
        """Return the model of an instance with `resources` on these `nodes`."""
        gpus = resources.gpus // max(1, resources.nodes)
        return cls(resources.nodes, Amount(resources.cores_per_node, gpus), nodes)

    def empty(self, name: str) -> _Node:
        """Return an empty node."""
        return _Node(self.each.get(name, self.node))


@dataclass(frozen=True)
class ResourceHolder:
    """A manager that has resources.

    Attributes:
        name: its id.
        node: its node.
        amount: its resources there.
        running: number of its running tasks.
        leaving: whether it is draining or ending.
        stays: whether it must not be asked to leave yet.
    """

    name: str
    node: str
    amount: Amount
    running: int = 0
    leaving: bool = False
    stays: bool = False

    @property
    def cost(self) -> tuple[int, bool, int, str]:
        """The cost of its end: first whether it must be waited for, then the work that stops.

        A leaving manager runs ever fewer tasks, so the choice does not alternate between equals.
        """
        return (self.running, not self.leaving, self.amount.cores, self.name)


@dataclass
class _Node:
    capacity: Amount
    #: Resources of others than our managers.
    taken: Amount = field(default_factory=Amount)
    holders: list[ResourceHolder] = field(default_factory=list)

    def free(self, leaving: set[str]) -> Amount:
        rest = self.capacity - self.taken
        for holder in self.holders:
            if holder.name not in leaving:
                rest -= holder.amount
        return rest

    def cheapest(self, demand: Demand, leaving: set[str]) -> list[ResourceHolder] | None:
        """Return the managers that must leave so that `demand` can use this node, or `None`."""
        staying = [h for h in self.holders if h.name not in leaving]
        going: list[ResourceHolder] = []
        if not self.capacity.covers(demand.per_node):
            return None
        if demand.exclusive:
            if self.taken != Amount() or any(h.stays for h in staying):
                return None
            return staying
        free = self.free(leaving)
        for holder in sorted((h for h in staying if not h.stays), key=lambda h: h.cost):
            if free.covers(demand.per_node):
                break
            going.append(holder)
            free += holder.amount
        if not free.covers(demand.per_node):
            return None
        for holder in reversed(going):  # remove those that turned out not to be needed
            if (free - holder.amount).covers(demand.per_node):
                going = [h for h in going if h is not holder]
                free -= holder.amount
        return going


@dataclass(frozen=True)
class Departures:
    """The managers that should leave.

    Attributes:
        managers: their ids, including those that are leaving already.
        served: number of jobs, counted from the first, that can run then, as far as is known.
    """

    managers: frozenset[str]
    served: int


def to_drain(
    demands: Sequence[Demand],
    holders: Iterable[ResourceHolder],
    held: Mapping[str, Amount],
    instance: InstanceNodes,
    extra_nodes: int = 0,
) -> Departures:
    """Return the managers that must leave so that jobs can run.

    Workers are not drained for a job that would still be blocked by other jobs: until these end,
    functions may use the resources. Nor are they drained for the jobs behind it, which must wait
    for it.

    Args:
        demands: waiting jobs, in Flux's scheduling order.
        holders: our managers.
        held: resources of jobs, by node.
        instance: the instance.
        extra_nodes: how many nodes more than it requests are cleared for the first job.
    """
    nodes = _nodes(holders, held, instance)
    leaving: set[str] = set()
    for position, demand in enumerate(demands):
        extra = extra_nodes if position == 0 else 0
        if demand.nodes is None:
            going = _clear_slots(demand, nodes, leaving, extra)
        else:
            going = _clear_nodes(demand, demand.nodes, nodes, leaving, extra)
        if going is None:
            return Departures(frozenset(leaving), position)
        leaving |= going
    return Departures(frozenset(leaving), len(demands))


def room(
    holders: Iterable[ResourceHolder], held: Mapping[str, Amount], instance: InstanceNodes
) -> list[Amount]:
    """Return the free resources of each node, as far as is known."""
    return [node.free(set()) for node in _nodes(holders, held, instance)]


def _nodes(
    holders: Iterable[ResourceHolder], held: Mapping[str, Amount], instance: InstanceNodes
) -> list[_Node]:
    nodes: dict[str, _Node] = {}
    for name, amount in held.items():
        nodes.setdefault(name, instance.empty(name)).taken += amount
    for holder in holders:
        nodes.setdefault(holder.node, instance.empty(holder.node)).holders.append(holder)
    others = chain((name for name in instance.each if name not in nodes), repeat(""))
    empty = (instance.empty(name) for name in islice(others, max(0, instance.nodes - len(nodes))))
    return [*nodes.values(), *empty]


def _cost(holders: Sequence[ResourceHolder]) -> tuple[int, int, int]:
    running = sum(holder.running for holder in holders)
    cores = sum(holder.amount.cores for holder in holders if not holder.leaving)
    return running, cores, len(holders)


def _clear_nodes(
    demand: Demand, count: int, nodes: list[_Node], leaving: set[str], extra: int
) -> set[str] | None:
    options = [(node, node.cheapest(demand, leaving)) for node in nodes]
    able = [(node, going) for node, going in options if going is not None]
    if len(able) < count:
        return None
    able.sort(key=lambda option: _cost(option[1]))
    for node, _ in able[:count]:
        node.taken += node.capacity if demand.exclusive else demand.per_node
    return {holder.name for _, going in able[: count + extra] for holder in going}


def _clear_slots(
    demand: Demand, nodes: list[_Node], leaving: set[str], extra: int
) -> set[str] | None:
    going: set[str] = set()
    movable = [h for n in nodes for h in n.holders if h.name not in leaving and not h.stays]
    movable.sort(key=lambda holder: holder.cost)
    most = sum(_slots(node, demand, leaving | {h.name for h in movable}) for node in nodes)
    if most < demand.slots:
        return None
    wanted = min(most, demand.slots + extra * max(1, _slots(_Node(nodes[0].capacity), demand)))
    for holder in movable:
        if sum(_slots(node, demand, leaving | going) for node in nodes) >= wanted:
            break
        going.add(holder.name)
    for holder in reversed(movable):  # remove those that turned out not to be needed
        fewer = leaving | going - {holder.name}
        if holder.name in going and sum(_slots(n, demand, fewer) for n in nodes) >= wanted:
            going.discard(holder.name)
    missing = demand.slots
    for node in nodes:
        count = min(missing, _slots(node, demand, leaving | going))
        node.taken += Amount(demand.slot.cores * count, demand.slot.gpus * count)
        missing -= count
    return going


def _slots(node: _Node, demand: Demand, leaving: Iterable[str] = ()) -> int:
    free = node.free(set(leaving))
    by_cores = free.cores // demand.slot.cores
    if demand.slot.gpus:
        return max(0, min(by_cores, free.gpus // demand.slot.gpus))
    return max(0, by_cores)
