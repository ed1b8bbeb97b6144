"""An engine that is killed again and again: no function that has completed runs again."""

from __future__ import annotations

import random
import time

import pytest
from engine_world import lines_of, manager_processes, marked
from killed_engine import DEATHS
from killing import Endpoint

from flux_endpoint.engine.workers.spool import read_spool
from flux_endpoint.functions import ShellFunction
from waiting import until

#: Kills of an engine in mid-run.
KILLS = 8
#: Workers of the local executor.
WORKERS = 4


def shell(endpoint: Endpoint, name: str, seconds: float) -> ShellFunction:
    return ShellFunction(
        f"echo {name} >> {endpoint.begun}; sleep {seconds}; echo {name} >> {endpoint.completed}"
    )


@pytest.fixture
def endpoint(kind, tmp_path, mark):
    config = {"local_nodes": 2, "local_cores_per_node": WORKERS // 2} if kind == "local" else {}
    return Endpoint(kind, tmp_path, max_nodes=2, **config)


def mixed(endpoint: Endpoint, count: int, chance: random.Random) -> dict[str, str]:
    """Add short and longer functions and commands; return their names by task."""
    names = {}
    for number in range(count):
        name = f"f{number}"
        seconds = chance.choice([0, 0, 0, 0.01, 0.05, 0.4])
        if number % 5 == 4:
            task = endpoint.add(shell(endpoint, name, seconds))
        else:
            task = endpoint.add_work(name, seconds)
        names[task] = name
    return names


def begun_more_than_once(endpoint: Endpoint) -> set[str]:
    begun = lines_of(endpoint.begun)
    return {name for name in begun if begun.count(name) > 1}


def test_no_completed_function_runs_again_however_often_the_engine_is_killed(endpoint, kind, mark):
    chance = random.Random(11)
    names = mixed(endpoint, 400, chance)
    for kill in range(1, KILLS + 1):
        process = endpoint.start()
        target = min(len(names) - 1, len(names) * kill // (KILLS + 1))
        until(lambda target=target: len(lines_of(endpoint.completed)) >= target)
        time.sleep(chance.random() * 0.05)
        endpoint.kill(process)
    endpoint.finish(endpoint.start())
    assert [endpoint.end(task).code for task in names if endpoint.end(task).code] == []
    runs = endpoint.runs()
    assert set(runs) == set(names.values())
    again = sum(count - 1 for count in runs.values())
    if kind == "flux":  # there, what runs goes on
        assert again == 0
        assert begun_more_than_once(endpoint) == set()
    else:  # here, what a worker runs ends with it, be it in the moment before it tells its result
        assert again <= KILLS * WORKERS
    until(lambda: not marked(mark))


@pytest.mark.parametrize("moment", ["a result comes", "a result is recorded"])
def test_a_function_runs_once_though_the_engine_is_killed_when(endpoint, moment):
    assert moment in DEATHS
    tasks = [endpoint.add_work(f"f{n}", 0) for n in range(20)]
    endpoint.await_death(endpoint.start(dies_at=moment))
    endpoint.finish(endpoint.start())
    assert [endpoint.end(task).code for task in tasks if endpoint.end(task).code] == []
    assert endpoint.runs() == {f"f{n}": 1 for n in range(20)}


@pytest.mark.flux
class TestOnFlux:
    @pytest.fixture
    def endpoint(self, flux_uri, tmp_path, mark, monkeypatch):
        monkeypatch.setenv("FLUX_URI", flux_uri)
        return Endpoint("flux", tmp_path, max_nodes=1, workers_per_node=1)

    def test_without_its_agent_a_manager_finishes_what_runs_and_starts_nothing(self, endpoint):
        gate = endpoint.directory / "gate"
        wait = f"echo a >> {endpoint.begun}; while [ ! -e {gate} ]; do sleep 0.05; done"
        first = endpoint.add(ShellFunction(f"{wait}; echo a >> {endpoint.completed}"))
        others = [endpoint.add_work(f"f{n}", 0) for n in range(10)]
        process = endpoint.start()
        endpoint.await_begun(1)
        endpoint.kill(process)
        gate.touch()
        until(lambda: endpoint.runs() == {"a": 1})
        time.sleep(0.5)
        assert endpoint.runs() == {"a": 1}
        endpoint.finish(endpoint.start())
        assert [endpoint.end(task).value for task in others] == [f"f{n}" for n in range(10)]
        assert endpoint.end(first).value.returncode == 0
        assert set(endpoint.runs().values()) == {1}
        assert begun_more_than_once(endpoint) == set()

    def test_a_running_function_continues_under_the_next_agent(self, endpoint):
        task = endpoint.add_work("long", 4)
        process = endpoint.start()
        endpoint.await_begun(1)
        endpoint.kill(process)
        endpoint.finish(endpoint.start())
        assert endpoint.end(task).value == "long"
        assert lines_of(endpoint.begun) == ["long"]

    def test_tasks_that_waited_at_a_manager_are_sent_to_it_again_and_run(self, endpoint):
        gate = endpoint.directory / "gate"
        wait = f"echo a >> {endpoint.begun}; while [ ! -e {gate} ]; do sleep 0.05; done"
        endpoint.add(ShellFunction(wait))
        others = [endpoint.add_work(f"f{n}", 0) for n in range(4)]
        process = endpoint.start()
        endpoint.await_begun(1)
        endpoint.kill(process)
        gate.touch()
        endpoint.finish(endpoint.start(is_late=True))
        assert [endpoint.end(task).value for task in others] == [f"f{n}" for n in range(4)]
        assert set(endpoint.runs().values()) == {1}

    def test_managers_of_another_configuration_finish_and_get_nothing_new(self, endpoint, mark):
        task = endpoint.add_work("long", 3)
        process = endpoint.start()
        endpoint.await_begun(1)
        endpoint.kill(process)
        [before] = manager_processes(mark)
        endpoint.config["run_in_sandbox"] = True
        after = endpoint.add_work("new", 0)
        endpoint.finish(endpoint.start())
        assert endpoint.end(task).value == "long"
        assert endpoint.end(after).value == "new"
        assert endpoint.runs() == {"long": 1, "new": 1}
        assert not before.is_running()

    def test_managers_without_a_new_agent_end_and_leave_their_results(self, endpoint, mark):
        tasks = [endpoint.add_work(f"f{n}", 0) for n in range(5)]
        endpoint.await_death(endpoint.start(dies_at="a result comes", orphan_timeout=0.5))
        until(lambda: not marked(mark))
        done = endpoint.runs().total()
        assert done > 0
        [left] = (endpoint.directory / "engine").glob("workers-*.results")
        assert len(list(read_spool(left))) == done
        endpoint.finish(endpoint.start())
        assert [endpoint.end(task).value for task in tasks] == [f"f{n}" for n in range(5)]
        assert set(endpoint.runs().values()) == {1}
        assert not left.exists()

    def test_workers_that_do_not_answer_are_ended_before_their_tasks_run_again(
        self, endpoint, mark
    ):
        task = endpoint.add_work("f", 0)
        stuck = endpoint.add_work("stuck", 1000)
        process = endpoint.start()
        endpoint.await_begun(2)
        until(lambda: endpoint.recorded() == 1)
        [before] = manager_processes(mark)
        before.suspend()
        endpoint.kill(process)
        del endpoint.tasks[stuck]
        after = endpoint.add_work("new", 0)
        endpoint.finish(endpoint.start(patience=0.5))
        assert not before.is_running()
        assert [endpoint.end(each).value for each in (task, after)] == ["f", "new"]
        assert endpoint.runs() == {"f": 1, "new": 1}
