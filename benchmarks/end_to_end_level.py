"""Measures client, service and endpoint together.

Our client and the official one each use our endpoint and the official one, always through our
service.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from instance import instance
from levels import Answer, Comparison, Level, Row, Station
from peers import OURS, PEERS, PROGRAMS, ROOT, ContenderError, environment, run_program
from resident import forget_peaks, peak, processes_in
from work import PATIENCE, WORKERS

sys.path += [str(ROOT), str(ROOT / "tests")]

from tests.interop.official_endpoint import OfficialEndpoint, official_environment

_MODULE = ["-m", "flux_endpoint"]
_PEAKS = ("peak-client", "peak-service", "peak-endpoint", "peak-broker")
_WORK = ("e2e-functions", "e2e-function-p50", "e2e-commands", "e2e-megabyte")
#: Configuration of the official endpoint, with as many workers on this machine as ours has.
_TEMPLATE = f"""
engine:
  type: GlobusComputeEngine
  max_workers_per_node: {WORKERS}
  address: 127.0.0.1
  provider:
    type: LocalProvider
    init_blocks: 1
    min_blocks: 1
    max_blocks: 1
"""


@dataclass(frozen=True)
class Service:
    """A running broker and service, with their own state directory."""

    home: Path

    @property
    def credentials(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.home / "credentials.json").read_text())
        return found

    def peaks(self, processes: list[psutil.Process]) -> dict[str, float]:
        """Return the peak memory (MiB) of service and broker, by row."""
        found = dict.fromkeys(("peak-service", "peak-broker"), 0.0)
        for process in processes:
            words = _words(process)
            if words[-2:] == ["service", "run"]:
                found["peak-service"] = peak(process)
            elif any("beam" in Path(word).name for word in words[:1]):
                found["peak-broker"] = peak(process)
        return found


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _run(*arguments: str, python: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [python, *_MODULE, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode != 0:
        raise ContenderError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")


@contextmanager
def _up(home: Path, *arguments: str, **more: str) -> Iterator[None]:
    """Run `flux-endpoint up` in the foreground."""
    variables = environment(OURS, FLUX_ENDPOINT_HOME=str(home), **more)
    with subprocess.Popen(
        [OURS, *_MODULE, "up", *arguments], env=variables, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if line.rstrip().endswith("ends it."):  # the last line of a complete start
                    break
            else:
                raise ContenderError(f"the stack did not come up: {''.join(said)}")
            yield
        finally:
            process.terminate()
            process.stdout.read()


@contextmanager
def service_in(directory: Path) -> Iterator[Service]:
    with _up(directory / "service", "--no-endpoint"):
        yield Service(directory / "service")


class _FirstResult:
    """A client that waits for an endpoint's id, and then reports the time of its first result."""

    def __init__(self, home: Path) -> None:
        self._process = subprocess.Popen(
            [OURS, "-W", "ignore", PROGRAMS / "first_result.py"],
            env=environment(OURS, FLUX_ENDPOINT_HOME=str(home)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def of(self, endpoint_id: str) -> float:
        """Return the time (s since the epoch) of the first result from an endpoint."""
        assert self._process.stdin is not None
        print(endpoint_id, file=self._process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ContenderError(f"first_result.py ended with status {self._process.wait()}")
        return line

    def __enter__(self) -> _FirstResult:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def private() -> Iterator[Path]:
    """Yield an empty directory."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def endpoint_id_of(home: Path, name: str) -> str:
    """Return the id of one of our endpoints.

    Args:
        home: its state directory.
        name: its name.
    """
    text = (home / "endpoints" / name / "endpoint.json").read_text()
    return str(json.loads(text)["endpoint_id"])


def whole_stack(counts: dict[str, int]) -> Iterator[Answer]:
    """Measure the time from `flux-endpoint up` to the first result of a function."""
    with private() as directory, instance(1, WORKERS) as uri, _FirstResult(directory) as first:
        begun = time.time()
        with _up(directory, FLUX_URI=uri):
            came = first.of(endpoint_id_of(directory, "local"))
        for row in counts:
            yield Answer(row, "ours", came - begun)


@contextmanager
def our_endpoint_in(home: Path, service: Service, uri: str, python: Path = OURS) -> Iterator[float]:
    """Run one of our endpoints; yields the time (s since the epoch) at which its start began."""
    credentials = service.credentials
    variables = environment(
        python,
        FLUX_ENDPOINT_HOME=str(home),
        FLUX_ENDPOINT_SERVICE_URL=credentials["service_url"],
        FLUX_ENDPOINT_TOKEN=credentials["token"],
        FLUX_URI=uri,
    )
    _run("configure", "lab", python=python, variables=variables)
    config = {"engine": {"type": "FluxEngine", "max_workers": WORKERS}}
    (home / "endpoints" / "lab" / "config.yaml").write_text(yaml.safe_dump(config))
    begun = time.time()
    _run("start", "lab", "--detach", python=python, variables=variables)
    try:
        yield begun
    finally:
        _run("stop", "lab", python=python, variables=variables)


@contextmanager
def running(directory: Path, python: Path) -> Iterator[tuple[Service, Path]]:
    """Run our service and endpoint; yields the service and the endpoint's state directory.

    Args:
        directory: an empty directory.
        python: interpreter of the endpoint and its tasks.
    """
    home = directory / "endpoint"
    with (
        instance(1, WORKERS) as uri,
        service_in(directory) as service,
        our_endpoint_in(home, service, uri, python),
    ):
        yield service, home


def our_endpoint(counts: dict[str, int]) -> Iterator[Answer]:
    """Measure both clients on our endpoint."""
    with (
        private() as directory,
        instance(1, WORKERS) as uri,
        service_in(directory) as service,
        _FirstResult(service.home) as first,
    ):
        home = directory / "endpoint"
        with our_endpoint_in(home, service, uri) as begun:
            endpoint_id = endpoint_id_of(home, "lab")
            came = first.of(endpoint_id)
            if "endpoint-start" in counts:
                yield Answer("endpoint-start", "ours", came - begun)
            users = {"ours": "ours", "official": "official-client"}
            yield from _clients(counts, users, endpoint_id, service, home)


def official_endpoint(counts: dict[str, int]) -> Iterator[Answer]:
    """Measure both clients on the official endpoint."""
    with (
        private() as directory,
        service_in(directory) as service,
        _FirstResult(service.home) as first,
    ):
        home = directory / "endpoint"
        home.mkdir()
        credentials = service.credentials
        variables = official_environment(credentials["service_url"], credentials["token"], home)
        endpoint = OfficialEndpoint(
            home, str(PEERS), variables, template=_TEMPLATE, period=30, debug=False
        )
        try:
            begun = time.time()
            endpoint.start()
            came = first.of(endpoint.id)
            if "endpoint-start" in counts:
                yield Answer("endpoint-start", "official", came - begun)
            users = {"ours": "official-endpoint", "official": "official"}
            yield from _clients(counts, users, endpoint.id, service, home)
        finally:
            endpoint.clean_up()


def _clients(
    counts: dict[str, int], users: dict[str, str], endpoint_id: str, service: Service, home: Path
) -> Iterator[Answer]:
    """Let each client submit to an endpoint.

    Args:
        counts: number of tasks by row.
        users: contender by client.
        endpoint_id: the endpoint.
        service: its service.
        home: its state directory.
    """
    work = {row: n for row, n in counts.items() if row.startswith("e2e-")}
    large = {row: n for row, n in counts.items() if row in _PEAKS}
    for client, contender in users.items():
        if work:
            for row, value in _run_client(client, work, endpoint_id, service, home):
                yield Answer(row, contender, value)
    # Measure memory last and with a separate client, after resetting the peaks of earlier rows.
    if large:
        client, contender = next(u for u in users.items() if u[1] in ("ours", "official"))
        below = processes_in(service.home), processes_in(home)
        forget_peaks([*below[0], *below[1]])
        peaks = dict(_run_client(client, large, endpoint_id, service, home))
        peaks |= service.peaks(below[0])
        peaks["peak-endpoint"] = max(map(peak, below[1]))
        for row in large:
            yield Answer(row, contender, peaks[row])


def _run_client(
    client: str, counts: dict[str, int], endpoint_id: str, service: Service, home: Path
) -> Iterator[tuple[str, float]]:
    python = OURS if client == "ours" else PEERS
    options = {"client": client, "endpoint_id": endpoint_id}
    variables = client_variables(client, python, service, home)
    return run_program(python, "client.py", counts, options, variables)


def client_variables(client: str, python: Path, service: Service, home: Path) -> dict[str, str]:
    """Return the environment of a client.

    Args:
        client: "ours" or "official".
        python: its interpreter.
        service: its service.
        home: directory for the logins of the official client.
    """
    if client == "ours":
        return environment(python, FLUX_ENDPOINT_HOME=str(service.home))
    credentials = service.credentials
    user = official_environment(credentials["service_url"], credentials["token"], home)
    found = environment(python) | {
        name: value for name, value in user.items() if os.environ.get(name) != value
    }
    return {name: value for name, value in found.items() if name in user or name == "PYTHONPATH"}


def rabbitmq(counts: dict[str, int]) -> Iterator[Answer]:
    """Measure the broker alone."""
    options: dict[str, Any] = {}
    for row, value in run_program(OURS, "rabbitmq.py", counts, options, environment(OURS)):
        yield Answer(row, "rabbitmq", value)


END_TO_END = Level(
    key="end-to-end",
    title="End to end",
    rows=[
        Row("e2e-functions", "no-op functions", "/s", 3000, 256),
        Row("e2e-function-p50", "one function at a time, p50", "ms", 50, 5, "less"),
        Row("e2e-commands", 'ShellFunction("true")', "/s", 1000, 100),
        Row("e2e-megabyte", "1 MiB in, 1 MiB out", "/s", 50, 6),
        *(
            Row(f"peak-{who}", f"results of 5 MiB, peak RSS of {title}", "MiB", 50, 8, "less")
            for who, title in (
                ("client", "client"),
                ("service", "service"),
                ("endpoint", "endpoint"),
                ("broker", "broker"),
            )
        ),
        Row("endpoint-start", "endpoint start to first result", "s", 1, 1, "less"),
        Row("stack-start", "start of all to first result", "s", 1, 1, "less"),
    ],
    contenders={
        "ours": "our client, our endpoint",
        "official": "official client, official endpoint",
        "official-client": "official client, our endpoint",
        "official-endpoint": "our client, official endpoint",
        "rabbitmq": "limit: RabbitMQ alone",
    },
    stations=[
        Station("our stack", ("stack-start",), whole_stack),
        Station("our endpoint", (*_WORK, *_PEAKS, "endpoint-start"), our_endpoint),
        Station("official endpoint", (*_WORK, *_PEAKS, "endpoint-start"), official_endpoint),
        Station("RabbitMQ", ("e2e-megabyte",), rabbitmq),
    ],
    comparisons=[
        Comparison("e2e-functions", "ours", "official", 6),
        Comparison("e2e-functions", "ours", "official-client"),
        Comparison("e2e-functions", "ours", "official-endpoint"),
        Comparison("e2e-function-p50", "ours", "official", 0.02),
        Comparison("e2e-function-p50", "ours", "official-endpoint"),
        Comparison("e2e-commands", "ours", "official", 4),
        Comparison("e2e-megabyte", "ours", "official", 10),
        Comparison("e2e-megabyte", "ours", "rabbitmq", 0.3),
        Comparison("peak-service", "ours", None, 200),
        Comparison("peak-endpoint", "ours", None, 200),
        Comparison("peak-endpoint", "ours", "official"),
        Comparison("peak-client", "ours", "official"),
        Comparison("endpoint-start", "ours", "official"),
        Comparison("stack-start", "ours", None, 6),
    ],
)
