"""A private RabbitMQ node that runs as the calling user and ends with its owner."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import quote

import pika
import pika.exceptions

from flux_endpoint.errors import AmqpError
from flux_endpoint.logs import event, tail
from flux_endpoint.processes import Command, ProcessKeeper
from flux_endpoint.stack import broker_files
from flux_endpoint.stack.installation import RabbitInstallation, find_rabbitmq
from flux_endpoint.stack.notify import NotifySocket
from flux_endpoint.stack.ports import LOOPBACK, reserve

log = logging.getLogger(__name__)

#: Seconds without any progress after which a start is given up.
START_TIMEOUT = 90.0
#: Seconds for a graceful end, after which the node is killed (its data survive that).
STOP_TIMEOUT = 15.0
#: Seconds to wait until the processes of a killed owner have left the directory.
LOCK_TIMEOUT = 10
#: Number of attempts to start with other ports.
ATTEMPTS = 3
_GROUP = "node"
_EPMD = 0  # its index among the commands of the group
#: Texts of Erlang and epmd about a port in use.
_COLLISION = ("eaddrinuse", "already_used", "ddress already in use", "is in use")


class RabbitNode:
    """A RabbitMQ node with its own name, ports, cookie, epmd, data and log.

    It listens on the loopback interface only. Data, passwords and, as long as they are free, ports
    stay the same when a node is started again in the same directory.

    It has one account, the service's, and asks `authorization_url` about all others.

    Example:
        >>> with RabbitNode(tmp_path) as node:
        ...     connect(node.service_url)

    Args:
        directory: the node's directory; created with mode 0700.
        authorization_url: the URL at which it asks for permissions; default: a free port of this
            machine, with a secret path.
        on_exit: called on a thread with the reason when a ready node has ended unexpectedly. The
            node may be started again, but not from within the call.
    """

    def __init__(
        self,
        directory: Path,
        *,
        authorization_url: str = "",
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._authorization_url = authorization_url
        self._on_exit = on_exit
        self._identity: broker_files.NodeIdentity | None = None
        self._secrets: dict[str, str] = {}
        self._lock_file = -1
        #: Reserves the port of `authorization_url` for the service, which starts later.
        self._reservation: socket.socket | None = None
        self._keeper: ProcessKeeper | None = None
        self._notify: NotifySocket | None = None
        self._state = threading.Lock()  # protects the two below from the keeper's thread
        self._ready = False
        self._stopping = False
        self._ended = threading.Event()
        self._first_end = -1  # index of the first command that ended

    # ---- starting and stopping --------------------------------------------------------------

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the node; return when it accepts connections.

        Args:
            meanwhile: called while the node starts, when its URLs are known; again with others if
                it starts a second time, because a port was taken.

        Raises:
            ConfigurationError: RabbitMQ is not installed.
            AmqpError: the node does not start; the text has the last lines of its log.
        """
        if self._keeper is not None:
            raise RuntimeError("the RabbitMQ node was started before")
        installation = find_rabbitmq()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock()
        try:
            self._start(installation, meanwhile)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the node and all of its processes, gracefully if possible."""
        self._end_processes()
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def restart(self) -> None:
        """Start a node again that has ended; it uses the same `authorization_url`.

        Raises:
            AmqpError: it does not start.
        """
        self._end_processes()
        self._start(find_rabbitmq(), lambda: None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- use --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The Erlang node's name."""
        return self._known().name

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1."""
        return self._known().amqp_port

    @property
    def pid(self) -> int | None:
        """Pid of the process below which all others of the node run."""
        return self._keeper.pid if self._keeper else None

    @property
    def service_url(self) -> str:
        """AMQP URL with the administrator's account."""
        return self.url()

    def url(self, vhost: str = "/") -> str:
        """Return the AMQP URL of a virtual host with the administrator's account."""
        account = f"{broker_files.SERVICE}:{self._secrets[broker_files.SERVICE]}"
        return f"amqp://{account}@{LOOPBACK}:{self.port}/{quote(vhost, safe='')}"

    @property
    def authorization_url(self) -> str:
        """The URL at which it asks for permissions; the service listens there. It has a secret."""
        if self._authorization_url:
            return self._authorization_url
        secret = self._secrets[broker_files.AUTHORIZATION]
        return f"http://{LOOPBACK}:{self._known().authorization_port}/{secret}"

    @property
    def management_url(self) -> str:
        """URL of its management API, with the account of `service_url`."""
        return f"http://{LOOPBACK}:{self._known().management_port}"

    def ctl(self, *args: str, timeout: float = 60) -> str:
        """Run `rabbitmqctl` with `args` on this node; return its output.

        Raises:
            AmqpError: it fails or takes longer than `timeout` seconds.
        """
        command = [str(find_rabbitmq().ctl), "--quiet", *args]
        env = broker_files.node_environment(self.directory, self._known())
        try:
            done = subprocess.run(
                command,
                env=env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise AmqpError(f"rabbitmqctl {args[0]} took more than {timeout:g} s") from None
        if done.returncode != 0:
            output = (done.stderr or done.stdout).strip()
            raise AmqpError(f"rabbitmqctl {args[0]} failed ({done.returncode}): {output}")
        return done.stdout

    # ---- internals --------------------------------------------------------------------------

    def _known(self) -> broker_files.NodeIdentity:
        if self._identity is None:
            raise RuntimeError("the RabbitMQ node was not started yet")
        return self._identity

    def _lock(self) -> None:
        """Lock the directory; the node's processes inherit the lock, so they hold it, too."""
        self._lock_file = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        waited = subprocess.run(
            ["flock", "--timeout", str(LOCK_TIMEOUT), str(self._lock_file)],
            pass_fds=(self._lock_file,),
            check=False,
        )
        if waited.returncode != 0:
            os.close(self._lock_file)
            self._lock_file = -1
            raise AmqpError(f"another RabbitMQ node is running in {self.directory}")

    def _start(self, installation: RabbitInstallation, meanwhile: Callable[[], None]) -> None:
        reason = ""
        for attempt in range(1, ATTEMPTS + 1):
            self._write_files(fresh_ports=attempt > 1)
            reason = self._reserve() or self._attempt(installation, meanwhile)
            if not reason:
                return
            self._end_processes()
            if not any(sign in reason for sign in _COLLISION):
                break
            event(log, logging.INFO, "a port is taken, trying others", attempt=attempt)
        raise AmqpError(f"the RabbitMQ node in {self.directory} did not start: {reason}")

    def _write_files(self, *, fresh_ports: bool) -> None:
        for name in ("data", "log"):
            (self.directory / name).mkdir(mode=0o700, exist_ok=True)
        held = () if self._reservation is None else (self._reservation.getsockname()[1],)
        self._identity = broker_files.load_identity(
            self.directory, fresh_ports=fresh_ports, held=held
        )
        self._secrets = broker_files.load_secrets(self.directory)
        broker_files.write_configuration(
            self.directory,
            self._identity,
            self._secrets[broker_files.SERVICE],
            self.authorization_url,
        )
        self._output.unlink(missing_ok=True)

    def _reserve(self) -> str:
        """Reserve the port of `authorization_url`; return "" or the reason for a failure."""
        if not self._authorization_url and self._reservation is None:
            port = self._known().authorization_port
            try:
                self._reservation = reserve(port)
            except OSError:
                return f"port {port} is in use"
        return ""

    @property
    def _output(self) -> Path:
        return self.directory / "log" / "output.log"

    def _attempt(self, installation: RabbitInstallation, meanwhile: Callable[[], None]) -> str:
        """Start the processes; return "" when they are ready, else the reason for the failure."""
        self._ended.clear()
        self._first_end = -1
        self._notify = NotifySocket()
        try:
            self._spawn(installation, self._notify.address)
            meanwhile()
            if not self._notify.wait_ready(START_TIMEOUT):
                if self._first_end == _EPMD:  # it never reports the reason
                    return f"epmd ended at once: its port {self._known().epmd_port} is in use"
                return f"it ended at once\n{self._tail()}"
            with pika.BlockingConnection(pika.URLParameters(self.service_url)):
                pass
            self._retire_accounts()
        except TimeoutError:
            return f"no sign of progress for {START_TIMEOUT:g} s\n{self._tail()}"
        except pika.exceptions.AMQPError as error:
            return f"it is up but refuses its own user: {error!r}\n{self._tail()}"
        with self._state:
            if self._ended.is_set():
                return f"it ended at once\n{self._tail()}"
            self._ready = True
        return ""

    def _retire_accounts(self) -> None:
        """Delete the accounts that all users shared in earlier releases."""
        retired = [name for name in broker_files.RETIRED if name in self._secrets]
        if not retired:
            return
        known = self.ctl("list_users", "--no-table-headers").splitlines()
        for name in {line.split("\t")[0] for line in known} & {*retired}:
            self.ctl("delete_user", name)
        broker_files.forget_retired(self.directory)

    def _spawn(self, installation: RabbitInstallation, notify: str) -> None:
        identity = self._known()
        env = broker_files.node_environment(self.directory, identity)
        programs: list[list[object]] = [
            # In the foreground, epmd reports a port in use, and does not outlive us as a daemon.
            [installation.epmd, "-address", LOOPBACK, "-port", identity.epmd_port],
            [installation.server],
        ]
        commands = [
            Command(
                [str(word) for word in program],
                {**env, "NOTIFY_SOCKET": notify},
                str(self.directory),
                stdin=self._lock_file,
                stdout=str(self._output),
                stderr=str(self._output),
            )
            for program in programs
        ]
        self._keeper = ProcessKeeper(
            lambda _key, _pids: None,
            self._on_process_exit,
            self._on_group_exit,
            lambda _key, _index, error: event(log, logging.ERROR, "exec failed", error=error),
            name="rabbitmq",
        )
        self._keeper.start()
        self._keeper.spawn(_GROUP, commands)

    def _on_process_exit(self, key: str, index: int, status: int) -> None:
        del status
        if self._first_end < 0:
            self._first_end = index
        if self._keeper is not None and not self._stopping:  # neither process works alone
            self._keeper.kill(key)

    def _on_group_exit(self, key: str, status: int) -> None:
        del key
        with self._state:
            unasked = self._ready and not self._stopping
            self._ready = False
            self._ended.set()
            if self._notify is not None:
                self._notify.tell_ended()
        if unasked and self._on_exit is not None:
            self._on_exit(f"the RabbitMQ node ended (status {status})\n{self._tail()}")

    def _end_processes(self) -> None:
        keeper, self._stopping = self._keeper, True
        if keeper is not None:
            if self._ready:
                keeper.signal(_GROUP, signal.SIGTERM)
                self._ended.wait(STOP_TIMEOUT)
            keeper.close()
        if self._notify is not None:  # open until now: a node that can't notify logs a crash
            self._notify.close()
            self._notify = None
        self._keeper, self._ready, self._stopping = None, False, False

    def _tail(self) -> str:
        return tail(self.directory / "log" / "rabbit.log", 6) + "\n" + tail(self._output, 12)
