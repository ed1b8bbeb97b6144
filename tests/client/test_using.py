"""`using`: views of an Executor with resources of their own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint import Executor, MPIFunction
from flux_endpoint.protocol.resources import ResourceSpecificationError
from flux_endpoint.protocol.run_options import RunOptionsError

TIMEOUT = 20


def double(x: int) -> int:
    return 2 * x


def sent(service: Any) -> list[tuple[int, Any]]:
    """Return the number of tasks in each request, and their resources."""
    bodies = [each.body for each in service.submissions()]
    return [
        (sum(map(len, body["tasks"].values())), body.get("resource_specification"))
        for body in bodies
    ]


def test_a_view_has_its_own_resources(service: Any, executor: Executor) -> None:
    executor.resource_specification = {"num_nodes": 1, "walltime": "1h"}
    large = executor.using(num_nodes=2, walltime=None)
    larger = large.using(ranks_per_node=4)
    on_workers = larger.using(num_nodes=None, ranks_per_node=None)
    futures = [each.submit(double, 1) for each in (executor, large, larger, on_workers)]
    futures.append(large.submit_to_registered_function("4b116d3c-1703-4f8f-9f6f-39921e5864df"))
    for future in futures:
        assert future.wait_submitted(TIMEOUT)
    counted: dict[str, int] = {}
    for count, resources in sent(service):
        counted[str(resources)] = counted.get(str(resources), 0) + count
    assert counted == {
        "{'num_nodes': 1, 'walltime': '1h'}": 1,
        "{'num_nodes': 2}": 2,
        "{'num_nodes': 2, 'ranks_per_node': 4}": 1,
        "None": 1,
    }
    assert executor.resource_specification == {"num_nodes": 1, "walltime": "1h"}


def test_a_view_does_not_change(executor: Executor) -> None:
    view = executor.using(num_nodes=2)
    specification = view.resource_specification
    assert specification == {"num_nodes": 2}
    specification["num_nodes"] = 3
    executor.resource_specification = {"num_nodes": 4}
    assert view.resource_specification == {"num_nodes": 2}
    with pytest.raises(AttributeError):
        view.resource_specification = None  # type: ignore[misc]
    assert "with {'num_nodes': 2}" in repr(view)


def test_wrong_options_are_refused_at_once(executor: Executor) -> None:
    with pytest.raises(ResourceSpecificationError, match="num_nodes"):
        executor.using(nodes=2)
    with pytest.raises(ResourceSpecificationError, match="walltime"):
        executor.using(walltime="soon")


def test_the_end_of_a_view_does_not_end_its_executor(service: Any, executor: Executor) -> None:
    with executor.using(num_nodes=1) as view:
        view.submit(double, 1)
    view.shutdown()
    assert executor.submit(double, 2).wait_submitted(TIMEOUT)


def test_an_mpi_function_of_a_view_has_resources(service: Any, executor: Executor) -> None:
    view = executor.using(num_nodes=1)
    assert view.submit(MPIFunction("true")).wait_submitted(TIMEOUT)  # warnings are errors
    with pytest.warns(UserWarning, match="resource_specification") as caught:
        executor.submit(MPIFunction("true"))
    assert caught[0].filename == __file__


def test_threads_share_an_executor_with_views(service: Any, executor: Executor) -> None:
    def submit(nodes: int) -> None:
        view = executor.using(num_nodes=nodes)
        for n in range(20):
            assert view.submit(double, n).wait_submitted(TIMEOUT)

    threads = [threading.Thread(target=submit, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = dict.fromkeys((1, 2, 3), 0)
    for count, resources in sent(service):
        counts[resources["num_nodes"]] += count
    assert counts == {1: 20, 2: 20, 3: 20}


def test_a_view_has_options_of_its_own(service: Any, executor: Executor) -> None:
    class FlakyError(Exception):
        pass

    patient = executor.using(
        retries=3, retry_on=[FlakyError, OSError, "x.Y", 75, "lost"], num_nodes=1
    )
    slower = patient.using(retry_delay="5s", num_nodes=None)
    for each in (executor, patient, slower, slower.using(retries=None)):
        assert each.submit(double, 1).wait_submitted(TIMEOUT)
    bodies = [each.body for each in service.submissions()]
    name = f"{__name__}.{FlakyError.__qualname__}"
    on = {"retries": 3, "retry_on": [name, "OSError", "x.Y", 75, "lost"]}
    assert [body.get("run_options") for body in bodies] == [
        None,
        on,
        {**on, "retry_delay": 5.0},
        None,
    ]
    assert [body.get("resource_specification") for body in bodies] == [
        None,
        {"num_nodes": 1},
        None,
        None,
    ]
    assert "'retries': 3" in repr(patient)
    placed = executor.using(stdin=Path("in"), cwd=Path("/w"), env={"B": None, "A": "1"})
    assert placed.using(cwd=None).submit(double, 1).wait_submitted(TIMEOUT)
    process = {"stdin": {"file": "in"}, "env": {"A": "1", "B": None}}
    assert service.submissions()[-1].body["run_options"] == process
    later = executor.using(begin_time="+2s", constraints="amd -gpu", hold=True)
    assert later.submit(double, 1).wait_submitted(TIMEOUT)
    body = service.submissions()[-1].body
    wanted = {"begin_time": "+2s", "constraints": "amd -gpu"}
    assert (body["resource_specification"], body["run_options"]) == (wanted, {"hold": True})
    both = executor.using(retries=1, time_limit="1m").using(retries=0)
    assert both.submit(double, 1).wait_submitted(TIMEOUT)
    assert service.submissions()[-1].body["run_options"] == {"time_limit": 60.0}


def test_shell_options_of_a_wrong_type_are_named(executor: Executor) -> None:
    with pytest.raises(ResourceSpecificationError, match="shell_options must be a dict"):
        executor.using(shell_options=5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retries": 51}, "retries must be an integer from 0 to 50"),
        ({"retries": True}, "retries must be"),
        ({"retry_on": [OSError]}, "no effect without retries"),
        ({"retries": 1, "retry_on": []}, "one to 50 conditions"),
        ({"retries": 1, "retry_on": [0]}, "exit codes from 1 to 255"),
        ({"retries": 1, "retry_on": [1.5]}, "exceptions"),
        ({"retries": 1, "retry_on": ["\n"]}, "exceptions"),
        ({"retries": 1, "retry_delay": "soon"}, "Flux Standard Duration"),
        ({"retries": 1, "retry_delay": "2d"}, "at most a day"),
        ({"time_limit": -1}, "time_limit must be"),
        ({"time_limit": 1, "num_nodes": 1}, "time_limit is for tasks on workers"),
        ({"stdin": b"bytes"}, "stdin must be text, or the path of a file at the endpoint"),
        ({"stdin": "\ud800"}, "stdin has a lone surrogate"),
        ({"stdin": "x" * 32768}, "32781 characters as JSON, the limit is 32768"),
        ({"stdin": "", "num_ranks": 1, "shell_options": {"input.stdin": {}}}, "contradict"),
        ({"hold": 1}, "hold must be true or false"),
        ({"cwd": 7}, "cwd must be a path, got int"),
        ({"cwd": "a\0"}, "cwd must be a path of 1 to 4096 characters"),
        ({"env": ["A"]}, "env must be a dictionary of variables, got list"),
        ({"env": {"A=B": ""}}, "env has 'A=B', which is no name of a variable"),
        ({"env": {"GC_TASK_UUID": "1"}}, "env has GC_TASK_UUID, which the endpoint sets"),
        ({"env": {"A": 7}}, r"env\['A'\] must be text, or None to unset it, got int"),
        ({"env": {"A": "secret\0"}}, r"env\['A'\] has a NUL"),
    ],
)
def test_wrong_options_of_calls_are_refused_at_once(
    executor: Executor, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(RunOptionsError, match=text):
        executor.using(**options)
