"""Resources are allocated and freed; jobs wait for them in order of urgency."""

from __future__ import annotations

from typing import Any

import pytest
from worlds import PATIENCE, Gate, Recorder, text


def everything(world, *command: str) -> str:
    """A job that needs all nodes for itself."""
    return text(*command, nodes=world.nodes, exclusive=True)


def start(world, spec: str, **options: Any) -> Recorder:
    recorder = Recorder(world.executor.submit(spec, **options))
    recorder.wait("start")
    return recorder


def end(world, *recorders: Recorder) -> None:
    for recorder in recorders:
        world.cancel(recorder.future.jobid())
    for recorder in recorders:
        recorder.wait("clean")


def submitted(world, spec: str, **options: Any) -> Recorder:
    recorder = Recorder(world.executor.submit(spec, **options))
    recorder.wait("priority")
    return recorder


def where(recorder: Recorder) -> str:
    return recorder.wait("alloc").context["annotations"]["sched"]["resource_summary"]


def test_a_job_waits_until_there_is_room(world):
    first = start(world, everything(world, "sleep", "600"))
    second = submitted(world, text("true"))
    assert "alloc" not in second.names
    end(world, first)
    assert second.future.result(PATIENCE) == 0
    assert second.wait("alloc").timestamp >= first.wait("free").timestamp


def test_jobs_that_fit_run_at_the_same_time(world):
    jobs = [start(world, text("sleep", "600")) for _ in range(world.nodes * world.cores_per_node)]
    assert len({where(job) for job in jobs}) == len(jobs)  # no core is given twice
    one_more = submitted(world, text("true"))
    assert "alloc" not in one_more.names
    end(world, *jobs)
    assert one_more.future.result(PATIENCE) == 0


@pytest.mark.usefixtures("idle")
def test_jobs_are_spread_over_the_nodes(world):
    jobs = [start(world, text("sleep", "600")) for _ in range(world.nodes)]
    assert sorted(where(job) for job in jobs) == [f"rank{i}/core0" for i in range(world.nodes)]
    end(world, *jobs)


@pytest.mark.usefixtures("idle")
def test_an_exclusive_job_has_whole_nodes(world):
    job = start(world, text("sleep", "600", nodes=2, exclusive=True))
    cores = f"core[0-{world.cores_per_node - 1}]" if world.cores_per_node > 1 else "core0"
    assert where(job) == f"rank[0-1]/{cores}"
    end(world, job)


@pytest.mark.usefixtures("idle")
def test_slots_lie_on_nodes_as_asked(world):
    job = start(world, text("sleep", "600", nodes=world.nodes, slots=1))
    assert where(job) == f"rank[0-{world.nodes - 1}]/core0"
    end(world, job)


def in_order_of_start(world, urgencies: list[int]) -> list[int]:
    blocker = start(world, everything(world, "sleep", "600"))
    waiting = [submitted(world, everything(world, "true"), urgency=u) for u in urgencies]
    end(world, blocker)
    for job in waiting:
        assert job.future.result(PATIENCE) == 0
    order = sorted(range(len(waiting)), key=lambda i: waiting[i].wait("alloc").timestamp)
    return [urgencies[i] for i in order]


def test_the_more_urgent_job_runs_first(world):
    assert in_order_of_start(world, [8, 31, 1, 20]) == [31, 20, 8, 1]


def test_jobs_of_equal_urgency_run_in_order_of_submission(world):
    blocker = start(world, everything(world, "sleep", "600"))
    waiting = [submitted(world, everything(world, "true")) for _ in range(3)]
    end(world, blocker)
    stamps = [job.wait("alloc").timestamp for job in waiting]
    assert stamps == sorted(stamps)


def test_a_job_that_does_not_fit_is_not_overtaken(world):
    blocker = start(world, text("sleep", "600"))
    large = submitted(world, everything(world, "true"))
    small = submitted(world, text("true"))
    assert "alloc" not in small.names
    end(world, blocker)
    assert small.wait("alloc").timestamp >= large.wait("free").timestamp


def test_a_job_of_urgency_0_is_held(world):
    held = submitted(world, text("true"), urgency=0)
    assert held.wait("priority").context == {"priority": 0}
    assert world.executor.submit(text("true")).result(PATIENCE) == 0
    assert "alloc" not in held.names
    end(world, held)


def test_a_job_of_urgency_31_has_the_highest_priority(world):
    job = submitted(world, text("true"), urgency=31)
    assert job.wait("priority").context == {"priority": 2**32 - 1}
    assert job.future.result(PATIENCE) == 0


def test_a_waiting_job_takes_no_signal(world):
    held = submitted(world, text("true"), urgency=0)
    with pytest.raises(OSError, match="job is not running"):
        world.kill(held.future.jobid(), 15)
    end(world, held)


@pytest.mark.usefixtures("idle")
def test_constraints_choose_nodes(world):
    job = submitted(world, text("true", constraints={"ranks": ["2-3"]}))
    assert where(job) == "rank2/core0"
    missing = Gate()
    world.executor.submit(text("true", constraints={"properties": ["fast"]})).add_done_callback(
        missing
    )
    assert missing.wait()[0].exception().type == "alloc"
    job.wait("clean")
