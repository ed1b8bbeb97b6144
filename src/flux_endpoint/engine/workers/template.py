"""The template: a single-threaded process with all imports done, from which workers are forked.

The manager has ZeroMQ threads; the template has none. So a forked worker never inherits a lock that
is in use, and a lost worker is replaced within milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
import os
import selectors
import signal
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil

from flux_endpoint.engine.workers.begun import BegunTasks
from flux_endpoint.engine.workers.frames import Claims, write_frame
from flux_endpoint.engine.workers.gpus import shares
from flux_endpoint.engine.workers.pipes import WorkerPipes
from flux_endpoint.engine.workers.process_tree import kill_tree
from flux_endpoint.engine.workers.settings import ManagerSettings
from flux_endpoint.engine.workers.worker import work
from flux_endpoint.functions.sdk_shims import install_stand_ins

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: A request: the worker's place among the node's workers.
_PLACE = struct.Struct("!I")
#: Number of its descriptors.
_DESCRIPTORS = 7


@dataclass(frozen=True)
class _Node:
    """The arguments of forked workers."""

    control: socket.socket
    settings: ManagerSettings
    #: Environment variables of the worker in each place.
    places: list[dict[str, str]]
    begun: BegunTasks | None


def start_template(
    settings: ManagerSettings, begun: BegunTasks | None
) -> tuple[int, socket.socket]:
    """Fork the template; return its process id and our end of the control channel.

    A request has seven descriptors, the worker's channel, its claims and its pipes, and the
    worker's place, which determines its gpus. The answers are the frames `{"forked": pid}`, in the
    order of the requests, and `{"exited": pid, "status": wait status}` whenever a worker ends.

    Raises:
        EngineError: the workers' gpus are not visible here.
    """
    places = shares(os.environ, settings.workers, settings.gpus_per_worker)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            os.setsid()  # signals to the job's process group are for the manager only
            # Processes that outlive a worker become children of the template; the manager ends
            # them.
            adopt_orphans()
            install_stand_ins()
            gc.collect()
            gc.freeze()  # what the workers share is not examined after each few hundred objects
            _serve(_Node(theirs, settings, places, begun))
            status = 0
        finally:
            _end_children()  # the manager is gone, and nobody else would end them
            os._exit(status)
    theirs.close()
    return pid, ours


def _end_children() -> None:
    for child in psutil.Process().children():
        kill_tree(child.pid)


def request_worker(
    control: socket.socket, claims: Claims, pipes: WorkerPipes, place: int
) -> socket.socket:
    """Ask the template for a worker in a free place; return the channel to the worker."""
    ours, theirs = socket.socketpair()
    descriptors = [theirs.fileno(), claims.fileno(), *pipes.descriptors]
    socket.send_fds(control, [_PLACE.pack(place)], descriptors)
    theirs.close()
    return ours


def adopt_orphans() -> None:
    """Become the parent of all descendants whose parents die."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    # The prctl calls used here can't fail on any supported Linux.
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _die_with_parent(parent: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call
        os._exit(1)


def _reset_ignored_signals() -> None:
    """Reset signals that nohup, or a shell that started us in the background, left ignored.

    Otherwise tasks and their commands would inherit that, and ignore Ctrl-C and SIGHUP. Signals
    that Python ignores by default stay ignored.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _serve(node: _Node) -> None:
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    _reset_ignored_signals()
    signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
    with selectors.DefaultSelector() as selector:
        selector.register(node.control, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == wake_read:
                    os.read(wake_read, 4096)
                    _reap(node.control)
                elif not _fork_one(node, (wake_read, wake_write)):
                    return


def _reap(control: socket.socket) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            write_frame(control, {"exited": pid, "status": status})


def _fork_one(node: _Node, wake: tuple[int, int]) -> bool:
    data, descriptors, _, _ = socket.recv_fds(node.control, _PLACE.size, _DESCRIPTORS)
    if not data:
        return False
    template = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in wake:
                os.close(descriptor)
            node.control.close()
            _die_with_parent(template)
            os.setsid()  # the process group is the unit that is ended
            # A task's remaining processes stay below its worker, where they can be found.
            adopt_orphans()
            (place,) = _PLACE.unpack(data)
            os.environ.update(node.places[place])
            channel, claims, *of_pipes = descriptors
            pipes = WorkerPipes.received(of_pipes)
            pipes.become_output()
            noted = None if node.begun is None else partial(node.begun.note, place)
            sock = socket.socket(fileno=channel)
            work(sock, Claims(claims), pipes, node.settings.tasks, noted)
            status = 0
        finally:
            os._exit(status)
    for descriptor in descriptors:
        os.close(descriptor)
    write_frame(node.control, {"forked": pid})
    return True
