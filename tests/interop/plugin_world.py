"""The official user endpoint with our engine inside, and what its multi-user endpoint is to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pika
import yaml
from tests.engine.engine_world import End, buffer_of

from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import EPStatusReport, Result, Task, pack, unpack
from flux_endpoint.service import topology

#: Seconds after which something that should happen counts as not happening.
PATIENCE = 60
PLUGIN = "flux_endpoint.integrations.globus_compute"
_ENTRY = "#!{python}\nfrom globus_compute_endpoint.cli import cli_run\ncli_run()\n"


class PluginEnvironment:
    """A virtual environment of its own on top of installed packages: for a test to change.

    Args:
        directory: where to make it.
        installed: the Python whose packages it has.
    """

    def __init__(self, directory: Path, installed: str) -> None:
        subprocess.run([installed, "-m", "venv", "--without-pip", str(directory)], check=True)
        self.python = str(directory / "bin" / "python")
        asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
        theirs = subprocess.check_output([installed, "-c", asked], text=True).strip()
        self.packages = Path(subprocess.check_output([self.python, "-c", asked], text=True).strip())
        (self.packages / "below.pth").write_text(f"import site; site.addsitedir({theirs!r})\n")
        command = directory / "bin" / "globus-compute-endpoint"
        command.write_text(_ENTRY.format(python=self.python))
        command.chmod(0o755)
        self._kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLUX_", "PMI_", "GLOBUS_", "PYTHON"))
        }
        # At the end: our own environment, for its `mpiexec`.
        ours = Path(sys.executable).parent
        self._kept["PATH"] = f"{directory / 'bin'}:{self._kept['PATH']}:{ours}"

    def variables(self, home: Path, **more: str) -> dict[str, str]:
        return {**self._kept, "HOME": str(home), **more}

    def run(
        self, *arguments: str, status: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python."""
        done = subprocess.run(
            [self.python, *arguments],
            env={**self._kept, **variables},
            cwd=self.packages,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def switch(self, command: str, status: int = 0) -> str:
        """Run `python -m flux_endpoint.integrations.globus_compute …`."""
        done = self.run("-m", PLUGIN, command, status=status)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def files(self) -> dict[str, bytes]:
        """What its site-packages hold."""
        return {
            str(path.relative_to(self.packages)): path.read_bytes()
            for path in self.packages.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }


class UserEndpoint:
    """A user endpoint as its multi-user endpoint would start it, and the broker's side of it.

    Args:
        environment: where the official package and the plugin are.
        home: a new directory for it.
        amqp_url: a virtual host of its own.
        flux_uri: a Flux instance; `None`: the embedded executor.
    """

    def __init__(
        self, environment: PluginEnvironment, home: Path, amqp_url: str, flux_uri: str | None
    ) -> None:
        self._environment = environment
        self._url = amqp_url
        self._variables = {} if flux_uri is None else {"FLUX_URI": flux_uri}
        self.home = home
        self.endpoint_id = str(uuid.uuid4())
        self.directory = home / ".globus_compute" / "uep"
        self.directory.mkdir(parents=True)
        parameters = pika.URLParameters(amqp_url)
        parameters.heartbeat = 0  # it is not read from for as long as tests need something else
        self._connection = pika.BlockingConnection(parameters)
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()
        for each in [*topology.shared(), *topology.of_endpoint(self.endpoint_id)]:
            self._declare(each)
        self._results: dict[str, list[bytes]] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def _declare(self, what: topology.Declaration) -> None:
        if isinstance(what, topology.Exchange):
            self._channel.exchange_declare(
                what.name, what.type, durable=True, arguments=what.arguments
            )
        elif isinstance(what, topology.Queue):
            self._channel.queue_declare(what.name, durable=True, arguments=what.arguments)
        else:
            self._channel.queue_bind(what.queue, what.exchange, what.routing_key)

    def start(self, *, allowed_functions: list[str] | None = None, **engine: Any) -> None:
        """Start it, with these options of the engine, and wait for its first report."""
        config = {
            "heartbeat_period": 5,
            "engine": {"type": "FluxEngine", **engine},
        }
        creds = queues.endpoint_queues(self.endpoint_id, self._url)
        told: dict[str, Any] = {
            "amqp_creds": creds.model_dump(exclude={"event_queue_info"}),
            "config": yaml.safe_dump(config),
            "ep_info": {},
        }
        if allowed_functions is not None:
            told["allowed_functions"] = allowed_functions
        self._bodies(queues.HEARTBEATS_QUEUE)  # of an earlier process
        self.process = subprocess.Popen(
            ["globus-compute-endpoint", "-c", self.directory.parent, "_start-user-endpoint", "uep"],
            env=self._environment.variables(self.home, **self._variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=(self.home / "stderr").open("ab"),
            start_new_session=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told).encode())
        self.process.stdin.close()
        self.report(lambda state: state.get("active"))

    def report(self, wanted: Callable[[Mapping[str, Any]], Any]) -> Mapping[str, Any]:
        """Wait for a status report that is as `wanted`."""
        return self.until(lambda: self._matching_report(wanted))

    def _matching_report(
        self, wanted: Callable[[Mapping[str, Any]], Any]
    ) -> Mapping[str, Any] | None:
        for body in self._bodies(queues.HEARTBEATS_QUEUE):
            report = unpack(body)
            assert isinstance(report, EPStatusReport)
            if wanted(report.global_state):
                return report.global_state
        return None

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        spec: dict[str, Any] | None = None,
        serializers: list[str] | None = None,
        buffer: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Send a task; return its id."""
        task_id = str(uuid.uuid4())
        self.send(task_id, buffer or buffer_of(function, *args, **kwargs), spec, serializers)
        return task_id

    def send(
        self,
        task_id: str,
        buffer: str,
        spec: dict[str, Any] | None = None,
        serializers: list[str] | None = None,
    ) -> None:
        body = pack(Task(task_id=uuid.UUID(task_id), task_buffer=buffer))
        self.send_body(task_id, body, spec, serializers)

    def send_body(
        self,
        task_id: str,
        body: bytes,
        spec: dict[str, Any] | None = None,
        serializers: list[str] | None = None,
    ) -> None:
        """Send a message as a task's, whatever is in it."""
        headers: dict[str, Any] = {
            queues.TASK_ID_HEADER: task_id,
            queues.FUNCTION_ID_HEADER: str(uuid.UUID(int=1)),
            queues.RESOURCES_HEADER: json.dumps(spec),
        }
        if serializers:
            headers[queues.RESULT_SERIALIZERS_HEADER] = serializers
        self._channel.basic_publish(
            queues.TASKS_EXCHANGE,
            queues.tasks_queue(self.endpoint_id),
            body,
            pika.BasicProperties(headers=headers, delivery_mode=2),
            mandatory=True,
        )

    def end(self, task_id: str) -> End:
        """Wait for a task's end."""
        return End(self.until(lambda: self.ends(task_id))[0])

    def ends(self, task_id: str) -> list[bytes]:
        """The ends of a task that have come so far."""
        for body in self._bodies(queues.RESULTS_QUEUE):
            message = unpack(body)
            assert isinstance(message, Result)
            self._results.setdefault(str(message.task_id), []).append(body)
        return self._results.get(task_id, [])

    def accepted(self) -> int:
        """How many tasks the engine has on record."""
        (path,) = self.directory.rglob("tasks.db")
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            (count,) = database.execute("SELECT count(*) FROM tasks").fetchone()
        return int(count)

    def lose_queue(self) -> None:
        """Let the broker forget the tasks that an ended endpoint had not acknowledged yet."""
        queue = queues.tasks_queue(self.endpoint_id)

        def unused() -> bool:
            return self._channel.queue_declare(queue, passive=True).method.consumer_count == 0

        self.until(unused, running=False)
        self._channel.queue_purge(queue)

    def _bodies(self, queue: str) -> list[bytes]:
        bodies = []
        while (got := self._channel.basic_get(queue, auto_ack=True))[0] is not None:
            bodies.append(got[2])
        return bodies

    def until(self, wanted: Callable[[], Any], *, running: bool = True) -> Any:
        """Wait until what `wanted` returns is true; return that."""
        deadline = time.monotonic() + PATIENCE
        while not (found := wanted()):
            ended = running and (self.process is None or self.process.poll() is not None)
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"it did not happen:\n{self.log()[-20_000:]}")
            self._connection.sleep(0.05)
        return found

    def log(self) -> str:
        """What the endpoint has logged."""
        files = [self.home / "stderr", *self.directory.rglob("*.log")]
        return "".join(f"== {file}\n{file.read_text()}\n" for file in files if file.exists())

    def kill(self) -> None:
        """End the process itself, and nothing else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        # As a multi-user endpoint does: it refuses to start beside one that looks alive.
        for path in self.directory.glob("*.pid"):
            path.unlink()

    def stop(self) -> None:
        """End it in good order."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                raise

    def close(self) -> None:
        """Stop it, and let go of the broker."""
        try:
            self.stop()
        finally:
            self._connection.close()
            shutil.rmtree(self.directory, ignore_errors=True)
