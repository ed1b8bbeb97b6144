"""The end of an attempt at a task: what it was, and the task's result with its earlier attempts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flux_endpoint.engine import results
from flux_endpoint.engine.base import EngineResult
from flux_endpoint.protocol.envelope import ATTEMPTS, FAILED_ATTEMPTS, RETURNCODE
from flux_endpoint.protocol.exceptions import RAISED
from flux_endpoint.protocol.messages import read_json
from flux_endpoint.protocol.run_options import LOST, RunOptions
from flux_endpoint.protocol.states import ErrorCode

#: The most characters of the reason of a failed attempt.
MAX_REASON = 200

#: Beginnings of the texts of lost workers and jobs.
_LOSSES = ("WorkerLost: ", "JobLost: ")
_CANCELLED = f"{ErrorCode.CANCELLED}: the task was ended on request"


@dataclass(frozen=True)
class AttemptEnd:
    """The end of an attempt, as far as it matters for another one.

    Attributes:
        code: the kind of failure; empty: the task has a value.
        text: the text of the failure.
        raised: the names of the exception's classes.
        returncode: of a command, its exit code; negative: a signal.
    """

    code: str = ""
    text: str = ""
    raised: tuple[str, ...] = ()
    returncode: int = 0

    @property
    def reason(self) -> str:
        """Why the attempt failed, in one line; empty: it did not, or nothing should try again."""
        if self.code in {ErrorCode.REMOTE_EXECUTION, ErrorCode.WORKER_LOST}:
            lines = [line.strip() for line in self.text.splitlines() if line.strip()]
            line = lines[-1] if lines else self.code
            return line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 1]}…"
        if not self.code and self.returncode < 0:
            return f"ended by signal {-self.returncode}"
        return f"exit code {self.returncode}" if not self.code and self.returncode else ""

    def matches(self, conditions: Sequence[str | int]) -> bool:
        """Return whether it is a failure of one of these kinds.

        Args:
            conditions: those of `RunOptions.retry_on`; none: all kinds.
        """
        if not self.reason:
            return False
        return not conditions or any(map(self._is, conditions))

    def _is(self, condition: str | int) -> bool:
        if isinstance(condition, int):
            return not self.code and self.returncode == condition
        if condition == LOST:
            return self.code == ErrorCode.WORKER_LOST
        return any(condition in {name, name.rpartition(".")[2]} for name in self.raised)

    def leads_to_another(self, options: RunOptions, failures: int) -> bool:
        """Return whether there is another attempt.

        Args:
            options: the task's.
            failures: number of attempts that failed before.
        """
        return failures < options.retries and self.matches(options.retry_on)


# A task can write to its worker's channel itself.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def read_end(body: bytes) -> AttemptEnd:
    """Return the end of an attempt from its result; one that can't be read has not failed."""
    try:
        message = _fields(body)
        details = message.get("details") or {}
        if message.get("error_details") is None:
            code = details.get(RETURNCODE)
            return AttemptEnd(returncode=code if isinstance(code, int) else 0)
        names = str(details.get(RAISED) or "").split()
        return AttemptEnd(message["error_details"]["code"], message["data"], tuple(names))
    except _UNREADABLE:
        return AttemptEnd()


def read_details(body: bytes) -> dict[str, Any]:
    """Return the details in the result of an attempt; none if it can't be read."""
    try:
        return dict(_fields(body).get("details") or {})
    except _UNREADABLE:
        return {}


def final_result(task_id: str, body: bytes, failures: Sequence[str]) -> EngineResult:
    """Return the result of a task whose last attempt has ended.

    Args:
        task_id: the task's id; the body may have that of the attempt.
        body: the result of the last attempt.
        failures: why each earlier attempt failed.
    """
    if not failures:
        return EngineResult(task_id, body)
    try:
        fields = _fields(body)
        details: dict[str, Any] = {**(fields.get("details") or {})}
        own = details.get(ATTEMPTS, 1)
        details[ATTEMPTS] = len(failures) + (own if isinstance(own, int) else 1)
        details[FAILED_ATTEMPTS] = json.dumps(failures)
        text = fields["data"]
        if fields.get("error_details") is not None:
            text = _with_history(text, failures)
        changed = {"task_id": task_id, "details": details, "data": text}
        return EngineResult(task_id, results.packed({**fields, **changed}))
    except _UNREADABLE:
        text = _with_history("the result of the last attempt can't be read", failures)
        return EngineResult(task_id, results.failure(task_id, ErrorCode.COULD_NOT_EXECUTE, text))


def _fields(body: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = read_json(body)["data"]
    return fields


def cancelled_result(task_id: str, failures: Sequence[str]) -> EngineResult:
    """Return the result of a task that was ended on request between two attempts."""
    none_ran = {ATTEMPTS: 0}
    body = results.failure(task_id, ErrorCode.CANCELLED, _CANCELLED, details=none_ran)
    return final_result(task_id, body, failures)


def _with_history(text: str, failures: Sequence[str]) -> str:
    if text.startswith(f"{ErrorCode.CANCELLED}:"):
        count = len(failures)
        return f"{text} (after {count} failed attempt{'s'[: count != 1]}, the last: {failures[-1]})"
    beginning = next((each for each in _LOSSES if text.startswith(each)), "")
    last = text.removeprefix(beginning)
    lines = [f"  attempt {n}: {why}" for n, why in enumerate(failures, start=1)]
    count = len(failures) + 1
    gap = "\n" if "\n" in last else " "
    return "\n".join(
        (f"{beginning}{count} attempts failed", *lines, f"  attempt {count}:{gap}{last}")
    )
