"""Between the pool and its managers: strangers, broken connections, what is held where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from engine_world import PATIENCE, World, buffer_of, until

from flux_endpoint.engine.environment import job_environment
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.settings import VARIABLE, ManagerSettings


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
        connect=address,
        token="right",
        server_key="",
        public_key="",
        secret_key="",
        workers=1,
        gpus_per_worker=0,
        tasks=tasks,
        orphan_timeout=60.0,
    )


def start(settings: ManagerSettings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flux_endpoint.engine.workers.manager"]
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

    def receive(self, kind: bytes) -> list[bytes]:
        identity, got, *parts = self.socket.recv_multipart()
        assert (identity, got) == (b"m1", kind)
        return parts

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


def task(name: str, function, *args) -> list[bytes]:
    return [json.dumps({"id": name}).encode(), buffer_of(function, *args).encode()]


def test_a_manager_greets_works_and_ends_when_told(new_pool, manager):
    pool = new_pool()
    token, greeting = pool.receive(b"hello")
    assert token == b"right"
    assert json.loads(greeting)["workers"] == 1
    pool.send(b"tasks", *task("a", double, 1), *task("b", double, 2))
    _, *results = pool.receive(b"results")
    while len(results) < 4:
        results += pool.receive(b"results")[1:]
    assert results[::2] == [b"a", b"b"]
    pool.send(b"stop")
    assert manager.wait(PATIENCE) == 0


def test_a_manager_greets_again_after_a_break_and_says_what_it_holds(new_pool, manager, tmp_path):
    pool = new_pool()
    pool.receive(b"hello")
    pool.send(b"tasks", *task("a", hold, str(tmp_path / "gate")), *task("b", double, 2))
    pool.send(b"held?")
    assert sorted(pool.receive(b"held")) == [b"a", b"b"]
    pool.close()
    pool = new_pool()
    pool.receive(b"hello")
    pool.send(b"held?")
    assert sorted(pool.receive(b"held")) == [b"a", b"b"]
    (tmp_path / "gate").touch()
    results = [*pool.receive(b"results")[1::2]]
    while len(results) < 2:
        results += pool.receive(b"results")[1::2]
    assert results == [b"a", b"b"]
    pool.send(b"held?")
    assert pool.receive(b"held") == []


def test_a_manager_gives_tasks_back_that_have_not_begun(new_pool, manager, tmp_path):
    pool = new_pool()
    pool.receive(b"hello")
    pool.send(b"tasks", *task("a", hold, str(tmp_path / "gate")))
    until((tmp_path / "begun").exists)
    pool.send(b"tasks", *task("b", double, 2), *task("c", double, 3))
    pool.send(b"return", b"1")
    assert pool.receive(b"returned") == [b"c"]
    pool.send(b"return", b"9")
    assert pool.receive(b"returned") == [b"b"]
    pool.send(b"return", b"9")
    assert pool.receive(b"returned") == []


def test_a_manager_without_an_agent_ends_after_a_while(tmp_path, address):
    process = start(replace(settings(tmp_path, address), orphan_timeout=0.2))
    assert process.wait(PATIENCE) == 0


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


def test_the_manager_of_an_earlier_agent_is_sent_away(local_world, tmp_path):
    assert local_world.call(double, 1).value == 2
    stranger = start(settings(tmp_path, f"ipc://{tmp_path}/engine/pool.sock"))
    assert stranger.wait(PATIENCE) == 0
    assert local_world.call(double, 2).value == 4


def test_a_task_lost_on_a_broken_connection_is_sent_again(local_world, monkeypatch):
    assert local_world.call(double, 1).value == 2
    pool = local_world.engine._pool
    assert pool is not None
    real_send, dropped = pool._launcher.send, []

    def send(manager_id, frames):
        if frames[0] == b"tasks" and not dropped:
            dropped.append(frames)
        else:
            real_send(manager_id, frames)

    monkeypatch.setattr(pool._launcher, "send", send)
    lost = local_world.submit(double, 21)
    until(lambda: dropped)
    assert not local_world.has_ended(lost)
    [manager] = pool._managers.values()
    pool._tell(lambda: pool._greeted(manager, {"host": "again"}))
    assert local_world.end(lost).value == 42


def test_nobody_else_can_read_the_job_files_and_the_socket_is_in_a_private_place(
    local_world, tmp_path
):
    assert local_world.call(double, 1).value == 2
    [record] = (tmp_path / "engine").glob("workers-*.job")
    assert record.stat().st_mode & 0o077 == 0
    assert (tmp_path / "engine" / "pool.sock").exists()


def test_a_long_path_has_its_socket_elsewhere_and_nothing_is_left(tmp_path, monkeypatch):
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
