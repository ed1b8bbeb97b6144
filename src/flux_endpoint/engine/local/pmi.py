"""PMI-1's simple wire protocol (RFC 13), by which the MPI library of a job's ranks connects them.

Each rank has a socket, whose number is in `PMI_FD`. It writes requests of one line and reads an
answer to each. The server does what Flux's job shell does.
"""

from __future__ import annotations

import logging
import re
import secrets
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

log = logging.getLogger(__name__)

#: The most ranks of a job that are served: each needs two descriptors of this process.
MAX_RANKS = 256
#: The limits of RFC 13, in bytes.
_LONGEST_NAME, _LONGEST_KEY, _LONGEST_VALUE = 64, 64, 1024
_LONGEST_LINE = 4096
#: The most keys of a job: far more than MPI libraries put.
_MAX_KEYS = 64 * MAX_RANKS
#: Error numbers of PMI-1.
_FAIL, _INVALID_KEY, _INVALID_KEY_LENGTH, _INVALID_VALUE_LENGTH, _INVALID_LENGTH = -1, 4, 5, 7, 8
#: Answers that are the same for all jobs.
_ANSWERS = {
    "get_maxes": f"cmd=maxes rc=0 kvsname_max={_LONGEST_NAME} keylen_max={_LONGEST_KEY} "
    f"vallen_max={_LONGEST_VALUE}",
    "get_appnum": "cmd=appnum rc=0 appnum=0",
    "finalize": "cmd=finalize_ack rc=0",
    "publish_name": "cmd=publish_result rc=-1 msg=command not implemented",
    "unpublish_name": "cmd=unpublish_result rc=-1 msg=command not implemented",
    "lookup_name": "cmd=lookup_result rc=-1 msg=command not implemented",
}
_FIELD = re.compile(r"(?:^|\s)(\w+)=(\S*)")
#: A value may have spaces, so it is the last field of its line.
_VALUE = re.compile(r"\svalue=(.*)$")
_MESSAGE = re.compile(r"\serror_msg=(.*)$")


class PmiFailure(Exception):  # noqa: N818 - the program's end, not an error of this module
    """A request that ends the job; the text is the note of the job's exception."""


class PmiExchange:
    """The keys and barriers of one job's ranks. Pure: request in, answers out.

    Args:
        size: number of ranks.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        #: MPICH names the memory that its ranks share by it: no two jobs may have the same.
        self._name = secrets.token_hex(8)
        # All ranks are on this machine and may share memory.
        self._values = {"PMI_process_mapping": f"(vector,(0,1,{size}))"}
        self._waiting = 0
        self._ranks: set[int] = set()
        self._spawning: set[int] = set()

    def answer(self, rank: int, line: str) -> list[tuple[int, str]]:
        """Return the answers to a request, each with the rank that gets it.

        Args:
            rank: the rank that sent it.
            line: the request, without its newline.

        Raises:
            PmiFailure: the rank aborts the job, or violates the protocol.
        """
        self._ranks.add(rank)
        if rank in self._spawning:  # a request of several lines, which is refused at its end
            if line != "endcmd":
                return []
            self._spawning.remove(rank)
            return [(rank, "cmd=spawn_result rc=-1")]
        fields = dict(_FIELD.findall(line))
        if fields.get("mcmd") == "spawn":
            self._spawning.add(rank)
            return []
        match fields.get("cmd"):
            case "barrier_in":
                self._waiting += 1
                if self._waiting < self._size:
                    return []
                self._waiting = 0
                return [(each, "cmd=barrier_out rc=0") for each in sorted(self._ranks)]
            case "abort":
                found = _MESSAGE.search(line)
                raise PmiFailure(f"PMI_Abort: {found[1] if found else 'aborted'}")
            case command:
                return [(rank, self._answer(command, fields, line))]

    def _answer(self, command: str | None, fields: dict[str, str], line: str) -> str:
        match command:
            case "init":
                is_ours = fields.get("pmi_version") == "1"
                return f"cmd=response_to_init rc={0 if is_ours else _FAIL}" + (
                    " pmi_version=1 pmi_subversion=1" if is_ours else ""
                )
            case "get_my_kvsname":
                return f"cmd=my_kvsname rc=0 kvsname={self._name}"
            case "get_universe_size":
                return f"cmd=universe_size rc=0 size={self._size}"
            case "put":
                return f"cmd=put_result rc={self._put(fields, line)}"
            case "get":
                value = self._values.get(fields.get("key", ""))
                rc = _INVALID_KEY if value is None else 0
                return f"cmd=get_result rc={rc}" + ("" if value is None else f" value={value}")
        if command not in _ANSWERS:
            raise PmiFailure("PMI-1 wire protocol error")
        return _ANSWERS[command]

    def _put(self, fields: dict[str, str], line: str) -> int:
        found = _VALUE.search(line)
        if found is None or "kvsname" not in fields or not fields.get("key"):
            raise PmiFailure("PMI-1 wire protocol error")
        if len(fields["kvsname"]) >= _LONGEST_NAME:
            return _INVALID_LENGTH
        if len(fields["key"]) >= _LONGEST_KEY:
            return _INVALID_KEY_LENGTH
        if len(found[1]) >= _LONGEST_VALUE:
            return _INVALID_VALUE_LENGTH
        if len(self._values) >= _MAX_KEYS:
            return _FAIL
        self._values[fields["key"]] = found[1]
        return 0


class _Rank:
    """The connection to one rank."""

    def __init__(
        self, number: int, channel: socket.socket, job: _Job, fail: Callable[[str], None]
    ) -> None:
        self.number = number
        self.channel = channel
        self.job = job
        self.fail = fail
        self.input = b""


class _Job:
    def __init__(self, size: int) -> None:
        self.exchange = PmiExchange(size)
        self.ranks: dict[int, _Rank] = {}


class PmiServer:
    """Serves the ranks of all jobs of this process, on one thread; ends with the process.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(wake, selectors.EVENT_READ)
        self._wakeup = wake
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def connect(self, size: int, on_failure: Callable[[str], None]) -> list[socket.socket]:
        """Serve a job; return the ranks' sockets, in order, which the caller gives to them.

        A rank's connection ends when all copies of its socket are closed.

        Args:
            size: number of ranks.
            on_failure: called on the server's thread when a rank aborts the job or violates the
                protocol, with the note for the job's exception.

        Raises:
            OSError: there are not enough descriptors.
        """
        ours: list[socket.socket] = []
        theirs: list[socket.socket] = []
        try:
            for _ in range(size):
                mine, other = socket.socketpair()
                ours.append(mine)
                theirs.append(other)
        except OSError:
            for each in (*ours, *theirs):
                each.close()
            raise
        self._post(partial(self._register, ours, on_failure))
        return theirs

    def close(self) -> None:
        """End the thread; the jobs have ended."""
        self._post(self._end)
        self._thread.join()

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.append(action)
        with suppress(BlockingIOError):  # it is woken already
            self._wake.send(b"\0")

    def _end(self) -> None:
        self._has_ended = True

    def _run(self) -> None:
        while not self._has_ended:
            for key, _ in self._selector.select():
                if key.fileobj is self._wakeup:
                    self._wakeup.recv(4096)
                else:
                    self._serve(key.data)
            while self._inbox:
                self._inbox.popleft()()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr] # all are sockets
        self._wake.close()
        self._selector.close()

    def _register(self, channels: list[socket.socket], fail: Callable[[str], None]) -> None:
        job = _Job(len(channels))
        for number, channel in enumerate(channels):
            channel.setblocking(False)
            rank = job.ranks[number] = _Rank(number, channel, job, fail)
            self._selector.register(channel, selectors.EVENT_READ, rank)

    def _serve(self, rank: _Rank) -> None:
        try:
            data = rank.channel.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, rank.input = (rank.input + data).split(b"\n")
        try:
            for line in lines:
                answers = rank.job.exchange.answer(rank.number, line.decode(errors="replace"))
                for number, text in answers:
                    self._send(rank.job.ranks.get(number), text)
            if len(rank.input) > _LONGEST_LINE:
                raise PmiFailure("PMI-1 wire protocol error")
        except PmiFailure as failure:
            rank.fail(str(failure))
            data = b""
        if not data:
            self._drop(rank)

    def _send(self, rank: _Rank | None, text: str) -> None:
        """Send an answer; a rank that does not read its answers, or is gone, gets no more."""
        if rank is not None:
            try:
                rank.channel.sendall(f"{text}\n".encode())
            except OSError:
                self._drop(rank)

    def _drop(self, rank: _Rank) -> None:
        if rank.job.ranks.pop(rank.number, None) is not None:
            self._selector.unregister(rank.channel)
            rank.channel.close()
