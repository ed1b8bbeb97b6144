"""Failed attempts at a task that is retried, and the text that reports them to its user."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.paths import write_private
from flux_endpoint.protocol.duration import format_duration
from flux_endpoint.protocol.exceptions import EXCEPTION, RAISED, class_names, exception_text

log = logging.getLogger(__name__)


class KeptAttempts:
    """Records failed attempts across restarts of the engine: one file for each task.

    Without it, a task that crashes every instance it runs in would be retried forever.

    Args:
        directory: the directory of these files; it is created when needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, task_id: str, attempts: list[str]) -> None:
        """Record why each attempt so far has failed."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_private(self._directory / task_id, json.dumps(attempts))
        except OSError as error:
            logs.event(
                log, logging.WARNING, "a task's attempts are forgotten", task=task_id, reason=error
            )

    def load(self) -> dict[str, list[str]]:
        """Return the recorded reasons by task id."""
        found: dict[str, list[str]] = {}
        for path in self._directory.glob("*"):
            with suppress(OSError, ValueError, TypeError):
                found[path.name] = [str(each) for each in json.loads(path.read_text("utf-8"))]
        return found

    def forget(self, task_id: str) -> None:
        """Remove the record of a task that has ended."""
        with suppress(OSError):
            (self._directory / task_id).unlink(missing_ok=True)


def overdue(limit: float) -> tuple[str, dict[str, Any]]:
    """Return text and details of the failure of a task that has run for too long.

    Args:
        limit: its `time_limit` in seconds.
    """
    text = f"longer than {format_duration(limit)}, its time_limit; its worker was ended"
    error = TimeoutError(text)
    details = {EXCEPTION: exception_text(error), RAISED: class_names(error)}
    return f"TimeoutError: {text}", details


def failure_text(kind: str, attempts: list[str]) -> str:
    """Return the text of the failure with which a task is given up.

    Args:
        kind: the failure's name, such as "WorkerLost".
        attempts: why each attempt was lost, at least one.
    """
    if len(attempts) == 1:
        return f"{kind}: {attempts[0]}"
    history = "\n".join(f"  attempt {n}: {why}" for n, why in enumerate(attempts, start=1))
    return f"{kind}: {len(attempts)} attempts failed\n{history}"
