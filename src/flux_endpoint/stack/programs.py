"""The stack's own programs as supervised processes: started, watched, started again."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flux_endpoint.backoff import Backoff
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.logs import put_aside, tail
from flux_endpoint.processes import Command, ProcessKeeper
from flux_endpoint.stack.state import StackDirectory

#: Who has lived so many seconds is healthy: its next failure counts as the first.
HEALTHY_AFTER = 60.0
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 60.0
#: Seconds between two looks at whether a program is ready.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
#: Seconds for one of the short commands (`configure` and the like).
COMMAND_TIMEOUT = 60.0


class RestartBackoff(Backoff):
    """How long to wait before a program is started again.

    It is never given up: what ends it, such as a full disk, may be mended, and the others go on.
    """

    def __init__(self) -> None:
        super().__init__(FIRST_BACKOFF, MAX_BACKOFF, jitter=0.25)
        self._since = time.monotonic()

    def started(self) -> None:
        """Note a start."""
        self._since = time.monotonic()

    def failed(self) -> float:
        """Note a failure; return seconds to wait."""
        if time.monotonic() - self._since > HEALTHY_AFTER:
            self.reset()
        return next(self)


class Program:
    """One `flux-endpoint …` process."""

    def __init__(self, name: str, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.arguments = arguments
        self.env = env
        self.ended = threading.Event()
        self.ended.set()
        self.stopping = False
        self.pid = 0


@dataclass(frozen=True)
class Ended:
    """A part of the stack ended unasked.

    Attributes:
        name: of the part.
        reason: how it ended, with the end of its log.
        program: which process it was; `None` for a part that is none of the programs.
        on_request: whether it is an endpoint that somebody has asked to stop: it exited with 0.
    """

    name: str
    reason: str
    program: Program | None = None
    on_request: bool = False


#: Ends a wait for events; says nothing itself.
_WAKE = Ended("", "")


class Programs:
    """All programs of a stack, below one process keeper.

    Args:
        directory: where they work and log.
        lock: descriptor that they inherit, as their standard input.

    Attributes:
        events: gets every unasked end, also those that others put there.
    """

    def __init__(self, directory: StackDirectory, lock: int) -> None:
        self.events: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._directory = directory
        self._lock = lock
        self._programs: dict[str, Program] = {}
        self._how: dict[str, str] = {}
        self._codes: dict[str, int] = {}
        self._keeper = ProcessKeeper(
            self._on_started,
            self._on_process_exit,
            self._on_group_exit,
            self._on_start_failed,
            name="stack",
        )

    def open(self) -> None:
        """Start the keeper."""
        self._keeper.start()

    def start(self, program: Program) -> None:
        """Start `program`, whose earlier process must have ended."""
        file = self._directory.program_log(program.name)
        put_aside(file)
        log = str(file)
        program.stopping = False
        program.ended.clear()
        self._programs[program.name] = program
        argv = [sys.executable, "-P", "-m", "flux_endpoint", *program.arguments]
        command = Command(
            argv, program.env, str(self._directory.path), stdin=self._lock, stdout=log, stderr=log
        )
        self._keeper.spawn(program.name, [command])

    def is_running(self, name: str) -> bool:
        """Say whether the program `name` was started and has not ended."""
        program = self._programs.get(name)
        return program is not None and not program.ended.is_set()

    def stop(self, name: str, grace: float) -> None:
        """End a program and all its processes: SIGTERM, `grace` seconds, SIGKILL."""
        if not self.is_running(name):
            return
        program = self._programs[name]
        program.stopping = True
        self._keeper.signal(name, signal.SIGTERM)
        if not program.ended.wait(grace):
            self._keeper.kill(name)
            program.ended.wait(grace)

    def close(self) -> None:
        """Kill what is left, and wait until it is gone."""
        for program in self._programs.values():
            program.stopping = True
        self._keeper.close()

    def wake(self) -> None:
        """End a wait in `next_event`. Any thread."""
        self.events.put(_WAKE)

    def next_event(self, timeout: float | None) -> Ended | None:
        """Return the next unasked end; `None` after `timeout` seconds, or if there is none yet."""
        with contextlib.suppress(queue.Empty):
            ended = self.events.get(timeout=timeout)
            if ended is _WAKE:
                return None
            if ended.program is None or ended.program is self._programs.get(ended.name):
                return ended
        return None

    def wait_until(self, ready: Callable[[], bool], name: str, limit: float) -> Ended | None:
        """Wait until `ready()` is true of the program `name`; return its end if that comes first.

        Raises:
            FluxEndpointError: if `limit` seconds have passed, or another part ended.
        """
        deadline = time.monotonic() + limit
        pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE, factor=1.5, jitter=0)
        while not ready():
            if time.monotonic() > deadline:
                log = self._directory.program_log(name)
                raise FluxEndpointError(f"the {name} is not ready after {limit:g} s; see {log}")
            ended = self.next_event(next(pauses))
            if ended is not None and ended.name == name:
                return ended
            if ended is not None:
                raise FluxEndpointError(f"the {ended.name} {ended.reason}")
        return None

    def describe_exit(self, name: str, lines: int = 8) -> str:
        """Say how a program ended, with the end of its log."""
        how = self._how.get(name, "ended")
        log = self._directory.program_log(name)
        return f"{how}; the end of {log}:\n{tail(log, lines)}"

    def _on_started(self, key: str, pids: list[int]) -> None:
        self._programs[key].pid = pids[0]

    def _on_process_exit(self, key: str, index: int, status: int) -> None:
        del index
        code = os.waitstatus_to_exitcode(status)
        by = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._how[key] = f"ended ({by})"
        self._codes[key] = code

    def _on_start_failed(self, key: str, index: int, error: OSError) -> None:
        del index
        self._how[key] = f"could not be started ({error})"

    def _on_group_exit(self, key: str, status: int) -> None:
        del status
        program = self._programs[key]
        program.ended.set()
        if not program.stopping:
            on_request = key == "endpoint" and self._codes.pop(key, None) == 0
            self.events.put(Ended(key, self.describe_exit(key), program, on_request))


def run_command(arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    """Run a short `flux-endpoint …` command; return what it prints.

    Raises:
        FluxEndpointError: if it fails, with what it said.
    """
    what = f"flux-endpoint {' '.join(arguments)}"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "flux_endpoint", *arguments],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FluxEndpointError(f"{what}: no answer within {COMMAND_TIMEOUT:g} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().removeprefix("Error: ")
        said = "\n".join(said.splitlines()[-4:])  # of a traceback only the end is of interest
        raise FluxEndpointError(f"{what}: {said or f'exit code {done.returncode}'}")
    return done.stdout
