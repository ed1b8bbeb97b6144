import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from flux_endpoint import Client
from other_threads import signal_another_thread

pytestmark = [pytest.mark.stack, pytest.mark.rabbitmq]


#: Of a state directory: what a configuration, a URL or a shell could take for something else.
ODD_NAME = "a 'home' #1 of %20 $x?"


class Home:
    """A $FLUX_ENDPOINT_HOME, and the commands run on it."""

    def __init__(self, path):
        self.path = path
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FLUX_ENDPOINT_")}
        self.env = {**kept, "FLUX_ENDPOINT_HOME": str(path)}

    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "flux_endpoint", *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def up(self, *arguments):
        done = self.run("up", "--detach", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def read(self, name):
        return json.loads((self.path / name).read_text())

    @property
    def state(self):
        return self.read("stack/state.json")

    @property
    def log(self):
        return (self.path / "stack" / "up.log").read_text()

    def version(self):
        url = self.read("credentials.json")["service_url"]
        return httpx.get(f"{url}/v2/version", timeout=60, trust_env=False).status_code


@pytest.fixture
def home(tmp_path, processes_of, await_end):
    home = Home(tmp_path / ODD_NAME)
    yield home
    home.run("down")
    left = processes_of(home.path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == {}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A stack without an endpoint that tests may look at but not harm."""
    home = Home(tmp_path_factory.mktemp("shared") / "home")
    home.output = home.up("--no-endpoint")
    yield home
    home.run("down")
    shutil.rmtree(home.path)


@pytest.fixture
def foreground(home):
    """Start `up` in the foreground, as the child of `wrapper`; return it when it is ready."""
    started = []

    def foreground(*wrapper, options=()):
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "flux_endpoint", "up", "--no-endpoint", *options],
            env=home.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        for line in process.stdout:
            if line.startswith("Ready"):
                return process
        raise AssertionError(f"up ended with {process.wait()}")

    yield foreground
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.stdout.close()
        process.wait()


def test_credentials_are_private_and_valid(shared):
    file = shared.path / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = json.loads(file.read_text())
    answer = httpx.get(
        f"{written['service_url']}/v2/endpoints/11111111-2222-3333-4444-555555555555/status",
        headers={"Authorization": f"Bearer {written['token']}"},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 404
    assert written["service_url"] in shared.output


def test_the_state_file_has_pids_and_addresses_and_no_secrets(shared):
    state = shared.state
    assert psutil.Process(state["pid"]).is_running()
    assert state["service_url"] == shared.read("credentials.json")["service_url"]
    assert state["amqp_port"] in shared.read("stack/broker/node.json").values()
    text = json.dumps(state)
    secrets = [shared.read("credentials.json")["token"]]
    secrets += shared.read("stack/broker/passwords.json").values()
    assert not any(secret in text for secret in secrets)


def test_no_password_is_on_a_command_line(shared, processes_of):
    commands = " ".join(processes_of(shared.path).values())
    secrets = [shared.read("credentials.json")["token"]]
    secrets += shared.read("stack/broker/passwords.json").values()
    assert not any(secret in commands for secret in secrets)


def test_a_second_up_on_the_same_home_is_refused_with_pid_and_url(shared):
    done = shared.run("up", "--no-endpoint")
    assert done.returncode == 1
    state = shared.state
    assert f"already running (pid {state['pid']}, {state['service_url']})" in done.stderr
    assert shared.version() == 200


def test_two_homes_run_side_by_side_and_down_leaves_nothing(shared, home, processes_of):
    home.up("--no-endpoint")
    assert home.version() == 200
    assert shared.version() == 200
    assert home.state["service_port"] != shared.state["service_port"]
    assert home.state["amqp_port"] != shared.state["amqp_port"]
    done = home.run("down")
    assert done.returncode == 0
    assert processes_of(home.path) == {}
    assert home.state["pid"] is None
    assert shared.version() == 200


def test_a_damaged_state_file_does_not_block_up(home, processes_of):
    home.up("--no-endpoint")
    state = home.path / "stack" / "state.json"
    for content in ('{"pid": "x", "service_port": "80"}', '{"pid": 1}', "{", None):
        if content is None:
            state.unlink()
        else:
            state.write_text(content)
        assert "already running (pid" in home.run("up", "--detach").stderr
    assert "Ended (pid" in home.run("down").stdout
    assert processes_of(home.path) == {}
    state.write_text("{")
    home.up("--no-endpoint")
    assert home.version() == 200
    state.write_text('{"pid": 1}')
    assert "Ended (pid" in home.run("down").stdout
    assert processes_of(home.path) == {}


def test_a_stack_whose_home_was_deleted_is_found_and_ended(home, processes_of):
    home.up("--no-endpoint")
    running = processes_of(home.path)
    assert len(running) > 3
    shutil.rmtree(home.path)
    home.path.mkdir(mode=0o700)
    said = home.run("up", "--detach")
    assert "a stack still runs (pid" in said.stderr
    assert "was deleted: `flux-endpoint down` ends it" in said.stderr
    assert "Ended (pid" in home.run("down").stdout
    assert processes_of(home.path) == {}
    assert home.run("down").stdout == "Nothing runs here.\n"
    home.up("--no-endpoint")
    assert home.version() == 200


def test_down_without_a_stack_says_so(home):
    done = home.run("down")
    assert (done.returncode, done.stdout) == (0, "Nothing runs here.\n")


def test_port_is_used_and_url_and_token_are_the_same_after_a_restart(home, free_port):
    home.up("--no-endpoint", "--port", str(free_port))
    first = home.read("credentials.json")
    assert first["service_url"] == f"http://127.0.0.1:{free_port}"
    home.run("down")
    home.up("--no-endpoint")
    assert home.read("credentials.json") == first
    assert home.version() == 200


def test_no_token_is_sent_to_a_process_on_the_port_of_a_stopped_stack(home, free_port):
    home.up("--no-endpoint", "--port", str(free_port))
    token = home.read("credentials.json")["token"]
    os.kill(home.state["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:  # what was below the stack is being ended
            try:
                thief.bind(("127.0.0.1", free_port))
                thief.listen()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        done = home.run("tasks")
        assert done.returncode == 78
        assert "flux-endpoint up" in done.stderr
        assert not select.select([thief], [], [], 0)[0]
        # Nor while another is starting, which has another port.
        home.up("--no-endpoint")
        assert not select.select([thief], [], [], 0)[0]
    assert home.read("credentials.json")["token"] == token
    assert home.run("tasks").returncode == 0
    home.run("down")
    assert home.read("credentials.json") == {
        "service_url": "",
        "token": token,
        "stack_lock": "stack/lock",
    }


def test_a_taken_port_is_refused_at_once_and_nothing_is_left(home, processes_of):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for mode in ([], ["--detach"]):
            done = home.run("up", *mode, "--port", port)
            assert done.returncode == 78
            assert f"port {port} is in use" in done.stderr
    assert processes_of(home.path) == {}


def test_credentials_of_a_service_elsewhere_are_not_overwritten(home):
    home.path.mkdir()
    file = home.path / "credentials.json"
    text = json.dumps({"service_url": "https://compute.example.org", "token": "precious"})
    file.write_text(text)
    done = home.run("up", "--no-endpoint")
    assert done.returncode == 78
    assert "https://compute.example.org" in done.stderr
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("send", "signum", "status"),
    [
        (os.kill, signal.SIGINT, 130),
        (os.kill, signal.SIGALRM, 0),
        (signal_another_thread, signal.SIGTERM, 0),
    ],
)
def test_a_signal_ends_all_programs_in_order(home, foreground, processes_of, send, signum, status):
    up = foreground()
    send(up.pid, signum)
    assert up.wait(timeout=60) == status
    assert processes_of(home.path) == {}


def test_when_the_parent_of_up_dies_the_stack_ends(home, foreground, processes_of, await_end):
    shell = foreground("sh", "-c", '"$@"; :', "sh")
    running = processes_of(home.path)
    assert len(running) > 5
    shell.kill()
    assert await_end(running, timeout=40) == []


def test_when_up_is_killed_nothing_is_left_and_the_next_one_starts(
    home, foreground, processes_of, await_end
):
    up = foreground()
    running = processes_of(home.path)
    up.kill()
    again = home.up("--no-endpoint")
    assert await_end(running) == []
    assert "Ready" in again
    assert home.version() == 200


def test_a_service_and_a_broker_that_die_are_started_again(
    home, foreground, processes_of, free_port
):
    # Nobody else takes this port while no service listens on it.
    up = foreground(options=("--port", str(free_port)))
    url = home.state["service_url"]
    for text, name in (("service run", "service"), ("beam.smp", "broker")):
        commands = processes_of(home.path)
        (pid,) = (pid for pid, command in commands.items() if text in command)
        os.kill(pid, signal.SIGKILL)
        said = []
        for line in up.stdout:
            said.append(line)
            if line.startswith(name) and "started again" in line:
                break
        assert any(line.startswith(name) and "ended" in line for line in said)
        transport = httpx.HTTPTransport(retries=8)
        with httpx.Client(transport=transport, timeout=60, trust_env=False) as client:
            assert client.get(f"{url}/v2/version").status_code == 200


def test_a_part_that_fails_again_and_again_does_not_end_the_others(home):
    home.up()
    config = home.path / "endpoints" / "local" / "config.yaml"
    whole = config.read_text()
    config.write_text("max_in_fligth: 3\n")
    os.kill(json.loads((home.path / "endpoints" / "local" / "status.json").read_text())["pid"], 9)
    seen(home, "(7 times in a row)")
    assert home.version() == 200
    config.write_text(whole)
    seen(home, "endpoint  started again")


def seen(home, text):
    """Wait until `up` has said something."""
    deadline = time.monotonic() + 110
    while text not in home.log:
        assert time.monotonic() < deadline, home.log
        time.sleep(0.1)


def test_an_endpoint_that_is_stopped_on_request_stays_stopped(home):
    home.up()
    credentials = home.read("credentials.json")
    client = Client(credentials["service_url"], credentials["token"])
    endpoint_id = home.state["endpoint_id"]
    assert client.stop_endpoint(endpoint_id)["delivered"] is True
    deadline = time.monotonic() + 60
    while "`flux-endpoint start local` starts it again" not in home.log:
        assert time.monotonic() < deadline, home.log
        time.sleep(0.05)
    listed = json.loads(home.run("list", "--json").stdout)
    assert [each["status"] for each in listed] == ["stopped"]
    assert home.version() == 200
    assert client.get_endpoint_status(endpoint_id)["status"] == "offline"


def test_the_printed_snippet_works_in_another_terminal(home, processes_of, tmp_path):
    output = home.up()
    lines = output.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.endswith("<<'END'"))
    end = lines.index("  END")
    script = "\n".join(line.removeprefix("  ") for line in lines[begin : end + 1])
    env = {key: value for key, value in home.env.items() if key != "FLUX_ENDPOINT_HOME"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("14\n", "")
    assert home.state["endpoint_id"] in output
    assert home.run("down").returncode == 0
    assert processes_of(home.path) == {}


def test_two_stacks_started_at_once_both_run(tmp_path):
    homes = [Home(tmp_path / name) for name in ("one", "two")]
    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda home: home.up("--no-endpoint"), homes))
        assert [home.version() for home in homes] == [200, 200]
        assert len({home.state["service_port"] for home in homes}) == 2
    finally:
        for home in homes:
            home.run("down")


def test_without_the_packages_of_the_service_nothing_is_started(home, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['fastapi'] = None\n")
    home.env["PYTHONPATH"] = str(tmp_path)
    for mode in ([], ["--detach"]):
        done = home.run("up", *mode)
        assert done.returncode == 78
        assert "needs the Python package 'fastapi': pip install" in done.stderr
        assert "broker" not in done.stdout
    assert not (home.path / "stack" / "broker").exists()
