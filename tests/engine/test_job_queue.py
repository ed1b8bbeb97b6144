"""What waits and what is taken, by the events of jobs alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.engine.demand import Amount, Demand, JobDemand, placement_in
from flux_endpoint.engine.job_queue import MOST_WAITING, JobQueue


def queue_of(*jobids: int) -> JobQueue:
    queue = JobQueue(complete=True)
    for jobid in jobids:
        queue.add(jobid, Demand(str(jobid)))
    return queue


def feed(queue: JobQueue, jobid: int, *events: tuple[str, dict[str, object]]) -> None:
    for name, context in events:
        placement = {"rank 0": Amount(2), "rank 1": Amount(1)} if name == "alloc" else {}
        queue.event(jobid, name, context, placement)


def demand(queue: JobQueue) -> JobDemand:
    news = queue.news()
    assert news is not None
    return news


def names(queue: JobQueue) -> list[str]:
    return [each.name for each in demand(queue).waiting]


ELIGIBLE = ("submit", {"urgency": 16}), ("priority", {"priority": 16})


@pytest.mark.parametrize(
    "events",
    [
        (),
        (("submit", {"urgency": 16}), ("depend", {})),
        (("submit", {"urgency": 0}), ("priority", {"priority": 0})),
        (*ELIGIBLE, ("urgency", {"urgency": 0}), ("priority", {"priority": 0})),
        (*ELIGIBLE, ("exception", {"type": "alloc", "severity": 0})),
        (*ELIGIBLE, ("alloc", {}), ("free", {}), ("priority", {"priority": 16})),
        (*ELIGIBLE, ("exception", {"type": "cancel", "severity": 0}), ("clean", {})),
    ],
    ids=["unknown", "depends", "held", "held later", "refused", "has run", "is gone"],
)
def test_a_job_that_does_not_wait_for_resources_has_no_demand(events):
    queue = queue_of(1)
    feed(queue, 1, *events)
    assert demand(queue) == JobDemand(complete=True)


def test_an_exception_that_does_not_end_a_job_changes_nothing():
    queue = queue_of(1)
    feed(queue, 1, *ELIGIBLE, ("exception", {"type": "noted", "severity": 1}))
    assert names(queue) == ["1"]


def test_jobs_wait_in_the_order_of_their_priorities_then_of_their_submission():
    queue = queue_of(3, 1, 2)
    for jobid in (3, 1):
        feed(queue, jobid, *ELIGIBLE)
    feed(queue, 2, ("submit", {"urgency": 9}), ("priority", {"priority": 9}))
    assert names(queue) == ["1", "3", "2"]
    feed(queue, 2, ("urgency", {"urgency": 20}), ("priority", {"priority": 20}))
    assert names(queue) == ["2", "1", "3"]


def test_a_job_keeps_the_moment_from_which_on_it_waited_while_its_priority_changes():
    queue = queue_of(1)
    feed(queue, 1, *ELIGIBLE)
    since = demand(queue).waiting[0].since
    feed(queue, 1, ("priority", {"priority": 17}), ("urgency", {"urgency": 17}))
    feed(queue, 1, ("priority", {"priority": 18}))
    assert [(each.since, each.urgency) for each in demand(queue).waiting] == [(since, 17)]


def test_the_least_urgency_is_of_all_that_wait_and_not_of_those_that_room_is_made_for():
    queue = queue_of(*range(MOST_WAITING + 2))
    for jobid in range(MOST_WAITING + 1):
        feed(queue, jobid, *ELIGIBLE)
    feed(queue, MOST_WAITING + 1, ("submit", {"urgency": 3}), ("priority", {"priority": 3}))
    told = demand(queue)
    assert len(told.waiting) == MOST_WAITING
    assert told.least_urgency == 3


def test_repeated_events_count_once():
    queue = queue_of(1)
    feed(queue, 1, *ELIGIBLE, ("alloc", {}))
    queue.add(1, Demand("1"))
    feed(queue, 1, *ELIGIBLE, ("alloc", {}))
    assert demand(queue).held == {"rank 0": Amount(2), "rank 1": Amount(1)}
    feed(queue, 1, ("free", {}), ("clean", {}))
    assert demand(queue) == JobDemand(complete=True)


def test_nodes_that_are_down_are_taken_whole():
    queue = queue_of(1)
    feed(queue, 1, *ELIGIBLE, ("alloc", {}))
    queue.set_down({"rank 1": Amount(4)})
    assert demand(queue).held == {"rank 0": Amount(2), "rank 1": Amount(4)}
    queue.set_down({})
    assert demand(queue).held == {"rank 0": Amount(2), "rank 1": Amount(1)}


def test_only_changes_are_reported():
    queue = queue_of(1)
    assert queue.news() == JobDemand(complete=True)
    feed(queue, 1, ("submit", {"urgency": 16}))
    assert queue.news() is None
    feed(queue, 1, ("priority", {"priority": 16}))
    assert queue.news() is not None
    assert queue.news() is None


_EVENTS = st.sampled_from(
    [
        ("priority", {"priority": 16}),
        ("priority", {"priority": 0}),
        ("alloc", {}),
        ("exception", {"severity": 0}),
        ("free", {}),
        ("clean", {}),
    ]
)


@given(st.lists(st.tuples(st.integers(0, 3), _EVENTS), max_size=40))
def test_no_events_leave_anything_behind_when_all_jobs_are_gone(told):
    queue = queue_of(0, 1, 2, 3)
    for jobid, event in told:
        feed(queue, jobid, event)
        news = queue.news()
        assert news is None or all(amount.cores > 0 for amount in news.held.values())
    for jobid in range(4):
        queue.forget(jobid)
    assert queue.news() in (None, JobDemand(complete=True))
    queue.set_down({"rank 0": Amount(1)})
    assert demand(queue) == JobDemand(held={"rank 0": Amount(1)}, complete=True)


# Reading what Flux has of jobs


def slot(count: object = 1, cores: object = 1, **more: object) -> dict[str, object]:
    within = [{"type": "core", "count": cores}]
    within += [{"type": kind, "count": number} for kind, number in more.items()]
    return {"type": "slot", "count": count, "label": "task", "with": within}


def node(count: object, *within: object, **more: object) -> dict[str, object]:
    return {"type": "node", "count": count, "with": list(within), **more}


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ([slot(3, 2)], Demand("job", None, 3, Amount(2))),
        ([slot(1, 1, gpu=2)], Demand("job", None, 1, Amount(1, 2))),
        ([node(4, slot(2, 3))], Demand("job", 4, 2, Amount(3))),
        ([node(4, slot(), exclusive=True)], Demand("job", 4, 1, Amount(1), exclusive=True)),
        ([node(2, {"type": "slot", "count": 1})], Demand("job", 2, 1, Amount(1), exclusive=True)),
        (
            [{"type": "slot", "count": 3, "with": [node(2, {"type": "core", "count": 4})]}],
            Demand("job", 6, 1, Amount(4)),
        ),
        (
            [node(1, {"type": "socket", "count": 2, "with": [slot(1, 4)]})],
            Demand("job", 1, 2, Amount(4)),
        ),
        ([node({"min": 2, "max": 9}, slot("2-4", 1))], Demand("job", 2, 2, Amount(1))),
    ],
)
def test_a_jobspec_says_what_a_job_asks_for(resources, wanted):
    assert Demand.of_jobspec("job", {"resources": resources}) == wanted


@pytest.mark.parametrize(
    "jobspec",
    [{}, None, {"resources": 3}, {"resources": [{"count": 1}]}, {"resources": [slot("many")]}],
)
def test_a_job_of_an_unknown_shape_asks_for_a_core(jobspec):
    assert Demand.of_jobspec("job", jobspec) == Demand("job")


def test_an_allocation_says_what_a_job_got_of_which_node():
    shares = [
        {"rank": "0-1", "children": {"core": "0-3", "gpu": "0"}},
        {"rank": "3", "children": {"core": "0,2"}},
    ]
    whole = Amount(4, 1)
    found = placement_in({"version": 1, "execution": {"R_lite": shares}})
    assert found == {"rank 0": whole, "rank 1": whole, "rank 3": Amount(2)}


@pytest.mark.parametrize("unknown", [None, {}, {"execution": {"R_lite": [{"rank": "x"}]}}])
def test_an_invalid_allocation_has_no_placement(unknown):
    assert placement_in(unknown) == {}
