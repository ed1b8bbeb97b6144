"""Structured logs on top of the standard library: one event a line, fields as `key=value` or JSON.

Modules log with `logging.getLogger(__name__)` and put their fields into `extra={"fields": {...}}`,
or, shorter, with `event(log, logging.INFO, "task accepted", task_id=...)`. Libraries stay quiet:
only programs call `configure`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

#: Bytes of a program's log after which it is put aside at the program's next start.
MAX_LOG_SIZE = 10 * 2**20

LogFormat = Literal["text", "json"]


def event(log: logging.Logger, level: int, what: str, /, **fields: Any) -> None:
    """Log `what` at `level` with structured `fields`."""
    if log.isEnabledFor(level):
        log.log(level, what, extra={"fields": fields}, stacklevel=2)


class _Formatter(logging.Formatter):
    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{moment}.{int(record.msecs):03d}Z"
        fields: dict[str, Any] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self._json:
            entry = {
                "time": stamp,
                "level": record.levelname.lower(),
                "logger": record.name,
                "event": record.getMessage(),
                **fields,
            }
            if trace:
                entry["traceback"] = trace
            return json.dumps(entry, default=str)
        line = f"{stamp} {record.levelname:<7} {said(record)}"
        return f"{line}\n{trace}" if trace else line


def said(record: logging.LogRecord) -> str:
    """Return what `record` says, with its fields as `key=value`."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return record.getMessage() + "".join(
        f" {key}={_quoted(value)}" for key, value in fields.items()
    )


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c in text for c in ' "\n=') else text


def put_aside(path: Path) -> None:
    """Rename a log that has grown large, `.1` added, before a program begins to write it.

    Raises:
        OSError: it can't be renamed.
    """
    with suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_SIZE:
            path.replace(path.with_name(f"{path.name}.1"))


def configure(
    level: int | str = logging.INFO,
    *,
    log_format: LogFormat = "text",
    stream: IO[str] | None = None,
) -> None:
    """Send this project's logs at `level` and above to `stream` (standard error by default)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("flux_endpoint").setLevel(level)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # our connection reports for it
