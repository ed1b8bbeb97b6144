"""The official multi-user endpoint on our service, with our engine in its user endpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.interop.official_endpoint import PATIENCE, OfficialEndpoint, official_environment
from tests.interop.plugin_world import PluginEnvironment
from tests.service.http_server import listening

from broker_access import session_broker
from flux_endpoint import Client, Executor, MPIFunction, ShellFunction, ShellResult
from flux_endpoint.errors import TaskExecutionFailed
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database
from waiting import until

pytestmark = [
    pytest.mark.interop,
    pytest.mark.rabbitmq,
    pytest.mark.timeout(300),
    # The official packages pin another dill than ours: that is said elsewhere.
    pytest.mark.filterwarnings("ignore:Endpoint .* runs tasks with"),
]

TEMPLATE = """
heartbeat_period: 5
engine:
  type: FluxEngine
  max_nodes: {{ max_nodes | default(1) }}
  workers_per_node: 2
  local_cores_per_node: 2
  run_in_sandbox: {{ sandbox | default(false) }}
  shutdown_grace: 0.1
"""
TWO_RANKS = {"num_nodes": 1, "ranks_per_node": 2}
OFFICIAL = """
import json, os, sys
from globus_compute_sdk import Client, Executor, MPIFunction, ShellFunction

def area(width, height=2):
    return width * height

with Executor(endpoint_id=sys.argv[1], client=Client()) as executor:
    futures = [executor.submit(area, 4), executor.submit(ShellFunction("echo {x}"), x="hello")]
    executor.resource_specification = {"num_nodes": 1, "ranks_per_node": 2}
    futures.append(executor.submit(MPIFunction("echo rank")))
    ends = [future.result(90) for future in futures]
print(json.dumps([ends[0], *(vars(end)["stdout"] for end in ends[1:])]))
"""
#: What a user has typed: functions of `__main__` travel by value, those of modules by name.
SESSION: dict = {"__name__": "__main__"}
exec(
    """
def area(width, height=2):
    return width * height

def fail():
    raise LookupError("on purpose")

def sandbox():
    import os
    return os.environ.get("GC_TASK_SANDBOX_DIR"), os.environ["GC_TASK_UUID"]
""",
    SESSION,
)


class World:
    """A service, a multi-user endpoint with the plugin, and a user's way to both."""

    def __init__(self, client, endpoint, environment, python):
        self.client = client
        self.endpoint = endpoint
        self.environment = environment
        self.python = python

    def executor(self, **how):
        return Executor(self.endpoint.id, client=self.client, **how)


@pytest.fixture(scope="module", params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def world(request, tmp_path_factory, broker, plugin_python, official_python):
    flux_uri = request.getfixturevalue("flux_uri") if request.param == "flux" else None
    directory = tmp_path_factory.mktemp("multi-user")
    packages = PluginEnvironment(directory / "venv", plugin_python)
    packages.switch("enable")
    with broker.virtual_host() as amqp_url:
        settings = ServiceSettings(
            database_url=f"sqlite:///{directory / 'service.db'}",
            amqp_url=amqp_url,
            publish_timeout=30,
            **session_broker.settings(amqp_url),
        )
        with listening(create_app(settings)) as port:
            database = Database(settings.database_url)
            with database.write() as connection:
                token = users.create_token(connection, "ada")
            database.close()
            url = f"http://127.0.0.1:{port}"
            home = directory / "home"
            home.mkdir()
            environment = official_environment(url, token, home)
            endpoint = OfficialEndpoint(home, packages.python, environment)
            _configure(home / ".globus_compute" / "lab", home, packages, flux_uri)
            try:
                endpoint.start()
                client = Client(url, token)
                until(lambda: client.get_endpoint_status(endpoint.id)["status"] == "online")
                yield World(client, endpoint, environment, official_python)
            finally:
                endpoint.clean_up()
                print(endpoint.said)


def _configure(directory: Path, home: Path, packages: PluginEnvironment, flux_uri: str | None):
    (directory / "user_config_template.yaml.j2").write_text(TEMPLATE)
    # Started by root it clears the environment of its user endpoints: this is what they have.
    ours = Path(sys.executable).parent  # for its `mpiexec`
    path = f"{Path(packages.python).parent}:{os.environ['PATH']}:{ours}"
    variables = {"HOME": str(home), "CWD": str(home), "PATH": path}
    if flux_uri is not None:
        variables["FLUX_URI"] = flux_uri
    (directory / "user_environment.yaml").write_text(yaml.safe_dump(variables))


@pytest.fixture
def executor(world):
    with world.executor() as executor:
        yield executor


def test_functions_of_our_client(executor):
    futures = [executor.submit(SESSION["area"], width) for width in range(20)]
    failed = executor.submit(SESSION["fail"])
    assert [future.result(PATIENCE) for future in futures] == list(range(0, 40, 2))
    with pytest.raises(TaskExecutionFailed, match="LookupError: on purpose"):
        failed.result(PATIENCE)


def test_commands_of_our_client(executor):
    result = executor.submit(ShellFunction("echo {x}; exit 3"), x="a").result(PATIENCE)
    assert type(result) is ShellResult
    assert (result.stdout, result.returncode) == ("a\n", 3)


def test_mpi_commands_of_our_client_are_jobs(executor):
    executor.resource_specification = TWO_RANKS
    result = executor.submit(MPIFunction("bash -c 'echo of $PARSL_NUM_RANKS'")).result(PATIENCE)
    assert (result.stdout, result.returncode) == ("of 2\nof 2\n", 0)
    assert executor.submit(SESSION["area"], 3).result(PATIENCE) == [6, 6]


def test_functions_and_commands_of_the_official_client(world):
    done = subprocess.run(
        [world.python, "-c", OFFICIAL, world.endpoint.id],
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [8, "hello\n", "rank\nrank\n"]


def test_values_of_the_user_fill_the_template(world):
    with world.executor(user_endpoint_config={"sandbox": True}) as executor:
        directory, task = executor.submit(SESSION["sandbox"]).result(PATIENCE)
    assert directory.endswith(f"tasks_working_dir/{task}")


def test_a_wrong_option_reaches_the_future_by_name(world):
    with world.executor(user_endpoint_config={"max_nodes": -1}) as executor:
        error = executor.submit(SESSION["area"], 1).exception(PATIENCE)
    assert "FluxEngine: max_nodes: Input should be greater than 0" in str(error)
