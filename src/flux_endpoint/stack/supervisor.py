"""Broker, service and endpoint on one machine, as one process tree."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FrameType

from flux_endpoint import extras
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.paths import HOME_VARIABLE
from flux_endpoint.processes import signal_listener, watch_parent
from flux_endpoint.stack.broker import RabbitNode
from flux_endpoint.stack.credentials import load_credentials, save_credentials
from flux_endpoint.stack.installation import find_rabbitmq
from flux_endpoint.stack.parts import EndpointPart, ServicePart, check_port
from flux_endpoint.stack.programs import ProgramEnd, Programs, RestartBackoff
from flux_endpoint.stack.state import (
    AlreadyRunningError,
    StackDirectory,
    StackLock,
    StackState,
)

#: Seconds to wait for the remaining processes of a killed stack.
LOCK_TIMEOUT = 10.0
#: A batch script gets the last one when its allocation reaches its time limit.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@dataclass(frozen=True)
class StackOptions:
    """The options of `up`.

    Attributes:
        port: the service's port; `None`: the last one, or a free one.
        endpoint: name of the endpoint; `None`: run none.
        follow_parent: whether to end when the parent process dies.
    """

    port: int | None = None
    endpoint: str | None = "local"
    follow_parent: bool = True


@dataclass(frozen=True)
class Ready:
    """Facts about a running stack, for people."""

    state: StackState
    executor: str
    seconds: float


class StopRequested(BaseException):
    """A signal requested the end; not an Exception, so that no handler catches it by mistake.

    Args:
        signum: the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Stack:
    """Starts the parts, keeps them running, and ends them in reverse order.

    A part that needs another is started at the same time, does what it can, and is woken when that
    one is ready.

    Args:
        options: what to run.
        say: called with lines for the person who started it.
        on_ready: called once, when everything is up.
    """

    def __init__(
        self,
        options: StackOptions,
        *,
        say: Callable[[str], None],
        on_ready: Callable[[Ready], None],
    ) -> None:
        self._options = options
        self._say = say
        self._on_ready = on_ready
        self._directory = StackDirectory()
        self._interruptible = True
        self._wake: Callable[[], None] = lambda: None

    def run(self) -> int:
        """Run until a signal; return the exit status: 130 after Ctrl-C, 0 after SIGTERM or SIGHUP.

        Raises:
            AlreadyRunningError: this home has a running stack.
            ConfigurationError: something is missing or wrong on this machine.
            FluxEndpointError: a part can't be started. A part that fails later is restarted
                repeatedly; the others go on.
        """
        with StackLock(self._directory) as lock, self._signals():
            try:
                self._take(lock)
                if self._options.follow_parent and os.getppid() > 0:
                    watch_parent(lambda: os.kill(os.getpid(), signal.SIGHUP))
                self._run(lock)
            except StopRequested as stop:
                return 130 if stop.signum == signal.SIGINT else 0
            else:
                return 0
            finally:
                self._interruptible = False

    def _run(self, lock: StackLock) -> None:
        directory, endpoint = self._directory, self._options.endpoint
        programs = Programs(directory, lock.descriptor)
        self._wake = programs.wake
        broker = RabbitNode(
            directory.broker, on_exit=lambda why: programs.events.put(ProgramEnd("broker", why))
        )
        service = ServicePart(directory, programs, broker)
        part = EndpointPart(directory, programs, endpoint) if endpoint is not None else None
        running = _Running(directory, programs, broker, service, endpoint=part, say=self._say)
        try:
            self._on_ready(running.start(self._options.port))
            running.supervise()
        finally:
            self._interruptible = False  # a second Ctrl-C must not leave processes behind
            running.stop()

    def _take(self, lock: StackLock) -> None:
        """Lock the directory, or raise an error that says who has it."""
        if not lock.try_acquire():
            self._refuse_if_running()
            if not lock.acquire(LOCK_TIMEOUT):  # remains of a killed stack are ending
                self._refuse_if_running()  # or another stack was just starting
                raise AlreadyRunningError(
                    f"processes of an earlier stack still hold {self._directory.path}/lock"
                )
        deleted = self._directory.supervisor(deleted=True)
        if deleted is not None:
            raise AlreadyRunningError(
                f"a stack still runs (pid {deleted}) whose directory {self._directory.path} was "
                "deleted: `flux-endpoint down` ends it"
            )
        lock.sign()

    def _refuse_if_running(self) -> None:
        pid = self._directory.supervisor(deleted=False)
        if pid is not None:
            url = self._directory.load().service_url
            raise AlreadyRunningError(
                f"already running (pid {pid}, {url or 'starting'}) in "
                f"{self._directory.home}: `flux-endpoint down` ends it; with another "
                f"${HOME_VARIABLE} a second stack can run beside it"
            )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first signal into `StopRequested` on the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(signum: int, _: FrameType | None) -> None:
            if self._interruptible:
                self._interruptible = False
                raise StopRequested(signum)

        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in before.items():
            if handler != signal.SIG_IGN or number == signal.SIGTERM:  # respect nohup
                signal.signal(number, handle)
        try:
            with signal_listener(lambda _: self._wake()):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Running:
    """The parts of a stack from start to end."""

    def __init__(
        self,
        directory: StackDirectory,
        programs: Programs,
        broker: RabbitNode,
        service: ServicePart,
        *,
        endpoint: EndpointPart | None,
        say: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._programs = programs
        self._broker = broker
        self._service = service
        self._endpoint = endpoint
        self._say = say
        self._backoff = {name: RestartBackoff() for name in ("broker", "service", "endpoint")}
        self._state = StackState()
        self._begun = False

    def start(self, port: int | None) -> Ready:
        """Start everything, in order."""
        begun = time.monotonic()
        last = self._directory.load()
        check_port(port)
        # Report missing packages before anything starts.
        extras.require("service", "`up`, which runs a service,")
        find_rabbitmq()
        token = str(load_credentials(self._directory.credentials).get("token") or "")
        if token:  # another user may have taken the last port in the meantime
            save_credentials(self._directory.credentials, "", token)
        self._save(pid=os.getpid(), started=time.time(), service_port=last.service_port)
        self._programs.open()
        self._begun = True
        with self._step("broker") as done:
            self._broker.start(lambda: self._prepare(port, last.service_port, token))
            done(f"RabbitMQ on port {self._broker.port}")
        with self._step("service") as done:
            self._service.start()
            done(self._service.url)
        executor = ""
        if self._endpoint is not None:
            with self._step("endpoint") as done:
                self._endpoint.start(self._service)
                executor = self._endpoint.executor
                done(f"{self._endpoint.name} is online, its executor: {executor or 'unknown'}")
        self._save(
            service_url=self._service.url,
            service_port=self._service.port,
            amqp_port=self._broker.port,
            endpoint_name=self._endpoint.name if self._endpoint else "",
            endpoint_id=self._endpoint.id if self._endpoint else "",
        )
        for backoff in self._backoff.values():
            backoff.started()
        return Ready(self._state, executor, time.monotonic() - begun)

    def _prepare(self, port: int | None, last_port: int | None, token: str) -> None:
        """Start the other programs, as far as they get while the broker starts."""
        self._service.prepare(port, last_port, token)
        if self._endpoint is not None:
            self._endpoint.prepare()

    def supervise(self) -> None:
        """Restart parts that end, until the stack is stopped."""
        due: dict[str, float] = {}
        while True:
            pause = max(0.0, min(due.values()) - time.monotonic()) if due else None
            ended = self._programs.next_event(pause)
            if ended is not None and ended.on_request and self._endpoint is not None:
                again = f"`flux-endpoint start {self._endpoint.name}` starts it again"
                self._say(f"{ended.name:<9} stopped on request; {again}")
            elif ended is not None:
                due[ended.name] = time.monotonic() + self._put_off(ended)
            for name in [name for name, moment in due.items() if moment <= time.monotonic()]:
                del due[name]
                if self._programs.is_running(name):
                    continue  # already started by the broker's restart
                self._backoff[name].started()
                try:
                    self._restart(name)
                except (FluxEndpointError, OSError) as error:  # e.g. a full disk
                    self._programs.events.put(ProgramEnd(name, f"can't be started: {error}"))

    def stop(self) -> None:
        """End everything in reverse order; skip parts that never started."""
        if not self._begun:
            return
        self._say("ending …")
        try:
            if self._endpoint is not None:
                self._endpoint.stop()
            if self._service.token:
                save_credentials(self._directory.credentials, "", self._service.token)
            self._service.stop()
        finally:
            self._broker.stop()
            self._programs.close()
            self._save(pid=None)
            self._say("ended")

    def _put_off(self, ended: ProgramEnd) -> float:
        backoff = self._backoff[ended.name]
        delay = backoff.failed()
        times = f" ({backoff.failures} times in a row)" if backoff.failures > 1 else ""
        self._say(f"{ended.name:<9} {ended.reason}")
        self._say(f"{ended.name:<9} starting again in {delay:.1f} s{times}")
        return delay

    def _restart(self, name: str) -> None:
        match name:
            case "service":
                self._service.launch()
            case "endpoint" if self._endpoint is not None:
                self._endpoint.launch()
            case _:
                self._restart_broker()
        self._say(f"{name:<9} started again")

    def _restart_broker(self) -> None:
        port = self._broker.port
        self._broker.restart()
        if self._broker.port == port:
            return  # the others reconnect by themselves
        has_endpoint = self._endpoint is not None and self._programs.is_running("endpoint")
        if self._endpoint is not None:
            self._endpoint.stop()
        self._service.stop()
        self._service.launch()
        if self._endpoint is not None and has_endpoint:
            self._endpoint.launch()
        self._save(amqp_port=self._broker.port)

    def _save(self, **changes: object) -> None:
        self._state = replace(self._state, **changes)  # type: ignore[arg-type]  # our own names
        self._directory.save(self._state)

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        begun = time.monotonic()
        self._say(f"{name:<9} starting …")
        yield lambda what: self._say(f"{name:<9} {what}  ({time.monotonic() - begun:.1f} s)")
