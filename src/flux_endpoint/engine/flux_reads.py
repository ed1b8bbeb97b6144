"""Requests to a Flux instance from several threads, and the records of its finished jobs."""

from __future__ import annotations

import base64
import json
import logging
import shlex
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.job_output import end_of_file
from flux_endpoint.engine.tail import Tail
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

#: Timeout (s) of each request. The largest output that Flux keeps (10 MB) takes about one second
#: for every ten thousand lines.
_TIMEOUT = 60.0


@dataclass(frozen=True)
class JobReport:
    """The known facts of a job that somebody else started."""

    command: str
    #: The last lines of its output.
    stdout: str = ""
    stderr: str = ""


class Handles:
    """Connections to an instance. Each serves one thread at a time, so threads borrow them.

    There are as many as the most threads that ever asked at once. A connection's futures must be
    destroyed before it is given back, so no variable may refer to one.

    Args:
        flux: Flux's bindings.
        uri: the instance's; `None`: the default instance's.
    """

    def __init__(self, flux: ModuleType, uri: str | None) -> None:
        self._flux = flux
        self._uri = uri
        self._free: list[Any] = []

    @contextmanager
    def lend(self) -> Iterator[Any]:
        """Lend a connection; raises OSError where there is no instance."""
        try:
            handle = self._free.pop()
        except IndexError:
            handle = self._flux.Flux(self._uri)
        try:
            yield handle
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they refer to the failed future
            raise
        finally:
            self._free.append(handle)


class JobReader:
    """Reads Flux's records of finished jobs. May take long; for any thread.

    Args:
        flux: Flux's bindings.
        handles: connections to the instance.
    """

    def __init__(self, flux: ModuleType, handles: Handles) -> None:
        self._flux = flux
        self._handles = handles

    def exec_events(self, jobid: int) -> list[dict[str, Any]]:
        """Return a job's `guest.exec.eventlog`, or the part of it that exists."""
        try:
            return list(self._events(jobid, "guest.exec.eventlog"))
        except (OSError, ValueError) as error:
            logs.event(
                log, logging.DEBUG, "no exec events", job=format_jobid(jobid), reason=str(error)
            )
            return []

    def ranks(self, jobid: int) -> list[str]:
        """Return the broker ranks on which a job ran, as id sets."""
        allocated = json.loads(self._lookup(jobid, "R") or "{}")
        shares = allocated.get("execution", {}).get("R_lite", [])
        return [str(share["rank"]) for share in shares]

    def report(self, jobid: int) -> JobReport:
        """Return a job's command and output, whoever submitted it."""
        command, cwd = f"job {format_jobid(jobid)}", "/"
        try:
            jobspec = json.loads(self._lookup(jobid, "jobspec") or "{}")
            command = shlex.join(jobspec["tasks"][0]["command"])
            cwd = str(jobspec["attributes"]["system"].get("cwd") or "/")
        except (OSError, LookupError, TypeError, ValueError) as error:
            logs.event(log, logging.INFO, "a job's command is unknown", job=command, reason=error)
        try:
            return JobReport(command, *_tail_of_output(self._events(jobid, "guest.output"), cwd))
        except FileNotFoundError:
            return JobReport(command)  # it has no output: it never started
        except (OSError, LookupError, TypeError, ValueError) as error:
            return JobReport(command, stderr=f"[its output could not be read: {error}]\n")

    def _events(self, jobid: int, key: str) -> Iterator[dict[str, Any]]:
        """Read a whole eventlog in one request: event by event would take ten times as long."""
        text = self._lookup(jobid, key)
        if text is None:
            self._wait_until_kept(jobid)
            text = self._lookup(jobid, key)
        return (json.loads(line) for line in (text or "").splitlines())

    def _lookup(self, jobid: int, key: str) -> str | None:
        lookup = self._flux.job.kvslookup.job_info_lookup
        with self._handles.lend() as handle:
            try:
                answer = lookup(handle, jobid, keys=[key]).wait_for(_TIMEOUT).get()
            except FileNotFoundError:
                return None
        return str(answer[key])

    def _wait_until_kept(self, jobid: int) -> None:
        """Wait until a finished job's records are in their final place, a moment after its end.

        Raises:
            FileNotFoundError: the job was never started.
        """
        with self._handles.lend() as handle:
            _read_to_end(self._flux.job.event_watch_async(handle, jobid, "guest.exec.eventlog"))


def _read_to_end(events: Any) -> None:
    while events.wait_for(_TIMEOUT).get_event() is not None:
        pass


def _tail_of_output(events: Iterable[dict[str, Any]], cwd: str) -> tuple[str, str]:
    """Return the last lines of a job's output streams from its output eventlog (RFC 24).

    Args:
        events: the eventlog's entries.
        cwd: the job's working directory, for relative paths of its output files.
    """
    tails = {"stdout": Tail(), "stderr": Tail()}
    files = set()
    for event in events:
        context = event.get("context", {})
        if event["name"] == "data" and (data := context.get("data")) is not None:
            text = data if isinstance(data, str) else ""
            if context.get("encoding") == "base64":
                text = base64.b64decode(text).decode("utf-8", "replace")
            tails[context["stream"]].add(text * int(context.get("repeat", 1)))
        elif event["name"] == "redirect" and (path := context.get("path")) not in files:
            files.add(path)  # both streams may go to the same file
            tails[context["stream"]].add(end_of_file(str(path), cwd))
    return tails["stdout"].text, tails["stderr"].text
