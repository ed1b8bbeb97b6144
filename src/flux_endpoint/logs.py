"""Structured logs on top of the standard library: one event a line, fields as `key=value` or JSON.

Modules log with `logging.getLogger(__name__)` and put their fields into `extra={"fields": {...}}`,
or, shorter, with `event(log, logging.INFO, "task accepted", task_id=...)`. Libraries stay quiet:
only programs call `configure`.
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

#: Bytes of a program's log after which it is put aside.
MAX_LOG_SIZE = 10 * 2**20

#: Bytes that are kept beyond that: more was written before somebody looked.
_SLACK = 2**20

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
    # What others have chosen must not move a terminal's cursor, nor begin a line.
    plain = text.isprintable() and not any(c in text for c in ' "=')
    return text if text and plain else json.dumps(text)


def put_aside(path: Path) -> None:
    """Rename a log that has grown large, `.1` added, before a program begins to write it.

    Raises:
        OSError: it can't be renamed.
    """
    with suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_SIZE:
            path.replace(path.with_name(f"{path.name}.1"))


def tail(path: Path, lines: int = 20, size: int = 16 * 2**10) -> str:
    """Return the end of a log, for an error message.

    Args:
        path: the log; one that is not there is empty.
        lines: how many lines at most; empty ones do not count.
        size: how many bytes at most.

    Returns:
        The lines, indented; where they can't be read, a line that says why.
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
    """Puts aside what it has written, if it is a file that has grown large."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        keep_bounded(self.stream)


def keep_bounded(stream: IO[str] | None = None) -> None:
    """Put a log that has grown large aside while programs write it, `.1` added.

    It is done only to files below the state directory, where programs in the background log to.
    Several processes may have the same file open, and each may do it: what is in the file is
    copied, and the file cut, so that all go on writing to it.

    Args:
        stream: what writes the log (standard error by default), to a file or not.
    """
    with suppress(OSError, ValueError, AttributeError, ConfigurationError):  # it is no such file
        descriptor = (stream or sys.stderr).fileno()
        status = os.fstat(descriptor)
        appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND  # else it'd leave a hole
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
                finally:  # on a full disk, too
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
    """Send this project's logs at `level` and above to `stream` (standard error by default)."""
    handler = _BoundedHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("flux_endpoint").setLevel(level)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # our connection reports for it
