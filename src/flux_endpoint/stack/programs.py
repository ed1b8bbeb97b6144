"""The stack's own programs as supervised processes: started, watched, restarted."""

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
from flux_endpoint.processes.start_order import NOTIFY_SOCKET
from flux_endpoint.stack.notify import NotifySocket
from flux_endpoint.stack.state import StackDirectory

#: A program that has run for this many seconds is healthy: its next failure counts as the first.
HEALTHY_AFTER = 60.0
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 60.0
#: Seconds between two checks whether others see that a program is ready.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
#: Timeout (s) of the short commands (`configure` etc.).
COMMAND_TIMEOUT = 60.0


class RestartBackoff(Backoff):
    """The pause before a program is started again.

    It never gives up: the cause, such as a full disk, may be removed, and the other programs go on.
    """

    def __init__(self) -> None:
        super().__init__(FIRST_BACKOFF, MAX_BACKOFF, jitter=0.25)
        self._since = time.monotonic()

    def started(self) -> None:
        """Record a start."""
        self._since = time.monotonic()

    def failed(self) -> float:
        """Record a failure; return the seconds to wait."""
        if time.monotonic() - self._since > HEALTHY_AFTER:
            self.reset()
        return next(self)


class Program:
    """One `flux-endpoint …` process.

    Args:
        name: its name, also that of its log.
        arguments: arguments of `flux-endpoint`.
        env: its whole environment.
    """

    def __init__(self, name: str, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.arguments = arguments
        self.env = env
        self.ended = threading.Event()
        self.ended.set()
        self.stopping = False
        self.pid = 0
        #: Whether it has reported that it is ready.
        self.ready = False
        self.notify: NotifySocket | None = None


@dataclass(frozen=True)
class ProgramEnd:
    """A part of the stack has ended unexpectedly.

    Attributes:
        name: the part's name.
        reason: how it ended, with the last lines of its log.
        program: the process; `None` for a part that is not one of the programs.
        on_request: whether it is an endpoint that somebody asked to stop: it exited with 0.
    """

    name: str
    reason: str
    program: Program | None = None
    on_request: bool = False


#: Ends a wait for events; carries no information.
_WAKE = ProgramEnd("", "")


class Programs:
    """All programs of a stack, below one process keeper.

    Args:
        directory: their working and log directory.
        lock: descriptor of the lock, which they inherit as standard input.

    Attributes:
        events: gets every unexpected end, including those that other parts report.
    """

    def __init__(self, directory: StackDirectory, lock: int) -> None:
        self.events: queue.SimpleQueue[ProgramEnd] = queue.SimpleQueue()
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
        """Start `program`, whose previous process must have ended."""
        file = self._directory.program_log(program.name)
        put_aside(file)
        log = str(file)
        program.stopping = False
        program.ended.clear()
        self._programs[program.name] = program
        program.ready, program.notify = False, NotifySocket()
        threading.Thread(
            target=self._await_ready, args=(program,), name=f"{program.name}-ready", daemon=True
        ).start()
        argv = [sys.executable, "-P", "-m", "flux_endpoint", *program.arguments]
        env = {**program.env, NOTIFY_SOCKET: program.notify.address}
        command = Command(
            argv, env, str(self._directory.path), stdin=self._lock, stdout=log, stderr=log
        )
        self._keeper.spawn(program.name, [command])

    def is_running(self, name: str) -> bool:
        """Return whether the program `name` has started and not ended."""
        program = self._programs.get(name)
        return program is not None and not program.ended.is_set()

    def stop(self, name: str, grace: float) -> None:
        """End a program and all its processes: SIGTERM, after `grace` seconds SIGKILL."""
        if not self.is_running(name):
            return
        program = self._programs[name]
        program.stopping = True
        self._keeper.signal(name, signal.SIGTERM)
        if not program.ended.wait(grace):
            self._keeper.kill(name)
            program.ended.wait(grace)

    def close(self) -> None:
        """Kill the remaining processes, and wait until they are gone."""
        for program in self._programs.values():
            program.stopping = True
        self._keeper.close()

    def wake(self) -> None:
        """End a wait in `next_event`. Any thread."""
        self.events.put(_WAKE)

    def next_event(self, timeout: float | None) -> ProgramEnd | None:
        """Return the next unexpected end; `None` after `timeout` seconds or a call of `wake`."""
        with contextlib.suppress(queue.Empty):
            ended = self.events.get(timeout=timeout)
            if ended is _WAKE:
                return None
            if ended.program is None or ended.program is self._programs.get(ended.name):
                return ended
        return None

    def wait_ready(
        self, name: str, limit: float, seen: Callable[[], bool] = lambda: True
    ) -> ProgramEnd | None:
        """Wait until a program has reported that it is ready; return its end if that comes first.

        Args:
            name: the program.
            limit: seconds to wait at most.
            seen: whether others see it, too; asked again and again after the report.

        Raises:
            FluxEndpointError: `limit` seconds have passed, or another part has ended.
        """
        deadline = time.monotonic() + limit
        pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE, factor=1.5, jitter=0)
        program = self._programs[name]
        while not (program.ready and seen()):
            left = deadline - time.monotonic()
            if left < 0:
                log = self._directory.program_log(name)
                raise FluxEndpointError(f"the {name} is not ready after {limit:g} s; see {log}")
            ended = self.next_event(min(left, next(pauses)) if program.ready else left)
            if ended is not None and ended.name == name:
                return ended
            if ended is not None:
                raise FluxEndpointError(f"the {ended.name} {ended.reason}")
        return None

    def describe_exit(self, name: str, lines: int = 8) -> str:
        """Return a text that says how a program ended, with the last lines of its log."""
        how = self._how.get(name, "ended")
        log = self._directory.program_log(name)
        return f"{how}; the end of {log}:\n{tail(log, lines)}"

    def _await_ready(self, program: Program) -> None:
        assert program.notify is not None
        try:
            program.ready = program.notify.wait_ready()
        finally:
            program.notify.close()
        self.wake()

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
        if program.notify is not None:
            with contextlib.suppress(OSError):  # it has reported before, and nobody waits
                program.notify.tell_ended()
        if not program.stopping:
            on_request = key == "endpoint" and self._codes.pop(key, None) == 0
            self.events.put(ProgramEnd(key, self.describe_exit(key), program, on_request))


def run_command(arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    """Run a short `flux-endpoint …` command; return its output.

    Raises:
        FluxEndpointError: it fails; the text has its error output.
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
        output = (done.stderr or done.stdout).strip().removeprefix("Error: ")
        output = "\n".join(output.splitlines()[-4:])  # only the end of a traceback matters
        raise FluxEndpointError(f"{what}: {output or f'exit code {done.returncode}'}")
    return done.stdout
