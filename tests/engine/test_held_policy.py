"""Which tasks share held allocations, and how many are held."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from engine_world import buffer_of

from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.demand import Demand, JobDemand
from flux_endpoint.engine.held.observations import Observations
from flux_endpoint.engine.held.policy import (
    LIFETIME,
    LONG,
    Durations,
    Others,
    TaskShape,
    shape_of,
    wanted_hosts,
)
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.local.future import LocalExecutorFuture
from flux_endpoint.engine.local.pmi import MAX_RANKS
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.functions import MPIFunction, ShellFunction

TWO = {"num_nodes": 1, "ranks_per_node": 2}
RESOURCES = Resources(nodes=2, cores=8, gpus=2)
MANY_CORES = Resources(nodes=1, cores=1024, gpus=0)


def double(x):
    return 2 * x


def shape(function, spec, resources=RESOURCES):
    tasks = TaskSettings("e", "/e/work", run_in_sandbox=False, allowed_serializers=None)
    task = EngineTask("t", "f", buffer_of(function), spec)
    return shape_of(Planner("flux", Path("/e/jobs"), tasks).plan(task), spec, resources)


def test_commands_on_ranks_of_one_node_share_allocations():
    assert shape(MPIFunction("app"), TWO) == TaskShape(2, 1)
    assert shape(MPIFunction("app", walltime=3), {"num_ranks": 4}) == TaskShape(4, 1)
    spec = TWO | {"cores_per_rank": 2, "queue": "q", "environment": {"A": "1"}, "walltime": 9}
    assert shape(MPIFunction("app"), spec) == TaskShape(2, 2, "q")


@pytest.mark.parametrize(
    ("function", "spec"),
    [
        (MPIFunction("app"), {"num_ranks": 1}),
        (MPIFunction("app"), {"num_nodes": 2, "ranks_per_node": 2}),
        (MPIFunction("app"), {"num_ranks": 5}),  # no node has as many cores
        (MPIFunction("app | cat"), TWO),  # a script
        (ShellFunction("app"), TWO),
        (double, TWO),
        (MPIFunction("app"), TWO | {"gpus_per_rank": 1}),
        (MPIFunction("app"), TWO | {"urgency": 20}),
        (MPIFunction("app"), TWO | {"job_name": "mine"}),
        (MPIFunction("app"), TWO | {"shell_options": {"verbose": 1}}),
        (MPIFunction("app"), TWO | {"constraints": {"properties": ["x"]}}),
        (MPIFunction("app"), TWO | {"begin_time": "+1h"}),
        (MPIFunction("app"), TWO | {"exclusive": True}),
        (MPIFunction("app"), TWO | {"tasks_per_slot": 2}),
        (MPIFunction("app"), TWO | {"walltime": LIFETIME + 1}),
        (MPIFunction("app", walltime=LIFETIME + 1), TWO),
    ],
    ids=lambda value: str(getattr(value, "cmd", getattr(value, "__name__", value))),
)
def test_other_tasks_are_jobs_of_their_own(function, spec):
    assert shape(function, spec) is None


def test_a_host_starts_no_more_ranks_than_it_connects():
    spec = {"num_nodes": 1, "ranks_per_node": MAX_RANKS}
    assert shape(MPIFunction("app"), spec, MANY_CORES) == TaskShape(MAX_RANKS, 1)
    spec["ranks_per_node"] += 1
    assert shape(MPIFunction("app"), spec, MANY_CORES) is None


def test_more_work_gets_more_allocations_up_to_what_fits():
    assert TaskShape(2, 1).capacity(RESOURCES) == 4
    assert wanted_hosts(0.0, waiting=100, capacity=4) == 1
    assert wanted_hosts(2.5, waiting=100, capacity=4) == 3
    assert wanted_hosts(2.5, waiting=2, capacity=4) == 2
    assert wanted_hosts(90.0, waiting=100, capacity=4) == 4


def test_others_are_all_waiting_jobs_but_those_of_held_allocations():
    demand = JobDemand((Demand("1", since=5.0), Demand("2", since=3.0, urgency=17)))
    assert not Others.of(demand, "".__contains__, math.inf).wait
    assert Others.of(demand, "1".__eq__, math.inf) == Others(5.0, are_urgent=False)
    assert Others.of(demand, "2".__eq__, math.inf) == Others(3.0, are_urgent=True)
    assert Others.of(demand, "".__contains__, 7.0).since == 7.0


def test_an_idle_allocation_makes_room_for_each_task_but_tasks_pass_their_like_only():
    observed = Observations(lambda action: action())
    small, large, future = TaskShape(2, 1), TaskShape(4, 1), LocalExecutorFuture(None)
    observed.follow(small, "app", "task", future)
    future._set_jobid(7)
    observed.add_host("8")
    observed.demand(JobDemand((Demand("8", since=1.0),), complete=True))
    assert not observed.anybody.wait
    observed.demand(JobDemand((Demand("7", since=2.0),), complete=True))
    assert observed.anybody.wait
    assert (observed.others(small).wait, observed.others(large).wait) == (False, True)
    future.set_result(0)
    assert observed.others(small).wait


def test_a_program_that_takes_long_is_known_until_it_is_fast_again():
    durations = Durations()
    assert durations.of(TaskShape(2, 1), "app") == 0.0
    durations.exceeds(TaskShape(2, 1), "app", 2.0)
    assert durations.of(TaskShape(2, 1), "app") > LONG
    assert durations.of(TaskShape(2, 1), "other") == 0.0
    for _ in range(3):
        durations.add(TaskShape(2, 1), "app", 0.1)
    assert durations.of(TaskShape(2, 1), "app") < LONG
