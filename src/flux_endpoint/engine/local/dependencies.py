"""Dependencies: a job requests resources after other jobs, or after a time (RFC 26)."""

from __future__ import annotations

import enum
import errno
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from flux_endpoint.engine.local.job import LocalJob, LocalJobState
from flux_endpoint.protocol.jobid import parse_jobid


class _Kind(enum.Enum):
    """The condition on another job; values have the words of Flux's notes."""

    START = "after-start"
    ANY = "after-finish"
    SUCCESS = "after-success"
    FAILURE = "after-failure"
    EXCEPT = "after-except"
    #: No other job: a time.
    TIME = "begin-time"


_SCHEMES = {
    "after": _Kind.START,
    "afterstart": _Kind.START,
    "afterany": _Kind.ANY,
    "afterok": _Kind.SUCCESS,
    "afternotok": _Kind.FAILURE,
    "afterexcept": _Kind.EXCEPT,
}
_UNMET = {
    _Kind.SUCCESS: "dependency: afterok: job {} failed or was canceled",
    _Kind.FAILURE: "dependency: afternotok: job {} succeeded",
    _Kind.EXCEPT: "dependency: afterexcept: job {}: no exception",
}


@dataclass(frozen=True, slots=True)
class _Dependency:
    kind: _Kind
    #: A job id, or seconds since the epoch.
    value: float
    #: The text in the jobspec.
    text: str


class Dependencies:
    """Which jobs wait for which. Owned by the instance's thread.

    Args:
        find: returns the job with an id; raises FileNotFoundError if there is none.
        after: calls a function on the thread after a number of seconds.
        on_met: called with each job whose dependencies are met.
        on_failed: called with each job whose dependencies can't be met, and the reason.
    """

    def __init__(
        self,
        find: Callable[[int], LocalJob],
        after: Callable[[float, Callable[[], None]], None],
        on_met: Callable[[LocalJob], None],
        on_failed: Callable[[LocalJob, str], None],
    ) -> None:
        self._find = find
        self._after = after
        self._on_met = on_met
        self._on_failed = on_failed
        self._open: dict[int, set[_Dependency]] = {}  # by the id of the waiting job
        self._dependents: dict[
            int, list[tuple[LocalJob, _Dependency]]
        ] = {}  # by the id of the job that is waited for

    def add(self, job: LocalJob, others: Iterable[LocalJob]) -> bool:
        """Return whether a new job must wait; if so, `on_met` or `on_failed` is called later.

        Args:
            job: the job.
            others: all jobs that have not ended.

        Raises:
            OSError: EINVAL: a dependency is invalid, or can't be met any more.
        """
        assert job.spec is not None
        found = {
            dependency
            for scheme, value in job.spec.dependencies
            for dependency in self._read(job, scheme, value, others)
        }
        if not found:
            return False
        self._open[job.id] = found
        for dependency in found:
            if dependency.kind is _Kind.TIME:
                self._wait_until(job, dependency)
            else:
                self._dependents.setdefault(int(dependency.value), []).append((job, dependency))
        return True

    def check(self, target: LocalJob) -> None:
        """Check the jobs that wait for a job that has started or ended."""
        waiting = self._dependents.pop(target.id, [])
        for job, dependency in waiting:
            met = _is_met(dependency.kind, target)
            if met is None:
                self._dependents.setdefault(target.id, []).append((job, dependency))
            elif met:
                self._meet(job, dependency)
            elif self._open.pop(job.id, None):
                why = "can never be satisfied" if _has(target, "alloc") else "job never started"
                self._on_failed(job, f"dependency {dependency.kind.value}={dependency.text} {why}")

    def _wait_until(self, job: LocalJob, dependency: _Dependency) -> None:
        left = dependency.value - time.time()
        if left > 0:  # the clock was set back, or the wait exceeds the longest timer
            self._after(left, partial(self._wait_until, job, dependency))
        else:
            self._meet(job, dependency)

    def _meet(self, job: LocalJob, dependency: _Dependency) -> None:
        left = self._open.get(job.id)
        if left is None or job.state is LocalJobState.INACTIVE:
            self._open.pop(job.id, None)  # it was cancelled in the meantime
            return
        left.discard(dependency)
        if not left:
            del self._open[job.id]
            self._on_met(job)

    def _read(
        self, job: LocalJob, scheme: str, value: str, others: Iterable[LocalJob]
    ) -> Iterator[_Dependency]:
        """Yield the conditions of a dependency that are not met yet."""
        assert job.spec is not None
        if scheme == "begin-time":
            moment = _moment(value)
            if moment > time.time():
                yield _Dependency(_Kind.TIME, moment, value)
        elif scheme == "singleton":
            name = job.spec.name
            if not name:
                raise _refusal("singleton jobs require a job name")
            for other in others:
                if other.spec is not None and other.spec.name == name:
                    yield _Dependency(_Kind.ANY, other.id, str(other.id))
        elif scheme in _SCHEMES:
            kind = _SCHEMES[scheme]
            target = self._target(scheme, value)
            met = _is_met(kind, target)
            if met is None:
                yield _Dependency(kind, target.id, value)
            elif not met:
                never = not _has(target, "alloc") or kind is _Kind.START
                unmet = "dependency: after: {} never started" if never else _UNMET[kind]
                raise _refusal(unmet.format(value))
        else:
            raise _refusal(f'dependency scheme "{scheme}" not supported')

    def _target(self, scheme: str, value: str) -> LocalJob:
        try:
            return self._find(parse_jobid(value))
        except ValueError:
            raise _refusal(f'dependency: {scheme}: "{value}" is not a valid jobid') from None
        except FileNotFoundError:
            raise _refusal(f"dependency: {scheme}: id {value}: job not found") from None


def _is_met(kind: _Kind, target: LocalJob) -> bool | None:
    """Return whether a job has met a condition; `None`: not yet known."""
    if kind is _Kind.START and _has(target, "start"):
        return True
    if target.state is not LocalJobState.INACTIVE:
        return None
    if kind is _Kind.ANY:
        return True
    if kind is _Kind.START or not _has(target, "alloc"):
        return False
    failed = any(e.name == "exception" and e.context["severity"] == 0 for e in target.events)
    if kind is _Kind.EXCEPT:
        return failed
    succeeded = not failed and all(
        event.context["status"] == 0 for event in target.events if event.name == "finish"
    )
    return succeeded is (kind is _Kind.SUCCESS)


def _has(job: LocalJob, event: str) -> bool:
    return any(each.name == event for each in job.events)


def _moment(value: str) -> float:
    try:
        moment = float(value or 0)
    except ValueError:
        moment = -1.0
    if not 0 <= moment < math.inf:
        raise _refusal(f"Invalid begin-time={value}")
    return moment


def _refusal(why: str) -> OSError:
    return OSError(errno.EINVAL, why)
