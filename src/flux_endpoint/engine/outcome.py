"""How a job ended, and what that means for the task.

| the job | the task |
|---|---|
| exit code n | finished, n |
| a task killed by signal s | finished, -s (Python's `subprocess` convention) |
| duration ran out (exception `timeout`) | finished, 124 |
| program not found, not executable (exception `exec`) | finished, 127, 126, with the message |
| cancelled (exception `cancel`) | cancelled |
| can't ever be satisfied, refused by validation | refused, with Flux's reason |
| node or job shell lost, anything else | lost: not the task's fault, may be tried again |
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Protocol

CALLED_PROCESS_ERROR = "subprocess.CalledProcessError"
TIMEOUT_EXPIRED = "subprocess.TimeoutExpired"

#: A rank that failed where `exit-on-error` has the job end with it.
_EXIT_ON_ERROR = re.compile(r"failed(?: \(Exit (\d+)\))?.* exit-on-error is set")

#: What a shell, and Flux, add to a signal's number to make an exit code of it.
_SIGNAL_BASE = 128

#: Return codes of what SIGTERM has ended: as Python has them, and as a shell does.
ENDED_BY_SIGTERM = (-signal.SIGTERM, _SIGNAL_BASE + signal.SIGTERM)


class Ended(Protocol):
    """The future of a job that has ended."""

    def exception(self, timeout: float | None = None) -> BaseException | None: ...  # noqa: D102
    def result(self, timeout: float | None = None) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Finished:
    """The program came to an end."""

    returncode: int
    exception_name: str | None = None
    #: What Flux has to say that the program's output does not.
    note: str = ""


@dataclass(frozen=True)
class Cancelled:
    """Somebody ended the job on purpose."""

    note: str


@dataclass(frozen=True)
class Refused:
    """The job could never run; trying again is no use."""

    reason: str


@dataclass(frozen=True)
class Lost:
    """The system failed the job."""

    reason: str


Outcome = Finished | Cancelled | Refused | Lost


def error_of(job: Ended) -> BaseException | None:
    """Return the exception of a future that is done, a cancellation included."""
    try:
        return job.exception(timeout=0)
    except CancelledError as cancelled:
        return cancelled


def has_timed_out(error: BaseException | None) -> bool:
    """Return whether a job was ended since its time was over."""
    return getattr(error, "type", None) == "timeout"


def was_cancelled(error: BaseException | None) -> bool:
    """Return whether somebody ended a job, Flux itself included."""
    return getattr(error, "type", None) == "cancel"


def end_of_job(job: Ended) -> str:
    """Say how a job ended whose future is done."""
    error = error_of(job)
    if isinstance(error, CancelledError):
        return "its job was cancelled"
    if getattr(error, "type", None) == "cancel":
        return ": ".join(filter(None, ("its job was cancelled", _note_of(error))))
    if error is not None:
        return f"its job failed: {error}"
    return f"its job ended with status {job.result(timeout=0)}"


def outcome_of(
    status: int | None, error: BaseException | None, exec_events: Sequence[dict[str, Any]]
) -> Outcome:
    """Return what the end of a job means.

    Args:
        status: the future's result, the highest of the ranks' exit statuses.
        error: the future's exception, if it has one.
        exec_events: entries of the job's `guest.exec.eventlog`; only they tell a task that was
            killed by a signal from one that exits with 128 plus its number.
    """
    if error is None:
        return _of_status(status or 0, exec_events)
    if isinstance(error, CancelledError):
        return Cancelled("the job was cancelled before it was submitted")
    kind = getattr(error, "type", None)
    note = _note_of(error) or str(error)
    outcome: Outcome
    match kind:
        case "timeout":
            outcome = Finished(124, TIMEOUT_EXPIRED, note)
        case "cancel":
            outcome = Cancelled(_note_of(error))
        case "alloc" | "depend" | "dependency" | "validate":
            outcome = Refused(note)
        case "exec" if "start failed" in note and "No such file or directory" in note:
            outcome = Finished(127, CALLED_PROCESS_ERROR, note)
        case "exec" if (failed := _EXIT_ON_ERROR.search(note)) is not None:
            outcome = _of_status(_first_failure(exec_events) or int(failed[1] or 1), exec_events)
        case "exec" if "start failed" in note and "Permission denied" in note:
            outcome = Finished(126, CALLED_PROCESS_ERROR, note)
        case None if isinstance(error, (OSError, TypeError, ValueError)):
            # Without the error's number: a site's validator says it in a sentence.
            reason = getattr(error, "strerror", None) or note
            outcome = Refused(f"Flux refused the job: {reason}")
        case _:
            outcome = Lost(f"{kind or type(error).__name__}: {note}")
    return outcome


def _note_of(error: BaseException | None) -> str:
    """Return what Flux, or whoever ended the job, has to say of its exception."""
    return str(getattr(error, "note", None) or "")


def _of_status(status: int, exec_events: Sequence[dict[str, Any]]) -> Outcome:
    if status < 0:
        return Lost(f"the job shell was killed by {_name(-status)}")
    if status > _SIGNAL_BASE and _was_signalled(status, exec_events):
        signum = status - _SIGNAL_BASE
        hint = "; out of memory?" if signum == signal.SIGKILL else ""
        return Finished(-signum, CALLED_PROCESS_ERROR, f"killed by {_name(signum)}{hint}")
    return Finished(status, CALLED_PROCESS_ERROR if status else None)


def _first_failure(exec_events: Sequence[dict[str, Any]]) -> int:
    """Return the exit status of the first task that failed, 0 if none is known."""
    exits = (e["context"].get("exitcode", 0) for e in exec_events if e["name"] == "shell.task-exit")
    return next((int(code) for code in exits if code), 0)


def _was_signalled(status: int, exec_events: Sequence[dict[str, Any]]) -> bool:
    return any(
        event.get("name") == "shell.task-exit"
        and event["context"].get("signaled")
        and event["context"].get("exitcode") == status
        for event in exec_events
    )


def _name(signum: int) -> str:
    try:
        return f"signal {signum} ({signal.Signals(signum).name})"
    except ValueError:
        return f"signal {signum}"
