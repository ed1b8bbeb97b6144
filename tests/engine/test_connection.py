"""Pool and managers: rejected connections, broken ones, and who holds which task."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from engine_world import PATIENCE, World, buffer_of, fresh_seconds, processes

from flux_endpoint.engine.environment import job_environment
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.files import PoolAddress
from flux_endpoint.engine.workers.frames import combined, divided
from flux_endpoint.engine.workers.pool_socket import _check_address
from flux_endpoint.engine.workers.settings import VARIABLE, ManagerSettings
from flux_endpoint.engine.workers.spool import read_spool
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.functions import ShellFunction
from waiting import until


def double(x):
    return x * 2


def hold(gate):
    import pathlib
    import time

    pathlib.Path(gate).with_name("begun").touch()
    while not pathlib.Path(gate).exists():
        time.sleep(0.01)


def settings(directory: Path, address: str) -> ManagerSettings:
    tasks = TaskSettings(
        endpoint_id="e",
        working_dir=str(directory / "work"),
        run_in_sandbox=False,
        allowed_serializers=None,
    )
    return ManagerSettings(
        manager_id="m1",
        identity="m1",
        directory=str(directory),
        connect=address,
        server_key="",
        public_key="",
        secret_key="",
        workers=1,
        gpus_per_worker=0,
        tasks=tasks,
        start_timeout=60.0,
        orphan_timeout=60.0,
    )


#: A manager that sends a worker several tasks at a time, and that hears of its template, or of its
#: workers, nothing before it has obeyed the pool: as if all that came in the same moment.
_HEARS_LATE = """
import sys
from flux_endpoint.engine.workers import backlog, manager, staff
from flux_endpoint.engine.workers.staff import Staff
backlog.SHORT, staff._TAKE_BACK_AFTER = 1e9, 60.0
obeyed = []
def obeying(method):
    def obey(self, *order):
        answer = method(self, *order)
        obeyed.append(order)
        return answer
    return obey
for name in ("cancel", "signal", "terminate"):
    setattr(Staff, name, obeying(getattr(Staff, name)))
serve = Staff.serve
def serve_late(self, source):
    template = [self._template.fileno()]
    workers = [worker.channel.fileno() for worker in self._workers]
    if obeyed or source not in {"template": template, "workers": workers}[sys.argv[1]]:
        serve(self, source)
Staff.serve = serve_late
manager.main()
"""


#: A manager that stands still for a second before it says that a task runs for long.
_TELLS_LATE = """
import time
from flux_endpoint.engine.workers import manager
tell = manager.Manager.running
def tell_late(*args):
    time.sleep(1)
    tell(*args)
manager.Manager.running = tell_late
manager.main()
"""


def start(settings: ManagerSettings, *program: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, *(program or ("-m", "flux_endpoint.engine.workers.manager"))]
    environment = {**job_environment(), VARIABLE: settings.dump()}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


class Pool:
    """The pool's end of a connection, in the test's hands."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
        self.socket.bind(address)

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart([b"m1", *frames])

    def submit(self, *tasks: tuple[dict[str, Any], bytes]) -> None:
        sizes, frames = combined(buffer for _, buffer in tasks)
        batch = {"headers": [header for header, _ in tasks], "sizes": sizes}
        self.send(b"tasks", json.dumps(batch).encode(), *frames)

    def receive(self, kind: bytes) -> list[bytes]:
        """Return what comes next, which is of this kind; that a task runs for long is left out."""
        got = b"running"
        while got == b"running":
            identity, got, *parts = self.socket.recv_multipart()
        assert (identity, got) == (b"m1", kind)
        return parts

    def greet(self) -> dict[str, Any]:
        """Await a manager's greeting, and let it start tasks."""
        [greeting] = self.receive(b"hello")
        self.send(b"go")
        return json.loads(greeting)

    def ends(self, count: int) -> list[tuple[dict[str, Any], bytes]]:
        """Return headers and bodies of so many ends."""
        ends: list[tuple[dict[str, Any], bytes]] = []
        while len(ends) < count:
            first, *frames = self.receive(b"ends")
            report = json.loads(first)
            ends += zip(report["headers"], divided(report["sizes"], frames), strict=True)
        return ends

    def ended(self, count: int) -> list[str]:
        """Return the ids of the tasks of so many results."""
        ends = self.ends(count)
        assert [header.get("end") for header, _ in ends] == [None] * count
        return [header["id"] for header, _ in ends]

    def held(self) -> dict[str, Any]:
        """Ask what is held; nothing more is started then."""
        self.send(b"held?", b"1")
        number, held = self.receive(b"held")
        assert number == b"1"
        return json.loads(held)

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def address(tmp_path) -> str:
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def new_pool(address) -> Iterator[Callable[[], Pool]]:
    pools = []

    def new() -> Pool:
        pools.append(Pool(address))
        return pools[-1]

    yield new
    for pool in pools:
        pool.close()


@pytest.fixture
def manager(tmp_path, address) -> Iterator[subprocess.Popen[bytes]]:
    process = start(settings(tmp_path, address))
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def start_late(tmp_path, address) -> Iterator[Callable[[str], None]]:
    """Starts a manager that hears late of its template, or of its workers."""
    processes = []

    def start_one(of_whom: str) -> None:
        processes.append(start(settings(tmp_path, address), "-c", _HEARS_LATE, of_whom))

    yield start_one
    for process in processes:
        process.kill()
        process.wait()


def task(name: str, function, *args) -> tuple[dict[str, Any], bytes]:
    return {"id": name}, buffer_of(function, *args).encode()


def test_a_manager_greets_runs_tasks_and_ends_on_request(new_pool, manager, tmp_path):
    pool = new_pool()
    assert pool.greet()["workers"] == 1
    pool.submit(task("a", double, 1), task("b", double, 2))
    assert pool.ended(2) == ["a", "b"]
    pool.send(b"safe", b"a b")
    pool.send(b"stop")
    assert json.loads(*pool.receive(b"bye")) == {"running": {}}
    assert manager.wait(PATIENCE) == 0
    assert not (tmp_path / "workers-m1.results").exists()


def test_a_manager_starts_nothing_before_the_go_message(new_pool, manager, tmp_path):
    pool = new_pool()
    pool.receive(b"hello")
    pool.submit(task("a", hold, str(tmp_path / "gate")))
    assert pool.held() == {"waiting": ["a"], "running": {}, "ended": []}
    pool.send(b"go")
    until((tmp_path / "begun").exists)
    assert [*pool.held()["running"]] == ["a"]


def test_a_stopping_manager_starts_no_queued_task(new_pool, manager, tmp_path):
    pool = new_pool()
    pool.greet()
    pool.submit(task("a", hold, str(tmp_path / "gate")), task("b", double, 2))
    until((tmp_path / "begun").exists)
    pool.send(b"stop")
    assert [*json.loads(*pool.receive(b"bye"))["running"]] == ["a"]


def test_without_an_agent_no_task_starts_and_results_are_kept(new_pool, manager, tmp_path):
    pool = new_pool()
    pool.greet()
    pool.submit(
        task("a", double, 1),
        task("b", hold, str(tmp_path / "gate")),
        task("c", hold, str(tmp_path / "gate")),
    )
    assert pool.ended(1) == ["a"]
    until((tmp_path / "begun").exists)
    pool.close()
    (tmp_path / "gate").touch()
    spooled = lambda: [end.header["id"] for end in read_spool(tmp_path / "workers-m1.results")]  # noqa: E731
    until(lambda: spooled() == ["a", "b"])
    pool = new_pool()
    pool.receive(b"hello")
    assert pool.held() == {"waiting": ["c"], "running": {}, "ended": ["a", "b"]}
    pool.send(b"go", b"c")
    assert pool.ended(2) == ["a", "b"]
    pool.send(b"safe", b"a b")
    until(lambda: not (tmp_path / "workers-m1.results").exists())
    assert pool.held() == {"waiting": [], "running": {}, "ended": []}


def test_unwanted_tasks_are_ended_without_a_report(new_pool, manager, tmp_path):
    pool = new_pool()
    pool.greet()
    seconds = fresh_seconds()
    pool.submit(task("a", ShellFunction(f"sleep {seconds}")))
    until(lambda: processes(seconds))
    pool.close()
    pool = new_pool()
    pool.receive(b"hello")
    assert [*pool.held()["running"]] == ["a"]
    pool.send(b"go", b"a")
    until(lambda: not processes(seconds))
    pool.submit(task("b", double, 2))
    assert pool.ended(1) == ["b"]


def test_a_manager_ends_with_its_job(new_pool, tmp_path, address):
    pool = new_pool()
    command = [sys.executable, "-m", "flux_endpoint.engine.workers.manager"]
    environment = {**job_environment(), VARIABLE: settings(tmp_path, address).dump()}
    shell = subprocess.Popen(["sh", "-c", '"$@" & wait', "sh", *command], env=environment)
    pid = pool.greet()["pid"]
    seconds = fresh_seconds()
    pool.submit(task("a", double, 1), task("b", ShellFunction(f"sleep {seconds}")))
    until(lambda: processes(seconds))
    shell.kill()
    shell.wait()
    assert pool.ended(2) == ["a", "a"]  # told once more, since it is not safe yet
    assert [*json.loads(*pool.receive(b"bye"))["running"]] == ["b"]
    until(lambda: not psutil.pid_exists(pid))
    assert not processes(seconds)
    assert [end.header for end in read_spool(tmp_path / "workers-m1.results")] == [{"id": "a"}]


def test_a_pool_at_another_address_is_found(new_pool, manager, tmp_path):
    pool = new_pool()
    pool.greet()
    pool.close()
    elsewhere = PoolAddress(f"ipc://{tmp_path}/elsewhere", "")
    other = Pool(elsewhere.connect)
    elsewhere.write(tmp_path)
    other.greet()
    other.send(b"stop")
    assert manager.wait(PATIENCE) == 0
    other.close()


def test_a_late_report_of_running_tasks_has_their_start_times(new_pool, tmp_path, address):
    pool = new_pool()
    process = start(settings(tmp_path, address), "-c", _TELLS_LATE)
    try:
        pool.greet()
        pool.submit(task("a", hold, str(tmp_path / "gate")))
        _, kind, name, since = pool.socket.recv_multipart()
        assert (kind, name) == (b"running", b"a")
        until((tmp_path / "begun").exists)
        assert float(since) <= (tmp_path / "begun").stat().st_mtime + 0.1
    finally:
        process.kill()
        process.wait()


def test_a_manager_returns_tasks_that_have_not_begun(new_pool, manager, tmp_path):
    pool = new_pool()
    pool.greet()
    pool.submit(task("a", hold, str(tmp_path / "gate")))
    until((tmp_path / "begun").exists)
    pool.submit(task("b", double, 2), task("c", double, 3))
    pool.send(b"return", b"1")
    assert pool.receive(b"returned") == [b"c"]
    pool.send(b"return", b"9")
    assert pool.receive(b"returned") == [b"b"]
    pool.send(b"return", b"9")
    assert pool.receive(b"returned") == []


@pytest.mark.parametrize("order", [(b"cancel",), (b"signal", b"10"), (b"terminate", b"time")])
def test_a_task_is_ended_whose_worker_has_just_been_forked(new_pool, start_late, tmp_path, order):
    pool = new_pool()
    start_late("template")
    pool.greet()
    pool.submit(task("a", hold, str(tmp_path / "gate")))
    until((tmp_path / "begun").exists)
    pool.send(*order, *([b"a"] if order[0] != b"terminate" else []))
    if order[0] == b"terminate":
        assert pool.receive(b"returned") == []
    [(header, body)] = pool.ends(1)
    assert header.pop("began") > 0
    if order[0] == b"terminate":
        assert (header, body) == ({"id": "a", "end": "lost"}, b"time")
    else:
        assert header == {"id": "a", "end": "cancelled"}


@pytest.mark.parametrize("order", [(b"cancel", b"a"), (b"signal", b"10", b"a")])
def test_cancelling_a_finished_task_does_not_affect_the_next_one(
    new_pool, start_late, tmp_path, order
):
    pool = new_pool()
    start_late("workers")
    pool.greet()
    pool.submit(task("a", double, 1), task("b", hold, str(tmp_path / "gate")))
    until((tmp_path / "begun").exists)
    pool.send(*order)
    assert pool.ended(1) == ["a"]
    (tmp_path / "gate").touch()
    assert pool.ended(1) == ["b"]


def test_only_the_running_task_is_lost_with_the_reason_of_the_pool(new_pool, start_late, tmp_path):
    pool = new_pool()
    start_late("workers")
    pool.greet()
    pool.submit(task("a", double, 1), task("b", hold, str(tmp_path / "gate")))
    until((tmp_path / "begun").exists)
    pool.send(b"terminate", b"time")
    assert pool.receive(b"returned") == []
    (a, _), (b, reason) = pool.ends(2)
    assert a == {"id": "a"}
    assert (b["id"], b["end"], reason) == ("b", "lost", b"time")


def test_a_manager_of_many_workers_waits_for_a_template_that_is_busy(new_pool, tmp_path, address):
    pool = new_pool()
    busy = (
        "import time; from flux_endpoint.engine.workers import manager, template\n"
        "template._serve = lambda *_: time.sleep(600)\n"
        "manager.main()\n"
    )
    # More than the kernel takes requests for.
    process = start(replace(settings(tmp_path, address), workers=1000), "-c", busy)
    try:
        pool.receive(b"hello")
        pool.send(b"stop")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_processes_of_a_killed_manager_end_with_it(new_pool, manager):
    pool = new_pool()
    pool.greet()
    seconds = fresh_seconds()
    pool.submit(task("a", ShellFunction(f"sleep {seconds} & wait")))
    until(lambda: processes(seconds))
    manager.kill()
    until(lambda: not processes(seconds))


def test_a_manager_without_an_agent_ends_after_a_while(tmp_path, address):
    process = start(replace(settings(tmp_path, address), start_timeout=0.2))
    assert process.wait(PATIENCE) == 0


def test_a_manager_whose_connections_fail_ends_after_a_while(tmp_path):
    often = (
        "import zmq; from flux_endpoint.engine.workers import link, manager\n"
        "new_socket = link.PoolLink._new_socket\n"
        "def impatient(self):\n"
        "    connection = new_socket(self)\n"
        "    connection.setsockopt(zmq.RECONNECT_IVL_MAX, 100)\n"
        "    return connection\n"
        "link.PoolLink._new_socket = impatient\n"
        "manager.main()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        there = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        process = start(replace(settings(tmp_path, there), start_timeout=0.5), "-c", often)
        try:
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
            server.shutdown(socket.SHUT_RDWR)


def test_a_manager_without_settings_says_who_starts_it():
    command = [sys.executable, "-m", "flux_endpoint.engine.workers.manager"]
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    end = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert end.returncode == 1
    assert "started by an endpoint's engine" in end.stderr


@pytest.fixture
def local_world(tmp_path, monkeypatch) -> Iterator[World]:
    monkeypatch.delenv("FLUX_URI", raising=False)
    world = World("local", tmp_path, workers_per_node=1)
    yield world
    world.stop()


def test_the_manager_of_an_earlier_agent_is_rejected(local_world, tmp_path):
    assert local_world.call(double, 1).value == 2
    stranger = start(settings(tmp_path, f"ipc://{tmp_path}/engine/pool.sock"))
    assert stranger.wait(PATIENCE) == 0
    assert local_world.call(double, 2).value == 4


@pytest.fixture
def loses(monkeypatch):
    """Has the connection break when the pool sends a message of a kind, once."""

    def lose(world: World, kind: bytes) -> Callable[[], None]:
        """Return what waits for that, and has the manager greet the pool again."""
        pool = world.engine._pool
        assert pool is not None
        real_send, dropped = pool._socket.send, []

        def send(manager_id, frames):
            if frames[0] == kind and not dropped:
                dropped.append(frames)
            else:
                real_send(manager_id, frames)

        def connect_again():
            until(lambda: dropped)
            [manager] = pool._managers.values()
            pool._tell(lambda: pool._greeted(manager, {"host": "again"}))

        for owner, name in (
            (pool._socket, "send"),
            (pool._book, "_send"),
            (pool._distributor, "_send"),
            (pool._lifecycle, "_send"),
        ):
            monkeypatch.setattr(owner, name, send)
        return connect_again

    return lose


def test_a_task_lost_on_a_broken_connection_is_sent_again(local_world, loses):
    assert local_world.call(double, 1).value == 2
    connect_again = loses(local_world, b"tasks")
    lost = local_world.submit(double, 21)
    connect_again()
    assert local_world.end(lost).value == 42


def test_a_task_is_ended_though_the_connection_broke_meanwhile(local_world, loses, tmp_path):
    task = local_world.submit(hold, str(tmp_path / "gate"))
    until((tmp_path / "begun").exists)
    connect_again = loses(local_world, b"cancel")
    local_world.engine.cancel(task)
    connect_again()
    assert local_world.end(task).code == "TaskCancelled"


def test_workers_end_although_the_connection_broke_during_the_stop_request(
    tmp_path, monkeypatch, loses
):
    monkeypatch.delenv("FLUX_URI", raising=False)
    world = World("local", tmp_path, workers_per_node=1, min_nodes=0, idle_timeout=0.1)
    try:
        connect_again = loses(world, b"stop")
        assert world.call(double, 1).value == 2
        connect_again()
        until(lambda: not world.engine._pool._managers)
    finally:
        world.stop()


def connection(address: str, identity: str) -> zmq.Socket[bytes]:
    """Connect as a manager, and greet the pool; return when the pool's socket has accepted it."""
    connection = zmq.Context.instance().socket(zmq.DEALER)
    connection.setsockopt(zmq.IDENTITY, identity.encode())
    connection.setsockopt(zmq.LINGER, 0)
    monitor = connection.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    connection.connect(address)
    connection.send_multipart([b"hello", b'{"host": "h"}'])
    assert monitor.poll(PATIENCE * 1000)
    connection.disable_monitor()
    return connection


def test_a_manager_that_reconnects_before_its_loss_was_noticed_is_served(local_world, tmp_path):
    pool = local_world.engine._pool
    address = f"ipc://{tmp_path}/engine/pool.sock"
    admitted, goes_on = threading.Event(), threading.Event()

    def admit():
        pool._socket.admit("m1", "secret")
        admitted.set()

    pool._tell(admit)
    assert admitted.wait(PATIENCE)
    first = connection(address, "secret")
    pool._tell(lambda: goes_on.wait(PATIENCE))
    first.close()
    second = connection(address, "secret")
    goes_on.set()

    def answer():
        pool._tell(lambda: pool._socket.send("m1", [b"held?"]))
        return second.poll(20) and second.recv_multipart()

    assert until(answer) == [b"held?"]
    second.close()


def test_messages_with_a_forged_manager_id_are_rejected(local_world, tmp_path):
    assert local_world.call(double, 1).value == 2
    pool = local_world.engine._pool
    [manager_id] = pool._managers
    task = local_world.submit(hold, str(tmp_path / "gate"))
    until((tmp_path / "begun").exists)
    impostor = connection(f"ipc://{tmp_path}/engine/pool.sock", manager_id)
    forged = json.dumps({"seconds": 1.0, "headers": [{"id": task}]}).encode()
    impostor.send_multipart([b"ends", forged, b"forged"])
    assert impostor.recv_multipart() == [b"stop"]
    (tmp_path / "gate").touch()
    assert local_world.end(task).value is None
    impostor.close()


def test_connection_files_are_private_and_the_socket_is_in_a_private_directory(
    local_world, tmp_path
):
    assert local_world.call(double, 1).value == 2
    notes = [*(tmp_path / "engine").glob("workers-*.json"), tmp_path / "engine" / "pool.json"]
    assert len(notes) == 2
    assert [note.stat().st_mode & 0o077 for note in notes] == [0, 0]
    assert (tmp_path / "engine" / "pool.sock").exists()


def test_a_socket_for_a_long_path_is_elsewhere_and_is_removed(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    with tempfile.TemporaryDirectory(prefix="t-") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        _run_below(tmp_path / ("long-" * 30), Path(short))


def _run_below(directory: Path, temporary: Path) -> None:
    directory.mkdir()
    world = World("local", directory, workers_per_node=1)
    assert world.call(double, 1).value == 2
    assert list(temporary.glob("flux-endpoint-*/pool.sock"))
    world.stop()
    assert list(temporary.iterdir()) == []


def test_a_manager_that_never_reaches_its_endpoint_names_the_option(tmp_path, address):
    alone = replace(settings(tmp_path, address), start_timeout=0.1)
    process = subprocess.Popen(
        [sys.executable, "-m", "flux_endpoint.engine.workers.manager"],
        env={**job_environment(), VARIABLE: alone.dump()},
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.communicate(timeout=PATIENCE)[1]
    assert "this node never reached the endpoint" in said
    assert "engine.address" in said
    assert address in said


@pytest.mark.parametrize("known", ["127.0.0.1", "localhost"])
def test_an_address_of_this_host_is_taken(known):
    _check_address(known, 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("no.such.host.invalid", "is neither an IPv4 address nor a name of one"),
        ("a..b", "is neither an IPv4 address nor a name of one"),
        ("fe80::1", "is neither an IPv4 address nor a name of one"),
        ("192.0.2.7", "is not an address of this host"),  # reserved for documentation
    ],
)
def test_an_address_that_the_nodes_can_not_use_is_refused_by_the_options_name(wrong, said):
    with pytest.raises(ConfigurationError, match=f"engine.address: .*{said}"):
        _check_address(wrong, 1)
