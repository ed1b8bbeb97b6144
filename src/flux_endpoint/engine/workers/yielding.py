"""Which managers make room for jobs that wait. Pure: the pool says what there is.

Nodes are modelled by what is known of them: what our managers have, and what jobs have. Where that
is too little, because Flux tells us of the endpoint's own jobs only or because a job may not run
everywhere, a job goes on waiting although there seems to be room; then more nodes are cleared for
it (`blind`), twice as many each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.demand import Amount, Demand


@dataclass(frozen=True)
class Site:
    """The instance: how many nodes, and what each has.

    Attributes:
        nodes: how many there are.
        node: what one has that is not in `each`.
        each: what others have, by their names.
    """

    nodes: int
    node: Amount
    each: Mapping[str, Amount] = field(default_factory=dict)

    @classmethod
    def of(cls, resources: Resources, nodes: Mapping[str, Amount]) -> Site:
        """Return what an instance with `resources`, on these `nodes`, is made of."""
        gpus = resources.gpus // max(1, resources.nodes)
        return cls(resources.nodes, Amount(resources.cores_per_node, gpus), nodes)

    def empty(self, name: str) -> _Node:
        """Return a node with nothing on it."""
        return _Node(self.each.get(name, self.node))


@dataclass(frozen=True)
class ResourceHolder:
    """A manager that has resources.

    Attributes:
        name: its id.
        node: which node it is on.
        amount: what it has of it.
        running: how many tasks it runs.
        leaving: whether it is draining or ending.
        stays: whether it must not be asked yet.
    """

    name: str
    node: str
    amount: Amount
    running: int = 0
    leaving: bool = False
    stays: bool = False

    @property
    def cost(self) -> tuple[int, bool, int, str]:
        """What its end costs: first what must be waited for, then what stops for it.

        What leaves runs less and less, so the choice does not swing between two that are alike.
        """
        return (self.running, not self.leaving, self.amount.cores, self.name)


@dataclass
class _Node:
    capacity: Amount
    #: What others than our managers have.
    taken: Amount = field(default_factory=Amount)
    holders: list[ResourceHolder] = field(default_factory=list)

    def free(self, leaving: set[str]) -> Amount:
        rest = self.capacity - self.taken
        for holder in self.holders:
            if holder.name not in leaving:
                rest -= holder.amount
        return rest

    def cheapest(self, demand: Demand, leaving: set[str]) -> list[ResourceHolder] | None:
        """Return who has to leave so that this can be a node of `demand`'s; `None`: it can't."""
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
        for holder in reversed(going):  # those that turned out to be of no use
            if (free - holder.amount).covers(demand.per_node):
                going = [h for h in going if h is not holder]
                free -= holder.amount
        return going


@dataclass(frozen=True)
class Departures:
    """Who has to leave.

    Attributes:
        managers: their ids, those included that leave already.
        served: how many of the jobs, from the first on, can run then, as far as is known.
    """

    managers: frozenset[str]
    served: int


def to_drain(
    demands: Sequence[Demand],
    holders: Iterable[ResourceHolder],
    held: Mapping[str, Amount],
    site: Site,
    blind: int = 0,
) -> Departures:
    """Return the managers that have to leave so that jobs can run.

    Nobody leaves for a job that could not run all the same, because other jobs have what it needs:
    until they end, functions may use what is left. Nor for the jobs behind it, which have to wait
    for it.

    Args:
        demands: jobs that wait, in the order in which Flux looks at them.
        holders: our managers.
        held: what the endpoint's jobs have, by node.
        site: the instance.
        blind: how many nodes more than it asks for are cleared for the first job.
    """
    nodes = _nodes(holders, held, site)
    leaving: set[str] = set()
    for position, demand in enumerate(demands):
        extra = blind if position == 0 else 0
        if demand.nodes is None:
            going = _clear_slots(demand, nodes, leaving, extra)
        else:
            going = _clear_nodes(demand, demand.nodes, nodes, leaving, extra)
        if going is None:
            return Departures(frozenset(leaving), position)
        leaving |= going
    return Departures(frozenset(leaving), len(demands))


def room(holders: Iterable[ResourceHolder], held: Mapping[str, Amount], site: Site) -> list[Amount]:
    """Return what is free on each node, as far as is known."""
    return [node.free(set()) for node in _nodes(holders, held, site)]


def _nodes(
    holders: Iterable[ResourceHolder], held: Mapping[str, Amount], site: Site
) -> list[_Node]:
    nodes: dict[str, _Node] = {}
    for name, amount in held.items():
        nodes.setdefault(name, site.empty(name)).taken += amount
    for holder in holders:
        nodes.setdefault(holder.node, site.empty(holder.node)).holders.append(holder)
    others = chain((name for name in site.each if name not in nodes), repeat(""))
    empty = (site.empty(name) for name in islice(others, max(0, site.nodes - len(nodes))))
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
    for holder in reversed(movable):  # those that turned out to be of no use
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
