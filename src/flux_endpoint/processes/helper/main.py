"""The helper: forks a shell for each group; if its owner dies, it kills everything below it."""

from __future__ import annotations

import array
import collections
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from . import HEADER, KILL, MAX_DESCRIPTORS, NOT_EXECUTABLE
from .process import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NAME,
    drain,
    end_children,
    prctl,
    reap,
    wakeup_socket,
)
from .shell import Shell, notice_of


class _Helper:
    def __init__(self, control: socket.socket, events: socket.socket, owner: int) -> None:
        self._control = control
        self._events = events
        self._owner = owner
        self._shells: dict[int, str] = {}  # pid -> key
        self._pipes: dict[str, int] = {}  # key -> write end of the shell's requests
        self._notice: dict[str, float] = {}  # key -> seconds
        #: Whether the owner has announced that it closes its end; otherwise a close means it is
        #: gone.
        self._is_closed = False
        self._input = bytearray()
        self._descriptors: collections.deque[int] = collections.deque()
        self._unsent: collections.deque[bytes] = collections.deque()
        self._wakeup = wakeup_socket()
        self._poll = select.poll()

    def run(self) -> None:
        """Serve until the owner is gone, then kill everything below."""
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)
        # A process that the owner forked may hold a copy of the owner's end of the control socket.
        # Then there is no end of file, and only the owner's pid shows that it is gone.
        watched = -1
        with contextlib.suppress(OSError):
            watched = os.pidfd_open(self._owner)
            self._poll.register(watched, select.POLLIN)
        try:
            if os.getppid() == self._owner:
                self._serve(watched)
            if not self._is_closed:
                self._give_notice()
        finally:
            end_children()

    def _give_notice(self) -> None:
        """Kill everything, since the owner is gone, except groups that asked for time to finish."""
        for key, pipe in self._pipes.items():
            with contextlib.suppress(OSError):
                os.write(pipe, bytes([signal.SIGTERM if key in self._notice else KILL]))
        until = time.monotonic() + max(self._notice.values(), default=0.0)
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        while self._shells and (left := until - time.monotonic()) > 0:
            poll.poll(left * 1000)
            drain(self._wakeup)
            for pid, *_ in reap():
                self._notice.pop(self._shells.pop(pid, ""), None)
            if not self._notice:
                return

    def _serve(self, owner: int) -> None:
        control, wakeup = self._control.fileno(), self._wakeup.fileno()
        while True:
            for ready, _ in self._poll.poll():
                if ready == owner or (ready == control and not self._receive()):
                    return
                if ready == wakeup:
                    if signal.SIGTERM in drain(self._wakeup):
                        return
                    self._reap()
            self._flush()

    def _say(self, what: str, *details: Any) -> None:
        self._unsent.append(json.dumps([what, *details]).encode())
        self._flush()

    def _flush(self) -> None:
        had = bool(self._unsent)
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                # Nonblocking: the owner may itself be waiting for us to take a request.
                self._events.send(self._unsent[0], socket.MSG_DONTWAIT)
                self._unsent.popleft()
        if self._unsent:
            self._poll.register(self._events, select.POLLOUT)
        elif had:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._events)

    def _receive(self) -> bool:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        data, ancillary, _, _ = self._control.recvmsg(1 << 18, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors.extend(numbers)
        self._input += data
        while len(self._input) >= HEADER.size:
            length, count = HEADER.unpack_from(self._input)
            if len(self._input) < HEADER.size + length:
                break
            request = json.loads(self._input[HEADER.size : HEADER.size + length])
            del self._input[: HEADER.size + length]
            descriptors = [self._descriptors.popleft() for _ in range(count)]
            try:
                self._handle(request, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        return bool(data)

    def _handle(self, request: list[Any], descriptors: list[int]) -> None:
        key = request[1]
        if request[0] == "close":
            self._is_closed = True
        elif request[0] == "spawn":
            try:
                self._fork_shell(key, request[2], descriptors)
            except OSError as exc:
                self._say("failed", key, 0, exc.errno, exc.strerror, exc.filename)
                self._say("end", key, NOT_EXECUTABLE << 8)
        elif key in self._pipes:
            with contextlib.suppress(OSError):
                os.write(self._pipes[key], bytes([request[2]]))

    def _fork_shell(self, key: str, commands: list[dict[str, Any]], descriptors: list[int]) -> None:
        requests, pipe = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(requests)
            os.close(pipe)
            raise
        if pid == 0:
            self._be_shell(key, requests, pipe, commands, descriptors)
        os.close(requests)
        os.set_blocking(pipe, False)
        if seconds := notice_of(commands):
            self._notice[key] = seconds
        self._shells[pid] = key
        self._pipes[key] = pipe

    def _be_shell(
        self,
        key: str,
        requests: int,
        pipe: int,
        commands: list[dict[str, Any]],
        descriptors: list[int],
    ) -> NoReturn:
        status = 1
        try:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            self._control.close()
            # Only the helper has the write ends here, so its death is an end of file.
            for other in (pipe, *self._pipes.values()):
                os.close(other)
            shell = Shell(key, requests, self._events)
            status = shell.run(commands, descriptors)
        except BrokenPipeError:  # the owner is gone
            pass
        finally:
            end_children()
            os._exit(status)

    def _reap(self) -> None:
        for pid, status, _ in reap():
            key = self._shells.pop(pid, None)
            if key is not None:
                if os.WIFSIGNALED(status):  # it could not clean up: its orphans are ours now
                    end_children(frozenset(self._shells))
                os.close(self._pipes.pop(key))
                self._notice.pop(key, None)
                self._say("end", key, status)


def main() -> None:
    """Run the helper on the descriptors and the owner's pid given as arguments."""
    control, events, owner = (int(argument) for argument in sys.argv[1:4])
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_NAME, b"process-keeper")
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    gc.disable()
    gc.freeze()
    for descriptor in (control, events):
        os.set_inheritable(descriptor, False)
    served = _Helper(socket.socket(fileno=control), socket.socket(fileno=events), owner)
    with contextlib.suppress(BrokenPipeError):
        served.run()
