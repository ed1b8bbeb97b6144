"""The worker manager: a job on each node, between the pool and the node's workers.

Run as `python -m flux_endpoint.engine.workers.manager`; the environment has its settings. The
module `messages` defines its protocol with the pool.

Without an agent it starts no tasks. Running tasks go on, and ends wait on disk for the next agent.
It ends on request, when its job ends, or when it runs nothing and no agent connects for a
while. Ends that no agent has are then in its spool.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from flux_endpoint import logs
from flux_endpoint.engine.workers.frames import combined, divided
from flux_endpoint.engine.workers.link import Change, PoolLink
from flux_endpoint.engine.workers.outbox import EndsOutbox
from flux_endpoint.engine.workers.settings import VARIABLE, ManagerSettings
from flux_endpoint.engine.workers.sleep import MANAGER_PAUSE, milliseconds_until
from flux_endpoint.engine.workers.spool import EndHeader, Spool
from flux_endpoint.engine.workers.staff import Staff
from flux_endpoint.engine.workers.template import adopt_orphans
from flux_endpoint.errors import EngineError
from flux_endpoint.processes.helper import NOTICE
from flux_endpoint.processes.memory import return_large_blocks
from flux_endpoint.protocol.envelope import compact_json

log = logging.getLogger(__name__)

#: Seconds that the agent has to confirm the last ends; after that they are left on disk.
_CONFIRM_TIMEOUT = 3.0
#: Seconds that functions have to finish when something other than the agent ends them all.
_FINISHING = 0.3


class Manager:
    """One thread and one poller: `run` handles everything that happens on this node.

    Args:
        settings: the settings from the environment.
    """

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        settings.files.hold_lock()
        adopt_orphans()  # if the template dies, its children become ours
        self._staff = Staff(settings, self)  # must come before the first ZeroMQ thread exists
        self._outbox = EndsOutbox(Spool(settings.files.spool))
        self._running = True
        #: Whether the agent wants this manager to end.
        self._is_stopped = False
        #: Whether the present agent has allowed us to start tasks.
        self._greeted_back = False
        self._poller = zmq.Poller()
        self._link = PoolLink(settings)
        self._linked: list[zmq.Socket[bytes]] = []
        self._poll_link()
        self._job = _watch_parent()
        if self._job is not None:
            self._poller.register(self._job, zmq.POLLIN)

    def _poll_link(self) -> None:
        for source in self._linked:
            self._poller.unregister(source)
        self._linked = list(self._link.sources)
        for source in self._linked:
            self._poller.register(source, zmq.POLLIN)

    def run(self) -> int:
        """Serve until asked to stop, or until no agent has come for too long; return the exit code.

        The agent then has all ends, or they are on disk.
        """
        self._wake_on_signals()
        _allow_more_descriptors()
        self._staff.start(self._poller)
        while self._running and not self._staff.has_failed:
            if pause := MANAGER_PAUSE.left(self._staff.reserve):
                time.sleep(pause)
            for source, _ in self._poller.poll(self._poll_timeout()):
                self._serve(source)
            self._expire()
            if not self._outbox.is_full:
                self._staff.dispatch()
            self._send_ends()
        self._end()
        return 1 if self._staff.has_failed else 0

    def _wake_on_signals(self) -> None:
        self._signal_read, signal_write = os.pipe()
        os.set_blocking(signal_write, False)
        signal.set_wakeup_fd(signal_write)
        # Flux sends SIGALRM at the instance's time limit.
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(signum, lambda _signum, _frame: setattr(self, "_running", False))
        self._poller.register(self._signal_read, zmq.POLLIN)

    def _poll_timeout(self) -> int | None:
        """Return the milliseconds until something is due even if no message arrives."""
        moments = [*self._staff.moments(), self._gives_up_at]
        return milliseconds_until(moments, time.monotonic())

    @property
    def _gives_up_at(self) -> float:
        """When this manager ends if no agent comes, in monotonic time."""
        lost_at, settings = self._link.lost_at, self._settings
        if lost_at is None or not self._staff.is_idle:
            return float("inf")
        return lost_at + (settings.orphan_timeout if self._link.was_met else settings.start_timeout)

    def _serve(self, source: object) -> None:
        if source is self._link.socket:
            self._receive()
        elif source is self._link.monitor:
            self._connection_changed()
        elif source == self._signal_read:
            os.read(self._signal_read, 4096)
        elif source == self._job:
            logs.event(log, logging.WARNING, "our job is over, ending")
            self._poller.unregister(self._job)
            self._running = False
        else:
            self._staff.serve(source)

    # The pool

    def _receive(self) -> None:
        for kind, parts in self._link.receive():
            match kind:
                case b"tasks":
                    batch = json.loads(parts[0])
                    buffers = divided(batch["sizes"], parts[1:])
                    for header, buffer in zip(batch["headers"], buffers, strict=True):
                        self._staff.add(header, buffer)
                case b"safe":
                    self._outbox.settle(parts[0].decode().split())
                case b"return":
                    returned = self._staff.give_back(int(parts[0]))
                    self._link.send(b"returned", *_encoded(returned))
                case b"take":
                    self._link.send(b"returned", *_encoded(self._staff.take(parts[0].decode())))
                case b"held?":
                    self._report_holdings(parts[0])
                case b"go":
                    self._go({part.decode() for part in parts})
                case b"stop":
                    self._running, self._is_stopped = False, True
                case _:
                    self._act_on_running(kind, parts)

    def _act_on_running(self, kind: bytes, parts: list[bytes]) -> None:
        match kind:
            case b"follow":
                self._staff.follow(json.loads(parts[0]))
            case b"cancel":
                self._staff.cancel(parts[0].decode())
            case b"signal":
                self._staff.signal(int(parts[0]), parts[1].decode())
            case b"terminate":
                returned = self._staff.terminate(parts[0].decode())
                self._link.send(b"returned", *_encoded(returned))

    def _connection_changed(self) -> None:
        for change in self._link.changes():
            self._greeted_back = False
            if change is Change.MET:
                greeting = {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "workers": self._settings.workers,
                }
                self._link.send(b"hello", json.dumps(greeting).encode())
            else:
                self._poll_link()
                self._staff.hold()
                self._outbox.lose_agent()

    def _report_holdings(self, question: bytes) -> None:
        self._staff.hold()
        held = {
            "waiting": self._staff.waiting(),
            "running": self._staff.running(),
            "ended": self._outbox.task_ids,
        }
        self._link.send(b"held", question, json.dumps(held).encode())

    def _go(self, unwanted: set[str]) -> None:
        self._staff.drop(unwanted)
        self._outbox.settle(unwanted)
        self._outbox.meet_agent()
        self._staff.may_start = self._greeted_back = True

    def _send_ends(self) -> None:
        if not self._greeted_back:
            return
        if ends := self._outbox.take():
            headers = [header for header, _ in ends]
            sizes, frames = combined(body for _, body in ends)
            times = self._staff.times
            report: dict[str, Any] = {"seconds": times.usual, "least": times.least}
            report |= {"headers": headers, "sizes": sizes}
            self._link.send(b"ends", compact_json(report), *frames)

    # Reports of the workers

    def ended(self, header: EndHeader, body: bytes) -> None:
        """See `outbox.Listener`."""
        self._outbox.add(header, body)

    def late(self, task_ids: list[str]) -> None:
        """See `outbox.Listener`."""
        self._link.send(b"late", *_encoded(task_ids))

    def running(self, task_id: str, began: float) -> None:
        """See `outbox.Listener`."""
        self._link.send(b"running", task_id.encode(), b"%.3f" % began)

    def followed(self, task_id: str, streams: dict[str, Any]) -> None:
        """See `outbox.Listener`."""
        self._link.send(b"printed", compact_json([task_id, streams]))

    def printed(self, data: bytes) -> None:
        """See `outbox.Listener`."""
        if data:
            self._link.send(b"output", data)

    def _expire(self) -> None:
        now = time.monotonic()
        self._staff.expire()
        if now >= self._gives_up_at:
            self._log_missing_agent()
            self._running = False

    def _log_missing_agent(self) -> None:
        what = "agent gone, ending"
        if not self._link.was_met:
            what = (
                "this node never reached the endpoint, whose address may be another one: "
                "engine.address in its configuration sets it"
            )
        logs.event(log, logging.WARNING, what, address=self._link.address)

    # Ending

    def _end(self) -> None:
        """End the workers; the ends of finished tasks go to the agent, or stay on disk."""
        if not self._is_stopped:
            self._outbox.lose_agent()  # this comes first: we may be killed soon
            self._let_finish()
        running = self._staff.close()
        if self._greeted_back:
            self._outbox.meet_agent()
            self._send_ends()
            self._link.send(b"bye", json.dumps({"running": running}).encode())
            self._await_agent()
        if len(self._outbox):
            self._outbox.lose_agent()
        self._link.close()

    def _let_finish(self) -> None:
        """Let tasks finish that are just about to end, since they would run again."""
        self._staff.hold()
        until = time.monotonic() + _FINISHING
        while not (self._staff.is_idle or self._staff.has_failed):
            ready = self._poller.poll(milliseconds_until([until], time.monotonic()))
            if time.monotonic() >= until:
                return
            for source, _ in ready:
                self._serve(source)

    def _await_agent(self) -> None:
        """Wait until the agent has all ends, is gone, or has taken too long."""
        until = time.monotonic() + _CONFIRM_TIMEOUT
        poller = zmq.Poller()
        for source in self._link.sources:
            poller.register(source, zmq.POLLIN)
        while len(self._outbox) and self._link.connected:
            ready = dict(poller.poll(milliseconds_until([until], time.monotonic())))
            if not ready:
                return
            if self._link.socket in ready:
                for kind, parts in self._link.receive():
                    if kind == b"safe":
                        self._outbox.settle(parts[0].decode().split())
                self._send_ends()
            if self._link.monitor in ready and any(True for _ in self._link.changes()):
                return


def _allow_more_descriptors() -> None:
    """Raise the limit as far as permitted: each worker takes five. Workers keep their own limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # more than the kernel's own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _watch_parent() -> int | None:
    """Return a descriptor that becomes readable when the process that runs our job is gone."""
    with suppress(OSError):
        return os.pidfd_open(os.getppid())
    return None


def _encoded(task_ids: list[str]) -> list[bytes]:
    return [task_id.encode() for task_id in task_ids]


def main() -> None:
    """Run a manager with the settings in the environment."""
    os.environ.pop(NOTICE, None)
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        sys.exit(f"{VARIABLE} is not set: a manager is started by an endpoint's engine only")
    logs.configure(logging.INFO)
    return_large_blocks()  # for the workers, too, which are forked from here
    # Flux keeps a job's standard input open for `flux job attach`; a task must not wait for it.
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        manager = Manager(ManagerSettings.load(text))
    except EngineError as error:
        sys.exit(str(error))
    status = manager.run()
    logging.shutdown()
    # A job may wait for this node, and the interpreter would first spend 50 ms of CPU time on
    # destroying its modules. Everything has been sent by now.
    os._exit(status)


if __name__ == "__main__":
    main()
