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
from ports import reserved_port

pytestmark = [pytest.mark.stack, pytest.mark.rabbitmq]


#: Of a state directory: what a configuration, a URL or a shell could take for something else.
ODD_NAME = "a 'home' #1 of %20 $x?"


class Home:
    """A $FLUX_ENDPOINT_HOME, and the commands run on it."""

    def __init__(self, path):
        self.path = path
        self.output = ""
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
        self.output = done.stdout
        return done.stdout

    @property
    def runs(self):
        """Whether service and, unless it was left out, endpoint of a whole stack answer."""
        try:
            pids = [self.state["pid"]]
            if self.state["endpoint_name"]:
                status = self.read(f"endpoints/{self.state['endpoint_name']}/status.json")
                pids.append(status["pid"] if status["state"] == "connected" else None)
            return all(psutil.pid_exists(pid or -1) for pid in pids) and self.version() == 200
        except (OSError, ValueError, KeyError, httpx.HTTPError):
            return False

    def ensure(self, *arguments):
        """Start a stack anew unless one runs."""
        if not self.runs:
            self.run("down")
            shutil.rmtree(self.path, ignore_errors=True)
            self.up(*arguments)

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
def home(tmp_path, processes_of):
    home = Home(tmp_path / ODD_NAME)
    yield home
    end(home, processes_of)


def end(home, processes_of):
    home.run("down")
    left = processes_of(home.path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == {}


@pytest.fixture(scope="module")
def port():
    """Nobody else is given this port, not even while no service listens on it."""
    with reserved_port() as port:
        yield port


@pytest.fixture(scope="module")
def home_of_running(tmp_path_factory, processes_of):
    home = Home(tmp_path_factory.mktemp("running") / ODD_NAME)
    yield home
    end(home, processes_of)


@pytest.fixture
def running(home_of_running, port):
    """A stack without an endpoint, which a test may harm: the next one gets another if need be."""
    home_of_running.ensure("--no-endpoint", "--port", str(port))
    return home_of_running


@pytest.fixture
def running_at_port(running, port):
    """The same at a port that nobody else takes while the service does not run."""
    if running.state["service_port"] != port:
        running.run("down")
        running.up("--no-endpoint", "--port", str(port))
    return running


@pytest.fixture(scope="module")
def home_of_whole(tmp_path_factory, processes_of):
    home = Home(tmp_path_factory.mktemp("whole") / ODD_NAME)
    yield home
    end(home, processes_of)


@pytest.fixture
def whole(home_of_whole):
    """The same with an endpoint."""
    home_of_whole.ensure()
    return home_of_whole


@pytest.fixture
def foreground():
    """Start `up` in the foreground, as the child of `wrapper`; return it when it is ready."""
    started = []

    def foreground(home, *wrapper, options=()):
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


def test_credentials_are_private_and_valid(running):
    file = running.path / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = json.loads(file.read_text())
    answer = httpx.get(
        f"{written['service_url']}/v2/endpoints/11111111-2222-3333-4444-555555555555/status",
        headers={"Authorization": f"Bearer {written['token']}"},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 404
    assert written["service_url"] in running.output


def test_the_state_file_has_pids_and_addresses_and_no_secrets(running):
    state = running.state
    assert psutil.Process(state["pid"]).is_running()
    assert state["service_url"] == running.read("credentials.json")["service_url"]
    assert state["amqp_port"] in running.read("stack/broker/node.json").values()
    text = json.dumps(state)
    secrets = [running.read("credentials.json")["token"]]
    secrets += running.read("stack/broker/passwords.json").values()
    assert not any(secret in text for secret in secrets)


def test_no_password_is_on_a_command_line(running, processes_of):
    commands = " ".join(processes_of(running.path).values())
    secrets = [running.read("credentials.json")["token"]]
    secrets += running.read("stack/broker/passwords.json").values()
    assert not any(secret in commands for secret in secrets)


def test_a_second_up_on_the_same_home_is_refused_with_pid_and_url(running):
    done = running.run("up", "--no-endpoint")
    assert done.returncode == 1
    state = running.state
    assert f"already running (pid {state['pid']}, {state['service_url']})" in done.stderr
    assert running.version() == 200


def test_port_is_used_and_url_and_token_are_the_same_after_a_restart(running_at_port, port):
    home = running_at_port
    first = home.read("credentials.json")
    assert first["service_url"] == f"http://127.0.0.1:{port}"
    home.run("down")
    assert home.read("credentials.json") == {**first, "service_url": ""}
    home.up("--no-endpoint")
    assert home.read("credentials.json") == first
    assert home.version() == 200


def test_no_token_is_sent_to_a_process_on_the_port_of_a_stopped_stack(running_at_port, port):
    home = running_at_port
    token = home.read("credentials.json")["token"]
    os.kill(home.state["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:  # what was below the stack is being ended
            try:
                thief.bind(("127.0.0.1", port))
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


def test_when_up_is_killed_nothing_is_left_and_the_next_one_starts(
    running, processes_of, await_end
):
    home, there = running, processes_of(running.path)
    os.kill(home.state["pid"], signal.SIGKILL)
    again = home.up("--no-endpoint")
    assert await_end(there) == []
    assert "Ready" in again
    assert home.version() == 200


def test_a_stack_whose_home_was_deleted_is_found_and_ended(running, processes_of):
    home = running
    assert len(processes_of(home.path)) > 3
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


def test_a_damaged_state_file_does_not_block_up(running, processes_of):
    home = running
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


def test_down_without_a_stack_says_so(home):
    done = home.run("down")
    assert (done.returncode, done.stdout) == (0, "Nothing runs here.\n")


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


def test_two_stacks_started_at_once_both_run_and_a_signal_ends_one_in_order(
    tmp_path, foreground, processes_of
):
    homes = [Home(tmp_path / name) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(foreground, homes)
    assert [home.version() for home in homes] == [200, 200]
    for name in ("service_port", "amqp_port"):
        assert len({home.state[name] for home in homes}) == 2
    os.kill(first.pid, signal.SIGALRM)
    assert first.wait(timeout=60) == 0
    assert processes_of(homes[0].path) == {}
    assert homes[0].state["pid"] is None
    assert homes[1].version() == 200
    signal_another_thread(second.pid, signal.SIGTERM)
    assert second.wait(timeout=60) == 0
    assert processes_of(homes[1].path) == {}


def test_ctrl_c_while_the_endpoint_waits_for_the_broker_ends_all(home, processes_of):
    with subprocess.Popen(
        [sys.executable, "-m", "flux_endpoint", "up"],
        env=home.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as up:
        deadline = time.monotonic() + 60
        while "flux_endpoint start local" not in " ".join(processes_of(home.path).values()):
            assert up.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        up.send_signal(signal.SIGINT)
        said, _ = up.communicate(timeout=60)
    assert up.returncode == 130
    assert "ended" in said
    assert "Ready" not in said
    assert processes_of(home.path) == {}


def test_when_the_parent_of_up_dies_the_stack_ends(home, foreground, processes_of, await_end):
    shell = foreground(home, "sh", "-c", '"$@"; :', "sh")
    running = processes_of(home.path)
    assert len(running) > 5
    shell.kill()
    assert await_end(running, timeout=40) == []


def test_a_service_and_a_broker_that_die_are_started_again_and_ctrl_c_ends_all(
    home, foreground, processes_of, free_port
):
    # Nobody else takes this port while no service listens on it.
    up = foreground(home, options=("--port", str(free_port)))
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
    up.send_signal(signal.SIGINT)
    assert up.wait(timeout=60) == 130
    assert processes_of(home.path) == {}


def test_the_printed_snippet_works_in_another_terminal(whole):
    home, output = whole, whole.output
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


def test_a_part_that_fails_again_and_again_does_not_end_the_others(whole):
    home = whole
    config = home.path / "endpoints" / "local" / "config.yaml"
    right = config.read_text()
    config.write_text("max_in_fligth: 3\n")
    os.kill(json.loads((home.path / "endpoints" / "local" / "status.json").read_text())["pid"], 9)
    until(lambda: "(4 times in a row)" in home.log, home)
    assert home.version() == 200
    config.write_text(right)
    until(lambda: home.runs, home)


def until(happened, home):
    """Wait until something has happened."""
    deadline = time.monotonic() + 110
    while not happened():
        assert time.monotonic() < deadline, home.log
        time.sleep(0.1)


def test_an_endpoint_that_is_stopped_on_request_stays_stopped(whole, processes_of):
    home = whole
    credentials = home.read("credentials.json")
    client = Client(credentials["service_url"], credentials["token"])
    endpoint_id = home.state["endpoint_id"]
    assert client.stop_endpoint(endpoint_id)["delivered"] is True
    until(lambda: "`flux-endpoint start local` starts it again" in home.log, home)
    listed = json.loads(home.run("list", "--json").stdout)
    assert [each["status"] for each in listed] == ["stopped"]
    assert home.version() == 200
    assert client.get_endpoint_status(endpoint_id)["status"] == "offline"
    assert home.run("down").returncode == 0
    assert processes_of(home.path) == {}


def test_without_the_packages_of_the_service_nothing_is_started(home, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['fastapi'] = None\n")
    home.env["PYTHONPATH"] = str(tmp_path)
    for mode in ([], ["--detach"]):
        done = home.run("up", *mode)
        assert done.returncode == 78
        assert "needs the Python package 'fastapi': pip install" in done.stderr
        assert "broker" not in done.stdout
    assert not (home.path / "stack" / "broker").exists()
