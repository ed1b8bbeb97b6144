"""Structured logs with the standard library: one event per line, fields as `key=value` or JSON.

A module logs with `log = logging.getLogger(__name__)`, and passes fields as
`extra={"fields": {...}}`, or shorter: `event(log, logging.INFO, "task accepted", task_id=...)`.
Only programs call `configure`; the library by itself logs nowhere.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

from flux_endpoint import paths
from flux_endpoint.errors import ConfigurationError

#: A program's log is rotated when it is larger than this (bytes).
MAX_LOG_SIZE = 10 * 2**20

#: Bytes that a rotated log may have beyond that: the log may grow before a program checks it.
_SLACK = 2**20

LogFormat = Literal["text", "json"]


def event(log: logging.Logger, level: int, what: str, /, **fields: Any) -> None:
    """Log an event.

    Args:
        log: the logger.
        level: the level, e.g. `logging.INFO`.
        what: description of the event.
        fields: values that belong to it.

    Example:
        event(log, logging.INFO, "task accepted", task_id=task_id)
    """
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
        line = f"{stamp} {record.levelname:<7} {message_of(record)}"
        return f"{line}\n{trace}" if trace else line


def message_of(record: logging.LogRecord) -> str:
    """Return the message of a record, followed by its fields as `key=value`."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return record.getMessage() + "".join(
        f" {key}={_quoted(value)}" for key, value in fields.items()
    )


def _quoted(value: Any) -> str:
    text = str(value)
    # Values from others must not contain control characters, which could forge lines.
    plain = text.isprintable() and not any(c in text for c in ' "=')
    return text if text and plain else json.dumps(text)


def put_aside(path: Path) -> None:
    """Rotate a large log before a program begins to write it: rename it to `<name>.1`.

    Args:
        path: the log.

    Raises:
        OSError: it can't be renamed.
    """
    with suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_SIZE:
            path.replace(path.with_name(f"{path.name}.1"))


def tail(path: Path, lines: int = 20, size: int = 16 * 2**10) -> str:
    """Return the end of a log, for an error message.

    Args:
        path: the log; it may be missing.
        lines: the most lines; empty ones do not count.
        size: the most bytes.

    Returns:
        The lines, indented; "" if the log is missing; a line with the reason if it can't be read.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            text = stream.read(size).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        text = f"({path} can't be read: {error.strerror})"
    kept = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in kept[-lines:])


class _BoundedHandler(logging.StreamHandler[IO[str]]):
    """Rotates its log if that is a large file."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        keep_bounded(self.stream)


def keep_bounded(stream: IO[str] | None = None) -> None:
    """Rotate a large log while programs write it: copy it to `<name>.1`, and truncate it.

    Only regular files below the state directory are rotated; background programs log there. The
    file is not renamed, because several processes may have it open and must continue to write to
    the same file. Any of them may call this.

    Args:
        stream: stream that writes the log (default: standard error); it need not be a file.
    """
    with suppress(OSError, ValueError, AttributeError, ConfigurationError):  # not such a file
        descriptor = (stream or sys.stderr).fileno()
        status = os.fstat(descriptor)
        # Without O_APPEND, the next write after the truncation would leave a hole.
        appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        if status.st_size <= MAX_LOG_SIZE or not stat.S_ISREG(status.st_mode) or not appends:
            return
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.is_relative_to(paths.home().resolve()):
            return
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            if os.path.samestat(os.fstat(file.fileno()), status) and size > MAX_LOG_SIZE:
                try:
                    _copy_end(file, path, size)
                finally:  # even if the copy fails, e.g. on a full disk
                    file.truncate(0)


def _copy_end(file: IO[bytes], path: Path, size: int) -> None:
    before = path.with_name(f"{path.name}.1")
    partial = path.with_name(f"{path.name}.partial")
    try:
        file.seek(max(size - MAX_LOG_SIZE - _SLACK, 0))
        made = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(made, "wb") as copy:
            shutil.copyfileobj(file, copy)
        partial.replace(before)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def configure(
    level: int | str = logging.INFO,
    *,
    log_format: LogFormat = "text",
    stream: IO[str] | None = None,
) -> None:
    """Configure logging of a program, for this project's loggers.

    Args:
        level: the lowest level that is logged; of other packages, warnings are logged.
        log_format: "text" or "json".
        stream: destination; default: standard error.
    """
    handler = _BoundedHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("flux_endpoint").setLevel(level)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # our connection logs its errors
