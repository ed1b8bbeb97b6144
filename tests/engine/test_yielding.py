"""Who makes room for a job that waits: the policy alone, on numbers."""

from __future__ import annotations

import math
import time
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_endpoint.engine.demand import Amount, Demand, JobDemand, placement_of
from flux_endpoint.engine.workers.manager_registry import ManagerRegistry
from flux_endpoint.engine.workers.sizing import Limits, Piece
from flux_endpoint.engine.workers.yielding import (
    Departures,
    InstanceNodes,
    ResourceHolder,
    to_drain,
)
from flux_endpoint.protocol.resources import parse_resources

SITE = InstanceNodes(4, Amount(4))


def holder(name: str, node: str, cores: int = 4, running: int = 0, **more: bool) -> ResourceHolder:
    return ResourceHolder(name, node, Amount(cores), running, **more)


def whole(nodes: int) -> Demand:
    return Demand("job", nodes=nodes, exclusive=True)


def leaving(*args, **kwargs) -> set[str]:
    return set(to_drain(*args, **kwargs).managers)


ON_ALL = [holder(str(n), f"n{n}", running=n) for n in range(4)]

# What a job asks for


@pytest.mark.parametrize(
    ("specification", "nodes", "slots", "exclusive"),
    [
        ({"num_ranks": 3}, None, 3, False),
        ({"num_nodes": 2, "ranks_per_node": 2}, 2, 2, False),
        ({"num_nodes": 2, "num_ranks": 3}, 2, 2, False),
        ({"num_nodes": 2, "exclusive": True}, 2, 1, True),
        ({"num_nodes": 1, "num_ranks": 4, "tasks_per_slot": 2}, 1, 2, False),
    ],
)
def test_a_demand_is_what_the_jobspec_asks_for(specification, nodes, slots, exclusive):
    demand = Demand.of("job", parse_resources({"cores_per_rank": 2, **specification}))
    assert (demand.nodes, demand.slots, demand.exclusive) == (nodes, slots, exclusive)
    assert demand.per_node == Amount(2 * slots)


@pytest.mark.parametrize(
    ("summary", "placement"),
    [
        ("rank0/core0", {"rank 0": Amount(1)}),
        ("rank[0-1]/core[0-3],gpu0", {"rank 0": Amount(4, 1), "rank 1": Amount(4, 1)}),
        ("rank0/core[0,2-3] rank5/core1", {"rank 0": Amount(3), "rank 5": Amount(1)}),
        ("nonsense", {}),
    ],
)
def test_a_placement_is_read_from_the_schedulers_summary(summary, placement):
    context = {"annotations": {"sched": {"resource_summary": summary}}}
    assert placement_of(context) == placement


@pytest.mark.parametrize("context", [{}, {"annotations": None}, {"annotations": {"sched": {}}}])
def test_without_a_summary_the_placement_is_unknown(context):
    assert placement_of(context) == {}


# Who leaves


def test_no_manager_is_drained_where_there_is_room():
    assert leaving([whole(2)], ON_ALL[:2], {}, SITE) == set()
    assert leaving([Demand("job", nodes=4, slots=2)], [holder("a", "n", 2)], {}, SITE) == set()


def test_only_as_many_managers_are_drained_as_the_job_needs():
    assert leaving([whole(2)], ON_ALL, {}, SITE) == {"0", "1"}
    assert leaving([whole(4)], ON_ALL, {}, SITE) == {"0", "1", "2", "3"}


def test_on_a_shared_node_only_managers_whose_cores_are_needed_are_drained():
    site = InstanceNodes(1, Amount(8))
    shared = [holder("a", "n", 2, 2), holder("b", "n", 4, 1), holder("c", "n", 2, 0)]
    assert leaving([Demand("job", slots=2)], shared, {}, site) == {"c"}
    assert leaving([Demand("job", slots=4)], shared, {}, site) == {"b"}
    assert leaving([Demand("job", slots=8)], shared, {}, site) == {"a", "b", "c"}


def test_slots_on_any_node_come_from_the_least_busy_managers():
    assert leaving([Demand("job", nodes=None, slots=3)], ON_ALL, {}, SITE) == {"0"}
    assert leaving([Demand("job", nodes=None, slots=8)], ON_ALL, {}, SITE) == {"0", "1"}


def test_a_slot_must_be_on_one_node():
    holders = [holder(str(n), f"n{n}", 1, n) for n in range(4)]
    holders += [holder(f"{n}+", f"n{n}", 3, 9) for n in range(4)]
    demand = Demand("job", nodes=None, slots=1, slot=Amount(4))
    assert leaving([demand], holders, {}, SITE) == {"0", "0+"}


def test_gpus_are_counted_like_cores():
    site = InstanceNodes(2, Amount(4, 2))
    holders = [ResourceHolder("a", "n0", Amount(1, 1)), ResourceHolder("b", "n1", Amount(1, 2))]
    demand = Demand("job", nodes=1, slot=Amount(1, 2))
    assert leaving([demand], holders, {}, site) == {"a"}
    anywhere = Demand("job", nodes=None, slots=2, slot=Amount(1, 2))
    assert leaving([anywhere], holders, {}, site) == {"a", "b"}


def test_a_draining_manager_is_preferred_over_an_equal_one():
    holders = [holder("a", "n0", running=1), holder("b", "n1", running=1, leaving=True)]
    assert leaving([whole(1)], holders, {}, InstanceNodes(2, Amount(4))) == {"b"}


def test_no_manager_is_drained_for_a_job_blocked_by_other_jobs():
    held = {"n0": Amount(1)}
    assert to_drain([whole(4)], ON_ALL[1:], held, SITE) == Departures(frozenset(), 0)
    assert leaving([whole(3)], ON_ALL[1:], held, SITE) == {"1", "2", "3"}


def test_no_manager_is_drained_for_jobs_behind_a_blocked_one():
    demands = [whole(4), whole(1)]
    assert leaving(demands, ON_ALL[1:], {"n0": Amount(1)}, SITE) == set()


def test_several_jobs_get_room_side_by_side():
    site = InstanceNodes(4, Amount(4))
    assert leaving([whole(1), Demand("b", slots=3)], ON_ALL, {}, site) == {"0", "1"}
    assert leaving([Demand("a", slots=2), Demand("b", slots=2)], ON_ALL, {}, site) == {"0"}
    assert to_drain([whole(3), whole(2)], ON_ALL, {}, site).served == 1


def test_a_manager_that_must_stay_is_not_drained():
    holders = [holder("a", "n0", stays=True), holder("b", "n1", running=4)]
    site = InstanceNodes(2, Amount(4))
    assert leaving([whole(1)], holders, {}, site) == {"b"}
    assert to_drain([whole(2)], holders, {}, site) == Departures(frozenset(), 0)


def test_a_job_that_still_waits_gets_further_nodes_cleared():
    """Two nodes seem to be empty, but it may not run there."""
    assert leaving([whole(2)], ON_ALL[2:], {}, SITE) == set()
    assert leaving([whole(2)], ON_ALL[2:], {}, SITE, extra_nodes=1) == {"2"}
    assert leaving([whole(2)], ON_ALL[2:], {}, SITE, extra_nodes=100) == {"2", "3"}
    anywhere = Demand("job", nodes=None, slots=2)
    assert leaving([anywhere], ON_ALL[1:], {}, SITE, extra_nodes=100) == {"1", "2", "3"}


NO_NODE_HAS_IT = [
    Demand("job", nodes=1, slots=6),
    Demand("job", nodes=1, slot=Amount(1, 1)),
    Demand("job", nodes=1, slots=6, exclusive=True),
    Demand("job", nodes=None, slots=1, slot=Amount(6)),
    Demand("job", nodes=5),
    Demand("job", nodes=None, slots=17),
]


@pytest.mark.parametrize("demand", NO_NODE_HAS_IT)
def test_no_manager_is_drained_for_a_job_larger_than_the_instance(demand):
    assert to_drain([demand], ON_ALL, {}, SITE) == Departures(frozenset(), 0)


@pytest.mark.parametrize("demand", [NO_NODE_HAS_IT[0], *NO_NODE_HAS_IT[2:4]])
def test_a_job_that_fits_the_larger_node_only_gets_that_one_cleared(demand):
    site = InstanceNodes(4, Amount(4), {"n2": Amount(8, 2)})
    assert leaving([demand], ON_ALL, {}, site) == {"2"}


# In general

amounts = st.integers(1, 4)


@st.composite
def situations(draw):
    nodes = draw(st.integers(1, 4))
    holders, held = [], {}
    for n in range(nodes):
        free = 4
        if draw(st.booleans()):
            cores = draw(st.integers(1, 4))
            held[f"n{n}"] = Amount(cores)
            free -= cores
        while free and draw(st.booleans()):
            cores = draw(st.integers(1, free))
            free -= cores
            more = {"stays": draw(st.booleans()), "leaving": draw(st.booleans())}
            running = draw(st.integers(0, cores))
            holders.append(holder(f"{len(holders)}", f"n{n}", cores, running, **more))
    anywhere = draw(st.booleans())
    cores = draw(amounts)
    fitting = 4 // cores
    demand = Demand(
        "job",
        nodes=None if anywhere else draw(st.integers(1, nodes)),
        slots=draw(st.integers(1, nodes * fitting if anywhere else fitting)),
        slot=Amount(cores),
        exclusive=not anywhere and draw(st.booleans()),
    )
    return InstanceNodes(nodes, Amount(4)), demand, holders, held


def fits(site, demand, holders, held) -> bool:
    """Whether Flux could run it if only these were there."""
    free = {f"n{n}": 4 for n in range(site.nodes)}
    for name, amount in held.items():
        free[name] -= amount.cores
    for each in holders:
        free[each.node] -= each.amount.cores
    if demand.nodes is None:
        return sum(cores // demand.slot.cores for cores in free.values()) >= demand.slots
    need = 4 if demand.exclusive else demand.per_node.cores
    return sum(1 for cores in free.values() if cores >= need) >= demand.nodes


def without(holders, names):
    return [each for each in holders if each.name not in names]


@settings(deadline=None)
@given(situations())
def test_the_drained_managers_are_sufficient_and_none_is_needless(situation):
    site, demand, holders, held = situation
    departures = to_drain([demand], holders, held, site)
    movable = {each.name for each in holders if not each.stays}
    assert departures.managers <= movable
    if departures.served:
        assert fits(site, demand, without(holders, departures.managers), held)
        for name in departures.managers:
            assert not fits(site, demand, without(holders, departures.managers - {name}), held)
    else:
        assert not departures.managers
        assert not fits(site, demand, without(holders, movable), held)


@settings(deadline=None)
@given(situations())
def test_busy_managers_are_not_drained_if_idle_ones_suffice(situation):
    site, demand, holders, held = situation
    departures = to_drain([demand], holders, held, site)
    idle = {each.name for each in holders if not each.stays and not each.running}
    if demand.exclusive and fits(site, demand, without(holders, idle), held):
        assert departures.managers <= idle


@settings(deadline=None)
@given(situations(), st.integers(0, 3))
def test_clearing_more_nodes_keeps_room_for_the_job(situation, blind):
    site, demand, holders, held = situation
    departures = to_drain([demand], holders, held, site, blind)
    assert departures.served == to_drain([demand], holders, held, site).served
    if departures.served:
        assert fits(site, demand, without(holders, departures.managers), held)


@settings(deadline=None)
@given(situations())
def test_whole_nodes_are_cleared_where_the_fewest_tasks_run(situation):
    site, demand, holders, held = situation
    if not demand.exclusive:
        return
    departures = to_drain([demand], holders, held, site)
    if not departures.served:
        return
    movable = [each for each in holders if not each.stays]
    price = sum(each.running for each in movable if each.name in departures.managers)
    for count in range(len(movable) + 1):
        for some in combinations(movable, count):
            if fits(site, demand, without(holders, {each.name for each in some}), held):
                assert sum(each.running for each in some) >= price


# Whose jobs


def test_a_complete_demand_is_not_replaced_by_an_incomplete_one():
    registry = ManagerRegistry(Limits(1, 4, 4), SITE, 60.0)
    own = JobDemand((Demand("own", urgency=9),), least_urgency=9)
    registry.demand(own)
    assert registry.urgency == 9
    registry.demand(JobDemand((Demand("all", urgency=5),), complete=True, least_urgency=5))
    registry.demand(own)
    assert registry.urgency == 5
    registry.demand(JobDemand(complete=True))
    assert registry.urgency == 16


# What comes back


def test_idle_workers_take_what_a_job_left_only_when_no_job_follows_it():
    registry = ManagerRegistry(Limits(2, 2, 2), InstanceNodes(1, Amount(2)), 60.0)
    workers = [Piece(2, permanent=True)]
    assert registry.missing(0, time.monotonic()) == workers
    registry.demand(JobDemand((Demand("first"),), complete=True))
    registry.demand(JobDemand(complete=True))
    now = time.monotonic()
    assert registry.missing(0, now) == []
    due = max(moment for moment in registry.moments(now) if moment != math.inf)
    assert registry.missing(0, due) == workers
    registry.demand(JobDemand((Demand("second"),), complete=True))
    assert registry.missing(0, due + 1) == []
    registry.demand(JobDemand(complete=True))
    assert registry.missing(0, due) == []


def test_workers_that_a_function_waits_for_start_although_a_job_has_just_ended():
    registry = ManagerRegistry(Limits(2, 2, 2), InstanceNodes(1, Amount(2)), 60.0)
    registry.demand(JobDemand((Demand("job"),), complete=True))
    registry.demand(JobDemand(complete=True))
    now = time.monotonic()
    assert registry.missing(1, now) == []  # others may arrive together with it
    due = min(moment for moment in registry.moments(now) if moment > now)
    assert due < now + 1
    assert registry.missing(1, due) == [Piece(2, permanent=True)]
