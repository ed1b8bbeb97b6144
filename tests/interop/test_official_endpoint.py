"""The official endpoint runs what our Executor submits; what a lost one held ends in an error."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from tests.interop.official_endpoint import PATIENCE, OfficialEndpoint, official_environment
from tests.service.http_server import listening

from broker_access import session_broker
from flux_endpoint import Client, ComputeFuture, Executor, MPIFunction, ShellFunction
from flux_endpoint.errors import TaskExecutionFailed
from flux_endpoint.service.app import create_app
from flux_endpoint.service.official.store import deliveries, user_endpoints
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database
from waiting import until

pytestmark = [
    pytest.mark.interop,
    pytest.mark.rabbitmq,
    pytest.mark.timeout(300),
]

#: What an endpoint is given at a time.
WINDOW = 8


#: What a user has typed: functions of `__main__` travel by value, those of modules by name.
SESSION: dict[str, Any] = {"__name__": "__main__"}
exec(
    """
def area(width: int, height: int = 1) -> int:
    return width * height

def fail(text: str) -> None:
    raise LookupError(text)

def touch_and_wait(path: str, wait_for: str) -> str:
    import pathlib
    import time

    with pathlib.Path(path).open("a") as file:
        file.write(f"{time.time()}\\n")
    while not pathlib.Path(wait_for).exists():
        time.sleep(0.05)
    return path

def process():
    import multiprocessing
    import os

    return os.getpid(), multiprocessing.parent_process() is not None
""",
    SESSION,
)
area, fail = SESSION["area"], SESSION["fail"]
touch_and_wait, process = SESSION["touch_and_wait"], SESSION["process"]


class World:
    """A service, ada's client of it, and an official endpoint of hers."""

    def __init__(
        self,
        client: Client,
        endpoint: OfficialEndpoint,
        database: Database,
        broker: Any,
        vhost: str,
    ) -> None:
        self.client = client
        self.endpoint = endpoint
        self._database = database
        self._broker = broker
        self._vhost = vhost

    def executor(self, **how: Any) -> Executor:
        return Executor(self.endpoint.id, client=self.client, **how)

    def status(self) -> str:
        return str(self.client.get_endpoint_status(self.endpoint.id)["status"])

    def given(self, futures: Sequence[ComputeFuture]) -> int:
        """How many of these tasks a user endpoint's queue has had, of those that have not ended."""
        with self._database.read() as connection:
            ids = user_endpoints.user_endpoints_of(connection, self.endpoint.id)
            had = {task for each in ids for task in deliveries.released(connection, each)}
        return sum(future.task_id in had for future in futures)

    def all_is_acknowledged(self) -> bool:
        """Whether the broker has no task any more: an endpoint logs an ack before it is sent."""
        listed = self._broker.ctl(
            "list_queues", "-p", self._vhost, "--no-table-headers", "name", "messages"
        )
        counts = dict(line.split() for line in listed.splitlines())
        return not any(int(count) for name, count in counts.items() if name.endswith(".tasks"))


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, broker: Any, official_python: str
) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("official-endpoint")
    with broker.virtual_host() as amqp_url:
        settings = ServiceSettings(
            database_url=f"sqlite:///{directory / 'service.db'}",
            amqp_url=amqp_url,
            publish_timeout=30,
            **session_broker.settings(amqp_url),
            official_window=WINDOW,
        )
        with listening(create_app(settings)) as port:
            database = Database(settings.database_url)
            with database.write() as connection:
                token = users.create_token(connection, "ada")
            url = f"http://127.0.0.1:{port}"
            home = directory / "home"
            home.mkdir()
            environment = official_environment(url, token, home)
            endpoint = OfficialEndpoint(home, official_python, environment)
            try:
                endpoint.start()
                world = World(
                    Client(url, token), endpoint, database, broker, urlsplit(amqp_url).path[1:]
                )
                until(lambda: world.status() == "online")
                yield world
            finally:
                endpoint.clean_up()
                database.close()
                print(endpoint.said)


@pytest.fixture
def executor(world: World) -> Iterator[Executor]:
    with world.executor() as executor:
        yield executor


def test_a_function_and_its_exception(executor: Executor) -> None:
    assert executor.submit(area, 3, height=5).result(PATIENCE) == 15
    with pytest.raises(TaskExecutionFailed, match="LookupError: no such thing"):
        executor.submit(fail, "no such thing").result(PATIENCE)


def test_a_command(executor: Executor) -> None:
    result = executor.submit(ShellFunction("echo '{text}'; exit 3"), text="hello").result(PATIENCE)
    assert (result.stdout, result.returncode) == ("hello\n", 3)
    late = executor.submit(ShellFunction("sleep 20", walltime=0.2)).result(PATIENCE)
    assert (late.returncode, late.exception_name) == (124, "subprocess.TimeoutExpired")
    done = executor.submit(ShellFunction("true", return_dict=True)).result(PATIENCE)
    assert done["returncode"] == 0


def test_an_mpi_command_is_what_the_official_engine_makes_of_it(executor: Executor) -> None:
    # This engine sets no prefix: the command runs as it is.
    result = executor.submit(MPIFunction("echo {x}"), x=1).result(PATIENCE)
    assert (result.cmd, result.stdout) == ("$PARSL_MPI_PREFIX echo 1", "1\n")


def test_a_refusal_of_the_official_engine_is_reported(world: World) -> None:
    with world.executor(resource_specification={"num_nodes": 1}) as executor:
        end = executor.submit(area, 1).exception(PATIENCE)
    assert isinstance(end, TaskExecutionFailed)
    assert "resource_specification is not supported" in end.remote_data


def test_many_more_tasks_than_it_is_given_at_a_time(executor: Executor) -> None:
    futures = [executor.submit(area, number) for number in range(6 * WINDOW)]
    assert [future.result(PATIENCE) for future in futures] == list(range(6 * WINDOW))


def test_values_for_its_template_make_another_user_endpoint(
    world: World, executor: Executor
) -> None:
    mine, of_a_pool = executor.submit(process).result(PATIENCE)
    assert not of_a_pool
    config = {"engine": "ProcessPoolEngine", "workers": 1}
    with world.executor(user_endpoint_config=config) as other:
        others, of_a_pool = other.submit(process).result(PATIENCE)
        assert others != mine
        assert of_a_pool
        assert other.submit(process).result(PATIENCE) == (others, True)


def test_a_template_that_fails_ends_the_tasks_with_the_reason(world: World) -> None:
    with world.executor(user_endpoint_config={"engine": "WarpEngine"}) as executor:
        end = executor.submit(area, 1).exception(PATIENCE)
    assert isinstance(end, TaskExecutionFailed)
    assert end.remote_data.startswith("EndpointNotStarted: ")
    assert f"endpoint {world.endpoint.id} could not start" in end.remote_data


def test_kill_and_events_are_refused_and_the_task_continues(world: World, tmp_path: Path) -> None:
    with world.executor() as executor:
        future = executor.submit(touch_and_wait, str(tmp_path / "a"), str(tmp_path / "go"))
        until((tmp_path / "a").exists)
        with pytest.raises(Exception, match="is not one of Flux Endpoint"):
            future.kill()
        with pytest.raises(RuntimeError, match="is not one of Flux Endpoint"):
            future.jobid(PATIENCE)
        (tmp_path / "go").touch()
        assert future.result(PATIENCE) == str(tmp_path / "a")


# The workers of a pool of processes outlive their endpoint, and keep its connection open.
@pytest.mark.parametrize("engine", ["ThreadPoolEngine", "ProcessPoolEngine"])
def test_every_future_of_a_killed_user_endpoint_ends(
    world: World, tmp_path: Path, engine: str
) -> None:
    before = {each.pid for each in world.endpoint.user_endpoints()}
    config = {"engine": engine, "purpose": f"to be killed {tmp_path.name}"}
    with world.executor(user_endpoint_config=config) as executor:
        go, count = tmp_path / "go", 3 * WINDOW
        paths = [str(tmp_path / f"task{number}") for number in range(count)]
        futures = [executor.submit(touch_and_wait, path, str(go)) for path in paths]
        try:
            until(lambda: all(future.task_id for future in futures))
            until(lambda: world.given(futures) == WINDOW)
            until(world.all_is_acknowledged)
            (victim,) = [each for each in world.endpoint.user_endpoints() if each.pid not in before]
            victim.send_signal(signal.SIGKILL)
        finally:  # whatever failed, the executor waits for its tasks
            go.touch()
        ends = [future.exception(PATIENCE) for future in futures]
    lost = [number for number, end in enumerate(ends) if end is not None]
    # What it was given at a time, and no more; the others ran in the next, once each.
    assert len(lost) == WINDOW
    for number in lost:
        assert f"EndpointLost: endpoint {world.endpoint.id} vanished" in str(ends[number])
    for number in set(range(count)).difference(lost):
        assert futures[number].result(0) == paths[number]
        assert len(Path(paths[number]).read_text().splitlines()) == 1


def test_a_user_endpoint_killed_before_any_acknowledgement_loses_nothing(
    world: World, tmp_path: Path
) -> None:
    before = {each.pid for each in world.endpoint.user_endpoints()}

    def started() -> list[psutil.Process]:
        return [each for each in world.endpoint.user_endpoints() if each.pid not in before]

    config = {"purpose": f"to be killed early {tmp_path.name}"}
    with world.executor(user_endpoint_config=config) as executor:
        with world.endpoint.held_up():
            futures = [executor.submit(area, number) for number in range(WINDOW)]
            until(started)
            started()[0].send_signal(signal.SIGKILL)
        assert [future.result(PATIENCE) for future in futures] == list(range(WINDOW))


def test_tasks_waiting_for_a_stopped_endpoint_run_after_its_restart(world: World) -> None:
    with world.executor() as executor:
        assert executor.submit(area, 1).result(PATIENCE) == 1
        world.endpoint.stop()
        until(lambda: world.status() == "offline")
        futures = [executor.submit(area, number) for number in range(2 * WINDOW)]
        world.endpoint.start()
        assert [future.result(PATIENCE) for future in futures] == list(range(2 * WINDOW))


def test_a_killed_endpoint_ends_its_user_endpoints_and_every_future_ends(
    world: World, tmp_path: Path
) -> None:
    with world.executor(user_endpoint_config={"purpose": "killed multi-user endpoint"}) as executor:
        go, count = tmp_path / "go", 2 * WINDOW
        paths = [str(tmp_path / f"task{number}") for number in range(count)]
        futures = [executor.submit(touch_and_wait, path, str(go)) for path in paths]
        until(lambda: len(list(tmp_path.glob("task*"))) == 2)
        world.endpoint.kill()
        until(lambda: "has gone away" in world.endpoint.said)
        go.touch()
        world.endpoint.start()
        ends = [future.exception(PATIENCE) for future in futures]
    for number, end in enumerate(ends):
        if end is None:
            assert futures[number].result(0) == paths[number]
        else:
            assert "EndpointLost" in str(end)


def test_an_endpoint_stopped_through_the_service_ends_with_its_user_endpoints(world: World) -> None:
    """The last one: for half a minute it can't be started again."""
    with world.executor() as executor:
        assert executor.submit(area, 1).result(PATIENCE) == 1
    user_endpoints = world.endpoint.user_endpoints()  # those of other tests may run, too
    assert user_endpoints
    assert world.client.stop_endpoint(world.endpoint.id)["delivered"] is True
    until(world.endpoint.has_ended)
    until(lambda: not any(each.is_running() for each in user_endpoints))
    until(lambda: world.status() == "offline")
