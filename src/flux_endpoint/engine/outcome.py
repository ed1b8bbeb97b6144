"""Reads how a job ended, and derives how its task ended.

| the job | the task |
|---|---|
| exit code n | finished, n |
| a task killed by signal s | finished, -s (Python's `subprocess` convention) |
| duration ran out (exception `timeout`) | finished, 124 |
| program not found; can't be started otherwise (`exec`) | finished, 127; 126; with the reason |
| a rank failed, and the job was ended for it (`exec`) | finished, as that rank |
| a rank called `MPI_Abort` (`exec`) | finished, with its code |
| cancelled (exception `cancel`) | cancelled |
| can never be satisfied, invalid, or a dependency failed | refused, with Flux's reason |
| node, job shell or scheduler failed (`_SYSTEM`, `_SYSTEM_TYPES`) | lost: may be retried |
| any other exception | failed, with Flux's text |

Only a failure that is known to be the system's fault counts as lost. An unknown exception may come
from the task itself after it did half of its work, or from a person or a site's plugin that ended
the task on purpose. Running it again could do harm, so the user decides, by the exception's text.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Protocol

CALLED_PROCESS_ERROR = "subprocess.CalledProcessError"
TIMEOUT_EXPIRED = "subprocess.TimeoutExpired"

#: Shells' return codes for programs that were not found, or can't be started for another reason.
NOT_FOUND, NOT_STARTED = 127, 126

#: A rank that ended the job: it failed while `exit-on-error` was set, or the others ran for longer
#: than the user's `exit-timeout`. ("shell" instead of "task" means that its node is lost.)
_ENDED_BY_RANK = re.compile(
    r"task rank \d+ .*?(?:failed|exited)(?: \(Exit (\d+)\))?.* "
    r"(?:exit-on-error is set|exit-timeout=\S+ has expired)"
)
#: The job shell could not start a program; the reason is the system's text for an error number.
_NOT_STARTED = re.compile(r"start failed: .*: (?P<reason>[^:]+)$", re.DOTALL)
#: Such reasons that are the node's fault: no memory, no processes, or a failing file system.
_NODE_AT_FAULT = frozenset(
    os.strerror(number)
    for number in (
        errno.EAGAIN,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    )
)
#: Text of the job shell when the program itself ended the job.
_ABORTED = "PMI_Abort"
_PROTOCOL_ERROR = "wire protocol error"

#: Texts of Flux's execution system for its own failures (exceptions of type `exec`).
_SYSTEM = re.compile(
    r"""
      node\ failure\ on | lost\ contact\ with | unkillable\ processes
    | constraint\ check\ failed | service\ is\ not\ loaded\ on | job\ shell\ exec\ error
    | shell\ rank\ \d+\ (?:\(on\ |on\ host\ )       # it was killed, or its node is lost
    | job\ shells\ still\ active\ on
    | terminated\ before\ first\ barrier | start\ barrier\ timeout | ^barrier:
    | ^failed\ to\ (?:create\ (?:guest\ ns|ns\ name|shell\ exit)|initialize\ impl|hash\ job|get\ b)
    | ^(?:bulk-exec|bgexec|testexec):\ (?:re)?(?:start|attach)\ failed
    | ^reattach\b | reattach\ failed | not\ recoverable | job\ start\ failure
    | ^Invalid\ resource\ set\ expiration | ^unable\ to\ start\ expiration
    """,
    re.VERBOSE,
)
#: Types of exceptions that are raised on a job without any fault of the job.
_SYSTEM_TYPES = frozenset({"alloc-check", "node-failure", "prolog", "scheduler-restart"})
#: Types of exceptions that refuse a job before it starts.
_REFUSALS = frozenset({"alloc", "depend", "dependency", "validate"})
#: Texts of refusals that are failures of the job manager itself.
_MANAGER_FAILED = re.compile(r"failed to (?:commit R|post alloc|remove)", re.IGNORECASE)
#: Errors of a submission that are not the job's fault.
_UNANSWERED = frozenset(
    {
        errno.EAGAIN,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOSYS,  # a module of Flux is not loaded, or is being reloaded
        errno.EPIPE,
        errno.ETIMEDOUT,
    }
)

#: Shells and Flux report a signal as this number plus the signal's.
_SIGNAL_BASE = 128

#: Return codes of programs that SIGTERM has ended: as Python and as a shell report them.
ENDED_BY_SIGTERM = (-signal.SIGTERM, _SIGNAL_BASE + signal.SIGTERM)


class EndedJob(Protocol):
    """The future of a job that has ended."""

    def exception(self, timeout: float | None = None) -> BaseException | None: ...  # noqa: D102
    def result(self, timeout: float | None = None) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Finished:
    """The program ended."""

    returncode: int
    exception_name: str | None = None
    #: Flux's text about the end, where the program's output says nothing.
    note: str = ""
    #: Whether a rank called `MPI_Abort`; its code is in the program's output only.
    aborted: bool = False


@dataclass(frozen=True)
class Cancelled:
    """Somebody ended the job on purpose."""

    note: str


@dataclass(frozen=True)
class Refused:
    """The job can never run; a retry is useless."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The job was ended for a reason that is not known to be the system's; it is not retried."""

    reason: str


@dataclass(frozen=True)
class Lost:
    """The job failed because of the system."""

    reason: str


Outcome = Finished | Cancelled | Refused | Failed | Lost


def error_of(job: EndedJob) -> BaseException | None:
    """Return the exception of a future that is done, also if it was cancelled."""
    try:
        return job.exception(timeout=0)
    except CancelledError as cancelled:
        return cancelled


def has_timed_out(error: BaseException | None) -> bool:
    """Return whether a job was ended because its time was over."""
    return getattr(error, "type", None) == "timeout"


def was_cancelled(error: BaseException | None) -> bool:
    """Return whether a job was cancelled by anyone, including Flux itself."""
    return getattr(error, "type", None) == "cancel"


def end_of_job(job: EndedJob) -> str:
    """Return a text that says how a job with a done future ended."""
    error = error_of(job)
    if isinstance(error, CancelledError):
        return "its job was cancelled"
    if getattr(error, "type", None) == "cancel":
        return ": ".join(filter(None, ("its job was cancelled", _note_of(error))))
    if error is not None:
        return f"its job failed: {error}"
    return f"its job ended with status {job.result(timeout=0)}"


def outcome_of(
    status: int | None,
    error: BaseException | None,
    exec_events: Sequence[dict[str, Any]],
    *,
    submitted: bool = True,
) -> Outcome:
    """Return what the end of a job means for its task.

    Args:
        status: the future's result, the highest exit status of the ranks.
        error: the future's exception, if any.
        exec_events: entries of the job's `guest.exec.eventlog`; only they distinguish a task that
            was killed by a signal from one that exits with 128 plus the signal's number.
        submitted: whether the job has an id; then Flux can't have refused it.
    """
    if error is None:
        return _of_status(status or 0, exec_events)
    if isinstance(error, CancelledError):
        return Cancelled("the job was cancelled before it was submitted")
    kind = getattr(error, "type", None)
    note = _note_of(error) or str(error)
    if kind is None:
        return _of_no_job(error, note, submitted=submitted)
    outcome: Outcome
    match kind:
        case "timeout":
            outcome = Finished(124, TIMEOUT_EXPIRED, note)
        case "cancel":
            outcome = Cancelled(_note_of(error))
        case "exec":
            outcome = _of_execution(note, exec_events)
        case _ if kind in _SYSTEM_TYPES or (kind in _REFUSALS and _MANAGER_FAILED.search(note)):
            outcome = Lost(f"{kind}: {note}")
        case _ if kind in _REFUSALS:
            outcome = Refused(note)
        case _:
            outcome = Failed(f"the job was ended by an exception of type {kind}: {note}")
    return outcome


def _of_execution(note: str, exec_events: Sequence[dict[str, Any]]) -> Outcome:
    """Return the meaning of an exception of Flux's execution system or a job shell (`exec`)."""
    if (failed := _ENDED_BY_RANK.search(note)) is not None:
        return _of_status(_first_failure(exec_events) or int(failed[1] or 0) or 1, exec_events)
    if (unable := _NOT_STARTED.search(note)) is not None:
        return _of_start(unable["reason"].strip(), note)
    if note.startswith(_ABORTED) or _PROTOCOL_ERROR in note:
        return Finished(1, CALLED_PROCESS_ERROR, note, aborted=note.startswith(_ABORTED))
    if _SYSTEM.search(note):
        return Lost(f"exec: {note}")
    return Failed(f"Flux could not run the job, or ended it: {note}")


def _of_start(reason: str, note: str) -> Outcome:
    if reason in _NODE_AT_FAULT:
        return Lost(f"exec: {note}")
    code = NOT_FOUND if reason == os.strerror(errno.ENOENT) else NOT_STARTED
    return Finished(code, CALLED_PROCESS_ERROR, note)


def _of_no_job(error: BaseException, note: str, *, submitted: bool) -> Outcome:
    """Return the meaning of an error that is not an exception of the job itself."""
    # Without the error number: a site's validator explains it in a sentence.
    reason = getattr(error, "strerror", None) or note
    if submitted:
        return Lost(f"the job can't be followed any more: {reason}")
    if isinstance(error, (TypeError, ValueError)) or (
        isinstance(error, OSError) and error.errno not in _UNANSWERED
    ):
        return Refused(f"Flux refused the job: {reason}")
    return Lost(f"the job could not be submitted: {type(error).__name__}: {reason}")


def _note_of(error: BaseException | None) -> str:
    """Return the note of the job's exception, by Flux or by the person who ended the job."""
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
    """Return the exit status of the first task that failed; 0 if none is known."""
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
