"""Client and service together: the real service, a real broker, and an endpoint in a thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import uuid
from typing import Any

import pytest
from tests.client.service_world import TIMEOUT, RunningService, ThreadEndpoint

from flux_endpoint import Client, Executor, ServiceError, TaskExecutionFailed, TaskPending
from flux_endpoint.serialize import JSONData

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def client(running: RunningService) -> Client:
    return Client(running.url, running.token)


def double(x: Any) -> Any:
    return 2 * x


def fail(text: str) -> None:
    raise ValueError(text)


def test_functions_run_and_their_results_arrive(client: Client, endpoint: ThreadEndpoint) -> None:
    with Executor(endpoint.id, client) as executor:
        futures = [executor.submit(double, i) for i in range(1000)]
        bad = executor.submit(fail, "of old age")
        executor.result_serializers = [JSONData()]
        listed = executor.submit(double, (1, 2))
    assert [future.result() for future in futures] == [2 * i for i in range(1000)]
    with pytest.raises(TaskExecutionFailed, match="ValueError: of old age") as caught:
        bad.result()
    assert float(caught.value.completion_t) > 0
    assert listed.result() == [1, 2, 1, 2]
    assert executor.task_count_submitted == 1002


def test_map_keeps_the_order(client: Client, endpoint: ThreadEndpoint) -> None:
    with Executor(endpoint.id, client) as executor:
        assert list(executor.map(pow, range(50), [2] * 50)) == [i**2 for i in range(50)]
        assert list(executor.map(double, range(50), chunksize=7)) == [2 * i for i in range(50)]


def test_a_refusal_fails_only_its_own_futures(
    running: RunningService, client: Client, endpoint: ThreadEndpoint
) -> None:
    with Executor(endpoint.id, client) as executor:
        unknown_function = executor.submit_to_registered_function(uuid.uuid4(), (1,))
        executor.endpoint_id = uuid.uuid4()
        unknown_endpoint = executor.submit(double, 1)
        executor.endpoint_id = endpoint.id
        good = executor.submit(double, 1)
    with pytest.raises(ServiceError) as caught:
        unknown_function.result()
    assert caught.value.code == "FUNCTION_NOT_FOUND"
    with pytest.raises(ServiceError) as caught:
        unknown_endpoint.result()
    assert caught.value.code == "ENDPOINT_NOT_FOUND"
    assert good.result() == 2
    stranger = Client(running.url, "wrong")
    with pytest.raises(ServiceError, match="does not accept the token"):
        stranger.get_endpoints()
    with Executor(endpoint.id, client=stranger) as executor:
        refusal = executor.submit(double, 1).exception(60)
    assert "does not accept the token" in str(refusal)
    # What raises it shows a user's own lines, not ours.
    assert (refusal.__traceback__, refusal.__cause__, refusal.__context__) == (None, None, None)


def test_a_client_submits_a_batch_that_an_executor_reloads(
    client: Client, endpoint: ThreadEndpoint
) -> None:
    endpoint.may_run.clear()
    function = client.register_function(double)
    batch = client.create_batch()
    for i in range(5):
        batch.add(function, endpoint.id, args=(i,))
    tasks = client.batch_run(batch)["tasks"][function]
    with pytest.raises(TaskPending):
        client.get_result(tasks[0])
    with Executor(client=client, task_group_id=client.session_task_group_id) as executor:
        futures = executor.reload_tasks()
        assert sorted(str(future.task_id) for future in futures) == sorted(tasks)
        endpoint.may_run.set()
        by_id = {future.task_id: future.result(TIMEOUT) for future in futures}
    assert [by_id[task] for task in tasks] == [0, 2, 4, 6, 8]
    assert client.get_result(tasks[1]) == 2
    assert client.get_batch_result(tasks)[tasks[4]]["result"] == 8
    again = client.run(21, endpoint_id=endpoint.id, function_id=function)
    with Executor(client=client) as executor:
        reloaded = {future.task_id: future for future in executor.reload_tasks()}
        assert reloaded[again].result(TIMEOUT) == 42


def test_a_restart_of_the_service_during_a_run_loses_nothing(
    running: RunningService, client: Client, endpoint: ThreadEndpoint
) -> None:
    with Executor(endpoint.id, client) as executor:
        before = [executor.submit(double, i) for i in range(300)]
        running.stop(signal.SIGKILL)
        during = [executor.submit(double, i) for i in range(300)]
        running.start()
    assert [future.result() for future in before + during] == [2 * i for i in range(300)] * 2


# Several clients of one task group.


class Terminal:
    """Another process that uses the service as the same user; it prints what a script says."""

    def __init__(self, running: RunningService, script: str, *arguments: object) -> None:
        environment = {
            **os.environ,
            "FLUX_ENDPOINT_SERVICE_URL": running.url,
            "FLUX_ENDPOINT_TOKEN": running.token,
        }
        command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def rest(self) -> list[str]:
        out, errors = self._process.communicate(timeout=2 * TIMEOUT)
        assert self._process.returncode == 0, errors
        return out.splitlines()


SUBMIT = """
    import sys
    from flux_endpoint import Executor
    endpoint, group, base = sys.argv[1], sys.argv[2], int(sys.argv[3])
    executor = Executor(endpoint, task_group_id=group)
    futures = [executor.submit(int, base + i) for i in range(20)]
    assert all(future.wait_submitted(30) for future in futures)
    print("submitted", flush=True)
    print([future.result(30) for future in futures])
"""

RELOAD = """
    import sys
    from flux_endpoint import Executor
    futures = Executor(task_group_id=sys.argv[1]).reload_tasks()
    print("reloaded", flush=True)
    print([future.result(30) for future in futures])
"""


def test_processes_that_share_a_group_get_all_their_results(
    running: RunningService, endpoint: ThreadEndpoint
) -> None:
    endpoint.may_run.clear()
    group = uuid.uuid4()
    terminals = [Terminal(running, SUBMIT, endpoint.id, group, base) for base in (0, 100)]
    assert [terminal.line() for terminal in terminals] == ["submitted"] * 2
    endpoint.may_run.set()
    lines = [terminal.rest() for terminal in terminals]
    assert lines == [[str(list(range(base, base + 20)))] for base in (0, 100)]


def test_reloading_a_group_elsewhere_takes_no_results_from_a_waiting_program(
    running: RunningService, client: Client, endpoint: ThreadEndpoint
) -> None:
    endpoint.may_run.clear()
    with Executor(endpoint.id, client) as executor:
        futures = [executor.submit(double, i) for i in range(20)]
        assert all(future.wait_submitted(TIMEOUT) for future in futures)
        second = Terminal(running, RELOAD, executor.task_group_id)
        assert second.line() == "reloaded"
        endpoint.may_run.set()
        wanted = [2 * i for i in range(20)]
        assert [future.result(TIMEOUT) for future in futures] == wanted
    assert second.rest() == [str(wanted)]


FORKED = """
    import multiprocessing, sys
    from flux_endpoint import Executor
    def child(n, answers):
        with Executor(sys.argv[1]) as executor:
            futures = [executor.submit(int, 100 * n + i) for i in range(15)]
            answers.put((n, [f.result(30) for f in futures], str(executor.task_group_id)))
    with Executor(sys.argv[1]) as executor:
        assert executor.submit(int, 7).result(30) == 7
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        children = [context.Process(target=child, args=(n, answers)) for n in range(3)]
        for each in children:
            each.start()
        got = sorted(answers.get(timeout=60) for _ in children)
        for each in children:
            each.join(60)
        print([each.exitcode for each in children])
        print([values == [100 * n + i for i in range(15)] for n, values, _ in got])
        print(len({group for *_, group in got} | {str(executor.task_group_id)}))
        assert executor.submit(int, 8).result(30) == 8
"""


def test_forked_processes_get_all_their_results_in_groups_of_their_own(
    running: RunningService, endpoint: ThreadEndpoint
) -> None:
    lines = Terminal(running, FORKED, endpoint.id).rest()
    assert lines == ["[0, 0, 0]", "[True, True, True]", "4"]


def test_clients_of_two_users_in_one_process_have_groups_of_their_own(
    running: RunningService, client: Client, endpoint: ThreadEndpoint
) -> None:
    other = Client(running.url, running.token_of("bob"))
    with Executor(endpoint.id, client) as first, Executor(endpoint.id, other) as second:
        futures = [executor.submit(double, 4) for executor in (first, second)]
        assert [future.result(TIMEOUT) for future in futures] == [8, 8]
        with Executor(client=client) as again:
            assert again.task_group_id == first.task_group_id
    assert first.task_group_id != second.task_group_id
