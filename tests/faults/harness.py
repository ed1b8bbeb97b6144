"""A mixed load on a whole stack, faults while it runs, and an account of each task.

Run as `make faults`, or `python tests/faults/harness.py --seed N`. A stack of `flux-endpoint up` in
a directory of its own runs functions, commands and jobs, on the embedded executor and, where there
is Flux, in an instance of it. Meanwhile its processes are killed or stopped for a while, as a
random number generator says whose seed is printed. Ends with 1 if a task is lost or delivered
twice, or if a function that had completed runs again though no worker was killed: on Flux workers
outlive the agent, on the embedded executor they end with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from accounting import Task, account, read_evidence, table

sys.path.insert(0, str(Path(__file__).parents[1]))

from flux_endpoint import Client, Executor, ShellFunction
from ports import reserved_port

#: As `flux-endpoint up`, whose pauses before it starts something again do not grow.
UP = (
    "import flux_endpoint.stack.programs as programs; programs.MAX_BACKOFF = 0.5; "
    "from flux_endpoint.cli.main import main; import sys; main(['up', '--port', sys.argv[1]])"
)
#: Kinds of tasks, and how often each is submitted.
KINDS = {"function": 6, "command": 3, "job": 1}
#: What is done to whom, and how often.
FAULTS = {
    ("kill", "agent"): 4,
    ("kill", "service"): 3,
    ("kill", "broker"): 2,
    ("kill", "worker"): 3,
    ("kill", "manager"): 2,
    ("stop", "agent"): 2,
    ("stop", "service"): 2,
    ("stop", "broker"): 1,
    ("stop", "manager"): 2,
}
#: Seconds between two faults, and for which a process is stopped.
PAUSE, STOPPED = (0.5, 5.0), (0.5, 4.0)
#: Seconds for the stack to come up, and for all tasks to end once the faults are over.
START, PATIENCE = 120.0, 300.0
#: Broken promises that are printed.
SHOWN = 20
MANAGER = "flux_endpoint.engine.workers.manager"


def work(log: str, name: str, seconds: float) -> str:
    """A function that leaves evidence of its beginning and its end."""
    import os
    import time

    def note(what: str) -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{name} {what} {time.time()}\n".encode())
        os.close(descriptor)

    note("begun")
    time.sleep(seconds)
    note("completed")
    return name


COMMAND = ShellFunction(
    'export LC_ALL=C; echo "{name} begun $EPOCHREALTIME" >> {log}; sleep {seconds}; '
    'echo "{name} completed $EPOCHREALTIME" >> {log}; echo {name}'
)


class Stack:
    """A stack of its own: its processes, and where clients find it."""

    def __init__(self, home: Path, executor: str, port: int) -> None:
        self.home = home
        self._port = port
        self.on_flux = executor == "flux"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
        self._environment = {**kept, "FLUX_ENDPOINT_HOME": str(home)}
        self._flux = ["flux", "start", "--test-size=2"] if self.on_flux else []
        self._log = (home / "up.txt").open("wb")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        configure = [sys.executable, "-m", "flux_endpoint", "configure", "local"]
        subprocess.run(configure, env=self._environment, check=True, stdout=self._log)
        (self.home / "endpoints" / "local" / "config.yaml").write_text(
            json.dumps({"engine": {"max_retries_on_system_failure": 5}, "heartbeat_period": 5})
        )
        self._process = subprocess.Popen(
            [*self._flux, sys.executable, "-c", UP, str(self._port)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + START
        while b"Ready after" not in (self.home / "up.txt").read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the stack does not come up:\n{self.said()}")
            time.sleep(0.1)
        # What is not found is not killed either, and a run would promise more than it has seen.
        if missing := [what for what in ("agent", "service", "broker") if not self.processes(what)]:
            raise SystemExit(f"these parts of the stack are not found: {', '.join(missing)}")

    def stop(self) -> None:
        assert self._process is not None
        up = self.state().get("pid")
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(up, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        if self._process.poll() is None:
            self._process.kill()
        self._log.close()

    def state(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.home / "stack" / "state.json").read_text()))
        except (OSError, ValueError):
            return {}

    def said(self) -> str:
        return (self.home / "up.txt").read_text(errors="replace")[-3000:]

    def client(self) -> Client:
        credentials = json.loads((self.home / "credentials.json").read_text())
        return Client(credentials["service_url"], credentials["token"])

    @property
    def endpoint_id(self) -> str:
        text = (self.home / "endpoints" / "local" / "endpoint.json").read_text()
        return str(json.loads(text)["endpoint_id"])

    def processes(self, what: str) -> list[psutil.Process]:
        """Return the processes of a part that run now."""
        found = []
        for process in self._all():
            with contextlib.suppress(psutil.Error):
                if self._is(what, process):
                    found.append(process)
        return found

    def _all(self) -> Iterator[psutil.Process]:
        up = self.state().get("pid")
        below: set[int] = set()
        with contextlib.suppress(psutil.Error, TypeError):
            below = {each.pid for each in psutil.Process(up).children(recursive=True)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get("FLUX_ENDPOINT_HOME") == str(self.home)
                if ours or process.pid in below:
                    yield process

    def _is(self, what: str, process: psutil.Process) -> bool:
        command = process.cmdline()
        parent = process.parent()
        above = parent.cmdline() if parent is not None else []
        match what:
            case "agent":
                return _module(command)[:2] == ["flux_endpoint", "start"]
            case "service":
                return _module(command)[:3] == ["flux_endpoint", "service", "run"]
            case "broker":
                return process.name() == "beam.smp"
            case "manager":
                return MANAGER in command and MANAGER not in above
            case _:  # the manager's only child is the template, whose children are workers
                over = parent.parent() if parent is not None else None
                deep = over is not None and MANAGER in over.cmdline()
                return MANAGER in command and MANAGER in above and deep


def _module(command: list[str]) -> list[str]:
    """Return the module that Python runs in a process, and its arguments."""
    return command[command.index("-m") + 1 :] if "-m" in command else []


class Faults:
    """Does what the generator says, on a thread of its own, until it is told to end."""

    def __init__(self, stack: Stack, chance: random.Random) -> None:
        self._stack = stack
        self._chance = chance
        self._ends_workers = {"worker", "manager"}
        if not stack.on_flux:
            self._ends_workers.add("agent")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults")
        self.done: Counter[str] = Counter()
        #: When workers were killed, or what they run under.
        self.worker_kills: list[float] = []

    def __enter__(self) -> Faults:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        pause = self._chance.uniform(*PAUSE)
        while not self._over.wait(pause):
            how, whom = self._chance.choices(list(FAULTS), list(FAULTS.values()))[0]
            seconds, place = self._chance.uniform(*STOPPED), self._chance.random()
            there = self._stack.processes(whom)
            if not there:  # they are just starting: somebody else, then
                pause = PAUSE[0]
                continue
            pause = self._chance.uniform(*PAUSE)
            victim = there[int(place * len(there))]
            with contextlib.suppress(psutil.Error):
                self._hit(how, whom, victim, seconds)
                self.done[f"{how} {whom}"] += 1

    def _hit(self, how: str, whom: str, victim: psutil.Process, seconds: float) -> None:
        if how == "stop":
            victim.suspend()
            self._over.wait(seconds)
            victim.resume()
            return
        if whom in self._ends_workers:
            self.worker_kills.append(time.time())
        victim.kill()


def submit_all(
    stack: Stack, tasks: dict[str, Task], *, count: int, seconds: float, chance: random.Random
) -> list[Future[Any]]:
    """Submit `count` tasks over `seconds`; what they come to is noted as it comes."""
    log = str(stack.home / "evidence")
    plain = Executor(stack.endpoint_id, client=stack.client())
    ranked = Executor(
        stack.endpoint_id, client=stack.client(), resource_specification={"num_ranks": 1}
    )
    futures = []
    for number in range(count):
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        name, took = f"{kind}-{number}", chance.choice([0.0, 0.1, 0.5, 2.0])
        tasks[name] = Task(kind)
        if kind == "function":
            future = plain.submit(work, log, name, took)
        else:
            executor = ranked if kind == "job" else plain
            future = executor.submit(COMMAND, log=log, name=name, seconds=took)
        future.add_done_callback(partial(_note, tasks[name], name))
        futures.append(future)
        time.sleep(seconds / count)
    return futures


def _note(task: Task, name: str, future: Future[Any]) -> None:
    try:
        value = future.result()
        said = value if isinstance(value, str) else value.stdout.strip()
        task.delivered.append("" if said == name else repr(value)[:200])
    except BaseException as error:
        lines = str(error).strip().splitlines()
        task.delivered.append(f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200])


def run(executor: str, seed: int, *, count: int, seconds: float) -> bool:
    """Run once; return whether each task is accounted for."""
    print(f"{executor}: seed {seed}, {count} tasks in {seconds:g} s", flush=True)
    home = Path(tempfile.mkdtemp(prefix="flux-endpoint-faults-"))
    with reserved_port() as port:  # nobody else is given it while the service is down
        return _run(Stack(home, executor, port), seed, count=count, seconds=seconds)


def _run(stack: Stack, seed: int, *, count: int, seconds: float) -> bool:
    tasks: dict[str, Task] = {}
    try:
        stack.start()
        with Faults(stack, random.Random(seed)) as faults:
            load = random.Random(seed + 1)
            futures = submit_all(stack, tasks, count=count, seconds=seconds, chance=load)
        begun = time.monotonic()
        deadline = begun + PATIENCE
        for future in futures:
            with contextlib.suppress(BaseException):
                future.result(max(0.0, deadline - time.monotonic()))
        settled = time.monotonic() - begun
        time.sleep(2.0)  # for an end that comes once more
    finally:
        stack.stop()
    evidence = stack.home / "evidence"
    if evidence.exists():
        read_evidence(evidence.read_text(errors="replace").splitlines(), tasks)
    found = account(tasks, faults.worker_kills)
    print(table(found.rows))
    print("faults: " + ", ".join(f"{each} {n}" for each, n in sorted(faults.done.items())))
    if found.broken:
        print("\n".join(found.broken[:SHOWN]))
        print(f"{len(found.broken)} promises broken; what was written is in {stack.home}")
        return False
    print(f"{count} tasks, each accounted for; the last {settled:.1f} s after the last fault\n")
    shutil.rmtree(stack.home)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--executor", choices=["local", "flux", "all"], default="all")
    options = parser.parse_args()
    executors = ["local", "flux"] if options.executor == "all" else [options.executor]
    if options.executor == "all" and shutil.which("flux") is None:
        print("no Flux here: the embedded executor only")
        executors = ["local"]
    good = [
        run(each, options.seed, count=options.tasks, seconds=options.seconds) for each in executors
    ]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
