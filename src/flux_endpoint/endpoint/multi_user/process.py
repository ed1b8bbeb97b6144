"""The process of a user endpoint: started as its user's account, followed until its end."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any

from flux_endpoint.endpoint.multi_user.accounts import LocalAccount
from flux_endpoint.endpoint.multi_user.commands import StartCommand
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

_MODULE = "flux_endpoint.endpoint.multi_user.user_endpoint"
#: Most bytes that a process may report, and of its last words that are kept.
_MOST_REPORTED, _KEPT = 64 * 1024, 4000

#: Seconds before its end in which a command counts as one for the time after it.
_AGAIN_WITHIN = 30.0


class UserEndpointState(Enum):
    """States of a user endpoint's process, as its multi-user endpoint sees it."""

    STARTING = auto()
    READY = auto()
    #: It was asked to end.
    STOPPING = auto()
    ENDED = auto()


class UserEndpointProcess:
    """A user endpoint's process. Its state belongs to the agent's thread.

    Args:
        command: the command that it obeys.
        account: the account that it runs as.
        on_ready: called when it can take tasks, on this process's own thread.
        on_ended: called once it has ended, on the same thread.
    """

    def __init__(
        self,
        command: StartCommand,
        account: LocalAccount,
        *,
        on_ready: Callable[[UserEndpointProcess], None],
        on_ended: Callable[[UserEndpointProcess], None],
    ) -> None:
        self.command = command
        self.account = account
        self.state = UserEndpointState.STARTING
        self.since = time.time()
        #: Why it could not start, in the words for the user; set when it has ended.
        self.failure = ""
        self.exit_code: int | None = None
        self._next: tuple[StartCommand, float] | None = None
        self._on_ready = on_ready
        self._on_ended = on_ended
        self._process: subprocess.Popen[bytes] | None = None
        self._last_words = b""

    @property
    def name(self) -> str:
        """The user endpoint's name."""
        return self.command.arguments.name

    def ready(self) -> None:
        """Record that it can take tasks."""
        self.state, self._next = UserEndpointState.READY, None

    def note(self, command: StartCommand) -> None:
        """Note a later command for the same user endpoint, which may be ending already."""
        self._next = command, time.monotonic()

    @property
    def next(self) -> StartCommand | None:
        """The command to obey once it has ended: one that came just before."""
        if self._next is None or time.monotonic() - self._next[1] > _AGAIN_WITHIN:
            return None
        return self._next[0]

    @property
    def pid(self) -> int | None:
        """The process's id, once it is started."""
        return None if self._process is None else self._process.pid

    def start(self, task: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        """Start the process.

        It has no descriptors of this process but three, no variables but those given, no groups or
        rights but its account's, and a session of its own.

        Args:
            task: what `user_endpoint` reads from its standard input.
            variables: its environment variables, besides those of the account.

        Raises:
            FluxEndpointError: it can't be started; the text is for the user.
        """
        readable, writable = os.pipe()
        words = [sys.executable, "-P", "-X", "utf8", "-m", _MODULE]
        try:
            # A file in memory, unlike a pipe, has room for everything.
            stdin = os.memfd_create("user-endpoint")
            try:
                with open(stdin, "wb", closefd=False) as file:
                    file.write(json.dumps(task).encode())
                os.lseek(stdin, 0, os.SEEK_SET)
                self._process = subprocess.Popen(
                    [*words, self.name, str(writable), str(os.getpid())],
                    stdin=stdin,
                    stdout=writable,
                    stderr=writable,
                    pass_fds=(writable,),
                    env=self.account.environment(variables),
                    cwd="/",
                    umask=0o077,
                    start_new_session=True,
                    **self.account.identity(),
                )
            finally:
                os.close(stdin)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            os.close(readable)
            raise FluxEndpointError(
                f"no process could be started as {self.account.name} ({error}). Its Python, "
                f"{sys.executable}, must be readable for this account"
            ) from None
        finally:
            os.close(writable)
        threading.Thread(
            target=self._follow, args=(readable,), name=f"follow {self.name}", daemon=True
        ).start()

    def signal(self, signum: int) -> None:
        """Send a signal to the process."""
        if self._process is not None:
            self._process.send_signal(signum)

    def stop(self) -> None:
        """Ask the process to end; a second call does nothing."""
        if self.state in {UserEndpointState.STARTING, UserEndpointState.READY}:
            self.state = UserEndpointState.STOPPING
            self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self.signal(signal.SIGKILL)

    # On the thread that follows it

    def _follow(self, readable: int) -> None:
        process = self._process
        assert process is not None
        try:
            # It fails if `signal` has just found that the process has ended.
            pidfd = os.pidfd_open(process.pid)
            try:
                self._listen(readable, pidfd)
            finally:
                os.close(pidfd)
        except OSError as error:
            event(log, logging.WARNING, "reports of a user endpoint are lost", reason=error)
        finally:
            os.close(readable)
        self.exit_code = process.wait()
        if self.exit_code and not self.failure:
            said = self._last_words.decode(errors="replace").strip()
            how = (
                f"signal {-self.exit_code}" if self.exit_code < 0 else f"exit code {self.exit_code}"
            )
            self.failure = f"it ended ({how}){f': {said}' if said else ''}"
        self._on_ended(self)

    def _listen(self, readable: int, pidfd: int) -> None:
        """Take what the process reports, until it is ready or has ended."""
        poll = select.poll()
        poll.register(readable, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        unread, total = b"", 0
        while total < _MOST_REPORTED:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if readable not in ready:
                return  # it has ended, and everything is read
            chunk = os.read(readable, 4096)
            if not chunk:
                return
            total += len(chunk)
            *lines, unread = (unread + chunk).split(b"\n")
            for line in lines:
                if self._is_last(line):
                    return
            self._last_words = unread[-_KEPT:] or self._last_words

    def _is_last(self, line: bytes) -> bool:
        """Handle a line; return whether nothing more is to be read."""
        try:
            report = json.loads(line)
        except ValueError:
            report = None
        match report:
            case {"ready": _}:
                self._on_ready(self)
                return True
            case {"failed": str(reason)}:
                self.failure = reason
                return True
        self._last_words = (self._last_words + b"\n" + line)[-_KEPT:]
        return False
